//! Additive increase, multiplicative decrease.

use super::{Herd, check_range, check_ratio, whole};
use crate::core::clock::Nanos;
use crate::core::error::InvalidArgument;
use crate::core::outcome::Outcome;

/// How an [`Aimd`] is set up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AimdSettings {
    /// The limit at first.
    pub initial: u64,
    /// It never falls below.
    pub least: u64,
    /// It never rises above.
    pub most: u64,
    /// By how much it rises after as many successes as it allows.
    pub step: f64,
    /// What is left of it after a refusal, as a ratio.
    pub backoff_ratio: f64,
}

impl Default for AimdSettings {
    fn default() -> Self {
        Self { initial: 10, least: 1, most: 1_000, step: 1.0, backoff_ratio: 0.7 }
    }
}

/// A limit that rises by a step for as many successes as it allows, and is cut by a share when
/// the other side refuses (D.-M. Chiu, R. Jain, "Analysis of the Increase and Decrease Algorithms
/// for Congestion Avoidance", Computer Networks and ISDN Systems 17, 1989).
///
/// A herd that is refused together cuts it once.
#[derive(Clone, Copy, Debug)]
pub struct Aimd {
    settings: AimdSettings,
    limit: f64,
    herd: Herd,
}

impl Aimd {
    /// # Errors
    /// For a limit that is not between its bounds, a step that is not above 0, or a share that is
    /// not between 0 and 1.
    pub fn new(settings: AimdSettings) -> Result<Self, InvalidArgument> {
        check_range(settings.least, settings.initial, settings.most)?;
        check_ratio("backoff_ratio", settings.backoff_ratio)?;
        if !(settings.step.is_finite() && settings.step > 0.0) {
            let message = format!("expected a finite number above 0, got {}", settings.step);
            return Err(InvalidArgument::new("step", message));
        }
        Ok(Self { settings, limit: settings.initial as f64, herd: Herd::default() })
    }

    /// What is allowed now.
    #[must_use]
    pub fn limit(&self) -> u64 {
        whole(self.limit)
    }

    /// A call has ended that began at `begun`, while `used` of the limit were in use. True if the
    /// limit was cut.
    ///
    /// A limit that is not made use of says nothing about a higher one, and does not rise.
    pub fn ended(&mut self, outcome: Outcome, used: u64, begun: Nanos, now: Nanos) -> bool {
        if self.herd.began_before(begun) {
            return false;
        }
        let (least, most) = (self.settings.least as f64, self.settings.most as f64);
        match outcome {
            Outcome::Success if used.saturating_mul(2) >= self.limit() => {
                self.limit = (self.limit + self.settings.step / self.limit).min(most);
                false
            }
            Outcome::Throttled => {
                self.limit = (self.limit * self.settings.backoff_ratio).max(least);
                self.herd.cut(now);
                true
            }
            _ => false,
        }
    }
}
