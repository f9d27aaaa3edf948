//! What an attempt must pass and holds, and what is made of its end: the same for coroutines,
//! plain functions and streams.

use std::sync::atomic::Ordering;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::class::Guard;
use super::gate::Pass;
use super::plan::{Parts, Plan};
use super::target::Target;
use super::timing;
use crate::core::breaker::{Permit, Spend};
use crate::core::clock::{NEVER, Nanos};
use crate::core::outcome::Outcome;
use crate::core::retry::{Run, Verdict};
use crate::py::awaitable::Visiting;
use crate::py::breaker::CircuitBreaker;
use crate::py::edge::unraisable;
use crate::py::limiter::{Entry, RateLimiter};
use crate::py::names;
use crate::py::outcome;
use crate::py::retry::note;

/// All attempts of one call.
pub(super) struct Attempts {
    plan: Plan,
    /// When all must be over.
    deadline: Nanos,
    /// In which line the attempt stands.
    line: Line,
    /// The attempt has been let through and has not ended.
    running: bool,
    pass: Option<Pass>,
    bulkhead: bool,
    /// What of a stream says how much it took.
    told: Option<Py<PyAny>>,
    /// What an attempt may cost, in millionths of a USD.
    cost: Option<u64>,
    /// What the first of two calls has cost, which failed.
    wasted: Option<Spend>,
    permit: Option<Permit>,
    run: Option<Run>,
    /// What the attempt before raised.
    before: Option<Py<PyAny>>,
}

/// What has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeLimit {
    /// The bound on one attempt.
    Attempt,
    /// The bound on all of them.
    Total,
}

/// A line that an attempt waits in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    None,
    Limiter,
    Bulkhead,
}

