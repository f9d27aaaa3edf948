//! The states of an entry: fresh, stale, a remembered failure.
//!
//! A hot lookup compares one time and never comes here. Only when that time has
//! come, an entry is looked at a second time: most have no [`Aging`] and are
//! expired then. The others go on as stale for their grace, which only those
//! are served who asked for it; a failure has no fresh time at all.

use super::deadlines::Queue;
use super::entry::Insert;
use super::table::Table;
use super::{Cause, Graveyard};
use crate::core::clock::{Clock, NEVER, Nanos, SECOND};
use crate::core::key::Probe;

/// How long nobody is asked to refresh an entry again after somebody was.
const RETRY: Nanos = SECOND;

/// −ln 2⁻⁵³: more than [`Wish::early`] ever draws from a number of 53 bits, so that
/// a lookup before the window would not have been chosen either.
const LONGEST_DRAW: f64 = 36.8;

/// What distinguishes an entry that does not simply expire.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Aging {
    grace: Nanos,
    early: f64,
    took: Nanos,
    failure: bool,
    /// When it ends to be fresh, and when it expires; set on writing.
    stale: Nanos,
    deadline: Nanos,
    /// Before that nobody is asked to refresh it.
    refreshable: Nanos,
}

impl Aging {
    /// A value that is kept as stale for `grace` after its time to live, took `took` to
    /// load, and is refreshed early by the factor `early` (0 for not at all).
    #[must_use]
    pub fn of_value(grace: Nanos, early: f64, took: Nanos) -> Self {
        Self { grace, early, took, ..Self::default() }
    }

    /// A failure, remembered for its time to live.
    #[must_use]
    pub fn of_failure() -> Self {
        Self { failure: true, ..Self::default() }
    }

    pub(super) fn is_failure(&self) -> bool {
        self.failure
    }

    /// Until when it is fresh; 0 for a failure.
    pub(super) fn fresh_until(&self) -> Nanos {
        self.stale
    }

    /// When a value written now needs the second look. `end` is the end of its time to live.
    pub(super) fn begin(&mut self, end: Nanos) -> Nanos {
        self.deadline = end.saturating_add(self.grace);
        if self.failure {
            return 0;
        }
        self.stale = end;
        let window = (self.took as f64 * self.early * LONGEST_DRAW) as Nanos;
        if end == NEVER { NEVER } else { end.saturating_sub(window) }
    }

    /// When it expires.
    pub(super) fn deadline(&self) -> Nanos {
        self.deadline
    }
}

/// What a lookup that may lead to a load wants beside fresh values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wish {
    /// How long after its time to live a value is served.
    pub stale: Nanos,
    /// A draw for an early refresh: −ln of a random number in (0, 1]; 0 for none.
    pub early: f64,
}

/// What a lookup found.
#[derive(Debug, PartialEq, Eq)]
pub enum Look<'a, V> {
    /// A value to be served, and whether the caller is to refresh it meanwhile.
    Value(&'a V, bool),
    /// A failure to be served.
    Failure(&'a V),
    /// Nothing that could be served.
    Absent,
}

/// The state of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Served to everybody.
    Fresh,
    /// Past its time to live since then.
    Stale(Nanos),
    /// A failure instead of a value.
    Negative,
}

impl State {
    /// The name that users read.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale(_) => "stale",
            Self::Negative => "negative",
        }
    }
}

impl<V> Table<V> {
    /// Has an entry age that was just put into its slot; returns when it expires, and who
    /// watches that.
    #[cold]
    pub(super) fn begin_to_age(&mut self, slot: u32, mut aging: Box<Aging>) -> (Nanos, Queue) {
        self.aging += 1;
        let entry = &mut self.slots[slot as usize];
        entry.calm = aging.begin(entry.calm);
        let deadline = aging.deadline;
        entry.aging = Some(aging);
        if entry.queue == Queue::Usual {
            // The grace is the entry's own, so these do not expire in the order of writing.
            entry.queue = Queue::Own;
        }
        (deadline, entry.queue)
    }

    /// The state of an entry whose time is not over.
    pub(super) fn state(&self, slot: u32, now: Nanos) -> State {
        match self.slots[slot as usize].aging.as_deref() {
            Some(Aging { failure: true, .. }) => State::Negative,
            Some(Aging { stale, .. }) if *stale <= now && *stale != NEVER => State::Stale(*stale),
            _ => State::Fresh,
        }
    }

    /// Whether the entry is there and fresh.
    pub(super) fn is_fresh(&self, slot: u32, now: Nanos) -> bool {
        !self.is_expired(slot, now) && self.state(slot, now) == State::Fresh
    }

