//! The object cache as a Python class.

mod arguments;
mod class;
mod flight;
mod freshness;
mod hooks;
mod loads;
mod savings;
mod store;
mod wake;

pub(crate) use class::Cache;
pub(crate) use flight::{Failure, Flight, Lookup};
pub(crate) use freshness::{Freshness, seed};
pub(crate) use loads::Found;
pub(crate) use store::{check_tags, tags};
pub(crate) use wake::prepare;
