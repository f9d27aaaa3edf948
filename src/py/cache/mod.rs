//! The object cache as a Python class.

mod class;
mod flight;
mod store;

pub(crate) use class::Cache;
pub(crate) use flight::{Flight, Lookup};
pub(crate) use store::{check_tags, lifetime, tags};
