//! `Reservation`: what was granted, until it is settled or released.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::request::usage;
use super::{Granted, LLMLimiter, Out};
use crate::core::breaker::Spend;
use crate::core::limiter::llm::{Amounts, Dimension, Mark, Usage};
use crate::core::outcome::Outcome;
use crate::core::sync::Mutex;
use crate::py::awaitable::ready;
use crate::py::budget::{Hold, usd};
use crate::py::edge::edge;
use crate::py::outcome;
use crate::py::waiting::Waker;

/// What has become of it.
const OPEN: u8 = 0;
const SETTLED: u8 = 1;
const RELEASED: u8 = 2;

/// Requests, tokens and dollars that are the caller's until it settles or releases them.
///
/// One that is dropped before is released. As a context manager it is settled as reserved
/// when its block ends, and released when the block raises, unless it has been ended inside.
#[pyclass(frozen, name = "Reservation", module = "ferrogate._core")]
pub(crate) struct PyReservation {
    limiter: Py<LLMLimiter>,
    amounts: Amounts,
    mark: Mark,
    /// Taken out once, by whoever ends it; plain data.
    granted: Mutex<Option<Granted>>,
    /// What the limiter's budget has reserved for it, until it is ended. Its lock is only taken
    /// while attached.
    money: Mutex<Option<Hold>>,
    sent: AtomicBool,
    ended: AtomicU8,
    /// What it was settled with; plain data.
    used: Mutex<Usage>,
}

impl PyReservation {
    pub(super) fn new(limiter: Py<LLMLimiter>, granted: Granted, money: Option<Hold>) -> Self {
        Self {
            limiter,
            amounts: *granted.amounts(),
            mark: granted.mark(),
            granted: Mutex::new(Some(granted)),
            money: Mutex::new(money),
            sent: AtomicBool::new(false),
            ended: AtomicU8::new(OPEN),
            used: Mutex::default(),
        }
    }

    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    fn take(&self, ended: u8) -> Option<Granted> {
        let granted = self.granted.lock().take()?;
        self.ended.store(ended, Ordering::Relaxed);
        Some(granted)
    }

    fn settle_with(&self, py: Python<'_>, usage: &Usage, outcome: Outcome) -> bool {
        let Some(granted) = self.take(SETTLED) else { return false };
        *self.used.lock() = *usage;
        let money = self.money.lock().take();
        self.limiter.get().settle(py, granted, usage, outcome);
        if let Some(money) = money {
            money.settle(py, usage.usd);
        }
        true
    }

    fn give_back(&self, py: Python<'_>) -> bool {
        let wakers = self.give_back_quietly();
        let ended = wakers.is_some();
        self.limiter.get().wakes.send(py, wakers.unwrap_or_default());
        ended
    }

    /// Releases it; whom to wake, or `None` if it had ended.
    pub(super) fn give_back_quietly(&self) -> Option<Vec<Waker>> {
        let granted = self.take(RELEASED)?;
        let money = self.money.lock().take();
        // It gives itself back.
        drop(money);
        Some(self.limiter.get().release_quietly(granted, self.sent.load(Ordering::Relaxed)))
    }

    /// It was not sent.
    pub(crate) fn back_out(&self, py: Python<'_>) {
        self.give_back(py);
    }

    /// It was sent, ended so, and nobody knows what it took.
    pub(crate) fn as_reserved(&self, py: Python<'_>, outcome: Outcome) {
        self.settle_with(py, &Usage::default(), outcome);
    }

    /// The other side had too much to do; `for_rate`: it said so.
    fn overloaded(&self, py: Python<'_>, for_rate: bool) {
        let limiter = self.limiter.get();
        limiter.calling(py, |core, out| core.refused(Some(self.mark), for_rate, out));
    }

    /// It was sent, and no answer was made; `overloaded`: the load may be why.
    pub(crate) fn produced_nothing(&self, py: Python<'_>, overloaded: bool) {
        if overloaded {
            self.overloaded(py, false);
        }
        let nothing = Usage { output: Some(0), usd: Some(0), input: None };
        self.settle_with(py, &nothing, Outcome::Failure);
    }

    /// It was sent, and refused before anything was made of it.
    pub(crate) fn sent_and_refused(&self, py: Python<'_>) {
        self.sent.store(true, Ordering::Relaxed);
        if let Some(granted) = self.take(RELEASED) {
            self.limiter.get().refuse(py, granted);
        }
    }

    /// The first token of its answer has come; true if it is the first.
    pub(crate) fn first(&self, py: Python<'_>) -> bool {
        let limiter = self.limiter.get();
        let mut wakers = Vec::new();
        let is_first = {
            let mut granted = self.granted.lock();
            granted.as_mut().is_some_and(|granted| {
                let mut out = Out::new();
                let is_first = limiter.core.first_token(granted, &mut out);
                wakers = out.take_wakes();
                is_first
            })
        };
        limiter.wakes.send(py, wakers);
        is_first
    }

