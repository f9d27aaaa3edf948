//! The log against a naive list of entries.

use proptest::prelude::*;

use super::amounts::{Amounts, DIMENSIONS, Totals, add};
use super::log::{CHUNK, SpendLog, View};
use crate::core::cases;
use crate::core::clock::{NEVER, Nanos, SECOND};

#[derive(Clone, Copy, Debug)]
struct Listed {
    at: Nanos,
    amounts: Amounts,
    open: bool,
}

struct Naive(Nanos, Vec<Listed>);

impl Naive {
    fn counted(&self, now: Nanos) -> impl Iterator<Item = &Listed> {
        self.1.iter().filter(move |entry| now - entry.at < self.0)
    }

    fn seen(entry: &Listed, view: View) -> Amounts {
        let [requests, input, output, tokens, usd] = entry.amounts.0;
        match view {
            View::Firm if entry.open => Amounts([requests, input, 0, input, 0]),
            _ => Amounts([requests, input, output, tokens, usd]),
        }
    }

    fn used(&self, now: Nanos, view: View) -> Totals {
        let mut totals = [0; DIMENSIONS];
        self.counted(now).for_each(|entry| add(&mut totals, &Self::seen(entry, view)));
        totals
    }

    fn until_left(&self, now: Nanos, d: usize, mut amount: u128, view: View) -> Nanos {
        if amount == 0 {
            return 0;
        }
        for entry in self.counted(now) {
            amount = amount.saturating_sub(u128::from(Self::seen(entry, view).0[d]));
            if amount == 0 {
                return self.0 - (now - entry.at);
            }
        }
        NEVER
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push { gap: Nanos, amounts: Amounts, times: usize, open: bool },
    Settle { back: usize, amounts: Amounts },
    Ask { d: usize, amount: u64 },
}

fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..5, 4 => 0u64..5_000, 1 => Just(u64::MAX)]
}

fn amounts() -> impl Strategy<Value = Amounts> {
    (0u64..2, amount(), amount(), amount()).prop_map(|(r, i, o, u)| Amounts::new(r, i, o, u))
}

fn step() -> impl Strategy<Value = Step> {
    let gap =
        prop_oneof![5 => Just(0), 5 => 0..2 * SECOND, 1 => 0..90 * SECOND, 1 => Just(NEVER / 4)];
    let times = prop_oneof![8 => Just(1), 1 => 1..3 * CHUNK];
    prop_oneof![
        6 => (gap, amounts(), times, any::<bool>())
            .prop_map(|(gap, amounts, times, open)| Step::Push { gap, amounts, times, open }),
        4 => (0usize..200, amounts()).prop_map(|(back, amounts)| Step::Settle { back, amounts }),
        4 => (0..DIMENSIONS, amount()).prop_map(|(d, amount)| Step::Ask { d, amount }),
    ]
}

fn compare(start: Nanos, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let period = 60 * SECOND;
    let mut log = SpendLog::new(period);
    let mut naive = Naive(period, Vec::new());
    let mut now = start;
    for step in steps {
        match step {
            Step::Push { gap, amounts, times, open } => {
                now = now.saturating_add(gap);
                log.expire(now);
                for _ in 0..times {
                    let number = log.push(now, amounts, open);
                    prop_assert_eq!(number, naive.1.len() as u64);
                    naive.1.push(Listed { at: now, amounts, open });
                }
            }
            Step::Settle { back, amounts } => {
                if let Some(index) = naive.1.len().checked_sub(1 + back) {
                    let counts = log.settle(index as u64, amounts);
                    let entry = &mut naive.1[index];
                    prop_assert_eq!(counts, now - entry.at < period);
                    *entry = Listed { at: entry.at, amounts, open: false };
                }
            }
            Step::Ask { d, amount } => {
                for view in [View::Reserved, View::Firm] {
                    let expected = naive.until_left(now, d, u128::from(amount), view);
                    prop_assert_eq!(log.until_left(now, d, u128::from(amount), view), expected);
                }
            }
        }
        for view in [View::Reserved, View::Firm] {
            prop_assert_eq!(*log.used(view), naive.used(now, view));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(400, 10_000))]

    #[test]
    fn it_counts_as_a_list_does(steps in prop::collection::vec(step(), 1..80)) {
        compare(0, steps)?;
    }

    #[test]
    fn at_the_end_of_time_too(
        before in 0u64..200 * SECOND,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        compare(NEVER - before, steps)?;
    }
}

#[test]
fn memory_goes_with_the_window() {
    let mut log = SpendLog::new(60 * SECOND);
    for n in 0..100_000u64 {
        log.expire(n * SECOND / 1000);
        log.push(n * SECOND / 1000, Amounts::new(1, 10, 10, 10), true);
    }
    assert!(log.capacity() <= 200_000, "{}", log.capacity());
    log.expire(10_000 * SECOND);
    assert_eq!(*log.used(View::Reserved), [0; DIMENSIONS]);
    assert!(log.capacity() <= 200, "{}", log.capacity());
}
