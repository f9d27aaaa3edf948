//! Single flight: many callers, one load.
//!
//! The first caller of a key leads and runs the loader; the others enrol and
//! are woken when it lands. Nothing here waits or knows who does: a waiter is
//! whatever the caller's waker needs, handed back once, after all locks are
//! released.

#[cfg(all(test, ferrogate_loom))]
mod loom_tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ThreadId};

use crate::core::key::Key;
use crate::core::sync::Mutex;

/// The number of a flight; never used twice in a process.
pub type FlightId = u64;

/// The number of a waiter within its flight.
pub type WaiterId = u64;

/// How a flight ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Landing<R> {
    /// With this result, for everybody.
    Done(Arc<R>),
    /// Without one (the loader was cancelled): whoever still wants it starts again.
    Abandoned,
}

impl<R> Clone for Landing<R> {
    fn clone(&self) -> Self {
        match self {
            Self::Done(result) => Self::Done(Arc::clone(result)),
            Self::Abandoned => Self::Abandoned,
        }
    }
}

/// What a load is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// For those who wait for it.
    Answer,
    /// To replace a value that is served meanwhile: nobody need wait for it.
    Refresh,
    /// To read anew, whatever there is already or is being loaded.
    Anew,
}

#[derive(Debug)]
struct State<R, W> {
    /// The thread that runs it; unlike the system's, its number is never used again.
    thread: ThreadId,
    landing: Option<Landing<R>>,
    waiters: Vec<(WaiterId, W)>,
    next: WaiterId,
    tags: Vec<Arc<str>>,
    outdated: bool,
}

/// One load that is under way.
#[derive(Debug)]
pub struct Flight<R, W> {
    id: FlightId,
    purpose: Purpose,
    state: Mutex<State<R, W>>,
}

impl<R, W> Flight<R, W> {
    fn new(purpose: Purpose) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            purpose,
            state: Mutex::new(State {
                thread: thread::current().id(),
                landing: None,
                waiters: Vec::new(),
                next: 0,
                tags: Vec::new(),
                outdated: false,
            }),
        }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> FlightId {
        self.id
    }

    /// What it is for.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Whether the calling thread runs it: the one that it began in, or moved to.
    #[must_use]
    pub fn is_of_this_thread(&self) -> bool {
        self.state.lock().thread == thread::current().id()
    }

    /// The calling thread runs it from now on.
    pub fn move_here(&self) {
        self.state.lock().thread = thread::current().id();
    }

    /// Waits in line for the landing.
    ///
    /// # Errors
    /// Gives the waiter back with the landing if that has already happened.
    pub fn enroll(&self, waiter: W) -> Result<WaiterId, (W, Landing<R>)> {
        let mut state = self.state.lock();
        if let Some(landing) = &state.landing {
            return Err((waiter, landing.clone()));
        }
        let id = state.next;
        state.next += 1;
        state.waiters.push((id, waiter));
        Ok(id)
    }

    /// Leaves the line; returns the waiter, if it was not woken yet, and how many remain.
    pub fn leave(&self, id: WaiterId) -> (Option<W>, usize) {
        let mut state = self.state.lock();
        let position = state.waiters.iter().position(|(waiter, _)| *waiter == id);
        let waiter = position.map(|position| state.waiters.remove(position).1);
        (waiter, state.waiters.len())
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state.lock().waiters.len()
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn landing(&self) -> Option<Landing<R>> {
        self.state.lock().landing.clone()
    }

    /// Says what its value will be tagged with. To be called before the load
    /// begins: an invalidation before that concerns nothing it has read.
    pub fn tag(&self, tags: Vec<Arc<str>>) {
        self.state.lock().tags = tags;
    }

    /// Stores the loaded value by `store`, which gets the tags; `None` without
    /// calling it if the flight is outdated.
    ///
    /// `store` runs under the flight's lock: whoever invalidates marks the flight
    /// first and removes second, so the value is refused or removed, never kept.
    pub fn store<T>(&self, store: impl FnOnce(Vec<Arc<str>>) -> T) -> Option<T> {
        let state = self.state.lock();
        // The tags stay: until it has landed, the flight is what newcomers meet.
        (!state.outdated).then(|| store(state.tags.clone()))
    }

    /// Visits the result and the waiters, for the collector.
    pub fn visit(&self, result: impl FnOnce(&R), mut waiter: impl FnMut(&W)) {
        let state = self.state.lock();
        if let Some(Landing::Done(done)) = &state.landing {
            result(done);
        }
        for (_, one) in &state.waiters {
            waiter(one);
        }
    }

    fn land(&self, landing: Landing<R>) -> Vec<W> {
        let mut state = self.state.lock();
        if state.landing.is_some() {
            drop(state);
            return Vec::new();
        }
        state.landing = Some(landing);
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        waiters.into_iter().map(|(_, waiter)| waiter).collect()
    }
}

