//! Random numbers for jitter and early refreshes; not for secrets.
//!
//! One generator for the process, so that a test seeds one thing. It is a
//! counter and a mixing function, so drawing takes no lock and nobody can hold
//! one at `fork`.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// `SplitMix64`: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators",
/// OOPSLA 2014.
#[derive(Debug)]
pub struct Random(AtomicU64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    /// A generator that always draws the same after the same seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The process's own.
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<Random> =
            LazyLock::new(|| Random::seeded(RandomState::new().hash_one(std::process::id())));
        &SHARED
    }

    /// Begins again from `seed`.
    pub fn seed(&self, seed: u64) {
        self.0.store(seed, Ordering::Relaxed);
    }

    /// Makes a forked child draw other numbers than its parent and its siblings: workers that
    /// jitter alike expire alike.
    pub fn stir(&self) {
        self.0.fetch_add(mix(u64::from(std::process::id())), Ordering::Relaxed);
    }

    /// A number in (0, 1], of 53 bits.
    pub fn draw(&self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// A whole number from 0 to `most`.
    pub fn up_to(&self, most: u64) -> u64 {
        // The upper half of a product: Lemire, "Fast Random Integer Generation in an Interval",
        // ACM TOMACS 2019, without the rejection that would even out one part in 2^64 / most.
        ((u128::from(self.next()) * (u128::from(most) + 1)) >> 64) as u64
    }

    fn next(&self) -> u64 {
        mix(self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_of_the_published_sequence() {
        // The first output for the seed 1234567, as the reference implementation prints it.
        let first = (6_457_827_717_110_365_317_u64 >> 11) + 1;
        let drawn = Random::seeded(1_234_567).draw() * (1_u64 << 53) as f64;
        assert_eq!(drawn as u64, first);
    }

    #[test]
    fn whole_numbers_are_even_and_reach_both_ends() {
        let random = Random::seeded(7);
        let mut seen = [0_u32; 10];
        for _ in 0..100_000 {
            seen[random.up_to(9) as usize] += 1;
        }
        assert!(seen.iter().all(|count| (9_500..10_500).contains(count)), "{seen:?}");
        assert_eq!(random.up_to(0), 0);
        assert!((0..100).any(|_| random.up_to(u64::MAX) > u64::MAX / 2));
    }

    #[test]
    fn draws_are_even_and_never_zero() {
        let random = Random::seeded(7);
        let mut tenths = [0_u32; 10];
        for _ in 0..100_000 {
            let drawn = random.draw();
            assert!(drawn > 0.0 && drawn <= 1.0);
            tenths[((drawn * 10.0) as usize).min(9)] += 1;
        }
        assert!(tenths.iter().all(|count| (9_500..10_500).contains(count)), "{tenths:?}");
    }
}
