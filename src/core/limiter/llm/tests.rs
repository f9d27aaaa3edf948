//! What a caller can count on, one promise at a time.

use super::*;
use crate::core::clock::{ManualClock, SECOND};

type Tested = LlmLimiter<u32, u32>;
type Out = Outbox<u32, u32>;

const MINUTE: Nanos = 60 * SECOND;

fn limiter(clock: &ManualClock, settings: Settings<u32>) -> Tested {
    Tested::new(settings, Clock::Manual(clock.clone())).unwrap()
}

/// 10 requests, 1,000 tokens in, 500 out and a dollar a minute.
fn usual(clock: &ManualClock) -> Tested {
    let limits = [Some(10), Some(1_000), Some(500), None, Some(NANO_USD)];
    limiter(clock, Settings { limits, ..Settings::default() })
}

fn used(limiter: &Tested, dimension: Dimension) -> (u128, u128) {
    let stats = limiter.stats();
    let known = stats.dimensions.iter().find(|known| known.dimension == dimension).unwrap();
    (known.used, known.debt)
}

fn reserve(limiter: &Tested, ask: &Ask<u32>) -> Result<Grant<u32>, Verdict> {
    limiter.try_reserve(ask, &mut Out::new())
}

#[test]
fn all_or_nothing_and_the_worst_dimension_is_named() {
    let clock = ManualClock::starting_at(0);
    let limiter = usual(&clock);
    let _ = reserve(&limiter, &Ask::tokens(900, 100)).unwrap();
    clock.advance(10 * SECOND);
    let _ = reserve(&limiter, &Ask::tokens(10, 400)).unwrap();
    let refused = reserve(&limiter, &Ask::tokens(500, 450)).unwrap_err();
    assert_eq!(refused.reason, Reason::Limited);
    assert_eq!(refused.dimension, Some(Dimension::OutputTokens));
    assert_eq!((refused.limit, refused.remaining, refused.asked), (Some(500), 0, 450));
    assert_eq!(refused.retry_after, 60 * SECOND);
    assert_eq!(used(&limiter, Dimension::InputTokens), (910, 0));
    assert_eq!(used(&limiter, Dimension::Requests), (2, 0));
}

#[test]
fn what_can_never_be_granted_is_refused_at_once() {
    let clock = ManualClock::starting_at(0);
    let limiter = usual(&clock);
    for (ask, dimension, limit) in [
        (Ask::tokens(1_001, 0), Dimension::InputTokens, 1_000),
        (Ask::tokens(0, 501), Dimension::OutputTokens, 500),
        (Ask { usd: Some(NANO_USD + 1), ..Ask::tokens(1, 1) }, Dimension::Usd, NANO_USD),
        (Ask::tokens(u64::MAX, 0), Dimension::InputTokens, 1_000),
    ] {
        for refused in [
            reserve(&limiter, &ask).unwrap_err(),
            limiter.enqueue(&ask, NEVER, 0, &mut Out::new()).unwrap_err(),
        ] {
            assert_eq!(refused.reason, Reason::TooLarge);
            assert_eq!((refused.dimension, refused.limit), (Some(dimension), Some(limit)));
            assert!(refused.is_never());
        }
        assert_eq!(limiter.eta(&ask), NEVER);
    }
}

#[test]
fn under_use_wakes_the_next_at_once() {
    let clock = ManualClock::starting_at(0);
    let limiter = usual(&clock);
    let first = reserve(&limiter, &Ask::tokens(100, 500)).unwrap();
    let mut out = Out::new();
    let ticket = limiter.enqueue(&Ask::tokens(100, 300), NEVER, 7, &mut out).unwrap();
    assert!(matches!(
        limiter.poll(None, ticket, &mut out),
        Looked::Wait { nap: MINUTE, sure: true }
    ));
    let usage = Usage { output: Some(200), ..Usage::default() };
    let settled = limiter.settle(first, &usage, &mut out);
    assert_eq!(settled.refunded.get(Dimension::OutputTokens), 300);
    assert_eq!(settled.over, Amounts::NONE);
    assert_eq!(out.take_wakes(), [7]);
    assert!(matches!(limiter.poll(None, ticket, &mut out), Looked::Granted(_)));
    assert_eq!(used(&limiter, Dimension::OutputTokens), (500, 0));
}

