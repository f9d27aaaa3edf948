//! The table: an index over a slab, threaded by recency and by deadline.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use hashbrown::HashTable;

use super::adaptive::Adaptive;
use super::aging::{Aging, State};
use super::deadlines::{Deadlines, Queue};
use super::entry::{Bounds, Insert, Lifetime, Policy, Tag};
use super::lru::{Links, List, NIL, Slots};
use super::{Cause, Graveyard, Savings, Stats};
use crate::core::clock::{Clock, NEVER, Nanos, Seen};
use crate::core::key::{Key, Probe};

#[derive(Debug)]
pub(super) struct Slot<V> {
    key: Key,
    /// `None` while the slot is free.
    pub(super) value: Option<V>,
    recency: Links,
    expiry: Links,
    pub(super) written: Nanos,
    /// Until then it is served without a second look: fresh, and nothing to be done. It
    /// expires then, unless it has an [`Aging`].
    pub(super) calm: Nanos,
    /// Last read or write; kept only when the table has a time to idle.
    touched: Nanos,
    pub(super) weight: u64,
    pub(super) queue: Queue,
    pub(super) tags: Option<Box<[Tag]>>,
    /// Absent if it is expired as soon as it is not fresh.
    pub(super) aging: Option<Box<Aging>>,
    /// What a hit saves.
    saves: Option<Box<Savings>>,
}

impl<V> Slot<V> {
    /// When its time is over, not counting idleness.
    #[inline]
    pub(super) fn deadline(&self) -> Nanos {
        self.aging.as_deref().map_or(self.calm, Aging::deadline)
    }
}

pub(super) struct ByRecency<'a, V>(pub(super) &'a mut [Slot<V>]);
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

/// A table with expiry, weights and tags, evicting by recency or adaptively.
#[derive(Debug)]
pub struct Table<V> {
    pub(super) bounds: Bounds,
    pub(super) index: HashTable<u32>,
    pub(super) slots: Vec<Slot<V>>,
    pub(super) free: Vec<u32>,
    /// All entries by last use, whatever the policy.
    pub(super) recency: List,
    /// `None`: LRU, which pays one comparison for the choice.
    pub(super) adaptive: Option<Box<Adaptive>>,
    pub(super) deadlines: Deadlines,
    pub(super) tags: HashMap<Tag, HashSet<u32>>,
    pub(super) weight: u64,
    /// How many entries have an [`Aging`].
    pub(super) aging: usize,
    pub(super) stats: Stats,
    /// For lookups, which ask the time far more often than an entry expires.
    seen: Seen,
}

impl<V> Table<V> {
    /// An empty table; memory grows with its entries.
    #[must_use]
    pub fn new(bounds: Bounds, policy: Policy) -> Self {
        let max_size = bounds.max_size.clamp(1, NIL as usize);
        let bounds = Bounds { max_size, ..bounds };
        Self {
            bounds,
            adaptive: (policy == Policy::Adaptive).then(|| Box::new(Adaptive::new(&bounds))),
            index: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            recency: List::EMPTY,
            deadlines: Deadlines::new(),
            tags: HashMap::new(),
            weight: 0,
            aging: 0,
            stats: Stats::default(),
            seen: Seen::default(),
        }
    }

    /// The fresh value under `key`, which becomes the most recently used one.
    #[inline]
    pub fn get(&mut self, key: &impl Probe, clock: &Clock, grave: &mut Graveyard<V>) -> Option<&V> {
        let Some(slot) = self.find(key) else {
            self.note_absence(key);
            return None;
        };
        if self.needs_second_look(slot, clock) && !self.is_fresh_or_buried(slot, clock, grave) {
            self.stats.misses += 1;
            return None;
        }
        self.note_hit(slot, clock);
        self.slots[slot as usize].value.as_ref()
    }

    /// As [`get`](Self::get), but without a trace if there is none: neither counted nor buried.
    #[inline]
    pub fn hit(&mut self, key: &impl Probe, clock: &Clock) -> Option<&V> {
        let slot = self.find(key)?;
        if self.needs_second_look(slot, clock) {
            return None;
        }
        self.note_hit(slot, clock);
        self.slots[slot as usize].value.as_ref()
    }

