//! The whole limiter: line, slots, keys, counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::core::cases;
use crate::core::clock::{ManualClock, SECOND};

type Woken = Arc<AtomicUsize>;
type Tested = Limiter<u32, Woken>;

struct Bench {
    limiter: Tested,
    clock: ManualClock,
}

fn settings(limits: &[&str]) -> Settings {
    Settings {
        limits: limits.iter().map(|text| text.parse().unwrap()).collect(),
        burst: None,
        adaptive: None,
        algorithm: Algorithm::SlidingWindow,
        max_keys: 100,
        max_waiters: 1000,
        enabled: true,
        sharing: None,
    }
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let clock = ManualClock::starting_at(5 * SECOND);
        let limiter = Limiter::new(settings, Clock::Manual(clock.clone())).unwrap();
        Self { limiter, clock }
    }

    fn with<T>(&self, body: impl FnOnce(&Tested, &mut Outbox<u32, Woken>) -> T) -> T {
        let mut out = Outbox::new();
        let answer = body(&self.limiter, &mut out);
        for waker in out.take_wakes() {
            waker.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    fn take(&self, cost: u32) -> Decision {
        self.with(|limiter, out| limiter.try_acquire(None, cost, out))
    }

    fn key(&self, key: u32) -> Decision {
        self.with(|limiter, out| limiter.try_acquire(Some(&key), 1, out))
    }

    fn queue(&self, cost: u32, slot: bool) -> Waiting<'_> {
        let waker = Woken::default();
        let ticket = self
            .with(|l, out| l.enqueue(None, cost, slot, NEVER, Arc::clone(&waker), out))
            .unwrap();
        Waiting { bench: self, waker, ticket }
    }
}

struct Waiting<'a> {
    bench: &'a Bench,
    waker: Woken,
    ticket: Ticket,
}

impl Waiting<'_> {
    fn poll(&self) -> Progress {
        self.bench.with(|limiter, out| limiter.poll(None, self.ticket, out))
    }

    fn cancel(&self) -> bool {
        self.bench.with(|limiter, out| limiter.cancel(None, self.ticket, out))
    }

    fn wakes(&self) -> usize {
        self.waker.swap(0, Ordering::Relaxed)
    }
}

