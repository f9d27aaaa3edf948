//! One key's state: its rule, its slots and its line.

use super::decision::{Decision, Reason};
use super::lane::{Leaving, Ticket};
use super::queue::{Done, Progress, Queue, Want};
use super::rule::Rule;
use super::shared::{Due, Leased};
use crate::core::clock::{NEVER, Nanos, SECOND};

/// What is reported when only a slot is missing: nobody knows when one will be
/// free, and zero would invite a busy loop.
pub const UNKNOWN: Nanos = SECOND / 1000;

#[derive(Debug)]
pub(super) struct State<W> {
    pub(super) rule: Rule,
    slots: Option<u32>,
    in_use: u32,
    /// Made for the first waiter: most keys of a keyed limiter never have one.
    queue: Option<Box<Queue<W>>>,
}

impl<W: Clone> State<W> {
    pub(super) fn new(rule: Rule, slots: Option<u32>) -> Self {
        Self { rule, slots, in_use: 0, queue: None }
    }

    pub(super) fn slots(&self) -> Option<u32> {
        self.slots
    }

    /// Changes the number of slots; those in use beyond it stay in use.
    pub(super) fn set_slots(&mut self, now: Nanos, slots: u32, out: &mut Leaving<W>) {
        if self.slots.replace(slots).is_none_or(|before| before < slots) {
            self.pump(now, out);
        }
    }

    fn slot_free(&self) -> bool {
        self.slots.is_none_or(|slots| self.in_use < slots)
    }

    /// Whose turn it is.
    fn head(&self) -> Option<(Ticket, Want)> {
        self.queue.as_ref()?.head(self.slot_free())
    }

    /// Takes `cost` permits, and a slot if asked to, if nobody waits for them.
    #[inline]
    pub(super) fn try_acquire(
        &mut self,
        now: Nanos,
        cost: u32,
        slot: bool,
        out: &mut Leaving<W>,
    ) -> Decision {
        if self.queue.is_some() {
            // A head whose time has come goes first.
            self.pump(now, out);
            let others_want_slot = self.queue.as_ref().is_some_and(|queue| queue.wants_slot());
            if self.head().is_some() || slot && others_want_slot {
                return self.refuse_behind(now, cost);
            }
        }
        if slot && !self.slot_free() {
            let wait = self.rule.wait(now, cost);
            return Decision::refused(Reason::Busy, wait.max(UNKNOWN));
        }
        let decision = self.rule.try_take(now, cost);
        if decision.granted && slot {
            self.take_slot();
        }
        decision
    }

    #[cold]
    fn refuse_behind(&mut self, now: Nanos, cost: u32) -> Decision {
        if self.rule.wait(now, cost) == NEVER {
            // Refused whatever the line: lets the rule name the limit.
            return self.rule.try_take(now, cost);
        }
        if let Some(refused) = self.rule.lease().and_then(|lease| lease.refuse_behind(now)) {
            return refused;
        }
        Decision::refused(Reason::Queued, self.eta(now, cost).max(UNKNOWN))
    }

    /// A lower bound of the time until a newcomer's `cost` is granted; zero: now.
    pub(super) fn eta(&mut self, now: Nanos, cost: u32) -> Nanos {
        let slot_free = self.slot_free();
        let ahead = self.queue.as_ref().map_or(0, |queue| queue.cost(slot_free));
        let wait = self.rule.wait_behind(now, ahead, cost);
        if self.head().is_some() { wait.max(UNKNOWN) } else { wait }
    }

    /// The time until `cost` would be granted to the head of the line.
    pub(super) fn wait(&mut self, now: Nanos, cost: u32) -> Nanos {
        self.rule.wait(now, cost)
    }

    /// Joins the line.
    pub(super) fn enqueue(&mut self, ticket: Ticket, want: Want, waker: W) {
        self.queue.get_or_insert_with(|| Box::new(Queue::new())).push(ticket, want, waker);
    }

    /// Grants from the head on for as long as it goes.
    pub(super) fn pump(&mut self, now: Nanos, out: &mut Leaving<W>) {
        while let Some((_, want)) = self.head() {
            let decision = self.rule.try_take(now, want.cost);
            if decision.granted && want.slot {
                self.take_slot();
            }
            let Some(queue) = &mut self.queue else { return };
            if decision.granted {
                queue.finish_first(want.slot, Done::Granted(now, want), out);
            } else if decision.is_never() {
                queue.finish_first(want.slot, Done::Never, out);
            } else {
                let at = match self.rule.lease() {
                    Some(lease) => lease.look_after(now, want.cost),
                    None => decision.retry_after,
                };
                let at = now.saturating_add(at);
                queue.wake_first_by(want.slot, at, out);
                return;
            }
        }
    }

