//! Waiting: tickets for coroutines, short detached sleeps for threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use pyo3::PyTraverseError;
use pyo3::PyVisit;
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyWeakrefMethods, PyWeakrefReference};

use super::{RateLimiter, Request, seconds};
use crate::core::clock::{NEVER, Nanos, SECOND};
use crate::core::limiter::{Decision, Progress, Reason, Ticket, UNKNOWN};
use crate::core::sync::Bell;
use crate::py::edge::{edge, unraisable};

/// Between two looks for a pending Ctrl-C.
const SIGNAL_SLICE: Duration = Duration::from_millis(50);

/// How long past its earliest possible turn a waiter trusts those before it to
/// take theirs; doubles with every look in vain, up to the second figure. A
/// head whose loop was closed wakes nobody, and this finds it.
const TRUST: (Nanos, Nanos) = (SECOND / 10, 60 * SECOND);

/// Makes what is made on first use.
pub(super) fn prepare(py: Python<'_>) {
    name(py);
}

/// The method of a coroutine's `Waiter`.
fn name(py: Python<'_>) -> &Bound<'_, PyString> {
    intern!(py, "wake")
}

/// Wakes one waiter; cloning and dropping it never touches a Python object's
/// count while a lock is held (clones share one, the last leaves by the outbox).
#[derive(Clone)]
pub(super) struct Waker(Arc<Sleeper>);

enum Sleeper {
    /// A coroutine's `Waiter`, weakly: the line must not keep a task of a dead
    /// loop alive, whose end returns the ticket.
    Task(Py<PyWeakrefReference>),
    /// A thread.
    Thread(Bell),
}

impl Waker {
    pub(super) fn of_task(waiter: &Bound<'_, PyAny>) -> PyResult<Self> {
        let reference = PyWeakrefReference::new(waiter)?;
        Ok(Self(Arc::new(Sleeper::Task(reference.unbind()))))
    }

    fn of_thread() -> Self {
        Self(Arc::new(Sleeper::Thread(Bell::of_this_thread())))
    }

    /// Never fails: a wake that is lost leaves somebody asleep, and the caller has an answer to
    /// bring home.
    pub(super) fn wake(&self, py: Python<'_>) {
        match &*self.0 {
            Sleeper::Task(reference) => {
                let Some(waiter) = reference.bind(py).upgrade() else { return };
                let Err(error) = waiter.call_method0(name(py)) else { return };
                // `wake` may be called again; this time nothing is pending.
                if let Err(error) = waiter.call_method0(name(py)) {
                    error.write_unraisable(py, Some(&waiter));
                }
                unraisable(error, &waiter);
            }
            Sleeper::Thread(bell) => bell.ring(),
        }
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
    /// Grows from the first figure of [`TRUST`] to the second.
    trust: AtomicU64,
    stage: AtomicU8,
}

impl PyTicket {
    fn give_back(&self, py: Python<'_>) {
        match self.stage.swap(DONE, Ordering::Relaxed) {
            WAITING => self.limiter.get().leave(py, &self.request, self.ticket),
            // The permits are spent; their windows get over it, the slot would not.
            GRANTED if self.request.slot => self.limiter.get().release(py),
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
    /// ``None``: granted. Else the seconds after which to look again, if not woken before.
    fn poll(&self, py: Python<'_>) -> PyResult<Option<f64>> {
        edge("_Ticket.poll", || {
            let limiter = self.limiter.get();
            let trust = self.trust.load(Ordering::Relaxed);
            self.trust.store((2 * trust).min(TRUST.1), Ordering::Relaxed);
            let delay = limiter.look(py, &self.request, self.ticket, self.deadline, trust)?;
            if delay.is_none() {
                self.stage.store(GRANTED, Ordering::Relaxed);
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

    pub(super) fn join(
        slf: &Bound<'_, Self>,
        request: Request,
        deadline: Nanos,
        waker: Waker,
    ) -> PyResult<PyTicket> {
        let ticket = slf.get().take_ticket(slf.py(), &request, deadline, waker)?;
        let trust = AtomicU64::new(TRUST.0);
        let stage = AtomicU8::new(WAITING);
        Ok(PyTicket { limiter: slf.clone().unbind(), request, ticket, deadline, trust, stage })
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
