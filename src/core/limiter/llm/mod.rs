//! The limiter of LLM traffic: requests, tokens and money per minute and calls
//! at a time, taken all or nothing, reserved before a call and settled after it.
//!
//! # What counts, and when
//! A reservation counts in full from its grant for one window, as a provider
//! counts a request when it arrives. Settling it corrects the entry to what was
//! used, at the time of the grant; what was used beyond the reservation counts
//! one window from the settlement on. So at every instant, in every dimension,
//! `used ≤ limit + over-use in the window`, and nothing is granted while `used`
//! exceeds the limit.
//!
//! Like [`super::Limiter`] it has no thread and no timer: who wants to wait
//! takes a ticket and looks at it when told, and what may run foreign code
//! leaves by an [`Outbox`]. Keys are plain data (`Copy`) and need no grave.
//!
//! # Memory
//! 56 bytes for each reservation of the last window; where
//! [nothing bounds their number](Settings::limits), 2^20 of them. 1 KB for each
//! model, 2 if it has been settled with money. Some 200 bytes for each tenant
//! that waits or was served ahead of others.

mod amounts;
mod decision;
mod estimate;
mod finding;
mod ledger;
mod line;
mod log;
mod rate;
mod settings;
mod state;

#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod adaptive_tests;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod line_tests;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod log_tests;
#[cfg(test)]
#[cfg(ferrogate_loom)]
mod loom_tests;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod model_tests;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod naive;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod tests;

use std::hash::Hash;

pub use self::amounts::{Amounts, Dimension, NANO_USD};
pub use self::decision::{Ask, Grant, Looked, Mark, Settled, Usage, Verdict};
pub use self::finding::USUAL_REFUSAL;
pub use self::ledger::Told;
pub use self::line::WEIGHT_ONE;
pub use self::rate::RateStats;
pub use self::settings::{Change, Fairness, Settings};

use self::estimate::Estimates;
use self::ledger::Ledger;
use self::line::{Done, Line, WHOLE, Want};
use self::state::Inner;
use super::adaptive::Adaptive;
use super::{Outbox, Reason, Ticket, UNKNOWN};
use crate::core::clock::{Clock, NEVER, Nanos};
use crate::core::error::InvalidArgument;
use crate::core::outcome::Outcome;
use crate::core::sync::Mutex;

/// What a limiter has done and holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Reservations granted.
    pub granted: u64,
    /// Requests refused, timed out or impossible.
    pub rejected: u64,
    /// Reservations settled.
    pub settled: u64,
    /// Reservations given back.
    pub released: u64,
    /// Reservations that are neither yet.
    pub open: u64,
    /// Those who wait.
    pub waiting: u64,
    /// Slots in use.
    pub concurrent: u32,
    /// Tenants that are remembered.
    pub tenants: usize,
    /// Models whose answers are known.
    pub models: usize,
    /// The time for which everything is paused.
    pub paused: Nanos,
    /// Each dimension with a limit.
    pub dimensions: Vec<DimensionStats>,
}

/// One dimension's share of [`Stats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DimensionStats {
    /// Which.
    pub dimension: Dimension,
    /// What is allowed per window.
    pub limit: u64,
    /// Reserved and spent within the window.
    pub used: u128,
    /// What could be granted now.
    pub left: u64,
    /// What has to leave the window before anything is granted.
    pub debt: u128,
}

/// A limiter for tenants and models `K` whose waiters are woken by `W`.
#[derive(Debug)]
pub struct LlmLimiter<K, W> {
    clock: Clock,
    enabled: bool,
    max_waiters: usize,
    inner: Mutex<Inner<K, W>>,
}