#[test]
fn over_use_is_a_debt_that_counts_from_its_settlement() {
    let clock = ManualClock::starting_at(0);
    let limiter = usual(&clock);
    let first = reserve(&limiter, &Ask::tokens(100, 400)).unwrap();
    clock.advance(20 * SECOND);
    let usage = Usage { output: Some(700), ..Usage::default() };
    let settled = limiter.settle(first, &usage, &mut Out::new());
    assert_eq!(settled.over.get(Dimension::OutputTokens), 300);
    assert_eq!(used(&limiter, Dimension::OutputTokens), (700, 200));
    // Not even a request without output.
    assert_eq!(reserve(&limiter, &Ask::tokens(1, 0)).unwrap_err().retry_after, 40 * SECOND);
    clock.advance(40 * SECOND);
    assert_eq!(used(&limiter, Dimension::OutputTokens), (300, 0));
    assert_eq!(reserve(&limiter, &Ask::tokens(1, 201)).unwrap_err().retry_after, 20 * SECOND);
    assert!(reserve(&limiter, &Ask::tokens(1, 200)).is_ok());
}

#[test]
fn a_reservation_older_than_the_window_still_runs_into_debt() {
    let clock = ManualClock::starting_at(0);
    let limiter = usual(&clock);
    let first = reserve(&limiter, &Ask::tokens(100, 400)).unwrap();
    clock.advance(3 * MINUTE);
    assert_eq!(used(&limiter, Dimension::OutputTokens), (0, 0));
    let usage = Usage { output: Some(450), ..Usage::default() };
    limiter.settle(first, &usage, &mut Out::new());
    assert_eq!(used(&limiter, Dimension::OutputTokens), (50, 0));
    let stats = limiter.stats();
    assert_eq!((stats.open, stats.settled), (0, 1));
}

#[test]
fn over_use_where_there_is_no_limit_is_no_debt() {
    let clock = ManualClock::starting_at(0);
    let limits = [Some(10), None, None, None, None];
    let limiter = limiter(&clock, Settings { limits, ..Settings::default() });
    let first = reserve(&limiter, &Ask::tokens(0, 0)).unwrap();
    clock.advance(10 * SECOND);
    let usage = Usage { output: Some(100), usd: Some(1), input: None };
    limiter.settle(first, &usage, &mut Out::new());
    // It is known nevertheless, should a limit come, and counts from the grant.
    let limits = [Change::Keep, Change::Keep, Change::To(Some(150)), Change::Keep, Change::Keep];
    limiter.update(limits, Change::Keep, &mut Out::new()).unwrap();
    assert_eq!(used(&limiter, Dimension::OutputTokens), (100, 0));
    assert_eq!(reserve(&limiter, &Ask::tokens(0, 51)).unwrap_err().retry_after, 50 * SECOND);
}

#[test]
fn a_release_refunds_the_request_only_if_it_was_not_sent() {
    let clock = ManualClock::starting_at(0);
    let limiter = usual(&clock);
    for (sent, requests) in [(false, 0), (true, 1)] {
        let grant = reserve(&limiter, &Ask::tokens(100, 400)).unwrap();
        limiter.release(grant, sent, &mut Out::new());
        assert_eq!(used(&limiter, Dimension::Requests), (requests, 0));
        assert_eq!(used(&limiter, Dimension::InputTokens), (0, 0));
    }
    assert_eq!(limiter.stats().released, 2);
}

#[test]
fn what_was_granted_and_not_picked_up_comes_back() {
    let clock = ManualClock::starting_at(0);
    let limiter = usual(&clock);
    let first = reserve(&limiter, &Ask::tokens(0, 500)).unwrap();
    let mut out = Out::new();
    let ticket = limiter.enqueue(&Ask::tokens(0, 500), NEVER, 1, &mut out).unwrap();
    limiter.release(first, false, &mut out);
    assert_eq!(used(&limiter, Dimension::OutputTokens), (500, 0));
    assert!(limiter.cancel(None, ticket, &mut out));
    assert_eq!(used(&limiter, Dimension::OutputTokens), (0, 0));
    let stats = limiter.stats();
    assert_eq!((stats.granted, stats.open, stats.concurrent, stats.waiting), (1, 0, 0, 0));
    assert!(!limiter.cancel(None, ticket, &mut out));
    assert!(matches!(limiter.poll(None, ticket, &mut out), Looked::Gone));
}

