//! `@cached`: a native callable that answers hits without a Python frame.

mod call;
mod function;
mod instances;
mod method;
mod params;

pub(crate) use function::CachedFunction;
pub(crate) use method::CachedMethod;
