//! The values that a limiter takes and gives.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyString, PyType};

use crate::core::limiter::{Decision, Limit};
use crate::py::convert::{duration, type_name};
use crate::py::edge::edge;
use crate::py::waiting::seconds;

/// So many permits in so much time.
#[pyclass(frozen, eq, hash, name = "Limit", module = "ferrogate._core")]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PyLimit(pub(super) Limit);

#[pymethods]
impl PyLimit {
    #[new]
    fn new(count: &Bound<'_, PyAny>, period: &Bound<'_, PyAny>) -> PyResult<Self> {
        edge("Limit", || {
            let expected = "count: expected an int of at least 1, got";
            if count.is_instance_of::<PyBool>() || !count.hasattr("__index__")? {
                return Err(PyTypeError::new_err(format!("{expected} {}", type_name(count))));
            }
            let permits = count.extract::<u64>().map_err(|_| match count.repr() {
                Ok(repr) => PyValueError::new_err(format!("{expected} {repr}")),
                Err(error) => error,
            })?;
            Ok(Self(Limit::new(permits, duration("period", period)?)?))
        })
    }

    #[getter]
    fn count(&self) -> u64 {
        self.0.count()
    }

    #[getter]
    fn period(&self) -> f64 {
        seconds(self.0.period())
    }

    fn __str__(&self) -> PyResult<String> {
        edge("Limit.__str__", || Ok(self.0.to_string()))
    }

    fn __repr__(&self) -> PyResult<String> {
        edge("Limit.__repr__", || {
            Ok(format!("Limit({}, {:?})", self.0.count(), seconds(self.0.period())))
        })
    }

    /// From whole nanoseconds, which seconds in a float are not beyond 104 days.
    #[classmethod]
    fn _of_nanos(_class: &Bound<'_, PyType>, count: u64, period: u64) -> PyResult<Self> {
        edge("Limit._of_nanos", || Ok(Self(Limit::new(count, period)?)))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (u64, u64))> {
        edge("Limit.__reduce__", || {
            let limit = slf.get().0;
            Ok((slf.get_type().getattr("_of_nanos")?, (limit.count(), limit.period())))
        })
    }
}

pub(super) fn limit_from(value: &Bound<'_, PyAny>) -> PyResult<Limit> {
    if let Ok(limit) = value.cast::<PyLimit>() {
        return Ok(limit.get().0);
    }
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(text.to_str()?.parse()?);
    }
    Err(PyTypeError::new_err(format!(
        "limits: expected text such as \"60/minute\", a Limit or a RateLimitConfig, got {}",
        type_name(value)
    )))
}

/// The answer to one request; true when granted.
#[pyclass(frozen, freelist = 64, name = "Decision", module = "ferrogate._core")]
pub(crate) struct PyDecision(pub(super) Decision);

#[pymethods]
impl PyDecision {
    #[getter]
    fn granted(&self) -> bool {
        self.0.granted
    }

    #[getter]
    fn retry_after(&self) -> f64 {
        seconds(self.0.retry_after)
    }

    #[getter]
    fn remaining(&self) -> Option<u64> {
        (self.0.remaining < u64::MAX).then_some(self.0.remaining)
    }

    #[getter]
    fn limit(&self) -> Option<PyLimit> {
        self.0.limit.map(PyLimit)
    }

    #[getter]
    fn reset_after(&self) -> f64 {
        seconds(self.0.reset_after)
    }

    #[getter]
    fn reason(&self) -> &'static str {
        self.0.reason.as_str()
    }

    fn __bool__(&self) -> bool {
        self.0.granted
    }

    fn __repr__(&self) -> PyResult<String> {
        edge("Decision.__repr__", || {
            let Decision { granted, retry_after, remaining, limit, reason, .. } = self.0;
            let reason = reason.as_str();
            let again = if granted {
                String::new()
            } else {
                format!(", retry after {} s", seconds(retry_after))
            };
            let left =
                limit.map_or_else(String::new, |limit| format!(", {remaining} of {limit} left"));
            Ok(format!("<Decision {reason:?}{again}{left}>"))
        })
    }
}
