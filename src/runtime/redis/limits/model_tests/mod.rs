//! Several processes, a store, and what may happen to both, on one manual clock.
//!
//! The processes are the limiters and links that run in earnest, driven as [`super::talk`] drives
//! them; the store does what [`super::lua`] does, for one limit. Requests and replies take their
//! time, are lost, arrive after nobody waits for them any more; the server is stopped, killed,
//! started with what it had, with what it had a moment ago, with nothing; processes come, are
//! stopped and die.

mod process;
mod store;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use proptest::prelude::*;

use self::store::{Reply, Request, Store};
use super::link::{GONE, HEARD, Link, SILENT};
use crate::core::clock::{Clock, ManualClock, Nanos, SECOND};
use crate::core::limiter::shared::Sharing;
use crate::core::limiter::{Algorithm, Limiter, Outbox, Settings};

const MS: Nanos = SECOND / 1000;
const PERIOD: Nanos = SECOND;
const VALIDITY: Nanos = 20 * MS;
const PATIENCE: Nanos = 250 * MS;
const PAUSE: Nanos = 100 * MS;

/// More of them: `PROPTEST_CASES`.
const CASES: u32 = 48;

type Tested = Limiter<u8, u32>;
type Id = usize;

/// What a process waits for.
#[derive(Clone, Debug)]
enum Doing {
    Rest,
    Waits { number: u64, sent: Nanos, request: Box<Request> },
}

struct Process {
    limiter: Tested,
    link: Link,
    doing: Doing,
    connected: bool,
    /// The next round; others were before.
    timer: u64,
    /// What is still to be told before it joins.
    joining: Option<Vec<Request>>,
    stopped_until: Nanos,
    dead: bool,
}

#[derive(Debug)]
enum Event {
    Round(Id, u64),
    /// Reaches the store, if the server that it was sent to is the one that runs.
    Reaches(Id, u64, u64, Request, Option<Nanos>),
    Comes(Id, u64, Reply),
    GivesUp(Id, u64),
    Wants(Id),
    Fault(Fault),
    Starts(Option<Box<Store>>),
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The server stops, for so long.
    Stop(Nanos),
    /// It is killed and started again after so long, with what it had so long ago; or empty.
    Kill(Nanos, Option<Nanos>),
    /// It forgets all.
    Flush,
    /// A process is stopped.
    Freeze(Id, Nanos),
    /// It dies.
    Die(Id),
    /// Another one comes.
    Come,
    /// Nothing that a process sends, or is sent, arrives.
    Cut(Id, Nanos, bool),
    /// Each way takes so long, for so long.
    Slow(Nanos, Nanos),
}

struct World {
    clock: ManualClock,
    limit: u64,
    events: BinaryHeap<Reverse<(Nanos, u64)>>,
    what: HashMap<u64, Event>,
    number: u64,
    store: Store,
    /// What it had, by when.
    past: Vec<(Nanos, Store)>,
    run: u64,
    up: bool,
    up_since: Nanos,
    stopped_until: Nanos,
    processes: Vec<Process>,
    cut: HashMap<Id, (Nanos, bool)>,
    slow: (Nanos, Nanos),
    random: u64,
    /// Now and then a request, or its answer, is late or lost.
    lossy: bool,
    grants: Vec<(Nanos, Id, u64)>,
    granted: u64,
    log: Vec<String>,
}

impl World {
    fn new(processes: usize, limit: u64, seed: u64) -> Self {
        let mut world = Self {
            clock: ManualClock::starting_at(1000 * SECOND),
            limit,
            events: BinaryHeap::new(),
            what: HashMap::new(),
            number: 0,
            store: Store { run: 1, ..Store::default() },
            past: Vec::new(),
            run: 1,
            up: true,
            up_since: 0,
            stopped_until: 0,
            processes: Vec::new(),
            cut: HashMap::new(),
            slow: (0, 0),
            random: seed | 1,
            lossy: true,
            grants: Vec::new(),
            granted: 0,
            log: Vec::new(),
        };
        (0..processes).for_each(|_| world.comes());
        world
    }

    fn now(&self) -> Nanos {
        self.clock.now()
    }

    /// One of so many; xorshift.
    fn any(&mut self, of: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % of
    }

    fn at(&mut self, when: Nanos, event: Event) {
        self.number += 1;
        self.events.push(Reverse((when.max(self.now()), self.number)));
        self.what.insert(self.number, event);
    }

    fn round_at(&mut self, when: Nanos, id: Id) {
        self.processes[id].timer += 1;
        let timer = self.processes[id].timer;
        self.at(when, Event::Round(id, timer));
    }

