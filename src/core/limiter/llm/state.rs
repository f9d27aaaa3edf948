//! The state behind the limiter's lock, and what every operation does with it.

use std::hash::Hash;

use super::amounts::{Amounts, Dimension};
use super::decision::{Ask, Grant, Looked, Mark, Verdict, Wanted};
use super::estimate::Estimates;
use super::ledger::{self, Ledger};
use super::line::{Done, Line, WHOLE, Want};
use crate::core::clock::{Clock, NEVER, Nanos};
use crate::core::limiter::adaptive::{Adaptive, Call};
use crate::core::limiter::{Outbox, Reason, Ticket, UNKNOWN};
use crate::core::outcome::Outcome;

#[derive(Debug)]
pub(super) struct Inner<K, W> {
    pub(super) ledger: Ledger,
    pub(super) line: Line<K, W>,
    pub(super) estimates: Estimates<K>,
    pub(super) default_output: u64,
    /// Whether money is estimated without a limit on it.
    pub(super) priced: bool,
    pub(super) slots: Option<u32>,
    pub(super) in_use: u32,
    /// Sets `slots`.
    pub(super) adaptive: Option<Box<Adaptive>>,
    /// Time as this limiter has seen it: threads that raced for the lock do not turn it back.
    pub(super) now: Nanos,
    pub(super) next_ticket: Ticket,
    /// Forks and resets so far.
    pub(super) epoch: u32,
    pub(super) granted: u64,
    pub(super) rejected: u64,
    pub(super) settled: u64,
    pub(super) released: u64,
    pub(super) open: u64,
}

impl<K: Eq + Hash + Copy, W: Clone> Inner<K, W> {
    /// Moves on, and brings the window up to date.
    #[inline]
    pub(super) fn tick(&mut self, clock: &Clock) -> Nanos {
        self.now = self.now.max(clock.now());
        self.ledger.expire(self.now);
        self.now
    }

    /// As new, for those who wait too. What is reserved belongs to the time before, and comes back
    /// to nobody.
    pub(super) fn reset(&mut self) {
        self.ledger.reset();
        self.estimates.clear();
        if let Some(Ok(anew)) = self.adaptive.as_ref().map(|found| found.anew()) {
            self.slots = Some(anew.limit());
            self.adaptive = Some(Box::new(anew));
        }
        self.in_use = 0;
        self.open = 0;
        self.epoch += 1;
    }

    pub(super) fn slot_free(&self) -> bool {
        self.slots.is_none_or(|slots| self.in_use < slots)
    }

    /// Fills in the estimates; an estimate is never what makes a request impossible.
    pub(super) fn wanted(&self, ask: &Ask<K>) -> Wanted<K> {
        let output = ask.output.unwrap_or_else(|| self.estimated_output(ask));
        let usd = ask.usd.unwrap_or_else(|| {
            let limit = self.ledger.allowed(Dimension::Usd);
            let counts = self.priced || limit.is_some();
            let known = counts.then(|| self.estimates.usd(ask.model)).flatten().unwrap_or(0);
            known.min(limit.unwrap_or(u64::MAX))
        });
        let Ask { model, tenant, .. } = *ask;
        Wanted { amounts: Amounts::new(1, ask.input, output, usd), model, tenant }
    }

    pub(super) fn estimated_output(&self, ask: &Ask<K>) -> u64 {
        let most = ask.max_output.unwrap_or(u64::MAX);
        let known = self.estimates.output(ask.model);
        let guess = known.unwrap_or(ask.max_output.unwrap_or(self.default_output)).min(most);
        let output = self.ledger.allowed(Dimension::OutputTokens).unwrap_or(u64::MAX);
        let tokens = self.ledger.allowed(Dimension::Tokens).unwrap_or(u64::MAX);
        guess.min(output).min(tokens.saturating_sub(ask.input))
    }

    pub(super) fn verdict(
        &self,
        now: Nanos,
        asked: &Amounts,
        reason: Reason,
        wait: Nanos,
    ) -> Verdict {
        let short = self.ledger.shortage(now, asked).map(|short| short.dimension);
        self.blaming(now, asked, short, Verdict::of(reason, wait))
    }

