//! How a call ended, read from what it raised.

use pyo3::exceptions::{PyException, PyTimeoutError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyInt, PyString};

use crate::core::clock::{Nanos, nanos_from_secs, unix_seconds};
use crate::core::limiter::headers::LONGEST_RETRY_AFTER;
use crate::core::outcome::Outcome;
use crate::py::convert::type_name;
use crate::py::edge::{FerrogateError, edge, unraisable};
use crate::py::limiter::headers::observe;
use crate::py::names;

pub(crate) const TOO_MANY_REQUESTS: i64 = 429;
/// Answers of HTTP that say something about the other side's health, below 500: request timeout
/// and too early. All others of that hundred are about the request.
const UNWELL: [i64; 2] = [408, 425];
/// Answers of HTTP that stand for too much to do: request timeout, service unavailable, gateway
/// timeout, and Anthropic's "overloaded".
const OVERLOADED: [i64; 4] = [408, 503, 504, 529];

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

/// Whether an error says that the other side has too much to do: it did not answer in time, or
/// with an HTTP status that stands for that.
pub(crate) fn is_overload(error: &Bound<'_, PyAny>) -> bool {
    error.is_instance_of::<PyTimeoutError>()
        || status(error).is_some_and(|status| OVERLOADED.contains(&status))
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

/// How long the other side asks to be left alone: `retry_after` of an exception (seconds), or the
/// headers of its response (OpenAI, Anthropic, httpx, requests), or its own (aiohttp, urllib), or
/// those of a response itself.
///
/// What looking there raises is nobody's affair: it is the call's end that counts.
pub(crate) fn retry_after(said: &Bound<'_, PyAny>) -> Option<Nanos> {
    read_retry_after(said).unwrap_or_else(|raised| {
        if !raised.is_instance_of::<PyException>(said.py()) {
            unraisable(raised, said);
        }
        None
    })
}

/// The headers of an exception's response, or of a response itself.
pub(crate) fn headers<'py>(said: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = said.py();
    let response = said.getattr_opt(names::response(py))?.filter(|response| !response.is_none());
    let headers = response.as_ref().unwrap_or(said).getattr_opt(names::headers(py))?;
    Ok(headers.filter(|headers| !headers.is_none()))
}

fn read_retry_after(said: &Bound<'_, PyAny>) -> PyResult<Option<Nanos>> {
    let py = said.py();
    if let Some(after) = said.getattr_opt(names::retry_after(py))?
        && (after.is_instance_of::<PyFloat>() || after.is_instance_of::<PyInt>())
        && !after.is_instance_of::<PyBool>()
    {
        return Ok(Some(nanos_from_secs(after.extract()?).min(LONGEST_RETRY_AFTER)));
    }
    let Some(headers) = headers(said)? else { return Ok(None) };
    let observed = observe(&headers, unix_seconds())?;
    let status = status(said).and_then(|status| u16::try_from(status).ok());
    Ok(status.map_or(observed.retry_after, |status| observed.pause(status)))
}

/// The name of the outcome of an error, as parts of ferrogate see it.
#[pyfunction]
#[pyo3(name = "_outcome_of")]
pub(crate) fn outcome_of(error: &Bound<'_, PyAny>) -> PyResult<&'static str> {
    edge("_outcome_of", || Ok(of_error(error).name()))
}
