//! An attempt that outlives the call that began it: an answer's body is read after its head has
//! been returned, and what becomes of that is part of how the attempt ended.

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::attempts::Attempts;
use crate::core::outcome::Outcome;
use crate::core::sync::Mutex;
use crate::py::edge::edge;

/// Holds what an attempt holds until it is told how that ended. One that goes without having been
/// told was abandoned, which says nothing about the other side.
#[pyclass(frozen, name = "_OpenAttempt", module = "ferrogate._core")]
pub(crate) struct OpenAttempt(Mutex<Option<Attempts>>);

/// Who ends an attempt that has brought a result.
pub(super) struct Opens {
    pub(super) attempt: Py<OpenAttempt>,
    /// There is one attempt, whatever the policy says.
    pub(super) once: bool,
}

impl OpenAttempt {
    /// From here on the attempt is this object's to end.
    pub(super) fn keep(&self, py: Python<'_>, attempts: Attempts) {
        let before = self.0.lock().replace(attempts);
        if let Some(mut before) = before {
            before.release(py, Outcome::Neutral);
        }
    }

    fn take(&self) -> Option<Attempts> {
        self.0.lock().take()
    }
}

impl Drop for OpenAttempt {
    fn drop(&mut self) {
        let Some(mut attempts) = self.take() else { return };
        Python::attach(|py| {
            // It may go while an error passes, and that must stay the current one.
            let passing = PyErr::take(py);
            attempts.release(py, Outcome::Neutral);
            drop(attempts);
            if let Some(passing) = passing {
                passing.restore(py);
            }
        });
    }
}

#[pymethods]
impl OpenAttempt {
    #[new]
    fn new() -> PyResult<Self> {
        edge("_OpenAttempt", || Ok(Self(Mutex::new(None))))
    }

    /// It ended, with a result or an error: classified, told to all parts, and what it held goes
    /// back. Once; later calls do nothing.
    #[pyo3(signature = (result, error=None))]
    fn end(
        &self,
        py: Python<'_>,
        result: Py<PyAny>,
        error: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        edge("_OpenAttempt.end", || {
            let Some(mut attempts) = self.take() else { return Ok(()) };
            let result = error.map_or(Ok(result), |error| Err(PyErr::from_value(error)));
            attempts.ended(py, &result, false).map(|_| ())
        })
    }

    /// The first token of its answer has come.
    fn first_token(&self, py: Python<'_>) -> PyResult<()> {
        edge("_OpenAttempt.first_token", || {
            let first = self.0.lock().as_mut().map(|attempts| attempts.first_token(py));
            if let Some(first) = first {
                first.tell(py);
            }
            Ok(())
        })
    }

    /// Nobody wants to know how it ends: what it held goes back.
    fn abandon(&self, py: Python<'_>) -> PyResult<()> {
        edge("_OpenAttempt.abandon", || {
            if let Some(mut attempts) = self.take() {
                attempts.release(py, Outcome::Neutral);
            }
            Ok(())
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match &*self.0.lock() {
            Some(attempts) => attempts.traverse(&|held| visit.call(held)),
            None => Ok(()),
        }
    }
}
