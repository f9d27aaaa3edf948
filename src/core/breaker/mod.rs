//! The circuit breaker: closed while calls succeed, open while they mostly fail, and
//! half-open when a few probes find out whether they do again.
//!
//! The states are those of M. Nygard, "Release It!", 2007; windows, slow calls and the forced
//! states are named as in resilience4j. A [`Breaker`] answers at once and has no timer: it turns
//! half-open when somebody asks for the first time after its rest, and from then on every
//! question is answered by what has happened, never by what was missed. It cannot get stuck:
//! a probe that says nothing gives its place back, and one that never ends loses it.

mod machine;
mod probes;
mod settings;
mod shared;
mod window;

#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod model_tests;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod shared_tests;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod tests;

pub use self::machine::Breaker;
pub use self::settings::{MOST_CALLS, Settings, Span};
pub use self::shared::{Answer, Change, Report, SPAN, Sharing, TRUST, Want, Word};

use super::clock::Nanos;

/// What is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Everything; after a recovery a growing share, if it is set up to.
    Closed,
    /// Nothing, until it has rested.
    Open,
    /// Some probes.
    HalfOpen,
    /// Nothing, until it is reset.
    ForcedOpen,
    /// Everything; calls are only summed up.
    Disabled,
    /// Everything; the window is kept, and nothing comes of it.
    MetricsOnly,
}

impl State {
    /// Its name in statistics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::ForcedOpen => "forced_open",
            Self::Disabled => "disabled",
            Self::MetricsOnly => "metrics_only",
        }
    }

    /// Whether nothing at all is let through.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::ForcedOpen)
    }
}

/// A step from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Where it was.
    pub from: State,
    /// Where it went.
    pub to: State,
}

/// Leave to make one call, to be given back by [`Breaker::end`].
///
/// One that is lost does no harm to a closed breaker; a lost probe keeps its place for
/// [`Settings::probe_timeout`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Permit {
    /// Of which stretch between two transitions it is; what ends in a later one is not judged.
    stretch: u64,
    begun: Nanos,
    /// Its number among the probes.
    probe: Option<u64>,
}

impl Permit {
    /// Whether it is one of the few calls of a half-open breaker.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.probe.is_some()
    }
}

/// Why a call is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The state that refused it; [`State::Closed`] while it recovers little by little.
    pub state: State,
    /// When to ask again at the latest; `None` if only a person knows: it is forced open.
    pub retry_after: Option<Nanos>,
}

/// What a call has cost, as far as anybody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spend {
    /// US dollars; what is below zero or no number counts as none.
    pub usd: f64,
    /// Tokens, in and out.
    pub tokens: u64,
}

/// What a breaker has seen and done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stats {
    /// Where it is.
    pub state: State,
    /// The share of the calls in the window that failed, 0..1.
    pub error_rate: f64,
    /// The share of the calls in the window that were slow, 0..1.
    pub slow_rate: f64,
    /// Calls in the window. It begins anew when it turns half-open and when it closes.
    pub calls: u64,
    /// Spent on calls that failed, within the last minute.
    pub wasted: Spend,
    /// Calls that ended, ever, by how.
    pub successes: u64,
    /// See [`Outcome::Failure`](super::outcome::Outcome::Failure).
    pub failures: u64,
    /// See [`Outcome::Throttled`](super::outcome::Outcome::Throttled).
    pub throttled: u64,
    /// See [`Outcome::Neutral`](super::outcome::Outcome::Neutral).
    pub neutral: u64,
    /// Calls that took too long, ever.
    pub slow: u64,
    /// Calls that were not let through.
    pub rejected: u64,
    /// How often it opened by itself.
    pub times_opened: u64,
    /// Probes that hold a place.
    pub probes: usize,
    /// For how long it still rests.
    pub retry_after: Option<Nanos>,
    /// What it knows of the processes that share its state, if any do.
    pub sharing: Option<Sharing>,
}
