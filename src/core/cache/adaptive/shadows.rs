//! What every policy would hold: miniature caches of key hashes.
//!
//! A miniature simulation predicts the hit ratio of a cache from a sample of the
//! keys and a capacity that is scaled alike (Waldspurger, Saemundsson, Ahmad and
//! Park, "Cache Modeling and Optimization using Miniature Simulations", USENIX
//! ATC 2017). All shadows share one index of ghosts: one search serves them all.

use hashbrown::HashTable;

use super::arms::{ARMS, Score, shapes};
use super::segments::{Node, Nodes, Segment, Segments, Shape};
use super::sketch::Frequency;

/// Entries up to which all keys are in the sample. With 512, a bad one cost up to 5 % of the hits
/// of 1,024 entries on the multi2 trace.
const ALL: u32 = 1024;

/// Of more entries a shadow has an eighth, if that is more than [`ALL`] and not more than this.
pub(super) const MAX_ENTRIES: u32 = 4096;

/// What share of its capacity a shadow's order of use may be behind by: a key that is in all of
/// them and was made the newest that recently stays where it is.
const AT_EASE: u32 = 8;

/// A key hash and where it lies in every shadow: one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Ghost {
    hash: u64,
    nodes: [Node; ARMS],
    /// When it was made the newest last, by [`Shadows::now`].
    renewed: u32,
    frequency: Frequency,
}

impl Ghost {
    fn is_anywhere(&self) -> bool {
        self.nodes.iter().any(|node| node.segment != Segment::None)
    }
}

/// The set of all arms.
const EVERYWHERE: usize = (1 << ARMS) - 1;

/// The places of one arm.
struct Of<'a, const ARM: usize>(&'a mut [Ghost]);

impl<const ARM: usize> Nodes for Of<'_, ARM> {
    #[inline]
    fn node(&mut self, slot: u32) -> &mut Node {
        &mut self.0[slot as usize].nodes[ARM]
    }

    #[inline]
    fn frequency(&self, slot: u32) -> Frequency {
        self.0[slot as usize].frequency
    }
}

/// One shadow per arm.
#[derive(Debug)]
pub(super) struct Shadows {
    index: HashTable<u32>,
    ghosts: Vec<Ghost>,
    free: Vec<u32>,
    arms: [Segments; ARMS],
    shapes: [Shape; ARMS],
    /// Entries that a shadow may hold.
    capacity: u32,
    /// One key in 2^shift is sampled.
    shift: u32,
    score: Score,
    /// Sampled lookups so far.
    now: u32,
    /// The ghost of the key that was written last.
    written: u32,
}

impl Shadows {
    /// Shadows of a cache of `entries`.
    pub(super) fn new(entries: u32) -> Self {
        let mut shadows = Self {
            index: HashTable::new(),
            ghosts: Vec::new(),
            free: Vec::new(),
            arms: [Segments::EMPTY; ARMS],
            shapes: shapes(1),
            capacity: 1,
            shift: 0,
            score: Score::new(1),
            now: 0,
            written: 0,
        };
        shadows.resize(entries);
        shadows
    }

    /// Follows the capacity of the cache.
    pub(super) fn resize(&mut self, entries: u32) {
        let before = self.shift;
        let most = (entries / 8).clamp(ALL, MAX_ENTRIES);
        while (entries >> self.shift) > most {
            self.shift += 1;
        }
        while self.shift > 0 && (entries >> (self.shift - 1)) <= most {
            self.shift -= 1;
        }
        self.capacity = (entries >> self.shift).max(1);
        self.shapes = shapes(self.capacity);
        self.score.resize(self.capacity);
        if self.shift > before {
            for slot in 0..self.ghosts.len() as u32 {
                if !self.samples(self.ghosts[slot as usize].hash) {
                    self.vanish(slot);
                }
            }
        }
    }

    /// Whether a key belongs to the sample.
    #[inline]
    pub(super) fn samples(&self, hash: u64) -> bool {
        // Other bits than those by which tables and sketch find their places.
        let spread = hash.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        (spread >> 32) & ((1 << self.shift) - 1) == 0
    }

    /// Ghosts at present; at most four times [`MAX_ENTRIES`].
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Bytes that they take.
    pub(super) fn bytes(&self) -> usize {
        self.ghosts.capacity() * size_of::<Ghost>()
            + self.free.capacity() * size_of::<u32>()
            + self.index.capacity() * size_of::<u32>()
    }

    fn find(&self, hash: u64) -> Option<u32> {
        self.index.find(hash, |slot| self.ghosts[*slot as usize].hash == hash).copied()
    }

    /// Where its ghost is, which `hint` may know.
    #[inline]
    fn find_hinted(&self, hash: u64, hint: Option<u32>) -> Option<u32> {
        let hinted = hint.and_then(|slot| self.ghosts.get(slot as usize));
        if hinted.is_some_and(|ghost| ghost.hash == hash) { hint } else { self.find(hash) }
    }

    /// A sampled key was looked up; which arm to follow from here on, if it is time to ask that.
    ///
    /// A hit knows where its ghost was when it was written, and how often it was used.
    pub(super) fn look_up(
        &mut self,
        hash: u64,
        hit: Option<(u32, Frequency)>,
        current: usize,
    ) -> usize {
        self.now = self.now.wrapping_add(1);
        let mut answered = 0;
        if let Some(slot) = self.find_hinted(hash, hit.map(|(ghost, _)| ghost)) {
            if let Some((_, frequency)) = hit {
                self.ghosts[slot as usize].frequency = frequency;
            }
            answered = self.renew(slot);
        }
        if self.score.note(answered) { self.score.choose(current) } else { current }
    }

