//! What is asked and what was used, from Python's arguments.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyEllipsis, PyString};

use crate::core::key::Key;
use crate::core::limiter::llm::{Ask, Change, Dimension, NANO_USD, Usage, WEIGHT_ONE};
use crate::py::convert::type_name;
use crate::py::limiter::key_from;
use crate::py::names;

type Argument<'a, 'py> = Option<&'a Bound<'py, PyAny>>;

/// A whole number from `least` on.
pub(super) fn whole(argument: &str, value: &Bound<'_, PyAny>, least: u64) -> PyResult<u64> {
    let is_bool = value.is_instance_of::<PyBool>();
    if let Ok(number) = value.extract::<u64>()
        && number >= least
        && !is_bool
    {
        return Ok(number);
    }
    let expected = format!("{argument}: expected an int from {least} to {}, got ", u64::MAX);
    if is_bool || !value.hasattr(names::index(value.py()))? {
        return Err(PyTypeError::new_err(format!("{expected}{}", type_name(value))));
    }
    // Python writes thousands of digits of an int, and then refuses.
    let shown = value.repr().map_or_else(|_| "another one".to_owned(), |repr| repr.to_string());
    let shown: String = shown.chars().take(80).collect();
    Err(PyValueError::new_err(format!("{expected}{shown}")))
}

/// Dollars in billionths, rounded; what is above nothing does not become nothing.
pub(crate) fn nano_usd(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    let expected = format!("{argument}: expected finite US dollars of at least 0, got ");
    let wrong = || {
        let shown = value.repr().map_or_else(|_| "a number without end".into(), |r| r.to_string());
        PyValueError::new_err(format!("{expected}{}", shown.chars().take(80).collect::<String>()))
    };
    if value.is_instance_of::<PyBool>() || value.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(format!("{expected}{}", type_name(value))));
    }
    let usd: f64 = match value.extract() {
        Ok(usd) => usd,
        Err(error) if error.is_instance_of::<PyTypeError>(value.py()) => {
            return Err(PyTypeError::new_err(format!("{expected}{}", type_name(value))));
        }
        // An int that no float can hold, a signalling NaN.
        Err(_) => return Err(wrong()),
    };
    if !usd.is_finite() || usd < 0.0 {
        return Err(wrong());
    }
    // The cast saturates: 18 billion dollars are as good as any more.
    let nano = (usd * NANO_USD as f64).round() as u64;
    Ok(if nano == 0 && usd > 0.0 { 1 } else { nano })
}

fn maybe<T>(
    argument: &str,
    value: Argument<'_, '_>,
    convert: impl FnOnce(&str, &Bound<'_, PyAny>) -> PyResult<T>,
) -> PyResult<Option<T>> {
    value.map(|value| convert(argument, value)).transpose()
}

fn tokens(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    whole(argument, value, 0)
}

/// The arguments of `reserve` and its kin.
pub(super) fn ask(
    input: Argument<'_, '_>,
    output: Argument<'_, '_>,
    max_output: Argument<'_, '_>,
    cost: Argument<'_, '_>,
    model: Argument<'_, '_>,
    tenant: Argument<'_, '_>,
) -> PyResult<Ask<Key>> {
    let output = maybe("output_tokens", output, tokens)?;
    let max_output = maybe("max_output_tokens", max_output, tokens)?;
    if let (Some(output), Some(most)) = (output, max_output)
        && output > most
    {
        return Err(PyValueError::new_err(format!(
            "output_tokens: expected at most max_output_tokens={most}, got {output}"
        )));
    }
    Ok(Ask {
        input: maybe("input_tokens", input, tokens)?.unwrap_or(0),
        output,
        max_output,
        usd: maybe("cost_usd", cost, nano_usd)?,
        model: maybe("model", model, key_from)?,
        tenant: maybe("tenant", tenant, key_from)?,
    })
}

/// The arguments of `settle`.
pub(super) fn usage(
    input: Argument<'_, '_>,
    output: Argument<'_, '_>,
    cost: Argument<'_, '_>,
) -> PyResult<Usage> {
    Ok(Usage {
        input: maybe("input_tokens", input, tokens)?,
        output: maybe("output_tokens", output, tokens)?,
        usd: maybe("cost_usd", cost, nano_usd)?,
    })
}

/// The names of the arguments that set the limits, by the dimensions' order.
pub(super) const LIMITS: [&str; Dimension::ALL.len()] = [
    "requests_per_minute",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
    "tokens_per_minute",
    "usd_per_minute",
];

/// One limit; the last dimension is money.
pub(super) fn limit(d: usize, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    let argument = LIMITS[d];
    if d != Dimension::Usd as usize {
        return whole(argument, value, 1);
    }
    match nano_usd(argument, value)? {
        0 => Err(PyValueError::new_err(format!(
            "{argument}: expected more than 0 US dollars, got 0"
        ))),
        nano => Ok(nano),
    }
}

/// ``...`` keeps what is set, ``None`` lifts it.
pub(super) fn change<T>(
    value: &Bound<'_, PyAny>,
    convert: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>,
) -> PyResult<Change<T>> {
    if value.is_instance_of::<PyEllipsis>() {
        return Ok(Change::Keep);
    }
    Ok(Change::To(if value.is_none() { None } else { Some(convert(value)?) }))
}

/// Tenants' weights, a dict of numbers above zero.
pub(super) fn weights(value: Argument<'_, '_>) -> PyResult<Vec<(Key, u32)>> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let Ok(weights) = value.cast::<PyDict>() else {
        let expected = "weights: expected a dict such as {\"tenant\": 2.0}, got ";
        return Err(PyTypeError::new_err(format!("{expected}{}", type_name(value))));
    };
    let mut known = Vec::with_capacity(weights.len());
    for (tenant, weight) in weights {
        let key = key_from("weights", &tenant)?;
        let number = if weight.is_instance_of::<PyBool>() { None } else { weight.extract().ok() };
        let thousandths =
            number.map_or(0.0, |number: f64| (number * f64::from(WEIGHT_ONE)).round());
        if !(1.0..=f64::from(u32::MAX)).contains(&thousandths) {
            return Err(PyValueError::new_err(format!(
                "weights: expected numbers from 0.001 to 4,000,000, got {} for {}",
                weight.repr()?,
                tenant.repr()?
            )));
        }
        known.push((key, thousandths as u32));
    }
    Ok(known)
}
