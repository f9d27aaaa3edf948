//! What a store was to forget while it was away.
//!
//! A value that was deleted, replaced or invalidated during an outage still
//! stands in the store, and would come back with it. So whatever the store could
//! not be told is noted here: until it has been told, what it says about those
//! places is a miss.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::generation;
use super::place::Place;
use super::tier::{Done, Outcome, Request};
use crate::core::sync::Mutex;

/// So many places are noted one by one; of more, their namespaces.
const MAX_PLACES: usize = 10_000;

/// So many namespaces and tags are noted.
const MAX_CUTS: usize = 10_000;

/// So much of it a store is told at a time.
const PART: usize = 1_000;

/// Something that a store was not told.
#[derive(Clone, Debug)]
pub struct Debt {
    /// What it is to be told.
    pub request: Request,
    /// When it was noted, in milliseconds since the epoch: a value that is younger is none that was
    /// to be deleted.
    pub since: i64,
}

/// What one store was not told.
#[derive(Debug, Default)]
pub struct Owed {
    any: AtomicBool,
    debts: Mutex<Debts>,
}

#[derive(Debug, Default)]
struct Debts {
    /// And when they were noted, in milliseconds since the epoch.
    places: HashMap<Place, i64>,
    namespaces: HashSet<Arc<str>>,
    tags: HashSet<Arc<str>>,
    /// In which process requests are on their way that pay for some of it.
    under_way: Option<u64>,
    forgotten: bool,
}

impl Owed {
    /// Notes what a request that failed at `now` (milliseconds since the epoch) leaves undone. False if it is too much to note: then the
    /// store may serve what is outdated until it expires.
    pub fn note(&self, request: Request, now: i64) -> bool {
        let mut debts = self.debts.lock();
        match request {
            Request::Delete(place) if !debts.namespaces.contains(&place.ns) => {
                debts.places.insert(place, now);
            }
            Request::InvalidateNamespace(ns) if debts.has_room() => {
                debts.places.retain(|place, _| place.ns != ns);
                debts.namespaces.insert(ns);
            }
            Request::InvalidateTag(tag) if debts.has_room() => {
                debts.tags.insert(tag);
            }
            Request::InvalidateNamespace(_) | Request::InvalidateTag(_) => {
                let first = !debts.forgotten;
                debts.forgotten = true;
                return !first;
            }
            _ => {}
        }
        if debts.places.len() > MAX_PLACES {
            let places = std::mem::take(&mut debts.places);
            debts.namespaces.extend(places.into_keys().map(|place| place.ns));
        }
        self.any.store(true, Ordering::Release);
        true
    }

