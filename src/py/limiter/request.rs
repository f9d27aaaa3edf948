//! What one request asks for, from Python's arguments.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBool;

use crate::core::key::Key;
use crate::py::convert::type_name;
use crate::py::key::{Opaque, Walker, short_text, with_encoder};
use crate::py::names;

/// What one request asks for.
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) key: Option<Key>,
    pub(super) cost: u32,
    pub(super) slot: bool,
}

impl Request {
    /// `with` and `async with`.
    pub(super) const ENTER: Self = Self { key: None, cost: 1, slot: true };

    #[inline]
    pub(super) fn new(
        cost: Option<&Bound<'_, PyAny>>,
        key: Option<&Bound<'_, PyAny>>,
        slot: bool,
    ) -> PyResult<Self> {
        let cost = match cost {
            None => 1,
            Some(cost) => count("cost", cost)?,
        };
        let key = match key {
            None => None,
            Some(key) => Some(key_from("key", key)?),
        };
        Ok(Self { key, cost, slot })
    }
}

/// A whole number from 1 on.
pub(crate) fn count(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<u32> {
    let is_bool = value.is_instance_of::<PyBool>();
    if let Ok(count) = value.extract::<u32>()
        && count > 0
        && !is_bool
    {
        return Ok(count);
    }
    let expected = format!("{argument}: expected an int from 1 to {}, got ", u32::MAX);
    if !is_bool && value.hasattr(names::index(value.py()))? {
        return Err(PyValueError::new_err(format!("{expected}{}", value.repr()?)));
    }
    Err(PyTypeError::new_err(format!("{expected}{}", type_name(value))))
}

/// Limiter keys mean the same in every process, so opaque objects are refused.
pub(crate) fn key_from(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<Key> {
    if let Some(key) = short_text(value) {
        return Ok(key);
    }
    with_encoder(false, |encoder| {
        let mut walker = Walker::new(encoder, Opaque::Refuse);
        walker.value(value).map_err(|failure| failure.within(|| argument.to_owned()))?;
        Ok(Key::new(encoder.as_bytes()))
    })
}