#[test]
fn slots_are_held_until_the_end() {
    let clock = ManualClock::starting_at(0);
    let limits = [Some(100), None, None, None, None];
    let limiter = limiter(&clock, Settings { limits, concurrency: Some(1), ..Settings::default() });
    let first = reserve(&limiter, &Ask::tokens(1, 1)).unwrap();
    let refused = reserve(&limiter, &Ask::tokens(1, 1)).unwrap_err();
    assert_eq!((refused.reason, refused.retry_after), (Reason::Busy, UNKNOWN));
    let mut out = Out::new();
    let ticket = limiter.enqueue(&Ask::tokens(1, 1), NEVER, 3, &mut out).unwrap();
    assert!(matches!(limiter.poll(None, ticket, &mut out), Looked::Wait { sure: false, .. }));
    assert_eq!(reserve(&limiter, &Ask::tokens(1, 1)).unwrap_err().reason, Reason::Queued);
    limiter.settle(first, &Usage::default(), &mut out);
    assert_eq!(out.take_wakes(), [3]);
    assert!(matches!(limiter.poll(None, ticket, &mut out), Looked::Granted(_)));
}

#[test]
fn a_wait_that_cannot_end_in_time_is_refused_before_it_begins() {
    let clock = ManualClock::starting_at(0);
    let limiter = usual(&clock);
    let first = reserve(&limiter, &Ask::tokens(1_000, 500)).unwrap();
    let mut out = Out::new();
    // The prompt is sure to be used; the answer is not.
    let prompt = Ask::tokens(1, 0);
    assert_eq!(limiter.eta(&prompt), MINUTE);
    let refused = limiter.enqueue(&prompt, MINUTE - 1, 0, &mut out).unwrap_err();
    assert_eq!((refused.reason, refused.retry_after), (Reason::TooLate, MINUTE));
    assert_eq!(refused.dimension, Some(Dimension::InputTokens));
    let ticket = limiter.enqueue(&prompt, MINUTE, 0, &mut out).unwrap();
    // Those in line count, too.
    for _ in 0..999 {
        limiter.enqueue(&prompt, NEVER, 0, &mut out).unwrap();
    }
    assert_eq!(limiter.eta(&Ask::tokens(10, 0)), 100 * MINUTE);
    limiter.settle(first, &Usage { input: Some(0), ..Usage::default() }, &mut out);
    assert!(matches!(limiter.poll(None, ticket, &mut out), Looked::Granted(_)));
}

#[test]
fn an_open_answer_may_come_back_at_any_time() {
    let clock = ManualClock::starting_at(0);
    let limiter = usual(&clock);
    let first = reserve(&limiter, &Ask::tokens(0, 500)).unwrap();
    assert_eq!(limiter.eta(&Ask::tokens(0, 500)), 0);
    limiter.settle(first, &Usage::default(), &mut Out::new());
    assert_eq!(limiter.eta(&Ask::tokens(0, 500)), MINUTE);
}