#[derive(Debug)]
struct Table<R, W> {
    /// At most one for a key: the load that everybody joins.
    shared: HashMap<Key, Arc<Flight<R, W>>>,
    /// Loads that nobody joins, kept only to be outdated.
    alone: HashMap<Key, Vec<Arc<Flight<R, W>>>>,
}

impl<R, W> Table<R, W> {
    fn len(&self) -> usize {
        self.shared.len() + self.alone.values().map(Vec::len).sum::<usize>()
    }

    /// Takes all flights for a key out.
    fn take_of(&mut self, key: &Key) -> Vec<Arc<Flight<R, W>>> {
        let alone = self.alone.remove(key).unwrap_or_default();
        self.shared.remove(key).into_iter().chain(alone).collect()
    }

    /// Takes all flights out for which `pick` says so.
    fn take(&mut self, pick: impl Fn(&Flight<R, W>) -> bool) -> Vec<Arc<Flight<R, W>>> {
        let mut taken: Vec<_> =
            self.shared.extract_if(|_, flight| pick(flight)).map(|(_, flight)| flight).collect();
        self.alone.retain(|_, flights| {
            taken.extend(flights.extract_if(.., |flight| pick(flight)));
            !flights.is_empty()
        });
        taken
    }
}

/// The loads that are under way, by key.
#[derive(Debug)]
pub struct Flights<R, W> {
    table: Mutex<Table<R, W>>,
    /// Whether there may be any, so that a writer with nothing to outdate takes no lock.
    any: AtomicBool,
}

impl<R, W> Default for Flights<R, W> {
    fn default() -> Self {
        let table = Table { shared: HashMap::new(), alone: HashMap::new() };
        Self { table: Mutex::new(table), any: AtomicBool::new(false) }
    }
}

impl<R, W> Flights<R, W> {
    /// The flight for `key`, and whether the caller leads it: then it must
    /// [`land`](Self::land) it, whatever happens.
    ///
    /// To load anew is joined only to what does so too: any other load may have read what
    /// is there to be replaced, so it is [outdated](Self::outdate).
    pub fn join(&self, key: &Key, purpose: Purpose) -> (Arc<Flight<R, W>>, bool) {
        let mut table = self.table.lock();
        let mut outdated = Vec::new();
        if let Some(flight) = table.shared.get(key)
            && (purpose != Purpose::Anew || flight.purpose == Purpose::Anew)
        {
            return (Arc::clone(flight), false);
        }
        if purpose == Purpose::Anew {
            outdated = table.take_of(key);
        }
        let flight = Arc::new(Flight::new(purpose));
        table.shared.insert(*key, Arc::clone(&flight));
        self.any.store(true, Ordering::Release);
        drop(table);
        for flight in outdated {
            flight.state.lock().outdated = true;
        }
        (flight, true)
    }

    /// A flight for `key` that nobody joins; to be landed as every other.
    pub fn depart_alone(&self, key: &Key) -> Arc<Flight<R, W>> {
        let flight = Arc::new(Flight::new(Purpose::Answer));
        let mut table = self.table.lock();
        table.alone.entry(*key).or_default().push(Arc::clone(&flight));
        self.any.store(true, Ordering::Release);
        drop(table);
        flight
    }

