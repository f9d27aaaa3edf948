//! One guarded call of a coroutine function.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use super::attempts::Attempts;
use super::class::Guard;
use super::hedge::{Second, Standby};
use super::inner::Inner;
use super::machine::{At, Machine, Next, Steps};
use super::open::Opens;
use super::plan::Plan;
use super::target::Target;
use super::timing;
use crate::core::clock::Nanos;
use crate::core::outcome::Outcome;
use crate::py::awaitable::{Stop, Visit, driven};
use crate::py::edge::unraisable;
use crate::py::names;

/// One guarded call.
struct Call {
    attempts: Attempts,
    target: Target,
    /// The fallback answers, which nobody judges.
    fallen: bool,
    /// When the attempt began, if it may be hedged.
    since: Nanos,
    standby: Option<Standby>,
    /// How the first of two calls failed; the second is waited for.
    first: Option<PyErr>,
    second: Option<Py<PyAny>>,
    /// Who ends an attempt that has brought a result.
    opens: Option<Opens>,
}

/// A coroutine that calls `target` through `plan`.
#[inline]
pub(crate) fn call(py: Python<'_>, plan: Plan, target: Target) -> PyResult<Bound<'_, PyAny>> {
    driven(py, Box::new(Machine::new(Call::new(plan, target, None))))
}

/// [`call`], but an attempt that brings a result has not ended with that, and is not hedged.
pub(super) fn open(
    py: Python<'_>,
    plan: Plan,
    target: Target,
    opens: Opens,
) -> PyResult<Bound<'_, PyAny>> {
    let call = Call::new(plan, target, Some(opens));
    driven(py, Box::new(Machine::new(call)))
}

impl Call {
    fn new(plan: Plan, target: Target, opens: Option<Opens>) -> Self {
        Self {
            attempts: Attempts::new(plan),
            target,
            fallen: false,
            since: 0,
            standby: None,
            first: None,
            second: None,
            opens,
        }
    }

    /// The guard whose calls may be hedged: of two answers that are read later, none has won.
    #[inline]
    fn hedges(&self) -> Option<&Py<Guard>> {
        if self.opens.is_some() { None } else { self.attempts.hedged() }
    }

    /// Begins an attempt.
    #[inline]
    fn admit(&mut self, py: Python<'_>) -> PyResult<Next> {
        if let Some(place) = self.attempts.admit(py, &self.target)? {
            return Next::of(At::Line, place);
        }
        if let Some(guard) = self.hedges() {
            self.since = guard.get().clock.now();
        }
        match self.target.call(py).and_then(Inner::of) {
            Ok(Ok(inner)) => Ok(Next::Drive(At::Attempt, inner)),
            // A plain function: what it returned is the result.
            Ok(Err(value)) => self.attempted(py, Ok(value.unbind())),
            Err(error) => self.attempted(py, Err(error)),
        }
    }

    /// How long a call took that nobody stood by for.
    #[inline]
    fn observe(&self) {
        if let Some(guard) = self.hedges().map(Py::get)
            && let Some(hedge) = guard.hedge()
        {
            hedge.get().observe(guard.clock.now().saturating_sub(self.since));
        }
    }

    /// The first of two calls has ended.
    #[cold]
    fn hedged(
        &mut self,
        py: Python<'_>,
        standby: Standby,
        result: PyResult<Py<PyAny>>,
    ) -> PyResult<Next> {
        match (standby.end(py, self.attempts.parts().clock())?, result) {
            (Second::None, result) => self.attempted(py, result),
            (Second::Won(task, true), Err(error)) if timing::is_cancellation(py, &error) => {
                self.attempts.beaten(py, Outcome::Neutral);
                let answer = task.call_method0(py, names::result(py));
                self.attempted(py, answer)
            }
            (Second::Won(..), result) => self.attempted(py, result),
            (Second::Running(task), Err(error)) if error.is_instance_of::<PyException>(py) => {
                self.attempts.beaten(py, Outcome::Failure);
                self.first = Some(error);
                self.second = Some(task.clone_ref(py));
                Next::of(At::Rival, task.into_bound(py))
            }
            (Second::Running(task), result) => {
                task.call_method0(py, names::cancel(py))?;
                self.attempted(py, result)
            }
        }
    }

    #[inline]
    fn attempted(&mut self, py: Python<'_>, result: PyResult<Py<PyAny>>) -> PyResult<Next> {
        if let (Some(opens), Ok(_)) = (&self.opens, &result) {
            opens.attempt.get().keep(py, self.attempts.hand_over(py));
            return result.map(Next::Done);
        }
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
        match &self.opens {
            Some(Opens { once: true, .. }) => self.attempts.begin_once(),
            _ => self.attempts.begin(),
        }
        self.admit(py)
    }

    #[inline]
    fn ended(&mut self, py: Python<'_>, at: At, result: PyResult<Py<PyAny>>) -> PyResult<Next> {
        match at {
            At::Attempt | At::Item => match self.standby.take() {
                None => {
                    self.observe();
                    self.attempted(py, result)
                }
                Some(standby) => self.hedged(py, standby, result),
            },
            At::Rival => {
                let first = self.first.take();
                self.second = None;
                match (result, first) {
                    // Both have failed: the first one's error is the call's.
                    (Err(error), Some(first)) if error.is_instance_of::<PyException>(py) => {
                        self.attempted(py, Err(first))
                    }
                    (result, _) => self.attempted(py, result),
                }
            }
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
        match at {
            At::Attempt => self.attempts.limit(),
            At::Rival => self.attempts.left(),
            _ => None,
        }
    }

    #[inline]
    fn suspended(&mut self, py: Python<'_>, at: At) -> PyResult<()> {
        if at == At::Attempt
            && self.standby.is_none()
            && let Some(guard) = self.hedges()
        {
            self.standby = Standby::set(py, guard, &self.target, self.since)?;
        }
        Ok(())
    }

    fn abandon(&mut self, py: Python<'_>) {
        let second = match self.standby.take() {
            None => self.second.take(),
            Some(standby) => match standby.end(py, self.attempts.parts().clock()) {
                Ok(Second::Running(task) | Second::Won(task, _)) => Some(task),
                Ok(Second::None) | Err(_) => None,
            },
        };
        if let Some(task) = second
            && let Err(error) = task.call_method0(py, names::cancel(py))
        {
            unraisable(error, task.bind(py));
        }
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
        if let Some(standby) = &self.standby {
            standby.traverse(visit)?;
        }
        if let Some(second) = &self.second {
            visit(second)?;
        }
        if let Some(opens) = &self.opens {
            visit(opens.attempt.as_any())?;
        }
        self.target.traverse(visit)
    }
}
