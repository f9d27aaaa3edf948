//! The rate limiter: permits over time, slots at a time, and a fair line for
//! those who wait.
//!
//! A [`Limiter`] answers at once. Who wants to wait takes a ticket and looks at
//! it again when told; the limiter itself has no thread and no timer. Wakers
//! and everything else whose call or drop may run foreign code leave through
//! an [`Outbox`], to be handled after the lock is gone.
//!
//! # Memory
//! `sliding_window` keeps every grant of its longest window: 4 bytes each with
//! cost 1, 8 in blocks where another cost occurs, and 72 bytes per block of
//! 1,024 grants or per gap of more than 4.29 s. A million permits a day take
//! 4.1 MB. `gcra` and `token_bucket` keep a constant.

pub mod adaptive;
mod decision;
mod gcra;
pub mod headers;
mod keyed;
mod lane;
mod limit;
pub mod llm;
mod log;
mod queue;
mod rule;
pub mod shared;
mod state;
mod token_bucket;
mod window;

#[cfg(test)]
#[cfg(ferrogate_loom)]
mod loom_tests;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod tests;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod token_bucket_tests;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod window_tests;

use std::hash::Hash;

pub use self::decision::{Decision, Reason};
pub use self::lane::Ticket;
pub use self::limit::Limit;
pub use self::queue::Progress;
pub use self::rule::Algorithm;
pub use self::state::UNKNOWN;

use self::adaptive::{Adaptive, AdaptiveStats, Call, ConcurrencySettings};
use self::keyed::KeyTable;
use self::lane::Leaving;
use self::queue::Want;
use self::rule::Rule;
use self::shared::{Leased, Outlook, Sharing};
use self::state::State;
use super::clock::{Clock, NEVER, Nanos};
use super::error::InvalidArgument;
use super::outcome::Outcome;
use super::sync::{Arc, Mutex};

/// How a limiter is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// All of them hold at once.
    pub limits: Vec<Limit>,
    /// Concurrency slots; `None`: no bound.
    pub burst: Option<u32>,
    /// Slots that find their own number, in place of `burst`.
    pub adaptive: Option<ConcurrencySettings>,
    /// How permits are counted.
    pub algorithm: Algorithm,
    /// Keys that may be limited at one time.
    pub max_keys: usize,
    /// Waiters that may stand in all lines together.
    pub max_waiters: usize,
    /// Off: everything is granted and counted.
    pub enabled: bool,
    /// Whether other processes have a part in the limits, and how.
    pub sharing: Option<Sharing>,
}

/// What must happen after the lock is gone.
#[derive(Debug)]
pub struct Outbox<K, W> {
    leaving: Leaving<W>,
    keys: Vec<K>,
}

impl<K, W> Outbox<K, W> {
    /// An empty one; does not allocate.
    #[inline]
    #[must_use]
    pub fn new() -> Self {
        Self { leaving: Leaving { wakes: Vec::new(), buried: Vec::new() }, keys: Vec::new() }
    }

    /// Those to wake, once each.
    #[inline]
    #[must_use]
    pub fn take_wakes(&mut self) -> Vec<W> {
        std::mem::take(&mut self.leaving.wakes)
    }

    /// Those that are only to be dropped, which may run foreign code, too.
    #[must_use]
    pub fn take_buried(&mut self) -> Vec<W> {
        std::mem::take(&mut self.leaving.buried)
    }
}

impl<K, W> Default for Outbox<K, W> {
    fn default() -> Self {
        Self::new()
    }
}

/// What a limiter has done and holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Requests granted.
    pub acquired: u64,
    /// Requests refused, timed out or impossible.
    pub rejected: u64,
    /// Waiters in all lines.
    pub waiting: u64,
    /// Slots in use.
    pub concurrent: u32,
    /// Permits used now per limit, without the keyed ones.
    pub windows: Vec<(Limit, u64)>,
    /// Keys in the table.
    pub keys: usize,
}

impl Stats {
    /// The share of requests that were refused, 0..1.
    #[must_use]
    pub fn rejection_rate(&self) -> f64 {
        let all = self.acquired + self.rejected;
        if all == 0 { 0.0 } else { self.rejected as f64 / all as f64 }
    }
}

