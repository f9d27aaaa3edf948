//! Numbers that policies and budgets are given, with errors that name the argument.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyInt};

use crate::py::convert::type_name;

/// So many millionths in a whole one: the unit of retries and of USD.
pub(super) const MILLION: f64 = 1e6;

/// What fits into a `u64` of millionths.
const MOST: f64 = 1e12;

/// A whole number from 1 on.
pub(super) fn attempts(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<u32> {
    let expected = format!("{argument}: expected an int from 1 to {}, got ", u32::MAX);
    if !value.is_instance_of::<PyInt>() || value.is_instance_of::<PyBool>() {
        return Err(PyTypeError::new_err(format!("{expected}{}", type_name(value))));
    }
    match value.extract::<u32>() {
        Ok(attempts) if attempts > 0 => Ok(attempts),
        _ => Err(PyValueError::new_err(format!("{expected}{}", shown(value)))),
    }
}

/// A finite number of at least `least` and at most `most`.
pub(super) fn number(
    argument: &str,
    value: &Bound<'_, PyAny>,
    least: f64,
    most: f64,
) -> PyResult<f64> {
    let is_number = (value.is_instance_of::<PyFloat>() || value.is_instance_of::<PyInt>())
        && !value.is_instance_of::<PyBool>();
    if !is_number {
        let got = type_name(value);
        return Err(PyTypeError::new_err(format!("{argument}: expected a number, got {got}")));
    }
    match value.extract::<f64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(PyValueError::new_err(format!(
            "{argument}: expected a number from {least} to {most}, got {}",
            shown(value)
        ))),
    }
}

/// An amount in millionths; one that is above zero stays so.
pub(super) fn millionths(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    let number = number(argument, value, 0.0, MOST)?;
    let whole = (number * MILLION).round() as u64;
    Ok(if number > 0.0 { whole.max(1) } else { whole })
}

/// A wrong value in short: of an int Python writes thousands of digits, and then refuses.
fn shown(value: &Bound<'_, PyAny>) -> String {
    let shown = value.repr().map_or_else(|_| "another".to_owned(), |repr| repr.to_string());
    if shown.chars().count() > 40 { shown.chars().take(40).chain(['…']).collect() } else { shown }
}
