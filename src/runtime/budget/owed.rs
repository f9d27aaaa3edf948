//! Corrections that the file could not be told: it was full, locked or away.

use std::collections::HashMap;

use super::Holder;
use crate::core::budget::{Entry, MOST};

/// Under-use that is kept; more of it stays counted as spent, which overspends nothing.
const KEPT: usize = 4_096;

/// What is owed.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// Spent beyond what was reserved, by account: none of it may be lost, so it is summed up.
    /// There are at most as many as accounts that have been granted something.
    over: HashMap<[u8; 32], (Holder, u64)>,
    /// Reserved and not spent.
    under: Vec<(Holder, Entry, u64)>,
}

/// How much of it was told.
pub(super) struct Paid {
    pub(super) over: usize,
    pub(super) under: usize,
}

impl Paid {
    pub(super) fn any(&self) -> bool {
        self.over + self.under > 0
    }
}

impl Owed {
    pub(super) fn len(&self) -> usize {
        self.over.len() + self.under.len()
    }

    pub(super) fn add(&mut self, holder: &Holder, entry: &Entry, actual: u64) {
        let over = actual.saturating_sub(entry.amount);
        if over > 0 {
            let (_, sum) = self.over.entry(holder.id).or_insert_with(|| (holder.clone(), 0));
            *sum = sum.saturating_add(over).min(MOST);
        } else if actual < entry.amount && self.under.len() < KEPT {
            self.under.push((holder.clone(), *entry, actual));
        }
    }

    pub(super) fn over(&self) -> impl Iterator<Item = &(Holder, u64)> {
        self.over.values()
    }

    pub(super) fn under(&self) -> &[(Holder, Entry, u64)] {
        &self.under
    }

    pub(super) fn forget(&mut self, paid: Paid) {
        self.over.clear();
        self.under.drain(..paid.under);
    }

    pub(super) fn reset(&mut self, holder: Option<&Holder>) {
        match holder {
            None => self.clear(),
            Some(holder) => {
                self.over.remove(&holder.id);
                self.under.retain(|(of, ..)| of.id != holder.id);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.over.clear();
        self.under.clear();
    }
}
