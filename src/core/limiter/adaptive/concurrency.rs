//! A limit on concurrency that reads what it needs from the course of each call.

use super::{Aimd, AimdSettings, Gradient, GradientSettings};
use crate::core::clock::{Nanos, secs_from_nanos};
use crate::core::error::InvalidArgument;
use crate::core::outcome::Outcome;

/// How the limit moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Law {
    /// [`Gradient`].
    Gradient,
    /// [`Aimd`].
    Aimd,
}

/// What of a call's course tells how loaded the other side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The time to the first token: the wait for a place in the batch, and the prompt's work.
    Ttft,
    /// The time per output token: how full the batch is.
    Tpot,
    /// The whole call, which mostly tells how long its answer was.
    Latency,
}

impl Law {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gradient => "gradient",
            Self::Aimd => "aimd",
        }
    }

    /// # Errors
    /// When there is none of that name.
    pub fn parse(name: &str) -> Result<Self, InvalidArgument> {
        let known = [Self::Gradient, Self::Aimd].into_iter().find(|law| law.name() == name);
        let wrong = || format!("expected \"gradient\" or \"aimd\", got {name:?}");
        known.ok_or_else(|| InvalidArgument::new("law", wrong()))
    }
}

impl Signal {
    /// Its name: the terms are those of vLLM's and other servers' metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::Latency => "latency",
        }
    }

    /// # Errors
    /// When there is none of that name.
    pub fn parse(name: &str) -> Result<Self, InvalidArgument> {
        let all = [Self::Ttft, Self::Tpot, Self::Latency];
        let wrong = || format!("expected \"ttft\", \"tpot\" or \"latency\", got {name:?}");
        let known = all.into_iter().find(|signal| signal.name() == name);
        known.ok_or_else(|| InvalidArgument::new("signal", wrong()))
    }
}

/// How a limit on concurrency is set up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConcurrencySettings {
    /// The limit at first.
    pub initial: u32,
    /// It never falls below.
    pub least: u32,
    /// It never rises above.
    pub most: u32,
    /// How it moves.
    pub law: Law,
    /// What it goes by.
    pub signal: Signal,
    /// [`GradientSettings::tolerance`].
    pub tolerance: f64,
    /// [`GradientSettings::queue_size`].
    pub queue_size: f64,
    /// [`GradientSettings::window`].
    pub window: u32,
    /// What is left of it after a refusal, as a ratio.
    pub backoff_ratio: f64,
    /// For [`Law::Aimd`]: a signal of more than this is as good as a refusal.
    pub slow_after: Option<Nanos>,
}

impl Default for ConcurrencySettings {
    fn default() -> Self {
        let usual = GradientSettings::default();
        Self {
            initial: 10,
            least: 1,
            most: 1_000,
            law: Law::Gradient,
            signal: Signal::Ttft,
            tolerance: usual.tolerance,
            queue_size: usual.queue_size,
            window: usual.window,
            backoff_ratio: usual.backoff_ratio,
            slow_after: None,
        }
    }
}

/// One call that holds a slot, as far as it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it got its slot.
    pub begun: Nanos,
    /// How many were under way then, itself included.
    pub in_flight: u32,
    /// When its first token came.
    pub first: Option<Nanos>,
}

impl Call {
    /// One that begins now.
    #[must_use]
    pub fn new(begun: Nanos, in_flight: u32) -> Self {
        Self { begun, in_flight, first: None }
    }
}

/// What a limit has seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaptiveStats {
    /// How it was set up.
    pub settings: ConcurrencySettings,
    /// What is allowed now.
    pub limit: u32,
    /// Calls whose signal counted.
    pub samples: u64,
    /// Calls that ended well and had no signal, or one of a load that is not allowed any more.
    pub skipped: u64,
    /// Times that the limit was cut.
    pub cuts: u64,
    /// What the gradient takes for the signal without a queue, in seconds; 0 before there is any.
    pub usual: f64,
    /// Whether the limit is halved for a while, to see what is usual.
    pub probing: bool,
}

#[derive(Clone, Copy, Debug)]
enum Driven {
    Gradient(Gradient),
    Aimd(Aimd),
}

/// A [`Gradient`] or an [`Aimd`] that goes by one [`Signal`].
///
/// An answer's length is its own affair: a server that batches takes as long for 1,000 tokens at
/// rest as for 100 tokens under ten times the load. So the whole latency of calls to a model says
/// little, and what it says is mostly wrong; the time to the first token rises when calls queue,
/// the time per token when the batch is full.
#[derive(Clone, Copy, Debug)]
pub struct Adaptive {
    settings: ConcurrencySettings,
    driven: Driven,
    samples: u64,
    skipped: u64,
    cuts: u64,
}

