//! A limit that several processes share: permits are leased from a store in slices.
//!
//! The store counts a slice as used from its lease until one window after the slice ends to be
//! valid, whenever its permits are spent in between; so no window is ever over, whatever clocks
//! the processes have. A slice is spent here in nanoseconds. What is left of it when it ends goes
//! back.
//!
//! This is the half of a process, and pure: it neither knows the store nor waits for it. It says
//! what it wants ([`Limiter::due`]) and is told what came of it ([`Limiter::arrived`]).
//!
//! While the store is away ([`Limiter::lost`]) a process may use up again what it has used itself
//! as that leaves the window, up to its share of the limit, and its share once everything that
//! others may have used by then has left it. What it uses then is told to the store
//! ([`Limiter::charges`]) before anything is leased again.

mod leased;
mod slices;

#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod tests;

use std::hash::Hash;

pub(super) use self::leased::{Due, Leased};
use super::decision::Reason;
use super::limit::Limit;
use super::state::State;
use super::{Limiter, Outbox};
use crate::core::clock::{NEVER, Nanos, SECOND};
use crate::core::error::InvalidArgument;
use crate::core::sync::Arc;
use crate::core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Processes notice within so much time of each other that the store is away.
const NOTICED: Nanos = 3 * SECOND;

/// What all keys of a limiter know of their store.
#[derive(Debug)]
pub(super) struct Outlook {
    /// How long a slice is valid.
    validity: Nanos,
    /// How long an answer may take.
    patience: Nanos,
    /// Since when it is away; [`NEVER`]: it is not.
    lost: AtomicU64,
    /// Processes that share the limits, this one included.
    members: AtomicU32,
    /// When it is tried again, as the last attempt, if any, has failed; [`NEVER`]: it answers.
    attempt: AtomicU64,
    /// Something is to be asked for.
    calls: AtomicBool,
}

impl Outlook {
    pub(super) fn new(validity: Nanos, patience: Nanos) -> Self {
        let (lost, members) = (AtomicU64::new(NEVER), AtomicU32::new(1));
        let attempt = AtomicU64::new(0);
        Self { validity, patience, lost, members, attempt, calls: AtomicBool::new(false) }
    }

    /// While the store does not answer: when it is tried again.
    fn next_attempt(&self) -> Option<Nanos> {
        let at = self.attempt.load(Ordering::Relaxed);
        (at != NEVER).then_some(at)
    }

    fn lost_at(&self) -> Option<Nanos> {
        let at = self.lost.load(Ordering::Relaxed);
        (at != NEVER).then_some(at)
    }

    fn members(&self) -> u64 {
        u64::from(self.members.load(Ordering::Relaxed).max(1))
    }
}

/// How the limits are shared; part of [`super::Settings`].
#[derive(Clone, Copy, Debug)]
pub struct Sharing {
    /// How long a slice may be spent; the store counts it for so much longer.
    pub validity: Nanos,
    /// How long an answer of the store may take at most.
    pub patience: Nanos,
}

/// What the store is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask<K> {
    /// For whom.
    pub key: Option<K>,
    /// Permits; 0 takes back a claim.
    pub want: u32,
    /// Fewer are of no use.
    pub least: u32,
    /// What comes back: which slice, by the time at which the store has it end, and how much.
    pub back: Vec<(u64, u32)>,
}

/// What the store has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leases {
    /// What was asked for.
    pub want: u32,
    /// Permits.
    pub granted: u32,
    /// Until when they may be spent: so long after the question was sent.
    pub until: Nanos,
    /// The same by the store's clock, by which it knows them.
    pub slice: u64,
    /// No use in asking for more before.
    pub again: Nanos,
    /// Permits that were left.
    pub left: u64,
}

/// What is to be asked for now, and when to look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted<K> {
    /// Each key once.
    pub asks: Vec<Ask<K>>,
    /// [`NEVER`]: when told to.
    pub next: Nanos,
}

/// What a process has used, by the time of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge<K> {
    /// By whom.
    pub key: Option<K>,
    /// When, at the latest, and how much.
    pub used: Vec<(Nanos, u64)>,
}

/// Something may be wanted of the store, or not any more.
pub(super) fn call(outlook: Option<&Arc<Outlook>>) {
    if let Some(outlook) = outlook {
        outlook.calls.store(true, Ordering::Release);
    }
}

/// Limits that are shared may change their counts: other windows would start empty.
pub(super) fn check_update(old: &[Limit], new: &[Limit]) -> Result<(), InvalidArgument> {
    let periods = |limits: &[Limit]| limits.iter().map(|one| one.period()).collect::<Vec<_>>();
    if periods(old) == periods(new) {
        return Ok(());
    }
    let message = "expected the same periods as before: other windows in the store would be empty";
    Err(InvalidArgument::new("limits", message))
}

