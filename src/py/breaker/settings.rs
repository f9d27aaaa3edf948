//! `CircuitBreakerConfig` to the core's settings, with errors that name the field.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyInt};

use crate::core::breaker::{Settings, Span};
use crate::py::convert::{duration, duration_or_zero, type_name};
use crate::py::edge::edge;

/// Refuses a configuration that makes no sense; the calls that a window has to hold by it.
#[pyfunction]
#[pyo3(name = "_check_breaker_config")]
pub(super) fn check_config(config: &Bound<'_, PyAny>) -> PyResult<u32> {
    edge("_check_breaker_config", || Ok(settings(config, true)?.minimum_calls()))
}

/// The settings that `config` stands for, checked.
pub(super) fn settings(config: &Bound<'_, PyAny>, enabled: bool) -> PyResult<Settings> {
    let given = |name| -> PyResult<Option<Bound<'_, PyAny>>> {
        let value = config.getattr(name)?;
        Ok((!value.is_none()).then_some(value))
    };
    let settings = Settings {
        enabled,
        failure_threshold: number("failure_threshold", &config.getattr("failure_threshold")?)?,
        window: window(&config.getattr("window")?)?,
        minimum_calls: given("minimum_calls")?
            .map(|calls| whole("minimum_calls", &calls))
            .transpose()?,
        timeout: duration("timeout_seconds", &config.getattr("timeout_seconds")?)?,
        max_timeout: given("max_timeout_seconds")?
            .map(|longest| duration("max_timeout_seconds", &longest))
            .transpose()?,
        timeout_factor: number("timeout_factor", &config.getattr("timeout_factor")?)?,
        jitter: number("timeout_jitter", &config.getattr("timeout_jitter")?)?,
        success_threshold: whole("success_threshold", &config.getattr("success_threshold")?)?,
        half_open_max_calls: whole("half_open_max_calls", &config.getattr("half_open_max_calls")?)?,
        probe_timeout: duration(
            "probe_timeout_seconds",
            &config.getattr("probe_timeout_seconds")?,
        )?,
        slow_call: given("slow_call_seconds")?
            .map(|slow| duration("slow_call_seconds", &slow))
            .transpose()?,
        slow_threshold: given("slow_call_threshold")?
            .map(|share| number("slow_call_threshold", &share))
            .transpose()?,
        count_throttled: flag("count_throttled", &config.getattr("count_throttled")?)?,
        max_wasted_usd: given("max_wasted_usd_per_minute")?
            .map(|usd| number("max_wasted_usd_per_minute", &usd))
            .transpose()?,
        max_wasted_tokens: given("max_wasted_tokens_per_minute")?
            .map(|tokens| integer("max_wasted_tokens_per_minute", &tokens, u64::MAX))
            .transpose()?,
        ramp_up: duration_or_zero("ramp_up_seconds", &config.getattr("ramp_up_seconds")?)?,
    };
    settings.check()?;
    Ok(settings)
}

/// An `int` is calls, a `float` seconds, as a `timedelta` is time.
fn window(value: &Bound<'_, PyAny>) -> PyResult<Span> {
    if value.is_instance_of::<PyInt>() {
        return whole("window", value).map(Span::Calls);
    }
    duration("window", value).map(Span::Time).map_err(|error| {
        if !error.is_instance_of::<PyTypeError>(value.py()) {
            return error;
        }
        let got = type_name(value);
        PyTypeError::new_err(format!(
            "window: expected calls as an int, or seconds as a float or a timedelta, got {got}"
        ))
    })
}

fn is_int(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<PyInt>() && !value.is_instance_of::<PyBool>()
}

/// An `int` or a `float`.
pub(super) fn number(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    if !is_int(value) && !value.is_instance_of::<PyFloat>() {
        let got = type_name(value);
        return Err(PyTypeError::new_err(format!("{argument}: expected a number, got {got}")));
    }
    value.extract().map_err(|_| {
        PyValueError::new_err(format!("{argument}: expected a number that a float can hold"))
    })
}

fn whole(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<u32> {
    // Zero is for the core to judge.
    integer(argument, value, u32::MAX.into()).map(|count| count as u32)
}

pub(super) fn integer(
    argument: &'static str,
    value: &Bound<'_, PyAny>,
    most: u64,
) -> PyResult<u64> {
    if !is_int(value) {
        let got = type_name(value);
        return Err(PyTypeError::new_err(format!("{argument}: expected an int, got {got}")));
    }
    value.extract::<u64>().ok().filter(|count| *count <= most).ok_or_else(|| {
        PyValueError::new_err(format!(
            "{argument}: expected an int of at least 0 and at most {most}"
        ))
    })
}

/// True or False, and nothing that is merely like it.
pub(super) fn flag(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    value.cast::<PyBool>().map(PyBoolMethods::is_true).map_err(|_| {
        let got = type_name(value);
        PyTypeError::new_err(format!("{argument}: expected True or False, got {got}"))
    })
}
