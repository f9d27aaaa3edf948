//! Waiting: tickets for coroutines, short detached sleeps for threads.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pyo3::PyTraverseError;
use pyo3::PyVisit;
use pyo3::exceptions::{PyRecursionError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyWeakrefMethods, PyWeakrefReference};

use super::request::{Request, seconds};
use super::{Core, Out, RateLimiter};
use crate::core::clock::{NEVER, Nanos, SECOND};
use crate::core::limiter::{Decision, Progress, Reason, Ticket, UNKNOWN};
use crate::core::sync::{Bell, Mutex};
use crate::py::edge::{edge, unraisable};
use crate::py::names;

/// Between two looks for a pending Ctrl-C.
const SIGNAL_SLICE: Duration = Duration::from_millis(50);

/// How long past its earliest possible turn a waiter trusts those before it to
/// take theirs; doubles with every look in vain, up to the second figure. A
/// head whose loop was closed wakes nobody, and this finds it.
const TRUST: (Nanos, Nanos) = (SECOND / 10, 60 * SECOND);

/// Wakes one waiter; cloning and dropping it never touches a Python object's
/// count while a lock is held (clones share one, the last leaves by the outbox).
#[derive(Clone)]
pub(super) struct Waker(Arc<Sleeper>);

enum Sleeper {
    /// A coroutine's `Waiter`, weakly: the line must not keep a task of a dead
    /// loop alive, whose end returns the ticket. Known from the first look at
    /// the ticket on; before that look nobody is woken.
    Task(OnceLock<Py<PyWeakrefReference>>),
    /// A thread.
    Thread(Bell),
}

/// What has become of a wake.
enum Woken {
    /// It was told, or has gone.
    Yes,
    /// Its loop was closed: its place goes to the next.
    Dead(Py<PyTicket>),
    /// It could not be told, as at the recursion limit.
    Not,
}

impl Waker {
    fn of_coroutine() -> Self {
        Self(Arc::new(Sleeper::Task(OnceLock::new())))
    }

    /// Whom to wake, told at every look.
    fn belongs_to(&self, waiter: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Sleeper::Task(known) = &*self.0
            && known.get().is_none()
        {
            let reference = PyWeakrefReference::new(waiter)?.unbind();
            // Only one coroutine has the ticket.
            drop(known.set(reference));
        }
        Ok(())
    }

    fn of_thread() -> Self {
        Self(Arc::new(Sleeper::Thread(Bell::of_this_thread())))
    }

    fn wake(&self, py: Python<'_>) -> Woken {
        match &*self.0 {
            Sleeper::Task(reference) => {
                let reference = reference.get().map(|reference| reference.bind(py));
                let Some(waiter) = reference.and_then(PyWeakrefMethods::upgrade) else {
                    return Woken::Yes;
                };
                let report = |error: PyErr| {
                    // At its limit the interpreter could not report it, and nothing is lost.
                    if !error.is_instance_of::<PyRecursionError>(py) {
                        unraisable(error, &waiter);
                    }
                };
                Self::told(&waiter).unwrap_or_else(|error| {
                    // `wake` may be called again; this time nothing is pending.
                    let again = Self::told(&waiter);
                    report(error);
                    again.unwrap_or_else(|error| {
                        report(error);
                        Woken::Not
                    })
                })
            }
            Sleeper::Thread(bell) => {
                bell.ring();
                Woken::Yes
            }
        }
    }

    fn told(waiter: &Bound<'_, PyAny>) -> PyResult<Woken> {
        let answer = waiter.call_method0(names::wake(waiter.py()))?;
        let dead = answer.cast_into::<PyTicket>();
        Ok(dead.map_or(Woken::Yes, |ticket| Woken::Dead(ticket.unbind())))
    }

    /// Sleeps until woken, at most a signal slice and at most `longest`.
    fn sleep(&self, longest: Nanos) {
        if let Sleeper::Thread(bell) = &*self.0 {
            bell.wait(SIGNAL_SLICE.min(Duration::from_nanos(longest)));
        }
    }
}

/// Where a ticket stands: in the line; granted, but not yet its caller's; given up or kept.
const WAITING: u8 = 0;
const GRANTED: u8 = 1;
const DONE: u8 = 2;

/// A place in the line. One that goes before its caller has kept it (Ctrl-C may come after any
/// call and before the next line) gives back its place, or its slot.
#[pyclass(frozen, name = "_Ticket", module = "ferrogate._core")]
pub(crate) struct PyTicket {
    limiter: Py<RateLimiter>,
    request: Request,
    ticket: Ticket,
    deadline: Nanos,
    waker: Waker,
    /// Grows from the first figure of [`TRUST`] to the second.
    trust: AtomicU64,
    stage: AtomicU8,
}

impl PyTicket {
    fn give_back(&self, py: Python<'_>) {
        self.limiter.get().calling(py, |core, out| self.withdraw(core, out));
    }

    fn withdraw(&self, core: &Core, out: &mut Out) {
        match self.stage.swap(DONE, Ordering::Relaxed) {
            WAITING => {
                core.cancel(self.request.key.as_ref(), self.ticket, out);
            }
            // The permits are spent; their windows get over it, the slot would not.
            GRANTED if self.request.slot && self.limiter.get().forked.leaves() => {
                core.release_slot(out);
            }
            _ => {}
        }
    }
}

