//! A guard's limiter, asked by somebody who may as well go elsewhere.

use pyo3::prelude::*;

use super::gate::{Gate, Pass};
use crate::core::breaker::State;
use crate::core::clock::{NEVER, Nanos};
use crate::core::limiter::llm::Verdict;
use crate::core::limiter::{Decision, Progress, Reason, Ticket};
use crate::py::limiter::gone;
use crate::py::llm::{Asked, LLMLimiter, Stood as Reserved};
use crate::py::waiting::Waker;

/// What keeps an attempt from a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Nothing that is known.
    Nothing,
    /// Its breaker.
    Breaker(State),
    /// Its limiter, or its bulkhead.
    Line(Reason),
    /// It asked to be left alone.
    Pause,
    /// The call has failed there, and a retry policy waits before it goes there again.
    Backoff,
}

impl Why {
    /// For the error of a call that finds no target.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Nothing => "available",
            Self::Breaker(State::HalfOpen) => "circuit breaker half-open, its probes under way",
            Self::Breaker(State::ForcedOpen) => "circuit breaker forced open",
            Self::Breaker(State::Closed) => "circuit breaker recovering",
            Self::Breaker(_) => "circuit breaker open",
            Self::Line(reason) => reason.as_str(),
            Self::Pause => "asked for patience",
            Self::Backoff => "failed in this call",
        }
    }

    /// Somebody else's end decides when it is over, so that nobody knows.
    pub(super) fn is_vague(self) -> bool {
        self.is_at_most() || matches!(self, Self::Line(Reason::Queued | Reason::Busy))
    }

    /// It is over by then, and may be at any time before.
    pub(super) fn is_at_most(self) -> bool {
        matches!(self, Self::Breaker(State::HalfOpen))
    }
}

/// A target that cannot take an attempt now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    /// For how long at least; [`NEVER`]: for ever.
    pub(super) after: Nanos,
    pub(super) why: Why,
}

impl From<Decision> for Refused {
    fn from(decision: Decision) -> Self {
        Self { after: decision.retry_after, why: Why::Line(decision.reason) }
    }
}

impl From<Verdict> for Refused {
    fn from(verdict: Verdict) -> Self {
        Self { after: verdict.retry_after, why: Why::Line(verdict.reason) }
    }
}

/// What has become of a place in a line.
pub(super) enum Stood {
    Granted(Pass),
    /// How long it takes at least, and whether it is this one's turn then.
    Waits {
        nap: Nanos,
        sure: bool,
    },
    Refused(Refused),
}

/// What was granted at once, and when, for those who can take that back.
pub(super) type Entered = (Pass, Option<Nanos>);

impl Gate {
    /// A pass, now or not at all.
    pub(super) fn enter_now(
        &self,
        py: Python<'_>,
        ask: &Asked,
    ) -> PyResult<Result<Entered, Refused>> {
        Ok(match self {
            Self::Permits(limiter) => match limiter.get().enter_now(py) {
                Ok(at) => Ok((Pass::Permit, Some(at))),
                Err(decision) => Err(decision.into()),
            },
            Self::Tokens(tokens) => match LLMLimiter::reserve_now(tokens.limiter.bind(py), ask)? {
                Ok(reservation) => Ok((Pass::Reservation(reservation), None)),
                Err(verdict) => Err(verdict.into()),
            },
        })
    }

    /// Gives back what came to nothing.
    pub(super) fn undo(&self, py: Python<'_>, (pass, at): Entered) {
        match (self, at) {
            (Self::Permits(limiter), Some(at)) => limiter.get().undo_entry(py, at),
            _ => self.give_back(py, pass),
        }
    }

    /// Joins the line.
    pub(super) fn join(
        &self,
        py: Python<'_>,
        ask: &Asked,
        waker: Waker,
    ) -> Result<Ticket, Refused> {
        match self {
            Self::Permits(limiter) => limiter.get().stand(py, waker).map_err(Into::into),
            Self::Tokens(tokens) => tokens.limiter.get().stand(py, ask, waker).map_err(Into::into),
        }
    }

    /// What has become of a place in the line.
    pub(super) fn stands(&self, py: Python<'_>, ask: &Asked, ticket: Ticket) -> PyResult<Stood> {
        match self {
            Self::Permits(limiter) => match limiter.get().stands(py, ticket)? {
                Progress::Granted => Ok(Stood::Granted(Pass::Permit)),
                Progress::Wait(NEVER) => {
                    Ok(Stood::Waits { nap: limiter.get().wait_at_least(), sure: false })
                }
                Progress::Wait(nap) => Ok(Stood::Waits { nap, sure: true }),
                Progress::Never => {
                    Ok(Stood::Refused(Refused { after: NEVER, why: Why::Line(Reason::TooLarge) }))
                }
                Progress::Gone => Err(gone()),
            },
            Self::Tokens(tokens) => {
                Ok(match LLMLimiter::stands(tokens.limiter.bind(py), ask.tenant, ticket)? {
                    Reserved::Granted(reservation) => {
                        Stood::Granted(Pass::Reservation(reservation))
                    }
                    Reserved::Waits { nap, sure } => Stood::Waits { nap, sure },
                    Reserved::Refused(verdict) => Stood::Refused(verdict.into()),
                })
            }
        }
    }

    /// Leaves the line; whom to wake.
    pub(super) fn step_out(&self, ask: &Asked, ticket: Ticket) -> Vec<Waker> {
        match self {
            Self::Permits(limiter) => limiter.get().step_out(ticket),
            Self::Tokens(tokens) => tokens.limiter.get().step_out(ask.tenant, ticket),
        }
    }
}
