//! Eviction that notices what it is looking at.
//!
//! Recency wins on LLM traffic, frequency on loops and scans, and hill climbing
//! between them (Caffeine, theine) loses on both. Here four ways to divide the
//! cache run in the small, each as a [shadow](shadows) that holds the hashes of a
//! sample of the keys, and the cache follows the one that is [ahead](arms). The
//! change is gradual: nothing is evicted for it, a few entries per operation
//! change [lists](segments).
//!
//! Every operation is O(1). The order of use over all entries is the table's own.

mod arms;
mod segments;
mod shadows;
mod sketch;
#[cfg(test)]
mod tests;

use arms::{RECENCY, shapes};
use segments::{Node, Nodes, Segments, Shape};
use shadows::Shadows;
use sketch::{Frequency, Sketch};

use super::Bounds;
use super::stats::Ghosts;

/// An entry's hash and place; one per slot of the table.
#[derive(Clone, Copy, Debug)]
struct Place {
    hash: u64,
    node: Node,
    /// Where its ghost was of late; it may be gone.
    ghost: u32,
    frequency: Frequency,
}

impl Nodes for Vec<Place> {
    #[inline]
    fn node(&mut self, slot: u32) -> &mut Node {
        &mut self[slot as usize].node
    }

    #[inline]
    fn frequency(&self, slot: u32) -> Frequency {
        self[slot as usize].frequency
    }
}

/// What decides who makes room.
#[derive(Debug)]
pub(super) struct Adaptive {
    places: Vec<Place>,
    segments: Segments,
    sketch: Sketch,
    /// Of the key that was written last.
    written: Frequency,
    shadows: Shadows,
    /// The arm that the cache follows.
    arm: usize,
    shape: Shape,
    /// Entries that the cache can hold; where only weights bound it, as many as it held of late.
    capacity: u32,
    /// Whether weights decide how many entries there can be.
    weighed: bool,
}

impl Adaptive {
    pub(super) fn new(bounds: &Bounds) -> Self {
        let capacity = bounds.max_size.min(u32::MAX as usize) as u32;
        Self {
            places: Vec::new(),
            segments: Segments::EMPTY,
            sketch: Sketch::new(),
            written: Frequency::default(),
            shadows: Shadows::new(capacity),
            arm: RECENCY,
            shape: shapes(capacity)[RECENCY],
            capacity,
            weighed: bounds.max_weight.is_some(),
        }
    }

    /// What it remembers beside the entries.
    pub(super) fn ghosts(&self) -> Ghosts {
        Ghosts {
            entries: self.shadows.len(),
            bytes: self.shadows.bytes()
                + self.sketch.bytes()
                + self.places.capacity() * size_of::<Place>(),
        }
    }

    #[inline]
    fn look_up(&mut self, hash: u64, hit: Option<(u32, Frequency)>) {
        let arm = self.shadows.look_up(hash, hit, self.arm);
        if arm != self.arm {
            self.follow(arm);
        }
    }

    fn follow(&mut self, arm: usize) {
        self.arm = arm;
        self.shape = shapes(self.capacity)[arm];
    }

    /// A lookup found nothing.
    pub(super) fn missed(&mut self, hash: u64) {
        if self.shadows.samples(hash) {
            self.look_up(hash, None);
        }
    }

    /// A lookup found the entry in `slot`.
    pub(super) fn hit(&mut self, slot: u32) {
        let place = &mut self.places[slot as usize];
        place.frequency = self.sketch.count_again(place.hash, place.frequency);
        let Place { hash, ghost, frequency, .. } = *place;
        self.used(slot);
        if self.shadows.samples(hash) {
            self.look_up(hash, Some((ghost, frequency)));
        }
    }

    #[inline]
    fn used(&mut self, slot: u32) {
        if self.shape.recency {
            // The table's own order of use decides.
            self.segments.hit_unordered(&mut self.places, slot, self.shape);
        } else {
            self.segments.hit(&mut self.places, slot, self.shape);
        }
    }

    /// A key that has no entry is about to get one.
    pub(super) fn writing(&mut self, hash: u64) {
        self.written = self.sketch.count(hash);
        if self.shadows.samples(hash) {
            self.shadows.write(hash, self.written, None);
        }
    }

    /// The value in `slot` was replaced.
    pub(super) fn rewritten(&mut self, slot: u32) {
        let place = &mut self.places[slot as usize];
        place.frequency = self.sketch.count_again(place.hash, place.frequency);
        let Place { hash, ghost, frequency, .. } = *place;
        self.used(slot);
        if self.shadows.samples(hash) {
            self.shadows.write(hash, frequency, Some(ghost));
            self.places[slot as usize].ghost = self.shadows.written();
        }
    }

    /// A new entry came into `slot`.
    pub(super) fn added(&mut self, slot: u32, hash: u64) {
        let (ghost, frequency) = (self.shadows.written(), self.written);
        let place = Place { hash, node: Node::ABSENT, ghost, frequency };
        if let Some(free) = self.places.get_mut(slot as usize) {
            *free = place;
        } else {
            self.places.push(place);
            self.sketch.grow(self.places.len());
        }
        self.segments.add(&mut self.places, slot, self.shape);
    }

    /// The entry in `slot` left; unless it was evicted, no policy would have it any more.
    pub(super) fn removed(&mut self, slot: u32, evicted: bool) {
        self.segments.remove(&mut self.places, slot);
        let hash = self.places[slot as usize].hash;
        if !evicted && self.shadows.samples(hash) {
            self.shadows.forget(hash);
        }
    }

    /// Who makes room; `oldest` is the least recently used entry.
    pub(super) fn victim(&mut self, oldest: Option<u32>) -> Option<u32> {
        if self.weighed {
            self.observe_capacity();
        }
        if self.shape.recency {
            return oldest;
        }
        self.segments.victim(&mut self.places, self.shape, self.sketch.period()).or(oldest)
    }

    /// The cache is full by weight: that many entries is what it can hold at present.
    fn observe_capacity(&mut self) {
        let held = self.segments.len().max(1);
        if held.abs_diff(self.capacity) > self.capacity / 8 {
            self.capacity = held;
            self.shadows.resize(held);
            self.shape = shapes(held)[self.arm];
        }
    }
}
