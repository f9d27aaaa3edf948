//! Where the attempts of one call go, and their wait for the first target to return.
//!
//! Who waits stands in the line of the target that is expected first, if that has one, and looks
//! at all of them whenever it is woken: by that line, by an attempt that has ended, or when the
//! next target is due. So nobody polls, a limiter's line stays as fair as it is, and nobody stays
//! in one while another target is free.

use std::cell::Cell;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyList;
use pyo3::{PyTraverseError, PyVisit};

use super::class::Guard;
use super::lines::{Refused, Stood, Why};
use super::router::Router;
use super::slot::{Looks, Taken, Which, Wish};
use crate::core::clock::{NEVER, Nanos};
use crate::core::limiter::Ticket;
use crate::core::sync::Mutex;
use crate::py::limiter::gone;
use crate::py::llm::Asked;
use crate::py::waiting::{self, PyTicket, Standing, Waker, seconds, wait_here};

/// The function that makes a `TargetsUnavailable`.
static UNAVAILABLE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// The function that refuses a function without a parameter for the target.
static CHECK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Refuses a function that cannot be given the target.
pub(super) fn check(function: &Bound<'_, PyAny>) -> PyResult<()> {
    CHECK.import(function.py(), "ferrogate._targets", "check")?.call1((function,)).map(drop)
}

/// Lines that one look joins and leaves again because something else was missing. Others may take
/// and give back in between, in another order.
const MOST_LINES: usize = 8;

/// Imports what is imported on first use.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    CHECK.import(py, "ferrogate._targets", "check")?;
    UNAVAILABLE.import(py, "ferrogate._targets", "unavailable")?;
    Ok(())
}

/// The attempts of one call at the targets of its guard.
#[derive(Default)]
pub(super) struct Routed {
    /// Where the attempt goes that is under way.
    pub(super) at: Option<usize>,
    /// Where the one before went.
    pub(super) last: Option<usize>,
    /// When it began.
    pub(super) since: Nanos,
    /// What its first item took, if it streams.
    pub(super) took: Option<Nanos>,
    /// Where the call has failed, and until when it does not go there again.
    pub(super) failed: Vec<(usize, Nanos)>,
    /// What it asks of limits that count tokens; the same at each attempt.
    pub(super) ask: Option<Asked>,
    /// Where the first of two calls is under way.
    pub(super) beside: Option<usize>,
}

impl Routed {
    /// The call has failed where it went last, and is not made there again before that time.
    pub(super) fn bar(&mut self, until: Nanos) {
        let Some(at) = self.last else { return };
        self.failed.retain(|(failed, _)| *failed != at);
        self.failed.push((at, until));
    }
}

/// What a wait for a target has brought: given back if nobody takes it out.
#[pyclass(frozen, name = "_Taken", module = "ferrogate._core")]
pub(crate) struct PyTaken {
    guard: Py<Guard>,
    taken: Mutex<Option<Taken>>,
}

impl PyTaken {
    pub(super) fn take(&self) -> Option<Taken> {
        self.taken.lock().take()
    }

    fn give_back(&self, py: Python<'_>) {
        if let (Some(taken), Some(router)) = (self.take(), self.guard.get().router()) {
            router.give_back(py, self.guard.get(), taken);
        }
    }
}

impl Drop for PyTaken {
    fn drop(&mut self) {
        if self.taken.lock().is_none() {
            return;
        }
        Python::attach(|py| {
            // It may go while an error passes, and that must stay the current one.
            let passing = PyErr::take(py);
            self.give_back(py);
            if let Some(passing) = passing {
                passing.restore(py);
            }
        });
    }
}

#[pymethods]
impl PyTaken {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.guard)
    }
}

/// A place in a target's line.
#[derive(Clone, Copy)]
struct Stand {
    at: usize,
    which: Which,
    ticket: Ticket,
    /// What kept it from more than a place.
    why: Why,
}

/// One wait for the first target to return.
struct Wait {
    guard: Py<Guard>,
    wish: Wish,
    waker: Waker,
    /// Among those who wait for any target.
    number: u64,
    stand: Mutex<Option<Stand>>,
}

impl Wait {
    fn new(py: Python<'_>, guard: &Py<Guard>, router: &Router, wish: Wish, waker: Waker) -> Self {
        let number = router.waiters().join(&waker, &wish);
        Self { guard: guard.clone_ref(py), wish, waker, number, stand: Mutex::new(None) }
    }

    fn router(&self) -> PyResult<&Router> {
        self.guard.get().router().ok_or_else(gone)
    }

