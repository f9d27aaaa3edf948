//! # ferrogate
//!
//! The native core of the Python package `ferrogate`: cache, rate limiter,
//! metrics and health for agents in production.
//!
//! Three floors, imports point one way only:
//!
//! * [`core`]: pure Rust. Knows neither Python nor a runtime; time is injected.
//! * [`runtime`]: the life of the process (start, shutdown, fork).
//! * `py`: the bindings, behind the feature `python`.
//!
//! `cargo test` builds the first two floors without libpython.

pub mod core;
#[cfg(feature = "python")]
mod py;
#[cfg(not(ferrogate_loom))]
pub mod runtime;

#[cfg(all(fuzzing, feature = "python"))]
pub use py::fuzzed;
