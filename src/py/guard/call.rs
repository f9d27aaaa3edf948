//! One guarded call of a coroutine function.

use pyo3::prelude::*;

use super::attempts::Attempts;
use super::inner::Inner;
use super::machine::{At, Machine, Next, Steps};
use super::plan::Plan;
use super::target::Target;
use super::timing;
use crate::core::clock::Nanos;
use crate::core::outcome::Outcome;
use crate::py::awaitable::{Stop, Visit, driven};

/// One guarded call.
struct Call {
    attempts: Attempts,
    target: Target,
    /// The fallback answers, which nobody judges.
    fallen: bool,
}

/// A coroutine that calls `target` through `plan`.
#[inline]
pub(crate) fn call(py: Python<'_>, plan: Plan, target: Target) -> PyResult<Bound<'_, PyAny>> {
    let call = Call { attempts: Attempts::new(plan), target, fallen: false };
    driven(py, Box::new(Machine::new(call)))
}

impl Call {
    /// Begins an attempt.
    #[inline]
    fn admit(&mut self, py: Python<'_>) -> PyResult<Next> {
        if let Some(place) = self.attempts.admit(py, &self.target)? {
            return Next::of(At::Line, place);
        }
        match self.target.call(py).and_then(Inner::of) {
            Ok(Ok(inner)) => Ok(Next::Drive(At::Attempt, inner)),
            // A plain function: what it returned is the result.
            Ok(Err(value)) => self.attempted(py, Ok(value.unbind())),
            Err(error) => self.attempted(py, Err(error)),
        }
    }

    #[inline]
    fn attempted(&mut self, py: Python<'_>, result: PyResult<Py<PyAny>>) -> PyResult<Next> {
        match self.attempts.ended(py, &result, true)? {
            None => result.map(Next::Done),
            Some(0) => self.admit(py),
            Some(pause) => {
                let parts = self.attempts.parts();
                Next::of(At::Pause, timing::pause(py, parts.clock_object(), pause)?)
            }
        }
    }
}

impl Steps for Call {
    #[inline]
    fn begin(&mut self, py: Python<'_>) -> PyResult<Next> {
        self.attempts.begin();
        self.admit(py)
    }

    #[inline]
    fn ended(&mut self, py: Python<'_>, at: At, result: PyResult<Py<PyAny>>) -> PyResult<Next> {
        match at {
            At::Attempt | At::Item => self.attempted(py, result),
            At::Fallback => result.map(Next::Done),
            At::Line => {
                let came = result.inspect_err(|error| self.attempts.refused(py, error))?;
                self.attempts.arrived(py, came)?;
                self.admit(py)
            }
            At::Pause => result.and_then(|_| self.admit(py)),
        }
    }

    #[cold]
    fn failed(&mut self, py: Python<'_>, error: PyErr) -> PyResult<Next> {
        if self.fallen {
            return Err(error);
        }
        self.fallen = true;
        Next::of(At::Fallback, self.attempts.fall_back(py, error)?)
    }

    #[inline]
    fn limit(&self, at: At) -> Option<Nanos> {
        if at == At::Attempt { self.attempts.limit() } else { None }
    }

    fn abandon(&mut self, py: Python<'_>) {
        self.attempts.release(py, Outcome::Neutral);
    }

    fn attempts(&self) -> Option<&Attempts> {
        Some(&self.attempts)
    }

    fn function(&self) -> &Py<PyAny> {
        self.target.function()
    }

    fn traverse(&self, visit: Visit<'_>) -> Result<(), Stop> {
        self.attempts.traverse(visit)?;
        self.target.traverse(visit)
    }
}
