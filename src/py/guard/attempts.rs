//! What an attempt must pass and holds, and what is made of its end: the same for coroutines,
//! plain functions and streams.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::around::{Around, Within};
use super::class::Guard;
use super::gate::Pass;
use super::plan::{Parts, Plan};
use super::recording::Noted;
use super::routed::Routed;
use super::target::Target;
use super::timing;
use crate::core::breaker::{Permit, Spend};
use crate::core::clock::{NEVER, Nanos};
use crate::core::limiter::adaptive::Call;
use crate::core::outcome::Outcome;
use crate::core::retry::Run;
use crate::py::awaitable::Visiting;
use crate::py::breaker::CircuitBreaker;
use crate::py::limiter::{Entry, RateLimiter};
use crate::py::names;

/// All attempts of one call.
pub(super) struct Attempts {
    pub(super) plan: Plan,
    /// When all must be over.
    pub(super) deadline: Nanos,
    /// When whoever called must be done.
    around: Around,
    /// In which line the attempt stands.
    pub(super) line: Line,
    /// The attempt has been let through and has not ended.
    pub(super) running: bool,
    pub(super) pass: Option<Pass>,
    pub(super) bulkhead: bool,
    /// The attempt as a bulkhead sees it whose slots find their own number.
    pub(super) slot: Option<Call>,
    /// It failed as the other side had too much to do.
    pub(super) overloaded: bool,
    /// What of a stream says how much it took.
    told: Option<Py<PyAny>>,
    /// What an attempt may cost, in millionths of a USD.
    pub(super) cost: Option<u64>,
    /// What the first of two calls has cost, which failed.
    pub(super) wasted: Option<Spend>,
    pub(super) permit: Option<Permit>,
    pub(super) run: Option<Run>,
    /// How the first of two calls has ended, which the second could not mend.
    pub(super) judged: Option<Outcome>,
    /// What the attempt before raised.
    pub(super) before: Option<Py<PyAny>>,
    /// For whoever writes attempts down.
    pub(super) noted: Option<Box<Noted>>,
    /// Where the attempts go, if the guard has targets.
    pub(super) routed: Option<Box<Routed>>,
}

/// What has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeLimit {
    /// The bound on one attempt.
    Attempt,
    /// The bound on all of them.
    Total,
    /// The bound on the call around them, which another guard made.
    Around,
}

/// A line that an attempt waits in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    None,
    Limiter,
    Bulkhead,
    Target,
}

