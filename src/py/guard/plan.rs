//! The parts that a call goes through.

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::class::Guard;
use super::gate::Gate;
use super::recording::PyRecording;
use super::router::Router;
use super::target::Target;
use crate::core::clock::{Clock, NEVER, Nanos};
use crate::core::outcome::Outcome;
use crate::py::breaker::CircuitBreaker;
use crate::py::limiter::RateLimiter;
use crate::py::names;
use crate::py::retry::PyRetryPolicy;

/// Whose parts they are: a component that stands alone is a guard of one part.
pub(crate) enum Plan {
    /// All of a guard's.
    Guard(Py<Guard>),
    /// Those of a guard that the second of two calls goes through. With the target that the first
    /// is under way at it is made at one of the targets, too, at another one if that can be.
    Rival(Py<Guard>, Option<usize>),
    /// Those of a guard that stand behind its cache: all but the fallback.
    BehindCache(Py<Guard>),
    /// The fallback alone, which stands in front of the guard's cache.
    BeforeCache(Py<Guard>),
    /// A breaker alone.
    Breaker(Py<CircuitBreaker>),
    /// A retry policy alone.
    Retry(Py<PyRetryPolicy>),
}

/// The parts of a plan; what is not there is not asked.
#[derive(Clone, Copy, Default)]
pub(super) struct Parts<'a> {
    pub(super) guard: Option<&'a Guard>,
    /// Who chooses a target for each attempt; that one's breaker, gate and bulkhead are then the
    /// attempt's.
    pub(super) router: Option<&'a Router>,
    pub(super) breaker: Option<&'a Py<CircuitBreaker>>,
    pub(super) retry: Option<&'a Py<PyRetryPolicy>>,
    pub(super) gate: Option<&'a Gate>,
    pub(super) bulkhead: Option<&'a Py<RateLimiter>>,
    pub(super) fallback: Option<&'a Py<PyAny>>,
    pub(super) classify: Option<&'a Py<PyAny>>,
    /// Where attempts are written down.
    pub(super) recording: Option<&'a Py<PyRecording>>,
    /// Bound on all attempts and pauses together.
    pub(super) timeout: Option<Nanos>,
    /// A part of another call, which counts.
    pub(super) is_part: bool,
    /// Bound on each attempt.
    pub(super) attempt_timeout: Option<Nanos>,
}

impl Plan {
    /// The plan of a guard, a breaker or a retry policy.
    pub(crate) fn of(owner: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(guard) = owner.cast::<Guard>() {
            return Ok(Self::Guard(guard.clone().unbind()));
        }
        if let Ok(breaker) = owner.cast::<CircuitBreaker>() {
            return Ok(Self::Breaker(breaker.clone().unbind()));
        }
        Ok(Self::Retry(owner.cast::<PyRetryPolicy>()?.clone().unbind()))
    }

    /// Which of a guard's parts a decorated function goes through: those behind its cache, the one
    /// before it, or all.
    pub(super) fn layer(self, layer: &str) -> PyResult<Self> {
        match (self, layer) {
            (plan, "all") => Ok(plan),
            (Self::Guard(guard), "behind cache") => Ok(Self::BehindCache(guard)),
            (Self::Guard(guard), "before cache") => Ok(Self::BeforeCache(guard)),
            _ => Err(PyValueError::new_err(format!("layer: unknown {layer:?}"))),
        }
    }

