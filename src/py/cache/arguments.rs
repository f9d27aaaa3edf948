//! What the constructor of a cache is given, checked.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::core::cache::Policy;
use crate::py::convert::type_name;

/// An argument that was left out.
pub(super) type Omitted<'a, 'py> = Option<&'a Bound<'py, PyAny>>;

/// A callable or nothing.
pub(super) fn callable(argument: &str, value: Omitted<'_, '_>) -> PyResult<Option<Py<PyAny>>> {
    match value {
        Some(value) if !value.is_callable() => Err(PyTypeError::new_err(format!(
            "{argument}: expected a callable or None, got {}",
            type_name(value)
        ))),
        value => Ok(value.map(|value| value.clone().unbind())),
    }
}

/// A bound.
pub(super) fn at_least_one(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    let wrong = || {
        let shown = value.repr().map_or_else(|_| "?".into(), |repr| repr.to_string());
        format!("{argument}: expected an int of at least 1, got {shown}")
    };
    if !value.is_instance_of::<pyo3::types::PyInt>()
        || value.is_instance_of::<pyo3::types::PyBool>()
    {
        return Err(PyTypeError::new_err(wrong()));
    }
    match value.extract::<usize>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(PyValueError::new_err(wrong())),
    }
}

/// An eviction policy by its name.
pub(super) fn policy(name: &str) -> PyResult<Policy> {
    Policy::ALL.into_iter().find(|policy| policy.as_str() == name).ok_or_else(|| {
        PyValueError::new_err(format!("policy: expected 'lru' or 'adaptive', got '{name}'"))
    })
}
