//! A limit on concurrency from the slope of latency.

use super::{Herd, check_range, check_ratio, whole};
use crate::core::clock::Nanos;
use crate::core::error::InvalidArgument;

/// How a [`Gradient`] is set up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradientSettings {
    /// The limit at first.
    pub initial: u64,
    /// It never falls below.
    pub least: u64,
    /// It never rises above.
    pub most: u64,
    /// How much may queue at the other side: what the limit rises by when latency does not.
    pub queue_size: f64,
    /// The share of each new estimate in the limit, as a ratio.
    pub smoothing: f64,
    /// What is left of it after a refusal, as a ratio.
    pub backoff_ratio: f64,
    /// By so many times latency may exceed the usual one before it counts.
    pub tolerance: f64,
    /// Samples that are averaged to one estimate.
    pub window: u32,
    /// Estimates after which the usual latency is looked for again, under half the limit.
    pub probe_every: u32,
}

impl Default for GradientSettings {
    fn default() -> Self {
        Self {
            initial: 20,
            least: 1,
            most: 1_000,
            queue_size: 4.0,
            smoothing: 0.2,
            backoff_ratio: 0.7,
            tolerance: 1.5,
            window: 10,
            probe_every: 100,
        }
    }
}

/// Estimates that a search for the usual latency may take: those who began under the whole limit
/// have to end first.
const LONGEST_PROBE: u32 = 10;
/// The weight of a lower latency in the usual one.
const FALL: f64 = 0.1;

/// A limit that goes by the ratio of the usual latency to the present one, which is 1 while
/// nothing queues.
///
/// The step is that of Netflix's concurrency-limits ("Performance Under Load", 2018). What is
/// usual it takes from an average over the last 600 windows, which an overload that lasts becomes
/// part of: under constant demand, here, such a limit crept from 150 to its bound of 1,000 in
/// 1,500 windows. So, as Envoy's adaptive concurrency filter does, the limit is halved for some
/// windows now and then, and what is measured then is usual. In between the usual latency only
/// falls, or follows what is measured while the limit is not made use of.
///
/// Latency may be of any kind and in any unit, if it grows with the load.
#[derive(Clone, Copy, Debug)]
pub struct Gradient {
    settings: GradientSettings,
    limit: f64,
    /// The window that is being filled: its sum, samples, and the most calls at one time.
    sum: f64,
    samples: u32,
    in_flight: u64,
    /// 0 before there is any.
    usual: f64,
    /// Estimates since the last search for it.
    estimates: u32,
    probing: bool,
    herd: Herd,
}

impl Gradient {
    /// # Errors
    /// For a limit that is not between its bounds, and for a setting that makes no sense.
    pub fn new(settings: GradientSettings) -> Result<Self, InvalidArgument> {
        check_range(settings.least, settings.initial, settings.most)?;
        check_ratio("smoothing", settings.smoothing)?;
        check_ratio("backoff_ratio", settings.backoff_ratio)?;
        if !(settings.queue_size.is_finite() && settings.queue_size > 0.0) {
            let message = format!("expected a finite number above 0, got {}", settings.queue_size);
            return Err(InvalidArgument::new("queue_size", message));
        }
        if !(settings.tolerance.is_finite() && settings.tolerance >= 1.0) {
            let got = settings.tolerance;
            let message = format!("expected a finite number of at least 1, got {got}");
            return Err(InvalidArgument::new("tolerance", message));
        }
        if settings.window == 0 {
            return Err(InvalidArgument::new("window", "expected at least 1, got 0"));
        }
        if settings.probe_every <= LONGEST_PROBE {
            let got = settings.probe_every;
            let message = format!("expected more than {LONGEST_PROBE}, got {got}");
            return Err(InvalidArgument::new("probe_every", message));
        }
        Ok(Self {
            settings,
            limit: settings.initial as f64,
            sum: 0.0,
            samples: 0,
            in_flight: 0,
            usual: 0.0,
            estimates: 0,
            probing: false,
            herd: Herd::default(),
        })
    }

    /// What is allowed now.
    #[must_use]
    pub fn limit(&self) -> u64 {
        if self.probing {
            return whole(self.limit / 2.0).max(self.settings.least);
        }
        whole(self.limit)
    }

    /// Whether it is halved for a while, to see what latency is without a queue.
    #[must_use]
    pub fn is_probing(&self) -> bool {
        self.probing
    }

    /// The usual latency, in the unit of the samples; 0 before there is any.
    #[must_use]
    pub fn usual(&self) -> f64 {
        self.usual
    }

    /// A call that took `latency` has ended, while `in_flight` were under way, itself included.
    /// A latency that is not finite or not above 0 is none.
    pub fn sample(&mut self, latency: f64, in_flight: u64) {
        if !latency.is_finite() || latency <= 0.0 {
            return;
        }
        // A running mean: the sum of the largest floats would be infinite.
        self.samples += 1;
        self.sum += (latency - self.sum) / f64::from(self.samples);
        self.in_flight = self.in_flight.max(in_flight);
        if self.samples >= self.settings.window {
            let (present, in_flight) = (self.sum, self.in_flight);
            (self.sum, self.samples, self.in_flight) = (0.0, 0, 0);
            self.estimate(present, in_flight);
        }
    }

    /// A call that began at `begun` was refused, or had no answer in time: cuts the limit, once
    /// for a herd. True if it was cut.
    ///
    /// Latency says nothing about those: a refusal is fast.
    pub fn refused(&mut self, begun: Nanos, now: Nanos) -> bool {
        if self.herd.began_before(begun) {
            return false;
        }
        self.limit = (self.limit * self.settings.backoff_ratio).max(self.settings.least as f64);
        (self.sum, self.samples, self.in_flight) = (0.0, 0, 0);
        self.herd.cut(now);
        true
    }

    fn estimate(&mut self, present: f64, in_flight: u64) {
        // Half used: whatever latency is, it is not this limit that makes it.
        let free = (in_flight as f64) < self.limit / 2.0;
        if self.probing {
            let measured = in_flight <= self.limit();
            if measured {
                self.usual = present;
            }
            self.estimates += 1;
            self.probing = !measured && self.estimates < LONGEST_PROBE;
            return;
        }
        if self.usual == 0.0 {
            self.usual = present;
        } else if present < self.usual {
            self.usual += (present - self.usual) * FALL;
        }
        if free {
            (self.usual, self.estimates) = (present, 0);
            return;
        }
        self.estimates += 1;
        if self.estimates >= self.settings.probe_every {
            (self.estimates, self.probing) = (0, true);
        }
        // At least a half, so that one outlier does not take all.
        let gradient = (self.settings.tolerance * self.usual / present).clamp(0.5, 1.0);
        let wanted = self.limit * gradient + self.settings.queue_size;
        let (least, most) = (self.settings.least as f64, self.settings.most as f64);
        self.limit =
            (self.limit + (wanted - self.limit) * self.settings.smoothing).clamp(least, most);
    }
}