    /// Makes a ghost the newest wherever it is; in which shadows that is.
    #[inline]
    fn renew(&mut self, slot: u32) -> usize {
        let ghost = &mut self.ghosts[slot as usize];
        let mut held = 0;
        for (arm, node) in ghost.nodes.iter().enumerate() {
            held |= usize::from(node.segment != Segment::None) << arm;
        }
        if held != EVERYWHERE || self.now.wrapping_sub(ghost.renewed) > self.capacity / AT_EASE {
            ghost.renewed = self.now;
            self.renew_in::<0>(slot, held);
            self.renew_in::<1>(slot, held);
            self.renew_in::<2>(slot, held);
            self.renew_in::<3>(slot, held);
        }
        held
    }

    #[inline]
    fn renew_in<const ARM: usize>(&mut self, slot: u32, held: usize) {
        if (held >> ARM) & 1 == 1 {
            self.arms[ARM].hit(&mut Of::<ARM>(&mut self.ghosts), slot, self.shapes[ARM]);
        }
    }

    /// A sampled key was written; `hint` is where its ghost was when it was written before.
    pub(super) fn write(&mut self, hash: u64, frequency: Frequency, hint: Option<u32>) {
        let slot = self.find_hinted(hash, hint).unwrap_or_else(|| self.appear(hash));
        self.written = slot;
        self.ghosts[slot as usize].frequency = frequency;
        let held = self.renew(slot);
        if held != EVERYWHERE {
            self.add_in::<0>(slot, held, frequency);
            self.add_in::<1>(slot, held, frequency);
            self.add_in::<2>(slot, held, frequency);
            self.add_in::<3>(slot, held, frequency);
        }
    }

    #[inline]
    fn add_in<const ARM: usize>(&mut self, slot: u32, held: usize, frequency: Frequency) {
        if (held >> ARM) & 1 == 1 {
            return;
        }
        let shape = self.shapes[ARM];
        while self.arms[ARM].len() >= self.capacity {
            let mut nodes = Of::<ARM>(&mut self.ghosts);
            let Some(victim) = self.arms[ARM].victim(&mut nodes, shape, frequency.period()) else {
                break;
            };
            self.arms[ARM].remove(&mut nodes, victim);
            self.forget_if_gone(victim);
        }
        self.arms[ARM].add(&mut Of::<ARM>(&mut self.ghosts), slot, shape);
    }

    /// Where the ghost of the key that was written last is.
    pub(super) fn written(&self) -> u32 {
        self.written
    }

    /// A key that is in no cache any more, whatever the policy.
    pub(super) fn forget(&mut self, hash: u64) {
        if let Some(slot) = self.find(hash) {
            self.vanish(slot);
        }
    }

    fn appear(&mut self, hash: u64) -> u32 {
        let ghost = Ghost {
            hash,
            nodes: [Node::ABSENT; ARMS],
            renewed: self.now,
            frequency: Frequency::default(),
        };
        let slot = if let Some(slot) = self.free.pop() {
            self.ghosts[slot as usize] = ghost;
            slot
        } else {
            self.ghosts.push(ghost);
            (self.ghosts.len() - 1) as u32
        };
        let ghosts = &self.ghosts;
        self.index.insert_unique(hash, slot, |other| ghosts[*other as usize].hash);
        slot
    }

    fn vanish(&mut self, slot: u32) {
        if self.ghosts[slot as usize].is_anywhere() {
            self.remove_in::<0>(slot);
            self.remove_in::<1>(slot);
            self.remove_in::<2>(slot);
            self.remove_in::<3>(slot);
            self.forget_if_gone(slot);
        }
    }

    fn remove_in<const ARM: usize>(&mut self, slot: u32) {
        if self.ghosts[slot as usize].nodes[ARM].segment != Segment::None {
            self.arms[ARM].remove(&mut Of::<ARM>(&mut self.ghosts), slot);
        }
    }

    fn forget_if_gone(&mut self, slot: u32) {
        if self.ghosts[slot as usize].is_anywhere() {
            return;
        }
        let hash = self.ghosts[slot as usize].hash;
        if let Ok(found) = self.index.find_entry(hash, |other| *other == slot) {
            found.remove();
            // So that no hint finds it.
            self.ghosts[slot as usize].hash = !hash;
            self.free.push(slot);
        }
    }

    /// That every ghost is in a shadow and no shadow is larger than it may be.
    #[cfg(test)]
    pub(super) fn check(&mut self) {
        let held = [
            self.arms[0].check(&mut Of::<0>(&mut self.ghosts)),
            self.arms[1].check(&mut Of::<1>(&mut self.ghosts)),
            self.arms[2].check(&mut Of::<2>(&mut self.ghosts)),
            self.arms[3].check(&mut Of::<3>(&mut self.ghosts)),
        ];
        assert!(held.iter().all(|held| *held <= MAX_ENTRIES as usize));
        for slot in &self.index {
            let ghost = &self.ghosts[*slot as usize];
            assert!(ghost.is_anywhere());
        }
        assert_eq!(self.index.len() + self.free.len(), self.ghosts.len());
    }
}
