//! An awaitable of Python's that is driven in place.

use std::ptr;

use pyo3::exceptions::{PyGeneratorExit, PyStopIteration};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::py::awaitable::{Sent, Step};
use crate::py::names;

/// What makes an object awaitable: its type's `__await__`.
#[inline]
pub(super) fn am_await(object: &Bound<'_, PyAny>) -> Option<ffi::unaryfunc> {
    // SAFETY: attached; a live object, whose type has the slots of every CPython type.
    unsafe {
        let methods = (*ffi::Py_TYPE(object.as_ptr())).tp_as_async;
        if methods.is_null() { None } else { (*methods).am_await }
    }
}

/// What `__await__` of an awaitable gives.
pub(super) struct Inner(Py<PyAny>);

impl Inner {
    /// The iterator of an awaitable; the object itself if it is none.
    #[inline]
    pub(super) fn of(object: Bound<'_, PyAny>) -> PyResult<Result<Self, Bound<'_, PyAny>>> {
        // SAFETY: attached; a live object, and the slot is of its type.
        unsafe {
            if ffi::PyCoro_CheckExact(object.as_ptr()) != 0 {
                return Ok(Ok(Self(object.unbind())));
            }
            if let Some(am_await) = am_await(&object) {
                let iterator = am_await(object.as_ptr());
                let iterator = Bound::from_owned_ptr_or_err(object.py(), iterator)?;
                return Ok(Ok(Self(iterator.unbind())));
            }
        }
        Ok(Err(object))
    }

    /// The object that is driven.
    pub(super) fn object(&self) -> &Py<PyAny> {
        &self.0
    }

    /// Goes on to its next step.
    #[inline]
    pub(super) fn resume(&self, py: Python<'_>, sent: Sent<'_>) -> PyResult<Step> {
        match sent {
            Sent::Value(value) => {
                let mut result = ptr::null_mut();
                // SAFETY: attached; both objects are live, and the result is a new reference.
                unsafe {
                    match ffi::PyIter_Send(self.0.as_ptr(), value.as_ptr(), &raw mut result) {
                        ffi::PySendResult::PYGEN_NEXT => {
                            Ok(Step::Yield(Bound::from_owned_ptr(py, result).unbind()))
                        }
                        ffi::PySendResult::PYGEN_RETURN => {
                            Ok(Step::Return(Bound::from_owned_ptr(py, result).unbind()))
                        }
                        ffi::PySendResult::PYGEN_ERROR => Err(PyErr::fetch(py)),
                    }
                }
            }
            Sent::Error(error) => self.throw(py, error),
        }
    }

    #[cold]
    fn throw(&self, py: Python<'_>, error: PyErr) -> PyResult<Step> {
        let inner = self.0.bind(py);
        let Some(throw) = inner.getattr_opt(names::throw(py))? else {
            if error.is_instance_of::<PyGeneratorExit>(py)
                && let Some(close) = inner.getattr_opt(names::close(py))?
            {
                close.call0()?;
            }
            return Err(error);
        };
        match throw.call1((error,)) {
            Ok(value) => Ok(Step::Yield(value.unbind())),
            Err(error) if error.is_instance_of::<PyStopIteration>(py) => {
                Ok(Step::Return(error.value(py).getattr(names::value(py))?.unbind()))
            }
            Err(error) => Err(error),
        }
    }
}
