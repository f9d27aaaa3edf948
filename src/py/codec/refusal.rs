//! Why a codec cannot carry a value, and where in it.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

/// How many steps of a path are shown.
const SHOWN: usize = 12;

/// Why a value cannot be carried; an error of Python's passes through.
pub(crate) struct Refusal {
    /// From the innermost step to the outermost.
    path: Vec<String>,
    why: Why,
}

enum Why {
    Uncarried(String),
    Raised(PyErr),
}

impl From<PyErr> for Refusal {
    fn from(error: PyErr) -> Self {
        Self { path: Vec::new(), why: Why::Raised(error) }
    }
}

impl Refusal {
    pub(crate) fn of(what: String) -> Self {
        Self { path: Vec::new(), why: Why::Uncarried(what) }
    }

    pub(crate) fn within(mut self, step: impl FnOnce() -> String) -> Self {
        self.path.push(step());
        self
    }

    pub(crate) fn into_error(self, codec: &str) -> PyErr {
        match self.why {
            Why::Raised(error) => error,
            Why::Uncarried(what) => {
                let mut path: String =
                    self.path.iter().rev().take(SHOWN).map(String::as_str).collect();
                if self.path.len() > SHOWN {
                    path.push('…');
                }
                PyTypeError::new_err(format!(
                    "value{path}: {what}, which codec=\"{codec}\" cannot carry"
                ))
            }
        }
    }
}

/// `['key']`, shortened.
pub(crate) fn step_of(key: &Bound<'_, PyAny>) -> String {
    let shown = key.repr().map_or_else(|_| "?".to_owned(), |repr| repr.to_string());
    if shown.chars().count() > 60 {
        return format!("[{}…]", shown.chars().take(59).collect::<String>());
    }
    format!("[{shown}]")
}
