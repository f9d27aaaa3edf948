//! Several targets behind one guard: which can take an attempt, and what it is given there.
//!
//! The core says which target comes first (`core/route`); here breakers and limiters are asked.
//! Nothing of a target is held while another is asked, and nothing while anybody waits.

use std::sync::atomic::Ordering;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3::{PyTraverseError, PyVisit};

use super::class::Guard;
use super::gate::Gate;
use super::lines::{Refused, Why};
use super::slot::{Given, Looks, Slot, Taken, Which, Wish};
use super::target::Target;
use super::waiters::Waiters;
use crate::core::clock::{NEVER, Nanos};
use crate::core::outcome::Outcome;
use crate::core::route::{Candidate, Ended, Kind, Route};
use crate::core::sync::Mutex;
use crate::py::breaker::CircuitBreaker;
use crate::py::llm::{Asked, asked, asked_tokens};
use crate::py::waiting::{Waker, Wakes};

/// The targets of one guard.
pub(super) struct Router {
    slots: Vec<Slot>,
    route: Mutex<Route>,
    kind: Kind,
    /// From the call's arguments to the keywords of `reserve`, if anybody wants those.
    estimate: Option<Py<PyAny>>,
    waiters: Waiters,
    wakes: Wakes,
}

impl Router {
    pub(super) fn new(
        py: Python<'_>,
        route: &str,
        targets: Vec<Given<'_>>,
        estimate: &Py<PyAny>,
        usage: &Py<PyAny>,
        price: Option<&Py<PyAny>>,
    ) -> PyResult<Self> {
        let kind = Kind::parse(route)?;
        let weights: Vec<_> = targets.iter().map(|given| given.5).collect();
        let gate = |limiter: &Bound<'_, PyAny>| {
            let price = price.map(|price| price.clone_ref(py));
            Gate::new(limiter, estimate.clone_ref(py), usage.clone_ref(py), price)
        };
        let slots = targets.into_iter().map(|given| Slot::new(given, gate));
        let slots = slots.collect::<PyResult<Vec<_>>>()?;
        let counts_tokens = slots.iter().any(|slot| slot.counts_tokens(kind == Kind::Cheapest));
        Ok(Self {
            slots,
            route: Mutex::new(Route::new(kind, &weights)),
            kind,
            estimate: counts_tokens.then(|| estimate.clone_ref(py)),
            waiters: Waiters::new(),
            wakes: Wakes::default(),
        })
    }

    pub(super) fn slot(&self, at: usize) -> &Slot {
        &self.slots[at]
    }

    /// What the function is given for an attempt there.
    pub(super) fn target(&self, at: usize) -> &Py<PyAny> {
        &self.slots[at].target
    }

    /// What a call asks of limits that count tokens.
    pub(super) fn ask(&self, py: Python<'_>, call: &Target) -> PyResult<Asked> {
        let Some(estimate) = &self.estimate else { return asked_nothing(py) };
        let estimated = call.call_other(py, estimate)?;
        match estimated.cast() {
            Ok(keywords) => asked(keywords),
            Err(_) => asked_tokens(&estimated),
        }
    }

    /// What is known without asking a limiter.
    pub(super) fn looks(&self, guard: &Guard, wish: &Wish) -> Looks {
        let now = guard.clock.now();
        let mut looks = Looks {
            candidates: vec![Candidate::default(); self.slots.len()],
            why: vec![(Why::Nothing, None); self.slots.len()],
        };
        for (at, slot) in self.slots.iter().enumerate() {
            let candidate = &mut looks.candidates[at];
            candidate.failed_before = wish.beside == Some(at);
            if self.kind == Kind::Cheapest {
                candidate.cost = slot.cost(&wish.ask);
            }
            let mut wait = |until: Nanos, why| {
                if until > now {
                    looks.note(at, Refused { after: until - now, why }, None);
                }
            };
            wait(slot.until.load(Ordering::Relaxed), Why::Pause);
            let failed = wish.failed.iter().find(|(failed, _)| *failed == at);
            if let Some(&(_, until)) = failed {
                wait(until, Why::Backoff);
                looks.candidates[at].failed_before = true;
            }
            let refusal = slot.breaker.as_ref().filter(|_| guard.is_enabled());
            if let Some(refusal) = refusal.and_then(|breaker| breaker.get().would_refuse()) {
                let after = refusal.retry_after.unwrap_or(NEVER);
                looks.note(at, Refused { after, why: Why::Breaker(refusal.state) }, None);
            }
        }
        looks
    }

    /// Each target, and when at the earliest it may take another attempt of a call that failed
    /// there, if its limiter lets it.
    pub(super) fn others(
        &self,
        guard: &Guard,
        failed: &[(usize, Nanos)],
    ) -> impl Iterator<Item = (usize, Nanos)> + use<> {
        let wish = Wish {
            ask: Asked::tokens(0, 0),
            failed: failed.to_vec(),
            beside: None,
            deadline: NEVER,
        };
        let looks = self.looks(guard, &wish);
        let now = guard.clock.now();
        let each = looks.candidates.iter().zip(&looks.why).enumerate();
        let each = each.map(|(at, (candidate, (why, _)))| {
            let at_most = why.is_at_most();
            (at, if at_most { self.known_to_wait(at, &wish, now) } else { candidate.available_in })
        });
        each.collect::<Vec<_>>().into_iter()
    }

    /// All that an attempt needs of the best target that can take it now. `None`: none can, and
    /// the looks say why.
    pub(super) fn take(
        &self,
        py: Python<'_>,
        guard: &Guard,
        wish: &Wish,
        looks: &mut Looks,
    ) -> PyResult<Option<Taken>> {
        let now = self.time(guard);
        loop {
            let Some(at) = self.route.lock().best(&looks.candidates, now) else { return Ok(None) };
            match self.enter(py, guard, wish, Taken::held(at, None))? {
                Ok(taken) => {
                    self.choose(guard, at, looks);
                    return Ok(Some(taken));
                }
                Err((refused, which)) => looks.note(at, refused, which),
            }
        }
    }

    /// An attempt goes there.
    pub(super) fn choose(&self, guard: &Guard, at: usize, looks: &Looks) {
        let now = self.time(guard);
        self.route.lock().choose(at, &looks.candidates, now);
    }

    /// The time, if the route asks for it.
    fn time(&self, guard: &Guard) -> Nanos {
        if self.kind == Kind::Fastest { guard.clock.now() } else { 0 }
    }

    /// An attempt that is under way there has begun to answer, now.
    pub(super) fn hear(&self, at: usize, now: Nanos) {
        self.route.lock().hear(at, now);
    }

    /// The one that can take an attempt first, if any may before the attempt's deadline.
    pub(super) fn worth_a_wait(&self, wish: &Wish, looks: &Looks, now: Nanos) -> Option<usize> {
        let left = wish.deadline.saturating_sub(now);
        match self.route.lock().first_to_return(&looks.candidates) {
            Some((at, after)) if after < left => Some(at),
            _ => (0..self.slots.len()).find(|&at| {
                looks.why[at].0.is_at_most() && self.known_to_wait(at, wish, now) < left
            }),
        }
    }

    /// How long nothing can go there whatever its breaker says.
    fn known_to_wait(&self, at: usize, wish: &Wish, now: Nanos) -> Nanos {
        let paused = self.slots[at].until.load(Ordering::Relaxed);
        let failed = wish.failed.iter().find(|(failed, _)| *failed == at);
        let until = failed.map_or(paused, |&(_, until)| until.max(paused));
        until.saturating_sub(now).max(1)
    }

    /// Takes what is missing, or gives back what was there.
    #[allow(clippy::type_complexity)] // said once
    pub(super) fn enter(
        &self,
        py: Python<'_>,
        guard: &Guard,
        wish: &Wish,
        mut taken: Taken,
    ) -> PyResult<Result<Taken, (Refused, Option<Which>)>> {
        if !guard.is_enabled() {
            return Ok(Ok(taken));
        }
        let slot = &self.slots[taken.at];
        for which in [Which::Limiter, Which::Bulkhead] {
            let has = match which {
                Which::Limiter => taken.pass.is_some(),
                Which::Bulkhead => taken.bulkhead.is_some(),
            };
            let Some(gate) = slot.line(which).filter(|_| !has) else { continue };
            let entered = gate.enter_now(py, &slot.ask(&wish.ask));
            let place = match which {
                Which::Limiter => &mut taken.pass,
                Which::Bulkhead => &mut taken.bulkhead,
            };
            match entered {
                Ok(Ok(entered)) => *place = Some(entered),
                Ok(Err(refused)) => {
                    self.undo(py, taken);
                    return Ok(Err((refused, Some(which))));
                }
                Err(error) => {
                    self.undo(py, taken);
                    return Err(error);
                }
            }
        }
        if let Some(breaker) = &slot.breaker {
            match CircuitBreaker::begin(breaker.bind(py)) {
                Ok(permit) => taken.permit = Some(permit),
                Err(refusal) => {
                    self.undo(py, taken);
                    let after = refusal.retry_after.unwrap_or(NEVER);
                    let why = Why::Breaker(refusal.state);
                    return Ok(Err((Refused { after, why }, None)));
                }
            }
        }
        Ok(Ok(taken))
    }

    /// Gives back what nobody made use of.
    pub(super) fn undo(&self, py: Python<'_>, taken: Taken) {
        let slot = &self.slots[taken.at];
        if let (Some(entered), Some(gate)) = (taken.bulkhead, &slot.bulkhead) {
            gate.undo(py, entered);
        }
        if let (Some(entered), Some(gate)) = (taken.pass, &slot.gate) {
            gate.undo(py, entered);
        }
        if let (Some(permit), Some(breaker)) = (taken.permit, &slot.breaker) {
            CircuitBreaker::end(breaker.bind(py), permit, Outcome::Neutral, None);
        }
    }

    /// An attempt that was to go there does not.
    pub(super) fn give_back(&self, py: Python<'_>, guard: &Guard, taken: Taken) {
        let at = taken.at;
        self.route.lock().unchoose(at);
        self.undo(py, taken);
        self.ring(py, at, guard.clock.now());
    }

    /// An attempt has ended there, now, of which something had been `heard` or not.
    pub(super) fn end(
        &self,
        py: Python<'_>,
        at: usize,
        outcome: Outcome,
        ended: Ended,
        heard: bool,
        now: Nanos,
    ) {
        self.slots[at].count(outcome);
        self.route.lock().end(at, ended, heard, now);
        self.ring(py, at, now);
    }

    /// It asked to be left alone until then.
    pub(super) fn pause(&self, at: usize, until: Nanos) {
        self.slots[at].until.fetch_max(until, Ordering::Relaxed);
    }

    /// Somebody stands in that target's line, or does no more.
    pub(super) fn stand(&self, at: usize, stands: bool) {
        self.route.lock().stand(at, stands);
    }

    /// Those who wait for any of them.
    pub(super) fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// Waits no more; who looks next.
    pub(super) fn leave(&self, number: u64, now: Nanos) -> Vec<Waker> {
        self.waiters.leave(number, self.slots.len(), now)
    }

    /// Something has changed at that target: the first of those who may go there looks again.
    fn ring(&self, py: Python<'_>, at: usize, now: Nanos) {
        self.wakes.send(py, self.waiters.first(at, now).into_iter().collect());
    }

    /// Who waits has looked in vain, and can never go to some of them: whoever is next may.
    pub(super) fn pass_on(&self, py: Python<'_>, number: u64, looks: &Looks, now: Nanos) {
        for (at, (candidate, (why, _))) in looks.candidates.iter().zip(&looks.why).enumerate() {
            let never = candidate.available_in == NEVER && matches!(why, Why::Line(_));
            // A wake may have been meant for this one, as long as it was thought to have a use.
            if never && self.waiters.bar(number, at) {
                self.ring(py, at, now);
            }
        }
    }

    /// All who wait look again: their clock was moved.
    pub(super) fn ring_all(&self, py: Python<'_>) {
        self.wakes.send(py, self.waiters.all());
    }

    /// Wakes them.
    pub(super) fn wake(&self, py: Python<'_>, wakers: Vec<Waker>) {
        self.wakes.send(py, wakers);
    }

    /// Why it is that nothing can be taken: name, reason and time of each.
    pub(super) fn reasons(&self, looks: &Looks) -> Vec<(String, Why, Nanos)> {
        let each = self.slots.iter().zip(looks.candidates.iter().zip(&looks.why));
        each.map(|(slot, (candidate, (why, _)))| (slot.name.clone(), *why, candidate.available_in))
            .collect()
    }

    /// Of each target: chosen, under way, outcomes, the median of its answers' latencies.
    pub(super) fn stats(&self) -> Vec<(u64, u64, [u64; 4], Option<Nanos>)> {
        let seen = self.route.lock().seen();
        let each = seen.into_iter().zip(&self.slots);
        each.map(|(seen, slot)| (seen.chosen, seen.under_way, slot.outcomes(), seen.latency))
            .collect()
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.estimate)?;
        self.slots.iter().try_for_each(|slot| slot.traverse(visit))
    }
}

/// Of a call whose tokens nobody counts.
fn asked_nothing(py: Python<'_>) -> PyResult<Asked> {
    asked(&PyDict::new(py))
}
