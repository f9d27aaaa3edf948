//! The guard: one native state machine around a call, with optional parts.
//!
//! The order is fallback[ deadline → retry[ breaker → limiter → bulkhead → time limit → call ] ].
//! A breaker that is open refuses before anybody waits for a permit; its probe slot is taken when
//! the permit is there. Whatever ends the call gives back what the attempt holds.

mod attempts;
mod blocking;
mod call;
mod class;
mod ending;
mod function;
mod gate;
mod hedge;
mod inner;
mod machine;
mod open;
mod plan;
mod stream;
mod target;
mod timing;
mod watch;

use pyo3::prelude::*;

pub(crate) use self::blocking::call as call_blocking;
pub(crate) use self::call::call;
pub(crate) use self::plan::Plan;
pub(crate) use self::target::Target;

pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(function::set_bypass, m)?)?;
    m.add_class::<class::Guard>()?;
    m.add_class::<open::OpenAttempt>()?;
    m.add_class::<function::GuardedFunction>()?;
    m.add_class::<hedge::Hedge>()?;
    m.add_class::<hedge::Rival>()?;
    m.add_class::<stream::GuardedStream>()?;
    m.add_class::<timing::PyAlarm>()?;
    m.add_class::<watch::Watch>()
}

/// Imports what is imported on first use.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    timing::prepare(py)
}