    /// Whether a value with these tags, read from the store, is one that it was to forget.
    #[must_use]
    pub fn covers(&self, place: &Place, tags: &[Box<str>]) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let debts = self.debts.lock();
        debts.places.contains_key(place)
            || debts.namespaces.contains(&place.ns)
            || tags.iter().any(|tag| debts.tags.contains(&**tag))
    }

    /// The store has a newer value at a place.
    pub fn settle(&self, place: &Place) {
        if self.any.load(Ordering::Acquire) {
            let mut debts = self.debts.lock();
            debts.places.remove(place);
            self.any.store(debts.count() > 0, Ordering::Release);
        }
    }

    /// Has the store told a part of it by `send`, unless one is on its way already.
    pub fn pay(self: &Arc<Self>, send: impl Fn(Request, Done)) {
        let debts = self.next_part(PART);
        if debts.is_empty() {
            return;
        }
        // Dropped with the last of them, however each of them ends.
        let part = Arc::new(Part(Arc::clone(self)));
        for Debt { request, .. } in debts {
            let (part, told) = (Arc::clone(&part), request.clone());
            let done = move |outcome: Outcome| {
                if outcome.is_ok() {
                    part.0.paid(&told);
                }
            };
            send(request, Done::new(done));
        }
    }

    /// What the store is to be told now that it answers, a part at a time; nothing while some of
    /// it is on its way. Each is to be [`Owed::paid`] or not, and then [`Owed::part_done`].
    #[must_use]
    pub fn next_part(&self, most: usize) -> Vec<Debt> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut debts = self.debts.lock();
        let here = generation();
        if debts.under_way == Some(here) {
            return Vec::new();
        }
        let all = |request| Debt { request, since: i64::MAX };
        let namespaces = debts.namespaces.iter().cloned().map(Request::InvalidateNamespace);
        let tags = debts.tags.iter().cloned().map(Request::InvalidateTag);
        let (namespaces, tags) = (namespaces.map(all), tags.map(all));
        let places = debts.places.iter();
        let places = places
            .map(|(place, since)| Debt { request: Request::Delete(place.clone()), since: *since });
        let part: Vec<_> = namespaces.chain(tags).chain(places).take(most).collect();
        debts.under_way = (!part.is_empty()).then_some(here);
        part
    }

    /// The store was told this.
    pub fn paid(&self, request: &Request) {
        let mut debts = self.debts.lock();
        match request {
            Request::Delete(place) => drop(debts.places.remove(place)),
            Request::InvalidateNamespace(ns) => drop(debts.namespaces.take(ns)),
            Request::InvalidateTag(tag) => drop(debts.tags.take(tag)),
            _ => {}
        }
        self.any.store(debts.count() > 0, Ordering::Release);
    }

    /// All of a part was answered.
    pub fn part_done(&self) {
        self.debts.lock().under_way = None;
    }

    /// Nobody will tell the store any more; what is to be logged of that.
    #[must_use]
    pub fn give_up(&self) -> Option<String> {
        let given_up = std::mem::take(&mut *self.debts.lock()).count();
        self.any.store(false, Ordering::Release);
        (given_up > 0).then(|| {
            format!(
                "{given_up} changes could not be told to the store any more; it may serve what is \
                 outdated"
            )
        })
    }

    /// How many the store was not told.
    #[must_use]
    pub fn len(&self) -> usize {
        self.debts.lock().count()
    }

    /// Whether the store was told everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }
}

/// A part of it, on its way.
struct Part(Arc<Owed>);

impl Drop for Part {
    fn drop(&mut self) {
        self.0.part_done();
    }
}

impl Debts {
    fn has_room(&self) -> bool {
        self.namespaces.len() + self.tags.len() < MAX_CUTS
    }

    fn count(&self) -> usize {
        self.places.len() + self.namespaces.len() + self.tags.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(ns: &str, key: &str) -> Place {
        Place::new(ns.into(), key)
    }

    fn pay(owed: &Owed) -> usize {
        let mut count = 0;
        loop {
            let part = owed.next_part(3);
            if part.is_empty() {
                return count;
            }
            assert!(owed.next_part(3).is_empty());
            for debt in &part {
                owed.paid(&debt.request);
            }
            owed.part_done();
            count += part.len();
        }
    }

    #[test]
    fn what_is_owed_covers_until_it_is_paid() {
        let owed = Owed::default();
        let tagged = [Box::from("t")];
        assert!(!owed.covers(&place("ns", "a"), &tagged));
        assert!(owed.note(Request::Delete(place("ns", "a")), 1));
        assert!(owed.note(Request::InvalidateTag("t".into()), 1));
        assert!(owed.note(Request::InvalidateNamespace("other".into()), 1));
        assert!(owed.covers(&place("ns", "a"), &[]));
        assert!(!owed.covers(&place("ns", "b"), &[]));
        assert!(owed.covers(&place("ns", "b"), &tagged));
        assert!(owed.covers(&place("other", "b"), &[]));
        owed.settle(&place("ns", "a"));
        assert!(!owed.covers(&place("ns", "a"), &[]));
        assert_eq!(pay(&owed), 2);
        assert!(owed.is_empty() && !owed.covers(&place("other", "b"), &tagged));
    }

    #[test]
    fn it_is_bounded() {
        let owed = Owed::default();
        for number in 0..3 * MAX_PLACES {
            assert!(owed.note(Request::Delete(place("ns", &number.to_string())), 1));
            assert!(owed.len() <= MAX_PLACES + 1);
        }
        assert!(owed.covers(&place("ns", "0"), &[]));
        let noted = (0..2 * MAX_CUTS)
            .filter(|number| owed.note(Request::InvalidateTag(number.to_string().into()), 1))
            .count();
        assert_eq!(noted, 2 * MAX_CUTS - 1, "said once that it is too much");
        assert!(owed.len() <= MAX_CUTS);
        assert_eq!(pay(&owed), MAX_CUTS);
    }
}
