//! The line of those who wait: first in, first out.
//!
//! A waiter is a ticket and a waker. Only the head needs a timer; everybody
//! else sleeps until woken, and is woken once: when the permit is there, or
//! when it has become the head and must set the timer. A wake that has not been
//! answered by a look at the ticket is not repeated.
//!
//! A permit that was granted but not yet picked up lives here too, so that
//! cancelling at that moment gives it back.

use std::collections::VecDeque;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::core::clock::{NEVER, Nanos};

/// Names one waiter; never used twice.
pub type Ticket = u64;

/// What a waiter finds when it looks at its ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The permit (and slot) is the caller's; the ticket is done.
    Granted,
    /// Look again after this time, or when woken. [`NEVER`]: when woken.
    Wait(Nanos),
    /// The limits have become smaller than the cost; the ticket is done.
    Never,
    /// No such ticket: it is done, or was dropped by a fork.
    Gone,
}

/// What a waiter wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub(super) cost: u32,
    /// A concurrency slot together with the permit.
    pub(super) slot: bool,
    /// When the waiter gives up; it must be woken then on clocks that nobody else watches.
    pub(super) deadline: Nanos,
}

/// Wakers on their way out of the lock.
#[derive(Debug)]
pub(super) struct Leaving<W> {
    /// To be called.
    pub(super) wakes: Vec<W>,
    /// Only to be dropped, which may run foreign code too.
    pub(super) buried: Vec<W>,
}

#[derive(Debug)]
struct Waiter<W> {
    ticket: Ticket,
    want: Want,
    /// A wake is on its way; the next look at the ticket clears it.
    woken: bool,
    /// When the waiter will look again by itself.
    timer: Nanos,
    waker: W,
}

/// A ticket that left the line and was not yet picked up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Done {
    /// Granted at this time.
    Granted(Nanos, Want),
    Never,
}

/// Waiters of one kind, oldest first.
#[derive(Debug)]
struct Lane<W> {
    waiting: VecDeque<Waiter<W>>,
    /// All costs in the lane.
    cost: u64,
}

/// Both lanes are one line: whoever came first goes first, whatever it wants.
///
/// Those who want a slot stand apart only so that they can be passed over
/// while there is none. Else the line deadlocks: the holder of the last slot
/// asks for another permit, stands behind somebody who wants that slot, and
/// each waits for the other.
#[derive(Debug)]
pub(super) struct Queue<W> {
    plain: Lane<W>,
    slotted: Lane<W>,
    done: HashMap<Ticket, Done, FixedState>,
    /// No deadline in the line is earlier.
    earliest_deadline: Nanos,
}

impl<W: Clone> Lane<W> {
    fn new() -> Self {
        Self { waiting: VecDeque::new(), cost: 0 }
    }

    fn push(&mut self, waiter: Waiter<W>) {
        self.cost = self.cost.saturating_add(u64::from(waiter.want.cost));
        self.waiting.push_back(waiter);
    }

    fn front(&self) -> Option<(Ticket, Want)> {
        self.waiting.front().map(|waiter| (waiter.ticket, waiter.want))
    }

    fn index(&self, ticket: Ticket) -> Option<usize> {
        self.waiting.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }

