//! The limiter of a guard: permits, or a model's requests, tokens and dollars.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3::{PyTraverseError, PyVisit};

use super::target::Target;
use crate::core::breaker::Spend;
use crate::core::clock::{Nanos, secs_from_nanos};
use crate::core::outcome::Outcome;
use crate::py::edge::unraisable;
use crate::py::limiter::{Entry, RateLimiter};
use crate::py::llm::{LLMLimiter, PyReservation};
use crate::py::names;
use crate::py::outcome::{self, TOO_MANY_REQUESTS};

/// What a guard's attempts pass before they may go.
pub(super) enum Gate {
    /// A permit, and a slot if those are bounded.
    Permits(Py<RateLimiter>),
    /// A reservation.
    Tokens(Box<Tokens>),
}

/// A model's limits, and how a call's share of them is found.
pub(super) struct Tokens {
    pub(super) limiter: Py<LLMLimiter>,
    /// From the call's arguments to the keywords of `reserve`.
    estimate: Py<PyAny>,
    /// From a result to the keywords of `settle`.
    usage: Py<PyAny>,
    /// US dollars per call, and per million tokens in and out, where nobody says what a result cost.
    pub(super) rates: Option<[f64; 3]>,
    /// From a result to its cost in USD.
    price: Option<Py<PyAny>>,
}

/// What an attempt has from its gate.
pub(super) enum Pass {
    Permit,
    Reservation(Py<PyReservation>),
}

impl Pass {
    pub(super) fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Permit => Self::Permit,
            Self::Reservation(reservation) => Self::Reservation(reservation.clone_ref(py)),
        }
    }

    /// Tokens in and out, and billionths of a USD, as far as they are known.
    pub(super) fn took(&self) -> (u64, u64, u64) {
        match self {
            Self::Permit => (0, 0, 0),
            Self::Reservation(reservation) => reservation.get().took(),
        }
    }

    /// What was reserved for it, in millionths of a USD; `None` where nobody counts money.
    pub(super) fn micro_usd(&self) -> Option<u64> {
        match self {
            Self::Permit => None,
            Self::Reservation(reservation) => {
                Some((reservation.get().spend().usd * 1e6).round() as u64)
            }
        }
    }
}

impl Gate {
    pub(super) fn new(
        limiter: &Bound<'_, PyAny>,
        estimate: Py<PyAny>,
        usage: Py<PyAny>,
        price: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        if let Ok(limiter) = limiter.cast::<RateLimiter>() {
            return Ok(Self::Permits(limiter.clone().unbind()));
        }
        let limiter = limiter.cast::<LLMLimiter>()?.clone().unbind();
        Ok(Self::Tokens(Box::new(Tokens { limiter, estimate, usage, rates: None, price })))
    }

    /// Asks for a pass; what is to be awaited becomes it by [`Gate::passed`].
    #[inline]
    pub(super) fn enter<'py>(
        &self,
        py: Python<'py>,
        target: &Target,
        within: Option<Nanos>,
    ) -> PyResult<Entry<'py>> {
        match self {
            Self::Permits(limiter) => RateLimiter::enter_in_place(limiter.bind(py), within),
            Self::Tokens(tokens) => {
                let asked = tokens.asked(py, target, within)?;
                let limiter = tokens.limiter.bind(py);
                limiter.call_method(names::reserve(py), (), Some(&asked)).map(Entry::Wait)
            }
        }
    }

    /// [`Gate::enter`], waiting in this thread.
    pub(super) fn enter_blocking(
        &self,
        py: Python<'_>,
        target: &Target,
        within: Option<Nanos>,
    ) -> PyResult<Pass> {
        match self {
            Self::Permits(limiter) => {
                limiter.get().enter_blocking(py, within)?;
                Ok(Pass::Permit)
            }
            Self::Tokens(tokens) => {
                let asked = tokens.asked(py, target, within)?;
                let limiter = tokens.limiter.bind(py);
                let reservation = limiter.call_method(names::reserve_sync(py), (), Some(&asked))?;
                Ok(Pass::Reservation(reservation.cast_into()?.unbind()))
            }
        }
    }

    /// What was awaited has come.
    pub(super) fn passed(&self, py: Python<'_>, came: Py<PyAny>) -> PyResult<Pass> {
        match self {
            Self::Permits(_) => Ok(Pass::Permit),
            Self::Tokens(_) => Ok(Pass::Reservation(came.into_bound(py).cast_into()?.unbind())),
        }
    }

    /// The attempt did not begin.
    pub(super) fn give_back(&self, py: Python<'_>, pass: Pass) {
        match (self, pass) {
            (Self::Permits(limiter), Pass::Permit) => limiter.get().release(py),
            (_, Pass::Reservation(reservation)) => reservation.get().back_out(py),
            (Self::Tokens(_), Pass::Permit) => {}
        }
    }

    /// The attempt has ended: its slot goes back, its reservation becomes what it took.
    ///
    /// What is not known counts as reserved: the provider counted the request when it came. One
    /// that failed has produced nothing; one that met HTTP 429 was not counted at all, but for
    /// the request.
    pub(super) fn end(
        &self,
        py: Python<'_>,
        pass: Pass,
        outcome: Outcome,
        overloaded: bool,
        result: Option<&Py<PyAny>>,
    ) -> Option<Spend> {
        let (Self::Tokens(tokens), Pass::Reservation(reservation)) = (self, &pass) else {
            if let (Self::Permits(limiter), Pass::Permit) = (self, &pass) {
                limiter.get().release(py);
            }
            return None;
        };
        let reservation = reservation.bind(py);
        let settled = match outcome {
            Outcome::Success => tokens.used(py, result).and_then(|used| {
                reservation.call_method(names::settle(py), (), Some(&used)).map(drop)
            }),
            Outcome::Failure => {
                let spend = reservation.get().spend();
                reservation.get().produced_nothing(py, overloaded);
                return Some(spend);
            }
            Outcome::Throttled => {
                reservation.get().sent_and_refused(py);
                return None;
            }
            Outcome::Neutral => Ok(()),
        };
        if let Err(error) = settled {
            // The call itself has its result.
            unraisable(error, tokens.usage.bind(py));
        }
        reservation.get().as_reserved(py, outcome);
        None
    }

    /// Learns from what an attempt brought: the provider's headers, or a wish to be left alone,
    /// which holds once for all who share the limiter.
    pub(super) fn observe(
        &self,
        py: Python<'_>,
        pass: &Pass,
        outcome: Outcome,
        said: &Bound<'_, PyAny>,
    ) {
        let (Self::Tokens(tokens), Pass::Reservation(reservation)) = (self, pass) else { return };
        if let Err(error) = tokens.observe(py, reservation, outcome, said) {
            unraisable(error, said);
        }
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Self::Permits(limiter) => visit.call(limiter),
            Self::Tokens(tokens) => {
                visit.call(&tokens.limiter)?;
                visit.call(&tokens.estimate)?;
                visit.call(&tokens.usage)?;
                visit.call(&tokens.price)
            }
        }
    }
}

