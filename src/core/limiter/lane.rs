//! Waiters in order of arrival: a ticket, what it wants, and a waker each.

use std::collections::VecDeque;

use crate::core::clock::{NEVER, Nanos};

/// Names one waiter; never used twice.
pub type Ticket = u64;

/// Wakers on their way out of the lock.
#[derive(Debug)]
pub(super) struct Leaving<W> {
    /// To be called.
    pub(super) wakes: Vec<W>,
    /// Only to be dropped, which may run foreign code too.
    pub(super) buried: Vec<W>,
}

#[derive(Debug)]
pub(super) struct Waiter<T, W> {
    pub(super) ticket: Ticket,
    pub(super) want: T,
    /// A wake is on its way; the next look at the ticket clears it.
    woken: bool,
    /// When the waiter will look again by itself.
    timer: Nanos,
    waker: W,
}

impl<T, W: Clone> Waiter<T, W> {
    /// Wakes it unless a wake is on its way already.
    pub(super) fn wake(&mut self, out: &mut Leaving<W>) {
        if !self.woken {
            self.woken = true;
            out.wakes.push(self.waker.clone());
        }
    }

    /// It has left the line with an answer, which it learns by a wake.
    pub(super) fn answered(self, out: &mut Leaving<W>) {
        let exit = if self.woken { &mut out.buried } else { &mut out.wakes };
        exit.push(self.waker);
    }

    /// It has left the line by itself.
    pub(super) fn buried(self, out: &mut Leaving<W>) {
        out.buried.push(self.waker);
    }
}

/// Waiters of one kind, oldest first.
#[derive(Debug)]
pub(super) struct Lane<T, W>(VecDeque<Waiter<T, W>>);

impl<T, W: Clone> Lane<T, W> {
    pub(super) fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its owner looks at its ticket before it sleeps.
    pub(super) fn push(&mut self, ticket: Ticket, want: T, waker: W) {
        self.0.push_back(Waiter { ticket, want, woken: true, timer: NEVER, waker });
    }

    pub(super) fn front(&self) -> Option<&Waiter<T, W>> {
        self.0.front()
    }

    pub(super) fn pop_front(&mut self) -> Option<Waiter<T, W>> {
        self.0.pop_front()
    }

    pub(super) fn find(&mut self, ticket: Ticket) -> Option<&mut Waiter<T, W>> {
        let index = self.index(ticket)?;
        self.0.get_mut(index)
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Waiter<T, W>> {
        let index = self.index(ticket)?;
        self.0.remove(index)
    }

    fn index(&self, ticket: Ticket) -> Option<usize> {
        self.0.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }

    /// Sees to it that the first one looks again at `at`.
    pub(super) fn wake_first_by(&mut self, at: Nanos, out: &mut Leaving<W>) {
        if let Some(first) = self.0.front_mut()
            && first.timer > at
        {
            first.wake(out);
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

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Waiter<T, W>> {
        self.0.iter_mut()
    }

    /// Hands everybody out.
    pub(super) fn clear(self, out: &mut Leaving<W>) {
        out.buried.extend(self.0.into_iter().map(|waiter| waiter.waker));
    }
}
