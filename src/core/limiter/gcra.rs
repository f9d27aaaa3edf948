//! The generic cell rate algorithm, by the `governor` crate.
//!
//! governor decides; its state lives in a store of ours, because governor has
//! neither a question without a side effect ("how long would I wait?") nor a
//! refund, and our limiter needs both. One emission interval is
//! `period / count` rounded up, so the rate is never above the limit; the
//! burst is `count`.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock as GovernorClock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos as Instant;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};

use super::decision::{Decision, Reason};
use super::limit::Limit;
use crate::core::clock::{NEVER, Nanos};
use crate::core::error::InvalidArgument;

/// What governor and we both see. Relaxed atomics only because governor's
/// traits take `&self`: the limiter's lock serialises everything.
#[derive(Debug, Default)]
struct Shared {
    /// The time of the decision being made: the limiter reads its clock once per call.
    now: AtomicU64,
    /// When the bucket will be empty (the theoretical arrival time).
    empty_at: AtomicU64,
    /// Asking only: the state stays as it is.
    asking: AtomicBool,
}

#[derive(Clone, Debug)]
struct Time(Arc<Shared>);

impl GovernorClock for Time {
    type Instant = Instant;

    fn now(&self) -> Instant {
        Instant::new(self.0.now.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Store(Arc<Shared>);

impl StateStore for Store {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Instant>) -> Result<(T, Instant), E>,
    {
        let empty_at = self.0.empty_at.load(Ordering::Relaxed);
        let (outcome, next) = decide(Some(Instant::new(empty_at)))?;
        if !self.0.asking.load(Ordering::Relaxed) {
            self.0.empty_at.store(next.as_u64(), Ordering::Relaxed);
        }
        Ok(outcome)
    }
}

#[derive(Debug)]
pub(super) struct Gcra {
    limit: Limit,
    /// Time that one permit stands for.
    interval: Nanos,
    governor: RateLimiter<NotKeyed, Store, Time, NoOpMiddleware<Instant>>,
    shared: Arc<Shared>,
    /// What has been taken off the clock so that governor's sums stay below `u64::MAX`.
    epoch: Nanos,
}

impl Gcra {
    pub(super) fn check(limits: &[Limit]) -> Result<Limit, InvalidArgument> {
        let [limit] = limits else {
            return Err(InvalidArgument::new(
                "limits",
                format!(
                    "algorithm=\"gcra\" expected exactly one limit, got {}: its single state \
                     cannot admit all-or-nothing over several; use \"sliding_window\"",
                    limits.len()
                ),
            ));
        };
        if u32::try_from(limit.count()).is_err() || limit.period() > NEVER / 8 {
            return Err(InvalidArgument::new(
                "limits",
                format!(
                    "algorithm=\"gcra\" expected a count of at most {} and a period of at most \
                     73 years, got \"{limit}\"",
                    u32::MAX
                ),
            ));
        }
        Ok(*limit)
    }

    /// `limit` has passed [`Gcra::check`].
    pub(super) fn new(limit: Limit) -> Self {
        let interval = limit.period().div_ceil(limit.count());
        let burst = u32::try_from(limit.count()).ok().and_then(NonZeroU32::new);
        let quota = Quota::with_period(Duration::from_nanos(interval))
            .unwrap_or(Quota::per_second(NonZeroU32::MIN))
            .allow_burst(burst.unwrap_or(NonZeroU32::MIN));
        let shared = Arc::new(Shared::default());
        let governor =
            RateLimiter::new(quota, Store(Arc::clone(&shared)), Time(Arc::clone(&shared)));
        Self { limit, interval, governor, shared, epoch: 0 }
    }

    fn set_time(&mut self, now: Nanos) -> Nanos {
        // governor adds intervals to its time without a check for overflow.
        if now - self.epoch > NEVER / 2 {
            let shift = now - self.epoch;
            let empty_at = self.shared.empty_at.load(Ordering::Relaxed);
            self.shared.empty_at.store(empty_at.saturating_sub(shift), Ordering::Relaxed);
            self.epoch = now;
        }
        let time = now - self.epoch;
        self.shared.now.store(time, Ordering::Relaxed);
        time
    }

    fn ask(&mut self, now: Nanos, cost: u32) -> Nanos {
        let time = self.set_time(now);
        match NonZeroU32::new(cost).map(|cost| self.governor.check_n(cost)) {
            Some(Ok(Ok(()))) => 0,
            Some(Ok(Err(not_until))) => not_until.earliest_possible().as_u64() - time,
            Some(Err(_)) | None => NEVER,
        }
    }

    pub(super) fn try_take(&mut self, now: Nanos, cost: u32) -> Decision {
        let wait = self.ask(now, cost);
        Decision {
            granted: wait == 0,
            reason: match wait {
                0 => Reason::Granted,
                NEVER => Reason::TooLarge,
                _ => Reason::Limited,
            },
            retry_after: wait,
            remaining: self.limit.count() - self.used_now(now),
            limit: Some(self.limit),
            reset_after: self.backlog(now),
        }
    }

    pub(super) fn wait(&mut self, now: Nanos, cost: u32) -> Nanos {
        self.shared.asking.store(true, Ordering::Relaxed);
        let wait = self.ask(now, cost);
        self.shared.asking.store(false, Ordering::Relaxed);
        wait
    }

    /// Permits come back one interval at a time, so those ahead simply add up.
    pub(super) fn wait_behind(&mut self, now: Nanos, ahead: u64, cost: u32) -> Nanos {
        if u64::from(cost) > self.limit.count() {
            return NEVER;
        }
        let room = self.interval.saturating_mul(self.limit.count());
        let wanted = self.interval.saturating_mul(ahead.saturating_add(u64::from(cost)));
        self.backlog(now).saturating_add(wanted).saturating_sub(room)
    }

    /// Gives back what was granted `at` that time, less what has leaked out since:
    /// whether the bucket would have been empty without it nobody knows any more.
    pub(super) fn refund(&mut self, now: Nanos, at: Nanos, cost: u32) {
        let time = self.set_time(now);
        let empty_at = self.shared.empty_at.load(Ordering::Relaxed);
        let granted = self.interval.saturating_mul(u64::from(cost));
        let back = empty_at.saturating_sub(granted.saturating_sub(now.saturating_sub(at)));
        self.shared.empty_at.store(back.max(time.min(empty_at)), Ordering::Relaxed);
    }

    fn backlog(&self, now: Nanos) -> Nanos {
        self.shared.empty_at.load(Ordering::Relaxed).saturating_sub(now - self.epoch)
    }

    fn used_now(&self, now: Nanos) -> u64 {
        self.backlog(now).div_ceil(self.interval).min(self.limit.count())
    }

    pub(super) fn idle_at(&self) -> Nanos {
        self.shared.empty_at.load(Ordering::Relaxed).saturating_add(self.epoch)
    }

    pub(super) fn used(&mut self, now: Nanos) -> Vec<(Limit, u64)> {
        vec![(self.limit, self.used_now(now))]
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::core::cases(256, 10_000))]

        /// The same steps through governor's own front door.
        #[test]
        fn decides_as_governor_does(
            count in 1u64..20,
            period in 1u64..2_000_000_000,
            steps in prop::collection::vec((0u64..300_000_000, 1u32..6), 1..200),
        ) {
            let limit = Limit::new(count, period).unwrap();
            let clock = FakeRelativeClock::default();
            let quota = Quota::with_period(Duration::from_nanos(period.div_ceil(count)))
                .unwrap()
                .allow_burst(NonZeroU32::new(count as u32).unwrap());
            let theirs = RateLimiter::direct_with_clock(quota, clock.clone());
            let mut ours = Gcra::new(limit);
            let mut now = 0;
            for (gap, cost) in steps {
                now += gap;
                clock.advance(Duration::from_nanos(gap));
                let asked = ours.wait(now, cost);
                let behind = ours.wait_behind(now, 0, cost);
                let decision = ours.try_take(now, cost);
                prop_assert_eq!(decision.retry_after, asked);
                prop_assert_eq!(behind, asked);
                let n = NonZeroU32::new(cost).unwrap();
                match theirs.check_n(n) {
                    Ok(Ok(())) => prop_assert!(decision.granted),
                    Ok(Err(not_until)) => {
                        let wait = not_until.wait_time_from(governor::clock::Clock::now(&clock));
                        prop_assert_eq!(decision.retry_after, wait.as_nanos() as u64);
                        prop_assert!(!decision.granted && decision.reason == Reason::Limited);
                    }
                    Err(_) => prop_assert_eq!(decision.reason, Reason::TooLarge),
                }
            }
        }

        /// Never more than rate × w + burst in any window, however it is asked and whatever
        /// comes back, early or late.
        #[test]
        fn obeys_rate_and_burst(
            count in 1u64..10,
            period in 1u64..1000,
            steps in prop::collection::vec((0u64..200, prop::option::weighted(0.3, 0usize..12)), 1..300),
        ) {
            let mut ours = Gcra::new(Limit::new(count, period).unwrap());
            let mut now = 0;
            let mut grants = vec![];
            for (gap, back) in steps {
                now += gap;
                if let Some(index) = back.and_then(|back| grants.len().checked_sub(back + 1)) {
                    ours.refund(now, grants.remove(index), 1);
                }
                if ours.try_take(now, 1).granted {
                    grants.push(now);
                }
            }
            let interval = period.div_ceil(count);
            for (i, from) in grants.iter().enumerate() {
                for (n, to) in grants[i..].iter().enumerate() {
                    prop_assert!((n as u64) < (to - from) / interval + count);
                }
            }
        }
    }

