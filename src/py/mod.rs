//! The bindings: convert, call the core, convert back.
#![allow(clippy::doc_markdown, reason = "doc comments here are docstrings that Python users read")]

mod awaitable;
mod breaker;
mod budget;
mod cache;
mod cached;
mod codec;
mod convert;
mod edge;
mod forced_unwind;
#[cfg(fuzzing)]
pub mod fuzzed;
mod guard;
mod health;
mod intern;
mod key;
mod limiter;
mod llm;
mod lookalike;
mod metrics;
mod names;
mod outcome;
mod retry;
mod service;
mod stack;
mod waiting;

use pyo3::panic::PanicException;
use pyo3::prelude::*;
use pyo3::types::{PySequence, PyString};

#[pymodule(gil_used = true)]
#[pyo3(name = "_core")]
fn core_module(m: &Bound<'_, PyModule>) -> PyResult<()> {
    forced_unwind::hang_instead();
    let py = m.py();
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add("FerrogateError", py.get_type::<edge::FerrogateError>())?;
    m.add("InternalError", py.get_type::<edge::InternalError>())?;
    #[cfg(feature = "failpoints")]
    {
        m.add_function(wrap_pyfunction!(edge::failpoint::_arm_failpoint, m)?)?;
        m.add_function(wrap_pyfunction!(edge::failpoint::_seen_failpoints, m)?)?;
    }
    m.add_class::<convert::PyManualClock>()?;
    m.add_class::<cache::Cache>()?;
    m.add_class::<cache::Failure>()?;
    m.add_class::<cache::Flight>()?;
    m.add_class::<cache::Freshness>()?;
    m.add_class::<cache::Lookup>()?;
    m.add_class::<cached::CachedFunction>()?;
    m.add_class::<cached::CachedMethod>()?;
    m.add_function(wrap_pyfunction!(key::cache_key, m)?)?;
    m.add_function(wrap_pyfunction!(after_fork_in_child, m)?)?;
    m.add_function(wrap_pyfunction!(after_fork_in_parent, m)?)?;
    m.add_function(wrap_pyfunction!(before_fork, m)?)?;
    m.add_function(wrap_pyfunction!(shutdown, m)?)?;
    m.add_function(wrap_pyfunction!(cache::check_tags, m)?)?;
    m.add_function(wrap_pyfunction!(cache::seed, m)?)?;
    m.add_function(wrap_pyfunction!(outcome::outcome_of, m)?)?;
    awaitable::register(m)?;
    breaker::register(m)?;
    budget::register(m)?;
    guard::register(m)?;
    health::register(m)?;
    limiter::register(m)?;
    llm::register(m)?;
    metrics::register(m)?;
    retry::register(m)?;
    service::register(m)?;
    Ok(())
}

/// Registered with ``os.register_at_fork``: finishes what may only be begun once.
///
/// A thread that is in the middle of it stays in the parent, and whoever needs it
/// in the child waits for that thread for ever; `intern!` and `PyOnceLock` detach
/// while they initialise, so a fork can come in between. Measured: 5 of 12 runs hung
/// in which eight threads met their first unusual key when the process forked.
#[pyfunction]
#[pyo3(name = "_before_fork")]
fn before_fork(py: Python<'_>) -> PyResult<()> {
    let prepared = edge::edge("_before_fork", || {
        names::prepare(py);
        pyo3_own(py)?;
        breaker::prepare(py)?;
        budget::prepare(py)?;
        cache::prepare(py)?;
        guard::prepare(py)?;
        health::prepare(py)?;
        key::prepare(py)?;
        limiter::prepare(py)?;
        metrics::prepare(py)?;
        service::prepare(py)?;
        waiting::prepare(py)
    });
    // Last, as what ran before may use the runtime, and whatever became of it.
    crate::runtime::lifecycle::before_fork();
    prepared
}

/// Registered with ``os.register_at_fork``: goes on with what the fork interrupted.
#[pyfunction]
#[pyo3(name = "_after_fork_in_parent")]
fn after_fork_in_parent() {
    crate::runtime::lifecycle::after_fork_in_parent();
}

/// Registered with ``atexit``: ends what runs in threads of ours within ``patience`` seconds;
/// every later request raises RuntimeError.
#[pyfunction]
#[pyo3(name = "_shutdown")]
fn shutdown(py: Python<'_>, patience: f64) -> PyResult<()> {
    edge::edge("_shutdown", || {
        let patience = std::time::Duration::from_secs_f64(patience.clamp(0.0, 3600.0));
        py.detach(|| crate::runtime::lifecycle::shutdown(patience));
        Ok(())
    })
}

/// What PyO3 itself makes on first use, as far as our calls reach it.
fn pyo3_own(py: Python<'_>) -> PyResult<()> {
    py.get_type::<PanicException>();
    py.get_type::<PySequence>();
    py.get_type::<PyString>().module()?;
    // An argument that it cannot convert; the error is what makes the name of its note.
    let refused = wrap_pyfunction!(cache::seed, py)?.call1((py.None(),));
    debug_assert!(refused.is_err());
    Ok(())
}

/// Registered with ``os.register_at_fork``: what the parent's threads were doing is void here.
#[pyfunction]
#[pyo3(name = "_after_fork_in_child")]
fn after_fork_in_child() {
    crate::runtime::lifecycle::after_fork_in_child();
}
