//! What must hold whatever the policy prefers, and what it must prefer.

use proptest::prelude::*;

use super::super::{Bounds, Cause, Graveyard, Insert, Lifetime, Policy, Table, Tag};
use super::Adaptive;
use super::arms::{ARMS, RECENCY};
use super::segments::Segment;
use super::sketch::Sketch;
use crate::core::cases;
use crate::core::clock::{Clock, ManualClock, NEVER, Nanos};
use crate::core::key::Key;

fn key(k: u32) -> Key {
    Key::new(&k.to_le_bytes())
}

fn bounds(max_size: usize) -> Bounds {
    Bounds { max_size, max_weight: None, ttl: None, tti: None }
}

impl Adaptive {
    /// That lists, lengths and ghosts agree with each other.
    fn check(&mut self, entries: usize) {
        let placed = self.places.iter().filter(|place| place.node.segment != Segment::None);
        assert_eq!(placed.count(), entries);
        assert_eq!(self.segments.check(&mut self.places), entries);
        self.shadows.check();
    }
}

#[derive(Clone, Debug)]
enum Op {
    Get(u32),
    Set(u32, u64, Option<Nanos>, bool),
    Delete(u32),
    Pop,
    Invalidate,
    Sweep,
    Advance(Nanos),
    Clear,
    Follow(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0_u32..60;
    prop_oneof![
        20 => key.clone().prop_map(Op::Get),
        20 => (key.clone(), 0_u64..9, proptest::option::of(1_u64..30), any::<bool>())
            .prop_map(|(k, w, ttl, tag)| Op::Set(k, w, ttl, tag)),
        2 => key.prop_map(Op::Delete),
        1 => Just(Op::Pop),
        1 => Just(Op::Invalidate),
        1 => Just(Op::Sweep),
        3 => (0_u64..4).prop_map(Op::Advance),
        1 => prop_oneof![9 => Just(Op::Sweep), 1 => Just(Op::Clear)],
        3 => (0..ARMS).prop_map(Op::Follow),
    ]
}

proptest! {
    #![proptest_config(cases(60, 600))]

    /// Values are the last ones set, bounds hold after every operation, only a full cache
    /// evicts, the order of use is exact, and nothing is lost or buried twice, while the
    /// policy changes under way.
    #[test]
    fn keeps_every_promise_of_the_table(
        max_size in 1_usize..40,
        max_weight in proptest::option::of(8_u64..90),
        ttl in proptest::option::of(1_u64..40),
        tti in proptest::option::of(1_u64..40),
        ops in proptest::collection::vec(op(), 1..400),
    ) {
        let mut table = Table::new(Bounds { max_size, max_weight, ttl, tti }, Policy::Adaptive);
        let time = ManualClock::default();
        let clock = Clock::Manual(time.clone());
        // By last use: key, value, weight, deadline, last use.
        let mut model: Vec<(u32, u32, u64, Nanos, Nanos)> = Vec::new();
        let (mut written, mut buried) = (0_usize, 0);
        for (value, op) in (0_u32..).zip(ops) {
            let mut grave = Graveyard::new();
            let now = time.now();
            model.retain(|(_, _, _, deadline, used)| {
                let end = tti.map_or(NEVER, |tti| used + tti).min(*deadline);
                end == NEVER || end > now
            });
            match op {
                Op::Get(k) => {
                    let found = table.get(&key(k), &clock, &mut grave).copied();
                    let at = model.iter().position(|entry| entry.0 == k);
                    prop_assert_eq!(found, at.map(|at| model[at].1));
                    if let Some(at) = at {
                        let mut entry = model.remove(at);
                        entry.4 = now;
                        model.push(entry);
                    }
                }
                Op::Set(k, weight, own, tagged) => {
                    model.retain(|entry| entry.0 != k);
                    let heavy = max_weight.is_some_and(|max| weight > max);
                    let held: u64 = model.iter().map(|entry| entry.2).sum();
                    let room = model.len() < max_size
                        && max_weight.is_none_or(|max| held + weight <= max);
                    let lifetime = own.map_or(Lifetime::Usual, Lifetime::For);
                    let tags: Vec<Tag> = tagged.then(|| Tag::from("red")).into_iter().collect();
                    let insert = Insert { lifetime, weight, tags, ..Insert::default() };
                    let refused = table.insert(&key(k), value, insert, now, &mut grave).is_err();
                    prop_assert_eq!(refused, heavy);
                    if !heavy {
                        written += 1;
                        let ttl = own.or(ttl);
                        model.push((k, value, weight, ttl.map_or(NEVER, |ttl| now + ttl), now));
                        prop_assert_eq!(table.peek(&key(k), &clock), Some(&value));
                    }
                    let gone: Vec<u32> = model.iter().map(|entry| entry.0)
                        .filter(|k| table.peek(&key(*k), &clock).is_none()).collect();
                    prop_assert!(!room || gone.is_empty(), "{gone:?} left for nothing");
                    model.retain(|entry| !gone.contains(&entry.0));
                }
                Op::Delete(k) => {
                    let was = model.iter().any(|entry| entry.0 == k);
                    model.retain(|entry| entry.0 != k);
                    prop_assert_eq!(table.remove(&key(k), now, &mut grave).is_some(), was);
                }
                Op::Pop => {
                    prop_assert_eq!(table.remove_oldest(now, &mut grave), !model.is_empty());
                    if !model.is_empty() {
                        model.remove(0);
                    }
                }
                Op::Invalidate => {
                    table.invalidate_tag("red", usize::MAX, now, &mut grave);
                    prop_assert!(!table.has_tag("red"));
                    model.retain(|entry| table.peek(&key(entry.0), &clock).is_some());
                }
                Op::Sweep => {
                    table.sweep(usize::MAX, now, &mut grave);
                    prop_assert_eq!(table.len(), model.len());
                }
                Op::Advance(by) => time.advance(by),
                Op::Clear => {
                    table.clear(now, &mut grave);
                    model.clear();
                }
                Op::Follow(arm) => table.adaptive.as_mut().unwrap().follow(arm),
            }
            buried += grave.len();
            prop_assert_eq!(written - buried, table.len());
            prop_assert!(table.len() <= max_size);
            prop_assert!(max_weight.is_none_or(|max| table.weight() <= max));
            let entries = table.len();
            table.adaptive.as_mut().unwrap().check(entries);
            if time.now() == now {
                let mut order = Vec::new();
                table.by_recency(now, |value| order.push(*value));
                prop_assert_eq!(order, model.iter().map(|entry| entry.1).collect::<Vec<_>>());
            }
        }
    }
}

/// Hits of a cache that is filled on every miss.
fn hits(table: &mut Table<u32>, references: impl IntoIterator<Item = u32>) -> usize {
    let clock = Clock::Manual(ManualClock::default());
    let mut hits = 0;
    for k in references {
        let mut grave = Graveyard::new();
        if table.get(&key(k), &clock, &mut grave).is_some() {
            hits += 1;
        } else {
            table.insert(&key(k), k, Insert::default(), 0, &mut grave).unwrap();
        }
    }
    hits
}

/// Every key comes twice, 300 others in between, and never again: only recency hits.
fn conversations(from: u32, count: u32) -> impl Iterator<Item = u32> {
    (from..from + count).flat_map(|k| [k, k.saturating_sub(150)])
}

fn looped(times: usize) -> impl Iterator<Item = u32> {
    (0..times).flat_map(|_| 1_000_000..1_001_000)
}

#[test]
fn a_loop_that_does_not_fit_hits_as_far_as_it_fits() {
    let lru = hits(&mut Table::new(bounds(500), Policy::Lru), looped(50));
    let adaptive = hits(&mut Table::new(bounds(500), Policy::Adaptive), looped(50));
    assert_eq!(lru, 0);
    assert!(adaptive > 50 * 500 * 9 / 10, "{adaptive} of {}", 50 * 500);
}

#[test]
fn where_recency_wins_it_is_lru() {
    let lru = hits(&mut Table::new(bounds(500), Policy::Lru), conversations(1_000, 40_000));
    let mut table = Table::new(bounds(500), Policy::Adaptive);
    assert_eq!(hits(&mut table, conversations(1_000, 40_000)), lru);
    assert_eq!(table.adaptive.unwrap().arm, RECENCY);
}

#[test]
fn it_follows_when_the_traffic_changes() {
    let mut table = Table::new(bounds(500), Policy::Adaptive);
    for _ in 0..2 {
        hits(&mut table, looped(40));
        assert_ne!(table.adaptive.as_ref().unwrap().arm, RECENCY);
        hits(&mut table, conversations(1_000, 40_000));
        let best = hits(&mut Table::new(bounds(500), Policy::Lru), conversations(90_000, 10_000));
        let ours = hits(&mut table, conversations(90_000, 10_000));
        assert!(ours * 100 >= best * 98, "{ours} of {best}");
    }
}

#[test]
fn what_it_remembers_is_bounded_and_counted() {
    let mut table = Table::new(bounds(4096), Policy::Adaptive);
    assert_eq!(Table::<u32>::new(bounds(4096), Policy::Lru).ghosts().bytes, 0);
    let mut most = 0;
    for start in 0..100 {
        hits(&mut table, (start * 3_000..start * 3_000 + 5_000).map(|k| k % 150_000));
        let ghosts = table.ghosts();
        assert!(ghosts.entries <= ARMS * 1024);
        most = most.max(ghosts.bytes);
    }
    assert!(table.ghosts().entries > 1024);
    // For an entry 33 to 65 bytes of frequencies and 32 of place, for a ghost 64 and its index.
    assert!(most < 4096 * 97 + ARMS * 1024 * 80, "{most}");
    let mut grave = Graveyard::new();
    table.clear(0, &mut grave);
    assert_eq!(table.ghosts().entries, 0);
}

#[test]
fn a_deleted_key_is_in_no_shadow() {
    let mut table = Table::new(bounds(10), Policy::Adaptive);
    hits(&mut table, 0..10);
    assert_eq!(table.ghosts().entries, 10);
    let mut grave = Graveyard::new();
    assert!(table.remove(&key(3), 0, &mut grave).is_some());
    assert_eq!(table.ghosts().entries, 9);
    // Evicted ones stay: another policy would have kept them.
    hits(&mut table, 10..12);
    assert!(table.ghosts().entries > 9);
}

#[test]
fn a_value_can_be_read_after_it_was_set_whatever_its_frequency() {
    for size in [1, 2, 7] {
        let mut table = Table::new(bounds(size), Policy::Adaptive);
        for arm in 0..ARMS {
            table.adaptive.as_mut().unwrap().follow(arm);
            hits(&mut table, (0..30).map(|k| k % 3));
            for k in (0..20).map(|k| 100 * (arm as u32 + 1) + k) {
                let mut grave = Graveyard::new();
                table.insert(&key(k), k, Insert::default(), 0, &mut grave).unwrap();
                let clock = Clock::Manual(ManualClock::default());
                assert_eq!(table.peek(&key(k), &clock), Some(&k));
                assert!(grave.into_iter().all(|(cause, _)| cause == Cause::Evicted));
            }
        }
    }
}

#[test]
fn weights_decide_how_many_entries_there_are() {
    let heavy = Bounds { max_size: 1_000_000, max_weight: Some(1_000), ttl: None, tti: None };
    let mut table = Table::new(heavy, Policy::Adaptive);
    let clock = Clock::Manual(ManualClock::default());
    let mut hits = 0;
    for k in looped(60) {
        let mut grave = Graveyard::new();
        if table.get(&key(k), &clock, &mut grave).is_some() {
            hits += 1;
        } else {
            let insert = Insert { weight: 2, ..Insert::default() };
            table.insert(&key(k), k, insert, 0, &mut grave).unwrap();
        }
        assert!(table.weight() <= 1_000);
    }
    assert!(hits > 60 * 500 * 8 / 10, "{hits}");
}

#[test]
fn the_sketch_counts_forgets_and_grows() {
    let mut sketch = Sketch::new();
    let hash = |k: u32| key(k).hash();
    let counted = |sketch: &mut Sketch, k: u32| sketch.count(hash(k)).at(sketch.period());
    for uses in 1..10 {
        assert_eq!(counted(&mut sketch, 1), uses);
    }
    sketch.grow(5_000);
    let kept = sketch.count(hash(1));
    assert_eq!((kept.at(kept.period()), counted(&mut sketch, 2)), (10, 1));
    let most = (0..20).map(|_| counted(&mut sketch, 3)).max();
    assert_eq!(most, Some(15));
    // Two periods of ten uses per entry halve everything twice.
    let before = sketch.period();
    for k in 0..100_000 {
        counted(&mut sketch, 100 + k % 50_000);
    }
    let halvings = sketch.period() - before;
    assert_eq!((halvings, kept.at(sketch.period())), (2, 10 >> 2));
    assert!(counted(&mut sketch, 1) <= 10 / 4 + 2);
    let near = (100..50_100).filter(|k| counted(&mut sketch, *k) <= 3).count();
    assert!(near > 45_000, "{near} of 50,000 are estimated near their two uses and this one");
}