impl Drop for PyTicket {
    fn drop(&mut self) {
        if self.stage.load(Ordering::Relaxed) == DONE {
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
impl PyTicket {
    /// ``None``: granted. Else the seconds after which to look again, if ``waiter`` is not woken
    /// before, by its ``wake()``, from any thread. That returns the ticket if nobody is there to
    /// be woken any more.
    fn poll(&self, waiter: &Bound<'_, PyAny>) -> PyResult<Option<f64>> {
        edge("_Ticket.poll", || {
            self.waker.belongs_to(waiter)?;
            let py = waiter.py();
            let limiter = self.limiter.get();
            let trust = self.trust.load(Ordering::Relaxed);
            self.trust.store((2 * trust).min(TRUST.1), Ordering::Relaxed);
            let delay = limiter.look(py, &self.request, self.ticket, self.deadline, trust)?;
            if delay.is_none() {
                self.stage.store(GRANTED, Ordering::Relaxed);
                if self.request.slot {
                    limiter.forked.enters();
                }
            }
            Ok(delay.map(seconds))
        })
    }

    /// The caller has what was granted; assigned, because no signal is handled before the next line.
    #[setter]
    fn set_kept(&self, kept: bool) {
        if kept {
            self.stage.store(DONE, Ordering::Relaxed);
        }
    }

    /// Leaves the line, or gives back what was not kept.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        edge("_Ticket.cancel", || {
            self.give_back(py);
            Ok(())
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.limiter)
    }
}

/// Wakers whose wake failed, for the next call to try again.
#[derive(Default)]
pub(super) struct Missed {
    any: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Missed {
    fn keep(&self, wakers: Vec<Waker>) {
        if !wakers.is_empty() {
            self.wakers.lock().extend(wakers);
            self.any.store(true, Ordering::Release);
        }
    }

    #[inline]
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    #[cold]
    pub(super) fn take(&self) -> Vec<Waker> {
        self.any.store(false, Ordering::Release);
        std::mem::take(&mut self.wakers.lock())
    }
}

impl RateLimiter {
    fn take_ticket(
        &self,
        py: Python<'_>,
        request: &Request,
        deadline: Nanos,
        waker: Waker,
    ) -> PyResult<Ticket> {
        let joined = self.calling(py, |core, out| {
            core.enqueue(request.key.as_ref(), request.cost, request.slot, deadline, waker, out)
        });
        joined.map_err(|decision| self.refusal(py, request, decision))
    }

    /// A place in the line for a coroutine that is yet to run.
    pub(super) fn join(
        slf: &Bound<'_, Self>,
        request: Request,
        deadline: Nanos,
    ) -> PyResult<PyTicket> {
        let waker = Waker::of_coroutine();
        let ticket = slf.get().take_ticket(slf.py(), &request, deadline, waker.clone())?;
        let trust = AtomicU64::new(TRUST.0);
        let stage = AtomicU8::new(WAITING);
        let limiter = slf.clone().unbind();
        Ok(PyTicket { limiter, request, ticket, deadline, waker, trust, stage })
    }

    /// Wakes them, and those who come to stand where nobody was left to be woken: one after the
    /// other, because a loop may be closed with thousands of waiters.
    #[cold]
    pub(super) fn wake(&self, py: Python<'_>, wakers: Vec<Waker>) {
        let mut wakers = VecDeque::from(wakers);
        let mut missed = Vec::new();
        while let Some(waker) = wakers.pop_front() {
            match waker.wake(py) {
                Woken::Yes => {}
                Woken::Not => missed.push(waker),
                Woken::Dead(ticket) => {
                    let mut out = Out::new();
                    ticket.get().withdraw(&self.core, &mut out);
                    wakers.extend(out.take_wakes());
                }
            }
        }
        self.missed.keep(missed);
    }

    fn leave(&self, py: Python<'_>, request: &Request, ticket: Ticket) {
        self.calling(py, |core, out| core.cancel(request.key.as_ref(), ticket, out));
    }

    /// `None`: granted; else how long to sleep, `trust` included. Raises when the time is up.
    fn look(
        &self,
        py: Python<'_>,
        request: &Request,
        ticket: Ticket,
        deadline: Nanos,
        trust: Nanos,
    ) -> PyResult<Option<Nanos>> {
        let key = request.key.as_ref();
        match self.calling(py, |core, out| core.poll(key, ticket, out)) {
            Progress::Granted => Ok(None),
            Progress::Wait(delay) => {
                let mut nap = delay;
                if delay == NEVER {
                    nap = self.core.eta(key, request.cost).saturating_add(trust).min(NEVER - 1);
                }
                let left = deadline.saturating_sub(self.core.clock().now());
                // Nobody stands before the head, so `delay` is how long it takes at least.
                if left > 0 && (delay <= left || delay == NEVER) {
                    return Ok(Some(nap.min(left)));
                }
                self.calling(py, |core, out| core.give_up(key, ticket, out));
                let refused = match self.core.eta(key, request.cost) {
                    // Nobody knows when a slot will be free.
                    0 if request.slot => Decision::refused(Reason::Busy, UNKNOWN),
                    retry_after => Decision::refused(Reason::Limited, retry_after),
                };
                Err(self.refusal(py, request, refused))
            }
            Progress::Never => {
                let decision = Decision::refused(Reason::TooLarge, NEVER);
                Err(self.refusal(py, request, decision))
            }
            Progress::Gone => Err(PyRuntimeError::new_err(
                "this wait belongs to the process before the fork; ask again",
            )),
        }
    }

    pub(super) fn wait_sync(
        &self,
        py: Python<'_>,
        request: &Request,
        deadline: Nanos,
    ) -> PyResult<()> {
        let waker = Waker::of_thread();
        let ticket = self.take_ticket(py, request, deadline, waker.clone())?;
        loop {
            let looked = self.look(py, request, ticket, deadline, TRUST.0);
            let waited = looked.and_then(|delay| match delay {
                None => Ok(true),
                Some(delay) => {
                    py.detach(|| waker.sleep(delay));
                    py.check_signals().map(|()| false)
                }
            });
            match waited {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    self.leave(py, request, ticket);
                    return Err(error);
                }
            }
        }
    }
}