impl<K: Eq + Hash + Copy, W: Clone> LlmLimiter<K, W> {
    /// # Errors
    /// When there is nothing to limit, or two settings contradict each other.
    pub fn new(settings: Settings<K>, clock: Clock) -> Result<Self, InvalidArgument> {
        let settings = settings.checked()?;
        let Settings { max_waiters, enabled, .. } = settings;
        let adaptive = settings.adaptive.map(Adaptive::new).transpose()?.map(Box::new);
        let inner = Inner {
            default_output: settings.default_output(),
            priced: settings.priced,
            ledger: Ledger::new(settings.period, settings.limits, settings.adaptive_rate),
            estimates: Estimates::new(settings.quantile(), settings.max_models),
            line: Line::new(
                settings.fairness == Fairness::Weighted,
                settings.weights.into_iter().collect(),
                settings.max_tenants,
            ),
            slots: adaptive.as_ref().map(|found| found.limit()).or(settings.concurrency),
            in_use: 0,
            adaptive,
            now: clock.now(),
            next_ticket: 0,
            epoch: 0,
            granted: 0,
            rejected: 0,
            settled: 0,
            released: 0,
            open: 0,
        };
        Ok(Self { clock, enabled, max_waiters, inner: Mutex::new(inner) })
    }

    /// Reserves all of it, or nothing. Never waits, never overtakes who does.
    ///
    /// # Errors
    /// The denial.
    pub fn try_reserve(&self, ask: &Ask<K>, out: &mut Outbox<K, W>) -> Result<Grant<K>, Verdict> {
        let mut inner = self.inner.lock();
        let answer = self.request(&mut inner, ask, out);
        inner.rejected += u64::from(answer.is_err());
        answer
    }

    /// Like [`LlmLimiter::try_reserve`] for callers that will wait if refused: the refusal
    /// is not counted.
    ///
    /// # Errors
    /// The denial.
    pub fn try_enter(&self, ask: &Ask<K>, out: &mut Outbox<K, W>) -> Result<Grant<K>, Verdict> {
        self.request(&mut self.inner.lock(), ask, out)
    }

    fn request(
        &self,
        inner: &mut Inner<K, W>,
        ask: &Ask<K>,
        out: &mut Outbox<K, W>,
    ) -> Result<Grant<K>, Verdict> {
        let now = inner.tick(&self.clock);
        let wanted = inner.wanted(ask);
        if !self.enabled {
            return Ok(inner.unlogged(wanted));
        }
        inner.refuse_never(&wanted)?;
        if inner.line.waiting() > 0 {
            // A head whose time has come goes first.
            inner.pump(now, out);
        }
        if inner.line.waiting() > 0 {
            let wait = inner.wait_behind(now, &wanted);
            return Err(inner.verdict(now, &wanted.amounts, Reason::Queued, wait.max(UNKNOWN)));
        }
        if !inner.slot_free() {
            let wait = inner.ledger.shortage(now, &wanted.amounts).map_or(0, |short| short.wait);
            return Err(Verdict::of(Reason::Busy, wait.max(inner.ledger.pause(now)).max(UNKNOWN)));
        }
        if !inner.ledger.fits(now, &wanted.amounts) {
            return Err(inner.refused(now, &wanted.amounts));
        }
        if inner.line.is_fair() {
            inner.admit(now, &wanted)?;
            let share = inner.ledger.share(&wanted.amounts, WHOLE);
            inner.line.serve(wanted.tenant, share);
        }
        let grant = inner.grant(now, &wanted);
        inner.granted += 1;
        Ok(grant)
    }

    /// Joins the line; look at the ticket before sleeping.
    ///
    /// # Errors
    /// The refusal, when waiting cannot help, would take longer than until `deadline`, or a
    /// table is full.
    pub fn enqueue(
        &self,
        ask: &Ask<K>,
        deadline: Nanos,
        waker: W,
        out: &mut Outbox<K, W>,
    ) -> Result<Ticket, Verdict> {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        let wanted = inner.wanted(ask);
        match inner.may_join(now, &wanted, deadline, self.max_waiters) {
            Ok(()) => {
                let ticket = inner.next_ticket;
                inner.next_ticket += 1;
                let share = inner.ledger.share(&wanted.amounts, WHOLE);
                inner.line.push(now, ticket, Want { wanted, share, deadline }, waker);
                Ok(ticket)
            }
            Err(refusal) => {
                out.leaving.buried.push(waker);
                inner.rejected += 1;
                Err(refusal)
            }
        }
    }