    /// The value or failure that `wish` may be served; counted, and made the most recently
    /// used one. Nobody else is told to refresh it for a second after somebody was.
    ///
    /// Early refreshes are `XFetch`: Vattani, Chierichetti, Lowenstein, "Optimal
    /// Probabilistic Cache Stampede Prevention", VLDB 2015.
    pub fn look(
        &mut self,
        key: &impl Probe,
        clock: &Clock,
        wish: Wish,
        grave: &mut Graveyard<V>,
    ) -> Look<'_, V> {
        let Some(slot) = self.find(key) else {
            self.note_absence(key);
            return Look::Absent;
        };
        if !self.needs_second_look(slot, clock) {
            self.note_hit(slot, clock);
            return self.value(slot, false);
        }
        let now = clock.now();
        if self.is_expired(slot, now) {
            self.bury(slot, Cause::Expired, grave);
            self.stats.misses += 1;
            return Look::Absent;
        }
        let refresh = match self.state(slot, now) {
            State::Fresh => self.is_chosen(slot, now, wish) && self.claim_refresh(slot, now),
            State::Stale(since) if now - since < wish.stale => {
                self.stats.stale_hits += 1;
                self.claim_refresh(slot, now)
            }
            State::Stale(_) => {
                self.stats.misses += 1;
                return Look::Absent;
            }
            State::Negative => {
                self.stats.negative_hits += 1;
                self.note_hit(slot, clock);
                return self.slots[slot as usize]
                    .value
                    .as_ref()
                    .map_or(Look::Absent, Look::Failure);
            }
        };
        self.note_hit(slot, clock);
        self.value(slot, refresh)
    }

    /// The value under `key` for a caller whose load failed: fresh by now, or stale for less
    /// than `within`; counted in the latter case.
    pub fn fallback(&mut self, key: &impl Probe, within: Nanos, now: Nanos) -> Option<&V> {
        let slot = self.find(key)?;
        if self.is_expired(slot, now) {
            return None;
        }
        match self.state(slot, now) {
            State::Fresh => {}
            State::Stale(since) if now - since < within => self.stats.stale_on_error += 1,
            State::Stale(_) | State::Negative => return None,
        }
        self.slots[slot as usize].value.as_ref()
    }

    /// The second look of a plain lookup, which leaves alone what only loads may see.
    #[cold]
    pub(super) fn is_fresh_or_buried(
        &mut self,
        slot: u32,
        clock: &Clock,
        grave: &mut Graveyard<V>,
    ) -> bool {
        if self.slots[slot as usize].aging.is_some() {
            let now = clock.now();
            if !self.is_expired(slot, now) {
                return self.state(slot, now) == State::Fresh;
            }
        }
        self.bury(slot, Cause::Expired, grave);
        false
    }

    /// Whether `insert` is a failure and the entry is a value.
    #[cold]
    pub(super) fn is_worth_more(&self, slot: u32, now: Nanos, insert: &Insert) -> bool {
        insert.aging.as_deref().is_some_and(Aging::is_failure)
            && self.state(slot, now) != State::Negative
    }

    /// Counts a refresh that begins.
    pub fn count_refresh(&mut self) {
        self.stats.refreshes += 1;
    }

    /// Counts a refresh that failed.
    pub fn count_refresh_failure(&mut self) {
        self.stats.refresh_failures += 1;
    }

    /// How many entries are fresh, which iterating would show; to be called after a
    /// [`sweep`](Self::sweep), without which expired ones may count.
    #[must_use]
    pub fn count_fresh(&self, now: Nanos) -> usize {
        if self.aging == 0 {
            return self.index.len();
        }
        let counts = |slot: &u32| self.is_fresh(*slot, now);
        self.index.iter().filter(|slot| counts(slot)).count()
    }

    fn value(&self, slot: u32, refresh: bool) -> Look<'_, V> {
        let value = self.slots[slot as usize].value.as_ref();
        value.map_or(Look::Absent, |value| Look::Value(value, refresh))
    }

    /// Whether this lookup's draw says to refresh an entry that is still fresh.
    fn is_chosen(&self, slot: u32, now: Nanos, wish: Wish) -> bool {
        self.slots[slot as usize].aging.as_deref().is_some_and(|aging| {
            let ahead = aging.took as f64 * aging.early * wish.early;
            aging.stale != NEVER && ahead >= (aging.stale - now) as f64
        })
    }

    fn claim_refresh(&mut self, slot: u32, now: Nanos) -> bool {
        let Some(aging) = self.slots[slot as usize].aging.as_deref_mut() else { return false };
        if now < aging.refreshable {
            return false;
        }
        aging.refreshable = now.saturating_add(RETRY);
        true
    }
}
