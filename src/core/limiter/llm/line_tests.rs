//! Fairness: floods, weights, big requests, and a table of tenants that is full.

use std::collections::HashMap;

use super::*;
use crate::core::clock::{ManualClock, SECOND};

type Tested = LlmLimiter<u32, ()>;

const MINUTE: Nanos = 60 * SECOND;

fn limiter(clock: &ManualClock, settings: Settings<u32>) -> Tested {
    let fairness = Fairness::Weighted;
    Tested::new(Settings { fairness, ..settings }, Clock::Manual(clock.clone())).unwrap()
}

fn limits(requests: u64, output: u64) -> [Option<u64>; 5] {
    [Some(requests), None, Some(output), None, None]
}

fn ask(tenant: u32, output: u64) -> Ask<u32> {
    Ask { tenant: Some(tenant), ..Ask::tokens(0, output) }
}

fn join(limiter: &Tested, ask: &Ask<u32>) -> Ticket {
    limiter.enqueue(ask, NEVER, (), &mut Outbox::new()).unwrap()
}

fn granted(limiter: &Tested, tenant: u32, ticket: Ticket) -> bool {
    matches!(limiter.poll(Some(tenant), ticket, &mut Outbox::new()), Looked::Granted(_))
}

/// Every tenant's tickets, until nobody waits; who got how much of the first `windows`.
fn received(
    limiter: &Tested,
    clock: &ManualClock,
    mut tickets: Vec<(u32, Ticket, u64)>,
    windows: u64,
) -> HashMap<u32, u64> {
    let mut received = HashMap::new();
    for _ in 0..windows {
        tickets.retain(|&(tenant, ticket, cost)| {
            let granted = granted(limiter, tenant, ticket);
            *received.entry(tenant).or_default() += if granted { cost } else { 0 };
            !granted
        });
        clock.advance(MINUTE);
    }
    received
}

#[test]
fn a_flood_takes_no_more_than_its_share() {
    let clock = ManualClock::starting_at(0);
    let limiter = limiter(&clock, Settings { limits: limits(100, 100_000), ..Settings::default() });
    let mut tickets = Vec::new();
    for _ in 0..10_000 {
        tickets.push((0, join(&limiter, &ask(0, 100)), 1));
    }
    for tenant in 1..=9 {
        for _ in 0..10 {
            tickets.push((tenant, join(&limiter, &ask(tenant, 100)), 1));
        }
    }
    // The first request of the flood had come first of all.
    let received = received(&limiter, &clock, tickets, 1);
    assert_eq!(received.values().sum::<u64>(), 100);
    for tenant in 0..=9 {
        assert!((9..=11).contains(&received[&tenant]), "{received:?}");
    }
}

#[test]
fn shares_go_by_weight_and_by_the_scarcest_dimension() {
    let clock = ManualClock::starting_at(0);
    let weights = vec![(1, 3_000), (2, 1_000)];
    let settings = Settings { limits: limits(1_000, 10_000), weights, ..Settings::default() };
    let limiter = limiter(&clock, settings);
    let mut tickets = Vec::new();
    for _ in 0..400 {
        // A tenant with big requests and one with small ones: equal shares of the tokens.
        tickets.push((1, join(&limiter, &ask(1, 100)), 100));
        for _ in 0..10 {
            tickets.push((2, join(&limiter, &ask(2, 10)), 10));
        }
    }
    let received = received(&limiter, &clock, tickets, 4);
    assert_eq!(received.values().sum::<u64>(), 40_000);
    let ratio = received[&1] as f64 / received[&2] as f64;
    assert!((2.8..3.2).contains(&ratio), "{received:?}");
}

#[test]
fn a_big_head_is_not_overtaken() {
    let clock = ManualClock::starting_at(0);
    let limiter = limiter(&clock, Settings { limits: limits(1_000, 1_000), ..Settings::default() });
    let mut out = Outbox::new();
    let _half = limiter.try_reserve(&ask(1, 500), &mut out).unwrap();
    clock.advance(MINUTE / 2);
    let _other = limiter.try_reserve(&ask(1, 500), &mut out).unwrap();
    let big = join(&limiter, &ask(2, 1_000));
    let mut small = Vec::new();
    for second in 0..60u32 {
        // 500 tokens are free from the thirtieth second on, but not for those who come later.
        small.push((second + 10, join(&limiter, &ask(second + 10, 1))));
        assert!(small.iter().all(|&(tenant, ticket)| !granted(&limiter, tenant, ticket)));
        clock.advance(SECOND);
    }
    assert!(granted(&limiter, 2, big));
}