    /// What was taken, or how long to sleep.
    fn look(&self, py: Python<'_>, trust: Nanos) -> PyResult<Result<Taken, Nanos>> {
        let (guard, router) = (self.guard.get(), self.router()?);
        let mut joined = 0;
        loop {
            let mut looks = router.looks(guard, &self.wish);
            let mut sure = false;
            let came = match self.come(py, router, &mut looks, &mut sure)? {
                None => router.take(py, guard, &self.wish, &mut looks)?,
                some => some,
            };
            if let Some(taken) = came {
                // There may be more where that was.
                router.wake(py, self.leave());
                return Ok(Ok(taken));
            }
            let now = guard.clock.now();
            let Some(best) = router.worth_a_wait(&self.wish, &looks, now) else {
                return Err(unavailable(py, guard, router, &looks));
            };
            let left = self.wish.deadline.saturating_sub(now);
            joined += 1;
            router.pass_on(py, self.number, &looks, now);
            if joined > MOST_LINES || !self.joins(py, router, best, &looks) {
                return Ok(Err(self.nap(router, &looks, sure, trust).min(left)));
            }
        }
    }

    /// Until a target is due: `sure` is whether that is known of the one that it stands at. Of all
    /// who wait for a target to return the first looks in time, and wakes the next if it gets
    /// through; the others trust it.
    fn nap(&self, router: &Router, looks: &Looks, sure: bool, trust: Nanos) -> Nanos {
        let now = self.guard.get().clock.now();
        let stands = self.stand.lock().map(|stand| stand.at);
        let each = looks.candidates.iter().zip(&looks.why).enumerate();
        each.map(|(at, (candidate, (why, _)))| {
            let after = candidate.available_in;
            let known = if stands == Some(at) {
                sure
            } else {
                let then = now.saturating_add(after);
                (!why.is_vague() || why.is_at_most())
                    && router.waiters().is_first(self.number, at, then)
            };
            after.saturating_add(if known { 0 } else { trust })
        })
        .fold(NEVER - 1, Nanos::min)
    }

    /// What its turn in the line has brought, if it has come and nothing else is missing.
    fn come(
        &self,
        py: Python<'_>,
        router: &Router,
        looks: &mut Looks,
        sure: &mut bool,
    ) -> PyResult<Option<Taken>> {
        let Some(Stand { at, which, ticket, why }) = *self.stand.lock() else { return Ok(None) };
        let Some(gate) = router.slot(at).line(which) else { return Ok(None) };
        let stood = gate.stands(py, &self.wish.ask, ticket)?;
        if let Stood::Waits { nap, sure: known } = stood {
            *sure = known;
            looks.note(at, Refused { after: nap.min(NEVER - 1), why }, Some(which));
            return Ok(None);
        }
        let stand = self.stand.lock().take();
        if stand.is_some() {
            router.stand(at, false);
        }
        let refused = match stood {
            Stood::Granted(pass) => {
                let held = Taken::held(at, Some((which, pass)));
                if looks.candidates[at].available_in > 0 {
                    // Its breaker has opened, or it has asked for patience meanwhile.
                    router.undo(py, held);
                    return Ok(None);
                }
                match router.enter(py, self.guard.get(), &self.wish, held)? {
                    Ok(taken) => {
                        router.choose(self.guard.get(), at, looks);
                        return Ok(Some(taken));
                    }
                    Err(refused) => refused,
                }
            }
            Stood::Refused(refused) => (refused, Some(which)),
            Stood::Waits { .. } => return Ok(None),
        };
        looks.note(at, refused.0, refused.1);
        Ok(None)
    }

    /// Goes to stand where it is expected to be soonest, if that has a line; whoever stands in one
    /// that moves stays. True if it has come to stand somewhere.
    fn joins(&self, py: Python<'_>, router: &Router, best: usize, looks: &Looks) -> bool {
        let stands = *self.stand.lock();
        if let Some(stand) = stands {
            if matches!(looks.why[stand.at], (Why::Line(_), Some(_))) {
                return false;
            }
            router.wake(py, self.step_out());
        }
        let (Why::Line(_), Some(which)) = looks.why[best] else { return false };
        let slot = router.slot(best);
        let Some(gate) = slot.line(which) else { return false };
        match gate.join(py, &slot.ask(&self.wish.ask), self.waker.clone()) {
            Ok(ticket) => {
                *self.stand.lock() =
                    Some(Stand { at: best, which, ticket, why: looks.why[best].0 });
                router.stand(best, true);
                true
            }
            // The line is full: it looks again when it could be served at the earliest.
            Err(_) => false,
        }
    }

    /// Leaves the line that it stands in; whom to wake.
    fn step_out(&self) -> Vec<Waker> {
        let stand = self.stand.lock().take();
        let (Some(Stand { at, which, ticket, .. }), Ok(router)) = (stand, self.router()) else {
            return Vec::new();
        };
        router.stand(at, false);
        let gate = router.slot(at).line(which);
        gate.map_or_else(Vec::new, |gate| gate.step_out(&self.wish.ask, ticket))
    }

    /// Waits no more; whom to wake.
    fn leave(&self) -> Vec<Waker> {
        let mut others = self.step_out();
        if let Ok(router) = self.router() {
            others.extend(router.leave(self.number, self.guard.get().clock.now()));
        }
        others
    }
}

