//! Limits per window that find themselves, for a provider that refuses and does not tell its own.

use super::amounts::{DIMENSIONS, Dimension, Totals};
use crate::core::clock::Nanos;
use crate::core::limiter::adaptive::Herd;

/// What is left of the rate in use after a refusal. Milder than what TCP and `Aimd` do on
/// concurrency: a rate has no queue that has to drain, and the mean of the sawtooth is what is used.
const BACKOFF: f64 = 0.9;
/// One refusal takes half of what was allowed at most: the window may be hardly begun.
const DEEPEST: f64 = 0.5;
/// It never falls below this share of what is configured.
const LEAST: f64 = 0.01;
/// It grows by this share of its peak for each window's worth of answers.
const STEP: f64 = 0.05;
/// What a peak counts at the next cut: a limit that was set far too high makes no large steps for
/// long, and one bad hour no small ones (by steps of the configured limit, a limit of 8 times what
/// the provider allowed had 7 % of all requests refused for ever).
const PEAK_KEPT: f64 = 0.8;
/// Requests per window that are taken for the rate in use at least, where none is configured.
const FEWEST: u64 = 10;

/// What a provider counts per minute.
const RATES: [Dimension; 4] =
    [Dimension::Requests, Dimension::InputTokens, Dimension::OutputTokens, Dimension::Tokens];

/// What is known of limits that find themselves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateStats {
    /// What is allowed now, as a ratio of what is configured, or of the requests that were in
    /// use at the first refusal; 1 before there is any.
    pub share: f64,
    /// Times that it was cut.
    pub cuts: u64,
    /// Whether the provider has told its limits, which count in place of this.
    pub told: bool,
}

/// Additive increase and multiplicative decrease of all rates together (as `Aimd`, which see):
/// nobody says which of them was exceeded.
#[derive(Debug)]
pub(super) struct Rate {
    share: f64,
    /// Before the last cut, or before one that was much higher and not long ago.
    peak: f64,
    /// Requests per window that were in use at the first refusal, where no rate is configured.
    observed: Option<u64>,
    herd: Herd,
    cuts: u64,
}

impl Default for Rate {
    fn default() -> Self {
        Self { share: 1.0, peak: 1.0, observed: None, herd: Herd::default(), cuts: 0 }
    }
}

impl Rate {
    /// What 1 stands for in a dimension; `None` where nothing is cut.
    fn whole(&self, d: usize, configured: &[Option<u64>; DIMENSIONS]) -> Option<u64> {
        let is = |dimension: &Dimension| dimension.index() == d;
        let rate = RATES.iter().find(|dimension| is(dimension))?;
        if RATES.iter().any(|known| configured[known.index()].is_some()) {
            return configured[d];
        }
        self.observed.filter(|_| *rate == Dimension::Requests)
    }

    /// What is allowed of a dimension per window; `None`: all.
    pub(super) fn cap(&self, d: usize, configured: &[Option<u64>; DIMENSIONS]) -> Option<u64> {
        let whole = self.whole(d, configured)? as f64;
        Some(((whole * self.share) as u64).max(1))
    }

    /// How much of its limit the fullest dimension has used.
    fn in_use(&self, configured: &[Option<u64>; DIMENSIONS], used: &Totals) -> f64 {
        let part = |d: usize| self.whole(d, configured).map(|all| used[d] as f64 / all as f64);
        (0..DIMENSIONS).filter_map(part).fold(0.0, f64::max)
    }

    /// A request that began then was refused.
    pub(super) fn refused(
        &mut self,
        configured: &[Option<u64>; DIMENSIONS],
        used: &Totals,
        begun: Nanos,
        now: Nanos,
    ) {
        if self.herd.began_before(begun) {
            return;
        }
        if self.observed.is_none() {
            let requests = used[Dimension::Requests.index()];
            self.observed = Some(u64::try_from(requests).unwrap_or(u64::MAX).max(FEWEST));
        }
        self.peak = self.share.max(self.peak * PEAK_KEPT);
        let in_use = self.in_use(configured, used).clamp(self.share * DEEPEST, self.share);
        self.share = (in_use * BACKOFF).max(LEAST);
        self.herd.cut(now);
        self.cuts += 1;
    }

    /// A request that began then was answered: it grows if it is made use of.
    pub(super) fn went_well(
        &mut self,
        configured: &[Option<u64>; DIMENSIONS],
        used: &Totals,
        begun: Nanos,
    ) {
        let cut = self.cuts > 0 && !self.herd.began_before(begun);
        if !cut || self.in_use(configured, used) * 2.0 < self.share {
            return;
        }
        let requests = used[Dimension::Requests.index()].max(1) as f64;
        let is_configured = RATES.iter().any(|known| configured[known.index()].is_some());
        // What was seen once is no bound.
        let most = if is_configured { 1.0 } else { f64::from(u32::MAX) };
        self.share = (self.share + STEP * self.peak / requests).min(most);
    }

    pub(super) fn stats(&self, told: bool) -> RateStats {
        let share = if told { 1.0 } else { self.share };
        RateStats { share, cuts: self.cuts, told }
    }
}
