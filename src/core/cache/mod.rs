//! The object cache: exact LRU or adaptive eviction, exact bounds and expiry, stale values and
//! failures.
//!
//! [`Table`] is single-threaded state; the caller wraps it in one mutex. Every
//! operation that removes entries hands them out through a [`Graveyard`], so
//! that their values are dropped after the lock is gone: dropping a value may
//! run arbitrary code.

mod adaptive;
mod aging;
mod deadlines;
mod entry;
mod graveyard;
mod lru;
mod savings;
mod stats;
mod table;
#[cfg(test)]
mod tests;
mod upkeep;

pub use aging::{Aging, Look, State, Wish};
pub use entry::{Bounds, Entry, Insert, Lifetime, Policy, Tag};
pub use graveyard::Graveyard;
pub use savings::Savings;
pub use stats::{Ghosts, Stats};
pub use table::Table;

/// Why an entry left the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its time to live or to idle was over.
    Expired,
    /// Room was needed, and by the policy it was the one to go.
    Evicted,
    /// Another value was set under its key.
    Replaced,
    /// It was deleted by key.
    Deleted,
    /// Its tag was invalidated.
    Invalidated,
    /// The whole cache was cleared.
    Cleared,
}

impl Cause {
    /// The name that listeners get.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Evicted => "evicted",
            Self::Replaced => "replaced",
            Self::Deleted => "deleted",
            Self::Invalidated => "invalidated",
            Self::Cleared => "cleared",
        }
    }
}
