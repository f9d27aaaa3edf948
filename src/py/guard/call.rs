//! One guarded call of a coroutine function.

use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::prelude::*;

use super::attempts::{Attempts, TimeLimit};
use super::class::Guard;
use super::hedge::{Second, Standby};
use super::inner::Inner;
use super::machine::{At, Machine, Next, Steps};
use super::open::Opens;
use super::plan::Plan;
use super::target::Target;
use super::{timing, watch};
use crate::core::clock::{Clock, Nanos};
use crate::core::outcome::Outcome;
use crate::py::awaitable::{Stop, Visit, driven};
use crate::py::edge::unraisable;
use crate::py::names;

/// How a call failed: what it raised, or what it returned that is no success.
enum First {
    Raised(Py<PyAny>),
    Returned(Py<PyAny>),
}

impl First {
    fn object(&self) -> &Py<PyAny> {
        match self {
            Self::Raised(object) | Self::Returned(object) => object,
        }
    }
}

/// One guarded call.
struct Call {
    attempts: Attempts,
    target: Target,
    /// The fallback answers, which nobody judges.
    fallen: bool,
    /// When the attempt began, if it may be hedged.
    since: Nanos,
    standby: Option<Standby>,
    /// How the first of two calls failed, by an error or by its result; the second is waited for.
    first: Option<First>,
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
        let called = {
            let _within = self.attempts.within();
            self.attempts.call(py, &self.target)
        };
        match called.and_then(Inner::of) {
            Ok(Ok(inner)) => Ok(Next::Drive(At::Attempt, inner)),
            Ok(Err(value)) if is_stream(&value) => {
                // A mistake of the caller's, which says nothing about the other side.
                self.attempts.release(py, Outcome::Neutral);
                Err(PyTypeError::new_err(
                    "call: expected a coroutine function, got an async generator function; \
                     decorate it, so that its items come through the guard",
                ))
            }
            // A plain function: what it returned is the result.
            Ok(Err(value)) => self.attempted(py, Ok(value.unbind())),
            Err(error) => self.attempted(py, Err(error)),
        }
    }

    /// What a call took that was answered, or beaten.
    #[inline]
    fn observe(&self, took: impl FnOnce(&Clock) -> Nanos) {
        if let Some(guard) = self.hedges().map(Py::get)
            && let Some(hedge) = guard.hedge()
        {
            hedge.get().observe(took(&guard.clock));
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
        let took = standby.took(self.attempts.parts().clock());
        match (standby.end(py)?, result) {
            (Second::Won(task, true), Err(error)) if timing::is_cancellation(py, &error) => {
                self.observe(|_| took);
                self.attempts.beaten(py, None);
                let answer = task.call_method0(py, names::result(py));
                self.won();
                self.attempted(py, answer)
            }
            (Second::Running(task), result) => match self.failed_first(py, result) {
                Err(result) => {
                    if result.is_ok() {
                        self.observe(|_| took);
                    }
                    task.call_method0(py, names::cancel(py))?;
                    self.attempted(py, result)
                }
                Ok(first) => {
                    self.first = Some(first);
                    self.second = Some(task.clone_ref(py));
                    Next::of(At::Rival, task.into_bound(py))
                }
            },
            (Second::None | Second::Won(..), result) => {
                if result.is_ok() {
                    self.observe(|_| took);
                }
                self.attempted(py, result)
            }
        }
    }

    /// A first call that failed while the second is under way; the result, if it did not.
    fn failed_first(
        &mut self,
        py: Python<'_>,
        result: PyResult<Py<PyAny>>,
    ) -> Result<First, PyResult<Py<PyAny>>> {
        if let Err(error) = &result
            && !error.is_instance_of::<PyException>(py)
        {
            return Err(result);
        }
        if result.is_ok() && self.attempts.classify(py, &result) == Outcome::Success {
            return Err(result);
        }
        self.attempts.beaten(py, Some(&result));
        Ok(match result {
            Ok(value) => First::Returned(value),
            Err(error) => First::Raised(error.into_value(py).into_any()),
        })
    }

    /// The second of two calls has ended after the first had failed.
    fn second_ended(&mut self, py: Python<'_>, result: PyResult<Py<PyAny>>) -> PyResult<Next> {
        let (first, second) = (self.first.take(), self.second.take());
        match (result, first) {
            // Both have failed: the first one's error is the call's.
            (Err(error), Some(first))
                if error.is_instance_of::<PyException>(py)
                    || timing::is_cancellation(py, &error)
                        && second.as_ref().is_some_and(|second| ended_by_itself(py, second)) =>
            {
                let first = match first {
                    First::Raised(error) => Err(PyErr::from_value(error.into_bound(py))),
                    First::Returned(value) => Ok(value),
                };
                self.attempted(py, first)
            }
            (Err(error), _) => {
                self.attempts.judged = None;
                // Cancelled, or closed, and the second call with it.
                if let Some(second) = second {
                    second.call_method0(py, names::cancel(py))?;
                }
                self.attempted(py, Err(error))
            }
            (Ok(value), _) => {
                self.attempts.judged = None;
                self.won();
                self.attempted(py, Ok(value))
            }
        }
    }

    fn won(&self) {
        if let Some(hedge) = self.hedges().and_then(|guard| guard.get().hedge()) {
            hedge.get().count_win();
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
                    if result.is_ok() {
                        self.observe(|clock| clock.now().saturating_sub(self.since));
                    }
                    self.attempted(py, result)
                }
                Some(standby) => self.hedged(py, standby, result),
            },
            At::Rival => self.second_ended(py, result),
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
    fn limit(&self, at: At) -> Option<(Nanos, TimeLimit)> {
        match at {
            At::Attempt => self.attempts.limit(),
            At::Rival => self.attempts.left_of_own().map(|left| (left, TimeLimit::Total)),
            _ => None,
        }
    }

    #[inline]
    fn suspended(&mut self, py: Python<'_>, at: At) -> PyResult<()> {
        if at == At::Attempt
            && self.standby.is_none()
            && let Some(guard) = self.hedges()
        {
            let cost = self.attempts.micro_usd();
            let at = self.attempts.at();
            self.standby = Standby::set(py, guard, &self.target, self.since, cost, at)?;
        }
        Ok(())
    }

    fn abandon(&mut self, py: Python<'_>) {
        let second = match self.standby.take() {
            None => self.second.take(),
            Some(standby) => match standby.end(py) {
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

    fn is_call(&self) -> bool {
        true
    }

    fn traverse(&self, visit: Visit<'_>) -> Result<(), Stop> {
        self.attempts.traverse(visit)?;
        if let Some(standby) = &self.standby {
            standby.traverse(visit)?;
        }
        if let Some(second) = &self.second {
            visit(second)?;
        }
        if let Some(first) = &self.first {
            visit(first.object())?;
        }
        if let Some(opens) = &self.opens {
            visit(opens.attempt.as_any())?;
        }
        self.target.traverse(visit)
    }
}

/// Whether a task was cancelled while nobody wants the running one to be.
#[cold]
fn ended_by_itself(py: Python<'_>, task: &Py<PyAny>) -> bool {
    let cancelled = || task.call_method0(py, names::cancelled(py))?.is_truthy(py);
    cancelled().is_ok_and(|cancelled| cancelled) && watch::nobody_cancels(py)
}

fn is_stream(value: &Bound<'_, PyAny>) -> bool {
    // SAFETY: attached; a live object.
    unsafe { pyo3::ffi::PyAsyncGen_CheckExact(value.as_ptr()) != 0 }
}
