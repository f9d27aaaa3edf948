//! Why a value has no key, and where in it.

use std::fmt::Write as _;

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::bounds::{MAX_BYTES, MAX_DEPTH};

/// How much of the path to a structure that is too deep or too large is shown.
const SHOWN_STEPS: usize = 8;

const WAYS_OUT: &str = "choose the key yourself with key=, leave the argument out with ignore=, \
                        or give its class a __cache_key__() method";

/// Why a value has no key, and where in it.
pub(crate) struct Failure(
    /// Boxed, so that the walk's results, nearly all of them good, fit a register.
    Box<Inner>,
);

struct Inner {
    /// From the innermost step to the outermost.
    path: Vec<String>,
    kind: Kind,
}

pub(super) enum Kind {
    Unencodable(String),
    TooDeep { cycle: bool, limit: usize },
    TooLarge,
    Raised(PyErr),
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::of(Kind::Raised(error))
    }
}

impl Failure {
    pub(super) fn of(kind: Kind) -> Self {
        Self(Box::new(Inner { path: Vec::new(), kind }))
    }

    /// Whether the value is one that has no key, rather than too large or one that raised.
    pub(crate) fn is_unencodable(&self) -> bool {
        matches!(self.0.kind, Kind::Unencodable(_))
    }

    pub(crate) fn within(mut self, step: impl FnOnce() -> String) -> Self {
        self.0.path.push(step());
        self
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        let failure = *failure.0;
        let shown = match failure.kind {
            Kind::TooDeep { .. } | Kind::TooLarge => SHOWN_STEPS,
            _ => usize::MAX,
        };
        // A hundred times the same step helps nobody.
        let mut path: String = failure.path.iter().rev().take(shown).map(String::as_str).collect();
        if failure.path.len() > shown {
            path.push('…');
        }
        let path = path.trim_start_matches('.');
        match failure.kind {
            // What user code raised goes through unchanged.
            Kind::Raised(error) => error,
            Kind::Unencodable(what) => PyTypeError::new_err(format!(
                "{path}: cannot make a cache key from {what}; {WAYS_OUT}"
            )),
            Kind::TooLarge => PyValueError::new_err(format!(
                "{path}: cannot make a cache key: its canonical form takes more than {} MiB; \
                 {WAYS_OUT}",
                MAX_BYTES >> 20
            )),
            Kind::TooDeep { cycle, limit } => {
                let why = if cycle { "it contains itself" } else { "it is nested too deeply" };
                let here = if limit < MAX_DEPTH { " on the stack of this thread" } else { "" };
                PyValueError::new_err(format!(
                    "{path}: cannot make a cache key: {why} (the limit{here} is {limit} levels)"
                ))
            }
        }
    }
}

pub(super) fn changed(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!("{what} changed while its cache key was made"))
}

/// `.name` for identifiers, `['any other key']` otherwise.
pub(super) fn step_to(key: &Bound<'_, PyAny>) -> String {
    if let Ok(text) = key.extract::<String>()
        && !text.is_empty()
        && text.chars().all(|c| c.is_alphanumeric() || c == '_')
        && !text.starts_with(|c: char| c.is_ascii_digit())
    {
        return format!(".{text}");
    }
    let mut step = String::from("[");
    match key.repr() {
        Ok(repr) => {
            let repr = repr.to_string_lossy();
            let shown: String = repr.chars().take(40).collect();
            let _ = write!(step, "{shown}{}", if shown.len() < repr.len() { "…" } else { "" });
        }
        Err(_) => step.push('?'),
    }
    step.push(']');
    step
}
