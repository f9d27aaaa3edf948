//! The guard: one native state machine around a call, with optional parts.
//!
//! The order is fallback[ deadline → retry[ breaker → limiter → bulkhead → time limit → call ] ].
//! A breaker that is open refuses before anybody waits for a permit; its probe slot is taken when
//! the permit is there. Whatever ends the call gives back what the attempt holds.

mod around;
mod attempts;
mod blocking;
mod bulkhead;
mod call;
mod class;
mod ending;
mod function;
mod gate;
mod hedge;
mod inner;
mod lines;
mod machine;
mod open;
mod plan;
mod reaching;
mod recording;
mod routed;
mod router;
mod slot;
mod stream;
mod target;
mod timing;
mod waiters;
mod watch;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use self::call::call;
pub(crate) use self::plan::Plan;
use self::target::Target;

pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(function::set_bypass, m)?)?;
    m.add_class::<class::Guard>()?;
    m.add_class::<open::OpenAttempt>()?;
    m.add_class::<function::GuardedFunction>()?;
    m.add_class::<hedge::Hedge>()?;
    m.add_class::<hedge::Rival>()?;
    m.add_class::<recording::PyRecording>()?;
    m.add_class::<routed::PyTaken>()?;
    m.add_class::<stream::GuardedStream>()?;
    m.add_class::<timing::PyAlarm>()?;
    m.add_class::<watch::Watch>()
}

/// `call(function, *args, **kwargs)` of whatever has this plan: a coroutine.
pub(crate) fn call_with<'py>(
    plan: Plan,
    function: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let target = Target::of(function, args, kwargs)?;
    plan.check(function.py(), &target)?;
    call(function.py(), plan, target)
}

/// `call_sync(function, *args, **kwargs)` of whatever has this plan.
pub(crate) fn call_blocking_with(
    plan: Plan,
    function: &Bound<'_, PyAny>,
    args: &Bound<'_, PyTuple>,
    kwargs: Option<&Bound<'_, PyDict>>,
) -> PyResult<Py<PyAny>> {
    let target = Target::of(function, args, kwargs)?;
    plan.check(function.py(), &target)?;
    blocking::call(function.py(), plan, &target)
}

/// Imports what is imported on first use.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    routed::prepare(py)?;
    timing::prepare(py)
}
