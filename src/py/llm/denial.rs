//! A denial as Python sees it, and the errors of those who wanted to wait.

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::LLMLimiter;
use super::request::LIMITS;
use crate::core::limiter::Reason;
use crate::core::limiter::llm::{Dimension, NANO_USD, Verdict};
use crate::py::edge::edge;
use crate::py::waiting::{exceeded, seconds};

/// Dollars of their billionths.
pub(super) fn usd(nano: u64) -> f64 {
    nano as f64 / NANO_USD as f64
}

/// So much of a dimension as Python counts it: an int, or dollars as a float.
pub(super) fn amount(
    py: Python<'_>,
    dimension: Dimension,
    amount: u128,
) -> PyResult<Bound<'_, PyAny>> {
    if dimension == Dimension::Usd {
        return (amount as f64 / NANO_USD as f64).into_bound_py_any(py);
    }
    amount.into_bound_py_any(py)
}

/// The same as text.
fn text(dimension: Dimension, amount: u64) -> String {
    if dimension == Dimension::Usd { usd(amount).to_string() } else { amount.to_string() }
}

/// Why nothing was reserved; false.
#[pyclass(frozen, name = "Denial", module = "ferrogate._core")]
pub(crate) struct PyDenial(pub(super) Verdict);

#[pymethods]
impl PyDenial {
    #[classattr]
    fn granted() -> bool {
        false
    }

    /// Why: ``"limited"``, ``"queued"``, ``"paused"``, ``"no free slot"``, ``"cost exceeds limit"`` …
    #[getter]
    fn reason(&self) -> &'static str {
        self.0.reason.as_str()
    }

    /// Seconds until the same could be granted if nobody else comes and nothing comes back.
    #[getter]
    fn retry_after(&self) -> f64 {
        seconds(self.0.retry_after)
    }

    /// What is scarce, if that is why.
    #[getter]
    fn dimension(&self) -> Option<&'static str> {
        self.0.dimension.map(Dimension::name)
    }

    /// What that allows per minute.
    #[getter]
    fn limit<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        edge("Denial.limit", || {
            let limit = self.0.dimension.zip(self.0.limit);
            limit.map(|(dimension, limit)| amount(py, dimension, limit.into())).transpose()
        })
    }

    /// What that would allow now.
    #[getter]
    fn remaining<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        edge("Denial.remaining", || {
            let left = |dimension| amount(py, dimension, self.0.remaining.into());
            self.0.dimension.map(left).transpose()
        })
    }

    #[allow(clippy::unused_self)] // Python's
    fn __bool__(&self) -> bool {
        false
    }

    fn __repr__(&self) -> PyResult<String> {
        edge("Denial.__repr__", || {
            let Verdict { reason, retry_after, remaining, .. } = self.0;
            let left = self.0.dimension.map_or_else(String::new, |dimension| {
                format!(", {} of {} left", text(dimension, remaining), limit_text(&self.0))
            });
            let reason = reason.as_str();
            Ok(format!("<Denial {reason:?}, retry after {} s{left}>", seconds(retry_after)))
        })
    }
}

/// `output_tokens 500/minute`.
fn limit_text(verdict: &Verdict) -> String {
    let (Some(dimension), Some(limit)) = (verdict.dimension, verdict.limit) else {
        return String::new();
    };
    format!("{} {}/minute", dimension.name(), text(dimension, limit))
}

impl LLMLimiter {
    /// The exception for a request that was refused for good.
    #[cold]
    pub(crate) fn refusal(&self, py: Python<'_>, verdict: &Verdict) -> PyErr {
        if verdict.reason == Reason::TooLarge
            && let (Some(dimension), Some(limit)) = (verdict.dimension, verdict.limit)
        {
            let argument = match dimension {
                Dimension::Usd => "cost_usd",
                other => other.name(),
            };
            return PyValueError::new_err(format!(
                "{argument}: expected at most the {} that {} allows at all, got {}",
                text(dimension, limit),
                LIMITS[dimension as usize],
                text(dimension, verdict.asked)
            ));
        }
        let limit = verdict.dimension.map(|_| limit_text(verdict));
        let reason = verdict.reason.as_str();
        exceeded(py, self.name.as_deref(), limit, verdict.retry_after, reason)
    }
}
