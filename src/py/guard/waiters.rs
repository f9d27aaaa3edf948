//! Those who wait for any of a guard's targets, oldest first.

use std::collections::VecDeque;

use super::slot::Wish;
use crate::core::clock::{NEVER, Nanos};
use crate::core::sync::Mutex;
use crate::py::waiting::Waker;

struct Waiter {
    number: u64,
    /// Where its call does not go before that time.
    failed: Vec<(usize, Nanos)>,
    waker: Waker,
}

struct Line {
    /// A forked child has none of its parent's.
    process: u32,
    next: u64,
    all: VecDeque<Waiter>,
}

impl Line {
    /// The first who may go to that target then.
    fn first(&self, at: usize, then: Nanos) -> Option<&Waiter> {
        if self.all.is_empty() || self.process != std::process::id() {
            return None;
        }
        let barred = |waiter: &&Waiter| {
            waiter.failed.iter().any(|&(failed, until)| failed == at && until > then)
        };
        self.all.iter().find(|waiter| !barred(waiter))
    }
}

/// All of them. Wakers leave the lock before they are called, or dropped.
pub(super) struct Waiters(Mutex<Line>);

impl Waiters {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Line { process: std::process::id(), next: 0, all: VecDeque::new() }))
    }

    /// Joins; the number to leave by.
    pub(super) fn join(&self, waker: &Waker, wish: &Wish) -> u64 {
        let process = std::process::id();
        let (failed, waker) = (wish.failed.clone(), waker.clone());
        let mut strangers = VecDeque::new();
        let mut line = self.0.lock();
        if line.process != process {
            line.process = process;
            strangers = std::mem::take(&mut line.all);
        }
        line.next += 1;
        let number = line.next;
        line.all.push_back(Waiter { number, failed, waker });
        drop(line);
        drop(strangers);
        number
    }

    /// Leaves; who looks next for each of so many targets, as a wake may have been meant for the one
    /// that leaves, and may be good for more than one.
    pub(super) fn leave(&self, number: u64, targets: usize, now: Nanos) -> Vec<Waker> {
        let (gone, next) = {
            let mut line = self.0.lock();
            let at = line.all.binary_search_by_key(&number, |waiter| waiter.number);
            let gone = at.ok().and_then(|at| line.all.remove(at));
            let next = (0..targets).filter_map(|at| line.first(at, now));
            let mut next: Vec<_> = next.map(|next| (next.number, next.waker.clone())).collect();
            next.dedup_by_key(|(number, _)| *number);
            (gone, next)
        };
        if gone.is_none() {
            return Vec::new();
        }
        next.into_iter().map(|(_, waker)| waker).collect()
    }

    /// The first who may go to that target now.
    pub(super) fn first(&self, at: usize, now: Nanos) -> Option<Waker> {
        self.0.lock().first(at, now).map(|waiter| waiter.waker.clone())
    }

    /// Its call can never go to that target, and nobody wakes it for that any more. True once.
    pub(super) fn bar(&self, number: u64, at: usize) -> bool {
        let mut line = self.0.lock();
        let Ok(index) = line.all.binary_search_by_key(&number, |waiter| waiter.number) else {
            return false;
        };
        let Some(waiter) = line.all.get_mut(index) else { return false };
        if waiter.failed.contains(&(at, NEVER)) {
            return false;
        }
        waiter.failed.push((at, NEVER));
        true
    }

    /// Whether nobody before it may go to that target then, so that it is the one to look in time.
    pub(super) fn is_first(&self, number: u64, at: usize, then: Nanos) -> bool {
        self.0.lock().first(at, then).is_none_or(|waiter| waiter.number >= number)
    }

    pub(super) fn all(&self) -> Vec<Waker> {
        self.0.lock().all.iter().map(|waiter| waiter.waker.clone()).collect()
    }
}