    fn find(&mut self, ticket: Ticket) -> Option<&mut Waiter<W>> {
        let index = self.index(ticket)?;
        self.waiting.get_mut(index)
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Waiter<W>> {
        let index = self.index(ticket)?;
        let waiter = self.waiting.remove(index)?;
        self.cost = self.cost.saturating_sub(u64::from(waiter.want.cost));
        Some(waiter)
    }
}

impl<W: Clone> Queue<W> {
    pub(super) fn new() -> Self {
        Self {
            plain: Lane::new(),
            slotted: Lane::new(),
            done: HashMap::with_hasher(FixedState::default()),
            earliest_deadline: NEVER,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.plain.waiting.len() + self.slotted.waiting.len()
    }

    /// All costs that go before a newcomer's.
    pub(super) fn cost(&self, slot_free: bool) -> u64 {
        let slotted = if slot_free { self.slotted.cost } else { 0 };
        self.plain.cost.saturating_add(slotted)
    }

    /// Those who wait and those who have something to pick up.
    pub(super) fn tickets(&self) -> usize {
        self.len() + self.done.len()
    }

    pub(super) fn push(&mut self, ticket: Ticket, want: Want, waker: W) {
        self.earliest_deadline = self.earliest_deadline.min(want.deadline);
        // The caller looks at its ticket before it sleeps.
        let waiter = Waiter { ticket, want, woken: true, timer: NEVER, waker };
        self.lane(want.slot).push(waiter);
    }

    fn lane(&mut self, slot: bool) -> &mut Lane<W> {
        if slot { &mut self.slotted } else { &mut self.plain }
    }

    /// Whether somebody waits for a slot.
    pub(super) fn wants_slot(&self) -> bool {
        !self.slotted.waiting.is_empty()
    }

    /// Whose turn it is: the oldest, passing over those for whom there is no slot.
    pub(super) fn head(&self, slot_free: bool) -> Option<(Ticket, Want)> {
        let slotted = if slot_free { self.slotted.front() } else { None };
        match (self.plain.front(), slotted) {
            (Some(plain), Some(slotted)) if slotted.0 < plain.0 => Some(slotted),
            (Some(plain), _) => Some(plain),
            (None, slotted) => slotted,
        }
    }

    /// Moves the first of a lane out of the line; its owner learns by a wake.
    pub(super) fn finish_first(&mut self, slot: bool, done: Done, out: &mut Leaving<W>) {
        let lane = self.lane(slot);
        if let Some(first) = lane.waiting.pop_front() {
            lane.cost = lane.cost.saturating_sub(u64::from(first.want.cost));
            self.done.insert(first.ticket, done);
            let exit = if first.woken { &mut out.buried } else { &mut out.wakes };
            exit.push(first.waker);
        }
    }

    /// Sees to it that the first of a lane looks again at `at`.
    pub(super) fn wake_first_by(&mut self, slot: bool, at: Nanos, out: &mut Leaving<W>) {
        if let Some(first) = self.lane(slot).waiting.front_mut()
            && first.timer > at
            && !first.woken
        {
            first.woken = true;
            out.wakes.push(first.waker.clone());
        }
    }

    /// The waiter is awake and looking: no wake is due before it has seen the answer.
    pub(super) fn looking(&mut self, ticket: Ticket) {
        if let Some(waiter) = self.find(ticket) {
            waiter.woken = true;
        }
    }

    /// The waiter goes to sleep until `at` or a wake; false if it is not in the line.
    pub(super) fn sleep_until(&mut self, ticket: Ticket, at: Nanos) -> bool {
        let Some(waiter) = self.find(ticket) else { return false };
        waiter.woken = false;
        waiter.timer = at;
        true
    }

    pub(super) fn pick_up(&mut self, ticket: Ticket) -> Option<Done> {
        if self.done.is_empty() { None } else { self.done.remove(&ticket) }
    }

    /// Takes a waiter out of the line.
    pub(super) fn remove(&mut self, ticket: Ticket, out: &mut Leaving<W>) -> bool {
        let waiter = self.plain.remove(ticket).or_else(|| self.slotted.remove(ticket));
        waiter.map(|waiter| out.buried.push(waiter.waker)).is_some()
    }

    /// Wakes those whose deadline has passed; for clocks that jump.
    pub(super) fn wake_overdue(&mut self, now: Nanos, out: &mut Leaving<W>) {
        if now < self.earliest_deadline {
            return;
        }
        self.earliest_deadline = NEVER;
        for waiter in self.plain.waiting.iter_mut().chain(&mut self.slotted.waiting) {
            if waiter.want.deadline > now {
                self.earliest_deadline = self.earliest_deadline.min(waiter.want.deadline);
            } else if !waiter.woken {
                waiter.woken = true;
                out.wakes.push(waiter.waker.clone());
            }
        }
    }

    /// Hands everybody out.
    pub(super) fn clear(self, out: &mut Leaving<W>) {
        let all = self.plain.waiting.into_iter().chain(self.slotted.waiting);
        out.buried.extend(all.map(|waiter| waiter.waker));
    }

    fn find(&mut self, ticket: Ticket) -> Option<&mut Waiter<W>> {
        match self.plain.find(ticket) {
            None => self.slotted.find(ticket),
            found => found,
        }
    }
}
