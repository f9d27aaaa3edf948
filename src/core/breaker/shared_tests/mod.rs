//! Several breakers and a store, on one manual clock. The store does what the script of
//! `runtime::redis` does.

mod store;

use proptest::prelude::*;

use self::store::Store;
use super::tests::breaker;
use super::*;
use crate::core::clock::{Clock, ManualClock, SECOND};
use crate::core::outcome::Outcome::{self, Failure, Success};
use State::{Closed, Disabled, ForcedOpen, HalfOpen, MetricsOnly, Open};

/// A fleet.
struct Fleet {
    clock: ManualClock,
    store: Store,
    all: Vec<Breaker>,
    probe: Nanos,
}

const RULES: fn() -> Settings = || Settings {
    minimum_calls: Some(3),
    window: Span::Calls(8),
    timeout: 10 * SECOND,
    success_threshold: 2,
    probe_timeout: 20 * SECOND,
    ..Settings::default()
};

impl Fleet {
    fn new(count: usize, settings: &Settings) -> Self {
        let clock = ManualClock::starting_at(1_000 * SECOND);
        let make = || Breaker::sharing(settings.clone(), Clock::Manual(clock.clone())).unwrap();
        let all = (0..count).map(|_| make()).collect();
        Self { clock, store: Store::default(), all, probe: settings.probe_timeout }
    }

    fn now(&self) -> Nanos {
        Clock::Manual(self.clock.clone()).now()
    }

    fn sync(&mut self, which: usize) -> Option<Transition> {
        let (report, now) = (self.all[which].report(), self.now());
        let answer = self.store.carry_out(which, &report, self.probe, now);
        self.all[which].answered(&report, now, &answer)
    }

    fn sync_all(&mut self) {
        for which in 0..self.all.len() {
            self.sync(which);
        }
    }

    fn wait(&mut self, nanos: Nanos) {
        self.clock.advance(nanos);
    }

    fn call(&self, which: usize, outcome: Outcome) -> bool {
        let (asked, _) = self.all[which].begin();
        asked.map(|permit| self.all[which].end(permit, outcome, None)).is_ok()
    }

    fn fail(&self, which: usize) {
        for _ in 0..3 {
            self.call(which, Failure);
        }
    }

    fn states(&self) -> Vec<State> {
        self.all.iter().map(Breaker::state).collect()
    }
}

fn fleet(count: usize) -> Fleet {
    let mut fleet = Fleet::new(count, &RULES());
    fleet.sync_all();
    fleet
}

#[test]
fn what_one_finds_out_all_know() {
    let mut fleet = fleet(3);
    fleet.fail(1);
    assert!(fleet.all[1].calls());
    assert_eq!(fleet.states(), [Closed, Open, Closed]);
    fleet.sync(1);
    fleet.wait(SECOND);
    assert_eq!(fleet.sync(0), Some(Transition { from: Closed, to: Open }));
    fleet.sync_all();
    assert_eq!(fleet.states(), [Open; 3]);
    for one in &fleet.all {
        assert_eq!(one.stats().retry_after, Some(9 * SECOND));
    }
    assert_eq!(fleet.all[0].stats().sharing.unwrap().opened_elsewhere, 1);
    assert_eq!(fleet.all[1].stats().sharing.unwrap().opened_elsewhere, 0);

    // One of them probes.
    fleet.wait(9 * SECOND);
    fleet.sync_all();
    assert!(!fleet.call(2, Success) && !fleet.call(0, Success));
    assert!(fleet.all[2].calls());
    fleet.sync(2);
    fleet.sync(0);
    assert!(!fleet.call(0, Success));
    assert!(fleet.call(2, Success) && fleet.call(2, Success));
    assert_eq!(fleet.states(), [HalfOpen, HalfOpen, Closed]);
    fleet.sync(2);
    fleet.sync_all();
    assert_eq!(fleet.states(), [Closed; 3]);
    assert_eq!(fleet.all[0].stats().sharing.unwrap().closed_elsewhere, 1);
    assert_eq!(fleet.all[0].stats().calls, 0);
}

