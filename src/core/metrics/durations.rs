//! Percentiles of durations in bounded memory.

use crate::core::clock::Nanos;

/// Buckets per doubling, as a power of two: 32, so a bucket is at most 1/32
/// of its value wide and its middle at most 1.6 % off.
const PRECISION: u32 = 5;
const PER_OCTAVE: usize = 1 << PRECISION;
/// Microseconds are counted; 2⁴⁰ µs are 12 days, longer ones share the last bucket.
const LARGEST: u64 = 1 << 40;
const BUCKETS: usize = (40 - PRECISION as usize + 1) * PER_OCTAVE + 1;

/// A log-linear histogram in the manner of `HdrHistogram`: microseconds up to
/// 12 days with a relative error of at most 1.6 %, in 9 KiB whatever comes.
///
/// Our own rather than the `hdrhistogram` crate: one fixed range and
/// precision, no fallible constructor, no resize.
#[derive(Clone, Debug)]
pub struct Durations {
    counts: Box<[u64]>,
    total: u64,
    longest: Nanos,
}

impl Default for Durations {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), total: 0, longest: 0 }
    }
}

fn bucket_of(micros: u64) -> usize {
    let value = micros.min(LARGEST);
    if value < PER_OCTAVE as u64 {
        return value as usize;
    }
    let shift = value.ilog2() - PRECISION;
    // The top bit is implied by the octave, the next PRECISION bits choose the bucket.
    (shift as usize + 1) * PER_OCTAVE + ((value >> shift) as usize - PER_OCTAVE)
}

/// The middle of a bucket, in microseconds.
fn middle_of(bucket: usize) -> f64 {
    if bucket < PER_OCTAVE {
        return bucket as f64;
    }
    let shift = bucket / PER_OCTAVE - 1;
    let low = ((bucket % PER_OCTAVE + PER_OCTAVE) as u64) << shift;
    let width = 1u64 << shift;
    low as f64 + (width - 1) as f64 / 2.0
}

impl Durations {
    /// Counts one duration.
    pub fn record(&mut self, duration: Nanos) {
        if let Some(count) = self.counts.get_mut(bucket_of(duration / 1_000)) {
            *count += 1;
        }
        self.total += 1;
        self.longest = self.longest.max(duration);
    }

    /// The duration in seconds that the share `quantile` (0..=1) of all
    /// recorded ones does not exceed, or `None` without any. Never more than
    /// the longest one seen.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        if self.total == 0 {
            return None;
        }
        let rank = ((quantile.clamp(0.0, 1.0) * self.total as f64).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        let longest = self.longest as f64 / 1e9;
        Some(bucket.map_or(longest, |b| {
            if b == BUCKETS - 1 { longest } else { (middle_of(b) / 1e6).min(longest) }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_recorded_has_no_percentile() {
        assert_eq!(Durations::default().quantile(0.5), None);
    }

    #[test]
    fn the_buckets_cover_everything_once_and_in_order() {
        let mut last = 0;
        for micros in (0..100_000).chain((17..=63).map(|e| 1u64 << e)).chain([u64::MAX]) {
            let bucket = bucket_of(micros);
            assert!(bucket >= last && bucket < BUCKETS, "{micros} µs → {bucket}");
            last = bucket;
        }
        assert_eq!(bucket_of(LARGEST), BUCKETS - 1);
    }

    #[test]
    fn a_year_is_reported_as_it_was() {
        let mut d = Durations::default();
        d.record(365 * 86_400 * 1_000_000_000);
        assert_eq!(d.quantile(0.99), Some(365.0 * 86_400.0));
    }

    proptest! {
        #![proptest_config(crate::core::cases(256, 10_000))]

        #[test]
        fn percentiles_are_within_their_error(
            mut micros in prop::collection::vec(1u64..1_000_000_000_000, 1..300),
            q in 0.0f64..=1.0,
        ) {
            let mut d = Durations::default();
            for m in &micros { d.record(m * 1_000); }
            micros.sort_unstable();
            let rank = ((q * micros.len() as f64).ceil() as usize).max(1);
            let exact = micros[rank - 1] as f64 / 1e6;
            let got = d.quantile(q).unwrap();
            prop_assert!((got - exact).abs() <= exact * 0.016, "{got} for {exact}");
        }
    }
}
