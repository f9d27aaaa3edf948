//! What a codec makes of bytes that anybody may have written, beside a model in Python.

use ferrogate::fuzzed::{decode, encode};
use ferrogate::runtime::frame::Codec;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;

/// The model's functions: `json(bytes)` and `msgpack(bytes)`, each the value's `repr`, or `None`.
fn model<'py>(py: Python<'py>, name: &str) -> Bound<'py, PyAny> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module =
        MODULE.get_or_try_init(py, || py.import("codecs_as_documented").map(Bound::unbind));
    module.and_then(|module| module.bind(py).getattr(name)).expect("run.py put it on the path")
}

pub(crate) fn json(py: Python<'_>, input: &[u8]) {
    let found = round_trip(py, Codec::Json, "json", input);
    if let Some(text) = found {
        // Other programs can read it.
        let (written, shown) = text;
        assert_eq!(told(py, "json", &written), Some(shown), "as Python's json reads what we wrote");
    }
}

pub(crate) fn msgpack(py: Python<'_>, input: &[u8]) {
    round_trip(py, Codec::Msgpack, "msgpack", input);
}

fn told(py: Python<'_>, model_of: &str, body: &[u8]) -> Option<String> {
    let told =
        model(py, model_of).call1((PyBytes::new(py, body),)).expect("a model does not raise");
    told.extract().expect("str or None")
}

/// Decodes as the model does; what it gives is encoded and decoded to the same. Returns that.
fn round_trip(
    py: Python<'_>,
    codec: Codec,
    model_of: &str,
    input: &[u8],
) -> Option<(Vec<u8>, String)> {
    let shown = |value: &Bound<'_, PyAny>| value.repr().expect("plain values").to_string();
    let value = decode(py, codec, input).expect("no error but a refusal");
    assert!(PyErr::take(py).is_none(), "an error was left behind");
    let expected = told(py, model_of, input);
    let found = value.as_ref().map(shown);
    assert_eq!(found, expected, "decoded otherwise than the model says");
    let value = value?;
    let again = match encode(codec, &value) {
        Ok(again) => again,
        Err(error) => panic!("decoded and cannot be encoded: {error}"),
    };
    let twice = decode(py, codec, &again).expect("no error").expect("what was encoded is decoded");
    assert_eq!(Some(shown(&twice)), found, "another value after a round trip");
    Some((again, shown(&twice)))
}