    /// What has become of a ticket. A grant is handed out once and is then the caller's.
    pub fn poll(&self, tenant: Option<K>, ticket: Ticket, out: &mut Outbox<K, W>) -> Looked<K> {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        inner.look(now, tenant, ticket, out)
    }

    /// Leaves the line at any time; gives back what was granted and not picked up. False if
    /// the ticket is done.
    pub fn cancel(&self, tenant: Option<K>, ticket: Ticket, out: &mut Outbox<K, W>) -> bool {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        match inner.line.pick_up(ticket) {
            Some(Done::Granted(grant)) => inner.undo(now, grant),
            Some(Done::Never(_)) => inner.rejected += 1,
            None => {
                if !inner.line.remove(now, tenant, ticket, &mut out.leaving) {
                    return false;
                }
            }
        }
        inner.pump(now, out);
        true
    }

    /// The request is done: corrects the reservation to what it took. Under-use can be
    /// granted to others at once; over-use counts from now on.
    pub fn settle(&self, grant: Grant<K>, usage: &Usage, out: &mut Outbox<K, W>) -> Settled {
        self.settle_as(grant, usage, Outcome::Success, out)
    }

    /// [`LlmLimiter::settle`] for a request that has ended so.
    pub fn settle_as(
        &self,
        grant: Grant<K>,
        usage: &Usage,
        outcome: Outcome,
        out: &mut Outbox<K, W>,
    ) -> Settled {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        let [requests, input, output, _, usd] = grant.amounts.0;
        let actual = Amounts::new(
            requests,
            usage.input.unwrap_or(input),
            usage.output.unwrap_or(output),
            usage.usd.unwrap_or(usd),
        );
        inner.estimates.observe(grant.model, usage.output, usage.usd);
        let settled =
            Settled { refunded: grant.amounts.above(&actual), over: actual.above(&grant.amounts) };
        if inner.close(now, &grant, &actual) {
            inner.settled += 1;
            self.learned(&mut inner, now, &grant.mark, outcome, usage.output);
        }
        inner.pump(now, out);
        settled
    }

    /// The request came to nothing: refunds what was reserved, the request itself only if
    /// it was not `sent`.
    pub fn release(&self, grant: Grant<K>, sent: bool, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        if inner.close(now, &grant, &Amounts::new(u64::from(sent), 0, 0, 0)) {
            inner.released += 1;
        }
        inner.pump(now, out);
    }

    /// Takes back a grant that never reached anybody.
    pub fn undo(&self, grant: Grant<K>, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        inner.undo(now, grant);
        inner.pump(now, out);
    }

    /// The money that a request is taken to cost.
    pub fn estimated_usd(&self, ask: &Ask<K>) -> u64 {
        self.inner.lock().wanted(ask).amounts.get(Dimension::Usd)
    }

    /// Counts a request that was refused by [`LlmLimiter::try_enter`] and did not wait.
    pub fn count_rejection(&self) {
        self.inner.lock().rejected += 1;
    }

    /// Grants what has become possible and wakes those whose deadline has passed: for
    /// clocks that move by jumps, where timers do not.
    pub fn clock_moved(&self, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        if inner.line.waiting() == 0 {
            return;
        }
        let now = inner.tick(&self.clock);
        inner.pump(now, out);
        inner.line.wake_overdue(now, &mut out.leaving);
    }

    /// A lower bound of the time until a newcomer is granted this, unless a reservation is
    /// released or somebody leaves the line: settled use, open reservations' requests and
    /// input, and those of all who wait before it count; open reservations' output and
    /// money may come back at any time. [`NEVER`] if it cannot be granted.
    pub fn eta(&self, ask: &Ask<K>) -> Nanos {
        let mut inner = self.inner.lock();
        if !self.enabled {
            return 0;
        }
        let now = inner.tick(&self.clock);
        let wanted = inner.wanted(ask);
        if inner.ledger.never(&wanted.amounts).is_some() {
            return NEVER;
        }
        let wait = inner.wait_behind(now, &wanted);
        if inner.line.waiting() > 0 { wait.max(UNKNOWN) } else { wait }
    }

