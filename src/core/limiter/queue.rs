//! The line of those who wait: first in, first out.
//!
//! A waiter is a ticket and a waker. Only the head needs a timer; everybody
//! else sleeps until woken, and is woken once: when the permit is there, or
//! when it has become the head and must set the timer. A wake that has not been
//! answered by a look at the ticket is not repeated.
//!
//! A permit that was granted but not yet picked up lives here too, so that
//! cancelling at that moment gives it back.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::lane::{Lane, Leaving, Ticket, Waiter};
use crate::core::clock::{NEVER, Nanos};

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

/// A ticket that left the line and was not yet picked up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Done {
    /// Granted at this time.
    Granted(Nanos, Want),
    Never,
}

/// One kind's waiters and all their costs.
#[derive(Debug)]
struct Costed<W> {
    lane: Lane<Want, W>,
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
    plain: Costed<W>,
    slotted: Costed<W>,
    done: HashMap<Ticket, Done, FixedState>,
    /// No deadline in the line is earlier.
    earliest_deadline: Nanos,
}

impl<W: Clone> Costed<W> {
    fn new() -> Self {
        Self { lane: Lane::new(), cost: 0 }
    }

    fn push(&mut self, ticket: Ticket, want: Want, waker: W) {
        self.cost = self.cost.saturating_add(u64::from(want.cost));
        self.lane.push(ticket, want, waker);
    }

    fn front(&self) -> Option<(Ticket, Want)> {
        self.lane.front().map(|waiter| (waiter.ticket, waiter.want))
    }

    fn left(&mut self, waiter: &Waiter<Want, W>) {
        self.cost = self.cost.saturating_sub(u64::from(waiter.want.cost));
    }

    fn pop_front(&mut self) -> Option<Waiter<Want, W>> {
        let waiter = self.lane.pop_front()?;
        self.left(&waiter);
        Some(waiter)
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Waiter<Want, W>> {
        let waiter = self.lane.remove(ticket)?;
        self.left(&waiter);
        Some(waiter)
    }
}

impl<W: Clone> Queue<W> {
    pub(super) fn new() -> Self {
        Self {
            plain: Costed::new(),
            slotted: Costed::new(),
            done: HashMap::with_hasher(FixedState::default()),
            earliest_deadline: NEVER,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.plain.lane.len() + self.slotted.lane.len()
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
        self.kind(want.slot).push(ticket, want, waker);
    }

    fn kind(&mut self, slot: bool) -> &mut Costed<W> {
        if slot { &mut self.slotted } else { &mut self.plain }
    }

    /// Whether somebody waits for a slot.
    pub(super) fn wants_slot(&self) -> bool {
        !self.slotted.lane.is_empty()
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
        if let Some(first) = self.kind(slot).pop_front() {
            self.done.insert(first.ticket, done);
            first.answered(out);
        }
    }

    /// Sees to it that the first of a lane looks again at `at`.
    pub(super) fn wake_first_by(&mut self, slot: bool, at: Nanos, out: &mut Leaving<W>) {
        self.kind(slot).lane.wake_first_by(at, out);
    }

    /// The waiter is awake and looking: no wake is due before it has seen the answer.
    pub(super) fn looking(&mut self, ticket: Ticket) {
        self.plain.lane.looking(ticket);
        self.slotted.lane.looking(ticket);
    }

    /// The waiter goes to sleep until `at` or a wake; false if it is not in the line.
    pub(super) fn sleep_until(&mut self, ticket: Ticket, at: Nanos) -> bool {
        self.plain.lane.sleep_until(ticket, at) || self.slotted.lane.sleep_until(ticket, at)
    }

    pub(super) fn pick_up(&mut self, ticket: Ticket) -> Option<Done> {
        if self.done.is_empty() { None } else { self.done.remove(&ticket) }
    }

    /// Takes a waiter out of the line.
    pub(super) fn remove(&mut self, ticket: Ticket, out: &mut Leaving<W>) -> bool {
        let waiter = self.plain.remove(ticket).or_else(|| self.slotted.remove(ticket));
        waiter.map(|waiter| waiter.buried(out)).is_some()
    }

    /// Wakes those whose deadline has passed; for clocks that jump.
    pub(super) fn wake_overdue(&mut self, now: Nanos, out: &mut Leaving<W>) {
        if now < self.earliest_deadline {
            return;
        }
        self.earliest_deadline = NEVER;
        for waiter in self.plain.lane.iter_mut().chain(self.slotted.lane.iter_mut()) {
            if waiter.want.deadline > now {
                self.earliest_deadline = self.earliest_deadline.min(waiter.want.deadline);
            } else {
                waiter.wake(out);
            }
        }
    }

    /// Hands everybody out.
    pub(super) fn clear(self, out: &mut Leaving<W>) {
        self.plain.lane.clear(out);
        self.slotted.lane.clear(out);
    }
}