    /// The fresh value under `key`; neither counts nor changes the order.
    #[inline]
    pub fn peek(&mut self, key: &impl Probe, clock: &Clock) -> Option<&V> {
        let slot = self.find(key)?;
        if self.needs_second_look(slot, clock) && !self.is_fresh(slot, clock.now()) {
            return None;
        }
        self.slots[slot as usize].value.as_ref()
    }

    /// [`peek`](Self::peek) for a caller whose lookup was counted as a miss, and whom somebody
    /// else's value reached before its own load began: that load is saved.
    pub fn overtaken(&mut self, key: &impl Probe, clock: &Clock) -> Option<&V> {
        let slot = self.find(key)?;
        if self.needs_second_look(slot, clock) && !self.is_fresh(slot, clock.now()) {
            return None;
        }
        self.note_savings(slot);
        self.slots[slot as usize].value.as_ref()
    }

    #[inline]
    fn note_savings(&mut self, slot: u32) {
        if let Some(saves) = &self.slots[slot as usize].saves {
            self.stats.saved.add(saves);
        }
    }

    /// Whether an entry may be anything but fresh, or is to be refreshed early.
    #[inline]
    pub(super) fn needs_second_look(&mut self, slot: u32, clock: &Clock) -> bool {
        let entry = &self.slots[slot as usize];
        let until = match self.bounds.tti {
            Some(tti) => entry.calm.min(entry.touched.saturating_add(tti)),
            None => entry.calm,
        };
        clock.has_come(until, &mut self.seen)
    }

