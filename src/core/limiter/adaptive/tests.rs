use proptest::prelude::*;

use super::*;
use crate::core::clock::Nanos;
use crate::core::outcome::Outcome;
use crate::core::random::Random;

fn aimd(settings: AimdSettings) -> Aimd {
    Aimd::new(settings).unwrap()
}

#[test]
fn aimd_rises_by_a_step_for_as_many_successes_as_it_allows() {
    let mut limit = aimd(AimdSettings { initial: 10, ..AimdSettings::default() });
    for _ in 0..12 {
        assert!(!limit.ended(Outcome::Success, 10, 0, 0));
    }
    assert_eq!(limit.limit(), 11);
    // Not made use of: nobody knows whether more would do.
    for _ in 0..100 {
        limit.ended(Outcome::Success, 4, 0, 0);
        limit.ended(Outcome::Failure, 11, 0, 0);
        limit.ended(Outcome::Neutral, 11, 0, 0);
    }
    assert_eq!(limit.limit(), 11);
}

#[test]
fn a_herd_that_is_refused_together_cuts_once() {
    let mut limit = aimd(AimdSettings { initial: 100, ..AimdSettings::default() });
    let cuts = (0..100).filter(|i| limit.ended(Outcome::Throttled, 100, *i, 1_000 + i)).count();
    assert_eq!((cuts, limit.limit()), (1, 70));
    // Their successes say nothing about the new limit either.
    limit.ended(Outcome::Success, 100, 999, 2_000);
    assert_eq!(limit.limit(), 70);
    assert!(limit.ended(Outcome::Throttled, 70, 1_001, 3_000));
    assert_eq!(limit.limit(), 49);
}

#[test]
fn aimd_stays_at_what_a_silent_provider_bears() {
    // A provider of 100 a round; whoever comes beyond that is refused.
    let mut limit = aimd(AimdSettings { initial: 1, step: 5.0, ..AimdSettings::default() });
    let (mut served, mut refused) = (0_u64, 0_u64);
    for round in 1..=2_000_u64 {
        let (begun, sent) = (round * 1_000, limit.limit());
        for call in 0..sent {
            let outcome = if call < 100 { Outcome::Success } else { Outcome::Throttled };
            if round > 100 {
                *if call < 100 { &mut served } else { &mut refused } += 1;
            }
            limit.ended(outcome, sent, begun, begun + call + 1);
        }
    }
    let used = served as f64 / (1_900.0 * 100.0);
    assert!((0.8..=1.0).contains(&used), "{used} used");
    assert!((refused as f64) < 0.01 * served as f64, "{refused} of {served} refused");
}

/// Runs `rounds` windows against a server that answers in `base` seconds, does `width` at a time
/// and queues the rest; the least and the most that the limit was in the last quarter.
fn load(limit: &mut Gradient, base: f64, width: f64, rounds: u32) -> (u64, u64) {
    let random = Random::seeded(7);
    let mut seen = (u64::MAX, 0);
    for round in 0..rounds {
        let in_flight = limit.limit();
        for _ in 0..10 {
            let queued = (in_flight as f64 / width).max(1.0);
            limit.sample(base * queued * (0.9 + 0.2 * random.draw()), in_flight);
        }
        if round >= rounds - rounds / 4 && !limit.is_probing() {
            seen = (seen.0.min(limit.limit()), seen.1.max(limit.limit()));
        }
    }
    seen
}

#[test]
fn gradient_finds_the_width_of_a_server_and_stays_there() {
    let mut limit = Gradient::new(GradientSettings::default()).unwrap();
    let (least, most) = load(&mut limit, 0.2, 100.0, 10_000);
    assert!(least >= 100 && most <= 200, "{least} to {most} for 100");
    // A narrower server, a wider one, and one that is slower at any load.
    let (least, most) = load(&mut limit, 0.2, 25.0, 2_000);
    assert!(least >= 25 && most <= 50, "{least} to {most} for 25");
    let (least, most) = load(&mut limit, 0.2, 100.0, 2_000);
    assert!(least >= 100 && most <= 200, "{least} to {most} for 100 again");
    let (least, most) = load(&mut limit, 1.0, 100.0, 2_000);
    assert!(least >= 100 && most <= 200, "{least} to {most} for 100, slower");
    let (least, most) = load(&mut limit, 0.05, 100.0, 2_000);
    assert!(least >= 100 && most <= 200, "{least} to {most} for 100, faster");
}