#[test]
fn two_windows_hold_together() {
    let bench = Bench::new(settings(&["2/second", "3/minute"]));
    assert!(bench.take(1).granted && bench.take(1).granted);
    let denied = bench.take(1);
    assert_eq!((denied.reason, denied.retry_after), (Reason::Limited, SECOND));
    assert_eq!(denied.limit.unwrap().to_string(), "2/second");
    bench.clock.advance(SECOND);
    assert_eq!(bench.take(1).remaining, 0);
    assert_eq!(bench.take(1).retry_after, 59 * SECOND);
    let stats = bench.limiter.stats();
    assert_eq!((stats.acquired, stats.rejected), (3, 2));
    assert!((stats.rejection_rate() - 0.4).abs() < 1e-12);
    assert_eq!(stats.windows.iter().map(|w| w.1).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn a_cost_above_a_limit_is_never() {
    let bench = Bench::new(settings(&["2/second", "30/minute"]));
    let never = bench.take(3);
    assert!(never.is_never());
    assert_eq!(never.reason, Reason::TooLarge);
    assert_eq!(bench.limiter.eta(None, 3), NEVER);
    assert_eq!(bench.limiter.eta(Some(&1), 3), NEVER);
    let refused = bench.with(|l, out| l.enqueue(None, 3, false, NEVER, Woken::default(), out));
    assert!(refused.unwrap_err().is_never());
    assert_eq!(bench.limiter.stats().windows[0].1, 0);
}

#[test]
fn the_large_waiter_goes_first() {
    let bench = Bench::new(settings(&["100/minute"]));
    assert!(bench.take(1).granted);
    let large = bench.queue(100, false);
    let small: Vec<_> = (0..20).map(|_| bench.queue(1, false)).collect();
    assert_eq!(large.poll(), Progress::Wait(60 * SECOND));
    assert!(small.iter().all(|w| w.poll() == Progress::Wait(NEVER)));
    let barging = bench.take(1);
    assert_eq!(barging.reason, Reason::Queued);
    // A lower bound: the sum of the line's costs, not how they fall into windows.
    assert_eq!(barging.retry_after, 60 * SECOND);
    bench.clock.advance(60 * SECOND);
    assert_eq!(large.poll(), Progress::Granted);
    assert_eq!(large.poll(), Progress::Gone);
    // The next one has become the head and was told, once, to set its timer; nobody else was.
    assert_eq!(small[0].wakes(), 1);
    assert!(small[1..].iter().all(|w| w.wakes() == 0));
    assert_eq!(small[0].poll(), Progress::Wait(60 * SECOND));
    bench.clock.advance(60 * SECOND);
    assert_eq!(small[0].poll(), Progress::Granted);
    assert_eq!(small[0].wakes(), 0);
    assert!(small[1..].iter().all(|w| w.wakes() == 1 && w.poll() == Progress::Granted));
    let stats = bench.limiter.stats();
    assert_eq!((stats.acquired, stats.waiting), (22, 0));
}

#[test]
fn a_newcomer_serves_an_overdue_line_first() {
    let bench = Bench::new(settings(&["1/second"]));
    assert!(bench.take(1).granted);
    let waiter = bench.queue(1, false);
    waiter.poll();
    bench.clock.advance(SECOND);
    let denied = bench.take(1);
    assert_eq!((denied.reason, denied.retry_after), (Reason::Limited, SECOND));
    assert_eq!(waiter.wakes(), 1);
    assert_eq!(waiter.poll(), Progress::Granted);
}

#[test]
fn a_cancelled_head_passes_the_timer_on() {
    let bench = Bench::new(settings(&["10/minute"]));
    bench.take(10);
    let (head, next, last) = (bench.queue(10, false), bench.queue(1, false), bench.queue(1, false));
    assert!([&head, &next, &last].iter().all(|w| matches!(w.poll(), Progress::Wait(_))));
    assert!(last.cancel());
    assert!(head.cancel() && !head.cancel());
    assert_eq!((next.wakes(), last.wakes()), (1, 0));
    assert_eq!(next.poll(), Progress::Wait(60 * SECOND));
    assert_eq!(bench.limiter.stats().waiting, 1);
}

#[test]
fn a_grant_nobody_picked_up_comes_back() {
    let bench = Bench::new(Settings { burst: Some(1), ..settings(&["2/minute"]) });
    let enter = |slot| bench.with(|l, out| l.try_enter(None, 1, slot, out));
    assert!(enter(true).granted);
    assert_eq!(enter(true).reason, Reason::Busy);
    let first = bench.queue(1, true);
    let second = bench.queue(1, true);
    assert_eq!(first.poll(), Progress::Wait(NEVER));
    second.poll();
    assert!(bench.with(Limiter::release_slot));
    assert_eq!((first.wakes(), second.wakes()), (1, 0));
    // Cancelled in the tick of its grant: permit and slot go to the next.
    assert!(first.cancel());
    assert_eq!(second.wakes(), 1);
    assert_eq!(second.poll(), Progress::Granted);
    let stats = bench.limiter.stats();
    assert_eq!((stats.concurrent, stats.windows[0].1, stats.waiting), (1, 2, 0));
    assert!(bench.with(Limiter::release_slot));
    assert!(!bench.with(Limiter::release_slot));
    assert_eq!(enter(true).reason, Reason::Limited);
}

#[test]
fn a_freed_slot_lets_the_head_set_its_timer() {
    let bench = Bench::new(Settings { burst: Some(1), ..settings(&["1/minute"]) });
    assert!(bench.with(|l, out| l.try_enter(None, 1, true, out)).granted);
    let waiter = bench.queue(1, true);
    assert_eq!(waiter.poll(), Progress::Wait(NEVER));
    assert_eq!(bench.take(1).reason, Reason::Limited);
    bench.with(Limiter::release_slot);
    assert_eq!(waiter.wakes(), 1);
    assert_eq!(waiter.poll(), Progress::Wait(60 * SECOND));
}

/// Regression: the holder of the last slot stood behind somebody who wanted that slot.
#[test]
fn who_holds_the_last_slot_can_still_get_permits() {
    let bench = Bench::new(Settings { burst: Some(1), ..settings(&["2/minute"]) });
    assert!(bench.with(|l, out| l.try_enter(None, 1, true, out)).granted);
    let outside = bench.queue(1, true);
    assert_eq!(outside.poll(), Progress::Wait(NEVER));
    assert!(bench.take(1).granted);
    let inside = bench.queue(1, false);
    assert_eq!(inside.poll(), Progress::Wait(60 * SECOND));
    bench.clock.advance(60 * SECOND);
    assert_eq!(inside.poll(), Progress::Granted);
    let other = bench.queue(2, false);
    assert_eq!(other.poll(), Progress::Wait(60 * SECOND));
    // With a slot to be had, the older one is the head again.
    assert!(bench.with(Limiter::release_slot));
    assert_eq!((outside.wakes(), outside.poll()), (1, Progress::Granted));
    assert_eq!(other.wakes(), 0);
    bench.clock.advance(60 * SECOND);
    assert_eq!(other.poll(), Progress::Granted);
}

#[test]
fn an_update_keeps_what_was_granted_and_serves_the_line() {
    let bench = Bench::new(settings(&["2/minute"]));
    bench.take(2);
    let waiters = [bench.queue(1, false), bench.queue(2, false)];
    assert!(waiters.iter().all(|w| matches!(w.poll(), Progress::Wait(_))));
    let update = |texts: &[&str]| {
        bench.with(|l, out| l.update(texts.iter().map(|t| t.parse().unwrap()).collect(), out))
    };
    update(&["3/minute"]).unwrap();
    assert_eq!((waiters[0].wakes(), waiters[0].poll()), (1, Progress::Granted));
    assert_eq!((waiters[1].wakes(), waiters[1].poll()), (1, Progress::Wait(60 * SECOND)));
    update(&["1/minute"]).unwrap();
    assert_eq!((waiters[1].wakes(), waiters[1].poll()), (1, Progress::Never));
    assert_eq!(update(&[]).unwrap_err().argument, "limits");
    assert_eq!(bench.limiter.stats().waiting, 0);
}

#[test]
fn a_still_limited_key_is_never_forgotten() {
    let bench = Bench::new(Settings { max_keys: 3, ..settings(&["1/hour"]) });
    assert!(bench.key(1).granted && bench.key(2).granted);
    bench.clock.advance(SECOND);
    assert!(bench.key(3).granted);
    for other in 10..2000 {
        let denied = bench.key(other);
        assert_eq!(denied.reason, Reason::KeyTableFull);
        assert_eq!(denied.retry_after, 3599 * SECOND);
        assert_eq!(bench.limiter.eta(Some(&other), 1), 3599 * SECOND);
    }
    assert!((1..4).all(|key| bench.key(key).reason == Reason::Limited));
    bench.clock.advance(3599 * SECOND);
    assert_eq!(bench.limiter.eta(Some(&10), 1), 0);
    assert!(bench.key(10).granted && bench.key(11).granted);
    assert_eq!(bench.key(12).reason, Reason::KeyTableFull);
    assert_eq!(bench.key(3).reason, Reason::Limited);
    assert_eq!(bench.limiter.stats().keys, 3);
}

#[test]
fn a_key_somebody_waits_on_stays() {
    let bench = Bench::new(Settings { max_keys: 1, ..settings(&["1/second"]) });
    assert!(bench.key(1).granted);
    let waker = Woken::default();
    let ticket =
        bench.with(|l, out| l.enqueue(Some(&1), 1, false, NEVER, waker.clone(), out)).unwrap();
    bench.clock.advance(SECOND);
    assert_eq!(bench.key(2).reason, Reason::KeyTableFull);
    assert_eq!(bench.with(|l, out| l.poll(Some(&1), ticket, out)), Progress::Granted);
    bench.clock.advance(2 * SECOND);
    assert!(bench.key(2).granted);
    assert_eq!(bench.limiter.eta(Some(&2), 1), SECOND);
    // It is the only place there is.
    assert_eq!(bench.limiter.eta(Some(&7), 1), SECOND);
}

#[test]
fn idle_keys_go_without_being_asked() {
    for algorithm in [Algorithm::SlidingWindow, Algorithm::Gcra, Algorithm::TokenBucket] {
        let bench = Bench::new(Settings { algorithm, ..settings(&["2/second"]) });
        for key in 0..1000 {
            assert!(bench.key(key).granted, "{algorithm:?} {key}");
            bench.clock.advance(SECOND / 10);
        }
        assert!(bench.limiter.stats().keys < 20, "{algorithm:?}");
    }
}

#[test]
fn the_line_is_bounded() {
    let bench = Bench::new(Settings { max_waiters: 2, ..settings(&["1/minute"]) });
    bench.take(1);
    let _waiting = [bench.queue(1, false), bench.queue(1, false)];
    let refused = bench.with(|l, out| l.enqueue(None, 1, false, NEVER, Woken::default(), out));
    let refused = refused.unwrap_err();
    assert_eq!((refused.reason, refused.retry_after), (Reason::QueueFull, 180 * SECOND));
}

#[test]
fn switched_off_it_still_counts() {
    let bench = Bench::new(Settings { enabled: false, burst: Some(1), ..settings(&["1/day"]) });
    for _ in 0..5 {
        assert_eq!(bench.take(9).reason, Reason::Disabled);
        assert!(bench.with(|l, out| l.try_enter(None, 1, true, out)).granted);
    }
    let stats = bench.limiter.stats();
    assert_eq!((stats.acquired, stats.concurrent, stats.windows[0].1), (10, 5, 0));
}

#[test]
fn a_clock_that_jumps_wakes_whom_it_concerns() {
    let bench = Bench::new(settings(&["1/minute"]));
    bench.take(1);
    let first = bench.queue(1, false);
    let impatient = Woken::default();
    let deadline = bench.clock.now() + SECOND;
    let ticket =
        bench.with(|l, out| l.enqueue(None, 1, false, deadline, impatient.clone(), out)).unwrap();
    first.poll();
    bench.with(|l, out| l.poll(None, ticket, out));
    bench.clock.advance(SECOND);
    bench.with(Limiter::clock_moved);
    assert_eq!((first.wakes(), impatient.swap(0, Ordering::Relaxed)), (0, 1));
    bench.with(|l, out| l.give_up(None, ticket, out));
    bench.clock.advance(60 * SECOND);
    bench.with(Limiter::clock_moved);
    assert_eq!((first.wakes(), first.poll()), (1, Progress::Granted));
    assert_eq!(bench.limiter.stats().rejected, 1);
}

#[test]
fn a_fork_leaves_the_waiters_behind() {
    let bench = Bench::new(Settings { burst: Some(1), ..settings(&["1/minute"]) });
    assert!(bench.with(|l, out| l.try_enter(None, 1, true, out)).granted);
    let waiter = bench.queue(1, true);
    waiter.poll();
    bench.with(Limiter::after_fork);
    assert_eq!(waiter.poll(), Progress::Gone);
    assert!(!waiter.cancel());
    let stats = bench.limiter.stats();
    assert_eq!((stats.waiting, stats.concurrent, stats.windows[0].1), (0, 0, 1));
    assert_eq!(bench.take(1).reason, Reason::Limited);
}

#[test]
fn bad_settings_are_named() {
    let refused = |settings: Settings| {
        Limiter::<u32, Woken>::new(settings, Clock::System).unwrap_err().argument
    };
    let gcra = Settings { algorithm: Algorithm::Gcra, ..settings(&["1/s", "2/m"]) };
    assert_eq!(refused(gcra), "limits");
    assert_eq!(refused(settings(&[])), "limits");
    assert_eq!(refused(Settings { burst: Some(0), ..settings(&[]) }), "burst");
    assert_eq!(refused(Settings { max_keys: 0, ..settings(&["1/s"]) }), "max_keys");
    assert_eq!(Algorithm::parse("leaky").unwrap_err().argument, "algorithm");
}

#[derive(Clone, Debug)]
enum Act {
    Advance(Nanos),
    Try(u32),
    Queue(u32, bool),
    Cancel(usize),
    Release,
    /// Whoever was woken, or whose timer is due, looks.
    Look,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0u64..40).prop_map(Act::Advance),
        3 => (1u32..6).prop_map(Act::Try),
        4 => (1u32..6, any::<bool>()).prop_map(|(cost, slot)| Act::Queue(cost, slot)),
        2 => (0usize..8).prop_map(Act::Cancel),
        2 => Just(Act::Release),
        4 => Just(Act::Look),
    ]
}

