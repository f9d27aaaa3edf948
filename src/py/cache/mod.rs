//! The object cache as a Python class.

mod class;
mod flight;
mod hooks;
mod store;
mod wake;

pub(crate) use class::Cache;
pub(crate) use flight::{Flight, Lookup};
pub(crate) use store::{check_tags, lifetime, tags};
pub(crate) use wake::prepare;
