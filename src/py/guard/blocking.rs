//! A guarded call of a plain function, in the calling thread.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::attempts::Attempts;
use super::inner::am_await;
use super::open::Opens;
use super::plan::Plan;
use super::target::Target;
use super::timing;
use crate::py::names;

/// Gives back what an attempt holds, whatever ends it.
struct Running<'py> {
    py: Python<'py>,
    attempts: Attempts,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.attempts.release(self.py, crate::core::outcome::Outcome::Neutral);
    }
}

/// Calls it until it succeeds or nothing more is to be tried.
pub(crate) fn call(py: Python<'_>, plan: Plan, target: &Target) -> PyResult<Py<PyAny>> {
    run(py, plan, target, None)
}

/// [`call`], but an attempt that brings a result has not ended with that.
pub(super) fn open(
    py: Python<'_>,
    plan: Plan,
    target: &Target,
    opens: &Opens,
) -> PyResult<Py<PyAny>> {
    run(py, plan, target, Some(opens))
}

fn run(py: Python<'_>, plan: Plan, target: &Target, opens: Option<&Opens>) -> PyResult<Py<PyAny>> {
    let mut running = Running { py, attempts: Attempts::new(plan) };
    let attempts = &mut running.attempts;
    match opens {
        Some(Opens { once: true, .. }) => attempts.begin_once(),
        _ => attempts.begin(),
    }
    loop {
        let result = match attempts.admit_blocking(py, target) {
            // Without its deadline, as coroutines have it: a plain function may be left for other
            // greenlets' code in its middle, and what it had set would be theirs.
            Ok(()) => attempts.call(py, target),
            Err(error) => return fall_back(py, attempts, error, target),
        };
        // A mistake of the caller's says nothing about the other side.
        let result = match result {
            Ok(value) => Ok(plain(target, value)?),
            Err(error) => Err(error),
        };
        if let (Some(opens), Ok(_)) = (opens, &result) {
            opens.attempt.get().keep(py, attempts.hand_over(py));
            return result;
        }
        let again = match attempts.ended(py, &result, true) {
            Ok(again) => again,
            Err(error) => return fall_back(py, attempts, error, target),
        };
        match (again, result) {
            (None, Ok(value)) => return Ok(value),
            (None, Err(error)) => return fall_back(py, attempts, error, target),
            (Some(0), _) => {}
            (Some(pause), _) => timing::pause_sync(py, attempts.parts().clock_object(), pause)?,
        }
    }
}

fn fall_back(
    py: Python<'_>,
    attempts: &mut Attempts,
    error: PyErr,
    target: &Target,
) -> PyResult<Py<PyAny>> {
    attempts.fall_back(py, error).and_then(|value| plain(target, value))
}

/// Refuses what is to be awaited: its work has not begun, so the call says nothing yet.
fn plain(target: &Target, value: Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
    let py = value.py();
    // By the slot: looking for the attribute cost most of a call that has none.
    if am_await(&value).is_none() {
        return Ok(value.unbind());
    }
    if let Some(close) = value.getattr_opt(names::close(py))? {
        close.call0()?;
    }
    Err(PyTypeError::new_err(format!(
        "expected a plain function, and {} returned something to be awaited; guard an `async def`, \
         or await `call(...)` instead of `call_sync(...)`",
        target.function().bind(py).repr()?
    )))
}
