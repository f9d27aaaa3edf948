//! What a cache counted.

use super::Savings;

/// Counters since the start or the last reset, and the present size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Lookups that were answered, also with what is stale or a failure.
    pub hits: u64,
    /// Those hits that were stale.
    pub stale_hits: u64,
    /// Those hits that were failures.
    pub negative_hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// Values written under a new key.
    pub insertions: u64,
    /// Values written over an old one.
    pub updates: u64,
    /// Entries that had to make room.
    pub evictions: u64,
    /// Entries whose time was over.
    pub expirations: u64,
    /// Entries removed by tag.
    pub invalidations: u64,
    /// Loads of a key whose value was still served.
    pub refreshes: u64,
    /// Those refreshes that failed.
    pub refresh_failures: u64,
    /// Callers whose load failed and who got the stale value.
    pub stale_on_error: u64,
    /// Values refused because they alone exceed `max_bytes`.
    pub rejections: u64,
    /// What the hits saved, as far as their entries say it.
    pub saved: Savings,
}

/// What a cache remembers beside its entries to choose whom to evict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ghosts {
    /// Key hashes without values.
    pub entries: usize,
    /// Bytes that these, the frequencies and the entries' places take.
    pub bytes: usize,
}
