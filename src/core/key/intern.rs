//! Numbers for hashable objects that have no canonical form.
//!
//! Two objects get the same number exactly when the caller's equality says so.
//! That equality may be arbitrary foreign code, so it never runs in here: the
//! table hands out candidates, the caller compares them with no lock held, and
//! comes back with its verdict; a bucket that changed meanwhile means another
//! round. An object stays as long as somebody holds its number.

use std::collections::HashMap;

/// The number of an interned object; never used twice by one table.
pub type ObjectId = u64;

/// A bucket as it was when it was read.
#[derive(Debug)]
pub struct Candidates<T> {
    /// Objects with the same hash, to be compared by the caller.
    pub objects: Vec<(ObjectId, T)>,
}

#[derive(Debug)]
struct Slot<T> {
    object: T,
    hash: u64,
    holders: usize,
}

/// The objects that are in use as keys, by their hash.
#[derive(Debug)]
pub struct InternTable<T> {
    slots: HashMap<ObjectId, Slot<T>>,
    buckets: HashMap<u64, Vec<ObjectId>>,
    next: ObjectId,
}

impl<T> Default for InternTable<T> {
    fn default() -> Self {
        Self { slots: HashMap::new(), buckets: HashMap::new(), next: 0 }
    }
}

impl<T> InternTable<T> {
    /// The objects that could be equal to one with this hash; `copy` runs under the caller's lock.
    pub fn candidates(&self, hash: u64, copy: impl Fn(&T) -> T) -> Candidates<T> {
        let ids = self.buckets.get(&hash).map(Vec::as_slice).unwrap_or_default();
        let objects = ids
            .iter()
            .filter_map(|id| self.slots.get(id).map(|slot| (*id, copy(&slot.object))))
            .collect();
        Candidates { objects }
    }

    /// One more holder of `id`; false if it is gone by now (ask for candidates again).
    #[must_use]
    pub fn hold(&mut self, id: ObjectId) -> bool {
        self.slots.get_mut(&id).map(|slot| slot.holders += 1).is_some()
    }

    /// Enters an object that equals none of the `seen` candidates, with one holder.
    ///
    /// # Errors
    /// Gives the object back when another one with this hash was entered since. (Those with
    /// other hashes do not count: an `__eq__` that makes keys itself would never get through.)
    pub fn enter(&mut self, hash: u64, object: T, seen: &Candidates<T>) -> Result<ObjectId, T> {
        let ids = self.buckets.get(&hash).map(Vec::as_slice).unwrap_or_default();
        if !ids.iter().all(|id| seen.objects.iter().any(|(known, _)| known == id)) {
            return Err(object);
        }
        let id = self.next;
        self.next += 1;
        self.slots.insert(id, Slot { object, hash, holders: 1 });
        self.buckets.entry(hash).or_default().push(id);
        Ok(id)
    }

    /// One holder less; returns the object when it was the last, to be dropped after unlocking.
    #[must_use]
    pub fn release(&mut self, id: ObjectId) -> Option<T> {
        let slot = self.slots.get_mut(&id)?;
        slot.holders -= 1;
        if slot.holders > 0 {
            return None;
        }
        let slot = self.slots.remove(&id)?;
        if let Some(ids) = self.buckets.get_mut(&slot.hash) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.buckets.remove(&slot.hash);
            }
        }
        Some(slot.object)
    }

    /// All objects, for the collector.
    pub fn objects(&self) -> impl Iterator<Item = &T> {
        self.slots.values().map(|slot| &slot.object)
    }

    /// How many objects are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_objects_share_a_number_while_it_is_held() {
        let mut table = InternTable::default();
        let none = table.candidates(5, |s: &&str| s);
        let first = table.enter(5, "a", &none).unwrap();
        let seen = table.candidates(5, |s| s);
        assert_eq!(seen.objects, [(first, "a")]);
        assert!(table.hold(first));
        assert_eq!(table.release(first), None);
        assert_eq!(table.release(first), Some("a"));
        assert!(table.is_empty());
        assert!(!table.hold(first));
    }

    #[test]
    fn a_verdict_on_an_old_bucket_is_refused() {
        let mut table = InternTable::default();
        let mine = table.candidates(5, |s: &&str| s);
        let yours = table.candidates(5, |s| s);
        table.enter(5, "x", &yours).unwrap();
        assert_eq!(table.enter(5, "x", &mine), Err("x"));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn only_the_objects_own_bucket_counts() {
        let mut table = InternTable::default();
        let none = table.candidates(5, |s: &&str| s);
        let gone = table.enter(5, "gone", &none).unwrap();
        let mine = table.candidates(5, |s| s);
        let other = table.candidates(6, |s| s);
        table.enter(6, "other", &other).unwrap();
        assert_eq!(table.release(gone), Some("gone"));
        assert!(table.enter(5, "x", &mine).is_ok());
    }
}
