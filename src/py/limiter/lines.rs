//! A permit for somebody who may as well go elsewhere: now or not at all, or from a line that is
//! left as soon as something else turns up.

use pyo3::prelude::*;

use super::request::Request;
use super::{Out, RateLimiter};
use crate::core::clock::{NEVER, Nanos};
use crate::core::limiter::{Decision, Progress, Ticket};
use crate::py::waiting::Waker;

impl RateLimiter {
    /// A permit and, if slots are bounded, a slot; when they were granted, for
    /// [`RateLimiter::undo_entry`].
    ///
    /// # Errors
    /// The refusal, which is not counted.
    pub(crate) fn enter_now(&self, py: Python<'_>) -> Result<Nanos, Decision> {
        let Request { key, cost, slot } = Request::ENTER;
        let (decision, at) =
            self.calling(py, |core, out| core.try_enter_at(key.as_ref(), cost, slot, out));
        if !decision.granted {
            return Err(decision);
        }
        self.forked.enters();
        Ok(at)
    }

    /// Gives back what [`RateLimiter::enter_now`] granted, as if it had never been asked.
    pub(crate) fn undo_entry(&self, py: Python<'_>, at: Nanos) {
        let Request { key, cost, slot } = Request::ENTER;
        let slot = slot && self.forked.leaves();
        self.calling(py, |core, out| core.undo(key.as_ref(), at, cost, slot, out));
    }

    /// Joins the line, for as long as it takes.
    ///
    /// # Errors
    /// The refusal, when there is no place in it.
    pub(crate) fn stand(&self, py: Python<'_>, waker: Waker) -> Result<Ticket, Decision> {
        let Request { key, cost, slot } = Request::ENTER;
        self.calling(py, |core, out| core.enqueue(key.as_ref(), cost, slot, NEVER, waker, out))
    }

    /// What has become of a place in the line.
    pub(crate) fn stands(&self, py: Python<'_>, ticket: Ticket) -> PyResult<Progress> {
        if let Some(store) = &self.store {
            // Before the look: what comes in between rings.
            store.watch_here(py)?;
        }
        let progress = self.calling(py, |core, out| core.poll(None, ticket, out));
        if progress == Progress::Granted {
            self.forked.enters();
        }
        Ok(progress)
    }

    /// A lower bound of the time until a newcomer is granted a permit.
    pub(crate) fn wait_at_least(&self) -> Nanos {
        self.core.eta(None, Request::ENTER.cost)
    }

    /// Leaves the line; whom to wake.
    pub(crate) fn step_out(&self, ticket: Ticket) -> Vec<Waker> {
        let mut out = Out::new();
        self.core.cancel(None, ticket, &mut out);
        let mut wakers = out.take_wakes();
        if let Some(store) = &self.store {
            store.called(&mut wakers);
        }
        wakers
    }
}
