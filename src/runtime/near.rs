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

/// With so many outdated namespaces and tags remembered, what they outdate is taken out, and they
/// are forgotten.
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

impl Cuts {
    fn reach(&self, held: &Held) -> bool {
        let since = |cut: &u64| held.seen <= *cut;
        self.namespaces.get(&held.ns).is_some_and(since)
            || held.tags.iter().any(|tag| self.tags.get(&**tag).is_some_and(since))
    }
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
    /// When cuts were last forgotten: what was read or loaded since before then may be outdated.
    forgotten: AtomicU64,
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
            forgotten: AtomicU64::new(0),
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
        seen <= self.floor.load(Ordering::Acquire) || cuts.reach(held)
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
        if shard.changed > read {
            return false;
        }
        self.store_unless_outdated(place, held)
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
        if changed || !self.store_unless_outdated(place, held) {
            return false;
        }
        // As old as it is to cuts, and as new as any to other loads.
        shard.change(place.id(), self.next());
        true
    }

    /// Takes in what is older than the present.
    fn store_unless_outdated(&self, place: &Place, held: Held) -> bool {
        let forgotten = self.forgotten.load(Ordering::Acquire);
        if held.seen <= forgotten || self.outdated(&held) {
            return false;
        }
        let stored = self.store(place, held);
        if self.forgotten.load(Ordering::Acquire) != forgotten {
            // The cut that concerns it may have come, and be forgotten already.
            self.map.invalidate(place.id());
            return false;
        }
        stored
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
            // First, so that who stores something older meanwhile hears of it.
            self.forgotten.store(self.next(), Ordering::Release);
            for (id, held) in &self.map {
                if cuts.reach(&held) {
                    self.map.invalidate(&*id);
                }
            }
            *cuts = Cuts::default();
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
mod tests;
