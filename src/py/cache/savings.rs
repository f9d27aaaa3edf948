//! What `value=` says that a hit saves.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyInt};

use crate::core::cache::Savings;
use crate::core::clock::{Nanos, secs_from_nanos};
use crate::py::convert::type_name;
use crate::py::names;

/// A number is US dollars; anything else has `tokens`, `usd` and `seconds`, as `Savings` does.
pub(super) fn savings(given: &Bound<'_, PyAny>, took: Option<Nanos>) -> PyResult<Savings> {
    let py = given.py();
    let took = took.map_or(0.0, secs_from_nanos);
    if is_number(given) {
        return Ok(Savings { usd: amount(given, "value")?, seconds: took, tokens: 0 });
    }
    let part = |name| {
        given.getattr(name).map_err(|_| {
            let got = type_name(given);
            PyTypeError::new_err(format!(
                "value: expected a number of US dollars or a ferrogate.Savings, got {got}"
            ))
        })
    };
    let (tokens, usd, seconds) =
        (part(names::tokens(py))?, part(names::usd(py))?, part(names::seconds(py))?);
    let seconds = if seconds.is_none() { took } else { amount(&seconds, "value: seconds")? };
    let tokens = tokens.extract().map_err(|_| wrong(&tokens, "value: tokens", "a count"))?;
    Ok(Savings { tokens, usd: amount(&usd, "value: usd")?, seconds })
}

fn is_number(given: &Bound<'_, PyAny>) -> bool {
    (given.is_instance_of::<PyFloat>() || given.is_instance_of::<PyInt>())
        && !given.is_instance_of::<PyBool>()
}

/// A finite number of at least 0.
fn amount(given: &Bound<'_, PyAny>, what: &str) -> PyResult<f64> {
    match given.extract::<f64>() {
        Ok(number) if is_number(given) && number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err(wrong(given, what, "a finite number")),
    }
}

fn wrong(given: &Bound<'_, PyAny>, what: &str, expected: &str) -> PyErr {
    let shown = given.repr().map_or_else(|_| "?".into(), |repr| repr.to_string());
    PyValueError::new_err(format!("{what}: expected {expected} of at least 0, got {shown}"))
}
