//! What is done to a table as a whole: sweeping, invalidating, clearing, looking around.

use std::collections::{HashMap, HashSet};

use hashbrown::HashTable;

use super::adaptive::Adaptive;
use super::deadlines::Deadlines;
use super::entry::{Bounds, Entry, Policy};
use super::lru::List;
use super::table::{ByRecency, Table};
use super::{Cause, Ghosts, Graveyard, Stats};
use crate::core::clock::Nanos;
use crate::core::key::Key;

impl<V> Table<V> {
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

    /// Which entry makes room.
    #[must_use]
    pub fn policy(&self) -> Policy {
        if self.adaptive.is_some() { Policy::Adaptive } else { Policy::Lru }
    }

    /// What it remembers beside its entries; nothing with [`Policy::Lru`].
    #[must_use]
    pub fn ghosts(&self) -> Ghosts {
        self.adaptive.as_ref().map_or_else(Ghosts::default, |adaptive| adaptive.ghosts())
    }

    /// Sets the counters to zero.
    pub fn reset_stats(&mut self) {
        self.stats = Stats::default();
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

    /// Removes everything; what had expired counts as that.
    pub fn clear(&mut self, now: Nanos, grave: &mut Graveyard<V>) {
        grave.reserve(self.index.len());
        while let Some(slot) = self.due(now) {
            self.bury(slot, Cause::Expired, grave);
        }
        let slots = std::mem::take(&mut self.slots);
        for value in slots.into_iter().filter_map(|slot| slot.value) {
            grave.bury(Cause::Cleared, value);
        }
        self.index = HashTable::new();
        self.free = Vec::new();
        self.recency = List::EMPTY;
        if let Some(adaptive) = &mut self.adaptive {
            **adaptive = Adaptive::new(&self.bounds);
        }
        self.deadlines = Deadlines::new();
        self.tags = HashMap::new();
        self.weight = 0;
        self.aging = 0;
    }

    /// The entry under `key` with all that is known about it.
    #[must_use]
    pub fn explain(&self, key: &Key, now: Nanos) -> Option<Entry<'_, V>> {
        let slot = self.find(key)?;
        if self.is_expired(slot, now) {
            return None;
        }
        let (state, expires) = (self.state(slot, now), self.expires(slot));
        let slot = &self.slots[slot as usize];
        let fresh = match slot.aging.as_deref() {
            Some(aging) => aging.fresh_until(),
            None => slot.calm,
        };
        Some(Entry {
            value: slot.value.as_ref()?,
            written: slot.written,
            state,
            fresh: fresh.min(expires),
            expires,
            weight: slot.weight,
            tags: slot.tags.as_deref().unwrap_or_default(),
        })
    }

    /// Fresh values from the least to the most recently used one.
    pub fn by_recency(&mut self, now: Nanos, mut visit: impl FnMut(&V)) {
        let mut next = self.recency.oldest();
        while let Some(slot) = next {
            if self.is_fresh(slot, now)
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
}
