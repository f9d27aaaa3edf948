//! The table against a model that is too simple to be wrong.

use proptest::prelude::*;

use super::{
    Aging, Bounds, Cause, Graveyard, Insert, Lifetime, Look, Policy, Savings, State, Stats, Table,
    Tag, Wish,
};
use crate::core::cases;
use crate::core::clock::{Clock, ManualClock, NEVER, Nanos, SECOND};
use crate::core::key::Key;

fn key(k: u8) -> Key {
    Key::new(&[k])
}

#[derive(Clone, Debug)]
struct ModelEntry {
    key: u8,
    value: u32,
    end: Nanos,
    deadline: Nanos,
    touched: Nanos,
    weight: u64,
    tag: Option<&'static str>,
    /// Absent for an entry that just expires.
    aging: Option<ModelAging>,
}

#[derive(Clone, Copy, Debug)]
struct ModelAging {
    failure: bool,
    /// How long the load took, times the factor of early refreshes.
    reach: f64,
    asked: Option<Nanos>,
}

impl ModelEntry {
    fn state(&self, now: Nanos) -> State {
        match self.aging {
            Some(ModelAging { failure: true, .. }) => State::Negative,
            _ if self.end <= now && self.end != NEVER => State::Stale(self.end),
            _ => State::Fresh,
        }
    }

    fn expires(&self, bounds: &Bounds) -> Nanos {
        self.deadline.min(bounds.tti.map_or(NEVER, |tti| self.touched.saturating_add(tti)))
    }

    /// Whether the caller is to refresh it, at most once a second.
    fn claim(&mut self, now: Nanos) -> bool {
        let Some(aging) = &mut self.aging else { return false };
        let claimed = aging.asked.is_none_or(|asked| now >= asked.saturating_add(SECOND));
        if claimed {
            aging.asked = Some(now);
        }
        claimed
    }
}

/// What a hit on this value saves; sums of it are exact.
fn saving(value: u32) -> Option<Box<Savings>> {
    value.is_multiple_of(3).then(|| {
        Box::new(Savings { tokens: value.into(), usd: f64::from(value) / 4.0, seconds: 0.5 })
    })
}

fn count_hit(stats: &mut Stats, value: u32) {
    stats.hits += 1;
    if let Some(saves) = saving(value) {
        stats.saved.tokens += saves.tokens;
        stats.saved.usd += saves.usd;
        stats.saved.seconds += saves.seconds;
    }
}

/// Entries from the least to the most recently used one.
#[derive(Default)]
struct Model {
    entries: Vec<ModelEntry>,
}

impl Model {
    fn drop_dead(&mut self, bounds: &Bounds, now: Nanos) {
        self.entries.retain(|entry| {
            let end = entry.expires(bounds);
            end == NEVER || end > now
        });
    }

    fn weight(&self) -> u64 {
        self.entries.iter().map(|entry| entry.weight).sum()
    }

    fn find(&self, key: u8) -> Option<&ModelEntry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// Makes the entry the most recently used one.
    fn touch(&mut self, key: u8, now: Nanos) -> Option<&mut ModelEntry> {
        let position = self.entries.iter().position(|entry| entry.key == key)?;
        let mut entry = self.entries.remove(position);
        entry.touched = now;
        self.entries.push(entry);
        self.entries.last_mut()
    }

