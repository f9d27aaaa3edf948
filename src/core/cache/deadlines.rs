//! Which entry expires next, in O(1) for the usual case.
//!
//! Entries with the cache's own TTL expire in the order in which they were
//! written, so a linked list is a perfect queue. Only entries with a TTL of
//! their own pay for an ordered set. Idle deadlines need neither: the least
//! recently used entry is the longest idle one.

use std::collections::BTreeSet;

use super::lru::{List, Slots};
use crate::core::clock::{NEVER, Nanos};

/// How an entry's deadline is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// It has none.
    None,
    /// In the list, by the cache's own TTL.
    Usual,
    /// In the ordered set, by a TTL of its own.
    Own,
}

/// All deadlines of a table.
#[derive(Debug)]
pub(super) struct Deadlines {
    usual: List,
    own: BTreeSet<(Nanos, u32)>,
}

impl Deadlines {
    pub(super) const fn new() -> Self {
        Self { usual: List::EMPTY, own: BTreeSet::new() }
    }

    #[inline]
    pub(super) fn add(&mut self, slots: &mut impl Slots, slot: u32, deadline: Nanos, queue: Queue) {
        match queue {
            Queue::None => {}
            Queue::Usual => self.usual.push_newest(slots, slot),
            Queue::Own => {
                self.own.insert((deadline, slot));
            }
        }
    }

    #[inline]
    pub(super) fn remove(
        &mut self,
        slots: &mut impl Slots,
        slot: u32,
        deadline: Nanos,
        queue: Queue,
    ) {
        match queue {
            Queue::None => {}
            Queue::Usual => self.usual.remove(slots, slot),
            Queue::Own => {
                self.own.remove(&(deadline, slot));
            }
        }
    }

    /// A slot of [`Queue::Usual`] got a new deadline by the cache's own TTL.
    #[inline]
    pub(super) fn make_newest(&mut self, slots: &mut impl Slots, slot: u32) {
        self.usual.make_newest(slots, slot);
    }

    /// A slot whose deadline has come, by `now`.
    #[inline]
    pub(super) fn due(&self, now: Nanos, deadline_of: impl Fn(u32) -> Nanos) -> Option<u32> {
        // A deadline that saturated at the end of time never comes.
        let has_come = |deadline: Nanos| deadline <= now && deadline != NEVER;
        if let Some(slot) = self.usual.oldest()
            && has_come(deadline_of(slot))
        {
            return Some(slot);
        }
        self.own.first().filter(|(deadline, _)| has_come(*deadline)).map(|(_, slot)| *slot)
    }
}
