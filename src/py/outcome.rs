//! How a call ended, read from what it raised.

use pyo3::exceptions::{PyException, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::core::clock::{Nanos, nanos_from_secs};
use crate::core::outcome::Outcome;
use crate::py::convert::type_name;
use crate::py::edge::{FerrogateError, edge};
use crate::py::names;

const TOO_MANY_REQUESTS: i64 = 429;
/// Answers of HTTP that say something about the other side's health, below 500: request timeout
/// and too early. All others of that hundred are about the request.
const UNWELL: [i64; 2] = [408, 425];

/// How a call that raised `error` ended, if nobody says otherwise.
///
/// What is no `Exception` (cancelled, abandoned, Ctrl-C) and what ferrogate itself refused says
/// nothing about the other side. An HTTP status is looked for where the clients of providers put
/// it; everything else that is raised is a failure.
pub(crate) fn of_error(error: &Bound<'_, PyAny>) -> Outcome {
    let py = error.py();
    if !error.is_instance_of::<PyException>() {
        return Outcome::Neutral;
    }
    if error.is_instance_of::<FerrogateError>() {
        let timed_out = error.getattr_opt(names::timed_out(py)).ok().flatten();
        return if timed_out.is_some() { Outcome::Failure } else { Outcome::Neutral };
    }
    status(error).map_or(Outcome::Failure, of_status)
}

/// What an HTTP status means.
pub(crate) fn of_status(status: i64) -> Outcome {
    match status {
        TOO_MANY_REQUESTS => Outcome::Throttled,
        status if UNWELL.contains(&status) => Outcome::Failure,
        400..500 => Outcome::Neutral,
        _ => Outcome::Failure,
    }
}

/// The HTTP status that an exception tells: `status_code` (OpenAI, Anthropic), `status`
/// (aiohttp), `code` (urllib, Google), `response.status_code` (httpx, requests).
pub(crate) fn status(error: &Bound<'_, PyAny>) -> Option<i64> {
    let py = error.py();
    let number = |object: &Bound<'_, PyAny>, name: &Bound<'_, PyString>| {
        let value = object.getattr_opt(name).ok().flatten()?;
        value.extract::<i64>().ok().filter(|status| (100..600).contains(status))
    };
    let (code, status_code) = (names::code(py), names::status_code(py));
    number(error, status_code)
        .or_else(|| number(error, names::status(py)))
        .or_else(|| number(error, code))
        .or_else(|| {
            let response = error.getattr_opt(names::response(py)).ok().flatten()?;
            number(&response, status_code).or_else(|| number(&response, names::status(py)))
        })
}

/// What a classifier of the user's said; `None`: nothing.
pub(crate) fn named(answer: &Bound<'_, PyAny>) -> PyResult<Option<Outcome>> {
    if answer.is_none() {
        return Ok(None);
    }
    let Ok(name) = answer.cast::<PyString>() else {
        return Err(PyTypeError::new_err(format!(
            "classify: expected it to return a ferrogate.Outcome or None, got {}",
            type_name(answer)
        )));
    };
    match Outcome::named(name.to_str()?) {
        Some(outcome) => Ok(Some(outcome)),
        None => Err(PyValueError::new_err(format!(
            "classify: expected it to return one of {:?} or None, got {}",
            Outcome::ALL.map(Outcome::name),
            name.repr()?
        ))),
    }
}

/// An attribute, if there is one; one that raises is none.
fn attribute<'py>(
    of: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
) -> Option<Bound<'py, PyAny>> {
    of.getattr_opt(name).ok().flatten()
}

/// How long the other side asks to be left alone: `retry_after` of an exception, or the headers
/// of its response (or of a response itself): `retry-after-ms`, `retry-after` in seconds.
pub(crate) fn retry_after(said: &Bound<'_, PyAny>) -> Option<Nanos> {
    let py = said.py();
    let number = |value: &Bound<'_, PyAny>| {
        let text = value.cast::<PyString>().ok().and_then(|text| text.to_str().ok()?.parse().ok());
        text.or_else(|| value.extract::<f64>().ok()).filter(|seconds| *seconds >= 0.0)
    };
    if let Some(seconds) = attribute(said, names::retry_after(py)).and_then(|value| number(&value))
    {
        return Some(nanos_from_secs(seconds));
    }
    let response = attribute(said, names::response(py)).unwrap_or_else(|| said.clone());
    let headers = attribute(&response, names::headers(py))?;
    let header = |name: &str| {
        let value = headers.call_method1(names::get(py), (name,)).ok()?;
        number(&value)
    };
    let milliseconds = header("retry-after-ms").map(|value| value / 1e3);
    milliseconds.or_else(|| header("retry-after")).map(nanos_from_secs)
}

/// The name of the outcome of an error, as parts of ferrogate see it.
#[pyfunction]
#[pyo3(name = "_outcome_of")]
pub(crate) fn outcome_of(error: &Bound<'_, PyAny>) -> PyResult<&'static str> {
    edge("_outcome_of", || Ok(of_error(error).name()))
}
