//! The whole limiter against a naive simulation with lists.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::amounts::DIMENSIONS;
use super::line::PATIENCE;
use super::naive::{Naive, PERIOD, Waiting};
use super::*;
use crate::core::cases;
use crate::core::clock::{ManualClock, SECOND};

type Bell = Arc<AtomicU32>;
type Tested = LlmLimiter<u32, Bell>;

#[derive(Clone, Debug)]
enum Step {
    Reserve { tenant: u32, amounts: Amounts, wait: bool },
    Settle { which: usize, percent: u64 },
    Release { which: usize, sent: bool },
    Cancel { which: usize },
    Pause { seconds: u64 },
    Update { limits: [Option<u64>; DIMENSIONS] },
    Pass { gap: Nanos },
}

fn limits() -> impl Strategy<Value = [Option<u64>; DIMENSIONS]> {
    (
        prop_oneof![1 => Just(None), 3 => (1u64..12).prop_map(Some)],
        prop::option::of(50u64..2_000),
        prop::option::of(50u64..2_000),
        prop::option::of(2_000u64..4_000),
        prop::option::of(100u64..10_000),
    )
        .prop_filter("something to limit", |limits| {
            limits.0.or(limits.1).or(limits.2).or(limits.3).or(limits.4).is_some()
        })
        .prop_map(|(r, i, o, t, u)| [r, i, o, t, u])
}

fn step() -> impl Strategy<Value = Step> {
    let amounts =
        (0u64..600, 0u64..600, 0u64..2_000).prop_map(|(i, o, u)| Amounts::new(1, i, o, u));
    prop_oneof![
        10 => (0u32..4, amounts, any::<bool>())
            .prop_map(|(tenant, amounts, wait)| Step::Reserve { tenant, amounts, wait }),
        5 => (0usize..8, prop_oneof![0u64..100, 0u64..300]).prop_map(|(which, percent)| Step::Settle { which, percent }),
        2 => (0usize..8, any::<bool>()).prop_map(|(which, sent)| Step::Release { which, sent }),
        2 => (0usize..8).prop_map(|which| Step::Cancel { which }),
        1 => (0u64..30).prop_map(|seconds| Step::Pause { seconds }),
        1 => limits().prop_map(|limits| Step::Update { limits }),
        8 => prop_oneof![0..5 * SECOND, 0..40 * SECOND, Just(PATIENCE)].prop_map(|gap| Step::Pass { gap }),
    ]
}

struct Held {
    grant: Grant<u32>,
    index: usize,
    tenant: u32,
}

struct Waiter {
    ticket: Ticket,
    tenant: u32,
    bell: Bell,
    heard: u32,
    timer: Nanos,
    not_before: Nanos,
    loosened: u64,
}

/// Runs both side by side.
struct Bench {
    limiter: Tested,
    clock: ManualClock,
    naive: Naive,
    held: Vec<Held>,
    waiters: Vec<Waiter>,
    /// How often something happened that may make a wait shorter than `eta` said.
    loosened: u64,
    /// Limits were lowered, so more may be in use than they allow.
    lowered: bool,
}