    fn look(
        &mut self,
        key: u8,
        now: Nanos,
        wish: Wish,
        stats: &mut Stats,
    ) -> Option<(bool, u32, bool)> {
        let state = self.find(key).map(|entry| entry.state(now));
        let served = match state {
            Some(State::Stale(since)) => now - since < wish.stale,
            Some(_) => true,
            None => false,
        };
        if !served {
            stats.misses += 1;
            return None;
        }
        let entry = self.touch(key, now)?;
        count_hit(stats, entry.value);
        match state {
            Some(State::Negative) => {
                stats.negative_hits += 1;
                Some((false, entry.value, false))
            }
            Some(State::Stale(_)) => {
                stats.stale_hits += 1;
                Some((true, entry.value, entry.claim(now)))
            }
            _ => {
                let reach = entry.aging.map_or(0.0, |aging| aging.reach);
                let chosen = entry.aging.is_some()
                    && entry.end != NEVER
                    && reach * wish.early >= (entry.end - now) as f64;
                Some((true, entry.value, chosen && entry.claim(now)))
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Set {
    key: u8,
    value: u32,
    weight: u64,
    lifetime: Option<Lifetime>,
    tag: Option<&'static str>,
    aging: Option<Ages>,
}

#[derive(Clone, Copy, Debug)]
enum Ages {
    Value { grace: Nanos, early: f64, took: Nanos },
    Failure,
}

#[derive(Clone, Debug)]
enum Op {
    Get(u8),
    Hit(u8),
    Look(u8, Wish),
    Fallback(u8, Nanos),
    Peek(u8),
    Set(Set),
    Delete(u8),
    Pop,
    Invalidate(&'static str),
    Sweep(usize),
    Advance(Nanos),
    Clear,
}

fn set() -> impl Strategy<Value = Set> {
    let life = prop_oneof![
        (1_u64..30).prop_map(Lifetime::For),
        Just(Lifetime::Unlimited),
        Just(Lifetime::For(NEVER)),
    ];
    let tag = prop_oneof![Just("red"), Just("blue")];
    let grace = prop_oneof![Just(0), 1_u64..40, Just(2 * SECOND), Just(NEVER)];
    let early = prop_oneof![Just(0.0), 0.01_f64..3.0];
    let ages = prop_oneof![
        3 => (grace, early, 0_u64..10)
            .prop_map(|(grace, early, took)| Ages::Value { grace, early, took }),
        1 => Just(Ages::Failure),
    ];
    (
        (0_u8..12, any::<u32>(), 0_u64..9),
        proptest::option::of(life),
        proptest::option::of(tag),
        proptest::option::of(ages),
    )
        .prop_map(|((key, value, weight), lifetime, tag, aging)| Set {
            key,
            value,
            weight,
            lifetime,
            tag,
            aging,
        })
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0_u8..12;
    let within = prop_oneof![Just(0), 1_u64..40, Just(SECOND), Just(NEVER)];
    let draw = prop_oneof![Just(0.0), 0.0_f64..3.0, Just(36.7)];
    let wish = (within.clone(), draw).prop_map(|(stale, early)| Wish { stale, early });
    let tag = prop_oneof![Just("red"), Just("blue")];
    prop_oneof![
        6 => key.clone().prop_map(Op::Get),
        2 => key.clone().prop_map(Op::Hit),
        6 => (key.clone(), wish).prop_map(|(k, wish)| Op::Look(k, wish)),
        2 => (key.clone(), within).prop_map(|(k, within)| Op::Fallback(k, within)),
        2 => key.clone().prop_map(Op::Peek),
        8 => set().prop_map(Op::Set),
        2 => key.prop_map(Op::Delete),
        1 => Just(Op::Pop),
        1 => tag.prop_map(Op::Invalidate),
        1 => (0_usize..4).prop_map(Op::Sweep),
        4 => prop_oneof![
            6 => 0_u64..12,
            1 => Just(SECOND),
            1 => Just(u64::MAX / 2),
        ].prop_map(Op::Advance),
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
        let mut table = Table::new(bounds, Policy::Lru);
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
                    let fresh = model.find(k).is_some_and(|entry| entry.state(now) == State::Fresh);
                    let expected = if fresh { model.touch(k, now).map(|e| e.value) } else { None };
                    match expected {
                        Some(value) => count_hit(&mut expected_stats, value),
                        None => expected_stats.misses += 1,
                    }
                    prop_assert_eq!(table.get(&key(k), &clock, &mut grave).copied(), expected);
                }
                Op::Hit(k) => {
                    model.drop_dead(&bounds, now);
                    // It may not find what is close to its end, and then leaves no trace.
                    if let Some(found) = table.hit(&key(k), &clock).copied() {
                        prop_assert_eq!(model.find(k).map(|e| e.state(now)), Some(State::Fresh));
                        prop_assert_eq!(model.touch(k, now).map(|e| e.value), Some(found));
                        count_hit(&mut expected_stats, found);
                    } else if let Some(entry) = model.find(k) {
                        prop_assert!(entry.aging.is_some());
                    }
                }
                Op::Look(k, wish) => {
                    model.drop_dead(&bounds, now);
                    let expected = model.look(k, now, wish, &mut expected_stats);
                    let found = match table.look(&key(k), &clock, wish, &mut grave) {
                        Look::Value(value, refresh) => Some((true, *value, refresh)),
                        Look::Failure(value) => Some((false, *value, false)),
                        Look::Absent => None,
                    };
                    prop_assert_eq!(found, expected);
                }
                Op::Fallback(k, within) => {
                    model.drop_dead(&bounds, now);
                    let expected = model.find(k).and_then(|entry| match entry.state(now) {
                        State::Fresh => Some((entry.value, 0)),
                        State::Stale(since) => (now - since < within).then_some((entry.value, 1)),
                        State::Negative => None,
                    });
                    expected_stats.stale_on_error += expected.map_or(0, |(_, counted)| counted);
                    let found = table.fallback(&key(k), within, now).copied();
                    prop_assert_eq!(found, expected.map(|(value, _)| value));
                }
                Op::Peek(k) => {
                    model.drop_dead(&bounds, now);
                    let fresh = model.find(k).filter(|entry| entry.state(now) == State::Fresh);
                    let expected = fresh.map(|entry| entry.value);
                    prop_assert_eq!(table.peek(&key(k), &clock).copied(), expected);
                }
                Op::Set(Set { key: k, value, weight, lifetime, tag, aging }) => {
                    model.drop_dead(&bounds, now);
                    let failure = matches!(aging, Some(Ages::Failure));
                    let lifetime = lifetime.unwrap_or_default();
                    let tags: Vec<Tag> = tag.into_iter().map(Tag::from).collect();
                    let aged = aging.map(|aging| Box::new(match aging {
                        Ages::Value { grace, early, took } => Aging::of_value(grace, early, took),
                        Ages::Failure => Aging::of_failure(),
                    }));
                    let insert = Insert { lifetime, weight, tags, aging: aged, saves: saving(value) };
                    let result = table.insert(&key(k), value, insert, now, &mut grave);
                    let there = model.find(k);
                    if failure && there.is_some_and(|entry| entry.state(now) != State::Negative) {
                        prop_assert_eq!(result, Err(value));
                    } else {
                        let replaced = there.is_some();
                        model.entries.retain(|entry| entry.key != k);
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
                            let end = match lifetime {
                                Lifetime::Usual => ttl.map_or(NEVER, |ttl| now.saturating_add(ttl)),
                                Lifetime::For(ttl) => now.saturating_add(ttl),
                                Lifetime::Unlimited => NEVER,
                            };
                            let (grace, reach) = match aging {
                                Some(Ages::Value { grace, early, took }) => (grace, early * took as f64),
                                _ => (0, 0.0),
                            };
                            model.entries.push(ModelEntry {
                                key: k,
                                value,
                                end,
                                deadline: end.saturating_add(grace),
                                touched: now,
                                weight,
                                tag,
                                aging: aging.map(|_| ModelAging { failure, reach, asked: None }),
                            });
                        }
                        prop_assert_eq!(result.is_err(), heavy);
                        written += u64::from(!heavy);
                        replacements = usize::from(replaced);
                    }
                }
                Op::Delete(k) => {
                    model.drop_dead(&bounds, now);
                    let expected = model.find(k).map(|entry| entry.state(now));
                    model.entries.retain(|entry| entry.key != k);
                    prop_assert_eq!(table.remove(&key(k), now, &mut grave), expected);
                }
                Op::Pop => {
                    model.drop_dead(&bounds, now);
                    let oldest = model.entries.iter().position(|e| e.state(now) == State::Fresh);
                    let expected = oldest.map(|oldest| model.entries.remove(oldest).value);
                    let popped = table.remove_oldest(now, &mut grave);
                    let last = grave.last().filter(|_| popped).map(|(_, value)| *value);
                    prop_assert_eq!((popped, last), (expected.is_some(), expected));
                }
                Op::Invalidate(tag) => {
                    model.drop_dead(&bounds, now);
                    let before = model.entries.len();
                    model.entries.retain(|entry| entry.tag != Some(tag));
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
            let fresh = model.entries.iter().filter(|entry| entry.state(now) == State::Fresh);
            let fresh: Vec<u32> = fresh.map(|entry| entry.value).collect();
            prop_assert!((fresh.len()..=table.len()).contains(&table.count_fresh(now)));
            prop_assert_eq!(order, fresh);
            for entry in &model.entries {
                let found = table.explain(&key(entry.key), now).unwrap();
                let tags: Vec<Tag> = entry.tag.iter().map(|tag| Tag::from(*tag)).collect();
                let expected = (&entry.value, entry.weight, &*tags, entry.state(now));
                prop_assert_eq!((found.value, found.weight, found.tags, found.state), expected);
                let expires = entry.expires(&bounds);
                let failure = entry.aging.is_some_and(|aging| aging.failure);
                let until = if failure { 0 } else { entry.end.min(expires) };
                prop_assert_eq!((found.expires, found.fresh), (expires, until));
            }
            // Nothing vanishes without a burial, and nothing is buried twice.
            prop_assert_eq!(written - buried, table.len() as u64);
        }
        let mut grave = Graveyard::new();
        let now = time.now();
        table.sweep(usize::MAX, now, &mut grave);
        prop_assert_eq!(table.len(), model.entries.len());
        let fresh = model.entries.iter().filter(|entry| entry.state(now) == State::Fresh).count();
        prop_assert_eq!(table.count_fresh(now), fresh);
        prop_assert_eq!(table.weight(), model.weight());
    }
}

#[test]
fn the_dead_leave_before_the_old() {
    let mut table =
        Table::new(Bounds { max_size: 2, max_weight: None, ttl: None, tti: None }, Policy::Lru);
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
    let mut table = Table::new(bounds, Policy::Lru);
    let mut grave = Graveyard::new();
    let weighing = |weight| Insert { weight, ..Insert::default() };
    table.insert(&key(1), "light", weighing(3), 0, &mut grave).unwrap();
    assert_eq!(table.insert(&key(1), "heavy", weighing(11), 0, &mut grave), Err("heavy"));
    assert_eq!(grave.into_iter().collect::<Vec<_>>(), [(Cause::Replaced, "light")]);
    assert_eq!((table.len(), table.weight(), table.stats().rejections), (0, 0, 1));
}
