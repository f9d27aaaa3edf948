//! The native half of ``ferrogate.Guard``.

use std::sync::atomic::Ordering;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::blocking;
use super::call::open;
use super::gate::Gate;
use super::hedge::Hedge;
use super::open::{OpenAttempt, Opens};
use super::plan::{Counts, Parts, Plan};
use super::recording::PyRecording;
use super::routed;
use super::router::Router;
use super::slot::Given;
use super::target::Target;
use crate::core::clock::{Clock, Nanos};
use crate::py::breaker::CircuitBreaker;
use crate::py::convert::{clock, globally_disabled, optional_duration};
use crate::py::edge::edge;
use crate::py::limiter::RateLimiter;
use crate::py::retry::PyRetryPolicy;

/// The parts that calls go through, and what became of them.
#[pyclass(frozen, subclass, module = "ferrogate._core")]
pub(crate) struct Guard {
    pub(super) name: String,
    pub(super) clock: Clock,
    /// As it was given; ``None`` is the machine's.
    pub(super) clock_object: Option<Py<PyAny>>,
    breaker: Option<Py<CircuitBreaker>>,
    retry: Option<Py<PyRetryPolicy>>,
    gate: Option<Gate>,
    router: Option<Box<Router>>,
    bulkhead: Option<Py<RateLimiter>>,
    hedge: Option<Py<Hedge>>,
    fallback: Option<Py<PyAny>>,
    classify: Option<Py<PyAny>>,
    recording: Option<Py<PyRecording>>,
    timeout: Option<Nanos>,
    attempt_timeout: Option<Nanos>,
    enabled: bool,
    pub(super) counts: Counts,
}

impl Guard {
    #[inline]
    pub(super) fn hedge(&self) -> Option<&Py<Hedge>> {
        self.hedge.as_ref().filter(|_| self.enabled)
    }

    /// Who chooses a target for each attempt, if it has targets.
    #[inline]
    pub(super) fn router(&self) -> Option<&Router> {
        self.router.as_deref()
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Refuses a function that a guard with targets has nowhere to put the target of.
    #[inline]
    fn check(&self, function: &Bound<'_, PyAny>) -> PyResult<()> {
        if self.router.is_none() { Ok(()) } else { routed::check(function) }
    }

    #[inline]
    pub(super) fn parts(&self) -> Parts<'_> {
        if !self.enabled {
            return Parts {
                guard: Some(self),
                router: self.router(),
                classify: self.classify.as_ref(),
                recording: self.recording.as_ref(),
                ..Parts::default()
            };
        }
        Parts {
            guard: Some(self),
            router: self.router(),
            breaker: self.breaker.as_ref(),
            retry: self.retry.as_ref(),
            gate: self.gate.as_ref(),
            bulkhead: self.bulkhead.as_ref(),
            fallback: self.fallback.as_ref(),
            classify: self.classify.as_ref(),
            recording: self.recording.as_ref(),
            timeout: self.timeout,
            attempt_timeout: self.attempt_timeout,
            is_part: false,
        }
    }
}

#[pymethods]
impl Guard {
    #[new]
    #[pyo3(signature = (name, *, breaker, retry, limiter, estimate, usage, price, bulkhead, targets, route, hedge, timeout, attempt_timeout, fallback, classify, recording, clock, enabled))]
    #[allow(clippy::too_many_arguments, reason = "called by ferrogate.Guard alone, by keyword")]
    fn new(
        py: Python<'_>,
        name: String,
        breaker: Option<Py<CircuitBreaker>>,
        retry: Option<Py<PyRetryPolicy>>,
        limiter: Option<&Bound<'_, PyAny>>,
        estimate: Py<PyAny>,
        usage: Py<PyAny>,
        price: Option<Py<PyAny>>,
        bulkhead: Option<Py<RateLimiter>>,
        targets: Option<Vec<Given<'_>>>,
        route: &str,
        hedge: Option<Py<Hedge>>,
        timeout: Option<&Bound<'_, PyAny>>,
        attempt_timeout: Option<&Bound<'_, PyAny>>,
        fallback: Option<Py<PyAny>>,
        classify: Option<Py<PyAny>>,
        recording: Option<Py<PyRecording>>,
        clock: Option<Bound<'_, PyAny>>,
        enabled: bool,
    ) -> PyResult<Self> {
        edge("Guard", || {
            let router = targets
                .map(|targets| Router::new(py, route, targets, &estimate, &usage, price.as_ref()));
            let router = router.transpose()?.map(Box::new);
            let gate = limiter.map(|limiter| Gate::new(limiter, estimate, usage, price));
            Ok(Self {
                name,
                breaker,
                retry,
                gate: gate.transpose()?,
                router,
                bulkhead,
                hedge,
                fallback,
                classify,
                recording,
                timeout: optional_duration("timeout", timeout)?,
                attempt_timeout: optional_duration("attempt_timeout", attempt_timeout)?,
                clock: self::clock(clock.as_ref())?,
                clock_object: clock.map(Bound::unbind),
                enabled: enabled && !globally_disabled(),
                counts: Counts::default(),
            })
        })
    }

