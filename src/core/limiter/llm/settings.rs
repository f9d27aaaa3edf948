//! How a limiter of LLM traffic is set up.

use super::amounts::{DIMENSIONS, Dimension};
use crate::core::clock::{Nanos, SECOND};
use crate::core::error::InvalidArgument;
use crate::core::limiter::adaptive::ConcurrencySettings;
use crate::core::quantile::PerMille;

/// The output of an answer of which nothing is known, if the limits allow it.
const DEFAULT_OUTPUT: u64 = 1024;
/// Half of what the clock can count: sums of two times cannot overflow into "never".
const MAX_PERIOD: Nanos = u64::MAX / 2;

/// A new setting, or the old one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// As it is.
    #[default]
    Keep,
    /// `None`: no limit.
    To(Option<T>),
}

impl<T> Change<T> {
    pub(super) fn over(self, old: Option<T>) -> Option<T> {
        match self {
            Self::Keep => old,
            Self::To(new) => new,
        }
    }
}

/// Who goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fairness {
    /// Whoever came first.
    Fifo,
    /// Tenants by their weights.
    Weighted,
}

impl Fairness {
    /// # Errors
    /// When there is none of that name.
    pub fn parse(name: &str) -> Result<Self, InvalidArgument> {
        match name {
            "fifo" => Ok(Self::Fifo),
            "weighted" => Ok(Self::Weighted),
            _ => Err(InvalidArgument::new(
                "fairness",
                format!("expected \"fifo\" or \"weighted\", got {name:?}"),
            )),
        }
    }

    /// The name that [`Fairness::parse`] knows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fifo => "fifo",
            Self::Weighted => "weighted",
        }
    }
}

/// How a limiter is set up.
#[derive(Clone, Debug)]
pub struct Settings<K> {
    /// What is allowed per window, by the dimensions' order; money in
    /// [`super::NANO_USD`]ths. Without a limit on requests there are 2^20.
    pub limits: [Option<u64>; DIMENSIONS],
    /// Calls at one time; `None`: no bound.
    pub concurrency: Option<u32>,
    /// Calls at one time that find themselves, in place of `concurrency`.
    pub adaptive: Option<ConcurrencySettings>,
    /// Whether refusals cut what is allowed per window, where the provider does not tell.
    pub adaptive_rate: bool,
    /// The window: a minute, and a margin for requests whose way takes unlike long.
    pub period: Nanos,
    /// Who goes next.
    pub fairness: Fairness,
    /// Shares of tenants in [`super::WEIGHT_ONE`]ths; others have one.
    pub weights: Vec<(K, u32)>,
    /// Requests that may stand in line.
    pub max_waiters: usize,
    /// Tenants that are told apart at one time.
    pub max_tenants: usize,
    /// Models whose answers are known apart.
    pub max_models: usize,
    /// The share of answers that the estimate covers, 0..1.
    pub estimate_quantile: f64,
    /// The output of an answer of which nothing is known.
    pub default_output: Option<u64>,
    /// Whether somebody else limits money: then it is learned and estimated without a limit on
    /// it, and there need be no other limit.
    pub priced: bool,
    /// Off: everything is granted and counted.
    pub enabled: bool,
}

impl<K> Default for Settings<K> {
    fn default() -> Self {
        Self {
            limits: [None; DIMENSIONS],
            concurrency: None,
            adaptive: None,
            adaptive_rate: false,
            period: 60 * SECOND,
            fairness: Fairness::Fifo,
            weights: Vec::new(),
            max_waiters: 65_536,
            max_tenants: 4096,
            max_models: 256,
            estimate_quantile: 0.9,
            default_output: None,
            priced: false,
            enabled: true,
        }
    }
}

/// The argument that sets a dimension's limit.
fn argument(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::Requests => "requests_per_minute",
        Dimension::InputTokens => "input_tokens_per_minute",
        Dimension::OutputTokens => "output_tokens_per_minute",
        Dimension::Tokens => "tokens_per_minute",
        Dimension::Usd => "usd_per_minute",
    }
}

/// Whether there is something to limit that can be kept.
pub(super) fn check_limits(
    limits: &[Option<u64>; DIMENSIONS],
    concurrency: Option<u32>,
    priced: bool,
) -> Result<(), InvalidArgument> {
    if limits.iter().all(Option::is_none) && concurrency.is_none() && !priced {
        return Err(InvalidArgument::new(
            "requests_per_minute",
            "expected at least one limit, such as requests_per_minute=, tokens_per_minute= or \
             concurrency=",
        ));
    }
    for dimension in Dimension::ALL {
        if limits[dimension.index()] == Some(0) {
            return Err(InvalidArgument::new(argument(dimension), "expected more than 0, got 0"));
        }
    }
    if concurrency == Some(0) {
        return Err(InvalidArgument::new("concurrency", "expected at least 1, got 0"));
    }
    let of = |dimension: Dimension| limits[dimension.index()];
    if let Some(tokens) = of(Dimension::Tokens) {
        for dimension in [Dimension::InputTokens, Dimension::OutputTokens] {
            if let Some(part) = of(dimension).filter(|&part| part > tokens) {
                return Err(InvalidArgument::new(
                    argument(dimension),
                    format!(
                        "expected at most tokens_per_minute={tokens}, which counts them too, got {part}"
                    ),
                ));
            }
        }
    }
    Ok(())
}

impl<K> Settings<K> {
    pub(super) fn checked(self) -> Result<Self, InvalidArgument> {
        // A rate that is yet to be found is a limit, too.
        let one = self.adaptive.map(|found| found.initial).or(self.adaptive_rate.then_some(1));
        check_limits(&self.limits, self.concurrency.or(one), self.priced)?;
        if self.period == 0 || self.period > MAX_PERIOD {
            let message = "expected a margin that leaves windows of at most 292 years";
            return Err(InvalidArgument::new("window_margin", message));
        }
        for (argument, value) in
            [("max_tenants", self.max_tenants), ("max_models", self.max_models)]
        {
            if value == 0 {
                return Err(InvalidArgument::new(argument, "expected at least 1, got 0"));
            }
        }
        if self.weights.iter().any(|&(_, weight)| weight == 0) {
            return Err(InvalidArgument::new("weights", "expected weights above 0.001, got 0"));
        }
        let quantile = self.estimate_quantile;
        if !(0.001..=1.0).contains(&quantile) {
            let message = format!("expected a share above 0 and at most 1, got {quantile}");
            return Err(InvalidArgument::new("estimate_quantile", message));
        }
        if let (Some(output), Some(limit)) = (self.default_output, self.most_output())
            && output > limit
        {
            let message = format!(
                "expected at most the {limit} tokens that can ever be granted, got {output}"
            );
            return Err(InvalidArgument::new("default_output_tokens", message));
        }
        Ok(self)
    }

    /// The most output that can ever be granted.
    fn most_output(&self) -> Option<u64> {
        let both = [Dimension::OutputTokens, Dimension::Tokens];
        both.into_iter().filter_map(|dimension| self.limits[dimension.index()]).min()
    }

    pub(super) fn quantile(&self) -> PerMille {
        PerMille((self.estimate_quantile * 1000.0).round() as u32)
    }

    pub(super) fn default_output(&self) -> u64 {
        self.default_output.unwrap_or(DEFAULT_OUTPUT)
    }
}
