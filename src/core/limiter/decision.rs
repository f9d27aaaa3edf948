//! Answers. A denial is a value like a grant.

use super::limit::Limit;
use crate::core::clock::{NEVER, Nanos};

/// Why a decision fell as it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The permits were granted.
    Granted,
    /// A limit is used up for now.
    Limited,
    /// Others queued first; nobody overtakes them.
    Queued,
    /// The cost is greater than a limit's whole count: it can never be granted.
    TooLarge,
    /// The table of keys is full of keys that are still limited.
    KeyTableFull,
    /// The line is as long as it may get.
    QueueFull,
    /// All concurrency slots are taken.
    Busy,
    /// Nothing is granted for now: the provider asked for patience.
    Paused,
    /// It cannot be granted before its deadline.
    TooLate,
    /// The table of tenants is full of those who wait or were served ahead of others.
    TenantTableFull,
    /// The store that the limits are shared in does not answer, or has not answered yet.
    StoreUnavailable,
    /// The limiter is switched off: granted, counted, not limited.
    Disabled,
}

impl Reason {
    /// The reason as users read it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Limited => "limited",
            Self::Queued => "queued",
            Self::TooLarge => "cost exceeds limit",
            Self::KeyTableFull => "key table full",
            Self::QueueFull => "queue full",
            Self::Busy => "no free slot",
            Self::Paused => "paused",
            Self::TooLate => "cannot be granted in time",
            Self::TenantTableFull => "tenant table full",
            Self::StoreUnavailable => "store unavailable",
            Self::Disabled => "disabled",
        }
    }
}

/// The answer to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the permits were granted (and spent).
    pub granted: bool,
    /// Why.
    pub reason: Reason,
    /// Zero when granted; else the time until the same request can be granted
    /// if nobody else comes; [`NEVER`] if it cannot. With others queued, or
    /// with a slot to wait for, a lower bound.
    pub retry_after: Nanos,
    /// Permits left now in `limit`; `u64::MAX` without limits.
    pub remaining: u64,
    /// The limit that refused longest or, when granted, that has fewest permits left.
    pub limit: Option<Limit>,
    /// The time until `limit` is whole again if nothing more is granted.
    pub reset_after: Nanos,
}

impl Decision {
    /// A grant that no limit speaks for.
    #[must_use]
    pub fn unlimited(reason: Reason) -> Self {
        Self {
            granted: true,
            reason,
            retry_after: 0,
            remaining: u64::MAX,
            limit: None,
            reset_after: 0,
        }
    }

    /// A denial that no limit speaks for.
    #[must_use]
    pub fn refused(reason: Reason, retry_after: Nanos) -> Self {
        Self { granted: false, reason, retry_after, remaining: 0, limit: None, reset_after: 0 }
    }

    /// Whether waiting could help.
    #[must_use]
    pub fn is_never(&self) -> bool {
        !self.granted && self.retry_after == NEVER
    }
}