    /// Ends a flight and returns whom to wake, once; a second landing is ignored.
    ///
    /// It leaves the table before it lands, so that a caller who finds it
    /// abandoned and joins again never meets the same flight.
    #[must_use]
    pub fn land(&self, key: &Key, flight: &Arc<Flight<R, W>>, landing: Landing<R>) -> Vec<W> {
        let mut table = self.table.lock();
        // Our caller still holds the flight, so this cannot drop a result.
        if table.shared.get(key).is_some_and(|current| current.id == flight.id) {
            table.shared.remove(key);
        } else if let Some(flights) = table.alone.get_mut(key) {
            flights.retain(|one| one.id != flight.id);
            if flights.is_empty() {
                table.alone.remove(key);
            }
        }
        self.note(&table);
        drop(table);
        flight.land(landing)
    }

    /// The value under `key` is not true any more, nor will be what is being loaded:
    /// that still goes to those who wait for it, but is not stored, and whoever
    /// asks from now on leads anew.
    pub fn outdate(&self, key: &Key) {
        // A load that begins meanwhile begins after the value has changed.
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut table = self.table.lock();
        let outdated = table.take_of(key);
        self.note(&table);
        drop(table);
        for flight in outdated {
            flight.state.lock().outdated = true;
        }
    }

    /// [`outdate`](Self::outdate) for this flight alone.
    pub fn outdate_one(&self, key: &Key, flight: &Arc<Flight<R, W>>) {
        let mut table = self.table.lock();
        // Our caller still holds the flight, so this cannot drop a result.
        if table.shared.get(key).is_some_and(|current| current.id == flight.id) {
            table.shared.remove(key);
        }
        self.note(&table);
        drop(table);
        flight.state.lock().outdated = true;
    }

    /// [`outdate`](Self::outdate) for all keys.
    pub fn outdate_all(&self) {
        for flight in self.forget() {
            flight.state.lock().outdated = true;
        }
    }

    /// [`outdate`](Self::outdate) for all keys whose values will have this tag.
    pub fn outdate_tagged(&self, tag: &str) {
        let mut table = self.table.lock();
        let outdated = table.take(|flight| {
            let mut state = flight.state.lock();
            state.outdated |= state.tags.iter().any(|one| **one == *tag);
            state.outdated
        });
        self.note(&table);
        drop(table);
        // Only now: the last reference to a flight may be the last to Python objects.
        drop(outdated);
    }

    /// Forgets all flights without landing them: after a fork nobody is left to do it.
    pub fn forget(&self) -> Vec<Arc<Flight<R, W>>> {
        let mut table = self.table.lock();
        let all = table.take(|_| true);
        self.note(&table);
        all
    }

    fn note(&self, table: &Table<R, W>) {
        let any = !(table.shared.is_empty() && table.alone.is_empty());
        self.any.store(any, Ordering::Release);
    }

    /// How many are under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.lock().len()
    }

    /// Whether none is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// Visits every flight that may have waiters, for the collector.
    pub fn visit(&self, mut flight: impl FnMut(&Flight<R, W>)) {
        for one in self.table.lock().shared.values() {
            flight(one);
        }
    }
}