#[test]
fn even_a_weight_of_nothing_gets_its_turn() {
    let clock = ManualClock::starting_at(0);
    let weights = vec![(1, 1), (2, u32::MAX)];
    let settings = Settings { limits: limits(10, 1_000), weights, ..Settings::default() };
    let limiter = limiter(&clock, settings);
    let poor: Vec<_> = (0..3).map(|_| join(&limiter, &ask(1, 10))).collect();
    let mut rich = Vec::new();
    let mut served = Vec::new();
    for minute in 0..10 {
        for _ in 0..20 {
            rich.push(join(&limiter, &ask(2, 10)));
        }
        rich.retain(|&ticket| !granted(&limiter, 2, ticket));
        for &ticket in &poor {
            if granted(&limiter, 1, ticket) {
                served.push(minute);
            }
        }
        clock.advance(MINUTE);
    }
    // The first came first of all; each of the others was the tenant's first for two minutes.
    assert_eq!(served, [0, 2, 4]);
}

#[test]
fn a_full_table_forgets_nobody_who_counts() {
    let clock = ManualClock::starting_at(0);
    let settings = Settings { limits: limits(4, 1_000), max_tenants: 4, ..Settings::default() };
    let limiter = limiter(&clock, settings);
    let mut out = Outbox::new();
    // While nobody waits, any number of tenants may come.
    for tenant in 0..40 {
        assert!(limiter.try_reserve(&ask(tenant, 10), &mut out).is_ok());
        clock.advance(MINUTE / 4);
    }
    let tickets: Vec<_> =
        (50..54).map(|tenant| (tenant, join(&limiter, &ask(tenant, 10)))).collect();
    let refused = limiter.enqueue(&ask(60, 10), NEVER, (), &mut out).unwrap_err();
    assert_eq!(refused.reason, Reason::TenantTableFull);
    // One who is known may still join.
    assert!(limiter.enqueue(&ask(50, 10), NEVER, (), &mut out).is_ok());
    clock.advance(MINUTE);
    assert!(tickets.iter().all(|&(tenant, ticket)| granted(&limiter, tenant, ticket)));
    let stats = limiter.stats();
    assert_eq!((stats.waiting, stats.tenants), (1, 4));
}

#[test]
fn over_use_is_paid_back() {
    let clock = ManualClock::starting_at(0);
    // In flight nobody knows of it yet; two at a time keep that small.
    let settings = Settings { limits: limits(1_000, 1_000), ..Settings::default() };
    let limiter = limiter(&clock, Settings { concurrency: Some(2), ..settings });
    let mut out = Outbox::new();
    // One tenant says 1 and takes 101, again and again; the other says what it takes.
    let mut taken = [0u64; 3];
    let mut tickets: Vec<_> = (0..200)
        .flat_map(|_| [(1, 1), (2, 101)])
        .map(|(t, n)| (t, join(&limiter, &ask(t, n))))
        .collect();
    for _ in 0..600 {
        let mut open = Vec::new();
        tickets.retain(|&(tenant, ticket)| {
            let Looked::Granted(grant) = limiter.poll(Some(tenant), ticket, &mut Outbox::new())
            else {
                return true;
            };
            open.push((tenant, grant));
            false
        });
        for (tenant, grant) in open {
            taken[tenant as usize] += 101;
            let usage = Usage { output: Some(101), ..Usage::default() };
            limiter.settle(grant, &usage, &mut out);
        }
        if taken.iter().sum::<u64>() > 101 * 250 {
            break;
        }
        clock.advance(SECOND);
    }
    let ratio = taken[1] as f64 / taken[2] as f64;
    assert!((0.7..1.5).contains(&ratio), "{taken:?}");
}
