//! Who holds the few places of a half-open breaker.

use std::collections::VecDeque;

use crate::core::clock::Nanos;

/// The probes that hold a place, oldest first.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// Number and beginning. Numbers grow, so they are in order.
    under_way: VecDeque<(u64, Nanos)>,
    next: u64,
}

impl Probes {
    /// Takes one of so many places. Who has held one for `longest` and not come back loses it to
    /// whoever asks: a call that hangs must not keep the breaker open for ever.
    ///
    /// # Errors
    /// Nobody has: when the oldest will have.
    pub(super) fn take(&mut self, most: u32, now: Nanos, longest: Nanos) -> Result<u64, Nanos> {
        if self.under_way.len() >= most as usize {
            self.free_after(most, now, longest).map_or(Ok(()), Err)?;
            self.under_way.pop_front();
        }
        let number = self.next;
        self.next += 1;
        self.under_way.push_back((number, now));
        Ok(number)
    }

    /// How long it is until a place is free at the latest; `None` is now.
    pub(super) fn free_after(&self, most: u32, now: Nanos, longest: Nanos) -> Option<Nanos> {
        if self.under_way.len() < most as usize {
            return None;
        }
        let &(_, begun) = self.under_way.front()?;
        let left = begun.saturating_add(longest).saturating_sub(now);
        (left > 0).then_some(left)
    }

    /// Gives its place back, if it still has one.
    pub(super) fn give_back(&mut self, number: u64) {
        if let Ok(place) = self.under_way.binary_search_by_key(&number, |&(number, _)| number) {
            self.under_way.remove(place);
        }
    }

    /// Whether one is under way that has not lost its place.
    pub(super) fn any_since(&self, now: Nanos, longest: Nanos) -> bool {
        self.under_way.back().is_some_and(|&(_, begun)| begun.saturating_add(longest) > now)
    }

    pub(super) fn clear(&mut self) {
        self.under_way.clear();
    }

    pub(super) fn count(&self) -> usize {
        self.under_way.len()
    }
}
