//! An attempt's slot in the bulkhead, and what slots that find their own number learn from it.

use pyo3::prelude::*;

use super::attempts::{Attempts, parts_of};
use super::gate::Pass;
use crate::core::outcome::Outcome;
use crate::py::limiter::RateLimiter;
use crate::py::llm::PyReservation;
use crate::py::waiting::Waker;

/// Who is to know that a stream's first item has come, to be told with no lock held.
#[must_use]
pub(super) struct FirstToken {
    reservation: Option<Py<PyReservation>>,
    slots: Option<(Py<RateLimiter>, Vec<Waker>)>,
}

impl FirstToken {
    /// Tells them.
    pub(super) fn tell(self, py: Python<'_>) {
        if let Some(reservation) = self.reservation {
            reservation.get().first(py);
        }
        if let Some((bulkhead, wakers)) = self.slots {
            bulkhead.get().wake(py, wakers);
        }
    }
}

impl Attempts {
    /// A stream's first item has come: what limits that find themselves are to know.
    pub(super) fn first_token(&mut self, py: Python<'_>) -> FirstToken {
        let reservation = match &self.pass {
            Some(Pass::Reservation(reservation)) => Some(reservation.clone_ref(py)),
            _ => None,
        };
        let bulkhead = parts_of(&self.plan, self.routed.as_deref()).bulkhead;
        let slots = match (&mut self.slot, bulkhead) {
            (Some(call), Some(bulkhead)) => {
                let wakers = bulkhead.get().first_token_quietly(call);
                Some((bulkhead.clone_ref(py), wakers))
            }
            _ => None,
        };
        FirstToken { reservation, slots }
    }

    pub(super) fn give_back_bulkhead(&mut self, py: Python<'_>, outcome: Outcome) {
        let call = self.slot.take();
        if std::mem::take(&mut self.bulkhead)
            && let Some(bulkhead) = self.parts().bulkhead
        {
            bulkhead.get().release_after(py, call, outcome);
        }
    }
}
