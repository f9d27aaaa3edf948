//! What is asked, and what is answered.

use super::amounts::{Amounts, Dimension, Totals};
use super::log::Number;
use crate::core::clock::{NEVER, Nanos};
use crate::core::limiter::Reason;
use crate::core::limiter::adaptive::Call;

/// One request, as its caller knows it.
#[derive(Clone, Copy, Debug)]
pub struct Ask<K> {
    /// Tokens of the prompt.
    pub input: u64,
    /// Tokens of the answer; `None`: as many as the model's answers take as a rule.
    pub output: Option<u64>,
    /// The most that the answer can take (`max_tokens` of the call); bounds the estimate.
    pub max_output: Option<u64>,
    /// Money in [`super::NANO_USD`]ths; `None`: as the model's calls cost as a rule.
    pub usd: Option<u64>,
    /// Whose estimates to use.
    pub model: Option<K>,
    /// Who asks.
    pub tenant: Option<K>,
}

impl<K> Ask<K> {
    /// A request with tokens in and out.
    #[must_use]
    pub fn tokens(input: u64, output: u64) -> Self {
        let output = Some(output);
        Self { input, output, max_output: None, usd: Some(0), model: None, tenant: None }
    }
}

/// An [`Ask`] with all estimates made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<K> {
    pub(super) amounts: Amounts,
    pub(super) model: Option<K>,
    pub(super) tenant: Option<K>,
}

/// What a request really took; what is `None` was as reserved.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub input: Option<u64>,
    /// Tokens of the answer.
    pub output: Option<u64>,
    /// Money in [`super::NANO_USD`]ths.
    pub usd: Option<u64>,
}

/// Where a grant stands in the course of things, for [`super::LlmLimiter::learn`].
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// Its entry in the log; `None` when the limiter is switched off.
    pub(super) number: Option<Number>,
    /// What was used of each dimension, itself included.
    pub(super) used: Totals,
    /// The process that it was granted in, counted by forks.
    pub(super) epoch: u32,
    /// As it began.
    pub(super) call: Call,
}

/// What has been granted. Neither cloned nor copied: it is settled or released once.
#[derive(Debug)]
#[must_use = "a grant that is neither settled nor released stays open"]
pub struct Grant<K> {
    pub(super) mark: Mark,
    pub(super) amounts: Amounts,
    pub(super) model: Option<K>,
    pub(super) tenant: Option<K>,
}

impl<K> Grant<K> {
    /// What is reserved.
    #[must_use]
    pub fn amounts(&self) -> &Amounts {
        &self.amounts
    }

    /// When it was granted, so to speak.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark
    }
}

/// What a settlement has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Reserved and not used.
    pub refunded: Amounts,
    /// Used and not reserved.
    pub over: Amounts,
}

/// A denial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Why.
    pub reason: Reason,
    /// The time until the same request can be granted if nobody else comes and nothing is
    /// given back; [`NEVER`] if it cannot. Behind others, or with a slot to wait for, a
    /// lower bound.
    pub retry_after: Nanos,
    /// The dimension to blame, if one is.
    pub dimension: Option<Dimension>,
    /// What that dimension allows per window.
    pub limit: Option<u64>,
    /// What it would allow now.
    pub remaining: u64,
    /// What was asked of it.
    pub asked: u64,
}

impl Verdict {
    /// A denial that no dimension is to blame for.
    pub(super) fn of(reason: Reason, retry_after: Nanos) -> Self {
        Self { reason, retry_after, dimension: None, limit: None, remaining: 0, asked: 0 }
    }

    /// Whether waiting cannot help.
    #[must_use]
    pub fn is_never(&self) -> bool {
        self.retry_after == NEVER
    }
}

/// What a waiter finds when it looks at its ticket.
#[derive(Debug)]
pub enum Looked<K> {
    /// The reservation is the caller's; the ticket is done.
    Granted(Grant<K>),
    /// Look again after this time, or when woken.
    Wait {
        /// How long it takes at least.
        nap: Nanos,
        /// It is this one's turn then, unless limits change; else it takes somebody before
        /// it, or a slot.
        sure: bool,
    },
    /// It cannot be granted, or not in time; the ticket is done.
    Refused(Verdict),
    /// No such ticket: it is done, or was dropped by a fork.
    Gone,
}
