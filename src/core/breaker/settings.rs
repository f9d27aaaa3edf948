//! How a breaker is set up.

use crate::core::clock::{Nanos, SECOND};
use crate::core::error::InvalidArgument;
use crate::core::random::Random;

/// After a recovery at least this share of the calls is let through.
pub(super) const LEAST_SHARE: f64 = 0.1;

/// So many calls a window holds at most: each costs two bytes.
pub const MOST_CALLS: u32 = 1_000_000;

/// Calls that a window has to hold before they say anything, unless it cannot hold as many.
const ENOUGH_CALLS: u32 = 5;

/// Which calls are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The last so many.
    Calls(u32),
    /// Those of the last so many nanoseconds: none that is older, and all but the oldest
    /// sixtieth of it.
    Time(Nanos),
}

/// How a breaker is set up.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Without it everything is let through, whatever is asked of it, and only summed up.
    pub enabled: bool,
    /// It opens when a share of the calls failed that is strictly above this one, 0..1.
    pub failure_threshold: f64,
    /// Which calls are looked at.
    pub window: Span,
    /// With fewer calls in the window no share of them opens it; `None` is 5, or what the window
    /// holds if that is less.
    pub minimum_calls: Option<u32>,
    /// How long it rests once open.
    pub timeout: Nanos,
    /// Each time it opens without having closed in between it rests longer, but at most so long.
    pub max_timeout: Option<Nanos>,
    /// So many times as long.
    pub timeout_factor: f64,
    /// By up to this share of it, at random, it rests longer, 0..1.
    pub jitter: f64,
    /// It closes after so many probes in a row have succeeded.
    pub success_threshold: u32,
    /// So many probes at one time.
    pub half_open_max_calls: u32,
    /// A probe that takes longer no longer holds a place; how it ends still counts.
    pub probe_timeout: Nanos,
    /// A call that takes as long is slow.
    pub slow_call: Option<Nanos>,
    /// It opens when a share of the calls was slow that is strictly above this one, 0..1.
    pub slow_threshold: Option<f64>,
    /// Whether [`Outcome::Throttled`](crate::core::outcome::Outcome::Throttled) is a failure.
    pub count_throttled: bool,
    /// It opens when more US dollars than this went into failures within a minute.
    pub max_wasted_usd: Option<f64>,
    /// It opens when more tokens than this went into failures within a minute.
    pub max_wasted_tokens: Option<u64>,
    /// For so long after it has closed it lets through a growing share of the calls.
    pub ramp_up: Nanos,
}

impl Default for Settings {
    /// Strictly above half of the last 20 calls, at least 5; 30 s; one probe at a time, three in a
    /// row.
    fn default() -> Self {
        Self {
            enabled: true,
            failure_threshold: 0.5,
            window: Span::Calls(20),
            minimum_calls: None,
            timeout: 30 * SECOND,
            max_timeout: None,
            timeout_factor: 2.0,
            jitter: 0.0,
            success_threshold: 3,
            half_open_max_calls: 1,
            probe_timeout: 60 * SECOND,
            slow_call: None,
            slow_threshold: None,
            count_throttled: false,
            max_wasted_usd: None,
            max_wasted_tokens: None,
            ramp_up: 0,
        }
    }
}

impl Settings {
    /// Whether they make sense.
    ///
    /// # Errors
    /// The first that does not, by its name in Python.
    pub fn check(&self) -> Result<(), InvalidArgument> {
        share("failure_threshold", self.failure_threshold)?;
        share("timeout_jitter", self.jitter)?;
        if let Some(threshold) = self.slow_threshold {
            share("slow_call_threshold", threshold)?;
            if self.slow_call.is_none() {
                let needs = "expected slow_call_seconds beside it, which says what is slow";
                return Err(InvalidArgument::new("slow_call_threshold", needs));
            }
        }
        at_least_one("success_threshold", self.success_threshold)?;
        at_least_one("half_open_max_calls", self.half_open_max_calls)?;
        self.check_window()?;
        if let Some(longest) = self.max_timeout
            && longest < self.timeout
        {
            let least = "expected at least timeout_seconds, from which it grows";
            return Err(InvalidArgument::new("max_timeout_seconds", least));
        }
        if !(1.0..=1e9).contains(&self.timeout_factor) {
            let got = format!("expected a number from 1 to 1e9, got {}", self.timeout_factor);
            return Err(InvalidArgument::new("timeout_factor", got));
        }
        if let Some(usd) = self.max_wasted_usd
            && !(usd >= 0.0 && usd.is_finite())
        {
            let got = format!("expected US dollars of at least 0, got {usd}");
            return Err(InvalidArgument::new("max_wasted_usd_per_minute", got));
        }
        Ok(())
    }

    fn check_window(&self) -> Result<(), InvalidArgument> {
        if let Some(calls) = self.minimum_calls {
            at_least_one("minimum_calls", calls)?;
        }
        match self.window {
            Span::Time(0) => {
                Err(InvalidArgument::new("window", "expected a duration above 0 seconds"))
            }
            Span::Calls(calls) if !(1..=MOST_CALLS).contains(&calls) => {
                let got = format!("expected from 1 to {MOST_CALLS} calls, got {calls}");
                Err(InvalidArgument::new("window", got))
            }
            Span::Calls(calls) if self.minimum_calls.is_some_and(|least| least > calls) => {
                let most = format!("expected at most the {calls} calls of the window");
                let got = format!("{most}, got {}", self.minimum_calls());
                Err(InvalidArgument::new("minimum_calls", got))
            }
            _ => Ok(()),
        }
    }

    /// With fewer calls in the window no share of them opens it.
    #[must_use]
    pub fn minimum_calls(&self) -> u32 {
        self.minimum_calls.unwrap_or(match self.window {
            Span::Calls(calls) => calls.min(ENOUGH_CALLS),
            Span::Time(_) => ENOUGH_CALLS,
        })
    }

    /// How long it rests when it has opened `relapses` times without having closed since.
    pub(super) fn rest(&self, relapses: u32, random: &Random) -> Nanos {
        // A float that is too large becomes the largest integer.
        let rest = self.max_timeout.map_or(self.timeout, |longest| {
            let grown = self.timeout as f64 * self.timeout_factor.powf(f64::from(relapses));
            (grown as Nanos).clamp(self.timeout, longest)
        });
        if self.jitter == 0.0 {
            return rest;
        }
        rest.saturating_add((rest as f64 * self.jitter * random.draw()) as Nanos)
    }
}

fn share(name: &'static str, value: f64) -> Result<(), InvalidArgument> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(InvalidArgument::new(name, format!("expected a share from 0 to 1, got {value}")))
}

fn at_least_one(name: &'static str, value: u32) -> Result<(), InvalidArgument> {
    if value > 0 {
        return Ok(());
    }
    Err(InvalidArgument::new(name, "expected at least 1, got 0"))
}