impl Bench {
    fn call<T>(&self, body: impl FnOnce(&Tested, &mut Outbox<u32, Bell>) -> T) -> T {
        let mut out = Outbox::new();
        let answer = body(&self.limiter, &mut out);
        for bell in out.take_wakes() {
            bell.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    fn ask(tenant: u32, amounts: Amounts) -> Ask<u32> {
        let usd = Some(amounts.get(Dimension::Usd));
        let input = amounts.get(Dimension::InputTokens);
        let output = amounts.get(Dimension::OutputTokens);
        Ask { usd, tenant: Some(tenant), ..Ask::tokens(input, output) }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let now = self.clock.now();
        match step {
            Step::Pass { gap } => {
                self.clock.advance(gap);
                self.call(LlmLimiter::clock_moved);
            }
            Step::Reserve { tenant, amounts, wait } => self.reserve(now, tenant, amounts, wait)?,
            Step::Settle { which, percent } => {
                if which < self.held.len() {
                    let Held { grant, index, tenant } = self.held.swap_remove(which);
                    let reserved = *grant.amounts();
                    let of = |d: Dimension| Some(reserved.get(d) * percent / 100);
                    let usage = Usage {
                        input: of(Dimension::InputTokens),
                        output: of(Dimension::OutputTokens),
                        usd: of(Dimension::Usd),
                    };
                    let actual = Amounts::new(
                        1,
                        usage.input.unwrap(),
                        usage.output.unwrap(),
                        usage.usd.unwrap(),
                    );
                    self.loosened += u64::from(percent < 100);
                    self.call(|l, out| l.settle(grant, &usage, out));
                    self.naive.close(now, tenant, index, reserved, actual);
                }
            }
            Step::Release { which, sent } => {
                if which < self.held.len() {
                    let Held { grant, index, tenant } = self.held.swap_remove(which);
                    let reserved = *grant.amounts();
                    self.loosened += 1;
                    self.call(|l, out| l.release(grant, sent, out));
                    let actual = Amounts::new(u64::from(sent), 0, 0, 0);
                    self.naive.close(now, tenant, index, reserved, actual);
                }
            }
            Step::Cancel { which } => {
                if which < self.waiters.len() {
                    let waiter = self.waiters.remove(which);
                    self.loosened += 1;
                    self.naive.line.retain(|other| other.ticket != waiter.ticket);
                    self.naive.note_firsts(now);
                    let tenant = Some(waiter.tenant);
                    prop_assert!(self.call(|l, out| l.cancel(tenant, waiter.ticket, out)));
                    prop_assert!(!self.call(|l, out| l.cancel(tenant, waiter.ticket, out)));
                }
            }
            Step::Pause { seconds } => {
                self.call(|l, out| l.pause(seconds * SECOND, out));
                self.naive.paused_until = self.naive.paused_until.max(now + seconds * SECOND);
            }
            Step::Update { limits } => {
                self.loosened += 1;
                self.lowered = true;
                self.naive.limits = limits;
                let limits = limits.map(Change::To);
                self.call(|l, out| l.update(limits, Change::Keep, out)).unwrap();
            }
        }
        self.pick_up()?;
        self.agree()
    }

    fn reserve(
        &mut self,
        now: Nanos,
        tenant: u32,
        amounts: Amounts,
        wait: bool,
    ) -> Result<(), TestCaseError> {
        let ask = Self::ask(tenant, amounts);
        let slot = self.naive.slots.is_none_or(|slots| self.naive.open < slots);
        let impossible = self.impossible(&amounts);
        let fits = self.naive.line.is_empty() && slot && self.naive.fits(now, &amounts);
        let answer = self.call(|l, out| l.try_enter(&ask, out));
        match answer {
            Ok(grant) => {
                prop_assert!(fits && !impossible);
                let share = self.naive.share(&amounts);
                let index = self.naive.grant(now, tenant, amounts, share);
                self.held.push(Held { grant, index, tenant });
            }
            Err(verdict) => {
                prop_assert!(impossible || !fits);
                prop_assert_eq!(verdict.reason == Reason::TooLarge, impossible);
                prop_assert_eq!(verdict.retry_after == NEVER, impossible);
                if matches!(verdict.reason, Reason::Limited | Reason::Paused) {
                    prop_assert_eq!(verdict.retry_after, self.naive.wait(now, &amounts));
                }
                if wait {
                    self.join(now, &ask, amounts, impossible)?;
                }
            }
        }
        Ok(())
    }

    fn impossible(&self, amounts: &Amounts) -> bool {
        (0..DIMENSIONS).any(|d| self.naive.limits[d].is_some_and(|limit| amounts.0[d] > limit))
    }

    fn join(
        &mut self,
        now: Nanos,
        ask: &Ask<u32>,
        amounts: Amounts,
        impossible: bool,
    ) -> Result<(), TestCaseError> {
        let tenant = ask.tenant.unwrap();
        let eta = self.limiter.eta(ask);
        let bell = Bell::default();
        let joined = self.call(|l, out| l.enqueue(ask, NEVER, bell.clone(), out));
        prop_assert_eq!(joined.is_err(), impossible);
        let Ok(ticket) = joined else { return Ok(()) };
        let share = self.naive.share(&amounts);
        self.naive.join(now, Waiting { ticket, tenant, amounts, share });
        // Only a slot may be missing, or somebody stands before it who will leave the line, for
        // whom new limits are too low: nobody can say how long.
        let leaves = self.naive.line.iter().any(|before| self.impossible(&before.amounts));
        let not_before = if eta == UNKNOWN || leaves { now } else { now + eta };
        let loosened = self.loosened;
        let waiter = Waiter { ticket, tenant, bell, heard: 0, timer: now, not_before, loosened };
        self.waiters.push(waiter);
        Ok(())
    }

    /// Only those who were woken, or whose time has come, look at their tickets.
    fn pick_up(&mut self) -> Result<(), TestCaseError> {
        let now = self.clock.now();
        let mut expected: BTreeMap<_, _> = self.naive.pump(now).into_iter().collect();
        loop {
            let due = self.waiters.iter().position(|waiter| {
                waiter.timer <= now || waiter.bell.load(Ordering::Relaxed) > waiter.heard
            });
            let Some(place) = due else { break };
            let (tenant, ticket) = (self.waiters[place].tenant, self.waiters[place].ticket);
            self.waiters[place].heard = self.waiters[place].bell.load(Ordering::Relaxed);
            match self.call(|l, out| l.poll(Some(tenant), ticket, out)) {
                Looked::Granted(grant) => {
                    let waiter = self.waiters.remove(place);
                    let index = expected.remove(&ticket);
                    prop_assert!(index.is_some(), "granted what the list does not");
                    prop_assert!(waiter.loosened != self.loosened || waiter.not_before <= now);
                    self.held.push(Held { grant, index: index.unwrap(), tenant });
                }
                Looked::Wait { nap, sure } => {
                    let timer = if sure { now.saturating_add(nap) } else { NEVER };
                    prop_assert!(timer > now);
                    self.waiters[place].timer = timer;
                }
                Looked::Refused(verdict) => {
                    prop_assert_eq!(verdict.reason, Reason::TooLarge);
                    self.waiters.remove(place);
                }
                Looked::Gone => prop_assert!(false, "a ticket was lost"),
            }
        }
        prop_assert!(expected.is_empty(), "not woken for what the list grants: {:?}", expected);
        Ok(())
    }

    fn agree(&self) -> Result<(), TestCaseError> {
        let now = self.clock.now();
        let stats = self.limiter.stats();
        prop_assert_eq!(stats.open, self.held.len() as u64);
        prop_assert_eq!(u64::from(stats.concurrent), stats.open);
        prop_assert_eq!(stats.waiting, self.naive.line.len() as u64);
        for known in &stats.dimensions {
            let d = known.dimension.index();
            prop_assert_eq!(known.used, self.naive.used(now, d));
            if !self.lowered {
                let allowed = u128::from(known.limit) + self.naive.over(now, d);
                prop_assert!(known.used <= allowed, "more than budget and debt");
            }
        }
        Ok(())
    }

    /// After everybody has left, nothing is held and the whole budget is there again.
    fn rest(mut self) -> Result<(), TestCaseError> {
        while let Some(waiter) = self.waiters.pop() {
            self.call(|l, out| l.cancel(Some(waiter.tenant), waiter.ticket, out));
        }
        while let Some(held) = self.held.pop() {
            self.call(|l, out| l.release(held.grant, true, out));
        }
        self.clock.advance(PERIOD);
        let stats = self.limiter.stats();
        prop_assert_eq!((stats.open, stats.waiting, stats.concurrent), (0, 0, 0));
        for known in &stats.dimensions {
            prop_assert_eq!((known.used, known.debt, known.left), (0, 0, known.limit));
        }
        prop_assert_eq!(stats.granted, stats.settled + stats.released);
        Ok(())
    }
}

fn run(
    fair: bool,
    limits: [Option<u64>; DIMENSIONS],
    slots: Option<u32>,
    steps: Vec<Step>,
) -> Result<(), TestCaseError> {
    let clock = ManualClock::starting_at(7 * SECOND);
    let weights = vec![(1, 2_000), (2, 500)];
    let settings = Settings {
        limits,
        concurrency: slots,
        fairness: if fair { Fairness::Weighted } else { Fairness::Fifo },
        weights: weights.clone(),
        ..Settings::default()
    };
    let limiter = Tested::new(settings, Clock::Manual(clock.clone())).unwrap();
    let naive = Naive {
        limits,
        slots,
        fair,
        weights: if fair { weights.into_iter().collect() } else { BTreeMap::new() },
        entries: Vec::new(),
        open: 0,
        line: Vec::new(),
        tenants: BTreeMap::new(),
        virtual_now: 0,
        chosen: None,
        paused_until: 0,
    };
    let (held, waiters) = (Vec::new(), Vec::new());
    let mut bench = Bench { limiter, clock, naive, held, waiters, loosened: 0, lowered: false };
    for step in steps {
        bench.step(step)?;
    }
    bench.rest()
}

proptest! {
    #![proptest_config(cases(400, 20_000))]

    /// Admits exactly what the lists admit, in order of arrival, and wakes in time.
    #[test]
    fn admits_exactly_as_lists_do(
        limits in limits(),
        slots in prop::option::of(1u32..5),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        run(false, limits, slots, steps)?;
    }

    /// The same, fair between tenants.
    #[test]
    fn admits_exactly_as_fair_lists_do(
        limits in limits(),
        slots in prop::option::of(1u32..5),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        run(true, limits, slots, steps)?;
    }
}