    pub(super) fn blaming(
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
    pub(super) fn refused(&self, now: Nanos, asked: &Amounts) -> Verdict {
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

    pub(super) fn refuse_never(&self, wanted: &Wanted<K>) -> Result<(), Verdict> {
        match self.ledger.never(&wanted.amounts) {
            None => Ok(()),
            never => {
                let verdict = Verdict::of(Reason::TooLarge, NEVER);
                let verdict = self.blaming(self.now, &wanted.amounts, never, verdict);
                let limit = never.and_then(|dimension| self.ledger.allowed(dimension));
                Err(Verdict { limit: limit.or(verdict.limit), ..verdict })
            }
        }
    }

    pub(super) fn admit(&mut self, now: Nanos, wanted: &Wanted<K>) -> Result<(), Verdict> {
        if self.line.admit(now, wanted.tenant) {
            return Ok(());
        }
        Err(Verdict::of(Reason::TenantTableFull, UNKNOWN))
    }

    pub(super) fn may_join(
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

    pub(super) fn wait_behind(&self, now: Nanos, wanted: &Wanted<K>) -> Nanos {
        self.ledger.firm_wait(now, &self.line.ahead(wanted.tenant), &wanted.amounts)
    }

    /// A grant of a limiter that is switched off.
    pub(super) fn unlogged(&mut self, wanted: Wanted<K>) -> Grant<K> {
        self.granted += 1;
        self.open += 1;
        self.in_use = self.in_use.saturating_add(1);
        let Wanted { amounts, model, tenant } = wanted;
        let used = [0; Dimension::ALL.len()];
        let call = Call::new(self.now, self.in_use);
        let mark = Mark { number: None, used, epoch: self.epoch, call };
        Grant { mark, amounts, model, tenant }
    }

    /// Takes what has been found to fit.
    pub(super) fn grant(&mut self, now: Nanos, wanted: &Wanted<K>) -> Grant<K> {
        let Wanted { amounts, model, tenant } = *wanted;
        let number = Some(self.ledger.enter(now, amounts));
        self.in_use = self.in_use.saturating_add(1);
        self.open += 1;
        let call = Call::new(now, self.in_use);
        let mark = Mark { number, used: self.ledger.all_used(), epoch: self.epoch, call };
        Grant { mark, amounts, model, tenant }
    }

    /// Ends a reservation at what it took; false if it is another process's.
    pub(super) fn close(&mut self, now: Nanos, grant: &Grant<K>, actual: &Amounts) -> bool {
        if grant.mark.epoch != self.epoch {
            return false;
        }
        self.open = self.open.saturating_sub(1);
        self.in_use = self.in_use.saturating_sub(1);
        if let Some(number) = grant.mark.number {
            self.ledger.settle(now, number, &grant.amounts, actual);
            if self.line.is_fair() {
                let served = self.ledger.share(&grant.amounts, WHOLE);
                let taken = self.ledger.share(actual, WHOLE);
                self.line.correct(now, grant.tenant, served, taken);
            }
        }
        true
    }

    /// A call's first token has come.
    pub(super) fn first_token(&mut self, now: Nanos, call: &mut Call) {
        match &mut self.adaptive {
            None => call.first = Some(now),
            Some(adaptive) => {
                adaptive.first_token(call, now);
                self.slots = Some(adaptive.limit());
            }
        }
    }

    /// A call of ours has ended so.
    pub(super) fn learn(&mut self, now: Nanos, call: &Call, outcome: Outcome, tokens: Option<u64>) {
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.ended(call, outcome, tokens, now);
            self.slots = Some(adaptive.limit());
        }
    }

    /// As if it had not been granted.
    pub(super) fn undo(&mut self, now: Nanos, grant: Grant<K>) {
        if self.close(now, &grant, &Amounts::NONE) {
            self.granted = self.granted.saturating_sub(1);
        }
    }

    /// Grants from the head on for as long as it goes.
    pub(super) fn pump(&mut self, now: Nanos, out: &mut Outbox<K, W>) {
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
    pub(super) fn head_wait(&self, now: Nanos, want: &Want<K>) -> Nanos {
        let short = self.ledger.shortage(now, &want.wanted.amounts);
        short.map_or(0, |short| short.wait).max(self.ledger.pause(now)).max(1)
    }

    /// A waiter looks at its ticket.
    pub(super) fn look(
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
        let sure = head && self.slot_free();
        let nap = if sure { self.head_wait(now, &want) } else { firm };
        let timer = if sure { now.saturating_add(nap) } else { NEVER };
        self.line.sleep_until(tenant, ticket, timer);
        Looked::Wait { nap, sure }
    }

    /// Why a waiter's time is up.
    #[cold]
    pub(super) fn given_up(
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
