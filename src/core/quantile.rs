//! Live quantiles: what something takes as a rule.
//!
//! A histogram over buckets of 1/16 of an octave, so a quantile is at most 6 %
//! too high and never too low. When it has seen 1,024 values, all counts
//! are halved: it follows what changes its habits. The quantile's
//! bucket is kept up to date by each value, in a few steps.

/// Buckets per octave, as a power of two.
const FINE: u32 = 4;
/// Values of which all is forgotten by half.
const MEMORY: u32 = 1024;
/// Values before it says anything: fewer have no quantile worth the name.
const ENOUGH: u32 = 8;
/// Values from here on are one bucket: more than any answer's tokens, 17 USD in billionths, and
/// some hours in microseconds.
const LARGEST: u64 = 1 << 34;
/// The number of the bucket of [`LARGEST`], and one.
const BUCKETS: usize = bucket(LARGEST) + 1;

/// The number of a value's bucket: exact up to 16, then 16 to an octave.
const fn bucket(value: u64) -> usize {
    if value < 1 << FINE {
        return value as usize;
    }
    let octave = value.ilog2() - FINE;
    ((octave as usize) << FINE) + (value >> octave) as usize
}

/// The greatest value of a bucket.
const fn greatest(bucket: usize) -> u64 {
    if bucket < 2 << FINE {
        return bucket as u64;
    }
    let octave = (bucket >> FINE) - 1;
    let first = ((bucket & ((1 << FINE) - 1)) + (1 << FINE)) as u64;
    ((first + 1) << octave) - 1
}

/// A share of all values, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerMille(pub u32);

/// One live quantile.
#[derive(Debug)]
pub struct Quantile {
    share: PerMille,
    counts: Box<[u16]>,
    total: u32,
    /// The quantile's bucket.
    at: usize,
    /// Values in the buckets before it.
    below: u32,
}

impl Quantile {
    /// Of nothing yet.
    #[must_use]
    pub fn new(share: PerMille) -> Self {
        Self { share, counts: vec![0; BUCKETS].into_boxed_slice(), total: 0, at: 0, below: 0 }
    }

    /// Takes a value in.
    pub fn observe(&mut self, value: u64) {
        if self.total >= MEMORY {
            self.halve();
        }
        let bucket = bucket(value.min(LARGEST));
        self.counts[bucket] += 1;
        self.total += 1;
        self.below += u32::from(bucket < self.at);
        self.follow();
    }

    fn halve(&mut self) {
        for count in &mut self.counts {
            *count /= 2;
        }
        self.total = self.counts.iter().map(|&count| u32::from(count)).sum();
        self.below = self.counts[..self.at].iter().map(|&count| u32::from(count)).sum();
    }

    /// Moves to the bucket of the value of rank ⌈share × total⌉.
    fn follow(&mut self) {
        let rank = (u64::from(self.total) * u64::from(self.share.0)).div_ceil(1000).max(1) as u32;
        while self.below >= rank {
            self.at -= 1;
            self.below -= u32::from(self.counts[self.at]);
        }
        while self.below + u32::from(self.counts[self.at]) < rank {
            self.below += u32::from(self.counts[self.at]);
            self.at += 1;
        }
    }

    /// At least the share of what was seen lately is at most this; `None` before there is
    /// enough of it.
    #[must_use]
    pub fn get(&self) -> Option<u64> {
        (self.total >= ENOUGH).then(|| greatest(self.at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::cases;

    #[test]
    fn buckets_are_in_order_and_fine_enough() {
        let mut last = None;
        for bucket in 0..BUCKETS - 1 {
            let greatest = greatest(bucket);
            assert_eq!(super::bucket(greatest), bucket);
            assert_eq!(super::bucket(greatest + 1), bucket + 1);
            if let Some(last) = last {
                assert!((greatest - last) as f64 <= 1.0 + greatest as f64 / 16.0);
            }
            last = Some(greatest);
        }
    }

    #[test]
    fn it_says_nothing_before_it_knows_and_follows_a_change() {
        let mut quantile = Quantile::new(PerMille(900));
        for _ in 0..ENOUGH - 1 {
            quantile.observe(100);
            assert_eq!(quantile.get(), None);
        }
        quantile.observe(100);
        assert_eq!(quantile.get(), Some(greatest(bucket(100))));
        for _ in 0..5_000 {
            quantile.observe(100);
        }
        for _ in 0..3 * MEMORY {
            quantile.observe(5);
        }
        assert_eq!(quantile.get(), Some(5));
        quantile.observe(u64::MAX);
        assert_eq!(quantile.get(), Some(5));
    }

    proptest! {
        #![proptest_config(cases(300, 5_000))]

        #[test]
        fn it_is_the_quantile_of_a_sorted_list(
            values in prop::collection::vec(prop_oneof![0u64..40, 0u64..100_000, any::<u64>()], 8..1000),
            share in 1u32..=1000,
        ) {
            let mut quantile = Quantile::new(PerMille(share));
            for &value in &values {
                quantile.observe(value);
            }
            let mut sorted: Vec<_> = values.iter().map(|&value| value.min(LARGEST)).collect();
            sorted.sort_unstable();
            let rank = (values.len() * share as usize).div_ceil(1000).max(1);
            let exact = sorted[rank - 1];
            prop_assert_eq!(quantile.get(), Some(greatest(bucket(exact))));
        }

        #[test]
        fn forgetting_keeps_its_counts_true(
            values in prop::collection::vec(0u64..100_000, 2_000..4_000),
            share in 1u32..=1000,
        ) {
            let mut quantile = Quantile::new(PerMille(share));
            for &value in &values {
                quantile.observe(value);
                let below: u32 = quantile.counts[..quantile.at].iter().map(|&c| u32::from(c)).sum();
                prop_assert_eq!(below, quantile.below);
            }
            let total: u32 = quantile.counts.iter().map(|&c| u32::from(c)).sum();
            prop_assert_eq!(total, quantile.total);
        }
    }
}
