//! Sliding windows against a naive list of timestamps.

use proptest::prelude::*;

use super::decision::Reason;
use super::limit::Limit;
use super::log::BLOCK;
use super::window::SlidingWindows;
use crate::core::cases;
use crate::core::clock::{NEVER, Nanos, SECOND};

/// All grants ever, and arithmetic that anybody can check.
#[derive(Clone, Default)]
struct Naive {
    grants: Vec<(Nanos, u32)>,
}

impl Naive {
    fn used(&self, limit: Limit, now: Nanos) -> u64 {
        let inside = |at: Nanos| now - at < limit.period();
        self.grants.iter().filter(|g| inside(g.0)).map(|g| u64::from(g.1)).sum()
    }

    fn admits(&self, limits: &[Limit], now: Nanos, cost: u32) -> bool {
        limits.iter().all(|&l| self.used(l, now) + u64::from(cost) <= l.count())
    }

    /// The first instant that admits: now, or when some grant leaves some window.
    fn wait(&self, limits: &[Limit], now: Nanos, cost: u32) -> Nanos {
        if limits.iter().any(|l| u64::from(cost) > l.count()) {
            return NEVER;
        }
        let mut candidates = vec![0];
        for limit in limits {
            let left = self.grants.iter().filter(|g| now - g.0 < limit.period());
            candidates.extend(left.map(|g| limit.period() - (now - g.0)));
        }
        candidates.sort_unstable();
        let later = |wait: &Nanos| {
            limits.iter().all(|l| {
                let inside =
                    |at: Nanos| u128::from(now - at) + u128::from(*wait) < u128::from(l.period());
                let used: u64 =
                    self.grants.iter().filter(|g| inside(g.0)).map(|g| u64::from(g.1)).sum();
                used + u64::from(cost) <= l.count()
            })
        };
        // Without newcomers, once it fits it keeps fitting.
        candidates[candidates.partition_point(|wait| !later(wait))]
    }
}

#[derive(Clone, Debug)]
enum Step {
    Take { gap: Nanos, cost: u32 },
    Burst { gap: Nanos, times: u32 },
    Refund { gap: Nanos, back: usize },
    Update { limits: Vec<(u64, Nanos)> },
}

fn gap() -> impl Strategy<Value = Nanos> {
    prop_oneof![
        4 => 0u64..4,
        8 => 0u64..3 * SECOND,
        2 => (1u64 << 32) - 2..(1u64 << 32) + 3,
        1 => 0u64..400 * SECOND,
        1 => Just(365 * 86_400 * SECOND),
    ]
}

fn limits() -> impl Strategy<Value = Vec<(u64, Nanos)>> {
    let period = prop_oneof![1u64..10, 1u64..20 * SECOND, 1u64..600 * SECOND, Just(NEVER / 2)];
    prop::collection::vec((1u64..40, period), 1..4)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (gap(), prop_oneof![6 => Just(1u32), 2 => 1u32..50]).prop_map(|(gap, cost)| Step::Take { gap, cost }),
        2 => (gap(), 1u32..30).prop_map(|(gap, times)| Step::Burst { gap, times }),
        3 => (gap(), 0usize..60).prop_map(|(gap, back)| Step::Refund { gap, back }),
        1 => limits().prop_map(|limits| Step::Update { limits }),
    ]
}

fn build(limits: &[(u64, Nanos)]) -> Vec<Limit> {
    let mut limits: Vec<_> = limits.iter().map(|&(c, p)| Limit::new(c, p).unwrap()).collect();
    limits.sort_by_key(|l| (l.period(), l.count()));
    limits
}

fn compare(start: Nanos, limits: &[(u64, Nanos)], steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut limits = build(limits);
    let mut windows = SlidingWindows::new(&limits);
    let mut naive = Naive::default();
    let mut now = start;
    for step in steps {
        match step {
            Step::Take { gap, cost } => {
                now = now.saturating_add(gap);
                take(&mut windows, &mut naive, &limits, now, cost)?;
            }
            Step::Burst { gap, times } => {
                now = now.saturating_add(gap);
                for _ in 0..times {
                    take(&mut windows, &mut naive, &limits, now, 1)?;
                }
            }
            Step::Refund { gap, back } => {
                now = now.saturating_add(gap);
                if let Some(index) = naive.grants.len().checked_sub(1 + back) {
                    let (at, cost) = naive.grants.remove(index);
                    windows.refund(now, at, cost);
                }
            }
            Step::Update { limits: new } => {
                let longest = limits.last().unwrap().period();
                limits = build(&new);
                windows.update(now, &limits);
                // What had left the longest window is gone; a longer one cannot see it.
                naive.grants.retain(|g| now - g.0 < longest);
            }
        }
        for (limit, used) in windows.used(now) {
            prop_assert_eq!(used, naive.used(limit, now));
        }
    }
    Ok(())
}

