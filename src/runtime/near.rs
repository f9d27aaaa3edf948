//! The near cache: values of a store as bytes, in this process.
//!
//! moka with its LRU policy (on LLM traffic its `TinyLFU` lost up to a quarter of
//! the hits), bounded in bytes. Deadlines stand in the values and are checked by
//! our clock; so are the cuts, by which a namespace or a tag is outdated in one
//! step, however many values it has.
//!
//! A value that was read from the store arrives later than it was read. Every
//! change gets a number; what was read before the last change of its place,
//! namespace or tags is not taken in.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moka::policy::EvictionPolicy;

use super::frame::Body;
use super::place::{Id, Place};
use crate::core::clock::{Clock, NEVER, Nanos};
use crate::core::sync::Mutex;

/// What an entry costs beside its bytes: table, recency list, counts (measured with `test_growth`).
const OVERHEAD: usize = 256;

/// Locks that order changes of one place; more than threads that could meet there.
const SHARDS: usize = 64;

/// With more outdated namespaces and tags remembered, everything is outdated instead.
const MAX_CUTS: usize = 10_000;

/// A value of the near cache.
#[derive(Debug)]
pub struct Held {
    /// Its bytes.
    pub body: Body,
    /// When it expires, or [`NEVER`].
    pub deadline: Nanos,
    seen: u64,
    ns: Arc<str>,
    tags: Arc<[Box<str>]>,
}

/// What can be outdated at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    /// All of a namespace.
    Namespace,
    /// All that carries a tag.
    Tag,
}

#[derive(Debug, Default)]
struct Cuts {
    namespaces: HashMap<Arc<str>, u64>,
    tags: HashMap<Arc<str>, u64>,
}

/// What has changed among some of the places.
#[derive(Debug, Default)]
struct Shard {
    /// The last change of any of them: enough for reads, which take a moment.
    changed: u64,
    /// Of those that are being loaded, which takes as long as it takes: by how many, and the last
    /// change of that very place. Told apart by shard alone, four in five loads of a second would
    /// not be kept beside 100 sets a second.
    loads: HashMap<Id, (u32, u64)>,
}

impl Shard {
    fn change(&mut self, id: &Id, number: u64) {
        self.changed = number;
        if !self.loads.is_empty()
            && let Some((_, changed)) = self.loads.get_mut(id)
        {
            *changed = number;
        }
    }
}

/// The near cache of one store.
#[derive(Debug)]
pub struct Near {
    map: moka::sync::Cache<Id, Arc<Held>, foldhash::fast::RandomState>,
    max_bytes: u64,
    clock: Clock,
    /// Numbers changes and reads.
    now: AtomicU64,
    shards: Box<[Mutex<Shard>]>,
    cuts: Mutex<Cuts>,
    /// The last cut; what is younger need not look them up.
    newest_cut: AtomicU64,
    /// Everything older is outdated.
    floor: AtomicU64,
    /// Until when it is known what others have changed; see [`Near::watched_until`].
    watched: AtomicU64,
    evictions: Arc<AtomicU64>,
}

