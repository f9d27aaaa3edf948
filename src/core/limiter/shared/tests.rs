//! Several processes and a store, on one manual clock.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::core::clock::{Clock, ManualClock};
use crate::core::limiter::{Algorithm, Progress, Settings};

const MS: Nanos = SECOND / 1000;
const VALIDITY: Nanos = 20 * MS;
const PERIOD: Nanos = SECOND;

/// What `lua` does in Redis, for one limit: permits by when they leave the window.
#[derive(Default)]
struct Store {
    limit: u64,
    ends: BTreeMap<Nanos, u64>,
}

impl Store {
    fn used(&mut self, now: Nanos) -> u64 {
        self.ends = self.ends.split_off(&(now + 1));
        self.ends.values().sum()
    }

    fn lease(&mut self, now: Nanos, ask: &Ask<u8>) -> Leases {
        self.used(now);
        for (slice, permits) in &ask.back {
            if let Some(held) = self.ends.get_mut(&(slice + PERIOD)) {
                *held -= u64::from(*permits);
            }
        }
        let left = self.limit.saturating_sub(self.used(now));
        let most = u32::try_from(left).unwrap().min(ask.want);
        let granted = if most >= ask.least { most } else { 0 };
        let slice = now + VALIDITY;
        *self.ends.entry(slice + PERIOD).or_default() += u64::from(granted);
        let (want, left) = (ask.want, left - u64::from(granted));
        Leases { want, granted, until: slice, slice, again: now + MS, left }
    }

    fn charge(&mut self, charges: Vec<Charge<u8>>) {
        for (at, used) in charges.into_iter().flat_map(|charge| charge.used) {
            *self.ends.entry(at + PERIOD).or_default() += used;
        }
    }
}

type Tested = Limiter<u8, u32>;

fn limiter(clock: &ManualClock, limit: &str) -> Tested {
    let settings = Settings {
        limits: vec![limit.parse().unwrap()],
        burst: None,
        adaptive: None,
        algorithm: Algorithm::SlidingWindow,
        max_keys: 10,
        max_waiters: 100,
        enabled: true,
        sharing: Some(Sharing { validity: VALIDITY, patience: 100 * MS }),
    };
    Limiter::new(settings, Clock::Manual(clock.clone())).unwrap()
}

struct World {
    clock: ManualClock,
    store: Store,
    up: bool,
    processes: Vec<Tested>,
    /// Answers on their way.
    flying: Vec<Vec<Leases>>,
    grants: Vec<(Nanos, u64)>,
}

#[derive(Clone, Debug)]
enum Op {
    Advance(u64),
    Try(usize, u32),
    /// The store carries out what a process wants.
    Ask(usize),
    /// The answer arrives.
    Hear(usize),
    /// It does not.
    Miss(usize),
    /// The store goes away, and everybody notices.
    Lose,
    /// It comes back as it was, or empty.
    Find(bool),
}

impl World {
    fn new(processes: usize, limit: u64) -> Self {
        let clock = ManualClock::starting_at(100 * SECOND);
        let all: Vec<_> =
            (0..processes).map(|_| limiter(&clock, &format!("{limit}/second"))).collect();
        for one in &all {
            one.shared_by(u32::try_from(processes).unwrap());
        }
        let store = Store { limit, ..Store::default() };
        let flying = vec![Vec::new(); processes];
        Self { clock, store, up: true, processes: all, flying, grants: Vec::new() }
    }

    fn granted(&mut self, cost: u32) {
        if cost == 0 {
            return;
        }
        let now = self.clock.now();
        self.grants.push((now, u64::from(cost)));
        let within: u64 =
            self.grants.iter().filter(|(at, _)| at + PERIOD > now).map(|one| one.1).sum();
        assert!(within <= self.store.limit, "{within} within a window of {}", self.store.limit);
    }

