//! One guarded call: a state machine that drives what the user awaits, in place.
//!
//! The order is fallback[ deadline → retry[ breaker → limiter → bulkhead → time limit → call ] ].
//! A breaker that is open refuses before anybody waits for a permit; its probe slot is taken when
//! the permit is there. Whatever ends the call gives back what the attempt holds.

use std::ffi::c_int;

use pyo3::prelude::*;

use super::attempts::Attempts;
use super::inner::Inner;
use super::plan::Plan;
use super::target::Target;
use super::timing::{self, Timer};
use crate::core::outcome::Outcome;
use crate::py::awaitable::{Body, Sent, Step, Visit};
use crate::py::limiter::{Entry, RateLimiter};

/// What is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The wait for the limiter's permit.
    Limiter,
    /// The wait for a place in the bulkhead.
    Bulkhead,
    /// The user's call.
    Attempt,
    /// The pause before the next attempt.
    Pause,
    /// The fallback.
    Fallback,
}

/// What comes next.
enum Next {
    Drive(At, Inner),
    Done(Py<PyAny>),
}

/// One guarded call of a coroutine function.
pub(crate) struct Call {
    attempts: Attempts,
    target: Target,
    driven: Option<(At, Inner)>,
    timer: Option<Timer>,
}

impl Call {
    pub(crate) fn new(plan: Plan, target: Target) -> Self {
        Self { attempts: Attempts::new(plan), target, driven: None, timer: None }
    }

    /// Begins an attempt: everything that may refuse it or make it wait.
    #[inline]
    fn admit(&mut self, py: Python<'_>) -> PyResult<Next> {
        if let Some(limiter) = self.attempts.parts().limiter {
            match RateLimiter::enter_in_place(limiter.bind(py), self.attempts.left())? {
                Entry::Granted => self.attempts.has_limiter(),
                Entry::Wait(place) => return driving(At::Limiter, place),
            }
        }
        self.enter_bulkhead(py)
    }

    #[inline]
    fn enter_bulkhead(&mut self, py: Python<'_>) -> PyResult<Next> {
        if let Some(bulkhead) = self.attempts.parts().bulkhead {
            match RateLimiter::enter_in_place(bulkhead.bind(py), self.attempts.left())? {
                Entry::Granted => self.attempts.has_bulkhead(),
                Entry::Wait(place) => return driving(At::Bulkhead, place),
            }
        }
        self.attempt(py)
    }

    #[inline]
    fn attempt(&mut self, py: Python<'_>) -> PyResult<Next> {
        match self.target.call(py).and_then(Inner::of) {
            Ok(Ok(inner)) => Ok(Next::Drive(At::Attempt, inner)),
            // A plain function: what it returned is the result.
            Ok(Err(value)) => self.attempted(py, Ok(value.unbind())),
            Err(error) => self.attempted(py, Err(error)),
        }
    }

    /// What was driven has ended.
    #[inline]
    fn ended(&mut self, py: Python<'_>, at: At, result: PyResult<Py<PyAny>>) -> PyResult<Next> {
        if at == At::Attempt {
            let result = self.in_time(py, result);
            return self.attempted(py, result);
        }
        let value = result?;
        match at {
            At::Limiter => {
                self.attempts.has_limiter();
                self.enter_bulkhead(py)
            }
            At::Bulkhead => {
                self.attempts.has_bulkhead();
                self.attempt(py)
            }
            At::Pause => self.admit(py),
            At::Attempt | At::Fallback => Ok(Next::Done(value)),
        }
    }

    #[inline]
    fn attempted(&mut self, py: Python<'_>, result: PyResult<Py<PyAny>>) -> PyResult<Next> {
        match self.attempts.ended(py, &result) {
            None => result.map(Next::Done),
            Some(0) => self.admit(py),
            Some(pause) => {
                let parts = self.attempts.parts();
                driving(At::Pause, timing::pause(py, parts.clock_object(), pause)?)
            }
        }
    }

