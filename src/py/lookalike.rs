//! What makes a native callable look like the function that it stands for.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::PyAttributeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

/// Tells the interpreter where instances keep their vectorcall function. `PyO3`
/// has no way to ask for it, so it is set on the finished type, before the
/// first instance is handed out. `done` is the type's own.
pub(crate) fn install_vectorcall(
    object: &Bound<'_, PyAny>,
    slot: *const ffi::vectorcallfunc,
    done: &AtomicBool,
) {
    if done.swap(true, Ordering::Relaxed) {
        return;
    }
    let offset = slot as usize - object.as_ptr() as usize;
    // SAFETY: attached; the type is ours, alive for ever, and no instance of it has been called yet.
    // All instances have one layout, so the offset holds for each.
    unsafe {
        let class = ffi::Py_TYPE(object.as_ptr());
        (*class).tp_vectorcall_offset = offset as ffi::Py_ssize_t;
        (*class).tp_flags |= ffi::Py_TPFLAGS_HAVE_VECTORCALL;
        ffi::PyType_Modified(class);
    }
}

/// Instance attributes first (as for `functools.lru_cache`: `__doc__` and
/// `__module__` exist on the type too), then the type's, then the function's.
pub(crate) fn getattribute<'py>(
    slf: &Bound<'py, PyAny>,
    attributes: &Bound<'py, PyDict>,
    function: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
) -> PyResult<Bound<'py, PyAny>> {
    if let Some(value) = attributes.get_item(name)? {
        return Ok(value);
    }
    own_or(slf, function, name)
}

/// The object's own attribute, or the function's.
pub(crate) fn own_or<'py>(
    slf: &Bound<'py, PyAny>,
    function: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = slf.py();
    // SAFETY: attached; both are live objects.
    let own = unsafe {
        Bound::from_owned_ptr_or_err(py, ffi::PyObject_GenericGetAttr(slf.as_ptr(), name.as_ptr()))
    };
    // Any other error is an attribute's own, and not for the function to hide.
    own.or_else(|error| {
        if !error.is_instance_of::<PyAttributeError>(py) {
            return Err(error);
        }
        function.getattr(name).map_err(|_| error)
    })
}

/// Removes an instance attribute.
pub(crate) fn delattr(attributes: &Bound<'_, PyDict>, name: &Bound<'_, PyString>) -> PyResult<()> {
    attributes.del_item(name).map_err(|_| PyAttributeError::new_err(name.clone().unbind()))
}

/// The docstring, for those who ask past `__getattribute__`.
pub(crate) fn doc<'py>(
    attributes: &Bound<'py, PyDict>,
    function: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let name = PyString::intern(function.py(), "__doc__");
    match attributes.get_item(&name)? {
        Some(doc) => Ok(doc),
        None => function.getattr(name),
    }
}