impl Attempts {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            plan,
            deadline: NEVER,
            line: Line::None,
            running: false,
            pass: None,
            bulkhead: false,
            told: None,
            cost: None,
            wasted: None,
            permit: None,
            run: None,
            before: None,
        }
    }

    /// Hands over the attempt that is running, to whoever knows when it ends.
    pub(super) fn hand_over(&mut self, py: Python<'_>) -> Self {
        let empty = Self::new(self.plan.clone_ref(py));
        std::mem::replace(self, empty)
    }

    #[inline]
    pub(super) fn parts(&self) -> Parts<'_> {
        self.plan.parts()
    }

    /// The call begins now.
    #[inline]
    pub(super) fn begin(&mut self) {
        self.begin_once();
        let parts = self.plan.parts();
        if let Some(policy) = parts.retry {
            let policy = policy.get();
            let left = self.left();
            let needs_clock = left.is_some() || policy.policy().needs_clock();
            let now = if needs_clock { parts.clock().now() } else { 0 };
            let run = policy.policy().begin(now);
            self.run = Some(match left {
                Some(left) => run.until(now.saturating_add(left)),
                None => run,
            });
        }
    }

    /// [`Attempts::begin`] for a call that is not made again: it cannot be, or it has been already
    /// and whoever makes it has paid for that.
    #[inline]
    pub(super) fn begin_once(&mut self) {
        let parts = self.plan.parts();
        if !parts.is_rival {
            parts.count(|counts| &counts.calls);
        }
        if let Some(guard) = self.plan.hedged()
            && let Some(hedge) = guard.get().hedge()
        {
            hedge.get().deposit();
        }
        self.deadline = parts.deadline();
    }

    /// What is left until the deadline; `None`: no end.
    #[inline]
    pub(super) fn left(&self) -> Option<Nanos> {
        if self.deadline == NEVER {
            return None;
        }
        Some(self.deadline.saturating_sub(self.parts().clock().now()))
    }

    /// How long an attempt that begins now may take; `None`: without end.
    pub(super) fn limit(&self) -> Option<(Nanos, TimeLimit)> {
        let attempt = self.parts().attempt_timeout.map(|limit| (limit, TimeLimit::Attempt));
        match (attempt, self.left()) {
            (Some((limit, _)), Some(left)) if left < limit => Some((left, TimeLimit::Total)),
            (None, Some(left)) => Some((left, TimeLimit::Total)),
            (attempt, _) => attempt,
        }
    }

    /// Passes what may refuse an attempt or make it wait. `Some`: to be awaited, and then asked
    /// again.
    #[inline]
    pub(super) fn admit<'py>(
        &mut self,
        py: Python<'py>,
        target: &Target,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.try_admit(py, target).inspect_err(|error| self.refused(py, error))
    }

    /// What was to be awaited has come.
    pub(super) fn arrived(&mut self, py: Python<'_>, came: Py<PyAny>) -> PyResult<()> {
        match std::mem::replace(&mut self.line, Line::None) {
            Line::None => {}
            Line::Limiter => {
                if let Some(gate) = self.plan.parts().gate {
                    self.pass = Some(gate.passed(py, came)?);
                }
            }
            Line::Bulkhead => self.bulkhead = true,
        }
        Ok(())
    }

    /// A part of ours, or a cancellation, has kept an attempt from beginning.
    #[cold]
    pub(super) fn refused(&self, py: Python<'_>, error: &PyErr) {
        if error.is_instance_of::<PyException>(py) && !self.parts().is_rival {
            self.parts().count(|counts| &counts.rejected);
            if let Some(before) = &self.before {
                // Whoever reads the traceback wants to know why there was another attempt.
                error.set_cause(py, Some(PyErr::from_value(before.bind(py).clone())));
            }
        }
    }

    #[inline]
    fn try_admit<'py>(
        &mut self,
        py: Python<'py>,
        target: &Target,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let parts = self.plan.parts();
        if self.pass.is_none() && !self.bulkhead {
            self.check(py)?;
        }
        if let Some(gate) = parts.gate
            && self.pass.is_none()
        {
            match gate.enter(py, target, self.left())? {
                Entry::Granted => self.pass = Some(Pass::Permit),
                Entry::Wait(place) => {
                    self.line = Line::Limiter;
                    return Ok(Some(place));
                }
            }
        }
        if let Some(bulkhead) = parts.bulkhead
            && !self.bulkhead
        {
            match RateLimiter::enter_in_place(bulkhead.bind(py), self.left())? {
                Entry::Granted => self.bulkhead = true,
                Entry::Wait(place) => {
                    self.line = Line::Bulkhead;
                    return Ok(Some(place));
                }
            }
        }
        self.pass_breaker(py)?;
        Ok(None)
    }

    /// What would be refused anyway does not wait for a permit first.
    #[inline]
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        let parts = self.plan.parts();
        if self.left() == Some(0) {
            return Err(self.timed_out(py, TimeLimit::Total));
        }
        match parts.breaker {
            Some(breaker) if parts.gate.is_some() || parts.bulkhead.is_some() => {
                breaker.get().check(py)
            }
            _ => Ok(()),
        }
    }

    /// The last gate, as a half-open breaker lets few through and none of them may wait.
    #[inline]
    fn pass_breaker(&mut self, py: Python<'_>) -> PyResult<()> {
        if let Some(breaker) = self.plan.parts().breaker {
            let breaker = breaker.bind(py);
            let permit = CircuitBreaker::begin(breaker)
                .map_err(|refusal| breaker.get().open_error(py, &refusal))?;
            self.permit = Some(permit);
        }
        self.running = true;
        Ok(())
    }

    /// [`Attempts::admit`], waiting in this thread.
    pub(super) fn admit_blocking(&mut self, py: Python<'_>, target: &Target) -> PyResult<()> {
        self.try_admit_blocking(py, target).inspect_err(|error| self.refused(py, error))
    }

    fn try_admit_blocking(&mut self, py: Python<'_>, target: &Target) -> PyResult<()> {
        self.check(py)?;
        let parts = self.plan.parts();
        if let Some(gate) = parts.gate {
            self.pass = Some(gate.enter_blocking(py, target, self.left())?);
        }
        if let Some(bulkhead) = parts.bulkhead {
            bulkhead.get().enter_blocking(py, self.left())?;
            self.bulkhead = true;
        }
        self.pass_breaker(py)
    }

    /// The error of an attempt that was ended because its time was up.
    #[cold]
    pub(super) fn timed_out(&self, py: Python<'_>, which: TimeLimit) -> PyErr {
        let parts = self.parts();
        parts.count(|counts| &counts.timeouts);
        let name = parts.guard.map_or("", |guard| &guard.name);
        let (kind, limit) = match which {
            TimeLimit::Attempt => ("attempt", parts.attempt_timeout),
            TimeLimit::Total => ("total", parts.timeout),
        };
        timing::timed_out(py, name, kind, limit.unwrap_or(0))
    }

    /// An attempt has ended: everything it held goes back. `Some`: once more, after so long,
    /// if it `may` be tried again.
    ///
    /// # Errors
    /// What a function of the user's raises that is to say what is retried.
    #[inline]
    pub(super) fn ended(
        &mut self,
        py: Python<'_>,
        result: &PyResult<Py<PyAny>>,
        may: bool,
    ) -> PyResult<Option<Nanos>> {
        let outcome = self.classify(py, result);
        self.learn(py, result, outcome);
        if let Some(pass) = &self.pass {
            self.cost = pass.micro_usd();
        }
        self.release_with(py, outcome, result.as_ref().ok());
        if self.run.is_none() || outcome == Outcome::Success || !may {
            return Ok(None);
        }
        self.again(py, result, outcome)
    }

    /// Whether and when it is tried again.
    #[cold]
    fn again(
        &mut self,
        py: Python<'_>,
        result: &PyResult<Py<PyAny>>,
        outcome: Outcome,
    ) -> PyResult<Option<Nanos>> {
        let parts = self.plan.parts();
        let (Some(policy), Some(run)) = (parts.retry, &mut self.run) else { return Ok(None) };
        let policy = policy.get();
        // One clock for all, or the deadline would be on another than the pauses.
        let now = parts.clock().now();
        let verdict = match result {
            Err(error) if !error.is_instance_of::<PyException>(py) => return Ok(None),
            Err(error) => {
                let error = error.value(py).as_any();
                let wait = outcome::retry_after(error);
                policy.after_error(run, error, outcome, wait, self.cost, now)?
            }
            Ok(value) => {
                let wait = outcome::retry_after(value.bind(py));
                run.after(policy.policy(), outcome, wait, self.cost, now)
            }
        };
        match verdict {
            Verdict::Again(pause) => {
                parts.count(|counts| &counts.retries);
                self.before =
                    result.as_ref().err().map(|error| error.value(py).clone().into_any().unbind());
                Ok(Some(pause))
            }
            Verdict::GiveUp(reason) => {
                if let Err(error) = result {
                    note(error.value(py).as_any(), run, reason, now);
                }
                Ok(None)
            }
        }
    }

    #[inline]
    pub(super) fn classify(&self, py: Python<'_>, result: &PyResult<Py<PyAny>>) -> Outcome {
        let parts = self.parts();
        if let Some(classify) = parts.classify
            && let Some(outcome) = self.asked(py, classify.bind(py), result)
        {
            return outcome;
        }
        match (parts.breaker, result) {
            (Some(breaker), result) => breaker.get().outcome_of(py, result.as_ref()),
            (None, Ok(_)) => Outcome::Success,
            (None, Err(error)) => outcome::of_error(error.value(py).as_any()),
        }
    }

    /// What the user's classifier says; one that raises is told of once and counted, and the call
    /// ends as if there were none.
    #[cold]
    fn asked(
        &self,
        py: Python<'_>,
        classify: &Bound<'_, PyAny>,
        result: &PyResult<Py<PyAny>>,
    ) -> Option<Outcome> {
        let answer = match result {
            Ok(value) => classify.call1((value, py.None())),
            // Nothing that is no `Exception` is anybody's to judge.
            Err(error) if !error.is_instance_of::<PyException>(py) => return None,
            Err(error) => classify.call1((py.None(), error.value(py))),
        };
        answer.and_then(|answer| outcome::named(&answer)).unwrap_or_else(|error| {
            let told = self.parts().guard.is_some_and(|guard| {
                guard.counts.classify_errors.fetch_add(1, Ordering::Relaxed) > 0
            });
            if !told || !error.is_instance_of::<PyException>(py) {
                unraisable(error, classify);
            }
            None
        })
    }

    /// An item of a stream has come; one that says how much it took is kept until the end.
    #[inline]
    pub(super) fn note_item(&mut self, item: &Bound<'_, PyAny>) {
        if !matches!(self.pass, Some(Pass::Reservation(_))) {
            return;
        }
        let name = names::usage(item.py());
        let usage = match item.cast::<PyDict>() {
            Ok(item) => item.get_item(name),
            Err(_) => item.getattr_opt(name),
        };
        if usage.is_ok_and(|usage| usage.is_some_and(|usage| !usage.is_none())) {
            self.told = Some(item.clone().unbind());
        }
    }

    /// The guard whose calls may be hedged.
    #[inline]
    pub(super) fn hedged(&self) -> Option<&Py<Guard>> {
        self.plan.hedged()
    }

    /// The first of two calls has ended without an answer, and the attempt goes on with the second.
    pub(super) fn beaten(&mut self, py: Python<'_>, result: Option<&PyResult<Py<PyAny>>>) {
        let outcome = result.map_or(Outcome::Neutral, |result| self.classify(py, result));
        if let Some(result) = result {
            self.learn(py, result, outcome);
        }
        self.give_back_bulkhead(py);
        if let (Some(pass), Some(gate)) = (self.pass.take(), self.plan.parts().gate) {
            self.cost = pass.micro_usd();
            self.wasted = gate.end(py, pass, outcome, None);
        }
    }

    /// What an attempt has brought is told to the limiter.
    #[inline]
    fn learn(&self, py: Python<'_>, result: &PyResult<Py<PyAny>>, outcome: Outcome) {
        if let (Some(gate), Some(pass)) = (self.plan.parts().gate, &self.pass) {
            match result {
                Ok(value) => gate.observe(py, pass, outcome, value.bind(py)),
                Err(error) => gate.observe(py, pass, outcome, error.value(py).as_any()),
            }
        }
    }

    /// What a second call may cost, in millionths of a USD.
    pub(super) fn micro_usd(&self) -> Option<u64> {
        self.pass.as_ref().and_then(Pass::micro_usd)
    }

    fn give_back_bulkhead(&mut self, py: Python<'_>) {
        if std::mem::take(&mut self.bulkhead)
            && let Some(bulkhead) = self.plan.parts().bulkhead
        {
            bulkhead.get().release(py);
        }
    }

    /// Gives back what an attempt holds that ended with `outcome`.
    #[inline]
    pub(super) fn release(&mut self, py: Python<'_>, outcome: Outcome) {
        self.release_with(py, outcome, None);
    }

    #[inline]
    fn release_with(&mut self, py: Python<'_>, outcome: Outcome, result: Option<&Py<PyAny>>) {
        let parts = self.plan.parts();
        let ran = std::mem::take(&mut self.running);
        if ran && !parts.is_rival {
            parts.count_outcome(outcome);
        }
        self.line = Line::None;
        self.give_back_bulkhead(py);
        let parts = self.plan.parts();
        let mut spend = self.wasted.take();
        if let (Some(pass), Some(gate)) = (self.pass.take(), parts.gate) {
            if ran {
                let told = self.told.take();
                spend = gate.end(py, pass, outcome, told.as_ref().or(result));
            } else {
                gate.give_back(py, pass);
            }
        }
        // Last, as its callbacks may do anything, and for any time.
        if let (Some(permit), Some(breaker)) = (self.permit.take(), parts.breaker) {
            CircuitBreaker::end(breaker.bind(py), permit, outcome, spend);
        }
    }

    /// Nothing more will be tried: the fallback's answer to the error, if it has one.
    #[cold]
    pub(super) fn fall_back<'py>(
        &mut self,
        py: Python<'py>,
        error: PyErr,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.release(py, Outcome::Neutral);
        let parts = self.plan.parts();
        let Some(fallback) = parts.fallback else { return Err(error) };
        if !error.is_instance_of::<PyException>(py) {
            return Err(error);
        }
        let answer = fallback.bind(py).call1((error.value(py),));
        match &answer {
            Ok(_) => parts.count(|counts| &counts.fallbacks),
            Err(later) => shown_in(py, later, &error),
        }
        answer
    }

    pub(super) fn traverse<E>(&self, visit: &Visiting<'_, E>) -> Result<(), E> {
        visit(self.plan.owner())?;
        if let Some(Pass::Reservation(reservation)) = &self.pass {
            visit(reservation.as_any())?;
        }
        if let Some(told) = &self.told {
            visit(told)?;
        }
        self.before.as_ref().map_or(Ok(()), visit)
    }
}

/// As in an `except` block: what a fallback raises shows what it stood in for, at the end of what
/// it shows already, unless it is that very error.
fn shown_in(py: Python<'_>, later: &PyErr, error: &PyErr) {
    let mut last = later.value(py).clone();
    for _ in 0..LONGEST_CHAIN {
        if last.is(error.value(py)) {
            return;
        }
        let context = last.getattr(names::context(py)).ok();
        match context.and_then(|context| context.cast_into().ok()) {
            Some(context) => last = context,
            None => break,
        }
    }
    last.setattr(names::context(py), error.value(py)).ok();
}

/// Errors in one chain of contexts that are looked at.
const LONGEST_CHAIN: usize = 100;