#[test]
fn who_was_refused_while_it_rested_asks_when_it_has() {
    let mut fleet = fleet(2);
    fleet.fail(0);
    fleet.sync_all();
    fleet.wait(9 * SECOND);
    assert_eq!(fleet.all[1].next_report(), crate::core::clock::NEVER);
    assert!(!fleet.call(1, Success));
    assert_eq!(fleet.all[1].next_report(), fleet.now() + SECOND);
    fleet.wait(SECOND);
    fleet.sync(1);
    assert!(fleet.call(1, Success));
}

#[test]
fn what_is_said_by_hand_is_said_to_all_but_to_those_that_only_look() {
    let mut fleet = fleet(3);
    fleet.all[2].metrics_only();
    fleet.all[0].force_open();
    fleet.sync(0);
    fleet.sync_all();
    assert_eq!(fleet.states(), [ForcedOpen, ForcedOpen, MetricsOnly]);
    fleet.all[1].disable();
    fleet.sync(1);
    fleet.sync_all();
    assert_eq!(fleet.states(), [Disabled, Disabled, MetricsOnly]);
    fleet.all[2].reset();
    fleet.sync(2);
    fleet.sync_all();
    assert_eq!(fleet.states(), [Closed; 3]);
}

#[test]
fn alone_it_goes_by_itself_and_comes_back_by_age() {
    let mut fleet = fleet(3);
    fleet.fail(0);
    fleet.sync(0);
    fleet.sync_all();
    for one in &fleet.all {
        one.alone();
    }
    fleet.wait(10 * SECOND);
    // All of them probe.
    assert!(fleet.call(0, Success) && fleet.call(0, Success));
    fleet.wait(SECOND);
    assert!(fleet.call(1, Failure));
    assert_eq!(fleet.states(), [Closed, Open, HalfOpen]);
    fleet.wait(SECOND);
    fleet.sync(1);
    fleet.sync(0);
    assert_eq!(fleet.states(), [Open, Open, HalfOpen]);
    fleet.sync(2);
    assert_eq!(fleet.states(), [Open; 3]);
}

#[test]
fn an_open_state_that_is_over_is_history() {
    let mut fleet = fleet(2);
    fleet.fail(0);
    fleet.sync(0);
    fleet.wait(16 * SECOND);
    assert_eq!(fleet.sync(1), None);
    assert_eq!(fleet.states(), [HalfOpen, Closed]);
    // Who believes it asks for the lease, and closes.
    fleet.sync(0);
    assert!(!fleet.call(0, Success));
    fleet.sync(0);
    assert!(fleet.call(0, Success) && fleet.call(0, Success));
    fleet.sync_all();
    assert_eq!(fleet.states(), [Closed; 2]);
}

#[test]
fn a_store_that_has_forgotten_is_told_and_leases_only_later() {
    let mut fleet = fleet(3);
    fleet.fail(0);
    fleet.sync_all();
    fleet.wait(10 * SECOND);
    fleet.sync_all();
    fleet.call(0, Success);
    fleet.sync(0);
    assert!(fleet.call(0, Success));
    let known = fleet.store.generation;
    fleet.store = Store::default();
    fleet.call(1, Success);
    fleet.sync(1);
    assert_eq!(fleet.store.generation, known);
    assert!(!fleet.call(1, Success));
    // The one that has it says so.
    fleet.wait(SECOND);
    fleet.sync(0);
    assert_eq!(fleet.store.holder, Some(0));
    assert!(fleet.call(0, Success));
    fleet.sync_all();
    fleet.sync_all();
    assert_eq!(fleet.states(), [Closed; 3]);
}