    fn comes(&mut self) {
        let settings = Settings {
            limits: vec![format!("{}/second", self.limit).parse().unwrap()],
            burst: None,
            adaptive: None,
            algorithm: Algorithm::SlidingWindow,
            max_keys: 10,
            max_waiters: 100,
            enabled: true,
            sharing: Some(Sharing { validity: VALIDITY, patience: PATIENCE }),
        };
        let (id, now) = (self.processes.len(), self.now());
        self.processes.push(Process {
            limiter: Limiter::new(settings, Clock::Manual(self.clock.clone())).unwrap(),
            link: Link::new(id.to_string(), now),
            doing: Doing::Rest,
            connected: false,
            timer: 0,
            joining: None,
            stopped_until: 0,
            dead: false,
        });
        self.at(now, Event::Wants(id));
        self.round_at(now, id);
    }

    fn run(&mut self, until: Nanos) {
        while let Some(&Reverse((when, number))) = self.events.peek() {
            if when > until {
                return;
            }
            self.events.pop();
            self.clock.advance(when.saturating_sub(self.now()));
            if let Some(event) = self.what.remove(&number) {
                self.happens(event);
            }
        }
    }

    fn happens(&mut self, event: Event) {
        let now = self.now();
        if let Event::Round(id, _)
        | Event::Comes(id, ..)
        | Event::GivesUp(id, _)
        | Event::Wants(id) = event
        {
            let process = &self.processes[id];
            if process.dead {
                return;
            }
            if process.stopped_until > now {
                return self.at(process.stopped_until, event);
            }
        }
        match event {
            Event::Wants(id) => self.wants(id),
            Event::Round(id, number) => {
                let process = &self.processes[id];
                if matches!(process.doing, Doing::Rest) && number == process.timer {
                    self.round(id);
                }
            }
            Event::Reaches(id, number, run, request, back) => {
                if !self.up || run != self.run {
                    return;
                }
                if self.stopped_until > now {
                    return self
                        .at(self.stopped_until, Event::Reaches(id, number, run, request, back));
                }
                let reply = self.store.carry_out(now, self.run, self.limit, id, &request);
                if self.past.last().is_none_or(|one| now - one.0 > 5 * MS) {
                    self.past.push((now, self.store.clone()));
                }
                if let Some(back) = back {
                    self.at(now + back, Event::Comes(id, number, reply));
                }
            }
            Event::Comes(id, number, reply) => {
                let doing = &self.processes[id].doing;
                if let Doing::Waits { number: waits, sent, request } = doing.clone()
                    && waits == number
                {
                    self.processes[id].doing = Doing::Rest;
                    self.hears(id, sent, *request, reply);
                }
            }
            Event::GivesUp(id, number) => {
                if let Doing::Waits { number: waits, request, .. } =
                    self.processes[id].doing.clone()
                    && waits == number
                {
                    self.processes[id].doing = Doing::Rest;
                    self.fails(id, &request);
                }
            }
            Event::Fault(fault) => self.fault(fault),
            Event::Starts(store) => {
                (self.up, self.up_since) = (true, now);
                self.run += 1;
                self.store = store.map_or_else(Store::default, |one| *one);
                self.past.clear();
            }
        }
    }

    fn fault(&mut self, fault: Fault) {
        let now = self.now();
        self.log.push(format!("{} {fault:?}", now / MS));
        let alive = self.processes.len();
        match fault {
            Fault::Stop(time) if self.up => self.stopped_until = self.stopped_until.max(now + time),
            Fault::Kill(time, age) if self.up => {
                let had = age.map(|age| {
                    let had = self.past.iter().rev().find(|one| one.0 + age <= now);
                    Box::new(had.map_or_else(Store::default, |one| one.1.clone()))
                });
                let had = if age == Some(0) { Some(Box::new(self.store.clone())) } else { had };
                (self.up, self.stopped_until) = (false, 0);
                self.at(now + time, Event::Starts(had));
            }
            Fault::Flush if self.up => {
                self.store = Store { run: self.run, ..Store::default() };
                self.past.clear();
            }
            Fault::Freeze(id, time) => self.processes[id % alive].stopped_until = now + time,
            Fault::Die(id) => self.processes[id % alive].dead = true,
            Fault::Come if alive < 7 => self.comes(),
            Fault::Cut(id, time, both) => {
                self.cut.insert(id % alive, (now + time, both));
            }
            Fault::Slow(each, time) => self.slow = (each, now + time),
            _ => {}
        }
    }