impl Adaptive {
    /// # Errors
    /// For a limit that is not between its bounds, and for a setting that makes no sense.
    pub fn new(settings: ConcurrencySettings) -> Result<Self, InvalidArgument> {
        let ConcurrencySettings { tolerance, queue_size, window, backoff_ratio, .. } = settings;
        let [initial, least, most] =
            [settings.initial, settings.least, settings.most].map(u64::from);
        let gradient = GradientSettings {
            initial,
            least,
            most,
            queue_size,
            backoff_ratio,
            tolerance,
            window,
            ..GradientSettings::default()
        };
        let aimd = AimdSettings { initial, least, most, backoff_ratio, ..AimdSettings::default() };
        // A wrong setting is an error whether or not this law needs it.
        let (gradient, aimd) = (Gradient::new(gradient)?, Aimd::new(aimd)?);
        let driven = match settings.law {
            Law::Gradient => Driven::Gradient(gradient),
            Law::Aimd => Driven::Aimd(aimd),
        };
        if settings.slow_after.is_some() && settings.law == Law::Gradient {
            let message = "for law=\"aimd\" only; the gradient finds out what is slow";
            return Err(InvalidArgument::new("slow_after", message));
        }
        if settings.slow_after == Some(0) {
            return Err(InvalidArgument::new("slow_after", "expected more than 0 seconds, got 0"));
        }
        Ok(Self { settings, driven, samples: 0, skipped: 0, cuts: 0 })
    }

    /// One with the same settings that has seen nothing.
    ///
    /// # Errors
    /// None, as the settings are those of one that was made.
    pub fn anew(&self) -> Result<Self, InvalidArgument> {
        Self::new(self.settings)
    }

    /// What is allowed now.
    #[must_use]
    pub fn limit(&self) -> u32 {
        let limit = match &self.driven {
            Driven::Gradient(law) => law.limit(),
            Driven::Aimd(law) => law.limit(),
        };
        u32::try_from(limit).unwrap_or(u32::MAX)
    }

    /// A call's first token has come; later ones change nothing.
    pub fn first_token(&mut self, call: &mut Call, now: Nanos) {
        if call.first.is_some() {
            return;
        }
        call.first = Some(now);
        if self.settings.signal == Signal::Ttft {
            self.measured(call, now.saturating_sub(call.begun), 1.0, now);
        }
    }

    /// A call has ended, with so many output tokens if anybody knows.
    ///
    /// [`Outcome::Throttled`] is every refusal, and every answer that did not come in time. A
    /// failure says nothing: it may be of the request. Neither does a call that was left.
    pub fn ended(&mut self, call: &Call, outcome: Outcome, tokens: Option<u64>, now: Nanos) {
        match outcome {
            Outcome::Success => self.succeeded(call, tokens, now),
            Outcome::Throttled => self.cut(call, now),
            Outcome::Failure | Outcome::Neutral => {}
        }
    }

    fn succeeded(&mut self, call: &Call, tokens: Option<u64>, now: Nanos) {
        let took = now.saturating_sub(call.begun);
        let signal = match (self.settings.signal, call.first) {
            // Counted when it came.
            (Signal::Ttft, Some(_)) => None,
            (Signal::Ttft, None) => Some(None),
            (Signal::Latency, _) => Some(Some((took, 1.0))),
            // The first token came at the beginning of that time.
            (Signal::Tpot, Some(first)) => {
                let after = tokens.filter(|&tokens| tokens > 1).map(|tokens| tokens - 1);
                Some(after.map(|after| (now.saturating_sub(first), after as f64)))
            }
            // Whole answers: what the literature calls normalized latency.
            (Signal::Tpot, None) => {
                let tokens = tokens.filter(|&tokens| tokens > 0);
                Some(tokens.map(|tokens| (took, tokens as f64)))
            }
        };
        match signal {
            None => {}
            Some(Some((time, tokens))) => self.measured(call, time, tokens, now),
            Some(None) if self.needs_signal() => self.skipped += 1,
            Some(None) => self.samples += 1,
        }
        if let Driven::Aimd(law) = &mut self.driven {
            law.ended(Outcome::Success, call.in_flight.into(), call.begun, now);
        }
    }

    fn needs_signal(&self) -> bool {
        self.settings.law == Law::Gradient || self.settings.slow_after.is_some()
    }

    /// The signal of a call: `time` over so many tokens.
    fn measured(&mut self, call: &Call, time: Nanos, tokens: f64, now: Nanos) {
        let signal = secs_from_nanos(time) / tokens;
        match &mut self.driven {
            Driven::Gradient(law) => {
                if u64::from(call.in_flight) > STALE.saturating_mul(law.limit()) {
                    self.skipped += 1;
                    return;
                }
                law.sample(signal, call.in_flight.into());
            }
            Driven::Aimd(_) => {
                let slow = self.settings.slow_after.map_or(f64::INFINITY, secs_from_nanos);
                if signal > slow {
                    self.cut(call, now);
                }
            }
        }
        self.samples += 1;
    }

    fn cut(&mut self, call: &Call, now: Nanos) {
        let was_cut = match &mut self.driven {
            Driven::Gradient(law) => law.refused(call.begun, now),
            Driven::Aimd(law) => {
                law.ended(Outcome::Throttled, call.in_flight.into(), call.begun, now)
            }
        };
        self.cuts += u64::from(was_cut);
    }

    /// A consistent view.
    #[must_use]
    pub fn stats(&self) -> AdaptiveStats {
        let (usual, probing) = match &self.driven {
            Driven::Gradient(law) => (law.usual(), law.is_probing()),
            Driven::Aimd(_) => (0.0, false),
        };
        let Self { settings, samples, skipped, cuts, .. } = *self;
        let limit = self.limit();
        AdaptiveStats { settings, limit, samples, skipped, cuts, usual, probing }
    }
}

/// A call that began among so many times what is allowed now tells of another load.
const STALE: u64 = 2;