    fn step(&mut self, op: &Op) {
        let mut out = Outbox::new();
        match *op {
            Op::Advance(ms) => self.clock.advance(ms * MS),
            Op::Try(who, cost) => {
                let granted = self.processes[who].try_acquire(None, cost, &mut out).granted;
                self.granted(if granted { cost } else { 0 });
            }
            Op::Ask(who) if self.up => {
                for ask in self.processes[who].due().asks {
                    self.flying[who].push(self.store.lease(self.clock.now(), &ask));
                }
            }
            Op::Hear(who) if self.up => {
                for leases in std::mem::take(&mut self.flying[who]) {
                    self.processes[who].arrived(None, &leases, &mut out);
                }
            }
            Op::Miss(who) => {
                for _ in std::mem::take(&mut self.flying[who]) {
                    self.processes[who].failed(None, self.clock.now());
                }
            }
            Op::Lose if self.up => {
                self.up = false;
                self.flying.iter_mut().for_each(Vec::clear);
                self.processes.iter().for_each(|one| one.lost(&mut out));
            }
            Op::Find(intact) if !self.up => {
                self.up = true;
                if !intact {
                    self.store.ends.clear();
                }
                for one in &self.processes {
                    let since = if intact { one.lost_at().unwrap() } else { 0 };
                    one.found(&mut out);
                    self.store.charge(one.charges(since));
                }
            }
            _ => {}
        }
    }
}

