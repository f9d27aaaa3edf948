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
//! 56 bytes for each reservation of the last window, at most
//! [`limits without a bound on requests`](Settings::limits) 2^20 of them; 1.1 KB
//! for each model, twice that if it has been settled with money; 250 bytes for
//! each tenant that waits or was served ahead of others.

mod amounts;
mod decision;
mod estimate;
mod ledger;
mod line;
mod log;
mod settings;

#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod line_tests;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod log_tests;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod model_tests;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod tests;

use std::hash::Hash;

pub use self::amounts::{Amounts, Dimension, NANO_USD};
pub use self::decision::{Ask, Grant, Looked, Settled, Usage, Verdict};
pub use self::ledger::Told;
pub use self::line::WEIGHT_ONE;
pub use self::settings::{Fairness, Settings};

use self::decision::Wanted;
use self::estimate::Estimates;
use self::ledger::Ledger;
use self::line::{Done, Line, WHOLE, Want};
use super::{Outbox, Reason, Ticket, UNKNOWN};
use crate::core::clock::{Clock, NEVER, Nanos};
use crate::core::error::InvalidArgument;
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

#[derive(Debug)]
struct Inner<K, W> {
    ledger: Ledger,
    line: Line<K, W>,
    estimates: Estimates<K>,
    default_output: u64,
    slots: Option<u32>,
    in_use: u32,
    /// Time as this limiter has seen it: threads that raced for the lock do not turn it back.
    now: Nanos,
    next_ticket: Ticket,
    /// Forks so far.
    epoch: u32,
    granted: u64,
    rejected: u64,
    settled: u64,
    released: u64,
    open: u64,
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
        let Settings { concurrency, max_waiters, enabled, .. } = settings;
        let inner = Inner {
            default_output: settings.default_output(),
            ledger: Ledger::new(settings.period, settings.limits),
            estimates: Estimates::new(settings.quantile(), settings.max_models),
            line: Line::new(
                settings.fairness == Fairness::Weighted,
                settings.weights.into_iter().collect(),
                settings.max_tenants,
            ),
            slots: concurrency,
            in_use: 0,
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
        limits: [Option<u64>; Dimension::ALL.len()],
        concurrency: Option<u32>,
        out: &mut Outbox<K, W>,
    ) -> Result<(), InvalidArgument> {
        settings::check_limits(&limits, concurrency)?;
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        inner.ledger.configure(limits);
        inner.slots = concurrency;
        inner.pump(now, out);
        Ok(())
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
        answered: Option<&Grant<K>>,
        out: &mut Outbox<K, W>,
    ) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        let here = inner.epoch;
        let answered = answered.filter(|grant| grant.epoch == here);
        let seen = answered.and_then(|grant| grant.number.map(|number| (&grant.left, number)));
        inner.ledger.learn(now, dimension, told, seen);
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

    /// The number of slots.
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

impl<K: Eq + Hash + Copy, W: Clone> Inner<K, W> {
    /// Moves on, and brings the window up to date.
    #[inline]
    fn tick(&mut self, clock: &Clock) -> Nanos {
        self.now = self.now.max(clock.now());
        self.ledger.expire(self.now);
        self.now
    }

    fn slot_free(&self) -> bool {
        self.slots.is_none_or(|slots| self.in_use < slots)
    }

    /// Fills in the estimates; an estimate is never what makes a request impossible.
    fn wanted(&self, ask: &Ask<K>) -> Wanted<K> {
        let output = ask.output.unwrap_or_else(|| self.estimated_output(ask));
        let usd = ask.usd.unwrap_or_else(|| {
            let limit = self.ledger.limit(Dimension::Usd);
            let known = limit.and_then(|_| self.estimates.usd(ask.model)).unwrap_or(0);
            known.min(limit.unwrap_or(u64::MAX))
        });
        let Ask { model, tenant, .. } = *ask;
        Wanted { amounts: Amounts::new(1, ask.input, output, usd), model, tenant }
    }

