//! The log of what was reserved and spent within one window, oldest first.
//!
//! Not the grant log of `RateLimiter`: that one packs grants into 4 bytes each
//! because nothing about them ever changes, and finds one by a walk over its
//! block. Here every entry changes once, when its request is settled, so an
//! entry has a number and is found at once; all dimensions have one window, so
//! one entry holds a request's amounts of all of them, and one walk answers
//! when a request fits. Entries stand in chunks that carry their sums, which
//! walks and expiry step over.

use std::collections::VecDeque;

use super::amounts::{Amounts, DIMENSIONS, Totals, add, subtract};
use crate::core::clock::{NEVER, Nanos};

/// Entries per chunk. A walk over 10,000 entries takes 160 steps and at most 64 more.
pub(super) const CHUNK: usize = 64;

/// An entry's number; never used twice.
pub(super) type Number = u64;

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: Nanos,
    amounts: Amounts,
    /// Not settled yet: part of it may come back.
    open: bool,
}

impl Entry {
    fn firm(&self) -> Amounts {
        if self.open { self.amounts.firm() } else { self.amounts }
    }
}

/// The entries still counted and their sums.
#[derive(Debug, Default)]
struct Chunk {
    entries: Vec<Entry>,
    used: Totals,
    firm: Totals,
}

/// How a walk sees open reservations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// As used up.
    Reserved,
    /// As using no more than what is sure.
    Firm,
}

/// All entries of one window, `(t − period, t]`.
#[derive(Debug)]
pub(super) struct SpendLog {
    period: Nanos,
    chunks: VecDeque<Chunk>,
    /// One to use again.
    spare: Option<Chunk>,
    /// The number of the first entry of `chunks[0]`; a multiple of [`CHUNK`].
    first: Number,
    /// The oldest entry that counts, or `next`.
    oldest: Number,
    next: Number,
    used: Totals,
    firm: Totals,
}

impl SpendLog {
    pub(super) fn new(period: Nanos) -> Self {
        Self {
            period,
            chunks: VecDeque::new(),
            spare: None,
            first: 0,
            oldest: 0,
            next: 0,
            used: [0; DIMENSIONS],
            firm: [0; DIMENSIONS],
        }
    }

    pub(super) fn period(&self) -> Nanos {
        self.period
    }

    /// Everything within the window.
    #[inline]
    pub(super) fn used(&self, view: View) -> &Totals {
        match view {
            View::Reserved => &self.used,
            View::Firm => &self.firm,
        }
    }

    pub(super) fn next(&self) -> Number {
        self.next
    }

    fn place(&self, number: Number) -> (usize, usize) {
        let offset = (number - self.first) as usize;
        (offset / CHUNK, offset % CHUNK)
    }

    /// Forgets what has left the window.
    #[inline]
    pub(super) fn expire(&mut self, now: Nanos) {
        while self.oldest < self.next {
            let (slot, index) = self.place(self.oldest);
            let entry = self.chunks[slot].entries[index];
            if now - entry.at < self.period {
                return;
            }
            self.forget(now, slot, entry);
        }
    }

    /// Forgets the oldest entry, or its whole chunk.
    fn forget(&mut self, now: Nanos, slot: usize, entry: Entry) {
        debug_assert_eq!(slot, 0);
        let chunk = &mut self.chunks[0];
        let full = chunk.entries.len() == CHUNK;
        let all = chunk.entries.last().is_some_and(|last| now - last.at >= self.period);
        if full && all {
            for d in 0..DIMENSIONS {
                self.used[d] -= chunk.used[d];
                self.firm[d] -= chunk.firm[d];
            }
            self.drop_chunk();
            self.oldest = self.first;
            return;
        }
        subtract(&mut chunk.used, &entry.amounts);
        subtract(&mut chunk.firm, &entry.firm());
        subtract(&mut self.used, &entry.amounts);
        subtract(&mut self.firm, &entry.firm());
        self.oldest += 1;
        if self.oldest - self.first == CHUNK as u64 {
            self.drop_chunk();
        }
    }

    fn drop_chunk(&mut self) {
        self.first += CHUNK as u64;
        self.spare = self.chunks.pop_front();
        if self.chunks.capacity() > 32 && self.chunks.len() < self.chunks.capacity() / 8 {
            // After a storm.
            self.chunks.shrink_to(2 * self.chunks.len());
        }
    }

    /// Appends an entry that is not older than the newest.
    pub(super) fn push(&mut self, at: Nanos, amounts: Amounts, open: bool) -> Number {
        let entry = Entry { at, amounts, open };
        if self.chunks.back().is_none_or(|chunk| chunk.entries.len() == CHUNK) {
            let mut chunk = self.spare.take().unwrap_or_default();
            chunk.entries.clear();
            chunk.used = [0; DIMENSIONS];
            chunk.firm = [0; DIMENSIONS];
            self.chunks.push_back(chunk);
        }
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.entries.push(entry);
            add(&mut chunk.used, &amounts);
            add(&mut chunk.firm, &entry.firm());
        }
        add(&mut self.used, &amounts);
        add(&mut self.firm, &entry.firm());
        self.next += 1;
        self.next - 1
    }

    /// Settles an entry at what it turned out to be, at its own time; false if it has left
    /// the window.
    pub(super) fn settle(&mut self, number: Number, amounts: Amounts) -> bool {
        if number < self.oldest || number >= self.next {
            return false;
        }
        let (slot, index) = self.place(number);
        let chunk = &mut self.chunks[slot];
        let old = chunk.entries[index];
        let new = Entry { at: old.at, amounts, open: false };
        chunk.entries[index] = new;
        for (used, firm) in [(&mut chunk.used, &mut chunk.firm), (&mut self.used, &mut self.firm)] {
            subtract(used, &old.amounts);
            subtract(firm, &old.firm());
            add(used, &new.amounts);
            add(firm, &new.firm());
        }
        true
    }

    /// The time until `amount` of dimension `d` has left the window; [`NEVER`] if it does
    /// not hold so much.
    pub(super) fn until_left(&self, now: Nanos, d: usize, amount: u128, view: View) -> Nanos {
        let mut missing = amount;
        if missing == 0 {
            return 0;
        }
        let (_, mut from) = self.place(self.oldest);
        for chunk in &self.chunks {
            let sum = match view {
                View::Reserved => chunk.used[d],
                View::Firm => chunk.firm[d],
            };
            if sum < missing {
                missing -= sum;
                from = 0;
                continue;
            }
            for entry in &chunk.entries[from..] {
                let amounts = match view {
                    View::Reserved => entry.amounts,
                    View::Firm => entry.firm(),
                };
                let left = u128::from(amounts.0[d]);
                if left >= missing {
                    return self.period - (now - entry.at);
                }
                missing -= left;
            }
            from = 0;
        }
        NEVER
    }

    /// Entries that it holds memory for.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.chunks.len() * CHUNK + self.chunks.capacity()
    }
}
