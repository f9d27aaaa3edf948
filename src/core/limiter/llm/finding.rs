//! What the limiter finds out by itself: calls at a time, and what is allowed per window.

use std::hash::Hash;

use super::LlmLimiter;
use super::amounts::{Amounts, Dimension};
use super::decision::{Grant, Mark};
use super::rate::RateStats;
use super::settings::{Change, check_limits};
use super::state::Inner;
use crate::core::clock::{Nanos, SECOND};
use crate::core::error::InvalidArgument;
use crate::core::limiter::Outbox;
use crate::core::limiter::adaptive::{Adaptive, AdaptiveStats, Call, ConcurrencySettings};
use crate::core::outcome::Outcome;

/// How long ago a request began of which only the refusal is known; more than a refusal takes.
pub const USUAL_REFUSAL: Nanos = SECOND;

impl<K: Eq + Hash + Copy, W: Clone> LlmLimiter<K, W> {
    /// The request was sent and refused: refunds all but the request itself, and cuts what
    /// finds itself.
    pub fn refuse(&self, grant: Grant<K>, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        if inner.close(now, &grant, &Amounts::new(1, 0, 0, 0)) {
            inner.released += 1;
            self.learned(&mut inner, now, &grant.mark, Outcome::Throttled, None);
        }
        inner.pump(now, out);
    }

    /// The provider has refused a request, for its rate or only for the load: cuts what finds
    /// itself, once for all requests that were under way together. Without `answered` it is
    /// taken to have begun [`USUAL_REFUSAL`] ago.
    pub fn refused(&self, answered: Option<Mark>, for_rate: bool, out: &mut Outbox<K, W>) {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        let known = answered.filter(|mark| mark.epoch == inner.epoch);
        if !self.enabled || (answered.is_some() && known.is_none()) {
            return;
        }
        let begun = Call::new(now.saturating_sub(USUAL_REFUSAL), inner.in_use);
        let call = known.map_or(begun, |mark| mark.call);
        inner.learn(now, &call, Outcome::Throttled, None);
        if for_rate {
            inner.ledger.refused(call.begun, now);
        }
        inner.pump(now, out);
    }

    /// The first token of an answer has come; later ones change nothing. True the first time.
    pub fn first_token(&self, grant: &mut Grant<K>, out: &mut Outbox<K, W>) -> bool {
        if grant.mark.call.first.is_some() {
            return false;
        }
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        if inner.epoch == grant.mark.epoch && self.enabled {
            inner.first_token(now, &mut grant.mark.call);
            inner.pump(now, out);
        } else {
            grant.mark.call.first = Some(now);
        }
        true
    }

    pub(super) fn learned(
        &self,
        inner: &mut Inner<K, W>,
        now: Nanos,
        mark: &Mark,
        outcome: Outcome,
        output: Option<u64>,
    ) {
        if !self.enabled {
            return;
        }
        inner.learn(now, &mark.call, outcome, output);
        match outcome {
            Outcome::Success => inner.ledger.went_well(mark.call.begun),
            Outcome::Throttled => inner.ledger.refused(mark.call.begun, now),
            Outcome::Failure | Outcome::Neutral => {}
        }
    }

    /// [`LlmLimiter::update`] with a limit on concurrency that finds itself from now on.
    ///
    /// # Errors
    /// As there, and as [`Adaptive::new`].
    pub fn update_adaptive(
        &self,
        limits: [Change<u64>; Dimension::ALL.len()],
        concurrency: ConcurrencySettings,
        out: &mut Outbox<K, W>,
    ) -> Result<(), InvalidArgument> {
        let adaptive = Box::new(Adaptive::new(concurrency)?);
        let initial = Change::To(Some(concurrency.initial));
        self.reconfigure(limits, initial, Some(adaptive), out)
    }

    pub(super) fn reconfigure(
        &self,
        limits: [Change<u64>; Dimension::ALL.len()],
        concurrency: Change<u32>,
        adaptive: Option<Box<Adaptive>>,
        out: &mut Outbox<K, W>,
    ) -> Result<(), InvalidArgument> {
        let mut inner = self.inner.lock();
        let now = inner.tick(&self.clock);
        let old = *inner.ledger.configured();
        let limits = std::array::from_fn(|d| limits[d].over(old[d]));
        let slots = concurrency.over(inner.slots);
        let one = inner.ledger.finds_itself().then_some(1);
        check_limits(&limits, slots.or(one), inner.priced)?;
        inner.ledger.configure(limits);
        inner.slots = slots;
        if concurrency != Change::Keep {
            inner.adaptive = adaptive;
        }
        inner.pump(now, out);
        Ok(())
    }

    /// Whether it goes by how requests end.
    pub fn finds_itself(&self) -> bool {
        let inner = self.inner.lock();
        inner.adaptive.is_some() || inner.ledger.finds_itself()
    }

    /// What is known of limits that find themselves: on concurrency, and per window.
    pub fn adaptive_stats(&self) -> (Option<AdaptiveStats>, Option<RateStats>) {
        let inner = self.inner.lock();
        (inner.adaptive.as_ref().map(|found| found.stats()), inner.ledger.rate_stats())
    }
}