impl Tokens {
    fn observe(
        &self,
        py: Python<'_>,
        reservation: &Py<PyReservation>,
        outcome: Outcome,
        said: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let Some(headers) = outcome::headers(said)? else {
            let wait =
                if outcome == Outcome::Throttled { outcome::retry_after(said) } else { None };
            if let Some(wait) = wait {
                self.limiter.get().pause_for(py, wait);
            }
            return Ok(());
        };
        let keywords = PyDict::new(py);
        keywords.set_item(names::reservation(py), reservation)?;
        let status = outcome::status(said).or(match outcome {
            Outcome::Throttled => Some(TOO_MANY_REQUESTS),
            _ => None,
        });
        self.limiter.call_method(py, names::observe(py), (headers, status), Some(&keywords))?;
        Ok(())
    }

    /// The keywords of `reserve`.
    fn asked<'py>(
        &self,
        py: Python<'py>,
        target: &Target,
        within: Option<Nanos>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let asked = target.call_other(py, &self.estimate)?;
        let asked = if let Ok(keywords) = asked.cast::<PyDict>() {
            keywords.copy()?
        } else {
            let keywords = PyDict::new(py);
            keywords.set_item(names::input_tokens(py), asked)?;
            keywords
        };
        if let Some(within) = within.map(secs_from_nanos) {
            let own: Option<f64> =
                asked.get_item(names::timeout(py))?.and_then(|own| own.extract().ok());
            if own.is_none_or(|own| within < own) {
                asked.set_item(names::timeout(py), within)?;
            }
        }
        Ok(asked)
    }

    /// The keywords of `settle`.
    fn used<'py>(
        &self,
        py: Python<'py>,
        result: Option<&Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let Some(result) = result else { return Ok(PyDict::new(py)) };
        let used = self.usage.bind(py).call1((result,))?;
        let used = if used.is_none() { PyDict::new(py) } else { used.cast::<PyDict>()?.copy()? };
        if let Some(price) = &self.price {
            match price.bind(py).call1((result,)) {
                Ok(cost) if cost.is_none() => {}
                Ok(cost) => used.set_item(names::cost_usd(py), cost)?,
                // What it took is known all the same.
                Err(error) if error.is_instance_of::<PyException>(py) => {
                    unraisable(error, price.bind(py));
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(rates) = self.rates
            && !used.contains(names::cost_usd(py))?
            && let Some(cost) = cost_by(rates, &used)?
        {
            used.set_item(names::cost_usd(py), cost)?;
        }
        Ok(used)
    }
}

/// What a call has cost; `None` where that goes by tokens which nobody knows.
fn cost_by([call, input, output]: [f64; 3], used: &Bound<'_, PyDict>) -> PyResult<Option<f64>> {
    let py = used.py();
    let mut cost = call;
    for (rate, name) in [(input, names::input_tokens(py)), (output, names::output_tokens(py))] {
        if rate > 0.0 {
            let Some(tokens) = used.get_item(name)? else { return Ok(None) };
            cost += rate * tokens.extract::<f64>()? / TOKENS_PER_RATE;
        }
    }
    Ok(Some(cost))
}

/// Prices are for so many.
const TOKENS_PER_RATE: f64 = 1e6;
