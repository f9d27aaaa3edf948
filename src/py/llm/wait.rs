//! Waiting in the line of an `LLMLimiter`.

use std::cell::Cell;

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::reservation::PyReservation;
use super::{Asked, Core, Granted, LLMLimiter, Out};
use crate::core::clock::{NEVER, Nanos};
use crate::core::key::Key;
use crate::core::limiter::Ticket;
use crate::core::limiter::llm::Looked;
use crate::core::sync::Mutex;
use crate::py::budget::Hold;
use crate::py::limiter::gone;
use crate::py::waiting::{PyTicket, Standing, Waker, wait_here};

/// A coroutine's place.
struct Place {
    limiter: Py<LLMLimiter>,
    tenant: Option<Key>,
    ticket: Ticket,
    deadline: Nanos,
    /// What the limiter's budget has reserved for it, until that is granted; gives itself back.
    money: Mutex<Option<Hold>>,
    /// What was granted, until the caller has it. Its lock is only taken while attached.
    reservation: Mutex<Option<Py<PyReservation>>>,
}

impl Standing for Place {
    fn look(&self, py: Python<'_>, trust: Nanos) -> PyResult<Option<Nanos>> {
        let limiter = self.limiter.get();
        match limiter.look(py, self.tenant, self.ticket, self.deadline, trust)? {
            Err(nap) => Ok(Some(nap)),
            Ok(granted) => {
                let limiter = self.limiter.clone_ref(py);
                let money = self.money.lock().take();
                let reservation = Py::new(py, PyReservation::new(limiter, granted, money))?;
                let before = self.reservation.lock().replace(reservation);
                drop(before);
                Ok(None)
            }
        }
    }

    fn result(&self, py: Python<'_>) -> Py<PyAny> {
        let reservation = self.reservation.lock().as_ref().map(|known| known.clone_ref(py));
        reservation.map_or_else(|| py.None(), Py::into_any)
    }

    fn leave(&self) -> Vec<Waker> {
        let mut out = Out::new();
        self.limiter.get().core.cancel(self.tenant, self.ticket, &mut out);
        let money = self.money.lock().take();
        drop(money);
        out.take_wakes()
    }

    fn give_back(&self, _: Python<'_>) -> Vec<Waker> {
        let reservation = self.reservation.lock().take();
        reservation.and_then(|known| known.get().give_back_quietly()).unwrap_or_default()
    }

    fn kept(&self) {
        let kept = self.reservation.lock().take();
        drop(kept);
    }

    fn wake(&self, py: Python<'_>, wakers: Vec<Waker>) {
        self.limiter.get().wakes.send(py, wakers);
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.limiter)?;
        if let Some(money) = &*self.money.lock() {
            money.traverse(visit)?;
        }
        visit.call(&*self.reservation.lock())
    }
}

impl LLMLimiter {
    fn take_ticket(
        &self,
        py: Python<'_>,
        ask: &Asked,
        deadline: Nanos,
        waker: Waker,
    ) -> PyResult<Ticket> {
        let joined = self.calling(py, |core, out| core.enqueue(ask, deadline, waker, out));
        joined.map_err(|verdict| self.refusal(py, &verdict))
    }

    /// A place in the line for a coroutine that is yet to run.
    pub(super) fn join(
        slf: &Bound<'_, Self>,
        ask: &Asked,
        deadline: Nanos,
        money: Option<Hold>,
    ) -> PyResult<PyTicket> {
        let waker = Waker::of_coroutine();
        let ticket = slf.get().take_ticket(slf.py(), ask, deadline, waker.clone())?;
        let limiter = slf.clone().unbind();
        let (money, reservation) = (Mutex::new(money), Mutex::new(None));
        let place = Place { limiter, tenant: ask.tenant, ticket, deadline, money, reservation };
        Ok(PyTicket::new(Box::new(place), waker))
    }

    /// What was granted, or how long to sleep, `trust` included. Raises when the time is up.
    fn look(
        &self,
        py: Python<'_>,
        tenant: Option<Key>,
        ticket: Ticket,
        deadline: Nanos,
        trust: Nanos,
    ) -> PyResult<Result<Granted, Nanos>> {
        match self.calling(py, |core, out| core.poll(tenant, ticket, out)) {
            Looked::Granted(granted) => Ok(Ok(granted)),
            Looked::Wait { nap, sure } => {
                let nap = if sure { nap } else { nap.saturating_add(trust) };
                let left = match deadline {
                    NEVER => NEVER,
                    deadline => deadline.saturating_sub(self.core.clock().now()),
                };
                Ok(Err(nap.min(left).min(NEVER - 1)))
            }
            Looked::Refused(verdict) => Err(self.refusal(py, &verdict)),
            Looked::Gone => Err(gone()),
        }
    }

    pub(super) fn wait_sync(
        &self,
        py: Python<'_>,
        ask: &Asked,
        deadline: Nanos,
    ) -> PyResult<Granted> {
        let waker = Waker::of_thread();
        let ticket = self.take_ticket(py, ask, deadline, waker.clone())?;
        let granted = Cell::new(None);
        let look = |trust| {
            Ok(match self.look(py, ask.tenant, ticket, deadline, trust)? {
                Err(nap) => Some(nap),
                Ok(found) => {
                    granted.set(Some(found));
                    None
                }
            })
        };
        let leave = || {
            self.calling(py, |core: &Core, out| core.cancel(ask.tenant, ticket, out));
        };
        wait_here(py, &waker, look, leave)?;
        granted.take().ok_or_else(gone)
    }
}
