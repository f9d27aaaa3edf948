//! What the fuzz targets in `fuzz/` call; compiled with `--cfg fuzzing` only.

use pyo3::prelude::*;

use super::codec::Coder;
use super::key::{Opaque, Walker, with_encoder};
use crate::runtime::frame::Codec;
use crate::runtime::sqlite::log::next;

fn coder(codec: Codec) -> Coder {
    Coder { codec, pickle: None }
}

/// The bytes of a value.
///
/// # Errors
/// `TypeError` if the codec cannot carry it.
pub fn encode(codec: Codec, value: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    coder(codec).encode(value, &[0; 32])
}

/// The value of these bytes; `None` if they are none of this codec.
///
/// # Errors
/// None of its own.
pub fn decode<'py>(
    py: Python<'py>,
    codec: Codec,
    body: &[u8],
) -> PyResult<Option<Bound<'py, PyAny>>> {
    coder(codec).decode(py, body, &[0; 32])
}

/// The canonical encoding of a value, before it is hashed.
///
/// # Errors
/// Where the value has no key.
pub fn key_encoding(value: &Bound<'_, PyAny>, typed: bool) -> PyResult<Vec<u8>> {
    with_encoder(typed, |encoder| {
        let mut walker = Walker::new(encoder, Opaque::Refuse);
        walker.value(value)?;
        Ok(encoder.as_bytes().to_vec())
    })
}

/// The log of a commit read and written again, as far as it makes sense; and whether it did to its end.
#[must_use]
pub fn changes(mut log: &[u8]) -> (Vec<u8>, bool) {
    let mut again = Vec::new();
    while let Some(change) = next(&mut log) {
        let Ok(change) = change else { return (again, false) };
        change.write(&mut again);
    }
    (again, true)
}
