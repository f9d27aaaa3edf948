//! `CircuitBreaker`: convert, ask the core, and call whom a step between two states concerns.
//!
//! Its state may be shared with other processes ([`remote`]).
//!
//! The core answers under its lock; callbacks and the classifier run after it, in the thread of
//! the call that brought the step about.

mod blocks;
mod callbacks;
mod class;
mod judge;
mod remote;
mod settings;

use pyo3::prelude::*;

pub(crate) use self::class::CircuitBreaker;

/// Imports what is imported on first use.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    callbacks::prepare(py)?;
    class::prepare(py)
}

pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<CircuitBreaker>()?;
    m.add_function(wrap_pyfunction!(settings::check_config, m)?)
}