    fn wants(&mut self, id: Id) {
        let now = self.now();
        let cost = 1 + u32::try_from(self.any(2)).unwrap();
        let mut out = Outbox::new();
        let granted = self.processes[id].limiter.try_acquire(None, cost, &mut out).granted;
        if granted && !self.is_taken_for_gone(id) {
            self.grants.retain(|one| one.0 + PERIOD > now);
            self.grants.push((now, id, u64::from(cost)));
            self.granted += u64::from(cost);
            let within: u64 = self.grants.iter().map(|one| one.2).sum();
            assert!(within <= self.limit, "{}", self.tell(within));
        }
        let pause = (1 + self.any(25)) * MS;
        self.at(now + pause, Event::Wants(id));
        if self.processes[id].limiter.calls() && self.processes[id].link.failures == 0 {
            self.round_at(now, id);
        }
    }

    /// Nothing is promised of a process that is on its own while the others are not.
    fn is_taken_for_gone(&self, id: Id) -> bool {
        let process = &self.processes[id];
        let since = process.link.heard_at.max(self.stopped_until).max(self.up_since);
        process.limiter.lost_at().is_some()
            && self.up
            && self.now().saturating_sub(since) > GONE - SILENT - SECOND / 2
    }

    fn tell(&self, within: u64) -> String {
        let mut by: BTreeMap<Id, u64> = BTreeMap::new();
        for (_, id, cost) in &self.grants {
            *by.entry(*id).or_default() += cost;
        }
        let alone: Vec<_> =
            self.processes.iter().map(|one| one.limiter.lost_at().map(|at| at / MS)).collect();
        let knows: Vec<_> = self.processes.iter().map(|one| one.limiter.members()).collect();
        format!(
            "{within} of {} at {}: {by:?}, alone since {alone:?}, members {knows:?}\n{}",
            self.limit,
            self.now() / MS,
            self.log.join("\n")
        )
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    let time = (0..4000_u64).prop_map(|ms| ms * MS);
    let age = prop_oneof![Just(None), Just(Some(0)), (0..1500_u64).prop_map(|ms| Some(ms * MS))];
    prop_oneof![
        3 => time.clone().prop_map(Fault::Stop),
        4 => (time.clone(), age).prop_map(|(time, age)| Fault::Kill(time, age)),
        1 => Just(Fault::Flush),
        2 => (0..7_usize, time.clone()).prop_map(|(id, time)| Fault::Freeze(id, time)),
        1 => (0..7_usize).prop_map(Fault::Die),
        2 => Just(Fault::Come),
        2 => (0..7_usize, time.clone(), any::<bool>()).prop_map(|(id, time, both)| Fault::Cut(id, time, both)),
        1 => (0..400_u64, time).prop_map(|(each, time)| Fault::Slow(each * MS, time)),
    ]
}

fn cases() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").is_ok();
    if asked { ProptestConfig::default() } else { ProptestConfig::with_cases(CASES) }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn no_window_is_ever_over(
        limit in 4_u64..60,
        seed in any::<u64>(),
        faults in prop::collection::vec((0..9000_u64, fault()), 0..6),
    ) {
        let mut world = World::new(4, limit, seed);
        let mut at = world.now() + 3 * SECOND;
        for (after, fault) in faults {
            at += after * MS;
            world.at(at, Event::Fault(fault));
        }
        world.run(at + 12 * SECOND);
    }
}

#[test]
fn while_all_is_well_nothing_is_wasted() {
    let mut world = World::new(4, 60, 7);
    world.lossy = false;
    let begun = world.now() + HEARD;
    world.run(begun + 20 * SECOND);
    assert!(world.granted >= 60 * 20 * 95 / 100, "{}", world.granted);
}

#[test]
fn who_finds_a_store_that_has_forgotten_all_waits_for_those_who_know() {
    for seed in 1..20 {
        for late in [0, 2, 50, 150, 240] {
            let mut world = World::new(4, 44, seed);
            let at = world.now() + 4 * SECOND + seed * 13 * MS;
            world.at(at, Event::Fault(Fault::Flush));
            world.at(at + late * MS, Event::Fault(Fault::Come));
            world.run(at + 3 * SECOND);
        }
    }
}

#[test]
fn the_first_of_all_is_kept_waiting_for_two_beats() {
    let mut world = World::new(1, 44, 3);
    world.lossy = false;
    let begun = world.now();
    world.run(begun + HEARD);
    assert_eq!(world.granted, 0);
    world.run(begun + HEARD + 100 * MS);
    assert!(world.granted > 0);
}
