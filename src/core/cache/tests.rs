//! The table against a model that is too simple to be wrong.

use proptest::prelude::*;

use super::{Bounds, Cause, Graveyard, Insert, Lifetime, Stats, Table, Tag};
use crate::core::cases;
use crate::core::clock::{Clock, ManualClock, NEVER, Nanos};
use crate::core::key::Key;

fn key(k: u8) -> Key {
    Key::new(&[k])
}

/// Key, value, deadline, last touch, weight, tag.
type ModelEntry = (u8, u32, Nanos, Nanos, u64, Option<&'static str>);

/// Entries from the least to the most recently used one.
#[derive(Default)]
struct Model {
    entries: Vec<ModelEntry>,
}

impl Model {
    fn drop_dead(&mut self, bounds: &Bounds, now: Nanos) {
        self.entries.retain(|(_, _, deadline, touched, _, _)| {
            let idle = bounds.tti.map_or(NEVER, |tti| touched.saturating_add(tti));
            let end = (*deadline).min(idle);
            end == NEVER || end > now
        });
    }

    fn weight(&self) -> u64 {
        self.entries.iter().map(|entry| entry.4).sum()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Get(u8),
    Peek(u8),
    Set(u8, u32, u64, Option<Lifetime>, Option<&'static str>),
    Delete(u8),
    Pop,
    Invalidate(&'static str),
    Sweep(usize),
    Advance(Nanos),
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0_u8..12;
    let life = prop_oneof![
        (1_u64..30).prop_map(Lifetime::For),
        Just(Lifetime::Unlimited),
        Just(Lifetime::For(NEVER)),
    ];
    let tag = prop_oneof![Just("red"), Just("blue")];
    prop_oneof![
        6 => key.clone().prop_map(Op::Get),
        2 => key.clone().prop_map(Op::Peek),
        8 => (key.clone(), any::<u32>(), 0_u64..9, proptest::option::of(life), proptest::option::of(tag.clone()))
            .prop_map(|(k, v, w, l, t)| Op::Set(k, v, w, l, t)),
        2 => key.prop_map(Op::Delete),
        1 => Just(Op::Pop),
        1 => tag.prop_map(Op::Invalidate),
        1 => (0_usize..4).prop_map(Op::Sweep),
        4 => prop_oneof![4 => 0_u64..12, 1 => Just(u64::MAX / 2)].prop_map(Op::Advance),
        1 => Just(Op::Clear),
    ]
}

proptest! {
    #![proptest_config(cases(600, 20_000))]

    #[test]
    fn behaves_as_the_model(
        max_size in 1_usize..8,
        max_weight in proptest::option::of(1_u64..20),
        ttl in proptest::option::of(1_u64..20),
        tti in proptest::option::of(1_u64..20),
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        let bounds = Bounds { max_size, max_weight, ttl, tti };
        let mut table = Table::new(bounds);
        let mut model = Model::default();
        let time = ManualClock::default();
        let clock = Clock::Manual(time.clone());
        let mut buried = 0;
        let mut expected_stats = Stats::default();
        let mut written = 0;
        for op in ops {
            let mut grave = Graveyard::new();
            let now = time.now();
            let mut replacements = 0;
            let mut cleared = 0;
            match op {
                Op::Get(k) => {
                    model.drop_dead(&bounds, now);
                    let position = model.entries.iter().position(|entry| entry.0 == k);
                    let expected = position.map(|i| {
                        let mut entry = model.entries.remove(i);
                        entry.3 = now;
                        model.entries.push(entry);
                        entry.1
                    });
                    match expected {
                        Some(_) => expected_stats.hits += 1,
                        None => expected_stats.misses += 1,
                    }
                    prop_assert_eq!(table.get(&key(k), &clock, &mut grave).copied(), expected);
                }
                Op::Peek(k) => {
                    model.drop_dead(&bounds, now);
                    let expected = model.entries.iter().find(|entry| entry.0 == k).map(|entry| entry.1);
                    prop_assert_eq!(table.peek(&key(k), &clock).copied(), expected);
                }
                Op::Set(k, v, weight, lifetime, tag) => {
                    model.drop_dead(&bounds, now);
                    let before = model.entries.len();
                    model.entries.retain(|entry| entry.0 != k);
                    let replaced = model.entries.len() < before;
                    let lifetime = lifetime.unwrap_or_default();
                    let heavy = max_weight.is_some_and(|max| weight > max);
                    expected_stats.rejections += u64::from(heavy);
                    expected_stats.insertions += u64::from(!heavy);
                    expected_stats.updates += u64::from(replaced && !heavy);
                    if !heavy {
                        while model.entries.len() >= max_size
                            || max_weight.is_some_and(|max| model.weight() + weight > max)
                        {
                            model.entries.remove(0);
                            expected_stats.evictions += 1;
                        }
                        let deadline = match lifetime {
                            Lifetime::Usual => ttl.map_or(NEVER, |ttl| now.saturating_add(ttl)),
                            Lifetime::For(ttl) => now.saturating_add(ttl),
                            Lifetime::Unlimited => NEVER,
                        };
                        model.entries.push((k, v, deadline, now, weight, tag));
                    }
                    let tags: Vec<Tag> = tag.into_iter().map(Tag::from).collect();
                    let insert = Insert { lifetime, weight, tags };
                    let result = table.insert(&key(k), v, insert, now, &mut grave);
                    prop_assert_eq!(result.is_err(), heavy);
                    written += u64::from(result.is_ok());
                    replacements = usize::from(replaced);
                }
                Op::Delete(k) => {
                    model.drop_dead(&bounds, now);
                    let before = model.entries.len();
                    model.entries.retain(|entry| entry.0 != k);
                    prop_assert_eq!(table.remove(&key(k), now, &mut grave), model.entries.len() < before);
                }
                Op::Pop => {
                    model.drop_dead(&bounds, now);
                    let expected = !model.entries.is_empty();
                    if expected {
                        model.entries.remove(0);
                    }
                    prop_assert_eq!(table.remove_oldest(now, &mut grave), expected);
                }
                Op::Invalidate(tag) => {
                    model.drop_dead(&bounds, now);
                    let before = model.entries.len();
                    model.entries.retain(|entry| entry.5 != Some(tag));
                    let gone = table.invalidate_tag(tag, usize::MAX, now, &mut grave);
                    prop_assert_eq!(gone, before - model.entries.len());
                    expected_stats.invalidations += gone as u64;
                    prop_assert!(!table.has_tag(tag));
                }
                Op::Sweep(limit) => {
                    prop_assert!(table.sweep(limit, now, &mut grave) <= limit);
                }
                Op::Advance(by) => time.advance(by),
                Op::Clear => {
                    model.drop_dead(&bounds, now);
                    cleared = model.entries.len();
                    model.entries.clear();
                    table.clear(now, &mut grave);
                }
            }
            buried += grave.len() as u64;
            let causes: Vec<Cause> = grave.into_iter().map(|(cause, _)| cause).collect();
            let count = |wanted: Cause| causes.iter().filter(|cause| **cause == wanted).count();
            prop_assert_eq!(count(Cause::Replaced), replacements);
            prop_assert_eq!(count(Cause::Cleared), cleared);
            expected_stats.expirations += count(Cause::Expired) as u64;
            prop_assert_eq!(table.stats(), expected_stats);
            let now = time.now();
            model.drop_dead(&bounds, now);
            prop_assert!(table.len() <= max_size);
            prop_assert!(max_weight.is_none_or(|max| table.weight() <= max));
            let mut order = Vec::new();
            table.by_recency(now, |value| order.push(*value));
            prop_assert_eq!(order, model.entries.iter().map(|entry| entry.1).collect::<Vec<_>>());
            for (k, value, deadline, touched, weight, tag) in &model.entries {
                let found = table.explain(&key(*k), now).unwrap();
                let idle = tti.map_or(NEVER, |tti| touched.saturating_add(tti));
                let tags: Vec<Tag> = tag.iter().map(|tag| Tag::from(*tag)).collect();
                prop_assert_eq!((found.value, found.weight, found.tags), (value, *weight, &*tags));
                prop_assert_eq!(found.expires, idle.min(*deadline));
            }
            // Nothing vanishes without a burial, and nothing is buried twice.
            prop_assert_eq!(written - buried, table.len() as u64);
        }
        let mut grave = Graveyard::new();
        let now = time.now();
        table.sweep(usize::MAX, now, &mut grave);
        prop_assert_eq!(table.len(), model.entries.len());
        prop_assert_eq!(table.weight(), model.weight());
    }
}

#[test]
fn the_dead_leave_before_the_old() {
    let mut table = Table::new(Bounds { max_size: 2, max_weight: None, ttl: None, tti: None });
    let mut grave = Graveyard::new();
    let short = Insert { lifetime: Lifetime::For(5), ..Insert::default() };
    table.insert(&key(1), "old but alive", Insert::default(), 0, &mut grave).unwrap();
    table.insert(&key(2), "dead", short, 0, &mut grave).unwrap();
    table.insert(&key(3), "new", Insert::default(), 10, &mut grave).unwrap();
    assert_eq!(grave.into_iter().collect::<Vec<_>>(), [(Cause::Expired, "dead")]);
}

#[test]
fn a_value_that_is_too_heavy_takes_its_outdated_predecessor_along() {
    let bounds = Bounds { max_size: 9, max_weight: Some(10), ttl: None, tti: None };
    let mut table = Table::new(bounds);
    let mut grave = Graveyard::new();
    let weighing = |weight| Insert { weight, ..Insert::default() };
    table.insert(&key(1), "light", weighing(3), 0, &mut grave).unwrap();
    assert_eq!(table.insert(&key(1), "heavy", weighing(11), 0, &mut grave), Err("heavy"));
    assert_eq!(grave.into_iter().collect::<Vec<_>>(), [(Cause::Replaced, "light")]);
    assert_eq!((table.len(), table.weight(), table.stats().rejections), (0, 0, 1));
}
