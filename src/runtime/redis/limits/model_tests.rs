//! Several processes, a store, and what may happen to both, on one manual clock.
//!
//! The processes are the limiters and links that run in earnest, driven as [`super::talk`] drives
//! them; the store does what [`super::lua`] does, for one limit. Requests and replies take their
//! time, are lost, arrive after nobody waits for them any more; the server is stopped, killed,
//! started with what it had, with what it had a moment ago, with nothing; processes come, are
//! stopped and die.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use proptest::prelude::*;

use super::link::{BEAT, GONE, Link, SILENT};
use crate::core::clock::{Clock, ManualClock, Nanos, SECOND};
use crate::core::limiter::shared::{Ask, Charge, Leases, Sharing};
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

/// What `lua` keeps.
#[derive(Clone, Debug, Default)]
struct Store {
    epoch: Option<u64>,
    run: u64,
    born: Nanos,
    last: Nanos,
    expect: Option<(u64, Nanos)>,
    came: u64,
    members: BTreeMap<Id, Nanos>,
    among: HashMap<Id, u64>,
    /// Permits by when they leave the window.
    ends: BTreeMap<Nanos, u64>,
}

#[derive(Clone, Debug)]
enum Request {
    Connect,
    Beat {
        join: bool,
        known: Option<u64>,
        peers: u64,
        last_beat: Nanos,
        not_after: Nanos,
        heard: Nanos,
    },
    Lease {
        epoch: Option<u64>,
        not_after: Nanos,
        ask: Ask<u8>,
    },
    Tell {
        epoch: Option<u64>,
        not_after: Nanos,
        used: Vec<(Nanos, u64)>,
    },
}

#[derive(Clone, Debug)]
enum Reply {
    Connected,
    Beat { epoch: u64, time: Nanos, joined: bool, members: u64 },
    Lease { time: Nanos, granted: u32, slice: Nanos, left: u64 },
    Told { time: Nanos },
    Late { time: Nanos },
    OtherEpoch { time: Nanos },
}

impl Store {
    fn carry_out(&mut self, now: Nanos, run: u64, limit: u64, who: Id, request: &Request) -> Reply {
        match request {
            Request::Connect => Reply::Connected,
            Request::Beat { join, known, peers, last_beat, not_after, heard } => {
                let join = *join && (*not_after == 0 || now <= *not_after);
                self.beat(now, run, who, join, *known, *peers, *last_beat, *heard)
            }
            Request::Lease { epoch, not_after, .. } | Request::Tell { epoch, not_after, .. }
                if *epoch != self.epoch || *not_after > 0 && now > *not_after =>
            {
                let other = *epoch != self.epoch;
                if other { Reply::OtherEpoch { time: now } } else { Reply::Late { time: now } }
            }
            Request::Lease { ask, .. } => self.lease(now, limit, who, ask),
            Request::Tell { used, .. } => {
                for (age, used) in used {
                    *self.ends.entry(now - age + PERIOD).or_default() += used;
                }
                Reply::Told { time: now }
            }
        }
    }

    fn lease(&mut self, now: Nanos, limit: u64, who: Id, ask: &Ask<u8>) -> Reply {
        let mut shut = false;
        if let Some((expect, until)) = self.expect {
            shut = now < until && self.came < expect;
            if !shut {
                self.expect = None;
            }
        }
        self.ends = self.ends.split_off(&(now + 1));
        for (slice, permits) in &ask.back {
            if let Some(held) = self.ends.get_mut(&(slice + PERIOD)) {
                *held -= u64::from(*permits).min(*held);
            }
        }
        let quiet = self
            .members
            .iter()
            .filter(|(id, heard)| **id != who && **heard < now - SILENT && **heard >= now - GONE);
        let kept: u64 = quiet.map(|(id, _)| limit / self.among.get(id).copied().unwrap_or(1)).sum();
        let left = limit.saturating_sub(self.ends.values().sum::<u64>() + kept);
        let most = u32::try_from(left).unwrap().min(ask.want);
        let granted = if most >= ask.least && !shut { most } else { 0 };
        let slice = now + VALIDITY;
        *self.ends.entry(slice + PERIOD).or_default() += u64::from(granted);
        Reply::Lease { time: now, granted, slice, left: left - u64::from(granted) }
    }

