//! The choice beside plain models of it.

use proptest::prelude::*;

use super::latency::MEMORY;
use super::*;
use crate::core::cases;

fn free() -> Candidate {
    Candidate::default()
}

fn all_free(targets: usize) -> Vec<Candidate> {
    vec![free(); targets]
}

/// Chooses, and has the attempt end at once.
fn turn(route: &mut Route, candidates: &[Candidate]) -> Option<usize> {
    let at = route.best(candidates, 0)?;
    route.choose(at, candidates, 0);
    route.end(at, Ended::Left(0), false, 0);
    Some(at)
}

#[test]
fn the_order_is_nginx_s_own_example() {
    let mut route = Route::new(Kind::Weighted, &[5, 1, 1]);
    let order: Vec<_> = (0..7).map(|_| turn(&mut route, &all_free(3)).unwrap()).collect();
    assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn the_first_that_can_is_taken_in_order() {
    let mut route = Route::new(Kind::Ordered, &[1, 1, 1]);
    let mut candidates = all_free(3);
    assert_eq!(turn(&mut route, &candidates), Some(0));
    candidates[0].available_in = 1;
    assert_eq!(turn(&mut route, &candidates), Some(1));
    candidates[1].failed_before = true;
    assert_eq!(turn(&mut route, &candidates), Some(2));
    candidates[2].available_in = NEVER;
    assert_eq!(turn(&mut route, &candidates), Some(1), "one that has failed before none at all");
    candidates[1].available_in = 7;
    assert_eq!(turn(&mut route, &candidates), None);
    assert_eq!(route.first_to_return(&candidates), Some((0, 1)));
    candidates[0].available_in = NEVER;
    assert_eq!(route.first_to_return(&candidates), Some((1, 7)));
    candidates[1].available_in = NEVER;
    assert_eq!(route.first_to_return(&candidates), None);
}

#[test]
fn equal_prices_share_by_load() {
    let mut route = Route::new(Kind::Cheapest, &[1, 1, 2]);
    let mut candidates = all_free(3);
    candidates[0].cost = 9;
    for expected in [1, 2, 2, 1] {
        let at = route.best(&candidates, 0).unwrap();
        route.choose(at, &candidates, 0);
        assert_eq!(at, expected);
    }
    route.unchoose(2);
    assert_eq!(route.best(&candidates, 0), Some(2));
    assert_eq!(route.seen()[2], Seen { chosen: 1, under_way: 1, latency: None });
}

/// Runs calls against targets that take so long each; how often each was chosen.
fn drive(route: &mut Route, took: &[Nanos], calls: usize) -> Vec<usize> {
    let mut counts = vec![0; took.len()];
    for _ in 0..calls {
        let candidates = all_free(took.len());
        let at = route.best(&candidates, 0).unwrap();
        route.choose(at, &candidates, 0);
        let ended = if took[at] == NEVER { Ended::Failed } else { Ended::Answered(took[at]) };
        route.end(at, ended, false, 0);
        counts[at] += 1;
    }
    counts
}

#[test]
fn the_fastest_gets_the_calls_and_one_that_recovers_is_found() {
    let mut route = Route::new(Kind::Fastest, &[1, 1, 1]);
    drive(&mut route, &[10, 20, 30], 60);
    let settled = drive(&mut route, &[10, 20, 30], 200);
    assert_eq!(settled, [190, 5, 5]);
    // It becomes slow: the next one takes over within a few calls.
    let after = drive(&mut route, &[100, 20, 30], 40);
    assert!(after[1] >= 25, "{after:?}");
    // It recovers: exploring finds out.
    drive(&mut route, &[10, 20, 30], 400);
    assert!(drive(&mut route, &[10, 20, 30], 200)[0] >= 180);
    // One that fails at once is not the fastest.
    drive(&mut route, &[NEVER, 20, 30], 40);
    assert!(drive(&mut route, &[NEVER, 20, 30], 200)[1] >= 180);
}

/// One call after the other at these times, of which some do not end; how often each was chosen.
fn hang(route: &mut Route, hangs: usize, from: Nanos, calls: u64, left: bool) -> Vec<usize> {
    let mut counts = vec![0; 2];
    for time in (from..).step_by(100).take(usize::try_from(calls).unwrap()) {
        let candidates = all_free(2);
        let at = route.best(&candidates, time).unwrap();
        route.choose(at, &candidates, time);
        counts[at] += 1;
        if at != hangs {
            route.end(at, Ended::Answered(10), false, time + 10);
        } else if left {
            route.end(at, Ended::Left(60), false, time + 60);
        }
    }
    counts
}

#[test]
fn one_that_hangs_gets_what_it_takes_to_know_and_every_twentieth() {
    for left in [false, true] {
        // From the beginning.
        let mut route = Route::new(Kind::Fastest, &[1, 1]);
        let counts = hang(&mut route, 1, 0, 200, left);
        assert!(counts[1] <= ENOUGH + 200 / 20, "left: {left}, {counts:?}");
        // After it has been the faster one.
        let mut route = Route::new(Kind::Fastest, &[1, 1]);
        drive(&mut route, &[20, 5], 60);
        let counts = hang(&mut route, 1, 1_000, 200, left);
        assert!(counts[1] <= MEMORY + 200 / 20, "left: {left}, {counts:?}");
        // It has recovered, if what hung there is over.
        let stuck = route.seen()[1].under_way;
        for _ in 0..stuck {
            route.end(1, Ended::Left(30_000), false, 30_000);
        }
        drive(&mut route, &[20, 5], 500);
        assert!(drive(&mut route, &[20, 5], 100)[1] >= 90);
    }
}

#[test]
fn a_stream_that_is_read_is_not_waited_for() {
    let mut route = Route::new(Kind::Fastest, &[1, 1]);
    drive(&mut route, &[10, 20], 60);
    let candidates = all_free(2);
    route.choose(0, &candidates, 100);
    assert_eq!(route.best(&candidates, 119), Some(0));
    assert_eq!(route.best(&candidates, 121), Some(1), "it has been silent for longer");
    route.hear(0, 121);
    assert_eq!(route.best(&candidates, 1_000), Some(0));
    route.end(0, Ended::Answered(21), true, 1_000);
    route.choose(0, &candidates, 1_000);
    assert_eq!(route.best(&candidates, 1_021), Some(1));
    route.unchoose(0);
    assert_eq!(route.best(&candidates, 1_021), Some(0));
}

/// nginx's peers, with nothing but what the source has.
fn nginx(credits: &mut [i64], weights: &[u32], could: &[bool]) -> Option<usize> {
    let mut total = 0;
    let mut best: Option<usize> = None;
    for at in 0..weights.len() {
        if !could[at] {
            continue;
        }
        credits[at] += i64::from(weights[at]);
        total += i64::from(weights[at]);
        if best.is_none_or(|best| credits[at] > credits[best]) {
            best = Some(at);
        }
    }
    credits[best?] -= total;
    best
}

fn candidate() -> impl Strategy<Value = Candidate> {
    let soon = prop_oneof![3 => Just(0), 2 => 1_u64..5, 1 => Just(NEVER)];
    (any::<bool>(), soon, 0_u64..4).prop_map(|(failed_before, available_in, cost)| Candidate {
        failed_before,
        available_in,
        cost,
    })
}

proptest! {
    #![proptest_config(cases(300, 5_000))]

    #[test]
    fn weights_are_exact_over_every_round(weights in prop::collection::vec(1_u32..20, 1..7)) {
        let mut route = Route::new(Kind::Weighted, &weights);
        let round: u32 = weights.iter().sum();
        for _ in 0..3 {
            let mut counts = vec![0_u32; weights.len()];
            for _ in 0..round {
                counts[turn(&mut route, &all_free(weights.len())).unwrap()] += 1;
            }
            prop_assert_eq!(&counts, &weights);
        }
    }

    #[test]
    fn weights_are_nginx_s_whoever_is_away(
        weights in prop::collection::vec(1_u32..9, 3),
        rounds in prop::collection::vec(prop::collection::vec(any::<bool>(), 3), 1..80),
    ) {
        let mut route = Route::new(Kind::Weighted, &weights);
        let mut credits = vec![0; weights.len()];
        for could in rounds {
            let candidates: Vec<_> = could
                .iter()
                .map(|&could| Candidate { available_in: u64::from(!could), ..free() })
                .collect();
            prop_assert_eq!(turn(&mut route, &candidates), nginx(&mut credits, &weights, &could));
        }
        prop_assert_eq!(credits.iter().sum::<i64>(), 0);
    }

    #[test]
    fn the_choice_is_the_least_of_its_kind(
        kind in prop::sample::select(Kind::ALL.to_vec()),
        steps in prop::collection::vec(
            (prop::collection::vec(candidate(), 4), prop::option::of(1_u64..50)), 1..60),
    ) {
        let mut route = Route::new(kind, &[1, 2, 1, 3]);
        for (candidates, took) in steps {
            let best = route.best(&candidates, 0);
            let fresh = candidates.iter().any(|one| one.available_in == 0 && !one.failed_before);
            let group: Vec<_> = (0..4)
                .filter(|&at| candidates[at].available_in == 0)
                .filter(|&at| !fresh || !candidates[at].failed_before)
                .collect();
            prop_assert_eq!(best.is_none(), group.is_empty());
            let returns = candidates.iter().map(|one| one.available_in).min();
            prop_assert_eq!(
                route.first_to_return(&candidates).map(|(_, soon)| soon),
                returns.filter(|&soon| soon < NEVER)
            );
            let Some(best) = best else { continue };
            prop_assert!(group.contains(&best));
            match kind {
                Kind::Ordered => prop_assert_eq!(Some(&best), group.first()),
                Kind::Cheapest => {
                    let least = group.iter().map(|&at| candidates[at].cost).min();
                    prop_assert_eq!(Some(candidates[best].cost), least);
                }
                Kind::Weighted | Kind::Fastest => {}
            }
            route.choose(best, &candidates, 0);
            match took {
                Some(took) => route.end(best, Ended::Answered(took), false, 0),
                None => route.end(best, Ended::Failed, false, 0),
            }
            prop_assert!(route.seen().iter().all(|seen| seen.under_way == 0));
        }
    }
}
