//! Reads the headers of an answer, in whatever form an HTTP client has them.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyString};

use crate::core::clock::unix_seconds;
use crate::core::limiter::headers::{Dimension, Observed, Reader, UnixNanos};
use crate::py::convert::type_name;
use crate::py::edge::edge;
use crate::py::names;
use crate::py::waiting::seconds;

/// No answer has more; what comes after them is not looked at.
const MOST_HEADERS: usize = 1_000;

/// A limit, what is left of it, and the seconds until all of it is back.
type Values = (Option<u64>, Option<u64>, Option<f64>);

/// What the headers of an answer say: a mapping (of `httpx`, `aiohttp`, `requests`, `urllib`, or
/// a dict) or pairs; names and values may be bytes. `wall` is seconds since the Unix epoch.
///
/// Runs Python code: hold no lock.
///
/// # Errors
/// `TypeError` for what is neither, and whatever iterating it raises.
pub(crate) fn observe(headers: &Bound<'_, PyAny>, wall: f64) -> PyResult<Observed> {
    let pairs = match headers.getattr_opt(names::items(headers.py()))? {
        Some(items) => items.call0()?,
        None => headers.clone(),
    };
    let wrong = |got: &Bound<'_, PyAny>| {
        let got = type_name(got);
        PyTypeError::new_err(format!(
            "headers: expected a mapping or pairs of names and values, got {got}"
        ))
    };
    if pairs.is_instance_of::<PyString>() || pairs.is_instance_of::<PyBytes>() {
        return Err(wrong(headers));
    }
    // Microseconds are what a float of today's date can tell apart.
    let wall = ((wall * 1e6).round() as UnixNanos).saturating_mul(1_000);
    let mut reader = Reader::new(wall);
    for pair in pairs.try_iter().map_err(|_| wrong(headers))?.take(MOST_HEADERS) {
        let pair = pair?;
        let (name, value) =
            pair.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>().map_err(|_| wrong(&pair))?;
        with_bytes(&name, |name| {
            if Reader::knows(name) {
                // What is no text is a value that cannot be read.
                with_bytes(&value, |value| reader.header(name, value))
                    .unwrap_or_else(|| reader.header(name, b""));
            }
        });
    }
    Ok(reader.finish())
}

/// The bytes of text, bytes or a number; `None` for anything else.
fn with_bytes<T>(value: &Bound<'_, PyAny>, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
    if let Ok(text) = value.cast::<PyString>() {
        return text.to_str().ok().map(|text| take(text.as_bytes()));
    }
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Some(take(bytes.as_bytes()));
    }
    let number = value.is_instance_of::<PyInt>() || value.is_instance_of::<PyFloat>();
    if number && !value.is_instance_of::<PyBool>() {
        return value.extract::<f64>().ok().map(|number| take(number.to_string().as_bytes()));
    }
    None
}

fn values(dimension: Dimension) -> Values {
    (dimension.limit, dimension.remaining, dimension.reset_in.map(seconds))
}

/// ``RateLimitHeaders.parse``: requests, tokens, input tokens, output tokens, each as limit,
/// rest and reset; retry-after; pause; how many were ignored, and clamped.
#[pyfunction]
#[pyo3(signature = (headers, status = None, now = None))]
#[allow(clippy::type_complexity)] // spelled out in `_core.pyi`
pub(crate) fn parse_rate_limit_headers(
    headers: &Bound<'_, PyAny>,
    status: Option<&Bound<'_, PyAny>>,
    now: Option<f64>,
) -> PyResult<(Values, Values, Values, Values, Option<f64>, Option<f64>, u32, u32)> {
    edge("parse_rate_limit_headers", || {
        let status = status.map(http_status).transpose()?;
        let wall = now.unwrap_or_else(unix_seconds);
        let observed = observe(headers, wall)?;
        let pause = status.map_or(observed.retry_after, |status| observed.pause(status));
        Ok((
            values(observed.requests),
            values(observed.tokens),
            values(observed.input_tokens),
            values(observed.output_tokens),
            observed.retry_after.map(seconds),
            pause.map(seconds),
            observed.ignored,
            observed.clamped,
        ))
    })
}

fn http_status(status: &Bound<'_, PyAny>) -> PyResult<u16> {
    let expected = "status: expected an HTTP status from 100 to 599, got";
    if !status.is_instance_of::<PyInt>() || status.is_instance_of::<PyBool>() {
        return Err(PyTypeError::new_err(format!("{expected} {}", type_name(status))));
    }
    match status.extract::<u16>() {
        Ok(status @ 100..=599) => Ok(status),
        _ => Err(PyValueError::new_err(format!("{expected} another number"))),
    }
}