#[cfg(all(test, not(ferrogate_loom)))]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::new(b"k")
    }

    #[test]
    fn one_leads_and_the_others_get_its_result() {
        let flights: Flights<i32, &str> = Flights::default();
        let (lead, leads) = flights.join(&key(), Purpose::Answer);
        let (follow, follows) = flights.join(&key(), Purpose::Answer);
        assert!(leads && !follows && lead.id() == follow.id());
        follow.enroll("a").unwrap();
        let b = follow.enroll("b").unwrap();
        assert_eq!(follow.leave(b), (Some("b"), 1));
        let woken = flights.land(&key(), &lead, Landing::Done(Arc::new(7)));
        assert_eq!(woken, ["a"]);
        assert_eq!(follow.landing(), Some(Landing::Done(Arc::new(7))));
        assert_eq!(follow.enroll("late").unwrap_err().0, "late");
        assert!(flights.is_empty());
    }

    #[test]
    fn an_abandoned_flight_is_never_met_again() {
        let flights: Flights<i32, ()> = Flights::default();
        let (first, _) = flights.join(&key(), Purpose::Answer);
        assert!(flights.land(&key(), &first, Landing::Abandoned).is_empty());
        let (second, leads) = flights.join(&key(), Purpose::Answer);
        assert!(leads && first.id() != second.id());
        // A late landing of the first must not end the second.
        assert!(flights.land(&key(), &first, Landing::Done(Arc::new(1))).is_empty());
        assert_eq!(flights.len(), 1);
        assert_eq!(first.landing(), Some(Landing::Abandoned));
    }

    #[test]
    fn a_lone_flight_is_met_by_nobody_and_outdated_with_its_key() {
        let flights: Flights<i32, ()> = Flights::default();
        let (first, second) = (flights.depart_alone(&key()), flights.depart_alone(&key()));
        let (shared, leads) = flights.join(&key(), Purpose::Answer);
        assert!(leads && first.id() != shared.id() && flights.len() == 3);
        assert!(flights.land(&key(), &first, Landing::Abandoned).is_empty());
        assert_eq!(flights.len(), 2);
        flights.outdate(&key());
        assert_eq!((second.store(|_| ()), shared.store(|_| ())), (None, None));
        assert_eq!((flights.is_empty(), flights.len()), (true, 0));
        let tagged = flights.depart_alone(&key());
        tagged.tag(vec!["t".into()]);
        flights.outdate_tagged("u");
        assert!(tagged.store(|_| ()).is_some());
        flights.outdate_tagged("t");
        assert!(tagged.store(|_| ()).is_none() && flights.is_empty());
    }

    #[test]
    fn to_load_anew_joins_only_what_does_too() {
        let flights: Flights<i32, &str> = Flights::default();
        let (refresh, leads) = flights.join(&key(), Purpose::Refresh);
        assert!(leads && !flights.join(&key(), Purpose::Answer).1);
        assert!(!flights.join(&key(), Purpose::Refresh).1);
        let alone = flights.depart_alone(&key());
        let (anew, leads) = flights.join(&key(), Purpose::Anew);
        assert!(leads && (anew.purpose(), flights.len()) == (Purpose::Anew, 1));
        assert_eq!((refresh.store(|_| ()), alone.store(|_| ())), (None, None));
        for purpose in [Purpose::Answer, Purpose::Refresh, Purpose::Anew] {
            let (joined, leads) = flights.join(&key(), purpose);
            assert!(!leads && joined.id() == anew.id());
        }
        assert!(flights.land(&key(), &refresh, Landing::Abandoned).is_empty());
        assert!(anew.store(|_| ()).is_some() && flights.len() == 1);
    }

    #[test]
    fn a_flight_belongs_to_the_thread_that_runs_it() {
        let flights: Flights<i32, ()> = Flights::default();
        let (flight, _) = flights.join(&key(), Purpose::Refresh);
        assert!(flight.is_of_this_thread());
        thread::scope(|scope| {
            scope.spawn(|| {
                assert!(!flight.is_of_this_thread());
                flight.move_here();
                assert!(flight.is_of_this_thread());
            });
        });
        assert!(!flight.is_of_this_thread());
    }

    #[test]
    fn an_outdated_flight_is_left_alone_and_stores_nothing() {
        let (tagged, named, other) = (Key::new(b"tagged"), key(), Key::new(b"other"));
        let flights: Flights<i32, &str> = Flights::default();
        let [first, second, third] =
            [tagged, named, other].map(|key| flights.join(&key, Purpose::Answer).0);
        first.tag(vec!["t".into(), "u".into()]);
        third.tag(vec!["u".into()]);
        flights.outdate_tagged("t");
        flights.outdate(&named);
        assert_eq!((first.store(|_| ()), second.store(|_| ())), (None, None));
        assert_eq!(third.store(|tags| tags.len()), Some(1));
        assert_eq!(flights.len(), 1);
        // Whoever comes now leads; whoever waited gets what was loaded.
        let (anew, leads) = flights.join(&named, Purpose::Answer);
        assert!(leads);
        second.enroll("early").unwrap();
        let woken = flights.land(&named, &second, Landing::Done(Arc::new(1)));
        assert_eq!((woken, flights.len()), (vec!["early"], 2));
        flights.outdate_all();
        assert!(flights.is_empty() && anew.store(|_| ()).is_none());
    }
}