    #[inline]
    pub(super) fn note_hit(&mut self, slot: u32, clock: &Clock) {
        self.stats.hits += 1;
        self.note_savings(slot);
        if self.bounds.tti.is_some() {
            self.slots[slot as usize].touched = clock.now();
        }
        self.make_newest(slot);
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.hit(slot);
        }
    }

    #[inline]
    pub(super) fn note_absence(&mut self, key: &impl Probe) {
        self.stats.misses += 1;
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.missed(key.hash());
        }
    }

    /// Counts what somebody saved who shared the load of another.
    pub fn count_saved(&mut self, saved: &Savings) {
        self.stats.saved.add(saved);
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
    /// value under the key is removed then, for it is no longer true. Gives a
    /// failure back if there is a value, fresh or stale, which is worth more.
    pub fn insert(
        &mut self,
        key: &impl Probe,
        value: V,
        insert: Insert,
        now: Nanos,
        grave: &mut Graveyard<V>,
    ) -> Result<(), V> {
        let too_heavy = self.bounds.max_weight.is_some_and(|max| insert.weight > max);
        if let Some(slot) = self.find(key) {
            let live = !self.is_expired(slot, now);
            if live && self.fits_in_place(slot, &insert) {
                self.replace(slot, value, &insert, now, grave);
                return Ok(());
            }
            if live && self.is_worth_more(slot, now, &insert) {
                return Err(value);
            }
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
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.writing(key.hash());
        }
        self.make_room(insert.weight, now, grave);
        let (mut deadline, mut queue) = self.deadline(insert.lifetime, now);
        self.weight += insert.weight;
        let slot = self.occupy(key, value, &insert, now, deadline, queue);
        if let Some(saves) = insert.saves {
            self.slots[slot as usize].saves = Some(saves);
        }
        if let Some(aging) = insert.aging {
            (deadline, queue) = self.begin_to_age(slot, aging);
        }
        self.recency.push_newest(&mut ByRecency(&mut self.slots), slot);
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.added(slot, key.hash());
        }
        self.deadlines.add(&mut ByExpiry(&mut self.slots), slot, deadline, queue);
        if !insert.tags.is_empty() {
            self.tag(slot, insert.tags);
        }
        let slots = &self.slots;
        self.index.insert_unique(key.hash(), slot, |other| slots[*other as usize].key.hash());
        Ok(())
    }

    /// Whether a new value may take the old one's place: no tag changes, neither of them
    /// ages or says what it saves, and no other entry has to go for it.
    #[inline]
    fn fits_in_place(&self, slot: u32, insert: &Insert) -> bool {
        let entry = &self.slots[slot as usize];
        let heavier = insert.weight.saturating_sub(entry.weight);
        insert.tags.is_empty()
            && entry.tags.is_none()
            && insert.aging.is_none()
            && entry.aging.is_none()
            && insert.saves.is_none()
            && entry.saves.is_none()
            && self.bounds.max_weight.is_none_or(|max| self.weight.saturating_add(heavier) <= max)
    }

    /// Writes over the live value in `slot`, as removing and inserting it would.
    #[inline]
    fn replace(
        &mut self,
        slot: u32,
        value: V,
        insert: &Insert,
        now: Nanos,
        grave: &mut Graveyard<V>,
    ) {
        let (deadline, queue) = self.deadline(insert.lifetime, now);
        let entry = &mut self.slots[slot as usize];
        let (old_deadline, old_queue) = (entry.calm, entry.queue);
        if let Some(old) = entry.value.replace(value) {
            grave.bury(Cause::Replaced, old);
        }
        self.weight = self.weight - entry.weight + insert.weight;
        entry.weight = insert.weight;
        entry.written = now;
        entry.touched = now;
        entry.calm = deadline;
        entry.queue = queue;
        if queue != Queue::Usual || old_queue != Queue::Usual {
            let mut slots = ByExpiry(&mut self.slots);
            self.deadlines.remove(&mut slots, slot, old_deadline, old_queue);
            self.deadlines.add(&mut slots, slot, deadline, queue);
        } else {
            self.deadlines.make_newest(&mut ByExpiry(&mut self.slots), slot);
        }
        self.make_newest(slot);
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.rewritten(slot);
        }
        self.stats.insertions += 1;
        self.stats.updates += 1;
    }

    /// Removes the entry under `key`; returns the state that it was in, if it was not expired.
    pub fn remove(&mut self, key: &Key, now: Nanos, grave: &mut Graveyard<V>) -> Option<State> {
        let slot = self.find(key)?;
        let state = (!self.is_expired(slot, now)).then(|| self.state(slot, now));
        self.bury(slot, if state.is_some() { Cause::Deleted } else { Cause::Expired }, grave);
        state
    }

    /// Removes the least recently used fresh entry.
    pub fn remove_oldest(&mut self, now: Nanos, grave: &mut Graveyard<V>) -> bool {
        let mut next = self.recency.oldest();
        while let Some(slot) = next {
            next = List::newer(&mut ByRecency(&mut self.slots), slot);
            if self.is_expired(slot, now) {
                self.bury(slot, Cause::Expired, grave);
            } else if self.state(slot, now) == State::Fresh {
                self.bury(slot, Cause::Deleted, grave);
                return true;
            }
        }
        false
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "its calls were 5 of the 50 ns of a hit")]
    pub(super) fn find(&self, key: &impl Probe) -> Option<u32> {
        let slots = &self.slots;
        self.index.find(key.hash(), |slot| key.is(&slots[*slot as usize].key)).copied()
    }

    #[inline]
    pub(super) fn expires(&self, slot: u32) -> Nanos {
        let slot = &self.slots[slot as usize];
        match self.bounds.tti {
            Some(tti) => slot.deadline().min(slot.touched.saturating_add(tti)),
            None => slot.deadline(),
        }
    }

    #[inline]
    pub(super) fn is_expired(&self, slot: u32, now: Nanos) -> bool {
        let expires = self.expires(slot);
        expires <= now && expires != NEVER
    }

    #[inline]
    fn make_newest(&mut self, slot: u32) {
        self.recency.make_newest(&mut ByRecency(&mut self.slots), slot);
    }

    /// When a value written now expires, and who watches that.
    #[inline]
    fn deadline(&self, lifetime: Lifetime, now: Nanos) -> (Nanos, Queue) {
        match lifetime {
            Lifetime::Usual => match self.bounds.ttl {
                Some(ttl) => (now.saturating_add(ttl), Queue::Usual),
                None => (NEVER, Queue::None),
            },
            Lifetime::For(ttl) => (now.saturating_add(ttl), Queue::Own),
            Lifetime::Unlimited => (NEVER, Queue::None),
        }
    }

    pub(super) fn due(&self, now: Nanos) -> Option<u32> {
        let by_deadline = self.deadlines.due(now, |slot| self.slots[slot as usize].calm);
        by_deadline.or_else(|| self.recency.oldest().filter(|slot| self.is_expired(*slot, now)))
    }

    fn victim(&mut self) -> Option<u32> {
        let oldest = self.recency.oldest();
        match &mut self.adaptive {
            None => oldest,
            Some(adaptive) => adaptive.victim(oldest),
        }
    }

    fn make_room(&mut self, weight: u64, now: Nanos, grave: &mut Graveyard<V>) {
        while self.index.len() >= self.bounds.max_size
            || self.bounds.max_weight.is_some_and(|max| self.weight.saturating_add(weight) > max)
        {
            // What is dead goes before what is merely old.
            let (slot, cause) = match self.due(now) {
                Some(slot) => (slot, Cause::Expired),
                None => match self.victim() {
                    Some(slot) => (slot, Cause::Evicted),
                    None => return,
                },
            };
            self.bury(slot, cause, grave);
        }
    }

    /// Puts a value without tags and aging into a free slot; its links are still loose.
    #[inline]
    fn occupy(
        &mut self,
        key: &impl Probe,
        value: V,
        insert: &Insert,
        now: Nanos,
        deadline: Nanos,
        queue: Queue,
    ) -> u32 {
        let Some(free) = self.free.pop() else {
            self.slots.push(Slot {
                key: key.to_key(),
                value: Some(value),
                recency: Links::UNLINKED,
                expiry: Links::UNLINKED,
                written: now,
                calm: deadline,
                touched: now,
                weight: insert.weight,
                queue,
                tags: None,
                aging: None,
                saves: None,
            });
            return (self.slots.len() - 1) as u32;
        };
        // Field by field: a whole slot would be built elsewhere and moved here.
        let slot = &mut self.slots[free as usize];
        slot.key = key.to_key();
        slot.value = Some(value);
        slot.written = now;
        slot.calm = deadline;
        slot.touched = now;
        slot.weight = insert.weight;
        slot.queue = queue;
        free
    }

    fn tag(&mut self, slot: u32, tags: Vec<Tag>) {
        for tag in &tags {
            self.tags.entry(Arc::clone(tag)).or_default().insert(slot);
        }
        self.slots[slot as usize].tags = Some(tags.into_boxed_slice());
    }

    pub(super) fn bury(&mut self, slot: u32, cause: Cause, grave: &mut Graveyard<V>) {
        let (hash, deadline, queue) = {
            let entry = &self.slots[slot as usize];
            (entry.key.hash(), entry.deadline(), entry.queue)
        };
        if let Ok(found) = self.index.find_entry(hash, |other| *other == slot) {
            found.remove();
        }
        self.recency.remove(&mut ByRecency(&mut self.slots), slot);
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.removed(slot, matches!(cause, Cause::Evicted | Cause::Replaced));
        }
        self.deadlines.remove(&mut ByExpiry(&mut self.slots), slot, deadline, queue);
        let entry = &mut self.slots[slot as usize];
        self.weight -= entry.weight;
        let tags = entry.tags.take();
        entry.saves = None;
        if entry.aging.take().is_some() {
            self.aging -= 1;
        }
        if let Some(value) = entry.value.take() {
            grave.bury(cause, value);
        }
        if let Some(tags) = tags {
            self.untag(slot, &tags);
        }
        self.free.push(slot);
        match cause {
            Cause::Expired => self.stats.expirations += 1,
            Cause::Evicted => self.stats.evictions += 1,
            _ => {}
        }
    }

    #[cold]
    fn untag(&mut self, slot: u32, tags: &[Tag]) {
        for tag in tags {
            if let Some(slots) = self.tags.get_mut(tag) {
                slots.remove(&slot);
                if slots.is_empty() {
                    self.tags.remove(tag);
                }
            }
        }
    }
}