    fn estimated_output(&self, ask: &Ask<K>) -> u64 {
        let most = ask.max_output.unwrap_or(u64::MAX);
        let known = self.estimates.output(ask.model);
        let guess = known.unwrap_or(ask.max_output.unwrap_or(self.default_output)).min(most);
        let output = self.ledger.limit(Dimension::OutputTokens).unwrap_or(u64::MAX);
        let tokens = self.ledger.limit(Dimension::Tokens).unwrap_or(u64::MAX);
        guess.min(output).min(tokens.saturating_sub(ask.input))
    }

    fn verdict(&self, now: Nanos, asked: &Amounts, reason: Reason, wait: Nanos) -> Verdict {
        let short = self.ledger.shortage(now, asked).map(|short| short.dimension);
        self.blaming(now, asked, short, Verdict::of(reason, wait))
    }

    fn blaming(
        &self,
        now: Nanos,
        asked: &Amounts,
        dimension: Option<Dimension>,
        verdict: Verdict,
    ) -> Verdict {
        let Some(to_blame) = dimension else { return verdict };
        Verdict {
            dimension,
            limit: self.ledger.limit(to_blame).or(Some(ledger::MOST_REQUESTS)),
            remaining: self.ledger.left(now, to_blame),
            asked: asked.get(to_blame),
            ..verdict
        }
    }

    /// Why something with a free slot and nobody before it is not granted.
    #[cold]
    fn refused(&self, now: Nanos, asked: &Amounts) -> Verdict {
        let short = self.ledger.shortage(now, asked);
        let pause = self.ledger.pause(now);
        match short {
            Some(short) if short.wait > pause => {
                let limited = Verdict::of(Reason::Limited, short.wait);
                self.blaming(now, asked, Some(short.dimension), limited)
            }
            _ => Verdict::of(Reason::Paused, pause),
        }
    }

    fn refuse_never(&self, wanted: &Wanted<K>) -> Result<(), Verdict> {
        match self.ledger.never(&wanted.amounts) {
            None => Ok(()),
            never => {
                let verdict = Verdict::of(Reason::TooLarge, NEVER);
                Err(self.blaming(self.now, &wanted.amounts, never, verdict))
            }
        }
    }

    fn admit(&mut self, now: Nanos, wanted: &Wanted<K>) -> Result<(), Verdict> {
        if self.line.admit(now, wanted.tenant) {
            return Ok(());
        }
        Err(Verdict::of(Reason::TenantTableFull, UNKNOWN))
    }

    fn may_join(
        &mut self,
        now: Nanos,
        wanted: &Wanted<K>,
        deadline: Nanos,
        max_waiters: usize,
    ) -> Result<(), Verdict> {
        self.refuse_never(wanted)?;
        let wait = self.wait_behind(now, wanted);
        if wait > time_left(now, deadline) {
            return Err(self.verdict(now, &wanted.amounts, Reason::TooLate, wait));
        }
        if self.line.waiting() + self.line.finished() >= max_waiters {
            return Err(Verdict::of(Reason::QueueFull, wait.max(UNKNOWN)));
        }
        self.admit(now, wanted)
    }

    fn wait_behind(&self, now: Nanos, wanted: &Wanted<K>) -> Nanos {
        self.ledger.firm_wait(now, &self.line.ahead(wanted.tenant), &wanted.amounts)
    }

    /// A grant of a limiter that is switched off.
    fn unlogged(&mut self, wanted: Wanted<K>) -> Grant<K> {
        self.granted += 1;
        self.open += 1;
        self.in_use = self.in_use.saturating_add(1);
        let Wanted { amounts, model, tenant } = wanted;
        let left = [u64::MAX; Dimension::ALL.len()];
        Grant { number: None, amounts, model, tenant, left, epoch: self.epoch }
    }

    /// Takes what has been found to fit.
    fn grant(&mut self, now: Nanos, wanted: &Wanted<K>) -> Grant<K> {
        let Wanted { amounts, model, tenant } = *wanted;
        let number = Some(self.ledger.enter(now, amounts));
        self.in_use = self.in_use.saturating_add(1);
        self.open += 1;
        let left = self.ledger.all_left(now);
        Grant { number, amounts, model, tenant, left, epoch: self.epoch }
    }

