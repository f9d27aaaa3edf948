//! The pure core: algorithms and state, without Python, I/O or a clock of its own.
//!
//! A component may use [`clock`], [`sync`], [`error`] and [`key`], never
//! another component; composition happens above.
#![forbid(unsafe_code)]

pub mod cache;
pub mod clock;
pub mod error;
pub mod flight;
pub mod health;
pub mod key;
pub mod limiter;
pub mod metrics;
pub mod sync;
