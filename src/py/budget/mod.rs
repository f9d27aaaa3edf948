//! `Budget`: convert, ask the account, hand over the answer.
//!
//! An account in memory is asked under a lock of its table; one in a file in a transaction,
//! detached. Python code (the calendar, once an hour; callbacks) runs before and after.

mod asking;
mod books;
mod class;
mod hold;
mod news;
mod refused;

use pyo3::prelude::*;

pub(crate) use self::class::Budget;
pub(crate) use self::hold::Hold;
use self::hold::PyBudgetReservation;
pub(crate) use self::refused::Refused;
use crate::core::limiter::llm::NANO_USD;

/// Imports what is imported on first use.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    news::prepare(py)?;
    refused::prepare(py)
}

pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Budget>()?;
    m.add_class::<PyBudgetReservation>()?;
    m.add_function(wrap_pyfunction!(class::bypass_budgets, m)?)
}

/// Dollars of their billionths.
pub(crate) fn usd(nano: u64) -> f64 {
    nano as f64 / NANO_USD as f64
}