    pub(crate) fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Guard(guard) => Self::Guard(guard.clone_ref(py)),
            Self::Rival(guard, beside) => Self::Rival(guard.clone_ref(py), *beside),
            Self::BehindCache(guard) => Self::BehindCache(guard.clone_ref(py)),
            Self::BeforeCache(guard) => Self::BeforeCache(guard.clone_ref(py)),
            Self::Breaker(breaker) => Self::Breaker(breaker.clone_ref(py)),
            Self::Retry(policy) => Self::Retry(policy.clone_ref(py)),
        }
    }

    #[inline]
    pub(super) fn parts(&self) -> Parts<'_> {
        match self {
            Self::Guard(guard) => guard.get().parts(),
            Self::Rival(guard, beside) => guard.get().parts().of_rival(beside.is_some()),
            Self::BehindCache(guard) => Parts { fallback: None, ..guard.get().parts() },
            Self::BeforeCache(guard) => guard.get().parts().of_fallback(),
            Self::Breaker(breaker) => Parts { breaker: Some(breaker), ..Parts::default() },
            Self::Retry(policy) => Parts { retry: Some(policy), ..Parts::default() },
        }
    }

    /// The guard, if it has targets, and the one that the first of two calls is under way at.
    #[inline]
    pub(super) fn routed(&self) -> Option<(&Py<Guard>, Option<usize>)> {
        match self {
            Self::Guard(guard) | Self::BehindCache(guard) => {
                guard.get().router().map(|_| (guard, None))
            }
            Self::Rival(guard, Some(beside)) => Some((guard, Some(*beside))),
            _ => None,
        }
    }

    /// Refuses a call that says itself what the guard fills in.
    ///
    /// # Errors
    /// A `TypeError`.
    #[inline]
    pub(super) fn check(&self, py: Python<'_>, call: &Target) -> PyResult<()> {
        match self.routed() {
            Some(_) => call.leaves_out(names::target(py)),
            None => Ok(()),
        }
    }

    /// Calls past all parts; a function that wants a target is given the first.
    #[cold]
    pub(super) fn call_past(&self, py: Python<'_>, call: &Target) -> PyResult<Py<PyAny>> {
        let answer = match self.parts().router {
            Some(router) => call.call_with(names::target(py), router.target(0)),
            None => call.call(py),
        };
        answer.map(Bound::unbind)
    }

    /// The guard whose calls may be hedged.
    #[inline]
    pub(super) fn hedged(&self) -> Option<&Py<Guard>> {
        match self {
            Self::Guard(guard) | Self::BehindCache(guard) if guard.get().hedge().is_some() => {
                Some(guard)
            }
            _ => None,
        }
    }

    /// The object itself.
    pub(super) fn owner(&self) -> &Py<PyAny> {
        match self {
            Self::Guard(guard)
            | Self::Rival(guard, _)
            | Self::BehindCache(guard)
            | Self::BeforeCache(guard) => guard.as_any(),
            Self::Breaker(breaker) => breaker.as_any(),
            Self::Retry(policy) => policy.as_any(),
        }
    }
}

impl<'a> Parts<'a> {
    /// The second call is part of the first one's attempt.
    fn of_rival(self, routed: bool) -> Self {
        Self {
            router: self.router.filter(|_| routed),
            breaker: None,
            retry: None,
            fallback: None,
            recording: None,
            timeout: None,
            is_part: true,
            ..self
        }
    }

    /// What the call comes to is counted behind the cache.
    fn of_fallback(self) -> Self {
        Self { guard: self.guard, fallback: self.fallback, is_part: true, ..Self::default() }
    }

    /// With those of a target.
    #[cold]
    pub(super) fn at(self, at: usize) -> Self {
        let Some((router, guard)) = self.router.zip(self.guard) else { return self };
        if !guard.is_enabled() {
            return self;
        }
        let slot = router.slot(at);
        let (breaker, gate, bulkhead) =
            (slot.breaker.as_ref(), slot.gate.as_ref(), slot.bulkhead());
        Self { breaker, gate, bulkhead, ..self }
    }

    /// When the calls that begin now must have ended.
    #[inline]
    pub(super) fn deadline(&self) -> Nanos {
        match (self.timeout, self.guard) {
            (Some(timeout), Some(guard)) => guard.clock.now().saturating_add(timeout),
            _ => NEVER,
        }
    }

    pub(super) fn clock(&self) -> &'a Clock {
        match (self.guard, self.retry) {
            (Some(guard), _) => &guard.clock,
            (None, Some(policy)) => policy.get().clock(),
            (None, None) => &Clock::System,
        }
    }

    /// The clock as it was given; ``None`` is the machine's.
    pub(super) fn clock_object(&self) -> Option<&'a Py<PyAny>> {
        match self.guard {
            Some(guard) => guard.clock_object.as_ref(),
            None => self.retry.and_then(|policy| policy.get().clock_object()),
        }
    }

    pub(super) fn count(&self, what: impl FnOnce(&Counts) -> &AtomicU64) {
        if let Some(guard) = self.guard {
            what(&guard.counts).fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn count_outcome(&self, outcome: Outcome) {
        self.count(|counts| match outcome {
            Outcome::Success => &counts.successes,
            Outcome::Failure => &counts.failures,
            Outcome::Throttled => &counts.throttled,
            Outcome::Neutral => &counts.neutral,
        });
    }
}

/// What a guard has seen.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Calls begun.
    pub(super) calls: AtomicU64,
    /// Attempts that ended, by how.
    pub(super) successes: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) throttled: AtomicU64,
    pub(super) neutral: AtomicU64,
    /// Attempts after the first.
    pub(super) retries: AtomicU64,
    /// Attempts and calls that took too long.
    pub(super) timeouts: AtomicU64,
    /// Calls that were not let through by a part of ours.
    pub(super) rejected: AtomicU64,
    /// Calls that the fallback answered.
    pub(super) fallbacks: AtomicU64,
    /// Classifiers that raised.
    pub(super) classify_errors: AtomicU64,
}