#[test]
fn a_pause_holds_everybody_once() {
    let clock = ManualClock::starting_at(0);
    let limiter = usual(&clock);
    let mut out = Out::new();
    limiter.pause(20 * SECOND, &mut out);
    limiter.pause(5 * SECOND, &mut out);
    let refused = reserve(&limiter, &Ask::tokens(1, 1)).unwrap_err();
    assert_eq!((refused.reason, refused.retry_after), (Reason::Paused, 20 * SECOND));
    assert_eq!(limiter.eta(&Ask::tokens(1, 1)), 20 * SECOND);
    let late = limiter.enqueue(&Ask::tokens(1, 1), 19 * SECOND, 0, &mut out).unwrap_err();
    assert_eq!(late.reason, Reason::TooLate);
    let ticket = limiter.enqueue(&Ask::tokens(1, 1), NEVER, 5, &mut out).unwrap();
    let Looked::Wait { nap, sure: true } = limiter.poll(None, ticket, &mut out) else { panic!() };
    assert_eq!(nap, 20 * SECOND);
    // A longer one puts the waiter off once more, when it looks.
    limiter.pause_until(30 * SECOND, &mut out);
    clock.advance(20 * SECOND);
    let Looked::Wait { nap, .. } = limiter.poll(None, ticket, &mut out) else { panic!() };
    assert_eq!(nap, 10 * SECOND);
    limiter.resume(&mut out);
    assert!(matches!(limiter.poll(None, ticket, &mut out), Looked::Granted(_)));
}

#[test]
fn the_provider_may_allow_less() {
    let clock = ManualClock::starting_at(0);
    let limiter = usual(&clock);
    let mut out = Out::new();
    let told = Told { limit: Some(4), remaining: Some(1), reset: Some(5 * SECOND) };
    limiter.learn(Dimension::Requests, &told, None, &mut out);
    assert!(reserve(&limiter, &Ask::tokens(1, 1)).is_ok());
    let refused = reserve(&limiter, &Ask::tokens(1, 1)).unwrap_err();
    assert_eq!((refused.retry_after, refused.limit), (5 * SECOND, Some(4)));
    clock.advance(5 * SECOND);
    for _ in 0..3 {
        assert!(reserve(&limiter, &Ask::tokens(1, 1)).is_ok());
    }
    assert_eq!(reserve(&limiter, &Ask::tokens(1, 1)).unwrap_err().retry_after, 55 * SECOND);
    // More than the settings allow is not believed, and no limit at all is garbage.
    for limit in [Some(100), Some(0)] {
        let told = Told { limit, ..Told::default() };
        limiter.learn(Dimension::Requests, &told, None, &mut out);
        assert_eq!(limiter.stats().dimensions[0].limit, 10);
    }
}

#[test]
fn what_the_provider_said_is_taken_as_of_then() {
    let clock = ManualClock::starting_at(0);
    let limiter = usual(&clock);
    let mut out = Out::new();
    let first = reserve(&limiter, &Ask::tokens(1, 1)).unwrap();
    let second = reserve(&limiter, &Ask::tokens(1, 1)).unwrap();
    for _ in 0..4 {
        let _ = reserve(&limiter, &Ask::tokens(1, 1)).unwrap();
    }
    // The provider saw what we saw: nobody else is there, though more has been granted since.
    let told =
        |remaining| Told { limit: None, remaining: Some(remaining), reset: Some(30 * SECOND) };
    limiter.learn(Dimension::Requests, &told(8), Some(second.mark()), &mut out);
    assert_eq!(limiter.stats().dimensions[0].left, 4);
    // Somebody else uses two.
    limiter.learn(Dimension::Requests, &told(6), Some(second.mark()), &mut out);
    assert_eq!(limiter.stats().dimensions[0].left, 2);
    // An older answer comes late and changes nothing.
    limiter.learn(Dimension::Requests, &told(9), Some(first.mark()), &mut out);
    assert_eq!(limiter.stats().dimensions[0].left, 2);
    clock.advance(30 * SECOND);
    assert_eq!(limiter.stats().dimensions[0].left, 4);
}

