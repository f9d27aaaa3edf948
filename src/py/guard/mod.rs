//! The guard: one native state machine around a call, with optional parts.

mod attempts;
mod blocking;
mod call;
mod class;
mod function;
mod inner;
mod plan;
mod target;
mod timing;

use pyo3::prelude::*;

pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<class::Guard>()?;
    m.add_class::<function::GuardedFunction>()?;
    m.add_class::<timing::Alarm>()
}

/// Imports what is imported on first use.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    timing::prepare(py)
}
