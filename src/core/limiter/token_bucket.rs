//! Token buckets: `count` tokens at most, refilled evenly over the period.
//!
//! Levels are whole numbers of `token × nanosecond of the period`, so refills
//! lose nothing to rounding and `retry_after` is exact.

use super::decision::{Decision, Reason};
use super::limit::Limit;
use crate::core::clock::{NEVER, Nanos};

#[derive(Clone, Debug)]
struct Bucket {
    limit: Limit,
    /// Tokens × period.
    level: u128,
    at: Nanos,
    /// When it got this limit: how fast it refilled before is forgotten.
    since: Nanos,
}

impl Bucket {
    fn full(limit: Limit, now: Nanos) -> Self {
        Self { limit, level: Self::capacity(limit), at: now, since: now }
    }

    fn capacity(limit: Limit) -> u128 {
        Self::units(limit, limit.count())
    }

    fn units(limit: Limit, tokens: u64) -> u128 {
        u128::from(tokens) * u128::from(limit.period())
    }

    #[inline]
    fn refill(&mut self, now: Nanos) {
        if now > self.at {
            let gained = u128::from(now - self.at) * u128::from(self.limit.count());
            // Each term fits 128 bits; at the edges of u64 their sum does not.
            self.level = self.level.saturating_add(gained).min(Self::capacity(self.limit));
            self.at = now;
        }
    }

    #[inline]
    fn fits(&self, cost: u64) -> bool {
        Self::units(self.limit, cost) <= self.level
    }

    fn wait_for(&self, wanted: u128) -> Nanos {
        let missing = wanted.saturating_sub(self.level);
        u64::try_from(missing.div_ceil(u128::from(self.limit.count()))).unwrap_or(NEVER)
    }

    fn left(&self) -> u64 {
        u64::try_from(self.level / u128::from(self.limit.period())).unwrap_or(u64::MAX)
    }

    fn used(&self) -> u64 {
        self.limit.count() - self.left()
    }

    /// What is missing: whole tokens, and units below one.
    fn missing(&self) -> (u128, u128) {
        let missing = Self::capacity(self.limit) - self.level;
        let period = u128::from(self.limit.period());
        (missing / period, missing % period)
    }

    fn lacks_more_than(&self, other: &Self) -> bool {
        let (tokens, rest) = self.missing();
        let (others, other_rest) = other.missing();
        // Fractions of a token, brought to one denominator.
        let rest = rest * u128::from(other.limit.period());
        let other_rest = other_rest * u128::from(self.limit.period());
        (tokens, rest) > (others, other_rest)
    }

    /// A bucket for another limit that lacks what this one does, as far as it can.
    fn with_limit(&self, limit: Limit, now: Nanos) -> Self {
        let (tokens, rest) = self.missing();
        let period = u128::from(limit.period());
        // Rounded up: changing a limit to and fro must not win tokens.
        let rest = (rest * period).div_ceil(u128::from(self.limit.period()));
        let mut bucket = Self::full(limit, now);
        // The tokens may be more than the new bucket holds at all.
        bucket.level =
            bucket.level.saturating_sub(tokens.saturating_mul(period)).saturating_sub(rest);
        bucket
    }
}

/// Several buckets, all or nothing.
#[derive(Debug)]
pub(super) struct TokenBuckets {
    buckets: Box<[Bucket]>,
}

impl TokenBuckets {
    pub(super) fn new(now: Nanos, limits: &[Limit]) -> Self {
        Self { buckets: limits.iter().map(|&limit| Bucket::full(limit, now)).collect() }
    }

    fn refill(&mut self, now: Nanos) {
        for bucket in &mut self.buckets {
            bucket.refill(now);
        }
    }