fn take(
    windows: &mut SlidingWindows,
    naive: &mut Naive,
    limits: &[Limit],
    now: Nanos,
    cost: u32,
) -> Result<(), TestCaseError> {
    let wait = naive.wait(limits, now, cost);
    prop_assert_eq!(windows.wait(now, cost), wait);
    if limits.len() == 1 && wait != NEVER {
        prop_assert_eq!(windows.wait_behind(now, 0, cost), wait);
    }
    let decision = windows.try_take(now, cost);
    prop_assert_eq!(decision.granted, naive.admits(limits, now, cost));
    prop_assert_eq!(decision.retry_after, wait);
    prop_assert_eq!(decision.reason == Reason::TooLarge, wait == NEVER);
    if decision.granted {
        naive.grants.push((now, cost));
        let tightest = limits.iter().map(|&l| l.count() - naive.used(l, now)).min();
        prop_assert_eq!(Some(decision.remaining), tightest);
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(1_000, 20_000))]

    /// Admits exactly when the list does, and says exactly when it will.
    #[test]
    fn admits_exactly_as_a_list_of_timestamps(
        limits in limits(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        compare(0, &limits, steps)?;
    }

    #[test]
    fn at_the_end_of_time_too(
        limits in limits(),
        before in 0u64..100 * SECOND,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        compare(NEVER - before, &limits, steps)?;
    }
}

proptest! {
    // The list counts all of its thousands of grants at every step: a tenth of a second a case.
    #![proptest_config(cases(40, 100))]

    /// Enough grants for many blocks, so that whole ones expire and are stepped over.
    #[test]
    fn over_many_blocks(
        gaps in prop::collection::vec((0u64..2_000_000, 1u32..3, 0u32..400), 10..60),
        count in 500u64..6000,
    ) {
        let limits = build(&[(count, SECOND / 4), (2 * count, SECOND)]);
        let mut windows = SlidingWindows::new(&limits);
        let mut naive = Naive::default();
        let mut now = 0;
        for (gap, cost, times) in gaps {
            for _ in 0..times {
                now += gap / 16;
                if windows.try_take(now, cost).granted {
                    naive.grants.push((now, cost));
                }
            }
            take(&mut windows, &mut naive, &limits, now, cost)?;
            take(&mut windows, &mut naive, &limits, now, count as u32)?;
            now += gap * 20;
        }
    }
}

#[test]
fn a_million_permits_a_day_stay_affordable() {
    let day = 86_400 * SECOND;
    let limits = build(&[(1_000_000, day)]);
    for gap in [1_000, 86_400_000] {
        let mut windows = SlidingWindows::new(&limits);
        for n in 0..1_000_000u64 {
            assert!(windows.try_take(n * gap, 1).granted);
        }
        assert!(!windows.try_take(1_000_000 * gap - 1, 1).granted);
        assert!(windows.bytes() <= 4_500_000, "{}", windows.bytes());
        // Expiring and granting in step needs no more.
        for n in 0..300_000u64 {
            assert!(windows.try_take(day + n * gap, 1).granted, "{n}");
        }
        assert!(windows.bytes() <= 4_500_000, "{}", windows.bytes());
        // After a quiet day everything goes, bit by bit.
        for n in 0..2_000u64 {
            assert!(windows.try_take(10 * day + n, 1).granted);
        }
        assert!(windows.bytes() <= 40_000, "{}", windows.bytes());
    }
}

#[test]
fn an_even_trickle_stays_affordable() {
    let limits = build(&[(1_000_000, 86_400 * SECOND)]);
    let mut windows = SlidingWindows::new(&limits);
    // One in 4.3 s: a block each.
    for n in 0..60_000u64 {
        assert!(windows.try_take(n * 4_300_000_000, 1).granted);
    }
    assert!(windows.bytes() <= 3_000_000, "{}", windows.bytes());
}

#[test]
fn refunds_leave_nothing_behind() {
    let limits = build(&[(1_000_000_000, 86_400 * SECOND)]);
    let mut windows = SlidingWindows::new(&limits);
    for n in 0..100_000u64 {
        assert!(windows.try_take(n, 1 + (n % 3) as u32).granted);
        windows.refund(n, n, 1 + (n % 3) as u32);
    }
    assert!(windows.bytes() <= 16 * BLOCK, "{}", windows.bytes());
    assert_eq!(windows.used(100_000)[0].1, 0);
}