    #[test]
    fn a_refund_gives_the_permit_back_but_no_more() {
        let mut gcra = Gcra::new(Limit::new(2, 2000).unwrap());
        assert!(gcra.try_take(0, 2).granted);
        gcra.refund(0, 0, 1);
        assert!(gcra.try_take(0, 1).granted);
        assert!(!gcra.try_take(0, 1).granted);
        // Half of it has leaked out.
        gcra.refund(500, 0, 1);
        assert_eq!(gcra.wait(500, 1), 1000 - 500 - 500);
        gcra.refund(100_000, 0, 2);
        assert!(gcra.try_take(100_000, 2).granted);
        assert!(!gcra.try_take(100_000, 1).granted);
        // Regression: what had long leaked out came back, a second burst at one instant.
        gcra.refund(100_000, 0, 2);
        assert!(!gcra.try_take(100_000, 1).granted);
    }

    #[test]
    fn survives_the_end_of_time() {
        let mut gcra = Gcra::new(Limit::new(2, 1_000_000_000).unwrap());
        let half = NEVER / 2;
        for (now, fresh) in [(0, true), (half, true), (half + 2, false), (NEVER - 1, true)] {
            assert_eq!(gcra.try_take(now, 2).granted, fresh, "{now}");
            assert!(!gcra.try_take(now, 1).granted);
            assert!(gcra.wait(now, 1) <= 1_000_000_000);
        }
    }
}
