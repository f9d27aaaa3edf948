//! What a guard writes down of each attempt, for `dry_run`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::attempts::Attempts;
use super::gate::Pass;
use crate::core::clock::{Nanos, nanos_from_secs, secs_from_nanos};
use crate::core::limiter::llm::NANO_USD;
use crate::core::outcome::Outcome;
use crate::core::recording::{Attempt, Recording};
use crate::py::edge::edge;

/// Seconds, or dollars, that a record may hold: 300 years.
const LONGEST: f64 = 9e9;

/// How an attempt that was refused is told.
const REFUSED: &str = "refused";

/// The native half of ``ferrogate.Recording``.
#[pyclass(frozen, subclass, name = "Recording", module = "ferrogate._core")]
pub(crate) struct PyRecording(Recording);

/// One attempt as Python sees it: call, attempt, at, waited, took, outcome, tokens in and out, USD.
type Row = (u64, u32, f64, f64, f64, String, u64, u64, f64);

#[pymethods]
impl PyRecording {
    #[new]
    #[pyo3(signature = (max_records))]
    fn new(max_records: usize) -> PyResult<Self> {
        edge("Recording", || Ok(Self(Recording::new(max_records))))
    }

    #[getter]
    fn max_records(&self) -> usize {
        self.0.most()
    }

    /// Attempts that made room for newer ones.
    #[getter]
    fn dropped(&self) -> u64 {
        self.0.dropped()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// Forgets all of them.
    fn clear(&self) -> PyResult<()> {
        edge("Recording.clear", || {
            self.0.clear();
            Ok(())
        })
    }

    fn _rows(&self) -> PyResult<Vec<Row>> {
        edge("Recording._rows", || Ok(self.0.attempts().iter().map(row).collect()))
    }

    fn _push(&self, row: Row) -> PyResult<()> {
        edge("Recording._push", || {
            self.0.push(attempt(row)?);
            Ok(())
        })
    }
}

fn row(attempt: &Attempt) -> Row {
    let usd = attempt.nano_usd as f64 / NANO_USD as f64;
    (
        attempt.call,
        attempt.number,
        secs_from_nanos(attempt.at),
        secs_from_nanos(attempt.waited),
        secs_from_nanos(attempt.took),
        attempt.outcome.map_or(REFUSED, Outcome::name).to_owned(),
        attempt.input_tokens,
        attempt.output_tokens,
        usd,
    )
}

fn attempt(row: Row) -> PyResult<Attempt> {
    let (call, number, at, waited, took, outcome, input_tokens, output_tokens, usd) = row;
    let outcome = match outcome.as_str() {
        REFUSED => None,
        name => Some(Outcome::named(name).ok_or_else(|| {
            PyValueError::new_err(format!(
                "outcome: expected success, failure, throttled, neutral or refused, got {name:?}"
            ))
        })?),
    };
    for (name, seconds) in [("at", at), ("waited", waited), ("took", took)] {
        if !(0.0..=LONGEST).contains(&seconds) {
            return Err(PyValueError::new_err(format!(
                "{name}: expected seconds from 0 to {LONGEST}, got {seconds}"
            )));
        }
    }
    if !(0.0..=LONGEST).contains(&usd) {
        return Err(PyValueError::new_err(format!(
            "cost_usd: expected US dollars from 0 to {LONGEST}, got {usd}"
        )));
    }
    Ok(Attempt {
        call,
        number,
        at: nanos_from_secs(at),
        waited: nanos_from_secs(waited),
        took: nanos_from_secs(took),
        outcome,
        input_tokens,
        output_tokens,
        nano_usd: (usd * NANO_USD as f64).round() as u64,
    })
}

/// What is known of an attempt before its end.
#[derive(Clone, Copy, Default)]
pub(super) struct Noted {
    call: u64,
    number: u32,
    /// When it first asked for a permit.
    asked: Nanos,
    began: Nanos,
}

impl Attempts {
    /// The call begins, and is written down if somebody wants that.
    #[inline]
    pub(super) fn note_call(&mut self) {
        if let Some(recording) = self.parts().recording {
            let call = recording.get().0.next_call();
            self.noted = Some(Box::new(Noted { call, ..Noted::default() }));
        }
    }

    /// An attempt asks to be let through.
    #[inline]
    pub(super) fn note_asked(&mut self) {
        if self.noted.is_some() {
            let now = self.parts().clock().now();
            if let Some(noted) = &mut self.noted {
                noted.asked = now;
                noted.number = noted.number.saturating_add(1);
            }
        }
    }

    /// It is let through.
    #[inline]
    pub(super) fn note_begun(&mut self) {
        if self.noted.is_some() {
            let now = self.parts().clock().now();
            if let Some(noted) = &mut self.noted {
                noted.began = now;
            }
        }
    }

    /// It was refused.
    pub(super) fn note_refused(&self) {
        if let (Some(noted), Some(recording)) = (&self.noted, self.parts().recording) {
            let now = self.parts().clock().now();
            recording.get().0.push(Attempt {
                at: now,
                waited: now.saturating_sub(noted.asked),
                ..noted.attempt(None)
            });
        }
    }

    /// Who will know what it has taken, once it is settled.
    #[inline]
    pub(super) fn to_be_noted(&self, py: Python<'_>) -> Option<Pass> {
        self.noted.as_ref().and(self.pass.as_ref()).map(|pass| pass.clone_ref(py))
    }

    /// It has ended.
    #[cold]
    pub(super) fn note_ended(&self, outcome: Outcome, pass: Option<&Pass>) {
        if let (Some(noted), Some(recording)) = (&self.noted, self.parts().recording) {
            let (input_tokens, output_tokens, nano_usd) = pass.map_or((0, 0, 0), Pass::took);
            recording.get().0.push(Attempt {
                took: self.parts().clock().now().saturating_sub(noted.began),
                input_tokens,
                output_tokens,
                nano_usd,
                ..noted.attempt(Some(outcome))
            });
        }
    }
}

impl Noted {
    fn attempt(&self, outcome: Option<Outcome>) -> Attempt {
        Attempt {
            call: self.call,
            number: self.number,
            at: self.began,
            waited: self.began.saturating_sub(self.asked),
            took: 0,
            outcome,
            input_tokens: 0,
            output_tokens: 0,
            nano_usd: 0,
        }
    }
}
