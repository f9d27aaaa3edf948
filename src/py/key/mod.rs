//! Python values to canonical keys.
//!
//! All Python code that a key needs (`__hash__`, `__eq__`, `__cache_key__`,
//! `utcoffset` …) runs here, before any lock is taken.

mod bounds;
mod failure;
mod few;
mod foreign;
mod objects;
mod standard;
mod unusual;
mod walk;

use std::cell::Cell;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::core::key::encode::tag;
use crate::core::key::{Encoder, Key, Probe, ShortText, hex_digest};
use crate::py::edge::edge;
use crate::py::intern::{Held, Interner};

pub(crate) use failure::Failure;
pub(crate) use standard::prepare;
pub(crate) use walk::{Opaque, Walker};

/// An encoder that grew beyond this is not kept for the next call.
const KEEP_BYTES: usize = 1 << 20;

/// Runs `body` with this thread's encoder, or with a new one if user code that
/// is called while encoding comes back here.
pub(crate) fn with_encoder<R>(typed: bool, body: impl FnOnce(&mut Encoder) -> R) -> R {
    thread_local! {
        static SPARE: Cell<Option<Box<Encoder>>> = const { Cell::new(None) };
    }
    let mut encoder = SPARE.take().unwrap_or_default();
    encoder.reset(typed);
    let result = body(&mut encoder);
    if encoder.capacity() <= KEEP_BYTES {
        SPARE.set(Some(encoder));
    }
    result
}

/// A key and the interned objects that it stands on.
pub(crate) struct Encoded {
    pub(crate) key: Key,
    pub(crate) held: Vec<Held>,
}

/// The key of one value.
#[inline]
pub(crate) fn key_of(value: &Bound<'_, PyAny>, interner: &Arc<Interner>) -> PyResult<Encoded> {
    if let Some(key) = short_text(value) {
        return Ok(Encoded { key, held: Vec::new() });
    }
    with_encoder(false, |encoder| {
        let mut walker = Walker::new(encoder, Opaque::Intern(interner));
        walker.value(value).map_err(|failure| failure.within(|| "key".to_owned()))?;
        let held = walker.finish();
        Ok(Encoded { key: Key::new(encoder.as_bytes()), held })
    })
}

/// The encoding of an object as its class and value, and what it stands on; `None` if it is
/// more than its value. Its class too, for what equals it need not have its methods.
pub(crate) fn class_and_value(
    object: &Bound<'_, PyAny>,
    interner: &Arc<Interner>,
    typed: bool,
) -> PyResult<Option<(Vec<u8>, Vec<Held>)>> {
    let class = object.get_type();
    if class.getattr("__hash__")?.is_none() {
        return Ok(None);
    }
    with_encoder(typed, |encoder| {
        let mut walker = Walker::new(encoder, Opaque::RefuseButClasses(interner));
        walker.encoder().tag(tag::FIELDS);
        match walker.class(&class).and_then(|()| walker.value(object)) {
            Ok(()) => {
                let held = walker.finish();
                Ok(Some((encoder.as_bytes().to_vec(), held)))
            }
            Err(failure) if failure.is_unencodable() => Ok(None),
            Err(failure) => Err(failure.within(|| "self".to_owned()).into()),
        }
    })
}

/// The key of a short exact ASCII `str`, the commonest one, without an encoder.
#[inline]
pub(crate) fn short_text(value: &Bound<'_, PyAny>) -> Option<Key> {
    text_probe(value).map(|text| text.to_key())
}

/// The same to look a value up with.
#[inline(always)]
#[expect(clippy::inline_always, reason = "its calls were 5 of the 50 ns of a hit")]
pub(crate) fn text_probe<'a>(value: &'a Bound<'_, PyAny>) -> Option<ShortText<'a>> {
    // SAFETY: attached; the bytes are borrowed for as long as the object is.
    unsafe { walk::ascii(value.as_ptr()) }.and_then(ShortText::new)
}

/// cache_key(*parts, **named)
/// --
///
/// A canonical key: 64 hexadecimal digits (BLAKE3 of the canonical encoding)
/// that are the same in every process, Python version and machine.
///
/// Equal values have equal keys as Python's ``==`` has it (``1 == 1.0 ==
/// True``; a list is no tuple; the order of a dict or a set does not count).
///
/// Raises:
///     TypeError: a part has no canonical form; names its path and the ways out.
///     ValueError: a part is nested too deeply, contains itself, or has a canonical form of
///         more than 64 MiB.
#[pyfunction]
#[pyo3(signature = (*parts, **named))]
pub(crate) fn cache_key(
    parts: &Bound<'_, PyTuple>,
    named: Option<&Bound<'_, PyDict>>,
) -> PyResult<String> {
    edge("cache_key", || {
        with_encoder(false, |encoder| {
            let mut walker = Walker::new(encoder, Opaque::Refuse);
            walker.tuple(parts).map_err(|failure| failure.within(|| "parts".to_owned()))?;
            if let Some(named) = named {
                walker.dict(named)?;
            }
            Ok(hex_digest(encoder.as_bytes()))
        })
    })
}
