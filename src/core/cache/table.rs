//! The table: an index over a slab, threaded by recency and by deadline.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use hashbrown::HashTable;

use super::deadlines::{Deadlines, Queue};
use super::lru::{Links, List, NIL, Slots};
use super::{Cause, Graveyard, Stats};
use crate::core::clock::{NEVER, Nanos};
use crate::core::key::Key;

/// A label under which entries are invalidated together.
pub type Tag = Arc<str>;

/// What a table may hold, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Entries; at least 1.
    pub max_size: usize,
    /// Sum of the entries' weights.
    pub max_weight: Option<u64>,
    /// Time to live after writing.
    pub ttl: Option<Nanos>,
    /// Time to idle after the last read or write.
    pub tti: Option<Nanos>,
}

/// How long one value lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lifetime {
    /// As the table's TTL says.
    #[default]
    Usual,
    /// This long after writing.
    For(Nanos),
    /// Until it is evicted.
    Unlimited,
}

/// What to write along with a value.
#[derive(Clone, Debug, Default)]
pub struct Insert {
    /// How long it lives.
    pub lifetime: Lifetime,
    /// Its share of `max_weight`.
    pub weight: u64,
    /// Under which tags it can be invalidated.
    pub tags: Vec<Tag>,
}

/// One entry as [`Table::explain`] shows it.
#[derive(Debug)]
pub struct Entry<'a, V> {
    /// The value.
    pub value: &'a V,
    /// When it was written.
    pub written: Nanos,
    /// When it expires, or [`NEVER`].
    pub expires: Nanos,
    /// Its weight.
    pub weight: u64,
    /// Its tags.
    pub tags: &'a [Tag],
}

#[derive(Debug)]
struct Slot<V> {
    key: Key,
    /// `None` while the slot is free.
    value: Option<V>,
    recency: Links,
    expiry: Links,
    written: Nanos,
    deadline: Nanos,
    /// Last read or write; kept only when the table has a time to idle.
    touched: Nanos,
    weight: u64,
    queue: Queue,
    tags: Option<Box<[Tag]>>,
}

struct ByRecency<'a, V>(&'a mut [Slot<V>]);
struct ByExpiry<'a, V>(&'a mut [Slot<V>]);

impl<V> Slots for ByRecency<'_, V> {
    #[inline]
    fn links(&mut self, slot: u32) -> &mut Links {
        &mut self.0[slot as usize].recency
    }
}

impl<V> Slots for ByExpiry<'_, V> {
    #[inline]
    fn links(&mut self, slot: u32) -> &mut Links {
        &mut self.0[slot as usize].expiry
    }
}

/// An exact LRU table with expiry, weights and tags.
#[derive(Debug)]
pub struct Table<V> {
    bounds: Bounds,
    index: HashTable<u32>,
    slots: Vec<Slot<V>>,
    free: Vec<u32>,
    recency: List,
    deadlines: Deadlines,
    tags: HashMap<Tag, HashSet<u32>>,
    weight: u64,
    stats: Stats,
}