#[test]
fn the_output_is_estimated_by_model() {
    let clock = ManualClock::starting_at(0);
    let limits = [None, None, Some(100_000), None, Some(100 * NANO_USD)];
    let settings = Settings { limits, estimate_quantile: 0.5, ..Settings::default() };
    let limiter = limiter(&clock, settings);
    let unknown = Ask { output: None, usd: None, model: Some(1), ..Ask::tokens(10, 0) };
    let estimate = |ask: &Ask<u32>| limiter.amounts(ask).get(Dimension::OutputTokens);
    assert_eq!(estimate(&unknown), 1_024);
    assert_eq!(estimate(&Ask { max_output: Some(300), ..unknown }), 300);
    assert_eq!(limiter.amounts(&unknown).get(Dimension::Usd), 0);
    for n in 0..21u64 {
        let grant = reserve(&limiter, &unknown).unwrap();
        let usage = Usage { output: Some(10 + n), usd: Some(1 + n), ..Usage::default() };
        limiter.settle(grant, &usage, &mut Out::new());
    }
    assert_eq!(estimate(&unknown), 20);
    assert_eq!(limiter.amounts(&unknown).get(Dimension::Usd), 11);
    assert_eq!(estimate(&Ask { max_output: Some(5), ..unknown }), 5);
    assert_eq!(estimate(&Ask { model: Some(2), ..unknown }), 1_024);
    // An estimate alone never makes a request impossible.
    limiter
        .update(
            [
                Change::To(None),
                Change::To(None),
                Change::To(Some(7)),
                Change::To(None),
                Change::To(None),
            ],
            Change::Keep,
            &mut Out::new(),
        )
        .unwrap();
    assert_eq!(estimate(&unknown), 7);
}

#[test]
fn an_update_counts_what_was_granted_and_ends_what_cannot_be() {
    let clock = ManualClock::starting_at(0);
    let limiter = usual(&clock);
    let mut out = Out::new();
    let _ = reserve(&limiter, &Ask::tokens(900, 0)).unwrap();
    let big = limiter.enqueue(&Ask::tokens(800, 0), NEVER, 1, &mut out).unwrap();
    let small = limiter.enqueue(&Ask::tokens(100, 0), NEVER, 2, &mut out).unwrap();
    for ticket in [big, small] {
        assert!(matches!(limiter.poll(None, ticket, &mut out), Looked::Wait { .. }));
    }
    limiter
        .update(
            [
                Change::To(None),
                Change::To(Some(500)),
                Change::To(None),
                Change::To(None),
                Change::To(None),
            ],
            Change::Keep,
            &mut out,
        )
        .unwrap();
    assert_eq!(out.take_wakes(), [1, 2]);
    let Looked::Refused(refused) = limiter.poll(None, big, &mut out) else { panic!() };
    assert_eq!((refused.reason, refused.limit), (Reason::TooLarge, Some(500)));
    assert_eq!(used(&limiter, Dimension::InputTokens), (900, 400));
    limiter
        .update(
            [
                Change::To(None),
                Change::To(Some(1_000)),
                Change::To(None),
                Change::To(None),
                Change::To(None),
            ],
            Change::Keep,
            &mut out,
        )
        .unwrap();
    assert!(matches!(limiter.poll(None, small, &mut out), Looked::Granted(_)));
}

#[test]
fn a_fork_leaves_waiters_and_reservations_behind() {
    let clock = ManualClock::starting_at(0);
    let limits = [None, Some(10), None, None, None];
    let limiter = limiter(&clock, Settings { limits, concurrency: Some(1), ..Settings::default() });
    let mut out = Out::new();
    let old = reserve(&limiter, &Ask::tokens(4, 0)).unwrap();
    let ticket = limiter.enqueue(&Ask::tokens(4, 0), NEVER, 1, &mut out).unwrap();
    limiter.after_fork(&mut out);
    assert!(matches!(limiter.poll(None, ticket, &mut out), Looked::Gone));
    let new = reserve(&limiter, &Ask::tokens(4, 0)).unwrap();
    // The slot is the new one's; what was reserved stays spent.
    limiter.release(old, false, &mut out);
    assert_eq!(reserve(&limiter, &Ask::tokens(1, 0)).unwrap_err().reason, Reason::Busy);
    assert_eq!(used(&limiter, Dimension::InputTokens), (8, 0));
    limiter.release(new, false, &mut out);
    assert_eq!(used(&limiter, Dimension::InputTokens), (4, 0));
    assert_eq!(limiter.stats().open, 0);
}