fn op(processes: usize) -> impl Strategy<Value = Op> {
    let who = 0..processes;
    prop_oneof![
        3 => prop_oneof![0..5_u64, 0..60_u64, 0..1500_u64].prop_map(Op::Advance),
        6 => (who.clone(), 1..4_u32).prop_map(|(who, cost)| Op::Try(who, cost)),
        5 => who.clone().prop_map(Op::Ask),
        5 => who.clone().prop_map(Op::Hear),
        1 => who.prop_map(Op::Miss),
        1 => Just(Op::Lose),
        1 => any::<bool>().prop_map(Op::Find),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_window_is_ever_over(limit in 1_u64..12, ops in prop::collection::vec(op(3), 1..120)) {
        let mut world = World::new(3, limit);
        for op in &ops {
            world.step(op);
        }
    }
}

/// Asks and hears at once.
fn serve(world: &mut World, who: usize) {
    world.step(&Op::Ask(who));
    world.step(&Op::Hear(who));
}

#[test]
fn what_is_not_spent_comes_back() {
    let mut world = World::new(2, 10);
    world.step(&Op::Try(0, 10));
    serve(&mut world, 0);
    assert_eq!(world.store.used(world.clock.now()), 10);
    world.step(&Op::Try(0, 4));
    world.step(&Op::Advance(20));
    // Its slice has ended: what is left of it is not spent any more, but given back.
    world.step(&Op::Try(0, 1));
    assert_eq!(world.grants.len(), 1);
    let asks = world.processes[0].due().asks;
    assert_eq!(asks[0].back.iter().map(|one| one.1).sum::<u32>(), 6);
    world.store.lease(world.clock.now(), &Ask { want: 0, ..asks[0].clone() });
    assert_eq!(world.store.used(world.clock.now()), 4);
}

#[test]
fn waiters_are_served_in_order_of_arrival_and_woken_by_what_arrives() {
    let mut world = World::new(1, 5);
    let mut out = Outbox::new();
    let limiter = &world.processes[0];
    let mut tickets = Vec::new();
    for (cost, waker) in [(2, 1), (3, 2), (1, 3)] {
        assert!(!limiter.try_enter(None, cost, false, &mut out).granted);
        let ticket = limiter.enqueue(None, cost, false, NEVER, waker, &mut out).unwrap();
        assert_eq!(limiter.poll(None, ticket, &mut out), Progress::Wait(NEVER));
        tickets.push(ticket);
    }
    let asks = limiter.due().asks;
    assert_eq!((asks.len(), asks[0].want, asks[0].least), (1, 5, 2));
    let leases = world.store.lease(world.clock.now(), &asks[0]);
    let mut out = Outbox::new();
    limiter.arrived(None, &leases, &mut out);
    // The third goes on sleeping: what it waits for wakes it.
    assert_eq!(out.take_wakes(), [1, 2]);
    assert_eq!(limiter.poll(None, tickets[0], &mut out), Progress::Granted);
    assert_eq!(limiter.poll(None, tickets[1], &mut out), Progress::Granted);
    assert_eq!(limiter.poll(None, tickets[2], &mut out), Progress::Wait(NEVER));
}

#[test]
fn what_was_granted_and_never_picked_up_is_granted_again() {
    let mut world = World::new(1, 5);
    let mut out = Outbox::new();
    world.step(&Op::Try(0, 5));
    serve(&mut world, 0);
    let limiter = &world.processes[0];
    let (decision, at) = limiter.try_enter_at(None, 5, false, &mut out);
    assert!(decision.granted);
    assert!(!limiter.try_acquire(None, 1, &mut out).granted);
    limiter.undo(None, at, 5, false, &mut out);
    assert!(limiter.try_acquire(None, 5, &mut out).granted);
}

#[test]
fn on_its_own_a_process_uses_its_share_and_never_more() {
    let mut world = World::new(4, 20);
    // One has used it all.
    world.step(&Op::Try(0, 20));
    serve(&mut world, 0);
    world.step(&Op::Try(0, 20));
    world.step(&Op::Lose);
    for _ in 0..5_000 {
        world.step(&Op::Advance(1));
        (0..4).for_each(|who| world.step(&Op::Try(who, 1)));
    }
    let (first, last) = (world.grants[1].0, world.grants.last().unwrap().0);
    // It goes on with its share as soon as that has left its window, which is a slice longer.
    assert_eq!(first, world.grants[0].0 + PERIOD + VALIDITY);
    let (now, within) = (last, |at: &Nanos| at + PERIOD > last);
    assert!(last + 1 > now && world.grants.iter().filter(|(at, _)| within(at)).count() == 20);
}

#[test]
fn who_comes_while_the_store_is_away_has_no_share_of_what_others_may_have_used() {
    let clock = ManualClock::starting_at(SECOND);
    let limiter = limiter(&clock, "10/second");
    let mut out = Outbox::new();
    limiter.lost(&mut out);
    limiter.shared_by(2);
    let refused = limiter.try_acquire(Some(&1), 1, &mut out);
    assert!(!refused.granted && !refused.is_never());
    clock.advance(PERIOD + VALIDITY + NOTICED);
    assert!(limiter.try_acquire(Some(&1), 5, &mut out).granted);
    assert!(!limiter.try_acquire(Some(&1), 1, &mut out).granted);
    // More than the share waits for the store, but not for ever.
    assert!(!limiter.try_acquire(Some(&2), 6, &mut out).is_never());
    assert!(limiter.try_acquire(Some(&2), 11, &mut out).is_never());
    let charges = limiter.charges(0);
    assert_eq!(charges, [Charge { key: Some(1), used: vec![(clock.now(), 5)] }]);
}

#[test]
fn limits_that_are_shared_change_their_counts_only() {
    let clock = ManualClock::starting_at(SECOND);
    let limiter = limiter(&clock, "10/second");
    let mut out = Outbox::new();
    assert!(limiter.update(vec!["20/second".parse().unwrap()], &mut out).is_ok());
    assert!(limiter.update(vec!["20/minute".parse().unwrap()], &mut out).is_err());
}

#[test]
fn a_child_of_a_fork_has_nothing_that_was_leased() {
    let mut world = World::new(1, 5);
    world.step(&Op::Try(0, 5));
    serve(&mut world, 0);
    let mut out = Outbox::new();
    world.processes[0].after_fork(&mut out);
    assert!(!world.processes[0].try_acquire(None, 1, &mut out).granted);
    assert!(world.processes[0].charges(0).is_empty());
}
