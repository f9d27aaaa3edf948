//! Waiting in the line of a `RateLimiter`.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::request::Request;
use super::{Core, Out, RateLimiter};
use crate::core::clock::{NEVER, Nanos};
use crate::core::limiter::{Decision, Progress, Reason, Ticket, UNKNOWN};
use crate::py::waiting::{PyTicket, Standing, Waker, wait_here};

/// A coroutine's place.
struct Place {
    limiter: Py<RateLimiter>,
    request: Request,
    ticket: Ticket,
    deadline: Nanos,
    result: Py<PyAny>,
}

impl Place {
    fn calling(&self, body: impl FnOnce(&Core, &mut Out)) -> Vec<Waker> {
        let mut out = Out::new();
        body(&self.limiter.get().core, &mut out);
        out.take_wakes()
    }
}

impl Standing for Place {
    fn look(&self, py: Python<'_>, trust: Nanos) -> PyResult<Option<Nanos>> {
        let limiter = self.limiter.get();
        if let Some(store) = &limiter.store {
            // Before the look: what comes in between rings.
            store.watch_here(py)?;
        }
        let delay = limiter.look(py, &self.request, self.ticket, self.deadline, trust)?;
        if delay.is_none() && self.request.slot {
            limiter.forked.enters();
        }
        Ok(delay)
    }

    fn result(&self, py: Python<'_>) -> Py<PyAny> {
        self.result.clone_ref(py)
    }

    fn leave(&self) -> Vec<Waker> {
        self.calling(|core, out| {
            core.cancel(self.request.key.as_ref(), self.ticket, out);
        })
    }

    fn give_back(&self, _: Python<'_>) -> Vec<Waker> {
        // The permits are spent; their windows get over it, the slot would not.
        if self.request.slot && self.limiter.get().forked.leaves() {
            return self.calling(|core, out| {
                core.release_slot(out);
            });
        }
        Vec::new()
    }

    fn wake(&self, py: Python<'_>, mut wakers: Vec<Waker>) {
        if let Some(store) = &self.limiter.get().store {
            store.called(&mut wakers);
        }
        self.limiter.get().wakes.send(py, wakers);
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.limiter)?;
        visit.call(&self.result)
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

    /// A place in the line for a coroutine that is yet to run; it will return `result`.
    pub(super) fn join(
        slf: &Bound<'_, Self>,
        request: Request,
        deadline: Nanos,
        result: Py<PyAny>,
    ) -> PyResult<PyTicket> {
        let waker = Waker::of_coroutine();
        let ticket = slf.get().take_ticket(slf.py(), &request, deadline, waker.clone())?;
        let limiter = slf.clone().unbind();
        let place = Place { limiter, request, ticket, deadline, result };
        Ok(PyTicket::new(Box::new(place), waker))
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
                    retry_after => Decision::refused(self.core.why_refused(), retry_after),
                };
                Err(self.refusal(py, request, refused))
            }
            Progress::Never => {
                let decision = Decision::refused(Reason::TooLarge, NEVER);
                Err(self.refusal(py, request, decision))
            }
            Progress::Gone => Err(gone()),
        }
    }

    pub(super) fn wait_sync(
        &self,
        py: Python<'_>,
        request: &Request,
        deadline: Nanos,
    ) -> PyResult<()> {
        if let Some(store) = &self.store {
            store.check()?;
        }
        let waker = Waker::of_thread();
        let ticket = self.take_ticket(py, request, deadline, waker.clone())?;
        let look = |trust| self.look(py, request, ticket, deadline, trust);
        let leave = || {
            self.calling(py, |core, out| core.cancel(request.key.as_ref(), ticket, out));
        };
        wait_here(py, &waker, look, leave)
    }
}

/// The error of a wait that a fork has cut off.
#[cold]
pub(crate) fn gone() -> PyErr {
    PyRuntimeError::new_err("this wait belongs to the process before the fork; ask again")
}