    /// What would be reserved for this: estimates included.
    pub fn amounts(&self, ask: &Ask<K>) -> Amounts {
        self.inner.lock().wanted(ask).amounts
    }

    /// Changes limits and slots while running; what was granted keeps counting.
    ///
    /// # Errors
    /// When there would be nothing to limit, or a limit is zero.
    pub fn update(
        &self,
        limits: [Change<u64>; Dimension::ALL.len()],
        concurrency: Change<u32>,
        out: &mut Outbox<K, W>,
    ) -> Result<(), InvalidArgument> {
        self.reconfigure(limits, concurrency, None, out)
    }

    /// Grants nothing for so long: the provider asked for patience. A pause under way that
    /// ends later stays.
    pub fn pause(&self, length: Nanos, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        inner.ledger.pause_until(now.saturating_add(length));
        inner.pump(now, out);
    }

    /// Like [`LlmLimiter::pause`], until a time of the limiter's clock.
    pub fn pause_until(&self, until: Nanos, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        inner.ledger.pause_until(until);
        inner.pump(now, out);
    }

    /// Ends a pause.
    pub fn resume(&self, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        inner.ledger.resume();
        inner.pump(now, out);
    }

    /// Keeps to what the provider says of one dimension. It never allows more than the
    /// settings do. `answered` is the request that the provider answered: what it said was
    /// true when that one arrived, and since then more has been granted.
    pub fn learn(
        &self,
        dimension: Dimension,
        told: &Told,
        answered: Option<Mark>,
        out: &mut Outbox<K, W>,
    ) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        let here = inner.epoch;
        let answered = answered.filter(|mark| mark.epoch == here);
        let seen = answered.and_then(|mark| mark.number.map(|number| (mark.used, number)));
        inner.ledger.learn(now, dimension, told, seen);
        inner.pump(now, out);
    }

    /// Forgets what was reserved, spent and learned, for test suites; waiters are granted what
    /// that leaves them.
    pub fn reset(&self, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        inner.reset();
        inner.pump(now, out);
    }

    /// Forgets waiters, slots and open reservations: after a fork they belong to the other
    /// process. What they have reserved stays spent.
    pub fn after_fork(&self, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        inner.line.clear(&mut out.leaving);
        inner.in_use = 0;
        inner.open = 0;
        inner.epoch += 1;
    }

    /// A consistent view.
    pub fn stats(&self) -> Stats {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        let dimensions = Dimension::ALL.into_iter().filter_map(|dimension| {
            let limit = inner.ledger.limit(dimension)?;
            Some(DimensionStats {
                dimension,
                limit,
                used: inner.ledger.used(dimension),
                left: inner.ledger.left(now, dimension),
                debt: inner.ledger.debt(dimension),
            })
        });
        Stats {
            dimensions: dimensions.collect(),
            granted: inner.granted,
            rejected: inner.rejected,
            settled: inner.settled,
            released: inner.released,
            open: inner.open,
            waiting: inner.line.waiting() as u64,
            concurrent: inner.in_use,
            tenants: inner.line.tenants(),
            models: inner.estimates.models(),
            paused: inner.ledger.pause(now),
        }
    }

    /// The configured limits, by the dimensions' order.
    pub fn limits(&self) -> [Option<u64>; Dimension::ALL.len()] {
        *self.inner.lock().ledger.configured()
    }

    /// The number of slots; of those that find themselves, now.
    pub fn concurrency(&self) -> Option<u32> {
        self.inner.lock().slots
    }

    /// The clock that all times are on.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Whether it limits at all.
    pub fn enabled(&self) -> bool {
        self.enabled
    }
}
