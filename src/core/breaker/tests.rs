//! The breaker against a table of transitions, and at its edges.

use super::*;
use crate::core::clock::{Clock, ManualClock, SECOND};
use crate::core::outcome::Outcome;
use crate::core::random::Random;

pub(super) fn breaker(settings: Settings) -> (Breaker, ManualClock) {
    let clock = ManualClock::starting_at(1_000 * SECOND);
    (Breaker::new(settings, Clock::Manual(clock.clone())).unwrap(), clock)
}

fn call(breaker: &Breaker, outcome: Outcome) -> Result<Option<Transition>, Refusal> {
    let (permit, _) = breaker.begin();
    permit.map(|permit| breaker.end(permit, outcome, None))
}

fn repeat(breaker: &Breaker, outcome: Outcome, times: usize) {
    for _ in 0..times {
        assert!(call(breaker, outcome).is_ok());
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it stands for what the breaker answers")]
fn step(from: State, to: State) -> Option<Transition> {
    Some(Transition { from, to })
}

use Outcome::{Failure, Neutral, Success, Throttled};
use State::{Closed, HalfOpen, Open};

#[test]
fn it_opens_strictly_above_half_of_the_last_calls_and_not_before_five() {
    let (one, _) = breaker(Settings::default());
    for _ in 0..4 {
        assert_eq!(call(&one, Failure), Ok(None));
    }
    assert_eq!(call(&one, Failure), Ok(step(Closed, Open)));
    let (one, _) = breaker(Settings::default());
    for outcome in [Success, Failure, Success, Failure, Success, Failure, Success, Failure] {
        assert_eq!(call(&one, outcome), Ok(None), "half is not above half");
    }
    assert_eq!(call(&one, Failure), Ok(step(Closed, Open)));
}

#[test]
fn a_probe_at_a_time_and_three_in_a_row_close_it() {
    let (one, clock) = breaker(Settings::default());
    repeat(&one, Failure, 5);
    assert_eq!(call(&one, Success).unwrap_err().retry_after, Some(30 * SECOND));
    assert_eq!((one.stats().calls, one.stats().error_rate), (5, 1.0), "why it is open");
    clock.advance(30 * SECOND);
    assert_eq!(one.state(), HalfOpen);
    let (first, turned) = one.begin();
    assert_eq!(turned, step(Open, HalfOpen));
    for _ in 0..1_000 {
        let refused = one.begin().0.unwrap_err();
        assert_eq!(refused, Refusal { state: HalfOpen, retry_after: Some(60 * SECOND) });
    }
    // Who only looks is not counted.
    let rejected = one.stats().rejected;
    let refusal = one.would_refuse();
    assert_eq!(refusal, Some(Refusal { state: HalfOpen, retry_after: Some(60 * SECOND) }));
    assert_eq!(one.stats().rejected, rejected);
    assert_eq!(one.check().unwrap_err(), refusal.unwrap());
    assert_eq!(one.stats().rejected, rejected + 1);
    // An abandoned probe gives its slot back and says nothing.
    assert_eq!(one.end(first.unwrap(), Neutral, None), None);
    assert_eq!(call(&one, Success), Ok(None));
    assert_eq!(call(&one, Throttled), Ok(None));
    assert_eq!(call(&one, Success), Ok(None));
    assert_eq!(call(&one, Success), Ok(step(HalfOpen, Closed)));
    // Nothing of before is remembered.
    assert_eq!(one.stats().calls, 0);
}

#[test]
fn any_failure_of_a_probe_opens_it_for_longer() {
    let settings = Settings { max_timeout: Some(100 * SECOND), ..Settings::default() };
    let (one, clock) = breaker(settings);
    repeat(&one, Failure, 5);
    for rest in [30, 60, 100, 100] {
        clock.advance(rest * SECOND - 1);
        assert_eq!(call(&one, Success).unwrap_err().retry_after, Some(1));
        clock.advance(1);
        assert_eq!(call(&one, Failure), Ok(step(HalfOpen, Open)));
    }
    clock.advance(100 * SECOND);
    repeat(&one, Success, 3);
    assert_eq!(one.state(), Closed);
    repeat(&one, Failure, 5);
    assert_eq!(one.stats().retry_after, Some(30 * SECOND), "from the beginning after a recovery");
}

#[test]
fn what_was_begun_before_is_counted_and_changes_nothing() {
    let (one, clock) = breaker(Settings::default());
    let late: Vec<Permit> = (0..10).map(|_| one.begin().0.unwrap()).collect();
    repeat(&one, Failure, 5);
    clock.advance(30 * SECOND);
    let (probe, _) = one.begin();
    for permit in late {
        assert_eq!(one.end(permit, Failure, None), None);
    }
    assert_eq!((one.state(), one.stats().failures), (HalfOpen, 15));
    assert_eq!(one.end(probe.unwrap(), Success, None), None);
}

#[test]
fn after_a_recovery_calls_are_let_through_little_by_little() {
    let (one, clock) = breaker(Settings { ramp_up: 100 * SECOND, ..Settings::default() });
    repeat(&one, Failure, 5);
    clock.advance(30 * SECOND);
    repeat(&one, Success, 3);
    let through = |count: usize| (0..count).filter(|_| call(&one, Success).is_ok()).count();
    assert!((95..=105).contains(&through(1_000)), "a tenth at least");
    clock.advance(50 * SECOND);
    assert!((495..=505).contains(&through(1_000)));
    clock.advance(50 * SECOND);
    assert_eq!(through(1_000), 1_000);
}

#[test]
fn forced_states_stay() {
    let (one, clock) = breaker(Settings::default());
    assert_eq!(one.force_open(), step(Closed, State::ForcedOpen));
    clock.advance(1_000 * SECOND);
    assert_eq!(call(&one, Success).unwrap_err().retry_after, None);
    assert_eq!(one.metrics_only(), step(State::ForcedOpen, State::MetricsOnly));
    for _ in 0..20 {
        assert_eq!(call(&one, Failure), Ok(None));
    }
    assert!((one.stats().error_rate - 1.0).abs() < f64::EPSILON);
    one.disable();
    assert_eq!(call(&one, Failure), Ok(None));
    assert_eq!((one.stats().calls, one.stats().failures), (0, 21));
    assert_eq!(one.reset(), step(State::Disabled, Closed));
    assert_eq!(one.reset(), None);
    assert_eq!((one.stats().times_opened, one.stats().rejected), (0, 1));
}

#[test]
fn one_that_is_switched_off_stays_so_and_sums_up() {
    let (one, _) = breaker(Settings { enabled: false, ..Settings::default() });
    for _ in 0..10 {
        assert_eq!(call(&one, Failure), Ok(None));
    }
    for forced in [one.force_open(), one.metrics_only(), one.reset(), one.disable()] {
        assert_eq!(forced, None);
    }
    assert_eq!((one.state(), one.stats().failures), (State::Disabled, 10));
}

#[test]
fn a_probe_that_never_ends_loses_its_place_and_still_counts() {
    let settings = Settings { half_open_max_calls: 2, ..Settings::default() };
    let (one, clock) = breaker(settings);
    repeat(&one, Failure, 5);
    clock.advance(30 * SECOND);
    let first = one.begin().0.unwrap();
    clock.advance(SECOND);
    let second = one.begin().0.unwrap();
    assert_eq!(one.check().unwrap_err().retry_after, Some(59 * SECOND));
    clock.advance(59 * SECOND - 1);
    assert_eq!(one.begin().0.unwrap_err().retry_after, Some(1));
    clock.advance(1);
    assert_eq!(one.check(), Ok(()));
    let third = one.begin().0.unwrap();
    assert!(one.begin().0.is_err(), "only the place of the first is free");
    assert_eq!(one.stats().probes, 2);
    // The first has no place to give back.
    assert_eq!(one.end(first, Success, None), None);
    assert!(one.begin().0.is_err());
    assert_eq!(one.end(third, Success, None), None);
    assert_eq!(one.stats().probes, 1);
    assert_eq!(one.end(second, Success, None), step(HalfOpen, Closed));
    assert_eq!(one.stats().probes, 0);
}

#[test]
fn in_a_forked_child_all_places_are_free() {
    let (one, clock) = breaker(Settings::default());
    repeat(&one, Failure, 5);
    clock.advance(30 * SECOND);
    let probe = one.begin().0.unwrap();
    one.after_fork();
    let other = one.begin().0.unwrap();
    assert_eq!(one.end(probe, Success, None), None);
    assert_eq!(one.stats().probes, 1);
    assert_eq!(one.end(other, Neutral, None), None);
    assert_eq!(one.stats().probes, 0);
}

#[test]
fn it_asks_nobody_back_from_another_stretch() {
    // Closed, open, half-open, closed: the same state as when it was begun.
    let (one, clock) = breaker(Settings::default());
    let (early, begun) = (one.begin().0.unwrap(), one.begin().0.unwrap());
    for round in 0..2 {
        repeat(&one, Failure, 5);
        clock.advance(30 * SECOND);
        let probe = one.begin().0.unwrap();
        if round == 0 {
            one.reset();
            assert_eq!(one.end(probe, Success, None), None);
            assert_eq!(one.stats().calls, 0);
        } else {
            assert_eq!(one.end(probe, Failure, None), step(HalfOpen, Open));
        }
    }
    clock.advance(30 * SECOND);
    let probe = one.begin().0.unwrap();
    assert_eq!(one.end(early, Failure, None), None);
    assert_eq!(one.stats().probes, 1, "a place of another stretch is not given back");
    assert_eq!(one.end(probe, Success, None), None);
    repeat(&one, Success, 2);
    assert_eq!(one.state(), Closed);
    assert_eq!(one.end(begun, Failure, None), None);
    assert_eq!(one.stats().calls, 0);
}

#[test]
fn waste_opens_it_whatever_the_share() {
    let settings = Settings {
        failure_threshold: 1.0,
        max_wasted_usd: Some(1.0),
        max_wasted_tokens: Some(1_000),
        ..Settings::default()
    };
    let spend = |usd, tokens| Some(Spend { usd, tokens });
    let (one, clock) = breaker(settings);
    let end = |outcome, spend| one.end(one.begin().0.unwrap(), outcome, spend);
    for _ in 0..100 {
        assert_eq!(end(Success, spend(5.0, 5_000)), None);
        assert_eq!(end(Neutral, spend(5.0, 5_000)), None);
        assert_eq!(end(Throttled, spend(5.0, 5_000)), None);
        assert_eq!(end(Failure, spend(f64::NAN, 0)), None);
        assert_eq!(end(Failure, spend(-7.0, 0)), None);
    }
    for _ in 0..10 {
        assert_eq!(end(Failure, spend(0.1, 100)), None, "up to the limit");
    }
    let wasted = one.stats().wasted;
    assert!((wasted.usd - 1.0).abs() < 1e-12 && wasted.tokens == 1_000);
    // What is a minute old is not looked at; a float would not be back at zero here.
    clock.advance(60 * SECOND);
    assert_eq!(one.stats().wasted, Spend::default());
    assert_eq!(end(Failure, spend(1.0, 0)), None);
    clock.advance(58 * SECOND);
    assert_eq!(end(Failure, spend(1e-9, 0)), step(Closed, Open));
    assert!(one.stats().wasted.usd > 1.0, "what has opened it can be seen");
    one.reset();
    assert_eq!(one.stats().wasted, Spend::default());
    assert_eq!(end(Failure, spend(0.0, u64::MAX)), step(Closed, Open));
    one.reset();
    assert_eq!(one.note_waste(Spend { usd: 1.0, tokens: 1_000 }), None);
    assert_eq!(one.note_waste(Spend { usd: 1e-9, tokens: 0 }), step(Closed, Open));
    assert_eq!(one.note_waste(Spend { usd: 9.0, tokens: 0 }), None, "it is open");
    one.disable();
    assert_eq!(one.note_waste(Spend { usd: 9.0, tokens: 0 }), None);
    assert_eq!(one.stats().wasted, Spend::default());
    one.metrics_only();
    for _ in 0..3 {
        assert_eq!(end(Failure, spend(f64::INFINITY, u64::MAX)), None);
    }
    assert_eq!(one.stats().wasted.tokens, u64::MAX);
}

#[test]
fn slow_calls_open_it_and_only_with_a_threshold() {
    let slow = |one: &Breaker, clock: &ManualClock, seconds: u64| {
        let permit = one.begin().0.unwrap();
        clock.advance(seconds * SECOND);
        one.end(permit, Success, None)
    };
    let only_seen = Settings { slow_call: Some(2 * SECOND), ..Settings::default() };
    let (one, clock) = breaker(only_seen.clone());
    for _ in 0..20 {
        assert_eq!(slow(&one, &clock, 2), None);
    }
    assert_eq!((one.stats().slow, one.stats().slow_rate), (20, 1.0));
    let (one, clock) = breaker(Settings { slow_threshold: Some(0.8), ..only_seen });
    for _ in 0..4 {
        assert_eq!(slow(&one, &clock, 2), None);
    }
    assert_eq!(slow(&one, &clock, 1), None, "four of five are not above 0.8");
    assert_eq!(slow(&one, &clock, 2), step(Closed, Open));
    clock.advance(30 * SECOND);
    assert_eq!(slow(&one, &clock, 2), step(HalfOpen, Open), "a slow probe is no recovery");
}

#[test]
fn a_window_of_time_forgets_within_its_last_sixtieth() {
    let (one, clock) = breaker(Settings { window: Span::Time(60 * SECOND), ..Settings::default() });
    repeat(&one, Failure, 4);
    clock.advance(59 * SECOND);
    assert_eq!(one.stats().calls, 4);
    clock.advance(SECOND);
    assert_eq!(one.stats().calls, 0);
    clock.advance(365 * 86_400 * SECOND);
    assert_eq!(call(&one, Failure), Ok(None));
    assert_eq!(one.stats().calls, 1);
    clock.advance(u64::MAX);
    assert_eq!((one.stats().calls, one.state()), (0, Closed));
    for _ in 0..4 {
        assert_eq!(call(&one, Failure), Ok(None));
    }
    assert_eq!(call(&one, Failure), Ok(step(Closed, Open)));
}

#[test]
fn a_jump_of_the_clock_ends_rests_and_ramps() {
    let year = 365 * 86_400 * SECOND;
    let (one, clock) = breaker(Settings { ramp_up: 100 * SECOND, ..Settings::default() });
    repeat(&one, Failure, 5);
    clock.advance(year);
    repeat(&one, Success, 3);
    assert!(call(&one, Success).is_ok() && call(&one, Success).is_err());
    assert_eq!(one.stats().rejected, 1);
    clock.advance(year);
    assert!((0..100).all(|_| call(&one, Success).is_ok()));
}

#[test]
fn rests_grow_to_their_bound_and_never_overflow() {
    let random = Random::seeded(7);
    let plain = Settings { timeout_factor: 1e9, ..Settings::default() };
    assert_eq!(plain.rest(1_000, &random), 30 * SECOND, "without a bound it does not grow");
    for longest in [30 * SECOND, 3_600 * SECOND, u64::MAX] {
        let grown = Settings { max_timeout: Some(longest), ..plain.clone() };
        assert_eq!(grown.rest(0, &random), 30 * SECOND);
        assert_eq!(grown.rest(u32::MAX, &random), longest);
        let jittered = Settings { jitter: 1.0, ..grown };
        for relapses in [0, 1, 7, u32::MAX] {
            assert!(jittered.rest(relapses, &random) >= 30 * SECOND);
        }
    }
    let none = Settings { timeout: 0, max_timeout: Some(u64::MAX), ..plain };
    assert_eq!(none.rest(u32::MAX, &random), 0);
}

#[test]
fn a_wrong_setting_is_named() {
    let wrong = |settings: Settings| settings.check().unwrap_err().argument;
    let fine = Settings::default;
    for value in [f64::NAN, -0.1, 1.1, f64::INFINITY] {
        assert_eq!(wrong(Settings { failure_threshold: value, ..fine() }), "failure_threshold");
        assert_eq!(wrong(Settings { jitter: value, ..fine() }), "timeout_jitter");
        let slow = Settings { slow_call: Some(1), slow_threshold: Some(value), ..fine() };
        assert_eq!(wrong(slow), "slow_call_threshold");
    }
    for value in [f64::NAN, -0.1, f64::INFINITY] {
        let wasted = Settings { max_wasted_usd: Some(value), ..fine() };
        assert_eq!(wrong(wasted), "max_wasted_usd_per_minute");
        assert_eq!(wrong(Settings { timeout_factor: value, ..fine() }), "timeout_factor");
    }
    assert_eq!(wrong(Settings { slow_threshold: Some(0.5), ..fine() }), "slow_call_threshold");
    assert_eq!(wrong(Settings { success_threshold: 0, ..fine() }), "success_threshold");
    assert_eq!(wrong(Settings { half_open_max_calls: 0, ..fine() }), "half_open_max_calls");
    assert_eq!(wrong(Settings { minimum_calls: Some(0), ..fine() }), "minimum_calls");
    assert_eq!(wrong(Settings { minimum_calls: Some(21), ..fine() }), "minimum_calls");
    for window in [Span::Calls(0), Span::Calls(MOST_CALLS + 1), Span::Time(0)] {
        assert_eq!(wrong(Settings { window, ..fine() }), "window");
    }
    let shrinks = Settings { max_timeout: Some(SECOND), ..fine() };
    assert_eq!(wrong(shrinks), "max_timeout_seconds");
}

#[test]
fn a_small_window_needs_no_more_calls_than_it_holds() {
    let least = |window| Settings { window, ..Settings::default() }.minimum_calls();
    assert_eq!(least(Span::Calls(3)), 3);
    assert_eq!(least(Span::Calls(20)), 5);
    assert_eq!(least(Span::Time(SECOND)), 5);
    let (one, _) = breaker(Settings { window: Span::Calls(1), ..Settings::default() });
    assert_eq!(call(&one, Success), Ok(None));
    assert_eq!(call(&one, Failure), Ok(step(Closed, Open)));
}