    /// The result, but for a cancellation that was our own: an attempt that took too long.
    #[inline]
    fn in_time(&mut self, py: Python<'_>, result: PyResult<Py<PyAny>>) -> PyResult<Py<PyAny>> {
        let Some(timer) = self.timer.take() else { return result };
        let rang = timer.stop(py)?;
        match result {
            Err(error) if rang && timing::is_cancellation(py, &error) => {
                let late = self.attempts.timed_out(py);
                late.set_cause(py, Some(error));
                Err(late)
            }
            result => result,
        }
    }

    /// An attempt was handed to the event loop: from here on time passes.
    #[inline]
    fn suspended(&mut self, py: Python<'_>, at: At) -> PyResult<()> {
        if at == At::Attempt
            && self.timer.is_none()
            && let Some(limit) = self.attempts.limit()
        {
            self.timer = Timer::set(py, self.attempts.parts().clock_object(), limit)?;
        }
        Ok(())
    }

    fn run(&mut self, py: Python<'_>, mut next: PyResult<Next>) -> PyResult<Step> {
        loop {
            let (at, inner) = match next {
                Ok(Next::Drive(at, inner)) => (at, inner),
                Ok(Next::Done(value)) => return Ok(Step::Return(value)),
                Err(error) => {
                    let answer = self.attempts.fall_back(py, error)?;
                    next = match Inner::of(answer)? {
                        Ok(inner) => Ok(Next::Drive(At::Fallback, inner)),
                        Err(value) => Ok(Next::Done(value.unbind())),
                    };
                    continue;
                }
            };
            // SAFETY: attached; None lives for ever.
            let none = unsafe { Borrowed::from_ptr(py, pyo3::ffi::Py_None()) };
            match self.drive(py, at, inner, Sent::Value(none))? {
                Ok(yielded) => return Ok(yielded),
                Err(following) => next = following,
            }
        }
    }

    /// One step of what is driven: what it hands to the event loop, or what comes next.
    #[inline]
    fn drive(
        &mut self,
        py: Python<'_>,
        at: At,
        inner: Inner,
        sent: Sent<'_>,
    ) -> PyResult<Result<Step, PyResult<Next>>> {
        let result = match inner.resume(py, sent) {
            Ok(Step::Yield(value)) => {
                self.driven = Some((at, inner));
                self.suspended(py, at)?;
                return Ok(Ok(Step::Yield(value)));
            }
            Ok(Step::Return(value)) => Ok(value),
            Err(error) => Err(error),
        };
        match (at, result) {
            // Nobody answers for the fallback.
            (At::Fallback, Err(error)) => Err(error),
            (at, result) => Ok(Err(self.ended(py, at, result))),
        }
    }
}

impl Body for Call {
    #[inline]
    fn resume(&mut self, py: Python<'_>, sent: Sent<'_>) -> PyResult<Step> {
        let next = if let Some((at, inner)) = self.driven.take() {
            match self.drive(py, at, inner, sent)? {
                Ok(yielded) => return Ok(yielded),
                Err(next) => next,
            }
        } else {
            self.attempts.begin();
            self.admit(py)
        };
        self.run(py, next)
    }

    fn abandon(&mut self, py: Python<'_>) {
        if let Some(timer) = self.timer.take() {
            timer.stop(py).ok();
        }
        self.attempts.release(py, Outcome::Neutral);
    }

    fn function(&self) -> &Py<PyAny> {
        self.target.function()
    }

    fn awaits(&self) -> Option<&Py<PyAny>> {
        self.driven.as_ref().map(|(_, inner)| inner.object())
    }

    fn traverse(&self, visit: Visit<'_>) -> c_int {
        let answer = self.attempts.traverse(visit);
        if answer != 0 {
            return answer;
        }
        let answer = self.target.traverse(visit);
        if answer != 0 {
            return answer;
        }
        if let Some(timer) = &self.timer {
            let answer = timer.traverse(visit);
            if answer != 0 {
                return answer;
            }
        }
        self.driven.as_ref().map_or(0, |(_, inner)| visit(inner.object()))
    }
}

/// An awaitable of ours, as what is driven next.
fn driving(at: At, awaitable: Bound<'_, PyAny>) -> PyResult<Next> {
    match Inner::of(awaitable)? {
        Ok(inner) => Ok(Next::Drive(at, inner)),
        Err(value) => Ok(Next::Done(value.unbind())),
    }
}