#[derive(Debug)]
struct Inner<K, W> {
    limits: Vec<Limit>,
    base: State<W>,
    keyed: KeyTable<K, W>,
    /// Time as this limiter has seen it: threads that raced for the lock do not turn it back.
    now: Nanos,
    next_ticket: Ticket,
    acquired: u64,
    rejected: u64,
    waiting: u64,
    /// Keys that may want something of the store that the limits are shared in.
    pending: Vec<Option<K>>,
    /// Sets the slots of `base`.
    adaptive: Option<Box<Adaptive>>,
}

/// A rate limiter for keys `K` whose waiters are woken by `W`.
#[derive(Debug)]
pub struct Limiter<K, W> {
    clock: Clock,
    algorithm: Algorithm,
    /// Whether slots find their own number.
    is_adaptive: bool,
    max_keys: usize,
    max_waiters: usize,
    enabled: bool,
    outlook: Option<Arc<Outlook>>,
    inner: Mutex<Inner<K, W>>,
}

impl<K: Eq + Hash + Clone, W: Clone> Limiter<K, W> {
    /// # Errors
    /// When the algorithm cannot keep the limits, or there is nothing to limit.
    pub fn new(settings: Settings, clock: Clock) -> Result<Self, InvalidArgument> {
        let adaptive = settings.adaptive.map(Adaptive::new).transpose()?.map(Box::new);
        let Settings { mut limits, algorithm, max_keys, max_waiters, enabled, sharing, .. } =
            settings;
        let burst = adaptive.as_ref().map(|found| found.limit()).or(settings.burst);
        if limits.is_empty() && burst.is_none() {
            return Err(InvalidArgument::new(
                "limits",
                "expected at least one limit such as \"60/minute\", or burst=",
            ));
        }
        if burst == Some(0) {
            return Err(InvalidArgument::new("burst", "expected at least 1, got 0"));
        }
        if max_keys == 0 || u32::try_from(max_keys).is_err() {
            let message = format!("expected 1 to {}, got {max_keys}", u32::MAX);
            return Err(InvalidArgument::new("max_keys", message));
        }
        if !limits.is_empty() {
            algorithm.check(&limits)?;
        }
        if sharing.is_some() && limits.is_empty() {
            let message = "expected at least one to share; slots are each process's own";
            return Err(InvalidArgument::new("limits", message));
        }
        if sharing.is_some() && algorithm != Algorithm::SlidingWindow {
            let message =
                format!("expected \"sliding_window\" with a store, got {:?}", algorithm.as_str());
            return Err(InvalidArgument::new("algorithm", message));
        }
        limits.sort_by_key(|limit| (limit.period(), limit.count()));
        let now = clock.now();
        let outlook =
            sharing.map(|sharing| Arc::new(Outlook::new(sharing.validity, sharing.patience)));
        let inner = Inner {
            base: State::new(rule_of(algorithm, outlook.as_ref(), now, &limits), burst),
            keyed: KeyTable::new(max_keys),
            limits,
            now,
            next_ticket: 0,
            acquired: 0,
            rejected: 0,
            waiting: 0,
            pending: Vec::new(),
            adaptive,
        };
        let is_adaptive = enabled && inner.adaptive.is_some();
        let inner = Mutex::new(inner);
        Ok(Self { clock, algorithm, is_adaptive, max_keys, max_waiters, enabled, outlook, inner })
    }

    /// Takes `cost` permits of every limit, or none. Never waits, never overtakes who does.
    #[inline]
    pub fn try_acquire(&self, key: Option<&K>, cost: u32, out: &mut Outbox<K, W>) -> Decision {
        let mut inner = self.inner.lock();
        let decision = self.request(key, cost, false, &mut inner, out);
        inner.rejected += u64::from(!decision.granted);
        decision
    }

    /// Like [`Limiter::try_acquire`] for callers that will wait if refused: the
    /// refusal is not counted. With `slot`, takes a concurrency slot too.
    #[inline]
    pub fn try_enter(
        &self,
        key: Option<&K>,
        cost: u32,
        slot: bool,
        out: &mut Outbox<K, W>,
    ) -> Decision {
        self.try_enter_at(key, cost, slot, out).0
    }

    /// [`Limiter::try_enter`] with the time of the answer, for [`Limiter::undo`].
    #[inline]
    pub fn try_enter_at(
        &self,
        key: Option<&K>,
        cost: u32,
        slot: bool,
        out: &mut Outbox<K, W>,
    ) -> (Decision, Nanos) {
        let mut inner = self.inner.lock();
        let decision = self.request(key, cost, slot, &mut inner, out);
        (decision, inner.now)
    }

