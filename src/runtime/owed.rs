//! What a store was to forget while it was away.
//!
//! A value that was deleted, replaced or invalidated during an outage still
//! stands in the store, and would come back with it. So whatever the store could
//! not be told is noted here: until it has been told, what it says about those
//! places is a miss.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::generation;
use super::place::Place;
use super::tier::{Done, Outcome, Request};
use crate::core::clock::Nanos;
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
    /// Since when: a value that is younger is none that was to be forgotten. `None` if all are.
    pub noted: Option<Noted>,
}

/// When something came to be owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// In milliseconds since the epoch.
    pub since: i64,
    /// The same as the tier has it.
    pub moment: Moment,
}

/// A moment as a tier needs it to tell what was written before from what came after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The number of the next change that this process begins.
    pub count: u64,
    /// By the clock that nobody sets; it may stand still while the machine sleeps.
    pub steady: Nanos,
    /// In milliseconds since the epoch, by this machine.
    pub wall: i64,
    /// In microseconds since the epoch by the store, at the latest; 0 if that is unknown.
    pub theirs: u64,
    /// So many microseconds earlier, at the earliest.
    pub slack: u64,
}

/// What one store was not told.
#[derive(Debug, Default)]
pub struct Owed {
    any: AtomicBool,
    debts: Mutex<Debts>,
}

#[derive(Debug, Default)]
struct Debts {
    /// Also those in the namespaces below: only of a place it is known that this process itself
    /// may have written there since, by a request that it took for failed.
    places: HashMap<Place, Noted>,
    /// `None` stands for places that were too many to be noted.
    namespaces: HashMap<Arc<str>, Option<Noted>>,
    tags: HashMap<Arc<str>, Option<Noted>>,
    /// In which process requests are on their way that pay for some of it.
    under_way: Option<u64>,
    forgotten: bool,
}

