//! The pure core: algorithms and state, without Python, I/O or a clock of its own.
//!
//! A component may use [`clock`], [`sync`], [`error`], [`key`], [`outcome`], [`quantile`] and
//! [`random`], never
//! another component; composition happens above.
#![forbid(unsafe_code)]

pub mod breaker;
pub mod budget;
pub mod cache;
pub mod clock;
pub mod error;
pub mod flight;
pub mod health;
pub mod key;
pub mod limiter;
pub mod metrics;
pub mod outcome;
pub mod quantile;
pub mod random;
pub mod recording;
pub mod retry;
pub mod route;
pub mod sync;

/// `usual` cases of a property, under `FERROGATE_SOAK` that many times more, up to `full`.
///
/// Not by `PROPTEST_CASES`, which overrides whatever number of cases a property asks for.
#[cfg(test)]
pub(crate) fn cases(usual: u32, full: u32) -> proptest::test_runner::Config {
    let soak = std::env::var("FERROGATE_SOAK").ok().and_then(|times| times.parse().ok());
    let cases = usual.saturating_mul(soak.unwrap_or(1)).clamp(usual, full);
    proptest::test_runner::Config { cases, ..Default::default() }
}
