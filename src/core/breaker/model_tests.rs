//! The breaker against a model that remembers everything.

use proptest::prelude::*;

use super::tests::breaker;
use super::*;
use crate::core::clock::SECOND;
use crate::core::outcome::Outcome::{self, Failure, Neutral, Success, Throttled};
use State::{Closed, HalfOpen, Open};

#[derive(Clone, Debug)]
enum Act {
    Begin,
    /// Of those under way, which; how.
    End(usize, Outcome),
    Wait(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let outcome = prop_oneof![
        3 => Just(Success), 4 => Just(Failure), 1 => Just(Throttled), 1 => Just(Neutral)
    ];
    let act = prop_oneof![
        5 => Just(Act::Begin),
        6 => (0..8_usize, outcome).prop_map(|(which, how)| Act::End(which, how)),
        1 => (0..20_u64).prop_map(Act::Wait),
    ];
    proptest::collection::vec(act, 0..300)
}

proptest! {
    #![proptest_config(crate::core::cases(200, 20_000))]

    /// All calls are kept with their stretch, and everything is recounted at each step.
    #[test]
    fn it_does_what_a_list_of_all_calls_says(
        acts in acts(), by_time in any::<bool>(), probes in 1..4_u32, count_throttled in any::<bool>()
    ) {
        let span = 60 * SECOND;
        let settings = Settings {
            window: if by_time { Span::Time(span) } else { Span::Calls(8) },
            minimum_calls: Some(3),
            timeout: 10 * SECOND,
            half_open_max_calls: probes,
            success_threshold: 2,
            count_throttled,
            ..Settings::default()
        };
        let (one, clock) = breaker(settings);
        let (mut state, mut now, mut until, mut good) = (Closed, 1_000_u64, 0, 0);
        let mut ended: Vec<(u64, bool)> = Vec::new();
        let mut under_way: Vec<(Permit, u64)> = Vec::new();
        let mut stretch = 0_u64;
        for act in acts {
            match act {
                Act::Wait(seconds) => {
                    clock.advance(seconds * SECOND);
                    now += seconds;
                }
                Act::Begin => {
                    if state == Open && now >= until {
                        (state, good) = (HalfOpen, 0);
                        stretch += 1;
                    }
                    let mine = under_way.iter().filter(|(_, of)| *of == stretch).count() as u32;
                    let expected = match state {
                        Closed => true,
                        HalfOpen => mine < probes,
                        _ => false,
                    };
                    let (asked, _) = one.begin();
                    prop_assert_eq!(asked.is_ok(), expected);
                    if let Ok(permit) = asked {
                        under_way.push((permit, stretch));
                    }
                }
                Act::End(which, outcome) => {
                    if under_way.is_empty() {
                        continue;
                    }
                    let (permit, of) = under_way.swap_remove(which % under_way.len());
                    one.end(permit, outcome, None);
                    let failed = match outcome {
                        Success => false,
                        Failure => true,
                        Throttled if count_throttled => true,
                        _ => continue,
                    };
                    if of != stretch {
                        continue;
                    }
                    let before = state;
                    if state == Closed {
                        ended.push((now, failed));
                        let looked: Vec<bool> = if by_time {
                            ended.iter().filter(|(at, _)| now - at < 60).map(|(_, failed)| *failed).collect()
                        } else {
                            ended.iter().rev().take(8).map(|(_, failed)| *failed).collect()
                        };
                        let bad = looked.iter().filter(|failed| **failed).count();
                        if looked.len() >= 3 && bad * 2 > looked.len() {
                            state = Open;
                        }
                    } else if failed {
                        state = Open;
                    } else {
                        good += 1;
                        if good >= 2 {
                            state = Closed;
                        }
                    }
                    if state != before {
                        stretch += 1;
                        ended.clear();
                        until = now + 10;
                    }
                }
            }
            let shown = if state == Open && now >= until { HalfOpen } else { state };
            prop_assert_eq!(one.state(), shown);
        }
    }
}
