//! What was granted, until it is settled or released.

use std::sync::atomic::{AtomicU8, Ordering};

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::books::Who;
use super::class::Budget;
use super::usd;
use crate::core::budget::Entry;
use crate::core::sync::Mutex;
use crate::py::awaitable::ready;
use crate::py::edge::edge;
use crate::py::llm::nano_usd;
use crate::runtime::generation;

/// Money that is somebody's. One that is dropped is given back.
pub(crate) struct Hold {
    pub(super) budget: Py<Budget>,
    pub(super) who: Who,
    /// What its account has of it.
    pub(super) entry: Entry,
    /// What is reserved; an account that could not be asked has nothing of it yet.
    pub(super) amount: u64,
    /// Whether an account is to be told at its end.
    pub(super) counted: bool,
    /// In a forked child it is the parent's.
    generation: u64,
    ended: bool,
}

impl Hold {
    /// What an account has granted.
    pub(super) fn of_account(budget: Py<Budget>, who: Who, entry: Entry) -> Self {
        let (amount, counted) = (entry.amount, true);
        Self { budget, who, entry, amount, counted, generation: generation(), ended: false }
    }

    /// What no account knows of: at its end it is told all that was spent, or, if not `counted`,
    /// nothing.
    pub(super) fn of_none(budget: Py<Budget>, who: Who, amount: u64, counted: bool) -> Self {
        let entry = Entry::unknown(0);
        Self { budget, who, entry, amount, counted, generation: generation(), ended: false }
    }

    /// What is reserved.
    pub(crate) fn amount(&self) -> u64 {
        self.amount
    }

    /// Ends it at what it really was; `None`: as reserved.
    pub(crate) fn settle(mut self, py: Python<'_>, actual: Option<u64>) {
        self.end(py, Some(actual.unwrap_or(self.amount)));
    }

    /// As if it had not been.
    pub(crate) fn release(mut self, py: Python<'_>) {
        self.end(py, None);
    }

    fn end(&mut self, py: Python<'_>, actual: Option<u64>) {
        self.ended = true;
        if self.generation == generation() {
            Budget::correct(self.budget.bind(py), self, actual);
        }
    }

    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.budget)?;
        visit.call(&self.who.object)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        Python::attach(|py| {
            // It may go while an error passes, and that must stay the current one.
            let passing = PyErr::take(py);
            self.end(py, None);
            if let Some(passing) = passing {
                passing.restore(py);
            }
        });
    }
}

/// What has become of it.
const OPEN: u8 = 0;
const SETTLED: u8 = 1;
const RELEASED: u8 = 2;

/// Dollars that are the caller's until it settles or releases them.
///
/// One that is dropped before is released. As a context manager it is settled as reserved
/// when its block ends, and released when the block raises, unless it has been ended inside.
#[pyclass(frozen, name = "BudgetReservation", module = "ferrogate._core")]
pub(crate) struct PyBudgetReservation {
    amount: u64,
    /// Taken out once, by whoever ends it. Its lock is only taken while attached.
    hold: Mutex<Option<Hold>>,
    ended: AtomicU8,
}

impl PyBudgetReservation {
    pub(super) fn new(hold: Hold) -> Self {
        let amount = hold.amount();
        Self { amount, hold: Mutex::new(Some(hold)), ended: AtomicU8::new(OPEN) }
    }

    fn take(&self, ended: u8) -> Option<Hold> {
        let hold = self.hold.lock().take()?;
        self.ended.store(ended, Ordering::Relaxed);
        Some(hold)
    }

    fn settle_at(&self, py: Python<'_>, actual: Option<u64>) -> bool {
        self.take(SETTLED).map(|hold| hold.settle(py, actual)).is_some()
    }

    fn give_back(&self, py: Python<'_>) -> bool {
        self.take(RELEASED).map(|hold| hold.release(py)).is_some()
    }

    /// The end of a block: as reserved, or, when it raised, given back.
    fn end(&self, py: Python<'_>, raised: &Bound<'_, PyAny>) {
        if raised.is_none() {
            self.settle_at(py, None);
        } else {
            self.give_back(py);
        }
    }
}

#[pymethods]
impl PyBudgetReservation {
    /// The call is done and has cost so many dollars; not given, what was reserved. True if this
    /// ended it.
    ///
    /// Less goes back at once, if its period still runs. More counts from now on, even if it
    /// exceeds the limit.
    ///
    /// Raises:
    ///     ValueError, TypeError: a wrong argument; the reservation stays open.
    #[pyo3(signature = (cost_usd = None))]
    fn settle(&self, py: Python<'_>, cost_usd: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        edge("BudgetReservation.settle", || {
            let actual = cost_usd.map(|cost| nano_usd("cost_usd", cost)).transpose()?;
            Ok(self.settle_at(py, actual))
        })
    }

    /// The call came to nothing and has cost nothing; true if this ended it.
    fn release(&self, py: Python<'_>) -> PyResult<bool> {
        edge("BudgetReservation.release", || Ok(self.give_back(py)))
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        raised: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        edge("BudgetReservation.__exit__", || {
            self.end(py, raised);
            Ok(())
        })
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        edge("BudgetReservation.__aenter__", || ready(slf.py(), slf.clone().into_any()))
    }

    fn __aexit__<'py>(
        &self,
        py: Python<'py>,
        raised: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("BudgetReservation.__aexit__", || {
            self.end(py, raised);
            ready(py, py.None().into_bound(py))
        })
    }

    #[classattr]
    fn granted() -> bool {
        true
    }

    /// Dollars, as reserved.
    #[getter]
    fn cost_usd(&self) -> f64 {
        usd(self.amount)
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

    fn __repr__(&self) -> PyResult<String> {
        edge("BudgetReservation.__repr__", || {
            Ok(format!("<BudgetReservation {}: {} USD>", self.state(), usd(self.amount)))
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.hold.lock().as_ref().map_or(Ok(()), |hold| hold.traverse(&visit))
    }
}
