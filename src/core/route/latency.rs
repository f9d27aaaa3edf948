//! How long a target takes to answer, by what it did lately.

use crate::core::clock::{NEVER, Nanos};

/// Attempts that are remembered. [`Quantile`](crate::core::quantile::Quantile) remembers a
/// thousand, which says well how long a call takes as a rule, and learns of a target that has
/// become slow or fast only hundreds of calls later.
pub(super) const MEMORY: usize = 16;
/// Attempts before it says anything.
pub(super) const ENOUGH: usize = 4;

/// The last attempts of one target.
#[derive(Clone, Debug, Default)]
pub(super) struct Latency {
    /// What each took, in a ring; [`NEVER`]: it failed.
    took: Vec<Nanos>,
    next: usize,
}

impl Latency {
    /// An attempt has ended; `None`: it failed.
    pub(super) fn observe(&mut self, took: Option<Nanos>) {
        let took = took.unwrap_or(NEVER);
        if self.took.len() < MEMORY {
            self.took.push(took);
        } else {
            self.took[self.next] = took;
        }
        self.next = (self.next + 1) % MEMORY;
    }

    /// Attempts that are remembered.
    pub(super) fn known(&self) -> usize {
        self.took.len()
    }

    /// What an answer takes: the median of those that came. `None`: too few are known.
    pub(super) fn median(&self) -> Option<Nanos> {
        let mut answered: Vec<_> = self.answered().collect();
        if self.took.len() < ENOUGH || answered.is_empty() {
            return None;
        }
        let middle = (answered.len() - 1) / 2;
        Some(*answered.select_nth_unstable(middle).1)
    }

    /// The time until there is an answer if one that fails is asked again: the median over the
    /// share that was answered. [`NEVER`] where none was; `None`: too few attempts are known.
    pub(super) fn expected(&self) -> Option<Nanos> {
        if self.took.len() < ENOUGH {
            return None;
        }
        let Some(median) = self.median() else { return Some(NEVER) };
        let scaled = u128::from(median) * self.took.len() as u128 / self.answered().count() as u128;
        Some(Nanos::try_from(scaled).unwrap_or(NEVER).min(NEVER - 1))
    }

    fn answered(&self) -> impl Iterator<Item = Nanos> + '_ {
        self.took.iter().copied().filter(|&took| took != NEVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_nothing_before_it_knows_and_forgets_soon() {
        let mut latency = Latency::default();
        for _ in 0..ENOUGH - 1 {
            latency.observe(Some(7));
            assert_eq!((latency.expected(), latency.median()), (None, None));
        }
        latency.observe(Some(7));
        assert_eq!(latency.expected(), Some(7));
        for _ in 0..=MEMORY / 2 + 2 {
            latency.observe(Some(100));
        }
        assert_eq!(latency.expected(), Some(100));
    }

    #[test]
    fn one_that_fails_half_the_time_takes_twice_as_long() {
        let mut latency = Latency::default();
        for _ in 0..4 {
            latency.observe(Some(10));
            latency.observe(None);
        }
        assert_eq!((latency.expected(), latency.median()), (Some(20), Some(10)));
        for _ in 0..MEMORY {
            latency.observe(None);
        }
        assert_eq!((latency.expected(), latency.median()), (Some(NEVER), None));
    }
}
