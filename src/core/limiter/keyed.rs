//! The bounded table of keys.
//!
//! A key is forgotten only when nothing granted to it counts any more: then a
//! new state decides exactly as the old one would. When the table is full of
//! keys that still count, a new key is refused; a limited one never is
//! forgotten to make room.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{BuildHasher, Hash};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::state::State;
use crate::core::clock::{Nanos, SECOND};

/// When to look again at a key that somebody waits on.
const LOOK_AGAIN: Nanos = SECOND / 100;
/// Keys looked at per new key, so that forgotten ones do not pile up.
const LOOKS_PER_KEY: usize = 2;

#[derive(Debug)]
struct Slot<K, W> {
    key: K,
    hash: u64,
    state: State<W>,
}

#[derive(Debug)]
pub(super) struct KeyTable<K, W> {
    slots: Vec<Option<Slot<K, W>>>,
    free: Vec<u32>,
    index: HashTable<u32>,
    /// Every slot once, by a time before which it cannot be idle.
    due: BinaryHeap<Reverse<(Nanos, u32)>>,
    max_keys: usize,
    hasher: RandomState,
}

impl<K: Eq + Hash + Clone, W: Clone> KeyTable<K, W> {
    pub(super) fn new(max_keys: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            due: BinaryHeap::new(),
            max_keys,
            hasher: RandomState::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn get(&mut self, key: &K) -> Option<&mut State<W>> {
        let slot = self.find(self.hasher.hash_one(key), key)?;
        self.slots[slot as usize].as_mut().map(|slot| &mut slot.state)
    }

    fn find(&self, hash: u64, key: &K) -> Option<u32> {
        let same = |&slot: &u32| self.slots[slot as usize].as_ref().is_some_and(|s| s.key == *key);
        self.index.find(hash, same).copied()
    }

    /// The key's state, made by `make` if the key is new. A full table answers
    /// with the time before which no key can leave it.
    pub(super) fn enter(
        &mut self,
        now: Nanos,
        key: &K,
        make: impl FnOnce() -> State<W>,
        forgotten: &mut Vec<K>,
    ) -> Result<&mut State<W>, Nanos> {
        let hash = self.hasher.hash_one(key);
        let slot = match self.find(hash, key) {
            Some(slot) => slot,
            None => self.insert(now, hash, key, make, forgotten)?,
        };
        // An indexed slot is always filled.
        self.slots[slot as usize].as_mut().map(|slot| &mut slot.state).ok_or(1)
    }

    fn insert(
        &mut self,
        now: Nanos,
        hash: u64,
        key: &K,
        make: impl FnOnce() -> State<W>,
        forgotten: &mut Vec<K>,
    ) -> Result<u32, Nanos> {
        self.forget_idle(now, LOOKS_PER_KEY, forgotten);
        if self.len() >= self.max_keys {
            self.forget_idle(now, self.due.len(), forgotten);
        }
        if self.len() >= self.max_keys {
            let soonest = self.due.peek().map_or(now, |&Reverse((at, _))| at);
            return Err(soonest.saturating_sub(now).max(1));
        }
        let entry = Some(Slot { key: key.clone(), hash, state: make() });
        let slot = if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = entry;
            slot
        } else {
            self.slots.push(entry);
            self.slots.len() as u32 - 1
        };
        let Self { slots, index, .. } = self;
        let rehash = |&slot: &u32| slots[slot as usize].as_ref().map_or(0, |slot| slot.hash);
        index.insert_unique(hash, slot, rehash);
        self.due.push(Reverse((now, slot)));
        Ok(slot)
    }

    /// How long a new key has to wait for a place; a lower bound.
    pub(super) fn room_in(&mut self, now: Nanos) -> Nanos {
        if self.len() < self.max_keys {
            return 0;
        }
        while let Some(&Reverse((at, slot))) = self.due.peek() {
            if at > now {
                return at - now;
            }
            match self.slots[slot as usize].as_ref().map(|slot| slot.state.idle_at()) {
                Some(None) => self.put_off(now.saturating_add(LOOK_AGAIN)),
                Some(Some(at)) if at > now => self.put_off(at),
                _ => return 0,
            }
        }
        0
    }

    /// The first that is due is not, before `at`.
    fn put_off(&mut self, at: Nanos) {
        if let Some(mut first) = self.due.peek_mut() {
            first.0.0 = at;
        }
    }

    /// Looks at up to `looks` keys whose time may have come; stops after the first that goes.
    fn forget_idle(&mut self, now: Nanos, looks: usize, forgotten: &mut Vec<K>) {
        for _ in 0..looks {
            match self.due.peek() {
                Some(&Reverse((at, _))) if at <= now => {}
                _ => return,
            }
            let Some(Reverse((_, slot))) = self.due.pop() else { return };
            let idle_at = self.slots[slot as usize].as_ref().map(|slot| slot.state.idle_at());
            match idle_at {
                Some(None) => self.due.push(Reverse((now.saturating_add(LOOK_AGAIN), slot))),
                Some(Some(at)) if at > now => self.due.push(Reverse((at, slot))),
                _ => {
                    self.remove(slot, forgotten);
                    return;
                }
            }
        }
    }

    fn remove(&mut self, slot: u32, forgotten: &mut Vec<K>) {
        let Some(entry) = self.slots[slot as usize].take() else { return };
        if let Ok(found) = self.index.find_entry(entry.hash, |&other| other == slot) {
            found.remove();
        }
        self.free.push(slot);
        forgotten.push(entry.key);
    }

    /// Visits every key's state without making any idle sooner.
    pub(super) fn for_each(&mut self, visit: impl FnMut(&mut State<W>)) {
        self.slots.iter_mut().flatten().map(|slot| &mut slot.state).for_each(visit);
    }

    /// [`KeyTable::for_each`] with the keys.
    pub(super) fn for_each_key(&mut self, mut visit: impl FnMut(&K, &mut State<W>)) {
        for slot in self.slots.iter_mut().flatten() {
            visit(&slot.key, &mut slot.state);
        }
    }

    /// Visits every key's state, after which each may be idle at another time.
    pub(super) fn change_all(&mut self, now: Nanos, mut change: impl FnMut(&mut State<W>)) {
        self.due.clear();
        for (number, slot) in self.slots.iter_mut().enumerate() {
            if let Some(slot) = slot {
                change(&mut slot.state);
                self.due.push(Reverse((now, number as u32)));
            }
        }
    }
}