impl<V> Table<V> {
    /// An empty table; memory grows with its entries.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let max_size = bounds.max_size.clamp(1, NIL as usize);
        Self {
            bounds: Bounds { max_size, ..bounds },
            index: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            recency: List::EMPTY,
            deadlines: Deadlines::new(),
            tags: HashMap::new(),
            weight: 0,
            stats: Stats::default(),
        }
    }

    /// What it may hold.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Entries, live or not yet swept; see [`sweep`](Self::sweep).
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether it has no entries at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The sum of the weights.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Sets the counters to zero.
    pub fn reset_stats(&mut self) {
        self.stats = Stats::default();
    }

    /// Whether reading it needs the time.
    #[inline]
    #[must_use]
    pub fn is_timeless(&self) -> bool {
        self.bounds.tti.is_none() && self.bounds.ttl.is_none() && self.deadlines.is_empty()
    }

    /// The live value under `key`, which becomes the most recently used one.
    #[inline]
    pub fn get(&mut self, key: &Key, now: Nanos, grave: &mut Graveyard<V>) -> Option<&V> {
        let Some(slot) = self.find(key) else {
            self.stats.misses += 1;
            return None;
        };
        if self.is_expired(slot, now) {
            self.bury(slot, Cause::Expired, grave);
            self.stats.misses += 1;
            return None;
        }
        self.stats.hits += 1;
        self.touch(slot, now);
        self.slots[slot as usize].value.as_ref()
    }

    /// The live value under `key`; neither counts nor changes the order.
    #[must_use]
    pub fn peek(&self, key: &Key, now: Nanos) -> Option<&V> {
        let slot = self.find(key)?;
        if self.is_expired(slot, now) { None } else { self.slots[slot as usize].value.as_ref() }
    }

    /// Counts a lookup that was answered elsewhere as a miss.
    pub fn count_miss(&mut self) {
        self.stats.misses += 1;
    }

    /// Writes a value and makes it the most recently used one; evicts as
    /// needed, so that both bounds hold when it returns.
    ///
    /// # Errors
    /// Gives the value back if its weight alone exceeds the bound; an older
    /// value under the key is removed then, for it is no longer true.
    pub fn insert(
        &mut self,
        key: Key,
        value: V,
        insert: Insert,
        now: Nanos,
        grave: &mut Graveyard<V>,
    ) -> Result<(), V> {
        let too_heavy = self.bounds.max_weight.is_some_and(|max| insert.weight > max);
        let old = self.find(&key);
        if let Some(slot) = old {
            let live = !self.is_expired(slot, now);
            self.bury(slot, if live { Cause::Replaced } else { Cause::Expired }, grave);
            if live && !too_heavy {
                self.stats.updates += 1;
            }
        }
        if too_heavy {
            self.stats.rejections += 1;
            return Err(value);
        }
        self.stats.insertions += 1;
        self.make_room(insert.weight, now, grave);
        let (deadline, queue) = match insert.lifetime {
            Lifetime::Usual => match self.bounds.ttl {
                Some(ttl) => (now.saturating_add(ttl), Queue::Usual),
                None => (NEVER, Queue::None),
            },
            Lifetime::For(ttl) => (now.saturating_add(ttl), Queue::Own),
            Lifetime::Unlimited => (NEVER, Queue::None),
        };
        let slot = self.occupy(Slot {
            key,
            value: Some(value),
            recency: Links::UNLINKED,
            expiry: Links::UNLINKED,
            written: now,
            deadline,
            touched: now,
            weight: insert.weight,
            queue,
            tags: (!insert.tags.is_empty()).then(|| insert.tags.into_boxed_slice()),
        });
        self.weight += self.slots[slot as usize].weight;
        self.recency.push_newest(&mut ByRecency(&mut self.slots), slot);
        self.deadlines.add(&mut ByExpiry(&mut self.slots), slot, deadline, queue);
        if let Some(tags) = &self.slots[slot as usize].tags {
            for tag in tags {
                self.tags.entry(Arc::clone(tag)).or_default().insert(slot);
            }
        }
        let slots = &self.slots;
        self.index.insert_unique(key.hash(), slot, |other| slots[*other as usize].key.hash());
        Ok(())
    }

    /// Removes the entry under `key`; true if it was live.
    pub fn remove(&mut self, key: &Key, now: Nanos, grave: &mut Graveyard<V>) -> bool {
        let Some(slot) = self.find(key) else { return false };
        let live = !self.is_expired(slot, now);
        self.bury(slot, if live { Cause::Deleted } else { Cause::Expired }, grave);
        live
    }

    /// Removes the least recently used live entry.
    pub fn remove_oldest(&mut self, now: Nanos, grave: &mut Graveyard<V>) -> bool {
        while let Some(slot) = self.recency.oldest() {
            let live = !self.is_expired(slot, now);
            self.bury(slot, if live { Cause::Deleted } else { Cause::Expired }, grave);
            if live {
                return true;
            }
        }
        false
    }

    /// Removes what was tagged with `tag`, up to `limit` entries; returns how many were live.
    pub fn invalidate_tag(
        &mut self,
        tag: &str,
        limit: usize,
        now: Nanos,
        grave: &mut Graveyard<V>,
    ) -> usize {
        let Some(slots) = self.tags.get(tag) else { return 0 };
        let slots: Vec<u32> = slots.iter().copied().take(limit).collect();
        let mut live = 0;
        for slot in slots {
            if self.is_expired(slot, now) {
                self.bury(slot, Cause::Expired, grave);
            } else {
                self.bury(slot, Cause::Invalidated, grave);
                self.stats.invalidations += 1;
                live += 1;
            }
        }
        live
    }

    /// How many entries have this tag.
    #[must_use]
    pub fn tagged(&self, tag: &str) -> usize {
        self.tags.get(tag).map_or(0, HashSet::len)
    }

    /// Whether any entry has this tag.
    #[must_use]
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.contains_key(tag)
    }

    /// Removes up to `limit` entries whose time is over; returns how many. Call
    /// it again, with the lock released in between, until it returns less.
    pub fn sweep(&mut self, limit: usize, now: Nanos, grave: &mut Graveyard<V>) -> usize {
        let mut swept = 0;
        while swept < limit {
            let Some(slot) = self.due(now) else { break };
            self.bury(slot, Cause::Expired, grave);
            swept += 1;
        }
        swept
    }

    /// Removes everything.
    pub fn clear(&mut self, grave: &mut Graveyard<V>) {
        grave.0.reserve(self.index.len());
        let slots = std::mem::take(&mut self.slots);
        for value in slots.into_iter().filter_map(|slot| slot.value) {
            grave.bury(Cause::Cleared, value);
        }
        self.index = HashTable::new();
        self.free = Vec::new();
        self.recency = List::EMPTY;
        self.deadlines = Deadlines::new();
        self.tags = HashMap::new();
        self.weight = 0;
    }

    /// The live entry under `key` with all that is known about it.
    #[must_use]
    pub fn explain(&self, key: &Key, now: Nanos) -> Option<Entry<'_, V>> {
        let slot = self.find(key)?;
        if self.is_expired(slot, now) {
            return None;
        }
        let expires = self.expires(slot);
        let slot = &self.slots[slot as usize];
        Some(Entry {
            value: slot.value.as_ref()?,
            written: slot.written,
            expires,
            weight: slot.weight,
            tags: slot.tags.as_deref().unwrap_or_default(),
        })
    }

    /// Live values from the least to the most recently used one.
    pub fn by_recency(&mut self, now: Nanos, mut visit: impl FnMut(&V)) {
        let mut next = self.recency.oldest();
        while let Some(slot) = next {
            if !self.is_expired(slot, now)
                && let Some(value) = &self.slots[slot as usize].value
            {
                visit(value);
            }
            next = List::newer(&mut ByRecency(&mut self.slots), slot);
        }
    }

    /// All values, live or not, in no order; for the collector.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.slots.iter().filter_map(|slot| slot.value.as_ref())
    }

    #[inline]
    fn find(&self, key: &Key) -> Option<u32> {
        let slots = &self.slots;
        self.index.find(key.hash(), |slot| slots[*slot as usize].key == *key).copied()
    }

    #[inline]
    fn expires(&self, slot: u32) -> Nanos {
        let slot = &self.slots[slot as usize];
        match self.bounds.tti {
            Some(tti) => slot.deadline.min(slot.touched.saturating_add(tti)),
            None => slot.deadline,
        }
    }

    #[inline]
    fn is_expired(&self, slot: u32, now: Nanos) -> bool {
        let expires = self.expires(slot);
        expires <= now && expires != NEVER
    }

    #[inline]
    fn touch(&mut self, slot: u32, now: Nanos) {
        if self.bounds.tti.is_some() {
            self.slots[slot as usize].touched = now;
        }
        if self.recency.newest() != slot {
            let mut slots = ByRecency(&mut self.slots);
            self.recency.remove(&mut slots, slot);
            self.recency.push_newest(&mut slots, slot);
        }
    }

    fn due(&self, now: Nanos) -> Option<u32> {
        let by_deadline = self.deadlines.due(now, |slot| self.slots[slot as usize].deadline);
        by_deadline.or_else(|| self.recency.oldest().filter(|slot| self.is_expired(*slot, now)))
    }

    fn make_room(&mut self, weight: u64, now: Nanos, grave: &mut Graveyard<V>) {
        while self.index.len() >= self.bounds.max_size
            || self.bounds.max_weight.is_some_and(|max| self.weight.saturating_add(weight) > max)
        {
            // What is dead goes before what is merely old.
            let (slot, cause) = match self.due(now) {
                Some(slot) => (slot, Cause::Expired),
                None => match self.recency.oldest() {
                    Some(slot) => (slot, Cause::Evicted),
                    None => return,
                },
            };
            self.bury(slot, cause, grave);
        }
    }

    fn occupy(&mut self, slot: Slot<V>) -> u32 {
        if let Some(free) = self.free.pop() {
            self.slots[free as usize] = slot;
            return free;
        }
        self.slots.push(slot);
        (self.slots.len() - 1) as u32
    }

    fn bury(&mut self, slot: u32, cause: Cause, grave: &mut Graveyard<V>) {
        let (hash, deadline, queue) = {
            let entry = &self.slots[slot as usize];
            (entry.key.hash(), entry.deadline, entry.queue)
        };
        if let Ok(found) = self.index.find_entry(hash, |other| *other == slot) {
            found.remove();
        }
        self.recency.remove(&mut ByRecency(&mut self.slots), slot);
        self.deadlines.remove(&mut ByExpiry(&mut self.slots), slot, deadline, queue);
        let entry = &mut self.slots[slot as usize];
        self.weight -= entry.weight;
        let tags = entry.tags.take();
        if let Some(value) = entry.value.take() {
            grave.bury(cause, value);
        }
        for tag in tags.iter().flatten() {
            if let Some(slots) = self.tags.get_mut(tag) {
                slots.remove(&slot);
                if slots.is_empty() {
                    self.tags.remove(tag);
                }
            }
        }
        self.free.push(slot);
        match cause {
            Cause::Expired => self.stats.expirations += 1,
            Cause::Evicted => self.stats.evictions += 1,
            _ => {}
        }
    }
}
