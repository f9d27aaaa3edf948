//! Limits that find themselves, at work: who gets in, who is woken, what is left at rest.

use proptest::prelude::*;

use super::*;
use crate::core::cases;
use crate::core::clock::{ManualClock, SECOND};
use crate::core::limiter::adaptive::{ConcurrencySettings, Law, Signal};

type Tested = LlmLimiter<u32, u32>;
type Out = Outbox<u32, u32>;

const MINUTE: Nanos = 60 * SECOND;

fn limiter(clock: &ManualClock, settings: Settings<u32>) -> Tested {
    Tested::new(settings, Clock::Manual(clock.clone())).unwrap()
}

fn adaptive(initial: u32, law: Law, signal: Signal) -> Settings<u32> {
    let found = ConcurrencySettings { initial, law, signal, window: 2, ..Default::default() };
    Settings { adaptive: Some(found), ..Settings::default() }
}

#[test]
fn a_limit_that_grows_wakes_the_line_at_once() {
    let clock = ManualClock::starting_at(SECOND);
    let limiter = limiter(&clock, adaptive(1, Law::Aimd, Signal::Latency));
    let mut out = Out::new();
    let first = limiter.try_reserve(&Ask::tokens(1, 1), &mut out).unwrap();
    let tickets: Vec<_> =
        (0..3).map(|n| limiter.enqueue(&Ask::tokens(1, 1), NEVER, n, &mut out).unwrap()).collect();
    for &ticket in &tickets {
        assert!(matches!(limiter.poll(None, ticket, &mut out), Looked::Wait { .. }));
    }
    // 1 + 1/1 = 2: the place that came back, and one more.
    limiter.settle(first, &Usage::default(), &mut out);
    assert_eq!(limiter.concurrency(), Some(2));
    assert_eq!(out.take_wakes(), [0, 1]);
    let _held: Vec<_> = tickets[..2]
        .iter()
        .map(|&ticket| match limiter.poll(None, ticket, &mut out) {
            Looked::Granted(grant) => grant,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(limiter.stats().waiting, 1);
}

#[test]
fn a_limit_that_shrinks_lets_running_calls_go_on() {
    let clock = ManualClock::starting_at(SECOND);
    let limiter = limiter(&clock, adaptive(10, Law::Gradient, Signal::Ttft));
    let mut out = Out::new();
    let mut held: Vec<_> =
        (0..10).map(|_| limiter.try_reserve(&Ask::tokens(1, 1), &mut out).unwrap()).collect();
    limiter.refuse(held.remove(0), &mut out);
    assert_eq!((limiter.concurrency(), limiter.stats().concurrent), (Some(7), 9));
    for _ in 0..2 {
        limiter.settle(held.remove(0), &Usage::default(), &mut out);
        assert_eq!(
            limiter.try_reserve(&Ask::tokens(1, 1), &mut out).unwrap_err().reason,
            Reason::Busy
        );
    }
    limiter.settle(held.remove(0), &Usage::default(), &mut out);
    let _grant = limiter.try_reserve(&Ask::tokens(1, 1), &mut out).unwrap();
}

#[test]
fn another_processs_calls_teach_nothing() {
    let clock = ManualClock::starting_at(SECOND);
    let limiter = limiter(&clock, adaptive(10, Law::Aimd, Signal::Latency));
    let mut out = Out::new();
    let mut grant = limiter.try_reserve(&Ask::tokens(1, 1), &mut out).unwrap();
    let other = limiter.try_reserve(&Ask::tokens(1, 1), &mut out).unwrap();
    limiter.after_fork(&mut out);
    limiter.first_token(&mut grant, &mut out);
    limiter.refused(Some(grant.mark()), true, &mut out);
    limiter.refuse(grant, &mut out);
    limiter.settle(other, &Usage::default(), &mut out);
    let (stats, _) = limiter.adaptive_stats();
    assert_eq!(stats.map(|stats| (stats.limit, stats.samples, stats.cuts)), Some((10, 0, 0)));
}

#[test]
fn a_limit_may_become_adaptive_and_fixed_again() {
    let clock = ManualClock::starting_at(0);
    let limiter = limiter(&clock, Settings { concurrency: Some(3), ..Settings::default() });
    let mut out = Out::new();
    let keep = [Change::Keep; Dimension::ALL.len()];
    let found = ConcurrencySettings { initial: 5, ..Default::default() };
    limiter.update_adaptive(keep, found, &mut out).unwrap();
    assert_eq!(limiter.concurrency(), Some(5));
    let wrong = ConcurrencySettings { least: 0, ..found };
    assert_eq!(limiter.update_adaptive(keep, wrong, &mut out).unwrap_err().argument, "least");
    let grant = limiter.try_reserve(&Ask::tokens(1, 1), &mut out).unwrap();
    limiter.update(keep, Change::Keep, &mut out).unwrap();
    assert!(limiter.adaptive_stats().0.is_some());
    limiter.update(keep, Change::To(Some(2)), &mut out).unwrap();
    limiter.refuse(grant, &mut out);
    assert_eq!((limiter.concurrency(), limiter.adaptive_stats().0), (Some(2), None));
    assert!(limiter.update(keep, Change::To(None), &mut out).is_err());
}

fn rate(limits: [Option<u64>; Dimension::ALL.len()]) -> Settings<u32> {
    Settings { limits, adaptive_rate: true, ..Settings::default() }
}

fn limit(limiter: &Tested, dimension: Dimension) -> Option<u64> {
    let stats = limiter.stats();
    stats.dimensions.iter().find(|known| known.dimension == dimension).map(|known| known.limit)
}

#[test]
fn a_burst_of_refusals_cuts_the_rate_in_use_once() {
    let clock = ManualClock::starting_at(0);
    let limiter = limiter(&clock, rate([Some(1_000), None, None, Some(100_000), Some(NANO_USD)]));
    let mut out = Out::new();
    let held: Vec<_> =
        (0..800).map(|_| limiter.try_reserve(&Ask::tokens(50, 0), &mut out).unwrap()).collect();
    clock.advance(SECOND);
    for grant in held {
        limiter.refuse(grant, &mut out);
    }
    // 0.8 of the requests were in use, by far the fullest: 0.9 of that.
    assert_eq!(limit(&limiter, Dimension::Requests), Some(720));
    assert_eq!(limit(&limiter, Dimension::Tokens), Some(72_000));
    assert_eq!(limit(&limiter, Dimension::Usd), Some(NANO_USD));
    let (_, found) = limiter.adaptive_stats();
    assert_eq!(found.map(|found| (found.cuts, found.told)), Some((1, false)));
    // Half at most, however little was in use.
    clock.advance(2 * MINUTE);
    let grant = limiter.try_reserve(&Ask::tokens(50, 0), &mut out).unwrap();
    limiter.refuse(grant, &mut out);
    assert_eq!(limit(&limiter, Dimension::Requests), Some(324));
}

#[test]
fn a_rate_grows_back_while_it_is_made_use_of_and_not_above_the_settings() {
    let clock = ManualClock::starting_at(0);
    let limiter = limiter(&clock, rate([Some(100), None, None, None, None]));
    let mut out = Out::new();
    limiter.refused(None, true, &mut out);
    assert_eq!(limit(&limiter, Dimension::Requests), Some(45));
    let mut minutes = 0;
    while limit(&limiter, Dimension::Requests) < Some(100) {
        clock.advance(MINUTE);
        while let Ok(grant) = limiter.try_reserve(&Ask::tokens(1, 1), &mut out) {
            limiter.settle(grant, &Usage::default(), &mut out);
        }
        minutes += 1;
        assert!(minutes < 20);
    }
    assert!(minutes >= 5, "{minutes}");
    clock.advance(MINUTE);
    limiter.refused(None, true, &mut out);
    let cut = limit(&limiter, Dimension::Requests);
    for _ in 0..100 {
        clock.advance(MINUTE);
        let grant = limiter.try_reserve(&Ask::tokens(1, 1), &mut out).unwrap();
        limiter.settle(grant, &Usage::default(), &mut out);
    }
    assert_eq!(limit(&limiter, Dimension::Requests), cut);
}

#[test]
fn without_a_rate_it_begins_at_what_was_in_use() {
    let clock = ManualClock::starting_at(0);
    let limiter = limiter(&clock, rate([None; Dimension::ALL.len()]));
    let mut out = Out::new();
    for _ in 0..200 {
        let grant = limiter.try_reserve(&Ask::tokens(1_000, 1), &mut out).unwrap();
        limiter.settle(grant, &Usage::default(), &mut out);
    }
    assert_eq!(limit(&limiter, Dimension::Requests), None);
    limiter.refused(None, true, &mut out);
    assert_eq!(limit(&limiter, Dimension::Requests), Some(180));
    let refused = limiter.try_reserve(&Ask::tokens(1, 1), &mut out).unwrap_err();
    assert_eq!((refused.dimension, refused.limit), (Some(Dimension::Requests), Some(180)));
    assert_eq!(refused.retry_after, MINUTE);
    assert_eq!(limit(&limiter, Dimension::Tokens), None);
}

#[test]
fn a_request_above_a_cut_limit_goes_when_nothing_else_is_used() {
    let clock = ManualClock::starting_at(0);
    let limiter = limiter(&clock, rate([None, None, None, Some(1_000), None]));
    let mut out = Out::new();
    limiter.refused(None, true, &mut out);
    assert_eq!(limit(&limiter, Dimension::Tokens), Some(450));
    let small = limiter.try_reserve(&Ask::tokens(100, 0), &mut out).unwrap();
    limiter.settle(small, &Usage::default(), &mut out);
    clock.advance(10 * SECOND);
    let refused = limiter.try_reserve(&Ask::tokens(900, 0), &mut out).unwrap_err();
    assert_eq!((refused.reason, refused.retry_after), (Reason::Limited, 50 * SECOND));
    clock.advance(50 * SECOND);
    let _grant = limiter.try_reserve(&Ask::tokens(900, 0), &mut out).unwrap();
    let never = limiter.try_reserve(&Ask::tokens(1_001, 0), &mut out).unwrap_err();
    assert_eq!((never.reason, never.limit), (Reason::TooLarge, Some(1_000)));
}

#[test]
fn what_the_provider_tells_counts_instead() {
    let clock = ManualClock::starting_at(0);
    let limiter = limiter(&clock, rate([Some(100), None, None, None, None]));
    let mut out = Out::new();
    limiter.refused(None, true, &mut out);
    assert_eq!(limit(&limiter, Dimension::Requests), Some(45));
    let told = Told { limit: Some(80), ..Told::default() };
    limiter.learn(Dimension::Requests, &told, None, &mut out);
    assert_eq!(limit(&limiter, Dimension::Requests), Some(80));
    clock.advance(MINUTE);
    limiter.refused(None, true, &mut out);
    assert_eq!(limit(&limiter, Dimension::Requests), Some(80));
    let (_, found) = limiter.adaptive_stats();
    assert_eq!(found.map(|found| (found.cuts, found.told)), Some((1, true)));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Reserve(bool),
    First(usize),
    Settle(usize, u64),
    Refuse(usize),
    Fail(usize),
    Release(usize),
    Cancel(usize),
    Update(u32),
    Pass(Nanos),
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0_usize..8;
    prop_oneof![
        10 => any::<bool>().prop_map(Step::Reserve),
        5 => which.clone().prop_map(Step::First),
        6 => (which.clone(), 0_u64..50).prop_map(|(which, tokens)| Step::Settle(which, tokens)),
        1 => which.clone().prop_map(Step::Refuse),
        1 => which.clone().prop_map(Step::Fail),
        1 => which.clone().prop_map(Step::Release),
        2 => which.prop_map(Step::Cancel),
        1 => (1_u32..9).prop_map(Step::Update),
        5 => (0..2 * SECOND).prop_map(Step::Pass),
    ]
}

/// Waiters look when they are woken, and at no other time.
struct Bench {
    limiter: Tested,
    out: Out,
    held: Vec<Grant<u32>>,
    waiting: Vec<(Ticket, u32)>,
    next: u32,
}

impl Bench {
    fn look_all(&mut self) {
        loop {
            let wakes = self.out.take_wakes();
            if wakes.is_empty() {
                return;
            }
            for woken in wakes {
                let Some(index) = self.waiting.iter().position(|&(_, waker)| waker == woken) else {
                    continue;
                };
                let (ticket, _) = self.waiting[index];
                match self.limiter.poll(None, ticket, &mut self.out) {
                    Looked::Granted(grant) => {
                        self.waiting.remove(index);
                        self.held.push(grant);
                    }
                    Looked::Wait { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn take(&mut self, which: usize) -> Option<Grant<u32>> {
        (which < self.held.len()).then(|| self.held.remove(which))
    }

    fn step(&mut self, clock: &ManualClock, law: Law, step: Step) {
        let Self { limiter, out, .. } = self;
        match step {
            Step::Reserve(wait) => match limiter.try_enter(&Ask::tokens(1, 1), out) {
                Ok(grant) => self.held.push(grant),
                Err(_) if wait => {
                    let waker = self.next;
                    self.next += 1;
                    let ticket = limiter.enqueue(&Ask::tokens(1, 1), NEVER, waker, out).unwrap();
                    self.waiting.push((ticket, waker));
                    match limiter.poll(None, ticket, out) {
                        Looked::Granted(grant) => {
                            self.waiting.pop();
                            self.held.push(grant);
                        }
                        looked => assert!(matches!(looked, Looked::Wait { .. })),
                    }
                }
                Err(_) => {}
            },
            Step::First(which) => {
                if let Some(grant) = self.held.get_mut(which) {
                    limiter.first_token(grant, out);
                }
            }
            Step::Settle(which, output) => {
                if let Some(grant) = self.take(which) {
                    let usage = Usage { output: Some(output), ..Usage::default() };
                    self.limiter.settle(grant, &usage, &mut self.out);
                }
            }
            Step::Refuse(which) => {
                if let Some(grant) = self.take(which) {
                    self.limiter.refuse(grant, &mut self.out);
                }
            }
            Step::Fail(which) => {
                if let Some(grant) = self.take(which) {
                    let usage = Usage::default();
                    self.limiter.settle_as(grant, &usage, Outcome::Failure, &mut self.out);
                }
            }
            Step::Release(which) => {
                if let Some(grant) = self.take(which) {
                    self.limiter.release(grant, true, &mut self.out);
                }
            }
            Step::Cancel(which) => {
                if which < self.waiting.len() {
                    let (ticket, _) = self.waiting.remove(which);
                    assert!(self.limiter.cancel(None, ticket, &mut self.out));
                }
            }
            Step::Update(initial) => {
                let keep = [Change::Keep; Dimension::ALL.len()];
                let found = ConcurrencySettings { initial, law, window: 1, ..Default::default() };
                self.limiter.update_adaptive(keep, found, &mut self.out).unwrap();
            }
            Step::Pass(by) => clock.advance(by),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Turn {
    Reserve(u64),
    Settle(usize, u64),
    Refuse(usize),
    Pass(Nanos),
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        6 => (0_u64..1_000).prop_map(Turn::Reserve),
        4 => (0_usize..8, 0_u64..200).prop_map(|(which, output)| Turn::Settle(which, output)),
        1 => (0_usize..8).prop_map(Turn::Refuse),
        4 => (0..30 * SECOND).prop_map(Turn::Pass),
    ]
}

proptest! {
    #![proptest_config(cases(100, 5_000))]

    /// Whatever has been refused, limits stay above nothing and within the settings, and a head
    /// that is alone is granted at the very moment that it was told, however large it is.
    #[test]
    fn a_rate_that_was_cut_starves_nobody(turns in prop::collection::vec(turn(), 1..150)) {
        let clock = ManualClock::starting_at(SECOND);
        let tested = limiter(&clock, rate([Some(20), None, None, Some(1_000), None]));
        let mut out = Out::new();
        let mut held: Vec<Grant<u32>> = vec![];
        let mut waiting: Vec<Ticket> = vec![];
        let at_rest = [Turn::Settle(0, 5)].into_iter().cycle().take(60);
        for turn in turns.into_iter().chain(at_rest) {
            match turn {
                Turn::Reserve(input) => {
                    let ask = Ask::tokens(input, 1_000 - input.max(900));
                    match tested.try_enter(&ask, &mut out) {
                        Ok(grant) => held.push(grant),
                        Err(refused) => {
                            prop_assert!(!refused.is_never());
                            waiting.push(tested.enqueue(&ask, NEVER, 0, &mut out).unwrap());
                        }
                    }
                }
                Turn::Settle(which, output) if which < held.len() => {
                    let usage = Usage { output: Some(output), ..Usage::default() };
                    tested.settle(held.remove(which), &usage, &mut out);
                }
                Turn::Refuse(which) if which < held.len() => {
                    tested.refuse(held.remove(which), &mut out);
                }
                Turn::Settle(..) | Turn::Refuse(_) => {}
                Turn::Pass(by) => clock.advance(by),
            }
            waiting.retain(|&ticket| match tested.poll(None, ticket, &mut out) {
                Looked::Granted(grant) => {
                    held.push(grant);
                    false
                }
                looked => {
                    assert!(matches!(looked, Looked::Wait { .. }), "{looked:?}");
                    true
                }
            });
            let requests = limit(&tested, Dimension::Requests).unwrap();
            let tokens = limit(&tested, Dimension::Tokens).unwrap();
            prop_assert!((1..=20).contains(&requests) && (10..=1_000).contains(&tokens));
        }
        for ticket in waiting {
            match tested.poll(None, ticket, &mut out) {
                Looked::Wait { nap, sure } => {
                    prop_assert!(sure && nap <= 2 * MINUTE);
                    clock.advance(nap - 1);
                    let early = tested.poll(None, ticket, &mut out);
                    prop_assert!(matches!(early, Looked::Wait { nap: 1, .. }), "{:?}", early);
                    clock.advance(1);
                    let looked = tested.poll(None, ticket, &mut out);
                    prop_assert!(matches!(looked, Looked::Granted(_)), "{:?}", looked);
                }
                looked => prop_assert!(matches!(looked, Looked::Granted(_)), "{:?}", looked),
            }
        }
    }

    #[test]
    fn nobody_enters_above_the_limit_and_nobody_is_left_asleep(
        gradient in any::<bool>(),
        signal in prop_oneof![Just(Signal::Ttft), Just(Signal::Tpot), Just(Signal::Latency)],
        initial in 1_u32..8,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let law = if gradient { Law::Gradient } else { Law::Aimd };
        let clock = ManualClock::starting_at(SECOND);
        let mut bench = Bench {
            limiter: limiter(&clock, adaptive(initial, law, signal)),
            out: Out::new(),
            held: vec![],
            waiting: vec![],
            next: 0,
        };
        let drain = (0..400).map(|_| Step::Settle(0, 5));
        let count = steps.len();
        for (n, step) in steps.into_iter().chain(drain).enumerate() {
            if n >= count && bench.held.is_empty() {
                break;
            }
            let granted = bench.limiter.stats().granted;
            bench.step(&clock, law, step);
            let stats = bench.limiter.stats();
            let limit = bench.limiter.concurrency().unwrap();
            if stats.granted > granted {
                prop_assert!(stats.concurrent <= limit, "{} of {limit}", stats.concurrent);
            }
            bench.look_all();
            let stats = bench.limiter.stats();
            prop_assert_eq!(stats.concurrent as usize, bench.held.len());
            prop_assert_eq!(stats.waiting as usize, bench.waiting.len());
            prop_assert!(bench.waiting.is_empty() || stats.concurrent >= limit, "left asleep");
        }
        let stats = bench.limiter.stats();
        prop_assert_eq!((stats.concurrent, stats.open, stats.waiting), (0, 0, 0));
    }
}
