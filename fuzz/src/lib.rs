//! The fuzz targets, and libFuzzer to drive them.
//!
//! A Python extension module and not a program: an interpreter that was built without a shared
//! library can be fuzzed in as well, and its `json` is at hand to compare with.
//!
//! `run(target, arguments)` does not return: libFuzzer ends the process.

mod changes;
mod codec;
mod frame;
mod headers;
mod key;

use std::ffi::{CString, c_char, c_int};
use std::sync::OnceLock;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Looks at one input; a panic is a finding.
type Target = fn(Python<'_>, &[u8]);

const TARGETS: [(&str, Target); 6] = [
    ("changes", |_, input| changes::read(input)),
    ("frame", |_, input| frame::unpack(input)),
    ("headers", |_, input| headers::read(input)),
    ("json", codec::json),
    ("key", key::pair),
    ("msgpack", codec::msgpack),
];

static CHOSEN: OnceLock<Target> = OnceLock::new();

unsafe extern "C" {
    fn LLVMFuzzerRunDriver(
        argc: *mut c_int,
        argv: *mut *mut *mut c_char,
        callback: unsafe extern "C" fn(*const u8, usize) -> c_int,
    ) -> c_int;
}

unsafe extern "C" fn one(data: *const u8, size: usize) -> c_int {
    // SAFETY: libFuzzer passes a buffer of that size.
    unsafe { libfuzzer_sys::test_input_wrap(data, size) }
}

/// What `test_input_wrap` calls; `fuzz_target!` would define it for a program with one target.
#[unsafe(no_mangle)]
#[expect(improper_ctypes_definitions, reason = "a call from Rust to Rust by that name")]
extern "C" fn rust_fuzzer_test_input(input: &[u8]) -> c_int {
    let target = CHOSEN.get().expect("run() has chosen");
    Python::attach(|py| target(py, input));
    0
}

/// Fuzzes `target` with libFuzzer's `arguments`.
#[pyfunction]
fn run(target: &str, arguments: Vec<String>) -> PyResult<i32> {
    let (_, chosen) = TARGETS
        .iter()
        .find(|(name, _)| *name == target)
        .ok_or_else(|| PyValueError::new_err(format!("no target {target:?}")))?;
    CHOSEN.set(*chosen).map_err(|_| PyValueError::new_err("one target for each process"))?;
    libfuzzer_sys::initialize(std::ptr::null(), std::ptr::null());
    let mut words = Vec::new();
    for word in ["fuzz".to_owned()].into_iter().chain(arguments) {
        words.push(CString::new(word)?.into_raw());
    }
    let mut argc = words.len() as c_int;
    words.push(std::ptr::null_mut());
    let mut argv = words.as_mut_ptr();
    // SAFETY: an array of that many C strings, which are never freed, and a null.
    Ok(unsafe { LLVMFuzzerRunDriver(&raw mut argc, &raw mut argv, one) })
}

#[pymodule(gil_used = true)]
fn ferrogate_fuzz(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("TARGETS", TARGETS.map(|(name, _)| name).to_vec())?;
    m.add_function(wrap_pyfunction!(run, m)?)
}
