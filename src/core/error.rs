//! What can go wrong, as data. Prose is made at the edge.

use std::fmt;

/// An argument that cannot be used; raised at construction as `ValueError`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidArgument {
    /// The argument's name as the caller wrote it.
    pub argument: &'static str,
    /// What was expected, and what came.
    pub message: String,
}

impl InvalidArgument {
    /// Names the argument and what was expected of it.
    #[must_use]
    pub fn new(argument: &'static str, message: impl Into<String>) -> Self {
        Self { argument, message: message.into() }
    }
}

impl fmt::Display for InvalidArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.argument, self.message)
    }
}

impl std::error::Error for InvalidArgument {}