#[test]
fn a_lease_that_nobody_uses_moves_on_but_ever_more_slowly() {
    let mut fleet = fleet(2);
    fleet.fail(0);
    fleet.sync_all();
    fleet.wait(10 * SECOND);
    fleet.sync_all();
    let mut moved = 0;
    let mut last = None;
    for second in 0..120 {
        // Each calls once in 16 s.
        for which in 0..2 {
            if second % 16 == which as u64 * 8 {
                fleet.call(which, Success);
            }
        }
        fleet.sync_all();
        if fleet.store.holder.is_some() && fleet.store.holder != last {
            (moved, last) = (moved + 1, fleet.store.holder);
        }
        fleet.wait(SECOND);
    }
    assert!((2..16).contains(&moved), "{moved}");
    assert_eq!(fleet.states(), [Closed; 2]);
}

#[test]
fn a_prober_that_is_gone_is_followed_by_another() {
    let mut fleet = fleet(2);
    fleet.fail(0);
    fleet.sync_all();
    fleet.wait(10 * SECOND);
    fleet.sync_all();
    fleet.call(0, Success);
    fleet.sync(0);
    let (lost, _) = fleet.all[0].begin();
    assert!(lost.is_ok());
    let begun = fleet.now();
    while !fleet.call(1, Success) {
        fleet.sync(1);
        fleet.wait(SECOND);
        assert!(fleet.now() < begun + 30 * SECOND);
    }
    assert!(fleet.now() >= begun + 20 * SECOND);
}

#[test]
fn one_that_is_not_enabled_shares_nothing() {
    let clock = Clock::Manual(ManualClock::starting_at(SECOND));
    let one = Breaker::sharing(Settings { enabled: false, ..Settings::default() }, clock).unwrap();
    assert_eq!(one.stats().sharing, None);
    assert_eq!(one.report().word, None);
    let (alone, _) = breaker(Settings::default());
    assert_eq!(alone.stats().sharing, None);
}

#[derive(Clone, Debug)]
enum Act {
    Begin(usize),
    End(usize, bool),
    Wait(u64),
    /// The report arrives, the answer does.
    Sync(usize, bool, bool),
    /// What was sent is carried out much later, unanswered.
    Stray(usize),
    Arrives,
    Alone(usize),
    Hand(usize, u8),
    Empty,
    Fork(usize),
}

const COUNT: usize = 3;

fn acts(calm: bool) -> impl Strategy<Value = Vec<Act>> {
    let which = 0..COUNT;
    let usual = prop_oneof![
        12 => which.clone().prop_map(Act::Begin),
        10 => (0..8_usize, any::<bool>()).prop_map(|(which, well)| Act::End(which, well)),
        4 => (1..3_000_u64).prop_map(Act::Wait),
        12 => which.clone().prop_map(|which| Act::Sync(which, true, true)),
        2 => (which.clone(), any::<bool>()).prop_map(|(which, there)| Act::Sync(which, there, false)),
    ];
    let rare = prop_oneof![
        which.clone().prop_map(Act::Stray),
        Just(Act::Arrives),
        which.clone().prop_map(Act::Alone),
        (which.clone(), 0..4_u8).prop_map(|(which, how)| Act::Hand(which, how)),
        Just(Act::Empty),
        which.prop_map(Act::Fork),
    ];
    let act = if calm { usual.boxed() } else { prop_oneof![6 => usual, 1 => rare].boxed() };
    proptest::collection::vec(act, 0..400)
}

struct Play {
    fleet: Fleet,
    /// Whose, which, since when, and whether it is a probe that was begun with the store.
    under_way: Vec<(usize, Permit, Nanos, Option<u64>)>,
    strays: Vec<(usize, Report)>,
}

