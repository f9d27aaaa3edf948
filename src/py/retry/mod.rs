//! `RetryPolicy` and `RetryBudget`. Who waits and calls again is whoever drives the call.

mod arguments;
mod budget;
mod note;
mod policy;
mod rules;

use pyo3::prelude::*;

pub(crate) use self::budget::PyRetryBudget;
pub(crate) use self::note::note;
pub(crate) use self::policy::PyRetryPolicy;

pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyRetryBudget>()?;
    m.add_class::<PyRetryPolicy>()
}