    #[pyo3(signature = (function, /, *args, **kwargs))]
    fn call<'py>(
        slf: &Bound<'py, Self>,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("Guard.call", || {
            slf.get().check(function)?;
            super::call_with(Plan::Guard(slf.clone().unbind()), function, args, kwargs)
        })
    }

    #[pyo3(signature = (function, /, *args, **kwargs))]
    fn call_sync<'py>(
        slf: &Bound<'py, Self>,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        edge("Guard.call_sync", || {
            slf.get().check(function)?;
            super::call_blocking_with(Plan::Guard(slf.clone().unbind()), function, args, kwargs)
        })
    }

    /// `call`, but an attempt that brings a result lasts until `attempt` is told how it ended.
    /// With `once` there is one attempt only.
    #[pyo3(signature = (attempt, once, function, /, *args, **kwargs))]
    fn _open<'py>(
        slf: &Bound<'py, Self>,
        attempt: Py<OpenAttempt>,
        once: bool,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("Guard._open", || {
            let target = Target::of(function, args, kwargs)?;
            let plan = Plan::Guard(slf.clone().unbind());
            open(slf.py(), plan, target, Opens { attempt, once })
        })
    }

    /// `call_sync`, as `_open`.
    #[pyo3(signature = (attempt, once, function, /, *args, **kwargs))]
    fn _open_sync<'py>(
        slf: &Bound<'py, Self>,
        attempt: Py<OpenAttempt>,
        once: bool,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        edge("Guard._open_sync", || {
            let target = Target::of(function, args, kwargs)?;
            let plan = Plan::Guard(slf.clone().unbind());
            blocking::open(slf.py(), plan, &target, &Opens { attempt, once })
        })
    }

    /// Its retry policy, the clock that it was given, and whether its limiter reserves tokens.
    #[allow(clippy::type_complexity)] // spelled out in `_core.pyi`
    fn _parts(
        &self,
        py: Python<'_>,
    ) -> PyResult<(Option<Py<PyRetryPolicy>>, Option<Py<PyAny>>, bool)> {
        edge("Guard._parts", || {
            let retry = self.retry.as_ref().map(|policy| policy.clone_ref(py));
            let clock = self.clock_object.as_ref().map(|clock| clock.clone_ref(py));
            Ok((retry, clock, matches!(self.gate, Some(Gate::Tokens(_)))))
        })
    }

    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    #[getter]
    fn _bulkhead(&self, py: Python<'_>) -> Option<Py<RateLimiter>> {
        self.bulkhead.as_ref().map(|bulkhead| bulkhead.clone_ref(py))
    }

    #[getter]
    fn enabled(&self) -> bool {
        self.enabled
    }

    /// Of each target: chosen, under way, successes, failures, throttled, neutral, and the seconds
    /// that its answers take.
    #[allow(clippy::type_complexity)] // spelled out in `_core.pyi`
    fn _targets(&self) -> PyResult<Vec<(u64, u64, u64, u64, u64, u64, Option<f64>)>> {
        edge("Guard._targets", || {
            let stats = self.router().map_or_else(Vec::new, Router::stats).into_iter();
            let rows = stats.map(|(chosen, under_way, [good, bad, throttled, neutral], took)| {
                let took = took.map(crate::core::clock::secs_from_nanos);
                (chosen, under_way, good, bad, throttled, neutral, took)
            });
            Ok(rows.collect())
        })
    }

    /// After a ``ManualClock`` moved.
    fn _clock_moved(&self, py: Python<'_>) -> PyResult<()> {
        edge("Guard._clock_moved", || {
            if let Some(router) = self.router() {
                router.ring_all(py);
            }
            Ok(())
        })
    }

    /// What it has counted, by name.
    fn _counts(&self) -> PyResult<Vec<(&'static str, u64)>> {
        edge("Guard._counts", || {
            let counts = &self.counts;
            let all = [
                ("calls", &counts.calls),
                ("successes", &counts.successes),
                ("failures", &counts.failures),
                ("throttled", &counts.throttled),
                ("neutral", &counts.neutral),
                ("retries", &counts.retries),
                ("timeouts", &counts.timeouts),
                ("rejected", &counts.rejected),
                ("fallbacks", &counts.fallbacks),
                ("classify_errors", &counts.classify_errors),
            ];
            Ok(all.map(|(name, count)| (name, count.load(Ordering::Relaxed))).to_vec())
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.clock_object)?;
        visit.call(&self.breaker)?;
        visit.call(&self.retry)?;
        if let Some(gate) = &self.gate {
            gate.traverse(&visit)?;
        }
        if let Some(router) = &self.router {
            router.traverse(&visit)?;
        }
        visit.call(&self.bulkhead)?;
        visit.call(&self.hedge)?;
        visit.call(&self.fallback)?;
        visit.call(&self.recording)?;
        visit.call(&self.classify)
    }
}
