//! Limits that find themselves: on concurrency, or on the rate of a provider that says nothing.
//!
//! Two ways, for two things that can be seen. [`Aimd`] goes by refusals: it grows until there is
//! one. [`Gradient`] goes by latency (of whatever kind: to the first token, for each token): it
//! shrinks as that rises, before anybody is refused. [`Adaptive`] is either of them with what it
//! reads from a call's course. None has a clock, a lock or a thread; their owner tells them what
//! happened and reads `limit`.

mod aimd;
mod concurrency;
mod gradient;

#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod concurrency_tests;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod tests;

pub use self::aimd::{Aimd, AimdSettings};
pub use self::concurrency::{Adaptive, AdaptiveStats, Call, ConcurrencySettings, Law, Signal};
pub use self::gradient::{Gradient, GradientSettings};

use crate::core::clock::Nanos;
use crate::core::error::InvalidArgument;

/// Of many calls that were under way together and refused, the first one cuts a limit: the others
/// began before that, and say nothing about the limit as it is now (as TCP has it since RFC 6582).
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::core::limiter) struct Herd {
    cut_at: Option<Nanos>,
}

impl Herd {
    /// Whether what began then began before the last cut.
    pub(in crate::core::limiter) fn began_before(&self, begun: Nanos) -> bool {
        self.cut_at.is_some_and(|cut| begun < cut)
    }

    /// It is cut now.
    pub(in crate::core::limiter) fn cut(&mut self, now: Nanos) {
        // What begins at this very instant may have been sent before.
        self.cut_at = Some(now.saturating_add(1));
    }
}

/// The whole of a limit that is kept as a fraction.
fn whole(limit: f64) -> u64 {
    limit as u64
}

/// Whether a limit may be kept between these.
fn check_range(least: u64, initial: u64, most: u64) -> Result<(), InvalidArgument> {
    if least == 0 {
        return Err(InvalidArgument::new("least", "expected at least 1, got 0"));
    }
    if !(least..=most).contains(&initial) {
        let message = format!("expected a limit from {least} to {most}, got {initial}");
        return Err(InvalidArgument::new("initial", message));
    }
    Ok(())
}

/// Whether a ratio lies strictly between 0 and 1.
fn check_ratio(argument: &'static str, ratio: f64) -> Result<(), InvalidArgument> {
    if ratio > 0.0 && ratio < 1.0 {
        return Ok(());
    }
    let message = format!("expected a ratio between 0 and 1, got {ratio}");
    Err(InvalidArgument::new(argument, message))
}
