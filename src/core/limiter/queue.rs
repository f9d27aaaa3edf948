//! The line of those who wait: strictly first in, first out.
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

#[derive(Debug)]
pub(super) struct Queue<W> {
    waiting: VecDeque<Waiter<W>>,
    done: HashMap<Ticket, Done, FixedState>,
    /// All costs in the line.
    cost: u64,
    /// No deadline in the line is earlier.
    earliest_deadline: Nanos,
}

impl<W: Clone> Queue<W> {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            done: HashMap::with_hasher(FixedState::default()),
            cost: 0,
            earliest_deadline: NEVER,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// All costs in the line together.
    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    /// Those who wait and those who have something to pick up.
    pub(super) fn tickets(&self) -> usize {
        self.waiting.len() + self.done.len()
    }

    pub(super) fn push(&mut self, ticket: Ticket, want: Want, waker: W) {
        self.cost = self.cost.saturating_add(u64::from(want.cost));
        self.earliest_deadline = self.earliest_deadline.min(want.deadline);
        // The caller looks at its ticket before it sleeps.
        self.waiting.push_back(Waiter { ticket, want, woken: true, timer: NEVER, waker });
    }

    pub(super) fn head(&self) -> Option<Want> {
        self.waiting.front().map(|head| head.want)
    }

    pub(super) fn head_ticket(&self) -> Option<Ticket> {
        self.waiting.front().map(|head| head.ticket)
    }

    /// Moves the head out of the line; its owner learns by a wake.
    pub(super) fn finish_head(&mut self, done: Done, out: &mut Leaving<W>) {
        if let Some(head) = self.waiting.pop_front() {
            self.cost = self.cost.saturating_sub(u64::from(head.want.cost));
            self.done.insert(head.ticket, done);
            let exit = if head.woken { &mut out.buried } else { &mut out.wakes };
            exit.push(head.waker);
        }
    }

    /// Sees to it that the head looks again at `at`.
    pub(super) fn wake_head_by(&mut self, at: Nanos, out: &mut Leaving<W>) {
        if let Some(head) = self.waiting.front_mut()
            && head.timer > at
            && !head.woken
        {
            head.woken = true;
            out.wakes.push(head.waker.clone());
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
        let index = self.index(ticket);
        let Some(waiter) = index.and_then(|index| self.waiting.remove(index)) else {
            return false;
        };
        self.cost = self.cost.saturating_sub(u64::from(waiter.want.cost));
        out.buried.push(waiter.waker);
        true
    }

    /// Wakes those whose deadline has passed; for clocks that jump.
    pub(super) fn wake_overdue(&mut self, now: Nanos, out: &mut Leaving<W>) {
        if now < self.earliest_deadline {
            return;
        }
        self.earliest_deadline = NEVER;
        for waiter in &mut self.waiting {
            if waiter.want.deadline > now {
                self.earliest_deadline = self.earliest_deadline.min(waiter.want.deadline);
            } else if !waiter.woken {
                waiter.woken = true;
                out.wakes.push(waiter.waker.clone());
            }
        }
    }

    /// Forgets everybody.
    pub(super) fn clear(&mut self, out: &mut Leaving<W>) {
        self.cost = 0;
        self.done.clear();
        out.buried.extend(self.waiting.drain(..).map(|waiter| waiter.waker));
    }

    fn index(&self, ticket: Ticket) -> Option<usize> {
        self.waiting.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }

    fn find(&mut self, ticket: Ticket) -> Option<&mut Waiter<W>> {
        let index = self.index(ticket)?;
        self.waiting.get_mut(index)
    }
}
