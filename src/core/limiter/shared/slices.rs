//! Permits that were leased and may be spent for a moment.

use std::collections::VecDeque;

use crate::core::clock::Nanos;

#[derive(Debug)]
struct Slice {
    left: u32,
    spent: u32,
    since: Nanos,
    until: Nanos,
    /// When it ends by the store's clock, by which the store knows it.
    name: u64,
}

/// Those of one key, the first to end first.
#[derive(Debug, Default)]
pub(super) struct Slices(VecDeque<Slice>);

impl Slices {
    /// Permits that may be spent now; what has ended was [taken out](Self::end).
    pub(super) fn left(&self) -> u64 {
        self.0.iter().map(|slice| u64::from(slice.left)).sum()
    }

    /// When the first ends.
    pub(super) fn first_end(&self) -> Option<Nanos> {
        self.0.iter().map(|slice| slice.until).min()
    }

    pub(super) fn add(&mut self, now: Nanos, until: Nanos, name: u64, permits: u32) {
        let at = self.0.partition_point(|slice| slice.until <= until);
        self.0.insert(at, Slice { left: permits, spent: 0, since: now, until, name });
    }

    /// Takes out those that have ended; what is left of them goes back.
    #[inline]
    pub(super) fn end(&mut self, now: Nanos, back: &mut Vec<(u64, u32)>) {
        while let Some(first) = self.0.front() {
            if first.until > now {
                return;
            }
            if first.left > 0 {
                back.push((first.name, first.left));
            }
            self.0.pop_front();
        }
    }

    /// Spends `cost` of those that end first, which have it.
    #[inline]
    pub(super) fn spend(&mut self, cost: u32) {
        let mut cost = cost;
        for slice in &mut self.0 {
            let part = slice.left.min(cost);
            slice.left -= part;
            slice.spent += part;
            cost -= part;
            if cost == 0 {
                return;
            }
        }
    }

    /// Takes back `cost` that was spent `at` that time; false if its slice has ended.
    ///
    /// Of the slices that it may be of it goes to the one that ends first: the store then has
    /// the others end later than they do.
    pub(super) fn unspend(&mut self, at: Nanos, cost: u32) -> bool {
        for slice in &mut self.0 {
            if slice.since <= at && slice.spent >= cost {
                slice.spent -= cost;
                slice.left += cost;
                return true;
            }
        }
        false
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
