//! `RetryBudget`: what the retries of many policies are paid from.

use pyo3::prelude::*;

use super::arguments::{MILLION, millionths, number};
use crate::core::retry::{BudgetSettings, RetryBudget};
use crate::core::sync::Arc;
use crate::py::convert::{clock, duration, globally_disabled};
use crate::py::edge::edge;

/// The native half of ``ferrogate.RetryBudget``.
#[pyclass(frozen, subclass, weakref, name = "RetryBudget", module = "ferrogate._core")]
pub(crate) struct PyRetryBudget {
    pub(super) core: Arc<RetryBudget>,
    name: Option<String>,
}

impl PyRetryBudget {
    /// What decides.
    pub(crate) fn core(&self) -> &RetryBudget {
        &self.core
    }
}

#[pymethods]
impl PyRetryBudget {
    #[new]
    #[pyo3(signature = (ratio, *, min_per_second, max_saved, window, usd_per_minute, name, clock, enabled))]
    #[allow(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn new(
        ratio: &Bound<'_, PyAny>,
        min_per_second: &Bound<'_, PyAny>,
        max_saved: &Bound<'_, PyAny>,
        window: &Bound<'_, PyAny>,
        usd_per_minute: Option<&Bound<'_, PyAny>>,
        name: Option<String>,
        clock: Option<&Bound<'_, PyAny>>,
        enabled: bool,
    ) -> PyResult<Self> {
        edge("RetryBudget", || {
            number("ratio", ratio, 0.0, 1.0)?;
            let usd = usd_per_minute.map(|usd| millionths("usd_per_minute", usd)).transpose()?;
            let settings = BudgetSettings {
                ratio: millionths("ratio", ratio)?,
                min_per_second: millionths("min_per_second", min_per_second)?,
                window: duration("window", window)?,
                max_saved: millionths("max_saved", max_saved)?,
                usd_per_minute: usd,
                enabled: enabled && !globally_disabled(),
            };
            let core = RetryBudget::new(settings, self::clock(clock)?)?;
            Ok(Self { core: Arc::new(core), name })
        })
    }

    /// Pays for a retry that is made elsewhere; false if there is not enough.
    fn _withdraw(&self) -> PyResult<bool> {
        edge("RetryBudget._withdraw", || Ok(self.core.try_withdraw(None)))
    }

    /// For ``ferrogate.testing.reset_all``: as new; the counters go on.
    fn _reset(&self) -> PyResult<()> {
        edge("RetryBudget._reset", || {
            self.core.reset();
            Ok(())
        })
    }

    /// `(calls, retries, refused, refused_usd, saved, reserve, usd_last_minute)`
    fn _stats(&self) -> PyResult<(u64, u64, u64, u64, f64, f64, f64)> {
        edge("RetryBudget._stats", || {
            let stats = self.core.stats();
            let whole = |millionths: u64| millionths as f64 / MILLION;
            Ok((
                stats.calls,
                stats.retries,
                stats.refused,
                stats.refused_usd,
                whole(stats.saved),
                whole(stats.reserve),
                whole(stats.spent),
            ))
        })
    }

    #[getter]
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    #[getter]
    fn ratio(&self) -> f64 {
        self.core.settings().ratio as f64 / MILLION
    }

    #[getter]
    fn usd_per_minute(&self) -> Option<f64> {
        self.core.settings().usd_per_minute.map(|usd| usd as f64 / MILLION)
    }

    #[getter]
    fn enabled(&self) -> bool {
        self.core.settings().enabled
    }
}
