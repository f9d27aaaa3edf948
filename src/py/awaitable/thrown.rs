//! The arguments of `throw`.

use pyo3::exceptions::{PyBaseException, PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};

/// The exception of `throw(type, value=None, traceback=None)` or `throw(exception)`.
pub(super) fn thrown(py: Python<'_>, args: &Bound<'_, PyTuple>) -> PyResult<PyErr> {
    if args.len() == 1 {
        let error = args.get_item(0)?;
        let is_class = error
            .cast::<PyType>()
            .is_ok_and(|class| class.is_subclass_of::<PyBaseException>().unwrap_or(false));
        if !is_class && !error.is_instance_of::<PyBaseException>() {
            let got = error.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "exceptions must be classes or instances deriving from BaseException, not {got}"
            )));
        }
        return Ok(PyErr::from_value(error));
    }
    // A throw-away generator gives `throw` its exact argument handling.
    let generator = py.eval(c"(_ for _ in ())", None, None)?;
    match generator.call_method1("throw", args) {
        Err(error) => Ok(error),
        Ok(_) => Err(PyRuntimeError::new_err("throw: nothing was raised")),
    }
}