/// A coroutine's wait.
struct Place {
    wait: Wait,
    /// What was taken, until the caller has it. Its lock is only taken while attached.
    taken: Mutex<Option<Py<PyTaken>>>,
}

impl Standing for Place {
    fn look(&self, py: Python<'_>, trust: Nanos) -> PyResult<Option<Nanos>> {
        match self.wait.look(py, trust)? {
            Err(nap) => Ok(Some(nap)),
            Ok(taken) => {
                let guard = self.wait.guard.clone_ref(py);
                let taken = Py::new(py, PyTaken { guard, taken: Mutex::new(Some(taken)) })?;
                let before = self.taken.lock().replace(taken);
                drop(before);
                Ok(None)
            }
        }
    }

    fn result(&self, py: Python<'_>) -> Py<PyAny> {
        let taken = self.taken.lock().as_ref().map(|known| known.clone_ref(py));
        taken.map_or_else(|| py.None(), Py::into_any)
    }

    fn leave(&self) -> Vec<Waker> {
        self.wait.leave()
    }

    fn give_back(&self, py: Python<'_>) -> Vec<Waker> {
        let taken = self.taken.lock().take();
        if let Some(taken) = taken {
            taken.get().give_back(py);
        }
        Vec::new()
    }

    fn kept(&self) {
        let kept = self.taken.lock().take();
        drop(kept);
    }

    fn wake(&self, py: Python<'_>, wakers: Vec<Waker>) {
        if let Ok(router) = self.wait.router() {
            router.wake(py, wakers);
        }
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.wait.guard)?;
        visit.call(&*self.taken.lock())
    }
}

/// What came of looking for a target.
pub(super) enum Found<'py> {
    Taken(Taken),
    /// To be awaited; becomes a [`PyTaken`].
    Wait(Bound<'py, PyAny>),
}

/// A target for an attempt, now or after a wait.
pub(super) fn find<'py>(
    py: Python<'py>,
    guard: &Py<Guard>,
    router: &Router,
    wish: Wish,
) -> PyResult<Found<'py>> {
    let mut looks = router.looks(guard.get(), &wish);
    // What begins at the deadline could only be late.
    if wish.deadline <= guard.get().clock.now() {
        return Err(unavailable(py, guard.get(), router, &looks));
    }
    if let Some(taken) = router.take(py, guard.get(), &wish, &mut looks)? {
        return Ok(Found::Taken(taken));
    }
    refuse_late(py, guard.get(), router, &wish, &looks)?;
    let waker = Waker::of_coroutine();
    let wait = Wait::new(py, guard, router, wish, waker.clone());
    let place = Place { wait, taken: Mutex::new(None) };
    waiting::place(py, Ok(PyTicket::new(Box::new(place), waker))).map(Found::Wait)
}

/// [`find`], waiting in this thread.
pub(super) fn find_blocking(
    py: Python<'_>,
    guard: &Py<Guard>,
    router: &Router,
    wish: Wish,
) -> PyResult<Taken> {
    let mut looks = router.looks(guard.get(), &wish);
    // What begins at the deadline could only be late.
    if wish.deadline <= guard.get().clock.now() {
        return Err(unavailable(py, guard.get(), router, &looks));
    }
    if let Some(taken) = router.take(py, guard.get(), &wish, &mut looks)? {
        return Ok(taken);
    }
    refuse_late(py, guard.get(), router, &wish, &looks)?;
    let waker = Waker::of_thread();
    let wait = Wait::new(py, guard, router, wish, waker.clone());
    let found = Cell::new(None);
    let look = |trust| {
        Ok(match wait.look(py, trust)? {
            Err(nap) => Some(nap),
            Ok(taken) => {
                found.set(Some(taken));
                None
            }
        })
    };
    wait_here(py, &waker, look, || router.wake(py, wait.leave()))?;
    found.take().ok_or_else(gone)
}

/// Refuses what even the first target to return could only begin too late.
fn refuse_late(
    py: Python<'_>,
    guard: &Guard,
    router: &Router,
    wish: &Wish,
    looks: &Looks,
) -> PyResult<()> {
    match router.worth_a_wait(wish, looks, guard.clock.now()) {
        Some(_) => Ok(()),
        None => Err(unavailable(py, guard, router, looks)),
    }
}

/// The error of a call that no target takes in time, with the reason of each.
#[cold]
fn unavailable(py: Python<'_>, guard: &Guard, router: &Router, looks: &Looks) -> PyErr {
    let make = || {
        let reasons = router.reasons(looks).into_iter();
        let reasons =
            reasons.map(|(name, why, after)| (name, why.text(), seconds(after), !why.is_vague()));
        let reasons = PyList::new(py, reasons.collect::<Vec<_>>())?;
        let make = UNAVAILABLE.import(py, "ferrogate._targets", "unavailable")?;
        make.call1((&guard.name, reasons)).map(PyErr::from_value)
    };
    make().unwrap_or_else(|error| error)
}
