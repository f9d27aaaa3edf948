//! One target of a guard with its parts, and what passes between those and an attempt.

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::gate::{Gate, Pass};
use super::lines::{Entered, Refused, Why};
use crate::core::breaker::Permit;
use crate::core::clock::Nanos;
use crate::core::outcome::Outcome;
use crate::core::route::Candidate;
use crate::py::breaker::CircuitBreaker;
use crate::py::limiter::RateLimiter;
use crate::py::llm::Asked;

/// As ``ferrogate.Guard`` hands a target over: itself, its name, its breaker, limiter and bulkhead,
/// its weight, and what a call costs there: USD per call, per million tokens in and out.
pub(super) type Given<'py> = (
    Py<PyAny>,
    String,
    Option<Py<CircuitBreaker>>,
    Option<Bound<'py, PyAny>>,
    Option<Bound<'py, PyAny>>,
    u32,
    [f64; 3],
);

/// USD per call in billionths.
const NANO_PER_USD: f64 = 1e9;
/// USD per million tokens in billionths per token.
const NANO_PER_TOKEN: f64 = 1e3;

/// One target, and its parts.
pub(super) struct Slot {
    /// What the function is given.
    pub(super) target: Py<PyAny>,
    pub(super) name: String,
    pub(super) breaker: Option<Py<CircuitBreaker>>,
    pub(super) gate: Option<Gate>,
    pub(super) bulkhead: Option<Gate>,
    prices: [f64; 3],
    /// Until when it asked to be left alone, on the guard's clock.
    pub(super) until: AtomicU64,
    /// Attempts that ended, in the order of [`Outcome::ALL`].
    outcomes: [AtomicU64; Outcome::ALL.len()],
}

impl Slot {
    pub(super) fn new(
        given: Given<'_>,
        gate: impl Fn(&Bound<'_, PyAny>) -> PyResult<Gate>,
    ) -> PyResult<Self> {
        let (target, name, breaker, limiter, bulkhead, _, prices) = given;
        let mut limits = limiter.as_ref().map(&gate).transpose()?;
        if let Some(Gate::Tokens(tokens)) = &mut limits
            && prices.iter().any(|&price| price > 0.0)
        {
            tokens.rates = Some(prices);
        }
        Ok(Self {
            target,
            name,
            breaker,
            gate: limits,
            bulkhead: bulkhead.as_ref().map(&gate).transpose()?,
            prices,
            until: AtomicU64::new(0),
            outcomes: Default::default(),
        })
    }

    /// Whether anybody has to know a call's tokens.
    pub(super) fn counts_tokens(&self, by_cost: bool) -> bool {
        let priced = self.prices[1..].iter().any(|&price| price > 0.0);
        matches!(self.gate, Some(Gate::Tokens(_))) || by_cost && priced
    }

    /// An attempt has ended here.
    pub(super) fn count(&self, outcome: Outcome) {
        let known = Outcome::ALL.iter().position(|known| *known == outcome);
        if let Some(count) = known.and_then(|known| self.outcomes.get(known)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Attempts that ended, in the order of [`Outcome::ALL`].
    pub(super) fn outcomes(&self) -> [u64; Outcome::ALL.len()] {
        self.outcomes.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.target)?;
        visit.call(&self.breaker)?;
        let mut gates = [&self.gate, &self.bulkhead].into_iter().flatten();
        gates.try_for_each(|gate| gate.traverse(visit))
    }

    pub(super) fn bulkhead(&self) -> Option<&Py<RateLimiter>> {
        match &self.bulkhead {
            Some(Gate::Permits(limiter)) => Some(limiter),
            _ => None,
        }
    }

    /// One of its two lines.
    pub(super) fn line(&self, which: Which) -> Option<&Gate> {
        match which {
            Which::Limiter => self.gate.as_ref(),
            Which::Bulkhead => self.bulkhead.as_ref(),
        }
    }

    /// What the call would take here, in billionths of a USD.
    pub(super) fn cost(&self, ask: &Asked) -> u64 {
        let [call, input, output] = self.prices;
        // As many as the limiter has learned, else as many as the prompt has.
        let answer = match &self.gate {
            Some(Gate::Tokens(tokens)) => tokens.limiter.get().output_tokens(ask),
            _ => ask.output.or(ask.max_output).unwrap_or(ask.input),
        };
        let tokens = input * ask.input as f64 + output * answer as f64;
        (call * NANO_PER_USD + tokens * NANO_PER_TOKEN).round() as u64
    }

    /// What is asked of its limits: what it costs here, if nobody has said.
    pub(super) fn ask(&self, ask: &Asked) -> Asked {
        let known = self.prices.iter().any(|&price| price > 0.0);
        let usd = ask.usd.or_else(|| known.then(|| self.cost(ask)));
        Asked { usd, ..*ask }
    }
}

/// Where an attempt waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Limiter,
    Bulkhead,
}

/// What an attempt wants, and what its call has met so far.
pub(super) struct Wish {
    pub(super) ask: Asked,
    /// Where the call has failed, and until when it does not go there again.
    pub(super) failed: Vec<(usize, Nanos)>,
    /// Where another call of the same attempt is under way.
    pub(super) beside: Option<usize>,
    /// On the guard's clock.
    pub(super) deadline: Nanos,
}

/// What an attempt was given of a target.
pub(super) struct Taken {
    pub(super) at: usize,
    pub(super) pass: Option<Entered>,
    pub(super) bulkhead: Option<Entered>,
    pub(super) permit: Option<Permit>,
}

impl Taken {
    /// Of a target whose line has come so far, or of one that is yet to be asked.
    pub(super) fn held(at: usize, held: Option<(Which, Pass)>) -> Self {
        let mut taken = Self { at, pass: None, bulkhead: None, permit: None };
        match held {
            Some((Which::Limiter, pass)) => taken.pass = Some((pass, None)),
            Some((Which::Bulkhead, pass)) => taken.bulkhead = Some((pass, None)),
            None => {}
        }
        taken
    }
}

/// What each target says to one attempt.
pub(super) struct Looks {
    pub(super) candidates: Vec<Candidate>,
    pub(super) why: Vec<(Why, Option<Which>)>,
}

impl Looks {
    pub(super) fn note(&mut self, at: usize, refused: Refused, which: Option<Which>) {
        let candidate = &mut self.candidates[at];
        let after = refused.after.max(1);
        if after > candidate.available_in {
            candidate.available_in = after;
            self.why[at] = (refused.why, which);
        }
    }
}