impl Owed {
    /// Notes what a request that failed `now` leaves undone. False if it is too much to note: then
    /// the store may serve what is outdated until it expires.
    pub fn note(&self, request: Request, now: Noted) -> bool {
        let mut debts = self.debts.lock();
        match request {
            Request::Delete(place) if debts.namespaces.get(&place.ns) != Some(&None) => {
                debts.places.insert(place, now);
            }
            Request::InvalidateNamespace(ns) if debts.has_room() => {
                let noted = debts.namespaces.entry(ns).or_insert(Some(now));
                *noted = noted.map(|_| now);
            }
            Request::InvalidateTag(tag) if debts.has_room() => {
                debts.tags.insert(tag, Some(now));
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
            debts.namespaces.extend(places.into_keys().map(|place| (place.ns, None)));
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
            || debts.namespaces.contains_key(&place.ns)
            || tags.iter().any(|tag| debts.tags.contains_key(&**tag))
    }

    /// The store has a value at a place that is newer than what was noted before change `count`.
    pub fn settle(&self, place: &Place, count: u64) {
        if self.any.load(Ordering::Acquire) {
            let mut debts = self.debts.lock();
            if debts.places.get(place).is_some_and(|noted| noted.moment.count <= count) {
                debts.places.remove(place);
            }
            self.any.store(debts.count() > 0, Ordering::Release);
        }
    }

    /// Has the store told a part of it by `send`, unless one is on its way already.
    pub fn pay(self: &Arc<Self>, send: impl Fn(Debt, Done)) {
        self.pay_some(PART, send);
    }

    /// The same for all of it, also what is on its way, as nobody asks for another part.
    pub fn pay_all(self: &Arc<Self>, send: impl Fn(Debt, Done)) {
        self.part_done();
        self.pay_some(usize::MAX, send);
    }

    fn pay_some(self: &Arc<Self>, most: usize, send: impl Fn(Debt, Done)) {
        let debts = self.next_part(most);
        if debts.is_empty() {
            return;
        }
        // Dropped with the last of them, however each of them ends.
        let part = Arc::new(Part(Arc::clone(self)));
        for debt in debts {
            let (part, told) = (Arc::clone(&part), debt.clone());
            let done = move |outcome: Outcome| {
                if outcome.is_ok() {
                    part.0.paid(&told);
                }
            };
            send(debt, Done::new(done));
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
        let namespaces = debts.namespaces.iter().map(|(ns, noted)| Debt {
            request: Request::InvalidateNamespace(Arc::clone(ns)),
            noted: *noted,
        });
        let tags = debts.tags.iter().map(|(tag, noted)| Debt {
            request: Request::InvalidateTag(Arc::clone(tag)),
            noted: *noted,
        });
        let places = debts.places.iter().map(|(place, noted)| Debt {
            request: Request::Delete(place.clone()),
            noted: Some(*noted),
        });
        let part: Vec<_> = namespaces.chain(tags).chain(places).take(most).collect();
        debts.under_way = (!part.is_empty()).then_some(here);
        part
    }

    /// The store was told this. What was noted again meanwhile is still owed.
    pub fn paid(&self, debt: &Debt) {
        let mut debts = self.debts.lock();
        match &debt.request {
            Request::Delete(place) if debts.places.get(place).copied() == debt.noted => {
                debts.places.remove(place);
            }
            Request::InvalidateNamespace(ns) if debts.namespaces.get(ns) == Some(&debt.noted) => {
                debts.namespaces.remove(ns);
            }
            Request::InvalidateTag(tag) if debts.tags.get(tag) == Some(&debt.noted) => {
                debts.tags.remove(tag);
            }
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

    fn at(count: u64) -> Noted {
        Noted { since: 1, moment: Moment { count, ..Moment::default() } }
    }

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
                owed.paid(debt);
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
        assert!(owed.note(Request::Delete(place("ns", "a")), at(1)));
        assert!(owed.note(Request::InvalidateTag("t".into()), at(1)));
        assert!(owed.note(Request::InvalidateNamespace("other".into()), at(1)));
        assert!(owed.covers(&place("ns", "a"), &[]));
        assert!(!owed.covers(&place("ns", "b"), &[]));
        assert!(owed.covers(&place("ns", "b"), &tagged));
        assert!(owed.covers(&place("other", "b"), &[]));
        owed.settle(&place("ns", "a"), 0);
        assert!(owed.covers(&place("ns", "a"), &[]), "that one was begun before");
        owed.settle(&place("ns", "a"), 1);
        assert!(!owed.covers(&place("ns", "a"), &[]));
        assert_eq!(pay(&owed), 2);
        assert!(owed.is_empty() && !owed.covers(&place("other", "b"), &tagged));
    }

    #[test]
    fn what_is_noted_again_while_it_is_paid_is_still_owed() {
        let owed = Owed::default();
        let all = [
            Request::Delete(place("ns", "a")),
            Request::InvalidateNamespace("ns".into()),
            Request::InvalidateTag("t".into()),
        ];
        for request in &all {
            assert!(owed.note(request.clone(), at(1)));
        }
        assert_eq!(owed.len(), 3, "a place in a namespace is still noted by itself");
        let part = owed.next_part(9);
        for request in &all {
            assert!(owed.note(request.clone(), at(2)));
        }
        for debt in &part {
            owed.paid(debt);
        }
        owed.part_done();
        assert_eq!((owed.len(), pay(&owed)), (3, 3));
    }

    #[test]
    fn it_is_bounded() {
        let owed = Owed::default();
        for number in 0..3 * MAX_PLACES {
            assert!(owed.note(Request::Delete(place("ns", &number.to_string())), at(1)));
            assert!(owed.len() <= MAX_PLACES + 1);
        }
        assert!(owed.covers(&place("ns", "0"), &[]));
        let noted = (0..2 * MAX_CUTS)
            .filter(|number| owed.note(Request::InvalidateTag(number.to_string().into()), at(1)))
            .count();
        assert_eq!(noted, 2 * MAX_CUTS - 1, "said once that it is too much");
        assert!(owed.len() <= MAX_CUTS);
        assert_eq!(pay(&owed), MAX_CUTS);
    }
}