    /// A waiter looks at its ticket. [`Progress::Granted`] and
    /// [`Progress::Never`] are handed out once.
    pub(super) fn poll(&mut self, now: Nanos, ticket: Ticket, out: &mut Leaving<W>) -> Progress {
        let Some(queue) = &mut self.queue else { return Progress::Gone };
        queue.looking(ticket);
        self.pump(now, out);
        let Some(queue) = &mut self.queue else { return Progress::Gone };
        match queue.pick_up(ticket) {
            Some(Done::Granted(..)) => return self.tidied(Progress::Granted),
            Some(Done::Never) => return self.tidied(Progress::Never),
            None => {}
        }
        let mut delay = NEVER;
        if let Some((head, want)) = self.head()
            && head == ticket
        {
            delay = self.rule.look_after(now, want.cost);
        }
        let Some(queue) = &mut self.queue else { return Progress::Gone };
        if queue.sleep_until(ticket, now.saturating_add(delay)) {
            Progress::Wait(delay)
        } else {
            Progress::Gone
        }
    }

    /// Leaves the line, or gives back what was granted and not picked up. False
    /// if the ticket was done.
    pub(super) fn cancel(&mut self, now: Nanos, ticket: Ticket, out: &mut Leaving<W>) -> bool {
        let Some(queue) = &mut self.queue else { return false };
        match queue.pick_up(ticket) {
            Some(Done::Granted(at, want)) => {
                self.rule.refund(now, at, want.cost);
                if want.slot {
                    self.in_use = self.in_use.saturating_sub(1);
                }
            }
            Some(Done::Never) => {}
            None => {
                if !queue.remove(ticket, out) {
                    return false;
                }
            }
        }
        self.pump(now, out);
        self.tidied(true)
    }

    /// Gives back a grant that nobody got.
    pub(super) fn undo(
        &mut self,
        now: Nanos,
        at: Nanos,
        cost: u32,
        slot: bool,
        out: &mut Leaving<W>,
    ) {
        self.rule.refund(now, at, cost);
        if slot {
            self.in_use = self.in_use.saturating_sub(1);
        }
        self.pump(now, out);
    }

    fn tidied<T>(&mut self, answer: T) -> T {
        if self.queue.as_ref().is_some_and(|queue| queue.tickets() == 0) {
            self.queue = None;
        }
        answer
    }

    pub(super) fn wake_overdue(&mut self, now: Nanos, out: &mut Leaving<W>) {
        self.pump(now, out);
        if let Some(queue) = &mut self.queue {
            queue.wake_overdue(now, out);
        }
    }

    fn take_slot(&mut self) {
        self.in_use = self.in_use.saturating_add(1);
    }

    /// Takes a slot whatever the bound; for a limiter that is switched off.
    pub(super) fn force_slot(&mut self) {
        self.take_slot();
    }

    /// Returns a slot; false if none was taken.
    pub(super) fn release_slot(&mut self, now: Nanos, out: &mut Leaving<W>) -> bool {
        if self.in_use == 0 {
            return false;
        }
        self.in_use -= 1;
        self.pump(now, out);
        true
    }

    /// What is to be asked of the store that the limits are shared in.
    pub(super) fn due(&mut self, now: Nanos) -> Due {
        let waiting = self.queue.as_ref().map_or(0, |queue| queue.cost(self.slot_free()));
        let head = self.head().map_or(0, |(_, want)| want.cost);
        self.with_lease(|lease| lease.due(now, waiting, head)).unwrap_or(Due::Quiet)
    }

    /// Calls `body` with what is leased, if the limits are shared.
    pub(super) fn with_lease<T>(&mut self, body: impl FnOnce(&mut Leased) -> T) -> Option<T> {
        self.rule.lease().map(body)
    }

    /// Tickets that are not done: waiting, or granted and not picked up.
    pub(super) fn tickets(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.tickets())
    }

    pub(super) fn concurrent(&self) -> u32 {
        self.in_use
    }

    /// When nothing in here matters any more; `None` while somebody waits.
    pub(super) fn idle_at(&self) -> Option<Nanos> {
        self.queue.is_none().then(|| self.rule.idle_at())
    }

    /// The line and the slots belong to threads and loops that a fork left behind.
    pub(super) fn forget_waiters(&mut self, out: &mut Leaving<W>) {
        self.in_use = 0;
        if let Some(queue) = self.queue.take() {
            queue.clear(out);
        }
    }
}
