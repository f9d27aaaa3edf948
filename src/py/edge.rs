//! The FFI edge: the one function that every exported body goes through.
//!
//! `PyO3` turns a panic into `PanicException`, a `BaseException` that escapes an
//! agent's `except Exception` and ends the process. Here it becomes
//! [`InternalError`], so the call fails and the agent lives.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyKeyboardInterrupt};
use pyo3::prelude::*;

create_exception!(ferrogate, FerrogateError, PyException, "Base class of ferrogate's own errors.");
create_exception!(
    ferrogate,
    InternalError,
    FerrogateError,
    "A defect in ferrogate itself: native code panicked. The component stays usable; please report it."
);

/// Runs an exported body; a panic inside it becomes [`InternalError`].
///
/// `name` is the Python-visible name of the callable, for the message and for
/// the failpoints of the test build.
#[inline]
pub(crate) fn edge<T>(name: &'static str, body: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    // State is only changed under locks that do not poison, in critical
    // sections that cannot unwind half-way through a structural change.
    match catch_unwind(AssertUnwindSafe(|| {
        failpoint::hit(name);
        body()
    })) {
        Ok(result) => result,
        Err(payload) => Err(internal_error(name, payload)),
    }
}

#[cold]
fn internal_error(name: &str, payload: Box<dyn Any + Send>) -> PyErr {
    let what = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown panic");
    let error = InternalError::new_err(format!("{name}: {what}"));
    // A payload may own something whose drop panics again; a leak is the lesser evil.
    std::mem::forget(payload);
    error
}

/// What a callback raised whose caller has an answer to bring home: it goes where Python sends
/// the errors of ``__del__``; Ctrl-C is put off to the next check of signals.
pub(crate) fn unraisable(error: PyErr, callback: &Bound<'_, PyAny>) {
    let py = callback.py();
    if error.is_instance_of::<PyKeyboardInterrupt>(py) {
        // SAFETY: attached; only sets a flag.
        unsafe { pyo3::ffi::PyErr_SetInterrupt() };
    } else {
        error.write_unraisable(py, Some(callback));
    }
}

#[cfg(not(feature = "failpoints"))]
mod failpoint {
    #[inline]
    pub(super) fn hit(_: &'static str) {}
}

#[cfg(feature = "failpoints")]
pub(crate) mod failpoint {
    //! Lets a test make one exported callable panic by name.
    use crate::core::sync::Mutex;
    use std::collections::BTreeSet;

    use pyo3::prelude::*;

    struct State {
        armed: Option<String>,
        seen: BTreeSet<&'static str>,
    }

    static STATE: Mutex<State> = Mutex::new(State { armed: None, seen: BTreeSet::new() });

    pub(super) fn hit(name: &'static str) {
        let mut state = STATE.lock();
        state.seen.insert(name);
        if state.armed.as_deref() == Some(name) {
            state.armed = None;
            drop(state);
            #[allow(clippy::panic, reason = "what a failpoint is for")]
            {
                panic!("injected by a failpoint");
            }
        }
    }

    /// Makes the next call of the exported callable `name` panic; `None` disarms.
    #[pyfunction]
    #[pyo3(signature = (name))]
    pub(crate) fn _arm_failpoint(name: Option<String>) {
        STATE.lock().armed = name;
    }

    /// The names of all callables that went through the edge so far.
    #[pyfunction]
    pub(crate) fn _seen_failpoints() -> Vec<&'static str> {
        STATE.lock().seen.iter().copied().collect()
    }
}
