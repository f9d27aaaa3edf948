//! What a model's answers take as a rule: a live quantile for each.

use std::hash::Hash;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::core::quantile::{PerMille, Quantile};

/// What was seen of one model.
#[derive(Debug)]
struct Seen {
    output: Quantile,
    usd: Option<Quantile>,
}

/// The quantiles of each model; those beyond `most` share one.
#[derive(Debug)]
pub(super) struct Estimates<K> {
    share: PerMille,
    most: usize,
    models: HashMap<K, Seen, FixedState>,
    /// Of calls without a model, and of models beyond `most`.
    rest: Option<Seen>,
}

impl<K: Eq + Hash + Copy> Estimates<K> {
    pub(super) fn new(share: PerMille, most: usize) -> Self {
        Self { share, most, models: HashMap::with_hasher(FixedState::default()), rest: None }
    }

    /// Forgets all models.
    pub(super) fn clear(&mut self) {
        self.models.clear();
        self.rest = None;
    }

    fn find(&self, model: Option<K>) -> Option<&Seen> {
        model.and_then(|model| self.models.get(&model)).or(self.rest.as_ref())
    }

    pub(super) fn output(&self, model: Option<K>) -> Option<u64> {
        self.find(model)?.output.get()
    }

    pub(super) fn usd(&self, model: Option<K>) -> Option<u64> {
        self.find(model)?.usd.as_ref()?.get()
    }

    pub(super) fn models(&self) -> usize {
        self.models.len()
    }

    /// What a call really took; `None`: its caller did not say. An answer that was not made,
    /// of no tokens at no cost, says nothing about those that are: an hour of failed calls
    /// would have the next good ones reserve nothing.
    pub(super) fn observe(&mut self, model: Option<K>, output: Option<u64>, usd: Option<u64>) {
        let (output, usd) = (output.filter(|&tokens| tokens > 0), usd.filter(|&nano| nano > 0));
        if output.is_none() && usd.is_none() {
            return;
        }
        let share = self.share;
        let new = || Seen { output: Quantile::new(share), usd: None };
        let room = self.models.len() < self.most;
        let seen = match model {
            Some(model) if room || self.models.contains_key(&model) => {
                self.models.entry(model).or_insert_with(new)
            }
            _ => self.rest.get_or_insert_with(new),
        };
        if let Some(output) = output {
            seen.output.observe(output);
        }
        if let Some(usd) = usd {
            seen.usd.get_or_insert_with(|| Quantile::new(share)).observe(usd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values before a quantile says anything.
    const ENOUGH: u32 = 8;

    #[test]
    fn models_beyond_the_bound_share_one() {
        let mut estimates = Estimates::new(PerMille(500), 2);
        for model in 0..10u32 {
            for _ in 0..ENOUGH {
                estimates.observe(Some(model), Some(u64::from(model) + 1), None);
            }
        }
        assert_eq!(estimates.models(), 2);
        assert_eq!(estimates.output(Some(0)), Some(1));
        assert_eq!(estimates.output(Some(1)), Some(2));
        assert_eq!(estimates.output(Some(7)), estimates.output(None));
        assert_eq!(estimates.usd(None), None);
    }

    #[test]
    fn answers_that_were_not_made_say_nothing() {
        let mut estimates = Estimates::new(PerMille(900), 2);
        for _ in 0..ENOUGH {
            estimates.observe(Some(1), Some(7), Some(5));
        }
        for _ in 0..5_000 {
            estimates.observe(Some(1), Some(0), Some(0));
        }
        assert_eq!((estimates.output(Some(1)), estimates.usd(Some(1))), (Some(7), Some(5)));
    }
}