#[test]
fn gradient_does_not_rise_where_it_is_not_made_use_of() {
    let mut limit = Gradient::new(GradientSettings::default()).unwrap();
    for _ in 0..10_000 {
        limit.sample(0.1, 9);
    }
    assert_eq!(limit.limit(), 20);
    for _ in 0..100 {
        limit.sample(f64::NAN, 20);
        limit.sample(f64::INFINITY, 20);
        limit.sample(0.0, 20);
        limit.sample(-1.0, 20);
    }
    assert_eq!((limit.limit(), (limit.usual() * 1e6).round()), (20, 1e5));
}

#[test]
fn contradictions_are_refused() {
    let usual = AimdSettings::default();
    let refused = |settings| Aimd::new(settings).unwrap_err().argument;
    assert_eq!(refused(AimdSettings { least: 0, ..usual }), "least");
    assert_eq!(refused(AimdSettings { initial: 2_000, ..usual }), "initial");
    assert_eq!(refused(AimdSettings { step: 0.0, ..usual }), "step");
    assert_eq!(refused(AimdSettings { step: f64::NAN, ..usual }), "step");
    assert_eq!(refused(AimdSettings { backoff_ratio: 1.0, ..usual }), "backoff_ratio");
    let usual = GradientSettings::default();
    let refused = |settings| Gradient::new(settings).unwrap_err().argument;
    assert_eq!(refused(GradientSettings { least: 30, ..usual }), "initial");
    assert_eq!(refused(GradientSettings { queue_size: f64::INFINITY, ..usual }), "queue_size");
    assert_eq!(refused(GradientSettings { smoothing: 0.0, ..usual }), "smoothing");
    assert_eq!(refused(GradientSettings { tolerance: 0.5, ..usual }), "tolerance");
    assert_eq!(refused(GradientSettings { window: 0, ..usual }), "window");
    assert_eq!(refused(GradientSettings { probe_every: 10, ..usual }), "probe_every");
}

proptest! {
    #![proptest_config(crate::core::cases(256, 20_000))]

    #[test]
    fn aimd_keeps_its_bounds_and_never_falls_but_by_a_refusal(
        (least, initial, most) in (1_u64..50, 0_u64..50, 0_u64..50)
            .prop_map(|(least, up, more)| (least, least + up, least + up + more)),
        step in 0.01..20.0_f64,
        backoff_ratio in 0.01..0.99_f64,
        ends in proptest::collection::vec((0..4_usize, 0_u64..200, 0_u64..100, 0_u64..50), 1..200),
    ) {
        let mut limit = aimd(AimdSettings { initial, least, most, step, backoff_ratio });
        let mut now: Nanos = 0;
        for (outcome, used, ago, later) in ends {
            now += later;
            let (before, outcome) = (limit.limit(), Outcome::ALL[outcome]);
            let cut = limit.ended(outcome, used, now.saturating_sub(ago), now);
            prop_assert!((least..=most).contains(&limit.limit()));
            prop_assert!(!cut || outcome == Outcome::Throttled);
            prop_assert!(cut || limit.limit() >= before);
            prop_assert!(limit.limit() <= before + step.ceil() as u64);
        }
    }

    #[test]
    fn gradient_keeps_its_bounds_whatever_it_is_told(
        (least, initial, most) in (1_u64..50, 0_u64..50, 0_u64..50)
            .prop_map(|(least, up, more)| (least, least + up, least + up + more)),
        window in 1_u32..5,
        samples in proptest::collection::vec((any::<f64>(), any::<u64>()), 1..200),
    ) {
        let settings =
            GradientSettings { initial, least, most, window, ..GradientSettings::default() };
        let mut limit = Gradient::new(settings).unwrap();
        for (latency, in_flight) in samples {
            limit.sample(latency, in_flight);
            prop_assert!((least..=most).contains(&limit.limit()), "{limit:?}");
        }
    }
}
