//! Models in virtual time: what a run may decide, and what a budget may pay.

use proptest::prelude::*;

use super::*;
use crate::core::clock::{Clock, ManualClock};

const MS: Nanos = SECOND / 1000;

fn policy(settings: Settings) -> Policy {
    Policy::new(settings, None).unwrap()
}

/// With all that chance can add.
fn most(most: Nanos) -> Nanos {
    most
}

fn failing(run: &mut Run, policy: &Policy, now: Nanos) -> Verdict {
    run.after_drawing(policy, Outcome::Failure, None, None, now, most)
}

#[test]
fn delays_double_up_to_the_longest() {
    let policy = policy(Settings { attempts: 9, jitter: Jitter::None, ..Settings::default() });
    let mut run = policy.begin(0);
    let mut delays = Vec::new();
    while let Verdict::Again(delay) = failing(&mut run, &policy, 0) {
        delays.push(delay / MS);
    }
    assert_eq!(delays, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    assert_eq!(run.attempts(), 9);
    assert_eq!(failing(&mut run, &policy, 0), Verdict::GiveUp(Reason::Attempts));
    let stats = policy.stats();
    assert_eq!((stats.calls, stats.retries, stats.given_up), (1, 8, [2, 0, 0, 0, 0]));
    assert_eq!(stats.delayed, 91_500 * MS);
}

#[test]
fn only_failures_and_refusals_are_retried() {
    for (outcome, again) in [
        (Outcome::Success, false),
        (Outcome::Failure, true),
        (Outcome::Throttled, true),
        (Outcome::Neutral, false),
    ] {
        let policy = policy(Settings::default());
        let verdict = policy.begin(0).after(&policy, outcome, None, None, 0);
        assert_eq!(matches!(verdict, Verdict::Again(_)), again, "{outcome:?}");
        assert!(again || verdict == Verdict::GiveUp(Reason::NotRetried));
    }
    let off = policy(Settings { enabled: false, ..Settings::default() });
    assert_eq!(failing(&mut off.begin(0), &off, 0), Verdict::GiveUp(Reason::NotRetried));
    assert_eq!(off.stats().calls, 1);
}

#[test]
fn a_server_is_waited_for_and_a_herd_does_not_come_back_in_one_instant() {
    let policy = policy(Settings { attempts: 2, ..Settings::default() });
    let delays: std::collections::BTreeSet<_> = (0..1_000)
        .map(|_| policy.begin(0).after(&policy, Outcome::Throttled, Some(20 * SECOND), None, 0))
        .map(|verdict| match verdict {
            Verdict::Again(delay) => delay,
            Verdict::GiveUp(reason) => unreachable!("{reason:?}"),
        })
        .collect();
    assert!(delays.len() > 990, "{}", delays.len());
    assert!(*delays.first().unwrap() >= 20 * SECOND);
    assert!(*delays.last().unwrap() <= 20 * SECOND + SECOND / 2);
}

#[test]
fn who_goes_elsewhere_waits_for_nobody_and_pays_all_the_same() {
    let one = BudgetSettings { min_per_second: 1_000_000, window: SECOND, ..no_savings() };
    let budget = Arc::new(RetryBudget::new(one, Clock::Manual(ManualClock::default())).unwrap());
    let settings = Settings { attempts: 3, jitter: Jitter::None, ..Settings::default() };
    let policy = Policy::new(settings, Some(budget)).unwrap();
    let mut run = policy.begin(0).until(SECOND);
    let far = Some(3_600 * SECOND);
    // The same server could not be asked again in time.
    let same = run.after(&policy, Outcome::Throttled, far, None, 0);
    assert_eq!(same, Verdict::GiveUp(Reason::RetryAfterTooLong));
    let elsewhere = run.after_elsewhere(&policy, Outcome::Throttled, far, None, 0);
    assert_eq!(elsewhere, Verdict::Again(3_600 * SECOND));
    assert_eq!((run.attempts(), run.left(SECOND / 4)), (2, Some(SECOND * 3 / 4)));
    let unpaid = run.after_elsewhere(&policy, Outcome::Failure, None, None, 0);
    assert_eq!(unpaid, Verdict::GiveUp(Reason::Budget));
    // Too late for that, too: nothing is paid.
    let late = run.after_elsewhere(&policy, Outcome::Failure, None, None, SECOND);
    assert_eq!(late, Verdict::GiveUp(Reason::Deadline));
    let neutral = run.after_elsewhere(&policy, Outcome::Neutral, None, None, 0);
    assert_eq!(neutral, Verdict::GiveUp(Reason::NotRetried));
    let stats = policy.stats();
    assert_eq!((stats.retries, stats.delayed), (1, 0), "nobody has waited");

    let policy = Policy::new(Settings { attempts: 2, ..settings }, None).unwrap();
    let mut run = policy.begin(0);
    assert_eq!(run.left(7), None);
    let again = run.after_elsewhere(&policy, Outcome::Failure, None, None, 0);
    assert_eq!(again, Verdict::Again(SECOND / 2));
    let last = run.after_elsewhere(&policy, Outcome::Failure, None, None, 0);
    assert_eq!(last, Verdict::GiveUp(Reason::Attempts));
}

#[test]
fn more_patience_than_there_is_is_not_begun() {
    let total = Some(10 * SECOND);
    let policy = policy(Settings { total_timeout: total, ..Settings::default() });
    let after = |asked, now| policy.begin(100).after(&policy, Outcome::Throttled, asked, None, now);
    let too_long = Verdict::GiveUp(Reason::RetryAfterTooLong);
    assert_eq!(after(Some(61 * SECOND), 100), too_long);
    assert_eq!(after(Some(10 * SECOND), 100), too_long);
    assert_eq!(after(Some(1), 10 * SECOND + 100), too_long);
    assert_eq!(after(None, 10 * SECOND + 100), Verdict::GiveUp(Reason::Deadline));
    assert!(matches!(after(Some(9 * SECOND), 100), Verdict::Again(_)));
    // What the caller has left counts like its own.
    let mut run = policy.begin(100).until(SECOND);
    assert_eq!(run.after(&policy, Outcome::Failure, Some(SECOND), None, 100), too_long);
    assert_eq!(run.elapsed(SECOND), Some(SECOND - 100));
}

#[test]
fn other_terms_are_paid_and_counted_alike() {
    let settings = BudgetSettings { min_per_second: 1_000_000, window: SECOND, ..no_savings() };
    let budget =
        Arc::new(RetryBudget::new(settings, Clock::Manual(ManualClock::default())).unwrap());
    let outer = Policy::new(Settings::default(), Some(Arc::clone(&budget))).unwrap();
    let inner = outer.with(Settings { attempts: 9, ..Settings::default() }, None).unwrap();
    let mut run = outer.begin(0);
    assert!(matches!(failing(&mut run, &inner, 0), Verdict::Again(_)));
    assert_eq!(failing(&mut run, &inner, 0), Verdict::GiveUp(Reason::Budget));
    assert_eq!((outer.stats().retries, outer.stats().given_up[1]), (1, 1));
}

#[test]
fn contradictions_are_refused() {
    let refused = |settings| Policy::new(settings, None).unwrap_err().argument;
    let usual = Settings::default();
    assert_eq!(refused(Settings { attempts: 0, ..usual }), "attempts");
    assert_eq!(refused(Settings { factor: 0.9, ..usual }), "factor");
    assert_eq!(refused(Settings { factor: f64::NAN, ..usual }), "factor");
    assert_eq!(refused(Settings { factor: f64::INFINITY, ..usual }), "factor");
    assert_eq!(refused(Settings { base: 31 * SECOND, ..usual }), "base");
    let refused = |settings| RetryBudget::new(settings, Clock::System).unwrap_err().argument;
    assert_eq!(refused(BudgetSettings { ratio: 1_000_001, ..no_savings() }), "ratio");
    assert_eq!(refused(no_savings()), "min_per_second");
    let usual = BudgetSettings::default();
    assert_eq!(refused(BudgetSettings { usd_per_minute: Some(0), ..usual }), "usd_per_minute");
    assert!(Jitter::parse("decorrelated").is_err());
}

#[test]
fn a_slow_reserve_still_pays() {
    let clock = ManualClock::default();
    let settings = BudgetSettings { min_per_second: 1_000, window: SECOND, ..no_savings() };
    let budget = RetryBudget::new(settings, Clock::Manual(clock.clone())).unwrap();
    assert!(budget.try_withdraw(None));
    clock.advance(1_000 * SECOND - 1);
    assert!(!budget.try_withdraw(None));
    clock.advance(1);
    assert!(budget.try_withdraw(None));
}

#[test]
fn a_budget_that_is_off_pays_everything_and_counts() {
    let settings = BudgetSettings {
        min_per_second: 1,
        usd_per_minute: Some(1),
        enabled: false,
        ..BudgetSettings::default()
    };
    let budget = RetryBudget::new(settings, Clock::Manual(ManualClock::default())).unwrap();
    assert!((0..100).all(|_| budget.try_withdraw(Some(100))));
    assert_eq!(budget.stats().retries, 100);
}

#[test]
fn the_ends_of_the_numbers() {
    let settings = Settings {
        attempts: u32::MAX,
        base: u64::MAX,
        max_delay: u64::MAX,
        factor: f64::MAX,
        total_timeout: Some(u64::MAX),
        max_retry_after: u64::MAX,
        ..Settings::default()
    };
    let policy = policy(settings);
    let mut run = policy.begin(u64::MAX - 1);
    for _ in 0..3 {
        run.after(&policy, Outcome::Failure, Some(u64::MAX), Some(u64::MAX), u64::MAX - 1);
        run.after(&policy, Outcome::Failure, None, None, 0);
    }
    let clock = ManualClock::default();
    let settings = BudgetSettings {
        ratio: 1_000_000,
        min_per_second: u64::MAX,
        window: u64::MAX,
        max_saved: u64::MAX,
        usd_per_minute: Some(u64::MAX),
        enabled: true,
    };
    let budget = RetryBudget::new(settings, Clock::Manual(clock.clone())).unwrap();
    for _ in 0..3 {
        budget.deposit();
        budget.try_withdraw(Some(u64::MAX));
        budget.try_withdraw(Some(1));
        clock.advance(u64::MAX / 2);
        let _ = budget.stats();
    }
}

fn no_savings() -> BudgetSettings {
    BudgetSettings { ratio: 0, min_per_second: 0, ..BudgetSettings::default() }
}

/// A budget as one would keep it by hand, each deposit and each coin on its own.
struct Ledger {
    settings: BudgetSettings,
    saved: u64,
    /// Millionths of a retry × nanoseconds of the second.
    reserve: u128,
    most: u128,
    spent: Vec<(Nanos, u64)>,
}

impl Ledger {
    fn new(settings: BudgetSettings) -> Self {
        let most = u128::from(settings.min_per_second) * u128::from(settings.window);
        let most = if most == 0 { 0 } else { most.max(1_000_000 * u128::from(SECOND)) };
        Self { settings, saved: 0, reserve: most, most, spent: Vec::new() }
    }

    fn spent_since(&self, begin: Nanos) -> u64 {
        self.spent.iter().filter(|(at, _)| *at >= begin).map(|(_, cost)| cost).sum()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Wait(Nanos),
    Calls(u64),
    Retry(Option<u64>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let waits = prop_oneof![0..3 * SECOND, 0..90 * SECOND, Just(SECOND), Just(60 * SECOND)];
    let step = prop_oneof![
        2 => waits.prop_map(Step::Wait),
        2 => (0_u64..40).prop_map(Step::Calls),
        5 => proptest::option::of(0_u64..400).prop_map(Step::Retry),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(crate::core::cases(256, 20_000))]

    #[test]
    fn a_budget_pays_what_a_ledger_does(
        ratio in 0_u64..=1_000_000,
        min_per_second in prop_oneof![Just(0), 1_u64..3_000_000],
        window in 1..20 * SECOND,
        max_saved in 1_000_000_u64..5_000_000,
        usd in proptest::option::of(1_u64..1_000),
        begin in 0..u64::MAX / 2,
        steps in steps(),
    ) {
        let ratio = if min_per_second == 0 { ratio.max(1) } else { ratio };
        let settings =
            BudgetSettings { ratio, min_per_second, window, max_saved, usd_per_minute: usd, enabled: true };
        let clock = ManualClock::starting_at(begin);
        let budget = RetryBudget::new(settings, Clock::Manual(clock.clone())).unwrap();
        let mut ledger = Ledger::new(settings);
        let (mut calls, mut paid) = (0_u64, 0_u64);
        for step in steps {
            let now = clock.now();
            match step {
                Step::Wait(time) => {
                    clock.advance(time);
                    let gained = u128::from(time) * u128::from(min_per_second);
                    ledger.reserve = (ledger.reserve + gained).min(ledger.most);
                }
                Step::Calls(count) => for _ in 0..count {
                    calls += 1;
                    budget.deposit();
                    ledger.saved = (ledger.saved + ratio).min(max_saved);
                },
                Step::Retry(cost) => {
                    let enough = ledger.reserve >= 1_000_000 * u128::from(SECOND)
                        || ledger.saved >= 1_000_000;
                    let paying = budget.try_withdraw(cost);
                    let cost = cost.unwrap_or(0);
                    let most = ledger.settings.usd_per_minute.unwrap_or(u64::MAX);
                    if paying {
                        prop_assert!(enough);
                        paid += 1;
                        ledger.spent.push((now, cost));
                        // Of any sixty seconds, the last ones.
                        let minute = now.saturating_sub(60 * SECOND - 1);
                        prop_assert!(ledger.spent_since(minute) <= most);
                        if ledger.reserve >= 1_000_000 * u128::from(SECOND) {
                            ledger.reserve -= 1_000_000 * u128::from(SECOND);
                        } else {
                            ledger.saved -= 1_000_000;
                        }
                    } else if enough {
                        // For the money's sake, and at most a second longer than need be.
                        let longer = now.saturating_sub(61 * SECOND - 1);
                        prop_assert!(ledger.spent_since(longer) + cost > most);
                    }
                }
            }
            let stats = budget.stats();
            prop_assert_eq!(stats.saved, ledger.saved);
            prop_assert_eq!(u128::from(stats.reserve), ledger.reserve / u128::from(SECOND));
            prop_assert_eq!((stats.calls, stats.retries), (calls, paid));
        }
    }

    #[test]
    fn a_run_keeps_its_terms(
        attempts in 1_u32..6,
        base in 0..40 * SECOND,
        more in 0..40 * SECOND,
        factor in 1.0..5.0_f64,
        jitter in prop_oneof![Just(Jitter::Full), Just(Jitter::Equal), Just(Jitter::None)],
        total in proptest::option::of(0..90 * SECOND),
        max_retry_after in 0..60 * SECOND,
        begin in 0..u64::MAX / 2,
        ends in proptest::collection::vec(
            (0..5 * SECOND, proptest::option::of(0..70 * SECOND), 0..4_usize, 0.0..=1.0_f64), 1..8),
    ) {
        let settings = Settings {
            attempts, base, factor, max_delay: base + more, jitter, total_timeout: total,
            max_retry_after, enabled: true,
        };
        let policy = policy(settings);
        let mut run = policy.begin(begin);
        let deadline = total.map(|total| begin + total);
        let mut now = begin;
        for (made, (took, asked, outcome, chance)) in (1..).zip(ends) {
            now += took;
            let outcome = Outcome::ALL[outcome];
            let draw = |most: Nanos| ((most as f64 * chance) as Nanos).min(most);
            let verdict = run.after_drawing(&policy, outcome, asked, None, now, draw);
            let ceiling = (base as f64 * factor.powi(made - 1)) as Nanos;
            let ceiling = ceiling.min(base + more);
            let floor = match jitter {
                Jitter::Full => 0,
                Jitter::Equal => ceiling / 2,
                Jitter::None => ceiling,
            };
            let expected = floor.max(asked.unwrap_or(0)) + draw(ceiling - floor);
            let asked = asked.filter(|asked| *asked > 0);
            let reason = if !matches!(outcome, Outcome::Failure | Outcome::Throttled) {
                Some(Reason::NotRetried)
            } else if made as u32 >= attempts {
                Some(Reason::Attempts)
            } else if asked > Some(max_retry_after)
                || asked.zip(deadline).is_some_and(|(asked, end)| now + asked >= end)
            {
                Some(Reason::RetryAfterTooLong)
            } else if deadline.is_some_and(|end| now + expected >= end) {
                Some(Reason::Deadline)
            } else {
                None
            };
            if let Some(reason) = reason {
                prop_assert_eq!(verdict, Verdict::GiveUp(reason));
                prop_assert_eq!(run.attempts(), made as u32);
                break;
            }
            prop_assert_eq!(verdict, Verdict::Again(expected));
            prop_assert_eq!(run.attempts(), made as u32 + 1);
            now += expected;
        }
    }
}