    #[expect(clippy::too_many_arguments, reason = "as many as the script has")]
    fn beat(
        &mut self,
        now: Nanos,
        run: u64,
        who: Id,
        join: bool,
        known: Option<u64>,
        peers: u64,
        last_beat: Nanos,
        heard: Nanos,
    ) -> Reply {
        let mut waits = peers.max(self.members.len() as u64);
        let set_back = self.last > now + SECOND || self.epoch == known && self.last < last_beat;
        if self.run != run || set_back {
            self.epoch = None;
        }
        if let Some(epoch) = self.epoch {
            let before = self.expect.map_or(0, |one| one.0);
            if Some(epoch) != known && peers > 0 && now < self.born + GONE {
                self.expect = Some((peers.max(before), self.born + GONE));
            }
            waits = waits.max(before);
            if self.last < now - SILENT && waits > 0 {
                self.members.clear();
                (self.expect, self.came) = (Some((waits, now + GONE)), 0);
            }
        } else {
            // What was of the last epoch is under another name.
            *self = Self { epoch: Some(now), run, born: now, ..Self::default() };
            self.expect = (waits > 0).then_some((waits, now + GONE));
        }
        self.last = now;
        self.members.retain(|_, heard| *heard > now - GONE);
        let joined = join && (self.epoch == known || peers == 0);
        if joined {
            let heard = if peers > 0 { now.min(heard.max(now - SILENT - 1)) } else { now };
            if self.members.insert(who, heard).is_none() && peers > 0 {
                self.came += 1;
            }
            let all = self.members.len() as u64;
            self.among.insert(who, if peers > 0 { all.min(peers) } else { all });
        }
        let (epoch, members) = (self.epoch.unwrap_or_default(), self.members.len() as u64);
        Reply::Beat { epoch, time: now, joined, members }
    }
}

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

    fn send(&mut self, id: Id, request: Request) {
        let now = self.now();
        self.number += 1;
        let number = self.number;
        let there = self.any(2) * MS + if self.slow.1 > now { self.slow.0 } else { 0 };
        let mut back = Some(self.any(2) * MS + if self.slow.1 > now { self.slow.0 } else { 0 });
        let mut arrives = self.up;
        if let Some((until, both)) = self.cut.get(&id)
            && *until > now
        {
            back = None;
            arrives = arrives && !both;
        }
        match if self.lossy { self.any(200) } else { 200 } {
            0 => arrives = false,
            1 => back = None,
            2 => back = Some((100 + self.any(400)) * MS),
            _ => {}
        }
        if arrives {
            self.at(now + there, Event::Reaches(id, number, self.run, request.clone(), back));
        }
        // One that is not there refuses at once.
        let patience = if self.up { PATIENCE } else { 0 };
        self.at(now + patience, Event::GivesUp(id, number));
        self.processes[id].doing = Doing::Waits { number, sent: now, request: Box::new(request) };
    }

    fn not_after(link: &Link, sent: Nanos) -> Nanos {
        match link.latest(sent) {
            0 => 0,
            latest => latest * 1000 + PATIENCE,
        }
    }

    fn epoch(link: &Link) -> Option<u64> {
        link.epoch.as_ref().and_then(|one| one.parse().ok())
    }

    fn beat(&mut self, id: Id, join: bool) {
        let now = self.now();
        let link = &self.processes[id].link;
        let request = Request::Beat {
            join,
            known: Self::epoch(link),
            peers: u64::from(link.peers()),
            last_beat: link.last_beat * 1000,
            not_after: Self::not_after(link, now),
            heard: link.last_heard() * 1000,
        };
        self.send(id, request);
    }

    /// As `Talk::try_round` goes on.
    fn round(&mut self, id: Id) {
        let now = self.now();
        if !self.processes[id].connected {
            return self.send(id, Request::Connect);
        }
        let process = &mut self.processes[id];
        if !process.link.joined {
            let past = process.link.has_past();
            return match process.joining.as_mut().map(Vec::pop) {
                None if past => self.beat(id, false),
                Some(Some(told)) => self.send(id, told),
                _ => self.beat(id, true),
            };
        }
        if now >= process.link.beat_at + BEAT {
            return self.beat(id, true);
        }
        let wanted = process.limiter.due();
        let Some(ask) = wanted.asks.into_iter().next() else {
            let next = wanted.next.min(process.link.beat_at + BEAT);
            return self.round_at(next, id);
        };
        let (epoch, not_after) = (Self::epoch(&process.link), Self::not_after(&process.link, now));
        self.send(id, Request::Lease { epoch, not_after, ask });
    }

    fn hears(&mut self, id: Id, sent: Nanos, request: Request, reply: Reply) {
        let now = self.now();
        let mut out = Outbox::new();
        let process = &mut self.processes[id];
        let (link, limiter) = (&mut process.link, &process.limiter);
        match reply {
            Reply::Connected => {
                process.connected = true;
                link.beat_at = 0;
            }
            Reply::Beat { epoch, time, joined, members } => {
                let Request::Beat { join, .. } = request else { unreachable!() };
                link.heard(sent, now, time / 1000);
                link.joined = joined;
                link.beat_at = now;
                let epoch = Some(epoch.to_string());
                if epoch != link.epoch || joined {
                    link.last_beat = time / 1000;
                }
                if link.has_past() && epoch != link.epoch {
                    link.untold = Some(0);
                }
                link.epoch = epoch;
                if joined {
                    limiter.shared_by(link.shared_by(members, now));
                    process.joining = None;
                    link.untold = None;
                    if limiter.lost_at().is_some() {
                        limiter.found(&mut out);
                    }
                } else {
                    process.joining = None;
                    if !join {
                        limiter.found(&mut out);
                        let charges = link.untold.map(|since| limiter.charges(since));
                        let tell = |charge: Charge<u8>| Request::Tell {
                            epoch: Self::epoch(link),
                            not_after: 0,
                            used: charge.used.iter().map(|(at, used)| (now - at, *used)).collect(),
                        };
                        let told = charges.unwrap_or_default().into_iter().map(tell).collect();
                        process.joining = Some(told);
                    } else if process.link.has_past() {
                        // It was too late, or another epoch has begun.
                        return self.round_at(now + MS, id);
                    }
                }
            }
            Reply::Lease { time, granted, slice, left } => {
                let Request::Lease { ask, .. } = request else { unreachable!() };
                link.heard(sent, now, time / 1000);
                let (want, until, again) = (ask.want, sent + VALIDITY, now + 2 * MS);
                let leases = Leases { want, granted, until, slice, again, left };
                limiter.arrived(None, &leases, &mut out);
            }
            Reply::Told { time } => link.heard(sent, now, time / 1000),
            Reply::Late { time } | Reply::OtherEpoch { time } => {
                link.heard(sent, now, time / 1000);
                if matches!(request, Request::Tell { .. }) {
                    return self.fails(id, &request);
                }
                link.joined = link.joined && matches!(reply, Reply::Late { .. });
                limiter.failed(None, now);
            }
        }
        self.round_at(now, id);
    }

    fn fails(&mut self, id: Id, request: &Request) {
        let now = self.now();
        let process = &mut self.processes[id];
        if matches!(request, Request::Lease { .. }) {
            process.limiter.failed(None, now + PAUSE);
        }
        process.connected = false;
        process.joining = None;
        process.link.failed();
        if process.link.has_past() && process.link.is_lost(now) {
            process.link.joined = false;
            if process.link.is_known() {
                process.link.untold.get_or_insert(now);
                process.limiter.lost(&mut Outbox::new());
            }
        }
        self.round_at(now + PAUSE, id);
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
    let begun = world.now();
    world.run(begun + 20 * SECOND);
    assert!(world.granted >= 60 * 20 * 95 / 100, "{}", world.granted);
}