    /// What it stands for.
    pub(crate) fn spend(&self) -> Spend {
        let tokens = self.amounts.get(Dimension::InputTokens);
        Spend { usd: usd(self.amounts.get(Dimension::Usd)), tokens }
    }

    /// Tokens in and out, and billionths of a USD: as settled, or else as reserved.
    pub(crate) fn took(&self) -> (u64, u64, u64) {
        let used = *self.used.lock();
        let reserved = |dimension| self.amounts.get(dimension);
        (
            used.input.unwrap_or_else(|| reserved(Dimension::InputTokens)),
            used.output.unwrap_or_else(|| reserved(Dimension::OutputTokens)),
            used.usd.unwrap_or_else(|| reserved(Dimension::Usd)),
        )
    }

    /// The end of a block: as reserved, or, when it raised, given back.
    fn end(&self, py: Python<'_>, raised: &Bound<'_, PyAny>) {
        if raised.is_none() {
            self.settle_with(py, &Usage::default(), Outcome::Success);
        } else {
            if self.limiter.get().core.finds_itself() {
                let throttled = outcome::of_error(raised) == Outcome::Throttled;
                if throttled || outcome::is_overload(raised) {
                    self.overloaded(py, throttled);
                }
            }
            self.give_back(py);
        }
    }
}

impl Drop for PyReservation {
    fn drop(&mut self) {
        if self.ended.load(Ordering::Relaxed) != OPEN {
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
impl PyReservation {
    /// The call is done: corrects the reservation to what it took; true if this ended it.
    ///
    /// What is not given was as reserved. Under-use is granted to others at once; over-use is a
    /// debt that counts for a minute from now.
    ///
    /// Raises:
    ///     ValueError, TypeError: a wrong argument; the reservation stays open.
    #[pyo3(signature = (*, input_tokens = None, output_tokens = None, cost_usd = None))]
    fn settle(
        &self,
        py: Python<'_>,
        input_tokens: Option<&Bound<'_, PyAny>>,
        output_tokens: Option<&Bound<'_, PyAny>>,
        cost_usd: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        edge("Reservation.settle", || {
            let usage = usage(input_tokens, output_tokens, cost_usd)?;
            Ok(self.settle_with(py, &usage, Outcome::Success))
        })
    }

    /// The first token of a streamed answer has come, for a limiter whose concurrency goes by
    /// that or by the time per token; true the first time. Through a :class:`Guard` a stream's
    /// first item says so.
    fn first_token(&self, py: Python<'_>) -> PyResult<bool> {
        edge("Reservation.first_token", || Ok(self.first(py)))
    }

    /// The call came to nothing: refunds tokens and dollars, and the request itself unless it
    /// was marked as sent; true if this ended it.
    fn release(&self, py: Python<'_>) -> PyResult<bool> {
        edge("Reservation.release", || Ok(self.give_back(py)))
    }

    /// The request is on its way: from now on a release does not refund the request itself,
    /// which the provider has counted.
    fn mark_sent(&self) {
        self.sent.store(true, Ordering::Relaxed);
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _raised: &Bound<'_, PyAny>,
        error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        edge("Reservation.__exit__", || {
            self.end(py, error);
            Ok(())
        })
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        edge("Reservation.__aenter__", || ready(slf.py(), slf.clone().into_any()))
    }

    fn __aexit__<'py>(
        &self,
        py: Python<'py>,
        _raised: &Bound<'_, PyAny>,
        error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("Reservation.__aexit__", || {
            self.end(py, error);
            ready(py, py.None().into_bound(py))
        })
    }

    #[classattr]
    fn granted() -> bool {
        true
    }

    /// Tokens of the prompt, as reserved.
    #[getter]
    fn input_tokens(&self) -> u64 {
        self.amounts.get(Dimension::InputTokens)
    }

    /// Tokens of the answer, as reserved or estimated.
    #[getter]
    fn output_tokens(&self) -> u64 {
        self.amounts.get(Dimension::OutputTokens)
    }

    /// Dollars, as reserved or estimated.
    #[getter]
    fn cost_usd(&self) -> f64 {
        usd(self.amounts.get(Dimension::Usd))
    }

    /// ``"open"``, ``"settled"`` or ``"released"``.
    #[getter]
    fn state(&self) -> &'static str {
        match self.ended.load(Ordering::Relaxed) {
            OPEN => "open",
            SETTLED => "settled",
            _ => "released",
        }
    }

    /// Whether it was marked as sent.
    #[getter]
    fn sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    fn __repr__(&self) -> PyResult<String> {
        edge("Reservation.__repr__", || {
            let Self { amounts, .. } = self;
            let tokens = [Dimension::InputTokens, Dimension::OutputTokens].map(|d| amounts.get(d));
            let money = usd(amounts.get(Dimension::Usd));
            let state = self.state();
            Ok(format!(
                "<Reservation {state}: {} tokens in, {} out, {money} USD>",
                tokens[0], tokens[1]
            ))
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.limiter)?;
        self.money.lock().as_ref().map_or(Ok(()), |money| money.traverse(&visit))
    }
}
