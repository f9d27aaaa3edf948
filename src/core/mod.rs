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

/// How many cases of a property, if it has `usual` of them where others have proptest's 256:
/// `PROPTEST_CASES` scales all of them alike (`make soak`).
#[cfg(test)]
pub(crate) fn cases(usual: u32) -> u32 {
    let asked = proptest::test_runner::Config::default().cases;
    (usual.saturating_mul(asked) / 256).max(1)
}
