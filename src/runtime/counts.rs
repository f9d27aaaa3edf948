//! The counters of a service.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of a service.
#[derive(Debug, Default)]
pub struct Counts {
    /// Lookups that the near cache answered.
    pub near_hits: AtomicU64,
    /// Lookups that the tier answered with a value.
    pub tier_hits: AtomicU64,
    /// Lookups without a value.
    pub misses: AtomicU64,
    /// Values written.
    pub sets: AtomicU64,
    /// Values deleted.
    pub deletes: AtomicU64,
    /// Namespaces and tags outdated.
    pub invalidations: AtomicU64,
    /// Requests that the tier did not answer.
    pub errors: AtomicU64,
    /// Requests that were not sent because the tier was away.
    pub skipped: AtomicU64,
    /// Values of another codec, with a wrong signature, or garbage: misses.
    pub unreadable: AtomicU64,
    /// Values that were too large.
    pub rejections: AtomicU64,
    /// Values that were outdated before they were loaded.
    pub outdated: AtomicU64,
}

impl Counts {
    /// One more.
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// One less: what was counted turned out to be something else.
    pub fn take_back(counter: &AtomicU64) {
        // Not below zero: they may have been reset meanwhile.
        let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    }

    /// All by name.
    #[must_use]
    pub fn all(&self) -> [(&'static str, &AtomicU64); 11] {
        [
            ("near_hits", &self.near_hits),
            ("tier_hits", &self.tier_hits),
            ("misses", &self.misses),
            ("sets", &self.sets),
            ("deletes", &self.deletes),
            ("invalidations", &self.invalidations),
            ("errors", &self.errors),
            ("skipped", &self.skipped),
            ("unreadable", &self.unreadable),
            ("rejections", &self.rejections),
            ("outdated", &self.outdated),
        ]
    }
}
