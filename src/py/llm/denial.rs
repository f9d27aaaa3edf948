//! A denial as Python sees it, and the errors of those who wanted to wait.

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::LLMLimiter;
use super::request::LIMITS;
use crate::core::budget::Shortfall;
use crate::core::limiter::Reason;
use crate::core::limiter::llm::{Dimension, NANO_USD, Verdict};
use crate::py::budget::{Refused, usd};
use crate::py::edge::edge;
use crate::py::waiting::{exceeded, seconds};

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
pub(crate) struct PyDenial {
    reason: &'static str,
    /// Seconds.
    retry_after: f64,
    scarce: Option<Scarce>,
}

/// What is scarce.
struct Scarce {
    /// Its name.
    what: &'static str,
    unit: Dimension,
    limit: Option<u64>,
    remaining: u64,
    /// The limit as text.
    text: String,
}

impl From<Verdict> for PyDenial {
    fn from(verdict: Verdict) -> Self {
        let scarce = verdict.dimension.map(|unit| Scarce {
            what: unit.name(),
            unit,
            limit: verdict.limit,
            remaining: verdict.remaining,
            text: limit_text(&verdict),
        });
        let Verdict { reason, retry_after, .. } = verdict;
        Self { reason: reason.as_str(), retry_after: seconds(retry_after), scarce }
    }
}

impl From<&Refused> for PyDenial {
    fn from(refused: &Refused) -> Self {
        let scarce = refused.short.map(|Shortfall { period, limit, used, .. }| Scarce {
            what: period.dimension(),
            unit: Dimension::Usd,
            limit: Some(limit),
            remaining: limit.saturating_sub(used),
            text: format!("{} USD/{}", usd(limit), period.name()),
        });
        Self { reason: refused.reason, retry_after: refused.retry_after, scarce }
    }
}

#[pymethods]
impl PyDenial {
    #[classattr]
    fn granted() -> bool {
        false
    }

    /// Why: ``"limited"``, ``"queued"``, ``"paused"``, ``"no free slot"``, ``"cost exceeds limit"``,
    /// ``"budget exceeded"``, ``"store unavailable"`` …
    #[getter]
    fn reason(&self) -> &'static str {
        self.reason
    }

    /// Seconds until the same could be granted if nobody else comes and nothing comes back.
    #[getter]
    fn retry_after(&self) -> f64 {
        self.retry_after
    }

    /// What is scarce, if that is why; of a budget ``"usd/day"`` and its like.
    #[getter]
    fn dimension(&self) -> Option<&'static str> {
        self.scarce.as_ref().map(|scarce| scarce.what)
    }

    /// What that allows per minute, or in the budget's period.
    #[getter]
    fn limit<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        edge("Denial.limit", || {
            let limit = self.scarce.as_ref().and_then(|scarce| Some((scarce.unit, scarce.limit?)));
            limit.map(|(unit, limit)| amount(py, unit, limit.into())).transpose()
        })
    }

    /// What that would allow now.
    #[getter]
    fn remaining<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        edge("Denial.remaining", || {
            let left = |scarce: &Scarce| amount(py, scarce.unit, scarce.remaining.into());
            self.scarce.as_ref().map(left).transpose()
        })
    }

    #[allow(clippy::unused_self)] // Python's
    fn __bool__(&self) -> bool {
        false
    }

    fn __repr__(&self) -> PyResult<String> {
        edge("Denial.__repr__", || {
            let Self { reason, retry_after, scarce } = self;
            let left = scarce.as_ref().map_or_else(String::new, |scarce| {
                format!(", {} of {} left", text(scarce.unit, scarce.remaining), scarce.text)
            });
            Ok(format!("<Denial {reason:?}, retry after {retry_after} s{left}>"))
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