impl Attempts {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            plan,
            deadline: NEVER,
            around: Around::current(),
            line: Line::None,
            running: false,
            pass: None,
            bulkhead: false,
            slot: None,
            overloaded: false,
            told: None,
            cost: None,
            wasted: None,
            permit: None,
            run: None,
            judged: None,
            before: None,
            noted: None,
            routed: None,
        }
    }

    /// Hands over the attempt that is running, to whoever knows when it ends.
    pub(super) fn hand_over(&mut self, py: Python<'_>) -> Self {
        let empty = Self::new(self.plan.clone_ref(py));
        std::mem::replace(self, empty)
    }

    #[inline]
    pub(super) fn parts(&self) -> Parts<'_> {
        parts_of(&self.plan, self.routed.as_deref())
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
        if !parts.is_part {
            parts.count(|counts| &counts.calls);
        }
        if let Some(guard) = self.plan.hedged()
            && let Some(hedge) = guard.get().hedge()
        {
            hedge.get().deposit();
        }
        self.deadline = parts.deadline();
        self.note_call();
        if let Some((_, beside)) = self.plan.routed() {
            self.routed = Some(Box::new(Routed { beside, ..Routed::default() }));
        }
    }

    /// When nobody waits for the call any more: at its deadline, or that of a call around it.
    #[inline]
    fn horizon(&self) -> Nanos {
        self.deadline.min(self.around.deadline(self.parts().clock()))
    }

    /// What is left until the call's answer comes too late; `None`: no end.
    #[inline]
    pub(super) fn left(&self) -> Option<Nanos> {
        self.until(self.horizon())
    }

    /// What is left until its own deadline, at which it is ended; `None`: no end.
    #[inline]
    pub(super) fn left_of_own(&self) -> Option<Nanos> {
        self.until(self.deadline)
    }

    #[inline]
    fn until(&self, deadline: Nanos) -> Option<Nanos> {
        if deadline == NEVER {
            return None;
        }
        Some(deadline.saturating_sub(self.parts().clock().now()))
    }

    /// To be kept while the user's code runs: what that calls has no more time than this call.
    #[inline]
    pub(super) fn within(&self) -> Option<Within> {
        Within::new(self.parts().clock(), self.horizon())
    }

    /// How long an attempt that begins now may take; `None`: without end.
    pub(super) fn limit(&self) -> Option<(Nanos, TimeLimit)> {
        let attempt = self.parts().attempt_timeout.map(|limit| (limit, TimeLimit::Attempt));
        match (attempt, self.left_of_own()) {
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
            Line::Target => self.reached(py, came)?,
        }
        Ok(())
    }

    /// A part of ours, or a cancellation, has kept an attempt from beginning.
    #[cold]
    pub(super) fn refused(&self, py: Python<'_>, error: &PyErr) {
        if error.is_instance_of::<PyException>(py) && !self.parts().is_part {
            self.parts().count(|counts| &counts.rejected);
            self.note_refused();
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
        if self.routed.is_some() {
            return self.find(py, target);
        }
        if self.pass.is_none() && !self.bulkhead {
            self.note_asked();
            self.check(py)?;
        }
        let parts = self.plan.parts();
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

    /// Refuses what could only begin too late.
    #[inline]
    pub(super) fn check_time(&self, py: Python<'_>) -> PyResult<()> {
        if self.left() != Some(0) {
            return Ok(());
        }
        let own = self.left_of_own() == Some(0);
        Err(self.timed_out(py, if own { TimeLimit::Total } else { TimeLimit::Around }))
    }

    /// What would be refused anyway does not wait for a permit first.
    #[inline]
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        self.check_time(py)?;
        let parts = self.plan.parts();
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
        if let Some(bulkhead) = self.plan.parts().bulkhead {
            self.slot = bulkhead.get().begins();
        }
        self.running = true;
        self.note_begun();
        Ok(())
    }

    /// [`Attempts::admit`], waiting in this thread.
    pub(super) fn admit_blocking(&mut self, py: Python<'_>, target: &Target) -> PyResult<()> {
        self.try_admit_blocking(py, target).inspect_err(|error| self.refused(py, error))
    }

    fn try_admit_blocking(&mut self, py: Python<'_>, target: &Target) -> PyResult<()> {
        if self.routed.is_some() {
            return self.find_blocking(py, target);
        }
        self.note_asked();
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
            TimeLimit::Around => ("outer", None),
        };
        timing::timed_out(py, name, kind, limit.unwrap_or(0))
    }

    /// An item of a stream has come; one that says how much it took is kept until the end.
    #[inline]
    pub(super) fn note_item(&mut self, item: &Bound<'_, PyAny>) {
        if self.routed.as_ref().is_some_and(|routed| routed.took.is_none()) {
            self.note_first_item();
        }
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
            self.judged = Some(outcome);
            self.learn(py, result, outcome);
        }
        self.give_back_bulkhead(py, outcome);
        if let (Some(pass), Some(gate)) =
            (self.pass.take(), parts_of(&self.plan, self.routed.as_deref()).gate)
        {
            self.cost = pass.micro_usd();
            self.wasted = gate.end(py, pass, outcome, false, None);
        }
        if self.routed.is_some() {
            self.leave_target(py, outcome, result.is_none());
        }
    }

    /// What an attempt has brought is told to the limiter.
    #[inline]
    pub(super) fn learn(&self, py: Python<'_>, result: &PyResult<Py<PyAny>>, outcome: Outcome) {
        if let (Some(gate), Some(pass)) = (self.parts().gate, &self.pass) {
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

    /// Gives back what an attempt holds that ended with `outcome`.
    #[inline]
    pub(super) fn release(&mut self, py: Python<'_>, outcome: Outcome) {
        self.release_with(py, outcome, None);
    }

    #[inline]
    pub(super) fn release_with(
        &mut self,
        py: Python<'_>,
        outcome: Outcome,
        result: Option<&Py<PyAny>>,
    ) {
        let parts = parts_of(&self.plan, self.routed.as_deref());
        let ran = std::mem::take(&mut self.running);
        if ran && !parts.is_part {
            parts.count_outcome(outcome);
        }
        self.line = Line::None;
        let overloaded = std::mem::take(&mut self.overloaded);
        self.give_back_bulkhead(py, if overloaded { Outcome::Throttled } else { outcome });
        let parts = parts_of(&self.plan, self.routed.as_deref());
        let mut spend = self.wasted.take();
        let noted = self.to_be_noted(py);
        if let (Some(pass), Some(gate)) = (self.pass.take(), parts.gate) {
            if ran {
                let told = self.told.take();
                spend = gate.end(py, pass, outcome, overloaded, told.as_ref().or(result));
            } else {
                gate.give_back(py, pass);
            }
        }
        if ran && self.noted.is_some() {
            self.note_ended(outcome, noted.as_ref());
        }
        // Last, as its callbacks may do anything, and for any time.
        if let (Some(permit), Some(breaker)) = (self.permit.take(), parts.breaker) {
            CircuitBreaker::end(breaker.bind(py), permit, outcome, spend);
        }
        if self.routed.is_some() {
            self.leave_target(py, outcome, false);
        }
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

/// The parts of a plan, those of the target among them that the attempt goes to.
#[inline]
pub(super) fn parts_of<'a>(plan: &'a Plan, routed: Option<&Routed>) -> Parts<'a> {
    let parts = plan.parts();
    match routed.and_then(|routed| routed.at) {
        None => parts,
        Some(at) => parts.at(at),
    }
}
