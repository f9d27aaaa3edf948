//! The algorithms behind one face.

use super::decision::Decision;
use super::gcra::Gcra;
use super::limit::Limit;
use super::shared::Leased;
use super::token_bucket::TokenBuckets;
use super::window::SlidingWindows;
use crate::core::clock::Nanos;
use crate::core::error::InvalidArgument;

/// How permits are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Exact in every window at any offset.
    SlidingWindow,
    /// Evenly spaced with a burst of `count`; constant memory.
    Gcra,
    /// Buckets of `count` tokens, refilled evenly.
    TokenBucket,
}

impl Algorithm {
    /// # Errors
    /// When there is no algorithm of that name.
    pub fn parse(name: &str) -> Result<Self, InvalidArgument> {
        match name {
            "sliding_window" => Ok(Self::SlidingWindow),
            "gcra" => Ok(Self::Gcra),
            "token_bucket" => Ok(Self::TokenBucket),
            _ => Err(InvalidArgument::new(
                "algorithm",
                format!("expected \"sliding_window\", \"gcra\" or \"token_bucket\", got {name:?}"),
            )),
        }
    }

    /// The name that [`Algorithm::parse`] knows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SlidingWindow => "sliding_window",
            Self::Gcra => "gcra",
            Self::TokenBucket => "token_bucket",
        }
    }

    /// Whether these limits are something that the algorithm can keep.
    pub(super) fn check(self, limits: &[Limit]) -> Result<(), InvalidArgument> {
        if self == Self::Gcra {
            Gcra::check(limits)?;
        }
        Ok(())
    }
}

/// One key's counting.
#[derive(Debug)]
pub(super) enum Rule {
    Windows(SlidingWindows),
    Gcra(Box<Gcra>),
    Buckets(TokenBuckets),
    Leased(Box<Leased>),
}

impl Rule {
    /// `limits` have passed [`Algorithm::check`] and are sorted by period.
    pub(super) fn new(algorithm: Algorithm, now: Nanos, limits: &[Limit]) -> Self {
        match (algorithm, limits) {
            (Algorithm::Gcra, [limit]) => Self::Gcra(Box::new(Gcra::new(*limit))),
            (Algorithm::TokenBucket, _) => Self::Buckets(TokenBuckets::new(now, limits)),
            _ => Self::Windows(SlidingWindows::new(limits)),
        }
    }

    #[inline]
    pub(super) fn try_take(&mut self, now: Nanos, cost: u32) -> Decision {
        match self {
            Self::Windows(rule) => rule.try_take(now, cost),
            Self::Gcra(rule) => rule.try_take(now, cost),
            Self::Buckets(rule) => rule.try_take(now, cost),
            Self::Leased(rule) => rule.try_take(now, cost),
        }
    }

    /// The time until `cost` would be granted if nobody else came.
    pub(super) fn wait(&mut self, now: Nanos, cost: u32) -> Nanos {
        match self {
            Self::Windows(rule) => rule.wait(now, cost),
            Self::Gcra(rule) => rule.wait(now, cost),
            Self::Buckets(rule) => rule.wait(now, cost),
            Self::Leased(rule) => rule.wait(now, cost),
        }
    }

    /// When the first in line is to look again by itself; [`NEVER`]: it is woken.
    ///
    /// [`NEVER`]: crate::core::clock::NEVER
    pub(super) fn look_after(&mut self, now: Nanos, cost: u32) -> Nanos {
        match self {
            Self::Leased(rule) => rule.look_after(now, cost),
            _ => self.wait(now, cost),
        }
    }

    /// What is leased, if the limits are shared.
    pub(super) fn lease(&mut self) -> Option<&mut Leased> {
        match self {
            Self::Leased(rule) => Some(rule),
            _ => None,
        }
    }

    /// The same behind others who want `ahead` in all; a lower bound.
    pub(super) fn wait_behind(&mut self, now: Nanos, ahead: u64, cost: u32) -> Nanos {
        match self {
            Self::Windows(rule) => rule.wait_behind(now, ahead, cost),
            Self::Gcra(rule) => rule.wait_behind(now, ahead, cost),
            Self::Buckets(rule) => rule.wait_behind(now, ahead, cost),
            // What others want of the store is not known here.
            Self::Leased(rule) => rule.wait(now, cost),
        }
    }

    /// The limit that `cost` would wait for longest.
    pub(super) fn binding(&mut self, now: Nanos, cost: u32) -> Option<Limit> {
        match self {
            Self::Windows(rule) => rule.binding(now, cost),
            Self::Gcra(rule) => rule.used(now).first().map(|&(limit, _)| limit),
            Self::Buckets(rule) => rule.binding(now, cost),
            Self::Leased(rule) => rule.binding(cost),
        }
    }

    /// Gives back what was granted at `at` and never used, as far as it still counts.
    pub(super) fn refund(&mut self, now: Nanos, at: Nanos, cost: u32) {
        match self {
            Self::Windows(rule) => rule.refund(now, at, cost),
            Self::Gcra(rule) => rule.refund(now, at, cost),
            Self::Buckets(rule) => rule.refund(now, at, cost),
            Self::Leased(rule) => rule.refund(now, at, cost),
        }
    }

    /// When nothing granted so far matters any more.
    pub(super) fn idle_at(&self) -> Nanos {
        match self {
            Self::Windows(rule) => rule.idle_at(),
            Self::Gcra(rule) => rule.idle_at(),
            Self::Buckets(rule) => rule.idle_at(),
            Self::Leased(rule) => rule.idle_at(),
        }
    }

    /// New limits, as far as the algorithm can change them ([`Gcra`] starts afresh and is not asked).
    pub(super) fn update(&mut self, now: Nanos, limits: &[Limit]) {
        match self {
            Self::Windows(rule) => rule.update(now, limits),
            Self::Gcra(_) => {}
            Self::Buckets(rule) => rule.update(now, limits),
            Self::Leased(rule) => rule.update(now, limits),
        }
    }

    /// Permits used now, limit by limit.
    pub(super) fn used(&mut self, now: Nanos) -> Vec<(Limit, u64)> {
        match self {
            Self::Windows(rule) => rule.used(now),
            Self::Gcra(rule) => rule.used(now),
            Self::Buckets(rule) => rule.used(now),
            Self::Leased(rule) => rule.used(now),
        }
    }
}
