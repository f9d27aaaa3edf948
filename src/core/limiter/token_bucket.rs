//! Token buckets: `count` tokens at most, refilled evenly over the period.
//!
//! Levels are whole numbers of `token × nanosecond of the period`, so refills
//! lose nothing to rounding and `retry_after` is exact.

use super::decision::{Decision, Reason};
use super::limit::Limit;
use crate::core::clock::{NEVER, Nanos};

#[derive(Debug)]
struct Bucket {
    limit: Limit,
    /// Tokens × period.
    level: u128,
    at: Nanos,
}

impl Bucket {
    fn full(limit: Limit, now: Nanos) -> Self {
        Self { limit, level: Self::capacity(limit), at: now }
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

    pub(super) fn refund(&mut self, now: Nanos, cost: u32) {
        self.refill(now);
        for bucket in &mut self.buckets {
            let back = Bucket::units(bucket.limit, u64::from(cost));
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

    /// New limits. A bucket whose period stays keeps its used tokens; a new one
    /// starts with the most that any old one had used, so that an update never
    /// hands out a fresh burst.
    pub(super) fn update(&mut self, now: Nanos, limits: &[Limit]) {
        self.refill(now);
        let most = self.buckets.iter().map(Bucket::used).max().unwrap_or(0);
        let renewed = limits.iter().map(|&limit| {
            let same = self.buckets.iter().find(|old| old.limit.period() == limit.period());
            let used = same.map_or(most, Bucket::used).min(limit.count());
            let mut bucket = Bucket::full(limit, now);
            bucket.level -= Bucket::units(limit, used);
            bucket
        });
        self.buckets = renewed.collect();
    }

    pub(super) fn used(&mut self, now: Nanos) -> Vec<(Limit, u64)> {
        self.refill(now);
        self.buckets.iter().map(|bucket| (bucket.limit, bucket.used())).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn obeys_rate_and_burst_and_says_when(
            limits in prop::collection::vec((1u64..12, 1u64..500), 1..4),
            steps in prop::collection::vec((0u64..100, 1u32..4), 1..200),
        ) {
            let limits: Vec<_> =
                limits.into_iter().map(|(c, p)| Limit::new(c, p).unwrap()).collect();
            let mut buckets = TokenBuckets::new(0, &limits);
            let mut now = 0;
            let mut grants = vec![];
            for (gap, cost) in steps {
                now += gap;
                let decision = buckets.try_take(now, cost);
                if decision.granted {
                    grants.push((now, u64::from(cost)));
                    continue;
                }
                if decision.retry_after == NEVER {
                    prop_assert!(limits.iter().any(|l| l.count() < u64::from(cost)));
                    continue;
                }
                // Exact: one nanosecond earlier it is still refused.
                let at = now + decision.retry_after;
                prop_assert_eq!(buckets.wait(at - 1, cost), 1);
                prop_assert_eq!(buckets.wait(at, cost), 0);
                now = at;
            }
            for limit in limits {
                for (i, (from, _)) in grants.iter().enumerate() {
                    let mut total = 0u128;
                    for (to, cost) in &grants[i..] {
                        total += u128::from(*cost) * u128::from(limit.period());
                        let allowed = u128::from(to - from) * u128::from(limit.count())
                            + Bucket::capacity(limit);
                        prop_assert!(total <= allowed);
                    }
                }
            }
        }
    }

    #[test]
    fn an_update_hands_out_no_fresh_burst() {
        let limit = |text: &str| text.parse::<Limit>().unwrap();
        let mut buckets = TokenBuckets::new(0, &[limit("10/minute")]);
        assert!(buckets.try_take(0, 10).granted);
        buckets.update(0, &[limit("20/minute")]);
        assert_eq!(buckets.try_take(0, 1).remaining, 9);
        buckets.update(0, &[limit("5/10s")]);
        assert!(!buckets.try_take(0, 1).granted);
    }

    #[test]
    fn survives_the_edges_of_its_numbers() {
        let limit = Limit::new(u64::MAX, u64::MAX / 2).unwrap();
        let mut buckets = TokenBuckets::new(0, &[limit]);
        assert!(buckets.try_take(0, u32::MAX).granted);
        assert!(buckets.try_take(u64::MAX, u32::MAX).granted);
        // Two tokens come back per nanosecond; 2^32 are missing.
        assert_eq!(buckets.wait_behind(u64::MAX, u64::MAX, 1), 1 << 31);
        buckets.refund(u64::MAX, u32::MAX);
        assert_eq!(buckets.used(u64::MAX), vec![(limit, 0)]);
    }
}
