//! Python values to bytes and back, without Python.
//!
//! What comes back equals what went in, or it does not go in: `TypeError` with
//! the path. So a tuple is refused, which every rival gives back as a list, and
//! so is a key that is no text in JSON.

mod json;
mod msgpack;
mod refusal;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyTuple};

use crate::py::convert::type_name;
use crate::runtime::frame::Codec;
use crate::runtime::place::Id;

pub(crate) use refusal::Refusal;

/// Deeper values are refused, on the way in and on the way out.
const MAX_DEPTH: usize = 200;

/// Encodes and decodes; pickle by two Python functions that sign and check.
pub(crate) struct Coder {
    pub(crate) codec: Codec,
    /// `dumps(value, place) -> bytes`, `loads(bytes, place) -> value`, both only for pickle.
    pub(crate) pickle: Option<(Py<PyAny>, Py<PyAny>)>,
}

impl Coder {
    /// The bytes of a value that is to stand at `place`: a signature is good there only.
    pub(crate) fn encode(&self, value: &Bound<'_, PyAny>, place: &Id) -> PyResult<Vec<u8>> {
        match self.codec {
            Codec::Json => json::encode(value).map_err(|refusal| refusal.into_error("json")),
            Codec::Msgpack => {
                msgpack::encode(value).map_err(|refusal| refusal.into_error("msgpack"))
            }
            Codec::Bytes => {
                if let Ok(bytes) = value.cast::<PyBytes>() {
                    return Ok(bytes.as_bytes().to_vec());
                }
                if let Ok(bytes) = value.cast::<PyByteArray>() {
                    return Ok(bytes.to_vec());
                }
                let refusal = Refusal::of(format!("{} is no bytes", type_name(value)));
                Err(refusal.into_error("bytes"))
            }
            Codec::Pickle => match &self.pickle {
                Some((dumps, _)) => {
                    let bytes =
                        dumps.bind(value.py()).call1((value, PyBytes::new(value.py(), place)))?;
                    Ok(bytes.cast::<PyBytes>()?.as_bytes().to_vec())
                }
                None => Err(Refusal::of("no HMAC key".into()).into_error("pickle")),
            },
        }
    }

    /// The value of these bytes, found at `place`; `None` if they are no value of this codec. An error is a signal
    /// that came while pickle ran.
    pub(crate) fn decode<'py>(
        &self,
        py: Python<'py>,
        body: &[u8],
        place: &Id,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(match self.codec {
            Codec::Json => json::decode(py, body),
            Codec::Msgpack => msgpack::decode(py, body),
            Codec::Bytes => Some(PyBytes::new(py, body).into_any()),
            Codec::Pickle => {
                let Some((_, loads)) = &self.pickle else { return Ok(None) };
                match loads.bind(py).call1((PyBytes::new(py, body), PyBytes::new(py, place))) {
                    Ok(loaded) => {
                        loaded.cast::<PyTuple>().ok().and_then(|one| one.get_item(0).ok())
                    }
                    // Whatever a class that has changed since raises: a value that cannot be read.
                    Err(error) if error.is_instance_of::<PyException>(py) => None,
                    Err(signal) => return Err(signal),
                }
            }
        })
    }
}
