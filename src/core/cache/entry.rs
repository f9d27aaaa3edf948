//! What a table is told and what it tells.

use std::sync::Arc;

use super::Savings;
use super::aging::{Aging, State};
use crate::core::clock::Nanos;

/// A label under which entries are invalidated together.
pub type Tag = Arc<str>;

/// What a table may hold, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Entries; at least 1.
    pub max_size: usize,
    /// Sum of the entries' weights.
    pub max_weight: Option<u64>,
    /// Time to live after writing.
    pub ttl: Option<Nanos>,
    /// Time to idle after the last read or write.
    pub tti: Option<Nanos>,
}

/// Which entry makes room when none has expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The least recently used one, exactly.
    #[default]
    Lru,
    /// By recency or by frequency, whichever would have hit more of late.
    Adaptive,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Lru, Self::Adaptive];

    /// The name by which a user asks for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Adaptive => "adaptive",
        }
    }
}

/// How long one value lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lifetime {
    /// As the table's TTL says.
    #[default]
    Usual,
    /// This long after writing.
    For(Nanos),
    /// Until it is evicted.
    Unlimited,
}

/// What to write along with a value.
#[derive(Clone, Debug, Default)]
pub struct Insert {
    /// How long it lives.
    pub lifetime: Lifetime,
    /// Its share of `max_weight`.
    pub weight: u64,
    /// Under which tags it can be invalidated.
    pub tags: Vec<Tag>,
    /// What it has beside its lifetime; boxed, for most entries have nothing.
    pub aging: Option<Box<Aging>>,
    /// What each hit on it saves; boxed, for most caches do not say it.
    pub saves: Option<Box<Savings>>,
}

/// One entry as [`Table::explain`](super::Table::explain) shows it.
#[derive(Debug)]
pub struct Entry<'a, V> {
    /// The value.
    pub value: &'a V,
    /// When it was written.
    pub written: Nanos,
    /// Whether it is served.
    pub state: State,
    /// Until when it is fresh, or [`NEVER`](crate::core::clock::NEVER); 0 for a failure.
    pub fresh: Nanos,
    /// When it leaves, or [`NEVER`](crate::core::clock::NEVER).
    pub expires: Nanos,
    /// Its weight.
    pub weight: u64,
    /// Its tags.
    pub tags: &'a [Tag],
}