#[test]
fn the_greatest_numbers_do_no_harm() {
    let clock = ManualClock::starting_at(NEVER - 30 * SECOND);
    let limits = [Some(u64::MAX); 5];
    let limiter = limiter(&clock, Settings { limits, ..Settings::default() });
    let mut out = Out::new();
    let all = Ask { usd: Some(u64::MAX), ..Ask::tokens(u64::MAX, u64::MAX) };
    let grant = reserve(&limiter, &all).unwrap();
    assert_eq!(reserve(&limiter, &Ask::tokens(1, 0)).unwrap_err().retry_after, MINUTE);
    let usage = Usage { input: Some(u64::MAX), output: Some(0), usd: Some(0) };
    limiter.settle(grant, &usage, &mut out);
    let ticket = limiter.enqueue(&all, NEVER, 0, &mut out).unwrap();
    assert!(matches!(limiter.poll(None, ticket, &mut out), Looked::Wait { .. }));
    limiter.pause(NEVER, &mut out);
    limiter.learn(
        Dimension::Usd,
        &Told { remaining: Some(0), reset: Some(NEVER), limit: None },
        None,
        &mut out,
    );
    clock.advance(NEVER);
    limiter.clock_moved(&mut out);
    assert!(limiter.cancel(None, ticket, &mut out));
    assert_eq!(limiter.stats().waiting, 0);
}

#[test]
fn switched_off_it_grants_and_counts() {
    let clock = ManualClock::starting_at(0);
    let limits = [Some(1), None, None, None, None];
    let limiter = limiter(&clock, Settings { limits, enabled: false, ..Settings::default() });
    let mut out = Out::new();
    let grants: Vec<_> = (0..5).map(|_| reserve(&limiter, &Ask::tokens(9, 9)).unwrap()).collect();
    assert_eq!((limiter.stats().granted, limiter.stats().open), (5, 5));
    for grant in grants {
        limiter.settle(grant, &Usage::default(), &mut out);
    }
    assert_eq!((limiter.stats().open, limiter.stats().concurrent), (0, 0));
}

#[test]
fn the_line_is_bounded() {
    let clock = ManualClock::starting_at(0);
    let limits = [Some(1), None, None, None, None];
    let limiter = limiter(&clock, Settings { limits, max_waiters: 2, ..Settings::default() });
    let mut out = Out::new();
    let _ = reserve(&limiter, &Ask::tokens(0, 0)).unwrap();
    for _ in 0..2 {
        limiter.enqueue(&Ask::tokens(0, 0), NEVER, 0, &mut out).unwrap();
    }
    let refused = limiter.enqueue(&Ask::tokens(0, 0), NEVER, 0, &mut out).unwrap_err();
    assert_eq!(refused.reason, Reason::QueueFull);
    assert_eq!(limiter.stats().rejected, 1);
}

#[test]
fn contradictions_are_refused() {
    let new = |settings| Tested::new(settings, Clock::System).map(|_| ()).unwrap_err().argument;
    let usual = Settings::<u32>::default;
    let limits = [Some(1), None, None, None, None];
    assert_eq!(new(usual()), "requests_per_minute");
    let zero = [None, None, None, None, Some(0)];
    assert_eq!(new(Settings { limits: zero, ..usual() }), "usd_per_minute");
    let part = [None, Some(11), None, Some(10), None];
    assert_eq!(new(Settings { limits: part, ..usual() }), "input_tokens_per_minute");
    let output = [None, None, Some(10), None, None];
    let settings = Settings { limits: output, default_output: Some(11), ..usual() };
    assert_eq!(new(settings), "default_output_tokens");
    assert_eq!(new(Settings { limits, concurrency: Some(0), ..usual() }), "concurrency");
    assert_eq!(new(Settings { limits, max_tenants: 0, ..usual() }), "max_tenants");
    assert_eq!(new(Settings { limits, max_models: 0, ..usual() }), "max_models");
    assert_eq!(new(Settings { limits, weights: vec![(1, 0)], ..usual() }), "weights");
    for estimate_quantile in [0.0, 1.5, f64::NAN, -1.0] {
        let settings = Settings { limits, estimate_quantile, ..usual() };
        assert_eq!(new(settings), "estimate_quantile");
    }
    assert_eq!(new(Settings { limits, period: 0, ..usual() }), "window_margin");
}
