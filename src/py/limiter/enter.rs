//! Going in: granted at once, or a place in the line.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::request::Request;
use super::{Core, Out, RateLimiter};
use crate::core::clock::{NEVER, Nanos};
use crate::core::limiter::adaptive::Call;
use crate::core::limiter::{Decision, Limit, Reason};
use crate::core::outcome::Outcome;
use crate::py::awaitable::{Unclaimed, ready_or_back};
use crate::py::convert::duration_or_zero;
use crate::py::waiting::{Waker, exceeded, place};

/// Gives back what a granted, never awaited `acquire` has spent.
fn give_back(limiter: &Bound<'_, PyAny>, spent: &Unclaimed) {
    let Ok(limiter) = limiter.cast::<RateLimiter>() else { return };
    let slot = spent.slot && limiter.get().forked.leaves();
    limiter.get().calling(limiter.py(), |core, out| {
        core.undo(spent.key.as_deref(), spent.at, spent.cost, slot, out);
    });
}

/// What asking for a permit and a slot came to.
pub(crate) enum Entry<'py> {
    /// They are the caller's, to be given back by [`RateLimiter::release`].
    Granted,
    /// They are once this has been awaited.
    Wait(Bound<'py, PyAny>),
}

impl RateLimiter {
    /// A permit and, if slots are bounded, a slot, within so many nanoseconds.
    #[inline]
    pub(crate) fn enter_in_place<'py>(
        slf: &Bound<'py, Self>,
        within: Option<Nanos>,
    ) -> PyResult<Entry<'py>> {
        let (py, this) = (slf.py(), slf.get());
        let request = Request::ENTER;
        let decision = this.try_enter(py, &request);
        if decision.granted {
            this.forked.enters();
            return Ok(Entry::Granted);
        }
        if decision.is_never() {
            this.core.count_rejection();
            return Err(this.refusal(py, &request, decision));
        }
        let ticket = Self::join(slf, request, this.until(within), py.None())?;
        Ok(Entry::Wait(place(py, Ok(ticket))?))
    }

    /// [`RateLimiter::enter_in_place`], waiting in this thread.
    pub(crate) fn enter_blocking(&self, py: Python<'_>, within: Option<Nanos>) -> PyResult<()> {
        let request = Request::ENTER;
        if !self.try_enter(py, &request).granted {
            self.wait_sync(py, &request, self.until(within))?;
        }
        self.forked.enters();
        Ok(())
    }

    fn until(&self, within: Option<Nanos>) -> Nanos {
        within.map_or(NEVER, |within| self.core.clock().now().saturating_add(within))
    }

    /// Calls the core, then wakes whom it says, with no lock held.
    #[inline]
    pub(super) fn calling<T>(&self, py: Python<'_>, body: impl FnOnce(&Core, &mut Out) -> T) -> T {
        let mut out = Out::new();
        let answer = body(&self.core, &mut out);
        let mut wakers = out.take_wakes();
        if let Some(store) = &self.store {
            store.called(&mut wakers);
        }
        self.wakes.send(py, wakers);
        if let Some(store) = &self.store {
            store.log(py, self.name.as_deref().unwrap_or_default());
        }
        answer
    }

    fn try_enter(&self, py: Python<'_>, request: &Request) -> Decision {
        self.calling(py, |core, out| {
            core.try_enter(request.key.as_ref(), request.cost, request.slot, out)
        })
    }

    pub(super) fn enter_async<'py>(
        slf: &Bound<'py, Self>,
        request: &Request,
        timeout: Option<&Bound<'py, PyAny>>,
        result: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let this = slf.get();
        // A wrong timeout is an error whether or not it is needed.
        let deadline = this.deadline(timeout)?;
        let (decision, at) = this.calling(py, |core, out| {
            core.try_enter_at(request.key.as_ref(), request.cost, request.slot, out)
        });
        if decision.granted {
            let Request { key, cost, slot } = *request;
            if slot {
                this.forked.enters();
            }
            let key = key.map(Box::new);
            let spent = Unclaimed { give_back, at, cost, slot, key };
            return ready_or_back(py, result, slf.clone().into_any(), spent);
        }
        if decision.is_never() {
            this.core.count_rejection();
            return Err(this.refusal(py, request, decision));
        }
        place(py, Self::join(slf, *request, deadline, result.unbind()))
    }

    pub(super) fn enter_sync(
        &self,
        py: Python<'_>,
        request: &Request,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let deadline = self.deadline(timeout)?;
        let decision = self.try_enter(py, request);
        if !decision.granted {
            self.wait_sync(py, request, deadline)?;
        }
        if request.slot {
            self.forked.enters();
        }
        Ok(())
    }

    /// Gives the slot back.
    #[inline]
    pub(crate) fn release(&self, py: Python<'_>) {
        if self.forked.leaves() {
            self.calling(py, Core::release_slot);
        }
    }

    /// A call begins that holds a slot; `None` where nothing is learned from it.
    #[inline]
    pub(crate) fn begins(&self) -> Option<Call> {
        self.core.begins()
    }

    /// The first token of a call's answer has come: whom to [`RateLimiter::wake`].
    pub(crate) fn first_token_quietly(&self, call: &mut Call) -> Vec<Waker> {
        let mut out = Out::new();
        self.core.first_token(call, &mut out);
        out.take_wakes()
    }

    /// Wakes whom the core has said.
    pub(crate) fn wake(&self, py: Python<'_>, wakers: Vec<Waker>) {
        self.wakes.send(py, wakers);
    }

    /// [`RateLimiter::release`] of a call that has ended so.
    #[inline]
    pub(crate) fn release_after(&self, py: Python<'_>, call: Option<Call>, outcome: Outcome) {
        let Some(call) = call else { return self.release(py) };
        if self.forked.leaves() {
            self.calling(py, |core, out| core.end_call(&call, outcome, out));
        }
    }

    pub(super) fn deadline(&self, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Nanos> {
        let Some(timeout) = timeout else { return Ok(NEVER) };
        let timeout = duration_or_zero("timeout", timeout)?;
        Ok(self.core.clock().now().saturating_add(timeout))
    }

    /// Logs why the store does not answer, once, if that is what a refusal is for.
    pub(super) fn says_why(&self, py: Python<'_>, decision: Decision) {
        if decision.reason == Reason::StoreUnavailable
            && let Some(store) = &self.store
        {
            store.refused(py, self.name.as_deref().unwrap_or_default());
        }
    }

    /// The exception for a request that was refused for good.
    #[cold]
    pub(super) fn refusal(&self, py: Python<'_>, request: &Request, decision: Decision) -> PyErr {
        let limit =
            decision.limit.or_else(|| self.core.binding(request.key.as_ref(), request.cost));
        if decision.reason == Reason::TooLarge {
            let limit = limit.map_or_else(String::new, |limit| limit.to_string());
            let cost = request.cost;
            return PyValueError::new_err(format!(
                "cost: expected at most what \"{limit}\" allows at all, got {cost}"
            ));
        }
        self.says_why(py, decision);
        let limit = limit.map(|limit: Limit| limit.to_string());
        let reason = decision.reason.as_str();
        exceeded(py, self.name.as_deref(), limit, decision.retry_after, reason)
    }
}
