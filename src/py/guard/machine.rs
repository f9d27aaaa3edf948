//! The state machine that drives what a guarded call awaits, in place: in the caller's task and
//! context, without a coroutine of its own.

use pyo3::prelude::*;

use super::attempts::{Attempts, TimeLimit};
use super::inner::Inner;
use super::timing::{self, Timer};
use crate::core::clock::Nanos;
use crate::py::awaitable::{Body, Sent, Step, Stop, Visit};

/// What is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// A place in a line: for the limiter's permit or a slot in the bulkhead.
    Line,
    /// The user's call.
    Attempt,
    /// An item of the user's stream.
    Item,
    /// The pause before the next attempt.
    Pause,
    /// The second of two calls, when the first has failed.
    Rival,
    /// The fallback.
    Fallback,
}

/// What comes next.
pub(super) enum Next {
    /// Something to be awaited.
    Drive(At, Inner),
    /// The result.
    Done(Py<PyAny>),
}

impl Next {
    /// An awaitable, to be driven; what is none is the result.
    pub(super) fn of(at: At, object: Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(match Inner::of(object)? {
            Ok(inner) => Self::Drive(at, inner),
            Err(value) => Self::Done(value.unbind()),
        })
    }
}

/// What one kind of call does between its awaits.
pub(super) trait Steps: Send + Sync {
    /// The first step.
    fn begin(&mut self, py: Python<'_>) -> PyResult<Next>;
    /// What was driven has ended; one whose time was up, with the error that says so.
    fn ended(&mut self, py: Python<'_>, at: At, result: PyResult<Py<PyAny>>) -> PyResult<Next>;
    /// A step has failed: the last word.
    fn failed(&mut self, py: Python<'_>, error: PyErr) -> PyResult<Next>;
    /// How long what is driven may take from now on; `None`: without end.
    fn limit(&self, at: At) -> Option<(Nanos, TimeLimit)>;
    /// Something was handed to the event loop: from here on time passes.
    fn suspended(&mut self, py: Python<'_>, at: At) -> PyResult<()> {
        let _ = (py, at);
        Ok(())
    }
    /// What it holds goes back, if it has not gone back yet.
    fn abandon(&mut self, py: Python<'_>);
    fn attempts(&self) -> Option<&Attempts>;
    /// A call, not a step of something that goes on.
    fn is_call(&self) -> bool;
    fn function(&self) -> &Py<PyAny>;
    fn traverse(&self, visit: Visit<'_>) -> Result<(), Stop>;
}

/// [`Steps`] with what they wait for.
pub(super) struct Machine<S> {
    steps: S,
    driven: Option<(At, Inner)>,
    timer: Option<(Timer, TimeLimit)>,
}

impl<S: Steps> Machine<S> {
    pub(super) fn new(steps: S) -> Self {
        Self { steps, driven: None, timer: None }
    }

    /// Goes on from step to step until something has to be awaited, or the end.
    #[inline]
    fn run(&mut self, py: Python<'_>, mut next: PyResult<Next>) -> PyResult<Step> {
        loop {
            let (at, inner) = match next {
                Ok(Next::Drive(at, inner)) => (at, inner),
                Ok(Next::Done(value)) => return Ok(Step::Return(value)),
                Err(error) => {
                    next = Ok(self.steps.failed(py, error)?);
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
        let within = match at {
            At::Attempt | At::Item => self.steps.attempts().and_then(Attempts::within),
            At::Line | At::Pause | At::Rival | At::Fallback => None,
        };
        let resumed = inner.resume(py, sent);
        drop(within);
        let result = match resumed {
            Ok(Step::Yield(value)) => {
                self.driven = Some((at, inner));
                if self.timer.is_none() {
                    self.wind(py, at)?;
                }
                self.steps.suspended(py, at)?;
                return Ok(Ok(Step::Yield(value)));
            }
            Ok(Step::Return(value)) => Ok(value),
            Err(error) => Err(error),
        };
        let result = match self.timer.take() {
            Some(timer) => self.in_time(py, timer, result),
            None => result,
        };
        Ok(Err(self.steps.ended(py, at, result)))
    }

    /// Something was handed to the event loop: from here on time passes.
    #[inline]
    fn wind(&mut self, py: Python<'_>, at: At) -> PyResult<()> {
        if let Some((limit, which)) = self.steps.limit(at) {
            let clock = self.steps.attempts().and_then(|attempts| attempts.parts().clock_object());
            self.timer = Timer::set(py, clock, limit)?.map(|timer| (timer, which));
        }
        Ok(())
    }

    /// The result, but for a cancellation that was our own.
    fn in_time(
        &self,
        py: Python<'_>,
        (timer, which): (Timer, TimeLimit),
        result: PyResult<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let rang = timer.stop(py)?;
        match (result, self.steps.attempts()) {
            (Err(error), Some(attempts)) if rang && timing::is_cancellation(py, &error) => {
                let late = attempts.timed_out(py, which);
                late.set_cause(py, Some(error));
                Err(late)
            }
            (result, _) => result,
        }
    }
}

impl<S: Steps> Body for Machine<S> {
    #[inline]
    fn resume(&mut self, py: Python<'_>, sent: Sent<'_>) -> PyResult<Step> {
        let next = match self.driven.take() {
            None => self.steps.begin(py),
            Some((at, inner)) => match self.drive(py, at, inner, sent)? {
                Ok(yielded) => return Ok(yielded),
                Err(next) => next,
            },
        };
        self.run(py, next)
    }

    fn abandon(&mut self, py: Python<'_>) {
        if let Some((timer, _)) = self.timer.take() {
            timer.stop(py).ok();
        }
        self.steps.abandon(py);
    }

    fn function(&self) -> &Py<PyAny> {
        self.steps.function()
    }

    fn is_call(&self) -> bool {
        self.steps.is_call()
    }

    fn awaits(&self) -> Option<&Py<PyAny>> {
        self.driven.as_ref().map(|(_, inner)| inner.object())
    }

    fn traverse(&self, visit: Visit<'_>) -> Result<(), Stop> {
        self.steps.traverse(visit)?;
        if let Some((timer, _)) = &self.timer {
            timer.traverse(visit)?;
        }
        self.driven.as_ref().map_or(Ok(()), |(_, inner)| visit(inner.object()))
    }
}