proptest! {
    #![proptest_config(cases(200, 4_000))]

    /// Waiters look only when woken or when their timer is due, as the real ones do. Whatever
    /// happens: grants follow the order of arrival, no window and no slot count is ever exceeded,
    /// and nobody is left asleep once time and slots allow.
    #[test]
    fn the_line_is_fair_and_nobody_is_forgotten(
        algorithm in prop_oneof![
            2 => Just(Algorithm::SlidingWindow), 1 => Just(Algorithm::Gcra), 1 => Just(Algorithm::TokenBucket)
        ],
        acts in prop::collection::vec(act(), 1..120),
    ) {
        let limit = Limit::new(5, 50).unwrap();
        let bench = Bench::new(Settings {
            limits: vec![limit], burst: Some(2), algorithm, ..settings(&[])
        });
        let mut waiting: Vec<(Waiting<'_>, u32, bool, Nanos)> = vec![];
        let mut grants: Vec<(Nanos, u64)> = vec![];
        let mut slots = 0;
        let mut served: [Option<Ticket>; 2] = [None; 2];
        let end = acts.len();
        let drain = std::iter::repeat_n([Act::Release, Act::Advance(50), Act::Look], 150).flatten();
        for (n, act) in acts.into_iter().chain(drain).enumerate() {
            if n > end && waiting.is_empty() {
                break;
            }
            let now = bench.clock.now();
            match act {
                Act::Advance(by) => bench.clock.advance(by),
                Act::Try(cost) => {
                    if bench.take(cost).granted {
                        grants.push((now, u64::from(cost)));
                    }
                }
                Act::Queue(cost, slot) => {
                    let waiter = bench.queue(cost, slot);
                    waiting.push((waiter, cost, slot, now));
                }
                Act::Cancel(index) => {
                    if index < waiting.len() {
                        prop_assert!(waiting.remove(index).0.cancel());
                    }
                }
                Act::Release => {
                    if slots > 0 {
                        prop_assert!(bench.with(Limiter::release_slot));
                        slots -= 1;
                    }
                }
                Act::Look => {
                    let mut again = true;
                    while again {
                        again = false;
                        for index in (0..waiting.len()).rev() {
                            let (waiter, cost, slot, timer) = &mut waiting[index];
                            if waiter.wakes() == 0 && now < *timer {
                                continue;
                            }
                            again = true;
                            match waiter.poll() {
                                Progress::Wait(delay) => {
                                    prop_assert!(delay > 0);
                                    *timer = now.saturating_add(delay);
                                }
                                Progress::Granted => {
                                    grants.push((now, u64::from(*cost)));
                                    slots += u32::from(*slot);
                                    let served = &mut served[usize::from(*slot)];
                                    *served = (*served).max(Some(waiter.ticket));
                                    waiting.remove(index);
                                }
                                other => prop_assert!(false, "{other:?}"),
                            }
                        }
                    }
                    // Everybody looked, so nobody who came before the last one served still waits,
                    // unless it was passed over for want of a slot.
                    for (waiter, _, slot, _) in &waiting {
                        prop_assert!(Some(waiter.ticket) > served[1]);
                        prop_assert!(*slot || Some(waiter.ticket) > served[0]);
                    }
                }
            }
            let stats = bench.limiter.stats();
            prop_assert!(stats.concurrent <= 2);
            prop_assert_eq!(stats.waiting as usize, waiting.len());
        }
        prop_assert!(waiting.is_empty(), "left asleep: {}", waiting.len());
        prop_assert_eq!(bench.limiter.stats().concurrent, slots);
        if algorithm == Algorithm::SlidingWindow {
            bench.clock.advance(50);
            prop_assert_eq!(bench.limiter.stats().windows[0].1, 0);
        }
    }
}
