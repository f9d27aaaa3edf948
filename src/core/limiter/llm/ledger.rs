//! Budgets against what was reserved and spent: what fits, and if not, when.

use super::amounts::{Amounts, DIMENSIONS, Dimension, Totals};
use super::log::{Number, SpendLog, View};
use super::rate::{Rate, RateStats};
use crate::core::clock::{NEVER, Nanos};

/// Requests per window where nothing else bounds them: what a log of 60 MB holds.
pub(super) const MOST_REQUESTS: u64 = 1 << 20;

/// What the provider says of one dimension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// What it allows per window; zero is taken for garbage.
    pub limit: Option<u64>,
    /// What it would still allow now.
    pub remaining: Option<u64>,
    /// When it allows all again, from now on.
    pub reset: Option<Nanos>,
}

/// Units that somebody else has used, as far as is known.
#[derive(Clone, Copy, Debug, Default)]
struct Foreign {
    amount: u64,
    until: Nanos,
    /// The entry that the provider knew of when it said so.
    as_of: Number,
}

/// Why something does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) dimension: Dimension,
    pub(super) wait: Nanos,
}

/// All dimensions over one window.
#[derive(Debug)]
pub(super) struct Ledger {
    log: SpendLog,
    configured: [Option<u64>; DIMENSIONS],
    learned: [Option<u64>; DIMENSIONS],
    foreign: [Foreign; DIMENSIONS],
    /// Nothing is granted before.
    paused_until: Nanos,
    /// Cuts what is allowed where the provider does not tell its limits.
    rate: Option<Rate>,
}

impl Ledger {
    pub(super) fn new(
        period: Nanos,
        configured: [Option<u64>; DIMENSIONS],
        adaptive: bool,
    ) -> Self {
        Self {
            log: SpendLog::new(period),
            configured,
            learned: [None; DIMENSIONS],
            foreign: [Foreign::default(); DIMENSIONS],
            paused_until: 0,
            rate: adaptive.then(Rate::default),
        }
    }

