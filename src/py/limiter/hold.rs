//! What the decorator of `rate_limited` enters around every call.

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::RateLimiter;
use super::request::Request;
use crate::py::awaitable::ready;
use crate::py::edge::edge;

/// A permit and a slot for a ``with`` block. A context manager, because Ctrl-C
/// may come after any call and before the next line, but not between a native
/// ``__enter__`` and its block: a slot taken by a mere call was lost then.
#[pyclass(frozen, name = "_Hold", module = "ferrogate._core")]
pub(crate) struct PyHold {
    pub(super) limiter: Py<RateLimiter>,
    pub(super) cost: Py<PyAny>,
    pub(super) timeout: Option<Py<PyAny>>,
}

#[pymethods]
impl PyHold {
    fn __enter__(&self, py: Python<'_>) -> PyResult<()> {
        edge("_Hold.__enter__", || {
            let timeout = self.timeout.as_ref().map(|timeout| timeout.bind(py));
            let request = Request::new(Some(self.cost.bind(py)), None, true)?;
            self.limiter.get().enter_sync(py, &request, timeout)
        })
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        edge("_Hold.__exit__", || {
            self.limiter.get().release(py);
            Ok(())
        })
    }

    fn __aenter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        edge("_Hold.__aenter__", || {
            let timeout = self.timeout.as_ref().map(|timeout| timeout.bind(py));
            let request = Request::new(Some(self.cost.bind(py)), None, true)?;
            let nothing = py.None().into_bound(py);
            RateLimiter::enter_async(self.limiter.bind(py), &request, timeout, nothing)
        })
    }

    fn __aexit__<'py>(
        &self,
        py: Python<'py>,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("_Hold.__aexit__", || {
            self.limiter.get().release(py);
            ready(py, py.None().into_bound(py))
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.limiter)?;
        visit.call(&self.cost)?;
        visit.call(&self.timeout)
    }
}