    /// Gives back what was granted `at` that time and never reached anybody,
    /// as far as it still counts.
    pub fn undo(&self, key: Option<&K>, at: Nanos, cost: u32, slot: bool, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        if let Some(state) = inner.state(key) {
            state.undo(now, at, cost, slot, &mut out.leaving);
        }
        inner.acquired = inner.acquired.saturating_sub(1);
    }

    #[inline]
    fn request(
        &self,
        key: Option<&K>,
        cost: u32,
        slot: bool,
        inner: &mut Inner<K, W>,
        out: &mut Outbox<K, W>,
    ) -> Decision {
        if !self.enabled {
            inner.acquired += 1;
            if slot {
                inner.base.force_slot();
            }
            return Decision::unlimited(Reason::Disabled);
        }
        let now = inner.tick(&self.clock);
        let decision = match key {
            None => inner.base.try_acquire(now, cost, slot, &mut out.leaving),
            Some(key) => match self.keyed_state(inner, now, key, cost, out) {
                Ok(state) => state.try_acquire(now, cost, slot, &mut out.leaving),
                Err(decision) => decision,
            },
        };
        inner.acquired += u64::from(decision.granted);
        if self.outlook.is_some() {
            inner.keep_in_mind(key, if decision.granted { 0 } else { cost });
        }
        decision
    }