    pub(super) fn try_take(&mut self, now: Nanos, cost: u32) -> Decision {
        self.refill(now);
        let units = u64::from(cost);
        let granted = self.buckets.iter().all(|bucket| bucket.fits(units));
        let mut decision = if granted {
            Decision::unlimited(Reason::Granted)
        } else {
            Decision::refused(Reason::Limited, 0)
        };
        for bucket in &mut self.buckets {
            let limit = bucket.limit;
            let mut wait = 0;
            if granted {
                bucket.level -= Bucket::units(limit, units);
            } else if units > limit.count() {
                (wait, decision.reason) = (NEVER, Reason::TooLarge);
            } else {
                wait = bucket.wait_for(Bucket::units(limit, units));
            }
            let speaks = decision.limit.is_none()
                || if granted {
                    bucket.left() < decision.remaining
                } else {
                    wait > decision.retry_after
                };
            if speaks {
                decision.limit = Some(limit);
                decision.retry_after = wait;
                decision.remaining = bucket.left();
                decision.reset_after = bucket.wait_for(Bucket::capacity(limit));
            }
        }
        decision
    }

    pub(super) fn wait(&mut self, now: Nanos, cost: u32) -> Nanos {
        self.wait_behind(now, 0, cost)
    }

    /// The limit that `cost` would wait for longest.
    pub(super) fn binding(&mut self, now: Nanos, cost: u32) -> Option<Limit> {
        self.refill(now);
        let wait = |bucket: &&Bucket| bucket.wait_for(Bucket::units(bucket.limit, u64::from(cost)));
        self.buckets.iter().max_by_key(wait).map(|bucket| bucket.limit)
    }

    /// Tokens come back evenly, so those ahead simply add up.
    pub(super) fn wait_behind(&mut self, now: Nanos, ahead: u64, cost: u32) -> Nanos {
        self.refill(now);
        let wait = |bucket: &Bucket| {
            if u64::from(cost) > bucket.limit.count() {
                return NEVER;
            }
            let tokens = u128::from(ahead) + u128::from(cost);
            bucket.wait_for(tokens.saturating_mul(u128::from(bucket.limit.period())))
        };
        self.buckets.iter().map(wait).max().unwrap_or(0)
    }

    /// Gives back what was granted `at` that time, less what has been refilled since: whether
    /// a bucket would have been full without it nobody knows any more.
    pub(super) fn refund(&mut self, now: Nanos, at: Nanos, cost: u32) {
        self.refill(now);
        for bucket in self.buckets.iter_mut().filter(|bucket| at >= bucket.since) {
            let refilled = u128::from(now.saturating_sub(at)) * u128::from(bucket.limit.count());
            let back = Bucket::units(bucket.limit, u64::from(cost)).saturating_sub(refilled);
            bucket.level = bucket.level.saturating_add(back).min(Bucket::capacity(bucket.limit));
        }
    }

    /// When all buckets are full.
    pub(super) fn idle_at(&self) -> Nanos {
        let full = |bucket: &Bucket| {
            let wait = bucket.wait_for(Bucket::capacity(bucket.limit));
            if wait == 0 { 0 } else { bucket.at.saturating_add(wait) }
        };
        self.buckets.iter().map(full).max().unwrap_or(0)
    }

    /// New limits. A limit that stays keeps its bucket, one whose period stays its missing
    /// tokens; a new one starts with the most that any old one lacked, so that an update
    /// never hands out a fresh burst.
    pub(super) fn update(&mut self, now: Nanos, limits: &[Limit]) {
        self.refill(now);
        let old = std::mem::take(&mut self.buckets);
        let worst = old.iter().reduce(|a, b| if b.lacks_more_than(a) { b } else { a });
        let renewed = limits.iter().map(|&limit| {
            if let Some(same) = old.iter().find(|old| old.limit == limit) {
                return same.clone();
            }
            let like = old.iter().find(|old| old.limit.period() == limit.period()).or(worst);
            like.map_or_else(|| Bucket::full(limit, now), |old| old.with_limit(limit, now))
        });
        self.buckets = renewed.collect();
    }

    pub(super) fn used(&mut self, now: Nanos) -> Vec<(Limit, u64)> {
        self.refill(now);
        self.buckets.iter().map(|bucket| (bucket.limit, bucket.used())).collect()
    }
}