impl Near {
    /// An empty cache of at most `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: u64, clock: Clock) -> Self {
        let evictions = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&evictions);
        let map = moka::sync::Cache::builder()
            .max_capacity(max_bytes)
            .eviction_policy(EvictionPolicy::lru())
            .weigher(|_, held: &Arc<Held>| u32::try_from(held.weight()).unwrap_or(u32::MAX))
            .eviction_listener(move |_, _, cause| {
                if cause.was_evicted() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
            .build_with_hasher(foldhash::fast::RandomState::default());
        Self {
            map,
            max_bytes,
            clock,
            now: AtomicU64::new(1),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            cuts: Mutex::default(),
            newest_cut: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            watched: AtomicU64::new(NEVER),
            evictions,
        }
    }

    /// The number of the present; to be asked before a read whose result is [`Near::offer`]ed.
    #[must_use]
    pub fn present(&self) -> u64 {
        // Odd, so that it is never the number of a change.
        self.now.load(Ordering::Acquire) * 2 + 1
    }

    /// The living value at a place.
    #[must_use]
    pub fn find(&self, id: &Id) -> Option<Arc<Held>> {
        let held = self.map.get(id)?;
        let now = self.clock.now();
        if now > self.watched.load(Ordering::Acquire) {
            return None;
        }
        if held.deadline <= now || self.outdated(&held) {
            // Only this very value: a newer one may have come in between.
            let _shard = self.shard(id).lock();
            if self.map.get(id).is_some_and(|current| Arc::ptr_eq(&current, &held)) {
                self.map.invalidate(id);
            }
            return None;
        }
        Some(held)
    }

    /// From `time` on nothing is served, unless this is called again: whoever tells this cache
    /// of changes has seen all of them just now. So values do not outlive a watcher that is
    /// stopped, starved or cut off, and are there again once it has caught up.
    pub fn watched_until(&self, time: Nanos) {
        self.watched.store(time, Ordering::Release);
    }

    fn outdated(&self, held: &Held) -> bool {
        let seen = held.seen;
        if seen > self.newest_cut.load(Ordering::Acquire) {
            return seen <= self.floor.load(Ordering::Acquire);
        }
        let cuts = self.cuts.lock();
        seen <= self.floor.load(Ordering::Acquire)
            || cuts.namespaces.get(&held.ns).is_some_and(|cut| seen <= *cut)
            || held.tags.iter().any(|tag| cuts.tags.get(&**tag).is_some_and(|cut| seen <= *cut))
    }

    fn shard(&self, id: &Id) -> &Mutex<Shard> {
        &self.shards[usize::from(id[0]) % SHARDS]
    }

    /// A load of a place begins, whose value is [`Near::offer_loaded`]; ends with
    /// [`Near::end_load`].
    pub fn begin_load(&self, id: &Id) {
        self.shard(id).lock().loads.entry(*id).or_default().0 += 1;
    }

    /// A load ends, whatever became of it.
    pub fn end_load(&self, id: &Id) {
        let mut shard = self.shard(id).lock();
        if let Some((count, _)) = shard.loads.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                shard.loads.remove(id);
            }
        }
    }

    fn next(&self) -> u64 {
        (self.now.fetch_add(1, Ordering::AcqRel) + 1) * 2
    }

    /// Takes in a value that is written now; its number. `None` if it alone is larger than the
    /// cache.
    pub fn put(
        &self,
        place: &Place,
        body: Body,
        deadline: Nanos,
        tags: Arc<[Box<str>]>,
    ) -> Option<u64> {
        let mut shard = self.shard(place.id()).lock();
        let seen = self.next();
        shard.change(place.id(), seen);
        let held = Held { body, deadline, seen, ns: place.ns.clone(), tags };
        self.store(place, held).then_some(seen)
    }

    /// The store has just committed the value that was [`Near::put`] here as `seen`. Anything else
    /// here may be older: what another thread put and the store has not kept, or what was read
    /// before the commit, which is outdated with this.
    pub fn confirm(&self, place: &Place, seen: Option<u64>) {
        let mut shard = self.shard(place.id()).lock();
        let present = self.map.get(place.id()).map(|held| held.seen);
        if present.is_none() || present != seen {
            shard.change(place.id(), self.next());
            self.map.invalidate(place.id());
        }
    }

    /// Takes in a value that was read from the store since `read`, unless something that
    /// concerns it has changed meanwhile.
    pub fn offer(
        &self,
        read: u64,
        place: &Place,
        body: Body,
        deadline: Nanos,
        tags: Arc<[Box<str>]>,
    ) -> bool {
        let held = Held { body, deadline, seen: read, ns: place.ns.clone(), tags };
        let shard = self.shard(place.id()).lock();
        if shard.changed > read || self.outdated(&held) {
            return false;
        }
        self.store(place, held)
    }

    /// Takes in a value whose load [began](Near::begin_load) at `since`, unless something that
    /// concerns it has changed meanwhile.
    pub fn offer_loaded(
        &self,
        since: u64,
        place: &Place,
        body: Body,
        deadline: Nanos,
        tags: Arc<[Box<str>]>,
    ) -> bool {
        let mut shard = self.shard(place.id()).lock();
        let held = Held { body, deadline, seen: since, ns: place.ns.clone(), tags };
        let changed = shard.loads.get(place.id()).is_none_or(|(_, changed)| *changed > since);
        if changed || self.outdated(&held) {
            return false;
        }
        // As old as it is to cuts, and as new as any to other loads.
        shard.change(place.id(), self.next());
        self.store(place, held)
    }

    fn store(&self, place: &Place, held: Held) -> bool {
        if held.weight() as u64 > self.max_bytes {
            self.map.invalidate(place.id());
            return false;
        }
        self.map.insert(*place.id(), Arc::new(held));
        true
    }

    /// Removes what is at a place, and outdates reads of it; true if it was alive.
    pub fn remove(&self, id: &Id) -> bool {
        let mut shard = self.shard(id).lock();
        shard.change(id, self.next());
        let held = self.map.remove(id);
        drop(shard);
        held.is_some_and(|held| held.deadline > self.clock.now() && !self.outdated(&held))
    }

    /// Outdates a namespace or a tag, and reads under way that concern it.
    pub fn cut(&self, what: Cut, name: &str) {
        let mut cuts = self.cuts.lock();
        if cuts.namespaces.len() + cuts.tags.len() >= MAX_CUTS {
            *cuts = Cuts::default();
            self.map.invalidate_all();
            self.floor.store(self.next(), Ordering::Release);
        }
        // What begins to be read after this has a later number than the cut.
        let cut = self.next();
        match what {
            Cut::Namespace => cuts.namespaces.insert(name.into(), cut),
            Cut::Tag => cuts.tags.insert(name.into(), cut),
        };
        self.newest_cut.store(cut, Ordering::Release);
    }

    /// Outdates everything.
    pub fn flush(&self) {
        let mut cuts = self.cuts.lock();
        *cuts = Cuts::default();
        self.floor.store(self.next(), Ordering::Release);
        self.map.invalidate_all();
    }

    /// Entries, bytes and evictions so far; brings the counts up to date.
    #[must_use]
    pub fn size(&self) -> (u64, u64, u64) {
        self.map.run_pending_tasks();
        (self.map.entry_count(), self.map.weighted_size(), self.evictions.load(Ordering::Relaxed))
    }
}

