//! `PerformanceMetrics` for Python.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDelta, PyInt};

use crate::core::metrics::{Generation, PerformanceMetrics, PerformanceSnapshot};
use crate::py::convert::{self, type_name};
use crate::py::edge::edge;
use crate::py::names;

/// Exact totals of generations, counted since construction or :meth:`reset`.
#[pyclass(frozen, subclass, weakref, name = "PerformanceMetrics", module = "ferrogate._core")]
pub(crate) struct PyPerformanceMetrics {
    name: Option<String>,
    metrics: PerformanceMetrics,
}

/// `get_stats()`; the names are those of the system it replaces.
#[derive(Default, IntoPyObject)]
struct Stats {
    total_generations: u64,
    successful: u64,
    failed: u64,
    success_rate_percent: f64,
    avg_generation_time_seconds: f64,
    avg_tokens_per_generation: f64,
    avg_retries: f64,
    total_cost_usd: f64,
    uptime_hours: f64,
    throughput_per_hour: f64,
    total_tokens: u128,
    total_retries: u128,
    total_time_seconds: f64,
    p50_generation_time_seconds: f64,
    p95_generation_time_seconds: f64,
    p99_generation_time_seconds: f64,
}

impl From<PerformanceSnapshot> for Stats {
    fn from(s: PerformanceSnapshot) -> Self {
        Self {
            total_generations: s.total,
            successful: s.successful,
            failed: s.failed,
            success_rate_percent: s.success_rate_percent(),
            avg_generation_time_seconds: s.avg_seconds(),
            avg_tokens_per_generation: s.avg_tokens(),
            avg_retries: s.avg_retries(),
            total_cost_usd: s.usd,
            uptime_hours: s.uptime_hours(),
            throughput_per_hour: s.throughput_per_hour(),
            total_tokens: s.tokens,
            total_retries: s.retries,
            total_time_seconds: s.seconds,
            p50_generation_time_seconds: s.p50_seconds,
            p95_generation_time_seconds: s.p95_seconds,
            p99_generation_time_seconds: s.p99_seconds,
        }
    }
}

/// Makes the names of the dictionary, which are interned on first use.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    Stats::default().into_pyobject(py).map(drop)
}

/// A count: an `int` (no `bool`) of at least 0.
fn count(argument: &'static str, value: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
    let Some(value) = value else { return Ok(0) };
    if !value.is_instance_of::<PyInt>() || value.is_instance_of::<PyBool>() {
        let got = type_name(value);
        return Err(PyTypeError::new_err(format!("{argument}: expected an int, got {got}")));
    }
    value.extract().map_err(|_| {
        PyValueError::new_err(format!("{argument}: expected a count between 0 and 2**64 - 1"))
    })
}

/// A number: anything with a float value, but no `bool`.
fn number(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    if value.is_instance_of::<PyBool>() {
        return Err(PyTypeError::new_err(format!("{argument}: expected a number, got bool")));
    }
    value.extract().map_err(|_| {
        if value.is_instance_of::<PyInt>() {
            return PyValueError::new_err(format!(
                "{argument}: expected a number a float can hold"
            ));
        }
        let got = type_name(value);
        PyTypeError::new_err(format!("{argument}: expected a number, got {got}"))
    })
}

/// A `str`.
fn text(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    value.extract().map_err(|_| {
        let got = type_name(value);
        PyTypeError::new_err(format!("{argument}: expected a str or None, got {got}"))
    })
}

/// A time: seconds as a number, or a `timedelta`.
fn seconds(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    match value.cast::<PyDelta>() {
        Ok(_) => value.call_method0(names::total_seconds(value.py()))?.extract(),
        Err(_) => number(argument, value),
    }
}

/// A `bool`, and nothing that is merely true or false.
fn truth(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    value.extract().map_err(|_| {
        let got = type_name(value);
        PyTypeError::new_err(format!("{argument}: expected True or False, got {got}"))
    })
}

#[pymethods]
impl PyPerformanceMetrics {
    #[new]
    #[pyo3(signature = (name = None, *, clock = None))]
    fn new(name: Option<&Bound<'_, PyAny>>, clock: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        edge("PerformanceMetrics", || {
            let name = name.map(|name| text("name", name)).transpose()?;
            Ok(Self { name, metrics: PerformanceMetrics::new(convert::clock(clock)?) })
        })
    }

    /// The name given at construction.
    #[getter]
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Counts one generation: its time in seconds or a timedelta, its tokens (input and
    /// output together), the attempts beyond the first and its cost in USD.
    ///
    /// Raises `ValueError` for a number that is negative, infinite or NaN, and
    /// `TypeError` for one of the wrong type; nothing is counted then.
    #[pyo3(signature = (success, time_seconds, tokens = None, retries = None, cost_usd = None))]
    fn record_generation(
        &self,
        success: &Bound<'_, PyAny>,
        time_seconds: &Bound<'_, PyAny>,
        tokens: Option<&Bound<'_, PyAny>>,
        retries: Option<&Bound<'_, PyAny>>,
        cost_usd: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        edge("PerformanceMetrics.record_generation", || {
            let generation = Generation {
                success: truth("success", success)?,
                time_seconds: seconds("time_seconds", time_seconds)?,
                tokens: count("tokens", tokens)?,
                retries: count("retries", retries)?,
                cost_usd: cost_usd.map_or(Ok(0.0), |usd| number("cost_usd", usd))?,
            };
            Ok(self.metrics.record_generation(generation)?)
        })
    }

    /// All totals, means and percentiles at one moment.
    fn get_stats(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        edge("PerformanceMetrics.get_stats", || {
            let stats = Stats::from(self.metrics.snapshot());
            Ok(stats.into_pyobject(py)?.into_any().unbind())
        })
    }

    /// Forgets everything; the uptime starts again.
    fn reset(&self) -> PyResult<()> {
        edge("PerformanceMetrics.reset", || {
            self.metrics.reset();
            Ok(())
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        edge("PerformanceMetrics.__repr__", || {
            let s = self.metrics.snapshot();
            Ok(format!(
                "<PerformanceMetrics {}generations={} success={:.1}% mean={:.3}s cost={:.4}USD>",
                self.name.as_ref().map(|name| format!("{name:?} ")).unwrap_or_default(),
                s.total,
                s.success_rate_percent(),
                s.avg_seconds(),
                s.usd,
            ))
        })
    }
}

pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyPerformanceMetrics>()
}
