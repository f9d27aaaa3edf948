//! An account against a list of everything that was ever counted.

use proptest::prelude::*;

use super::*;

const DAY: Millis = 86_400_000;

#[derive(Clone, Debug)]
enum Step {
    Reserve(u64),
    Spend(u64),
    /// One of the open ones, at so many thousandths of what was reserved.
    Settle(usize, u64),
    /// So many hours forth, or back.
    Wait(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u64..60).prop_map(Step::Reserve),
        1 => (0_u64..40).prop_map(Step::Spend),
        4 => (any::<usize>(), 0_u64..3_000).prop_map(|(which, part)| Step::Settle(which, part)),
        2 => (-30_i64..60).prop_map(Step::Wait),
    ]
}

/// Days and "weeks" of three days.
fn spans(now: Millis) -> [Span; PERIODS] {
    let of = |length: Millis| {
        let start = now.div_euclid(length) * length;
        Span { start, end: start + length }
    };
    [Span::default(), of(DAY), of(3 * DAY), Span::default()]
}

/// One amount in the period that began then.
struct Counted {
    start: Millis,
    amount: i128,
}

proptest! {
    #![proptest_config(crate::core::cases(512, 20_000))]

    #[test]
    fn an_account_is_the_sum_of_what_was_counted(
        steps in proptest::collection::vec(step(), 1..120),
        daily in 1_u64..150, weekly in 1_u64..400,
    ) {
        let limits = [None, Some(daily), Some(weekly), None];
        let kinds = [(Period::Day, daily), (Period::Week, weekly)];
        let mut account = Account::new(7);
        let mut now = 1_000 * DAY;
        let mut latest = [Millis::MIN; 2];
        let mut counted: [Vec<Counted>; 2] = [Vec::new(), Vec::new()];
        let mut open: Vec<(Entry, [Millis; 2])> = Vec::new();
        for step in steps {
            let terms = Terms { limits, spans: spans(now), thresholds: [None; PERIODS], hard: true };
            let begin = |latest: &mut [Millis; 2]| {
                for (k, (period, _)) in kinds.iter().enumerate() {
                    latest[k] = latest[k].max(terms.spans[*period as usize].start);
                }
            };
            let sum = |counted: &[Vec<Counted>; 2], k: usize, start: Millis| -> i128 {
                counted[k].iter().filter(|c| c.start == start).map(|c| c.amount).sum()
            };
            match step {
                Step::Wait(hours) => now += hours * 3_600_000,
                Step::Reserve(amount) => {
                    begin(&mut latest);
                    let fits = kinds.iter().enumerate().all(|(k, (_, limit))| {
                        let left = i128::from(*limit) - sum(&counted, k, latest[k]);
                        i128::from(amount) <= left && left > 0
                    });
                    let got = account.reserve(&terms, amount, &mut Vec::new());
                    prop_assert_eq!(got.is_ok(), fits);
                    if let Ok(entry) = got {
                        for k in 0..2 {
                            counted[k].push(Counted { start: latest[k], amount: amount.into() });
                        }
                        open.push((entry, latest));
                    }
                }
                Step::Spend(amount) => {
                    begin(&mut latest);
                    account.spend(&terms, amount, &mut Vec::new());
                    for k in 0..2 {
                        counted[k].push(Counted { start: latest[k], amount: amount.into() });
                    }
                }
                Step::Settle(which, part) => {
                    if open.is_empty() {
                        continue;
                    }
                    begin(&mut latest);
                    let (entry, starts) = open.swap_remove(which % open.len());
                    let actual = entry.amount * part / 1_000;
                    account.settle(&terms, &entry, actual, &mut Vec::new());
                    let more = i128::from(actual) - i128::from(entry.amount);
                    for k in 0..2 {
                        let start = if more > 0 { latest[k] } else { starts[k] };
                        counted[k].push(Counted { start, amount: more });
                    }
                }
            }
            let seen = account.seen(&Terms { spans: spans(now), ..terms });
            for (k, (period, _)) in kinds.iter().enumerate() {
                let start = latest[k].max(spans(now)[*period as usize].start);
                let used = i128::from(seen.cells[*period as usize].used);
                prop_assert_eq!(used, sum(&counted, k, start));
            }
        }
    }
}
