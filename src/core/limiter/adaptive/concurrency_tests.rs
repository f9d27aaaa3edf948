//! What a limit on concurrency reads from calls, and what it does not.

use proptest::prelude::*;

use super::*;
use crate::core::clock::{Nanos, SECOND};
use crate::core::outcome::Outcome;

const MS: Nanos = SECOND / 1000;

fn of(settings: ConcurrencySettings) -> Adaptive {
    Adaptive::new(settings).unwrap()
}

/// Calls that begin with the limit in use, have their first token after `first` and end well with
/// so many tokens after `took`.
fn calls(limit: &mut Adaptive, count: u32, first: Option<Nanos>, took: Nanos, tokens: Option<u64>) {
    for _ in 0..count {
        let mut call = Call::new(0, limit.limit());
        if let Some(first) = first {
            limit.first_token(&mut call, first);
            limit.first_token(&mut call, first + 1);
        }
        limit.ended(&call, Outcome::Success, tokens, took);
    }
}

#[test]
fn the_first_token_counts_and_the_answers_length_does_not() {
    let mut ttft = of(ConcurrencySettings::default());
    calls(&mut ttft, 50, Some(200 * MS), SECOND, Some(40));
    let grown = ttft.limit();
    assert!(grown > 10);
    calls(&mut ttft, 50, Some(200 * MS), 100 * SECOND, Some(5_000));
    assert!(ttft.limit() > grown);
    assert_eq!((ttft.stats().samples, ttft.stats().skipped), (100, 0));
    assert!((ttft.stats().usual - 0.2).abs() < 1e-9);

    let mut latency =
        of(ConcurrencySettings { signal: Signal::Latency, ..ConcurrencySettings::default() });
    calls(&mut latency, 50, None, SECOND, None);
    let grown = latency.limit();
    calls(&mut latency, 50, None, 100 * SECOND, None);
    assert!(latency.limit() < grown);
}

#[test]
fn whole_answers_have_no_first_token() {
    let mut ttft = of(ConcurrencySettings::default());
    calls(&mut ttft, 100, None, SECOND, Some(10));
    assert_eq!((ttft.limit(), ttft.stats().samples, ttft.stats().skipped), (10, 0, 100));
}

#[test]
fn time_per_token_starts_at_the_first_one() {
    let settings = ConcurrencySettings { signal: Signal::Tpot, ..ConcurrencySettings::default() };
    let mut tpot = of(settings);
    // 20 ms a token after a wait of 5 s.
    calls(&mut tpot, 10, Some(5 * SECOND), 7 * SECOND, Some(101));
    assert!((tpot.stats().usual - 0.02).abs() < 1e-9, "{:?}", tpot.stats());
    // One token has no time between tokens; nobody has counted the others.
    calls(&mut tpot, 1, Some(SECOND), 2 * SECOND, Some(1));
    calls(&mut tpot, 1, Some(SECOND), 2 * SECOND, None);
    assert_eq!(tpot.stats().skipped, 2);
    let mut whole = of(settings);
    calls(&mut whole, 10, None, 2 * SECOND, Some(100));
    assert!((whole.stats().usual - 0.02).abs() < 1e-9);
}

#[test]
fn a_refusal_cuts_once_whatever_the_law() {
    for law in [Law::Gradient, Law::Aimd] {
        let mut limit =
            of(ConcurrencySettings { law, initial: 100, ..ConcurrencySettings::default() });
        for call in 1..=100 {
            limit.ended(&Call::new(0, call), Outcome::Throttled, None, SECOND);
            limit.ended(&Call::new(0, call), Outcome::Failure, None, SECOND);
            limit.ended(&Call::new(0, call), Outcome::Neutral, None, SECOND);
        }
        assert_eq!((limit.limit(), limit.stats().cuts), (70, 1), "{law:?}");
        limit.ended(&Call::new(2 * SECOND, 70), Outcome::Throttled, None, 3 * SECOND);
        assert_eq!((limit.limit(), limit.stats().cuts), (49, 2), "{law:?}");
    }
}

#[test]
fn what_is_too_slow_is_as_good_as_a_refusal() {
    let settings = ConcurrencySettings {
        law: Law::Aimd,
        slow_after: Some(SECOND),
        ..ConcurrencySettings::default()
    };
    let mut limit = of(settings);
    calls(&mut limit, 20, Some(SECOND), 2 * SECOND, None);
    assert_eq!((limit.limit(), limit.stats().cuts), (11, 0));
    calls(&mut limit, 20, Some(SECOND + 1), 2 * SECOND, None);
    assert_eq!((limit.limit(), limit.stats().cuts), (8, 1));
}

#[test]
fn wrong_settings_are_named() {
    let usual = ConcurrencySettings::default();
    let wrong = |settings| Adaptive::new(settings).unwrap_err().argument;
    assert_eq!(wrong(ConcurrencySettings { least: 0, ..usual }), "least");
    assert_eq!(wrong(ConcurrencySettings { initial: 2_000, ..usual }), "initial");
    assert_eq!(wrong(ConcurrencySettings { most: 5, ..usual }), "initial");
    assert_eq!(wrong(ConcurrencySettings { tolerance: f64::NAN, ..usual }), "tolerance");
    assert_eq!(wrong(ConcurrencySettings { backoff_ratio: 1.0, ..usual }), "backoff_ratio");
    assert_eq!(wrong(ConcurrencySettings { slow_after: Some(1), ..usual }), "slow_after");
    let aimd = ConcurrencySettings { law: Law::Aimd, ..usual };
    assert_eq!(wrong(ConcurrencySettings { slow_after: Some(0), ..aimd }), "slow_after");
}

fn settings() -> impl Strategy<Value = ConcurrencySettings> {
    let law = prop_oneof![Just(Law::Gradient), Just(Law::Aimd)];
    let signal = prop_oneof![Just(Signal::Ttft), Just(Signal::Tpot), Just(Signal::Latency)];
    (1_u32..20, 0_u32..20, 0_u32..50, law, signal, 1_u32..4, prop::option::of(1..SECOND)).prop_map(
        |(least, up, more, law, signal, window, slow_after)| ConcurrencySettings {
            initial: least + up,
            least,
            most: least + up + more,
            law,
            signal,
            window,
            slow_after: slow_after.filter(|_| law == Law::Aimd),
            ..ConcurrencySettings::default()
        },
    )
}

proptest! {
    #![proptest_config(crate::core::cases(256, 20_000))]

    #[test]
    fn it_stays_within_its_bounds_whatever_becomes_of_calls(
        settings in settings(),
        ends in prop::collection::vec(
            (0..4_usize, any::<Nanos>(), any::<Nanos>(), prop::option::of(any::<u64>()), any::<u32>(), any::<bool>()),
            1..200,
        ),
    ) {
        let mut limit = of(settings);
        for (outcome, begun, took, tokens, in_flight, streamed) in ends {
            let mut call = Call::new(begun, in_flight);
            let now = begun.saturating_add(took);
            if streamed {
                limit.first_token(&mut call, begun.saturating_add(took / 2));
            }
            limit.ended(&call, Outcome::ALL[outcome], tokens, now);
            prop_assert!((settings.least..=settings.most).contains(&limit.limit()), "{limit:?}");
        }
    }
}