impl<K: Eq + Hash + Clone, W: Clone> Limiter<K, W> {
    /// Whether something is to be asked for since this was last called.
    #[inline]
    pub fn calls(&self) -> bool {
        self.outlook.as_ref().is_some_and(|outlook| {
            outlook.calls.load(Ordering::Relaxed) && outlook.calls.swap(false, Ordering::AcqRel)
        })
    }

    /// What to ask the store for now; what is named counts as asked for until it
    /// [`arrived`](Self::arrived) or [`failed`](Self::failed).
    pub fn due(&self) -> Wanted<K> {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        let mut wanted = Wanted { asks: Vec::new(), next: NEVER };
        let mut pending = std::mem::take(&mut inner.pending);
        pending.retain(|key| {
            let Some(state) = inner.state(key.as_ref()) else { return false };
            match state.due(now) {
                Due::Quiet => false,
                Due::At(at) => {
                    wanted.next = wanted.next.min(at);
                    true
                }
                Due::Ask { want, least, back } => {
                    wanted.asks.push(Ask { key: key.clone(), want, least, back });
                    true
                }
            }
        });
        inner.pending = pending;
        wanted
    }

    /// The store has answered what was asked for `key`.
    pub fn arrived(&self, key: Option<&K>, leases: &Leases, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        if let Some(state) = inner.state(key) {
            state.with_lease(|lease| lease.arrived(now, leases));
            state.pump(now, &mut out.leaving);
        }
    }

    /// The store has not answered what was asked for `key`, and may yet carry it out.
    pub fn failed(&self, key: Option<&K>, again: Nanos) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        if let Some(state) = inner.state(key) {
            state.with_lease(|lease| lease.failed(now, again));
        }
    }

    /// The store has not answered, and is tried again at that time; [`NEVER`]: it has.
    pub fn next_attempt(&self, at: Nanos) {
        if let Some(outlook) = &self.outlook {
            outlook.attempt.store(at, Ordering::Relaxed);
        }
    }

    /// Why `cost` is refused that is no more than its limits allow at all.
    pub fn why_refused(&self) -> Reason {
        let away = self.outlook.as_ref().is_some_and(|outlook| outlook.next_attempt().is_some());
        if away { Reason::StoreUnavailable } else { Reason::Limited }
    }

    /// The store is away for all that is known; from now on everybody goes by their share.
    pub fn lost(&self, out: &mut Outbox<K, W>) {
        let Some(outlook) = &self.outlook else { return };
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        if outlook.lost_at().is_none() {
            outlook.lost.store(now, Ordering::Relaxed);
            inner.each(|state| {
                state.with_lease(|lease| lease.lost(now));
            });
        }
        inner.each(|state| state.pump(now, &mut out.leaving));
    }

    /// The store answers again: nothing is spent any more but what it leases.
    pub fn found(&self, out: &mut Outbox<K, W>) {
        let Some(outlook) = &self.outlook else { return };
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        outlook.lost.store(NEVER, Ordering::Relaxed);
        inner.each(|state| {
            state.with_lease(|lease| lease.found(now));
            state.pump(now, &mut out.leaving);
        });
    }

    /// What was asked for before will not be answered.
    pub fn interrupted(&self) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        inner.each(|state| {
            state.with_lease(|lease| lease.failed(now, now));
        });
    }

    /// Nothing is spent any more: all that was leased goes back.
    pub fn closing(&self) {
        let mut inner = self.inner.lock();
        inner.each(|state| {
            state.with_lease(Leased::closing);
        });
    }

    /// So many processes share the limits.
    pub fn shared_by(&self, members: u32) {
        if let Some(outlook) = &self.outlook {
            outlook.members.store(members, Ordering::Relaxed);
        }
    }

    /// Since when the store is away.
    pub fn lost_at(&self) -> Option<Nanos> {
        self.outlook.as_ref().and_then(|outlook| outlook.lost_at())
    }

    /// How many processes share the limits, as far as is known.
    pub fn members(&self) -> Option<u64> {
        self.outlook.as_ref().map(|outlook| outlook.members())
    }

    /// Permits that are leased and not spent yet, of all keys together.
    pub fn leased(&self) -> u64 {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        let mut leased = 0;
        inner.each(|state| leased += state.with_lease(|lease| lease.left(now)).unwrap_or(0));
        leased
    }

    /// What this process has used from `since` on and still counts, key by key.
    pub fn charges(&self, since: Nanos) -> Vec<Charge<K>> {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        let mut charges = Vec::new();
        let mut charge = |key: Option<K>, state: &mut State<W>| {
            let used = state.with_lease(|lease| lease.used_since(now, since)).unwrap_or_default();
            if !used.is_empty() {
                charges.push(Charge { key, used });
            }
        };
        charge(None, &mut inner.base);
        inner.keyed.for_each_key(|key, state| charge(Some(key.clone()), state));
        charges
    }

    /// Whether nothing that this process did counts any more, and nobody waits.
    pub fn is_idle(&self) -> bool {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        let mut idle = inner.waiting == 0 && inner.pending.is_empty();
        inner.each(|state| idle = idle && state.idle_at().is_some_and(|at| at <= now));
        idle
    }
}