impl Play {
    fn act(&mut self, act: Act) {
        let fleet = &mut self.fleet;
        // No two steps at one moment.
        fleet.wait(1000);
        match act {
            Act::Begin(which) => {
                let joined = fleet.all[which].stats().sharing.unwrap().joined;
                if let (Ok(permit), _) = fleet.all[which].begin() {
                    let probe = (permit.is_probe() && joined).then_some(fleet.store.generation);
                    self.under_way.push((which, permit, fleet.now(), probe));
                }
            }
            Act::End(which, well) => {
                if !self.under_way.is_empty() {
                    let at = which % self.under_way.len();
                    let (which, permit, ..) = self.under_way.swap_remove(at);
                    fleet.all[which].end(permit, if well { Success } else { Failure }, None);
                }
            }
            Act::Wait(ms) => fleet.wait(ms * SECOND / 1000),
            Act::Sync(which, _, true) => {
                fleet.sync(which);
            }
            Act::Sync(which, there, false) => {
                let (report, now) = (fleet.all[which].report(), fleet.now());
                if there {
                    fleet.store.carry_out(which, &report, fleet.probe, now);
                }
            }
            Act::Stray(which) => self.strays.push((which, fleet.all[which].report())),
            Act::Arrives => {
                if let Some((which, report)) = self.strays.pop() {
                    let now = fleet.now();
                    fleet.store.carry_out(which, &report, fleet.probe, now);
                }
            }
            Act::Alone(which) => fleet.all[which].alone(),
            Act::Hand(which, how) => {
                let one = &fleet.all[which];
                let _ = match how {
                    0 => one.force_open(),
                    1 => one.disable(),
                    2 => one.metrics_only(),
                    _ => one.reset(),
                };
            }
            Act::Empty => fleet.store = Store::default(),
            Act::Fork(which) => fleet.all[which].after_fork(),
        }
    }

    /// Everything is well from now on, and so is the store.
    fn calm_down(&mut self) {
        let fleet = &mut self.fleet;
        for (which, permit, ..) in self.under_way.drain(..) {
            fleet.all[which].end(permit, Success, None);
        }
        for _ in 0..400 {
            for which in 0..COUNT {
                fleet.call(which, Success);
                fleet.sync(which);
            }
            fleet.wait(SECOND / 4);
        }
        for _ in 0..2 {
            fleet.sync_all();
        }
    }
}

fn play(probes: u32) -> Play {
    let settings = Settings { half_open_max_calls: probes, ..RULES() };
    let fleet = Fleet::new(COUNT, &settings);
    Play { fleet, under_way: Vec::new(), strays: Vec::new() }
}

proptest! {
    #![proptest_config(crate::core::cases(300, 30_000))]

    /// Whatever is lost, late, forgotten and said: it does not stay open, and all agree.
    #[test]
    fn it_never_stays_open_for_ever(acts in acts(false), probes in 1..3_u32) {
        let mut play = play(probes);
        for act in acts {
            play.act(act);
        }
        play.calm_down();
        let states = play.fleet.states();
        let by_hand = |state: &State| matches!(state, ForcedOpen | Disabled | MetricsOnly);
        let judged: Vec<_> = states.iter().filter(|&state| *state != MetricsOnly).collect();
        prop_assert!(judged.windows(2).all(|two| two[0] == two[1]), "{:?}", states);
        prop_assert!(judged.iter().all(|state| **state == Closed || by_hand(state)), "{:?}", states);
    }

    /// While the store answers there are never more probes than allowed, in all processes together,
    /// however many questions and answers are lost on the way.
    #[test]
    fn all_together_never_probe_more_than_one_would(acts in acts(true), probes in 1..3_u32) {
        let mut play = play(probes);
        play.fleet.sync_all();
        let timeout = play.fleet.probe;
        for act in acts {
            play.act(act);
            let now = play.fleet.now();
            let mut by_generation = std::collections::BTreeMap::<u64, usize>::new();
            for &(_, _, begun, probe) in &play.under_way {
                if let Some(generation) = probe.filter(|_| now < begun + timeout) {
                    *by_generation.entry(generation).or_default() += 1;
                }
            }
            for (generation, count) in by_generation {
                prop_assert!(count <= probes as usize, "{} in {}", count, generation);
            }
        }
        play.calm_down();
        prop_assert_eq!(play.fleet.states(), vec![Closed; COUNT]);
    }
}