    /// As new, under the limits that are set now.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.log.period(), self.configured, self.rate.is_some());
    }

    pub(super) fn configure(&mut self, configured: [Option<u64>; DIMENSIONS]) {
        self.configured = configured;
    }

    pub(super) fn configured(&self) -> &[Option<u64>; DIMENSIONS] {
        &self.configured
    }

    /// What is allowed per window now: [`Ledger::allowed`], or less after a refusal.
    pub(super) fn limit(&self, dimension: Dimension) -> Option<u64> {
        let cap = self.cap(dimension.index());
        let cut = (cap < self.bound(dimension.index())).then_some(cap);
        cut.or(self.allowed(dimension))
    }

    /// What may be allowed per window: ours or what the provider told, whichever is less.
    pub(super) fn allowed(&self, dimension: Dimension) -> Option<u64> {
        let d = dimension.index();
        match (self.configured[d], self.learned[d]) {
            (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
            (ours, theirs) => ours.or(theirs),
        }
    }

    fn bound(&self, d: usize) -> u64 {
        let unlimited = if d == Dimension::Requests.index() { MOST_REQUESTS } else { u64::MAX };
        let ours = self.configured[d].unwrap_or(unlimited);
        self.learned[d].map_or(ours, |theirs| ours.min(theirs))
    }

    /// What is allowed now, of [`Ledger::bound`]. A request that is larger fits when nothing else
    /// is used.
    fn cap(&self, d: usize) -> u64 {
        let bound = self.bound(d);
        let rate = self.rate.as_ref().filter(|_| !self.is_told());
        rate.and_then(|rate| rate.cap(d, &self.configured)).map_or(bound, |cap| cap.min(bound))
    }

    /// Whether the provider has told a limit of its own, which counts for more than a guess.
    fn is_told(&self) -> bool {
        self.learned.iter().any(Option::is_some)
    }

    /// Whether limits per window are found by refusals.
    pub(super) fn finds_itself(&self) -> bool {
        self.rate.is_some()
    }

    /// A request that began then was refused for its rate.
    pub(super) fn refused(&mut self, begun: Nanos, now: Nanos) {
        if !self.is_told()
            && let Some(rate) = &mut self.rate
        {
            rate.refused(&self.configured, self.log.used(View::Reserved), begun, now);
        }
    }

    /// A request that began then was answered.
    pub(super) fn went_well(&mut self, begun: Nanos) {
        if let Some(rate) = &mut self.rate {
            rate.went_well(&self.configured, self.log.used(View::Reserved), begun);
        }
    }

    pub(super) fn rate_stats(&self) -> Option<RateStats> {
        self.rate.as_ref().map(|rate| rate.stats(self.is_told()))
    }

    /// Whether somebody has to keep within this dimension.
    fn limited(&self, d: usize) -> bool {
        self.configured[d].is_some()
            || self.learned[d].is_some()
            || d == Dimension::Requests.index()
    }

    #[inline]
    pub(super) fn expire(&mut self, now: Nanos) {
        self.log.expire(now);
    }

    fn foreign(&self, now: Nanos, d: usize) -> u64 {
        let foreign = self.foreign[d];
        if now < foreign.until { foreign.amount } else { 0 }
    }

    /// The dimension that can never grant so much.
    pub(super) fn never(&self, ask: &Amounts) -> Option<Dimension> {
        Dimension::ALL.into_iter().find(|d| ask.get(*d) > self.bound(d.index()))
    }

    /// Whether it fits now; the window is up to date.
    #[inline]
    pub(super) fn fits(&self, now: Nanos, ask: &Amounts) -> bool {
        let used = self.log.used(View::Reserved);
        now >= self.paused_until
            && (0..DIMENSIONS).all(|d| {
                let cap = self.cap(d);
                let ask = if cap < self.bound(d) { ask.0[d].min(cap) } else { ask.0[d] };
                let all = used[d] + u128::from(self.foreign(now, d)) + u128::from(ask);
                !self.limited(d) || all <= u128::from(cap)
            })
    }

    /// Enters a reservation.
    pub(super) fn enter(&mut self, now: Nanos, amounts: Amounts) -> Number {
        self.log.push(now, amounts, true)
    }

    /// Settles a reservation at `actual`; what exceeds it counts from now on. Where there is no
    /// limit nobody reserves with care: there it counts at its own time, and needs no entry.
    pub(super) fn settle(
        &mut self,
        now: Nanos,
        number: Number,
        reserved: &Amounts,
        actual: &Amounts,
    ) {
        let mut inside = actual.at_most(reserved);
        let mut over = actual.above(reserved);
        for d in (0..DIMENSIONS).filter(|&d| !self.limited(d)) {
            inside.0[d] = actual.0[d];
            over.0[d] = 0;
        }
        self.log.settle(number, inside);
        if !over.is_none() {
            self.log.push(now, over, false);
        }
    }

    /// The time until `ask` would fit if nothing came back and nobody else came, and what
    /// makes it wait longest; `None` if it fits.
    pub(super) fn shortage(&self, now: Nanos, ask: &Amounts) -> Option<Shortage> {
        let mut worst: Option<Shortage> = None;
        for dimension in Dimension::ALL {
            let d = dimension.index();
            let wait = self.wait(now, d, u128::from(ask.0[d]), View::Reserved);
            if wait > worst.map_or(0, |worst| worst.wait) {
                worst = Some(Shortage { dimension, wait });
            }
        }
        worst
    }

    /// A lower bound of the time until `ask` fits after those that take `ahead`, whatever
    /// open reservations give back: a full window repeats itself every period.
    pub(super) fn firm_wait(&self, now: Nanos, ahead: &Totals, ask: &Amounts) -> Nanos {
        let mut worst = self.pause(now);
        for (d, &ahead) in ahead.iter().enumerate() {
            if self.limited(d) {
                worst = worst.max(self.wait_for_many(now, d, ahead + u128::from(ask.0[d])));
            }
        }
        worst
    }

    fn wait_for_many(&self, now: Nanos, d: usize, all: u128) -> Nanos {
        let bound = u128::from(self.bound(d)).max(1);
        let rounds = all.saturating_sub(1) / bound;
        let rest = all - rounds * bound;
        let rounds = u64::try_from(rounds).unwrap_or(u64::MAX);
        let wait = self.wait(now, d, rest, View::Firm);
        wait.saturating_add(rounds.saturating_mul(self.log.period()))
    }

    /// The time until `ask` of dimension `d` fits; [`NEVER`] if it is more than its limit.
    fn wait(&self, now: Nanos, d: usize, ask: u128, view: View) -> Nanos {
        if !self.limited(d) {
            return 0;
        }
        let mut bound = u128::from(self.bound(d));
        let mut ask = ask;
        if ask > bound {
            return NEVER;
        }
        if view == View::Reserved {
            // Not in what is sure: it may grow back at any time.
            let cap = u128::from(self.cap(d));
            ask = if cap < bound { ask.min(cap) } else { ask };
            bound = cap;
        }
        let used = self.log.used(view)[d];
        let until = |others: u128| {
            let missing = (used + others + ask).saturating_sub(bound);
            self.log.until_left(now, d, missing, view)
        };
        let others = u128::from(self.foreign(now, d));
        if others == 0 {
            return until(0);
        }
        // Before the provider's reset, or with it.
        until(others).min(until(0).max(self.foreign[d].until - now))
    }

    /// The time until the pause is over.
    pub(super) fn pause(&self, now: Nanos) -> Nanos {
        self.paused_until.saturating_sub(now)
    }

    /// Grants nothing before `until`; a pause that lasts longer stays.
    pub(super) fn pause_until(&mut self, until: Nanos) {
        self.paused_until = self.paused_until.max(until);
    }

    /// Ends a pause.
    pub(super) fn resume(&mut self) {
        self.paused_until = 0;
    }

    /// What could be granted now.
    pub(super) fn left(&self, now: Nanos, dimension: Dimension) -> u64 {
        let d = dimension.index();
        let used = self.log.used(View::Reserved)[d] + u128::from(self.foreign(now, d));
        u64::try_from(u128::from(self.cap(d)).saturating_sub(used)).unwrap_or(u64::MAX)
    }

    /// Reserved and spent of each dimension; for [`Ledger::learn`].
    pub(super) fn all_used(&self) -> Totals {
        *self.log.used(View::Reserved)
    }

    /// The largest part of a limit that so much is, of `whole`; at least 1.
    pub(super) fn share(&self, amounts: &Amounts, whole: u128) -> u128 {
        let part = |d: usize| {
            let bound = u128::from(self.bound(d)).max(1);
            if self.limited(d) { u128::from(amounts.0[d]) * whole / bound } else { 0 }
        };
        (0..DIMENSIONS).map(part).max().unwrap_or(0).max(1)
    }

    /// Reserved, spent and not yet expired.
    pub(super) fn used(&self, dimension: Dimension) -> u128 {
        self.log.used(View::Reserved)[dimension.index()]
    }

    /// What has to leave the window before anything is granted.
    pub(super) fn debt(&self, dimension: Dimension) -> u128 {
        let d = dimension.index();
        let used = self.log.used(View::Reserved)[d];
        if self.limited(d) { used.saturating_sub(u128::from(self.cap(d))) } else { 0 }
    }

    /// Keeps to what the provider says. `seen` is what we had used when the provider judged
    /// the request that it answers, and that request's number; without it the answer is
    /// taken as of now.
    pub(super) fn learn(
        &mut self,
        now: Nanos,
        dimension: Dimension,
        told: &Told,
        seen: Option<(Totals, Number)>,
    ) {
        let d = dimension.index();
        if let Some(limit) = told.limit.filter(|&limit| limit > 0) {
            self.learned[d] = Some(limit);
        }
        let Some(remaining) = told.remaining else { return };
        let (used, as_of) = seen.unwrap_or((self.all_used(), self.log.next()));
        // Answers come back in another order than their requests went.
        if as_of < self.foreign[d].as_of && now < self.foreign[d].until {
            return;
        }
        let left = u128::from(self.bound(d)).saturating_sub(used[d]);
        let amount = left.saturating_sub(u128::from(remaining));
        let amount = u64::try_from(amount).unwrap_or(u64::MAX);
        // Nothing in a window lasts longer than the window.
        let reset = told.reset.unwrap_or(self.log.period()).min(self.log.period());
        self.foreign[d] = Foreign { amount, until: now.saturating_add(reset), as_of };
    }
}
