//! Why a budget grants something not.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::books::Stop;
use super::class::Budget;
use super::usd;
use crate::core::budget::{Millis, Refusal, Shortfall};
use crate::runtime::budget::AGAIN;

/// The function that makes a `BudgetExceededError`.
static EXCEEDED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    exceeded(py).map(drop)
}

fn exceeded(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    EXCEEDED.import(py, "ferrogate._budgeting", "exceeded")
}

/// A refusal.
pub(crate) struct Refused {
    pub(crate) reason: &'static str,
    /// Seconds; infinite if never.
    pub(crate) retry_after: f64,
    pub(crate) short: Option<Shortfall>,
    asked: u64,
    key: Option<Py<PyAny>>,
    resets_at: Option<Millis>,
}

impl Refused {
    pub(super) fn of_limit(short: Shortfall, asked: u64, now: Millis) -> Self {
        let never = short.refusal == Refusal::TooLarge;
        let reason = if never { "cost exceeds limit" } else { "budget exceeded" };
        let retry_after = if never { f64::INFINITY } else { seconds_until(short.resets_at, now) };
        let resets_at = Some(short.resets_at);
        Self { reason, retry_after, short: Some(short), asked, key: None, resets_at }
    }

    pub(super) fn of_stop(stop: &Stop, asked: u64, now: Millis) -> Self {
        let (reason, retry_after, resets_at) = match stop {
            Stop::Full(until) => ("key table full", seconds_until(*until, now), Some(*until)),
            Stop::Away(_) => ("store unavailable", AGAIN.as_secs_f64(), None),
        };
        Self { reason, retry_after, short: None, asked, key: None, resets_at }
    }

    pub(super) fn with_key(self, key: Option<Py<PyAny>>) -> Self {
        Self { key, ..self }
    }

    /// The exception for it; more than can ever be granted is a wrong `argument`.
    #[cold]
    pub(crate) fn error(&self, budget: &Bound<'_, Budget>, argument: &str) -> PyErr {
        if let Some(short) = self.short.filter(|short| short.refusal == Refusal::TooLarge) {
            return PyValueError::new_err(format!(
                "{argument}: expected at most the {} USD/{} that the budget {:?} allows at all, \
                 got {}",
                usd(short.limit),
                short.period.name(),
                budget.get().name(),
                usd(self.asked)
            ));
        }
        let py = budget.py();
        let limit = self.short.map(|short| (short.period.name(), short.limit, short.used));
        let made = exceeded(py).and_then(|make| {
            make.call1((budget, &self.key, self.reason, limit, self.resets_at, self.retry_after))
        });
        made.map_or_else(|error| error, PyErr::from_value)
    }
}

fn seconds_until(then: Millis, now: Millis) -> f64 {
    then.saturating_sub(now).max(1) as f64 / 1e3
}