    fn keyed_state<'a>(
        &self,
        inner: &'a mut Inner<K, W>,
        now: Nanos,
        key: &K,
        cost: u32,
        out: &mut Outbox<K, W>,
    ) -> Result<&'a mut State<W>, Decision> {
        let Inner { limits, keyed, .. } = inner;
        if let Some(limit) = limits.iter().find(|limit| u64::from(cost) > limit.count()) {
            // Must not cost a place in the table.
            let never = Decision::refused(Reason::TooLarge, NEVER);
            return Err(Decision { limit: Some(*limit), ..never });
        }
        let outlook = self.outlook.as_ref();
        let make = || State::new(rule_of(self.algorithm, outlook, now, limits), None);
        keyed
            .enter(now, key, make, &mut out.keys)
            .map_err(|wait| Decision::refused(Reason::KeyTableFull, wait))
    }

    /// Joins the line behind everybody else; look at the ticket before sleeping.
    /// The clock's `deadline` only matters to [`Limiter::clock_moved`].
    ///
    /// # Errors
    /// The refusal, when waiting cannot help or the table of keys is full.
    pub fn enqueue(
        &self,
        key: Option<&K>,
        cost: u32,
        slot: bool,
        deadline: Nanos,
        waker: W,
        out: &mut Outbox<K, W>,
    ) -> Result<Ticket, Decision> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let now = inner.tick(&self.clock);
        let ticket = inner.next_ticket;
        let full = inner.waiting >= self.max_waiters as u64;
        let state = match key {
            None => Ok(&mut inner.base),
            Some(key) => self.keyed_state(inner, now, key, cost, out),
        };
        let refusal = match state {
            Ok(state) if full => Decision::refused(Reason::QueueFull, state.eta(now, cost)),
            Ok(state) => {
                if state.wait(now, cost) < NEVER {
                    state.enqueue(ticket, Want { cost, slot, deadline }, waker);
                    inner.next_ticket += 1;
                    inner.waiting += 1;
                    inner.keep_in_mind(key, 0);
                    return Ok(ticket);
                }
                state.rule.try_take(now, cost)
            }
            Err(refusal) => refusal,
        };
        out.leaving.buried.push(waker);
        inner.rejected += 1;
        Err(refusal)
    }

    /// What has become of a ticket. A grant is handed out once and is then the caller's.
    pub fn poll(&self, key: Option<&K>, ticket: Ticket, out: &mut Outbox<K, W>) -> Progress {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        let progress = inner
            .state(key)
            .map_or(Progress::Gone, |state| state.poll(now, ticket, &mut out.leaving));
        match progress {
            Progress::Granted => {
                inner.acquired += 1;
                inner.waiting = inner.waiting.saturating_sub(1);
            }
            Progress::Never => {
                inner.rejected += 1;
                inner.waiting = inner.waiting.saturating_sub(1);
            }
            Progress::Wait(_) | Progress::Gone => {}
        }
        progress
    }

    /// Leaves the line at any time; gives back what was granted and not picked
    /// up. Nothing happens if the ticket is done.
    pub fn cancel(&self, key: Option<&K>, ticket: Ticket, out: &mut Outbox<K, W>) -> bool {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        let left =
            inner.state(key).is_some_and(|state| state.cancel(now, ticket, &mut out.leaving));
        if left {
            inner.waiting = inner.waiting.saturating_sub(1);
            // The store may hold a place in its own line for it.
            shared::call(self.outlook.as_ref());
        }
        left
    }

    /// [`Limiter::cancel`] by a caller whose time is up: counts as a rejection.
    pub fn give_up(&self, key: Option<&K>, ticket: Ticket, out: &mut Outbox<K, W>) {
        if self.cancel(key, ticket, out) {
            self.inner.lock().rejected += 1;
        }
    }

    /// Counts a request that was refused by [`Limiter::try_enter`] and did not wait.
    pub fn count_rejection(&self) {
        self.inner.lock().rejected += 1;
    }

    /// Returns a concurrency slot; false if none was taken.
    pub fn release_slot(&self, out: &mut Outbox<K, W>) -> bool {
        let mut inner = self.inner.lock();
        // Reading the clock is half of the cost; only waiters need it.
        let now = if inner.waiting == 0 { inner.now } else { inner.tick(&self.clock) };
        inner.base.release_slot(now, &mut out.leaving)
    }

    /// A call begins that holds a slot; `None` where nothing is learned from it.
    #[inline]
    pub fn begins(&self) -> Option<Call> {
        if !self.is_adaptive {
            return None;
        }
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        Some(Call::new(now, inner.base.concurrent()))
    }

    /// The first token of a call's answer has come; later ones change nothing.
    pub fn first_token(&self, call: &mut Call, out: &mut Outbox<K, W>) {
        if call.first.is_some() {
            return;
        }
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        if let Some(adaptive) = &mut inner.adaptive {
            adaptive.first_token(call, now);
            let slots = adaptive.limit();
            inner.base.set_slots(now, slots, &mut out.leaving);
        }
    }

    /// [`Limiter::release_slot`] of a call that has ended so.
    pub fn end_call(&self, call: &Call, outcome: Outcome, out: &mut Outbox<K, W>) -> bool {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        if let Some(adaptive) = &mut inner.adaptive {
            adaptive.ended(call, outcome, None, now);
            let slots = adaptive.limit();
            inner.base.set_slots(now, slots, &mut out.leaving);
        }
        inner.base.release_slot(now, &mut out.leaving)
    }

    /// What is known of slots that find their own number.
    pub fn adaptive_stats(&self) -> Option<AdaptiveStats> {
        self.inner.lock().adaptive.as_ref().map(|found| found.stats())
    }

    /// Grants what has become possible and wakes those whose deadline has
    /// passed: for clocks that move by jumps, where timers do not.
    pub fn clock_moved(&self, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        if inner.waiting == 0 {
            return;
        }
        let now = inner.tick(&self.clock);
        inner.base.wake_overdue(now, &mut out.leaving);
        if inner.waiting > inner.base.tickets() as u64 {
            inner.keyed.for_each(|state| state.wake_overdue(now, &mut out.leaving));
        }
    }

    /// A lower bound of the time until a newcomer would get `cost`: exact when
    /// nobody waits. [`NEVER`] if it cannot.
    pub fn eta(&self, key: Option<&K>, cost: u32) -> Nanos {
        let mut inner = self.inner.lock();
        if !self.enabled {
            return 0;
        }
        let now = inner.tick(&self.clock);
        if let Some(state) = inner.state(key) {
            return state.eta(now, cost);
        }
        // A key that is not in the table has used nothing, but needs a place there.
        let fits = inner.limits.iter().all(|limit| u64::from(cost) <= limit.count());
        if fits { inner.keyed.room_in(now) } else { NEVER }
    }

    /// The limit that `cost` waits for, if one is to blame.
    pub fn binding(&self, key: Option<&K>, cost: u32) -> Option<Limit> {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        inner.state(key).and_then(|state| state.rule.binding(now, cost))
    }

    /// Changes the limits while running; what was granted keeps counting.
    ///
    /// # Errors
    /// When there are none, or the algorithm is [`Algorithm::Gcra`], whose
    /// state means nothing under another limit.
    pub fn update(
        &self,
        mut limits: Vec<Limit>,
        out: &mut Outbox<K, W>,
    ) -> Result<(), InvalidArgument> {
        if limits.is_empty() {
            return Err(InvalidArgument::new("limits", "expected at least one limit, got none"));
        }
        if self.algorithm == Algorithm::Gcra {
            return Err(InvalidArgument::new(
                "limits",
                "algorithm=\"gcra\" cannot change its limit while running; \
                 use \"sliding_window\" or \"token_bucket\"",
            ));
        }
        limits.sort_by_key(|limit| (limit.period(), limit.count()));
        let mut inner = self.inner.lock();
        if self.outlook.is_some() {
            shared::check_update(&inner.limits, &limits)?;
        }
        let now = inner.tick(&self.clock);
        let change = |state: &mut State<W>, out: &mut Outbox<K, W>| {
            state.rule.update(now, &limits);
            state.pump(now, &mut out.leaving);
        };
        change(&mut inner.base, out);
        inner.keyed.change_all(now, |state| change(state, out));
        inner.limits = limits;
        Ok(())
    }

    /// Forgets what was granted, for test suites: windows and buckets are as new, and slots
    /// that find their own number begin anew. Slots stay with their holders, and what is shared in
    /// a store stays there.
    pub fn reset(&self, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        if let Some(Ok(anew)) = inner.adaptive.as_ref().map(|found| found.anew()) {
            let slots = anew.limit();
            inner.adaptive = Some(Box::new(anew));
            inner.base.set_slots(now, slots, &mut out.leaving);
        }
        if self.outlook.is_some() {
            return;
        }
        let limits = std::mem::take(&mut inner.limits);
        inner.each(|state| {
            state.rule = Rule::new(self.algorithm, now, &limits);
            state.pump(now, &mut out.leaving);
        });
        inner.limits = limits;
    }

    /// Forgets waiters and slots: after a fork they belong to the other process.
    pub fn after_fork(&self, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        // The child is a process of its own, which nobody has answered yet.
        self.next_attempt(0);
        inner.each(|state| {
            state.forget_waiters(&mut out.leaving);
            state.with_lease(|lease| lease.after_fork(now));
        });
        inner.waiting = 0;
        inner.pending.clear();
    }

    /// A consistent view.
    pub fn stats(&self) -> Stats {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        Stats {
            acquired: inner.acquired,
            rejected: inner.rejected,
            waiting: inner.waiting,
            concurrent: inner.base.concurrent(),
            windows: inner.base.rule.used(now),
            keys: inner.keyed.len(),
        }
    }

    /// The limits in force, shortest period first.
    pub fn limits(&self) -> Vec<Limit> {
        self.inner.lock().limits.clone()
    }

    /// The clock that all times are on.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// How permits are counted.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The number of concurrency slots; of those that find themselves, now.
    pub fn burst(&self) -> Option<u32> {
        self.inner.lock().base.slots()
    }

    /// The bound of the table of keys.
    pub fn max_keys(&self) -> usize {
        self.max_keys
    }

    /// Whether it limits at all.
    pub fn enabled(&self) -> bool {
        self.enabled
    }
}

