//! What is said of the retries to whoever reads the traceback.

use std::fmt::Write;

use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

use crate::core::clock::{Nanos, secs_from_nanos};
use crate::core::retry::{Reason, Run};
use crate::py::names;

const BEGINS: &str = "ferrogate: gave up after ";

/// Adds a note to the error that the last attempt ended with; none if there was only one.
///
/// The error is raised as it is: callers catch what they would have caught without retries. One
/// that is raised again and again (a test's, a cached one) has one note, the newest. An error
/// that takes no note, such as a frozen dataclass, goes without.
pub(crate) fn note(error: &Bound<'_, PyAny>, run: &Run, reason: Reason, now: Nanos) {
    if run.attempts() < 2 {
        return;
    }
    let mut text = format!("{BEGINS}{} attempts", run.attempts());
    if let Some(elapsed) = run.elapsed(now) {
        let _ = write!(text, " in {:.1} s", secs_from_nanos(elapsed));
    }
    let _ = write!(text, " ({})", reason.name());
    let _ = attach(error, &text);
}

fn attach(error: &Bound<'_, PyAny>, text: &str) -> PyResult<()> {
    let py = error.py();
    if let Some(notes) = error.getattr_opt(names::notes(py))?
        && let Ok(notes) = notes.cast::<PyList>()
    {
        for (at, note) in notes.iter().enumerate() {
            if let Ok(note) = note.cast::<PyString>()
                && note.to_str()?.starts_with(BEGINS)
            {
                return notes.set_item(at, text);
            }
        }
    }
    error.call_method1(names::add_note(py), (text,)).map(drop)
}
