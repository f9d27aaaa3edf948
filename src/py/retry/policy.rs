//! `RetryPolicy`: convert, ask the core, hand over the verdict.

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::arguments::{attempts, number};
use super::budget::PyRetryBudget;
use super::rules::{On, Terms};
use crate::core::clock::{Clock, secs_from_nanos};
use crate::core::outcome::Outcome;
use crate::core::retry::{Jitter, Policy, Reason, Run, Settings, Verdict};
use crate::core::sync::Arc;
use crate::py::convert::{LONGEST, clock, duration_or_zero, globally_disabled, optional_duration};
use crate::py::edge::edge;
use crate::py::guard::{self, Plan};

/// The native half of ``ferrogate.RetryPolicy``.
#[pyclass(frozen, subclass, weakref, name = "RetryPolicy", module = "ferrogate._core")]
pub(crate) struct PyRetryPolicy {
    policy: Policy,
    on: On,
    budget: Option<Py<PyRetryBudget>>,
    clock: Clock,
    /// As it was given; `None` is the machine's.
    clock_object: Option<Py<PyAny>>,
    name: Option<String>,
}

#[pymethods]
impl PyRetryPolicy {
    #[new]
    #[pyo3(signature = (attempts, *, base, factor, max_delay, jitter, budget, on, total_timeout, max_retry_after, name, clock, enabled))]
    #[allow(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn new(
        attempts: &Bound<'_, PyAny>,
        base: &Bound<'_, PyAny>,
        factor: &Bound<'_, PyAny>,
        max_delay: &Bound<'_, PyAny>,
        jitter: &str,
        budget: Option<Py<PyRetryBudget>>,
        on: Option<&Bound<'_, PyAny>>,
        total_timeout: Option<&Bound<'_, PyAny>>,
        max_retry_after: &Bound<'_, PyAny>,
        name: Option<String>,
        clock: Option<&Bound<'_, PyAny>>,
        enabled: bool,
    ) -> PyResult<Self> {
        edge("RetryPolicy", || {
            let settings = Settings {
                attempts: self::attempts("attempts", attempts)?,
                base: duration_or_zero("base", base)?,
                factor: number("factor", factor, 1.0, f64::MAX)?,
                max_delay: duration_or_zero("max_delay", max_delay)?,
                jitter: Jitter::parse(jitter)?,
                total_timeout: optional_duration("total_timeout", total_timeout)?
                    .filter(|total| *total < LONGEST),
                max_retry_after: duration_or_zero("max_retry_after", max_retry_after)?,
                enabled: enabled && !globally_disabled(),
            };
            let pays = budget.as_ref().map(|budget| Arc::clone(&budget.get().core));
            let policy = Policy::new(settings, pays)?;
            let on = On::new(on, &policy)?;
            let clock_object = clock.map(|clock| clock.clone().unbind());
            Ok(Self { policy, on, budget, clock: self::clock(clock)?, clock_object, name })
        })
    }

    #[pyo3(signature = (function, /, *args, **kwargs))]
    fn call<'py>(
        slf: &Bound<'py, Self>,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("RetryPolicy.call", || {
            guard::call_with(Plan::Retry(slf.clone().unbind()), function, args, kwargs)
        })
    }

    #[pyo3(signature = (function, /, *args, **kwargs))]
    fn call_sync<'py>(
        slf: &Bound<'py, Self>,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        edge("RetryPolicy.call_sync", || {
            guard::call_blocking_with(Plan::Retry(slf.clone().unbind()), function, args, kwargs)
        })
    }

    /// Calls in all that an error like this one would be given; 1 is no retry.
    fn attempts_for(&self, error: &Bound<'_, PyAny>) -> PyResult<u32> {
        edge("RetryPolicy.attempts_for", || {
            let policy = match self.terms(error)? {
                Terms::Never => return Ok(1),
                Terms::Usual => &self.policy,
                Terms::By(policy) => policy,
            };
            let settings = policy.settings();
            Ok(if settings.enabled { settings.attempts } else { 1 })
        })
    }

    /// `(calls, retries, delayed_seconds, [(reason, count), …])`
    #[allow(clippy::type_complexity)] // spelled out in `_core.pyi`
    fn _stats(&self) -> PyResult<(u64, u64, f64, Vec<(&'static str, u64)>)> {
        edge("RetryPolicy._stats", || {
            let stats = self.policy.stats();
            let given_up = Reason::ALL.iter().map(|reason| reason.name()).zip(stats.given_up);
            let delayed = secs_from_nanos(stats.delayed);
            Ok((stats.calls, stats.retries, delayed, given_up.collect()))
        })
    }

    #[getter]
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    #[getter]
    fn attempts(&self) -> u32 {
        self.policy.settings().attempts
    }

    #[getter]
    fn budget(&self, py: Python<'_>) -> Option<Py<PyRetryBudget>> {
        self.budget.as_ref().map(|budget| budget.clone_ref(py))
    }

    #[getter]
    fn enabled(&self) -> bool {
        self.policy.settings().enabled
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.budget)?;
        visit.call(&self.clock_object)?;
        self.on.traverse(&visit)
    }
}

/// For whoever drives a call.
impl PyRetryPolicy {
    /// What the core decides by; `begin` of it begins a run.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What errors it is for.
    pub(crate) fn on(&self) -> &On {
        &self.on
    }

    /// Its time.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Its clock as it was given.
    pub(crate) fn clock_object(&self) -> Option<&Py<PyAny>> {
        self.clock_object.as_ref()
    }

    /// What it says of one error.
    ///
    /// # Errors
    /// What a function given as `on=` raises.
    pub(crate) fn terms(&self, error: &Bound<'_, PyAny>) -> PyResult<Terms<'_>> {
        self.on.terms(error, &self.policy)
    }

    /// What is to be done now that a call has raised `error`, which counts as `outcome`; `decide`
    /// is [`Run::after`] or its like. May run Python code: hold no lock.
    ///
    /// # Errors
    /// What a function given as `on=` raises.
    pub(crate) fn after_error(
        &self,
        run: &mut Run,
        error: &Bound<'_, PyAny>,
        outcome: Outcome,
        decide: impl FnOnce(&mut Run, &Policy, Outcome) -> Verdict,
    ) -> PyResult<Verdict> {
        Ok(match self.terms(error)? {
            Terms::Never => run.not_retried(&self.policy),
            Terms::Usual => decide(run, &self.policy, outcome),
            Terms::By(policy) => decide(run, policy, Outcome::Failure),
        })
    }
}
