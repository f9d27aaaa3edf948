//! What a cache counted.

/// Counters since the start or the last reset, and the present size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Lookups that found a live value.
    pub hits: u64,
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
    /// Values refused because they alone exceed `max_bytes`.
    pub rejections: u64,
}