impl Held {
    fn weight(&self) -> usize {
        let tags: usize = self.tags.iter().map(|tag| tag.len() + 16).sum();
        self.body.bytes().len() + tags + OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::{ManualClock, NEVER, SECOND};

    fn place(key: &str) -> Place {
        Place::new("ns".into(), key)
    }

    fn body(text: &str) -> Body {
        Body::of(text.as_bytes().into())
    }

    fn tags(of: &[&str]) -> Arc<[Box<str>]> {
        of.iter().map(|tag| Box::from(*tag)).collect()
    }

    #[test]
    fn values_live_until_their_deadline() {
        let manual = ManualClock::default();
        let near = Near::new(1 << 20, Clock::Manual(manual.clone()));
        assert!(near.put(&place("a"), body("1"), 10 * SECOND, tags(&[])).is_some());
        assert_eq!(near.find(place("a").id()).unwrap().body.bytes(), b"1");
        manual.advance(10 * SECOND);
        assert!(near.find(place("a").id()).is_none());
        assert!(!near.remove(place("a").id()));
    }

    #[test]
    fn a_cut_reaches_what_is_older_and_nothing_else() {
        let near = Near::new(1 << 20, Clock::System);
        near.put(&place("a"), body("1"), NEVER, tags(&["t", "u"]));
        near.put(&place("b"), body("2"), NEVER, tags(&["v"]));
        near.cut(Cut::Tag, "u");
        assert!(near.find(place("a").id()).is_none());
        assert!(near.find(place("b").id()).is_some());
        near.cut(Cut::Namespace, "u");
        assert!(near.find(place("b").id()).is_some());
        near.cut(Cut::Namespace, "ns");
        assert!(near.find(place("b").id()).is_none());
        near.put(&place("b"), body("3"), NEVER, tags(&["u"]));
        assert!(near.find(place("b").id()).is_some());
        near.flush();
        assert!(near.find(place("b").id()).is_none());
    }

    #[test]
    fn a_load_is_outdated_by_what_concerns_it_and_nothing_else() {
        let near = Near::new(1 << 24, Clock::System);
        let offer = |since| near.offer_loaded(since, &place("a"), body("1"), NEVER, tags(&["t"]));
        assert!(!offer(near.present()), "nobody said that it began");
        let all: [(bool, &dyn Fn()); 6] = [
            (true, &|| {
                for number in 0..1_000 {
                    near.put(&place(&number.to_string()), body("x"), NEVER, tags(&["u"]));
                    near.remove(place(&number.to_string()).id());
                }
                near.cut(Cut::Tag, "u");
            }),
            (false, &|| {
                near.remove(place("a").id());
            }),
            (false, &|| {
                near.put(&place("a"), body("2"), NEVER, tags(&[]));
            }),
            (false, &|| near.cut(Cut::Namespace, "ns")),
            (false, &|| near.cut(Cut::Tag, "t")),
            (false, &|| near.flush()),
        ];
        for (taken, change) in all {
            let since = near.present();
            near.begin_load(place("a").id());
            change();
            assert_eq!(offer(since), taken);
            // Of two loads the first one to come is kept.
            assert!(!taken || !offer(since));
            near.end_load(place("a").id());
        }
        assert!(near.shards.iter().all(|shard| shard.lock().loads.is_empty()));
    }

    #[test]
    fn only_what_the_store_has_last_stays() {
        let near = Near::new(1 << 20, Clock::System);
        let none = || tags(&[]);
        let one = near.put(&place("a"), body("1"), NEVER, none());
        let two = near.put(&place("a"), body("2"), NEVER, none());
        near.confirm(&place("a"), two);
        assert!(near.find(place("a").id()).is_some());
        // The store has the first one last.
        near.confirm(&place("a"), one);
        assert!(near.find(place("a").id()).is_none());
        // Evicted, read anew before the commit, and offered before or after it.
        let three = near.put(&place("a"), body("3"), NEVER, none());
        near.map.invalidate(place("a").id());
        let read = near.present();
        assert!(near.offer(read, &place("a"), body("old"), NEVER, none()));
        near.confirm(&place("a"), three);
        assert!(near.find(place("a").id()).is_none());
        assert!(!near.offer(read, &place("a"), body("old"), NEVER, none()));
    }

    #[test]
    fn what_nobody_watches_is_not_served() {
        let manual = ManualClock::starting_at(SECOND);
        let near = Near::new(1 << 20, Clock::Manual(manual.clone()));
        near.put(&place("a"), body("1"), NEVER, tags(&[]));
        near.watched_until(3 * SECOND);
        manual.advance(2 * SECOND);
        assert!(near.find(place("a").id()).is_some());
        manual.advance(1);
        assert!(near.find(place("a").id()).is_none());
        near.watched_until(9 * SECOND);
        assert!(near.find(place("a").id()).is_some());
    }

    #[test]
    fn a_read_that_a_change_overtook_is_not_taken_in() {
        let near = Near::new(1 << 20, Clock::System);
        let all: [&dyn Fn(); 5] = [
            &|| {
                near.remove(place("a").id());
            },
            &|| {
                near.put(&place("a"), body("new"), NEVER, tags(&[]));
            },
            &|| near.cut(Cut::Namespace, "ns"),
            &|| near.cut(Cut::Tag, "t"),
            &|| near.flush(),
        ];
        for change in all {
            let read = near.present();
            change();
            assert!(!near.offer(read, &place("a"), body("old"), NEVER, tags(&["t"])));
            assert!(near.offer(near.present(), &place("b"), body("now"), NEVER, tags(&["t"])));
            assert!(near.find(place("b").id()).is_some());
        }
    }

    #[test]
    fn bytes_are_bounded_also_over_very_many_cuts() {
        let near = Near::new(20_000, Clock::System);
        for number in 0..1_000 {
            near.put(&place(&number.to_string()), body(&"x".repeat(500)), NEVER, tags(&[]));
        }
        let (entries, bytes, evictions) = near.size();
        assert!(bytes <= 20_000 && entries > 10 && evictions > 900, "{entries} {bytes}");
        assert_eq!(near.put(&place("large"), body(&"x".repeat(30_000)), NEVER, tags(&[])), None);
        for number in 0..3 * MAX_CUTS {
            near.cut(Cut::Tag, &number.to_string());
        }
        assert!(near.cuts.lock().tags.len() <= MAX_CUTS);
    }
}