impl<K: Eq + Hash + Clone, W: Clone> Inner<K, W> {
    #[inline]
    fn tick(&mut self, clock: &Clock) -> Nanos {
        self.now = self.now.max(clock.now());
        self.now
    }

    fn each(&mut self, mut visit: impl FnMut(&mut State<W>)) {
        visit(&mut self.base);
        self.keyed.for_each(visit);
    }

    /// The key may want something of the store; `refused` was asked for in vain.
    fn keep_in_mind(&mut self, key: Option<&K>, refused: u32) {
        let new = self.state(key).and_then(|state| {
            state.with_lease(|lease| {
                if refused > 0 {
                    lease.was_refused(refused);
                }
                lease.appears()
            })
        });
        if new == Some(true) {
            self.pending.push(key.cloned());
        }
    }

    fn state(&mut self, key: Option<&K>) -> Option<&mut State<W>> {
        match key {
            None => Some(&mut self.base),
            Some(key) => self.keyed.get(key),
        }
    }
}

fn rule_of(
    algorithm: Algorithm,
    outlook: Option<&Arc<Outlook>>,
    now: Nanos,
    limits: &[Limit],
) -> Rule {
    match outlook {
        Some(outlook) => Rule::Leased(Box::new(Leased::new(Arc::clone(outlook), now, limits))),
        None => Rule::new(algorithm, now, limits),
    }
}