    /// Ends a reservation at what it took; false if it is another process's.
    fn close(&mut self, now: Nanos, grant: &Grant<K>, actual: &Amounts) -> bool {
        if grant.epoch != self.epoch {
            return false;
        }
        self.open = self.open.saturating_sub(1);
        self.in_use = self.in_use.saturating_sub(1);
        if let Some(number) = grant.number {
            self.ledger.settle(now, number, &grant.amounts, actual);
            if self.line.is_fair() {
                let served = self.ledger.share(&grant.amounts, WHOLE);
                let taken = self.ledger.share(actual, WHOLE);
                self.line.correct(now, grant.tenant, served, taken);
            }
        }
        true
    }

    /// As if it had not been granted.
    fn undo(&mut self, now: Nanos, grant: Grant<K>) {
        if self.close(now, &grant, &Amounts::NONE) {
            self.granted = self.granted.saturating_sub(1);
        }
    }

    /// Grants from the head on for as long as it goes.
    fn pump(&mut self, now: Nanos, out: &mut Outbox<K, W>) {
        while self.line.waiting() > 0 {
            let Some((_, want)) = self.line.head(now) else { return };
            if let Err(never) = self.refuse_never(&want.wanted) {
                self.line.finish_head(now, Done::Never(never), &mut out.leaving);
                continue;
            }
            if !self.slot_free() {
                // Woken by the slot.
                return;
            }
            if !self.ledger.fits(now, &want.wanted.amounts) {
                let wait = self.head_wait(now, &want);
                self.line.wake_head_by(now.saturating_add(wait), &mut out.leaving);
                return;
            }
            let grant = self.grant(now, &want.wanted);
            self.line.finish_head(now, Done::Granted(grant), &mut out.leaving);
            self.granted += 1;
        }
    }

    /// The time until the head fits if nothing comes back; not zero.
    fn head_wait(&self, now: Nanos, want: &Want<K>) -> Nanos {
        let short = self.ledger.shortage(now, &want.wanted.amounts);
        short.map_or(0, |short| short.wait).max(self.ledger.pause(now)).max(1)
    }

    /// A waiter looks at its ticket.
    fn look(
        &mut self,
        now: Nanos,
        tenant: Option<K>,
        ticket: Ticket,
        out: &mut Outbox<K, W>,
    ) -> Looked<K> {
        self.line.looking(tenant, ticket);
        self.pump(now, out);
        match self.line.pick_up(ticket) {
            Some(Done::Granted(grant)) => return Looked::Granted(grant),
            Some(Done::Never(verdict)) => {
                self.rejected += 1;
                return Looked::Refused(verdict);
            }
            None => {}
        }
        let Some(want) = self.line.want(tenant, ticket) else { return Looked::Gone };
        let asked = &want.wanted.amounts;
        let firm = self.ledger.firm_wait(now, &[0; Dimension::ALL.len()], asked);
        let left = time_left(now, want.deadline);
        let head = self.line.head(now).is_some_and(|(head, _)| head == ticket);
        if left == 0 || firm > left {
            let verdict = self.given_up(now, &want, head, firm, left);
            self.line.remove(now, tenant, ticket, &mut out.leaving);
            self.rejected += 1;
            self.pump(now, out);
            return Looked::Refused(verdict);
        }
        let nap = match head {
            true if self.slot_free() => self.head_wait(now, &want),
            true => NEVER,
            false => firm,
        };
        let timer = if head { nap } else { NEVER };
        self.line.sleep_until(tenant, ticket, now.saturating_add(timer));
        Looked::Wait { nap: nap.min(left), head }
    }

    /// Why a waiter's time is up.
    #[cold]
    fn given_up(
        &self,
        now: Nanos,
        want: &Want<K>,
        head: bool,
        firm: Nanos,
        left: Nanos,
    ) -> Verdict {
        let asked = &want.wanted.amounts;
        if left > 0 {
            return self.verdict(now, asked, Reason::TooLate, firm);
        }
        if !head {
            return self.verdict(now, asked, Reason::Queued, firm.max(UNKNOWN));
        }
        if !self.slot_free() {
            return Verdict::of(Reason::Busy, firm.max(UNKNOWN));
        }
        self.refused(now, asked)
    }
}

/// [`NEVER`] without a deadline, at the end of time too.
fn time_left(now: Nanos, deadline: Nanos) -> Nanos {
    if deadline == NEVER { NEVER } else { deadline.saturating_sub(now) }
}
