//! Counters of one tier.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Figures for the statistics.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) entries: AtomicI64,
    pub(super) bytes: AtomicI64,
    pub(super) evictions: AtomicU64,
    pub(super) expirations: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) committed: AtomicU64,
    pub(super) foreign: AtomicU64,
    pub(super) flushes: AtomicU64,
    /// Milliseconds from a foreign commit to its effect here: the last one and the longest.
    pub(super) lag: AtomicU64,
    pub(super) longest_lag: AtomicU64,
    pub(super) recoveries: AtomicU64,
}

impl Figures {
    pub(super) fn all(&self) -> Vec<(&'static str, u64)> {
        let signed = |figure: &AtomicI64| figure.load(Ordering::Relaxed).max(0) as u64;
        let plain = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        vec![
            ("size", signed(&self.entries)),
            ("store_bytes", signed(&self.bytes)),
            ("evictions", plain(&self.evictions)),
            ("expirations", plain(&self.expirations)),
            ("commits", plain(&self.commits)),
            ("writes_committed", plain(&self.committed)),
            ("foreign_changes", plain(&self.foreign)),
            ("near_flushes", plain(&self.flushes)),
            ("invalidation_lag_ms", plain(&self.lag)),
            ("invalidation_lag_max_ms", plain(&self.longest_lag)),
            ("recoveries", plain(&self.recoveries)),
        ]
    }
}
