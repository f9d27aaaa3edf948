//! Token buckets: rate, burst, updates and what comes back.

use proptest::prelude::*;

use super::limit::Limit;
use super::token_bucket::TokenBuckets;
use crate::core::clock::{NEVER, Nanos};

proptest! {
    #![proptest_config(crate::core::cases(256, 10_000))]

    #[test]
    fn obeys_rate_and_burst_and_says_when(
        limits in prop::collection::vec((1u64..12, 1u64..500), 1..4),
        steps in prop::collection::vec(
            (0u64..100, 1u32..4, prop::option::weighted(0.2, 0usize..12)), 1..200,
        ),
    ) {
        let limits: Vec<_> =
            limits.into_iter().map(|(c, p)| Limit::new(c, p).unwrap()).collect();
        let mut buckets = TokenBuckets::new(0, &limits);
        let mut now = 0;
        let mut grants = vec![];
        for (gap, cost, back) in steps {
            now += gap;
            // Whatever comes back, early or late.
            if let Some(index) = back.and_then(|back| grants.len().checked_sub(back + 1)) {
                let (at, cost): (Nanos, u64) = grants.remove(index);
                buckets.refund(now, at, cost as u32);
            }
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
                        + u128::from(limit.count()) * u128::from(limit.period());
                    prop_assert!(total <= allowed);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(crate::core::cases(256, 10_000))]

    /// To set the same limits again changes nothing; to set one with a larger bucket and the
    /// first again wins nothing.
    #[test]
    fn an_update_neither_takes_nor_gives(
        limits in prop::collection::vec((1u64..12, 1u64..500), 1..3),
        other in (12u64..30, 1u64..500),
        steps in prop::collection::vec((0u64..60, 1u32..4, any::<bool>()), 1..200),
    ) {
        let limits: Vec<_> =
            limits.into_iter().map(|(c, p)| Limit::new(c, p).unwrap()).collect();
        let other = Limit::new(other.0, other.1).unwrap();
        let mut plain = TokenBuckets::new(0, &limits);
        let mut same = TokenBuckets::new(0, &limits);
        let mut changed = TokenBuckets::new(0, &limits[..1]);
        let mut single = TokenBuckets::new(0, &limits[..1]);
        let mut now = 0;
        for (gap, cost, update) in steps {
            now += gap;
            if update {
                same.update(now, &limits);
                changed.update(now, &[other]);
                changed.update(now, &limits[..1]);
            }
            prop_assert_eq!(plain.try_take(now, cost), same.try_take(now, cost));
            // Both have granted the same so far, and `changed` never has more.
            let granted = changed.try_take(now, cost).granted;
            prop_assert!(!granted || single.try_take(now, cost).granted);
        }
    }
}

/// Regression: an update threw away what was less than a token.
#[test]
fn the_same_limit_set_again_and_again_refills_as_ever() {
    let limit = "60/minute".parse::<Limit>().unwrap();
    let mut buckets = TokenBuckets::new(0, &[limit]);
    assert!(buckets.try_take(0, 60).granted);
    let half = 500_000_000;
    let mut granted = 0;
    for step in 1..=1200 {
        buckets.update(step * half, &[limit]);
        granted += u64::from(buckets.try_take(step * half, 1).granted);
    }
    assert_eq!(granted, 600);
    // Nor does one with another period.
    let mut buckets = TokenBuckets::new(0, &[limit]);
    assert!(buckets.try_take(0, 60).granted);
    buckets.update(half, &["600/10minutes".parse().unwrap()]);
    assert_eq!(buckets.wait(half, 541), half);
}

#[test]
fn what_was_granted_under_another_limit_does_not_come_back() {
    let mut buckets = TokenBuckets::new(0, &[Limit::new(100, 100).unwrap()]);
    assert!(buckets.try_take(0, 10).granted);
    // Long refilled.
    let hour = Limit::new(10, 1_000_000).unwrap();
    buckets.update(50, &[hour]);
    assert!(buckets.try_take(50, 10).granted);
    buckets.refund(50, 0, 10);
    assert!(!buckets.try_take(50, 1).granted);
    buckets.refund(50, 50, 10);
    assert!(buckets.try_take(50, 10).granted);
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
    buckets.refund(u64::MAX, u64::MAX, u32::MAX);
    assert_eq!(buckets.used(u64::MAX), vec![(limit, 0)]);
}
