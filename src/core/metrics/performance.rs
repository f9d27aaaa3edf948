//! Totals of generations under one mutex.

use super::{Durations, ExactSum};
use crate::core::clock::{Clock, Nanos, nanos_from_secs, secs_from_nanos};
use crate::core::error::InvalidArgument;
use crate::core::sync::Mutex;

/// One finished generation as the caller reports it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Generation {
    /// Whether it produced what was asked for.
    pub success: bool,
    /// How long it took, in seconds.
    pub time_seconds: f64,
    /// Tokens it used, input and output together.
    pub tokens: u64,
    /// Attempts beyond the first.
    pub retries: u64,
    /// What it cost, in USD.
    pub cost_usd: f64,
}

/// Counts and sums since construction or the last reset.
///
/// One mutex around all of them: a snapshot never shows a generation half
/// counted. Counts are exact; money and time are [`ExactSum`]s.
#[derive(Debug)]
pub struct PerformanceMetrics {
    clock: Clock,
    totals: Mutex<Totals>,
}

#[derive(Debug)]
struct Totals {
    since: Nanos,
    successful: u64,
    failed: u64,
    tokens: u128,
    retries: u128,
    seconds: ExactSum,
    usd: ExactSum,
    durations: Durations,
}

impl Totals {
    fn starting_at(since: Nanos) -> Self {
        Self {
            since,
            successful: 0,
            failed: 0,
            tokens: 0,
            retries: 0,
            seconds: ExactSum::default(),
            usd: ExactSum::default(),
            durations: Durations::default(),
        }
    }
}

/// What [`PerformanceMetrics::snapshot`] returns: one consistent view.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PerformanceSnapshot {
    /// All generations.
    pub total: u64,
    /// Those that succeeded.
    pub successful: u64,
    /// Those that did not.
    pub failed: u64,
    /// All tokens.
    pub tokens: u128,
    /// All retries.
    pub retries: u128,
    /// All time spent, in seconds.
    pub seconds: f64,
    /// All money spent, in USD.
    pub usd: f64,
    /// Median time in seconds, 0 without any generation; so are the next two.
    pub p50_seconds: f64,
    /// 95th percentile of the time in seconds.
    pub p95_seconds: f64,
    /// 99th percentile of the time in seconds.
    pub p99_seconds: f64,
    /// Time since construction or the last reset, in seconds.
    pub uptime_seconds: f64,
}

impl PerformanceSnapshot {
    /// `sum` per generation, 0 without any.
    fn mean(&self, sum: f64) -> f64 {
        if self.total == 0 { 0.0 } else { sum / self.total as f64 }
    }

    /// Share of successes, 0..=100; 0 without any generation.
    #[must_use]
    pub fn success_rate_percent(&self) -> f64 {
        self.mean(self.successful as f64 * 100.0)
    }

    /// Mean time of a generation in seconds.
    #[must_use]
    pub fn avg_seconds(&self) -> f64 {
        self.mean(self.seconds)
    }

    /// Mean tokens of a generation.
    #[must_use]
    pub fn avg_tokens(&self) -> f64 {
        self.mean(self.tokens as f64)
    }

    /// Mean retries of a generation.
    #[must_use]
    pub fn avg_retries(&self) -> f64 {
        self.mean(self.retries as f64)
    }

    /// Uptime in hours.
    #[must_use]
    pub fn uptime_hours(&self) -> f64 {
        self.uptime_seconds / 3600.0
    }

    /// Generations per hour of uptime.
    ///
    /// The uptime counts as at least one second, so that the first generation
    /// of a process does not read as a throughput of millions.
    #[must_use]
    pub fn throughput_per_hour(&self) -> f64 {
        self.total as f64 * 3600.0 / self.uptime_seconds.max(1.0)
    }
}

fn at_least_zero(argument: &'static str, value: f64) -> Result<(), InvalidArgument> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(InvalidArgument::new(
        argument,
        format!("expected a finite number of at least 0, got {value}"),
    ))
}

impl PerformanceMetrics {
    /// Empty totals; the uptime starts now.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let since = clock.now();
        Self { clock, totals: Mutex::new(Totals::starting_at(since)) }
    }

    /// Counts one generation.
    ///
    /// # Errors
    /// `time_seconds` or `cost_usd` negative, infinite or not a number;
    /// nothing is counted then.
    pub fn record_generation(&self, generation: Generation) -> Result<(), InvalidArgument> {
        at_least_zero("time_seconds", generation.time_seconds)?;
        at_least_zero("cost_usd", generation.cost_usd)?;
        let mut totals = self.totals.lock();
        if generation.success {
            totals.successful += 1;
        } else {
            totals.failed += 1;
        }
        totals.tokens += u128::from(generation.tokens);
        totals.retries += u128::from(generation.retries);
        totals.seconds.add(generation.time_seconds);
        totals.usd.add(generation.cost_usd);
        totals.durations.record(nanos_from_secs(generation.time_seconds));
        Ok(())
    }

    /// All totals at one moment.
    #[must_use]
    pub fn snapshot(&self) -> PerformanceSnapshot {
        let now = self.clock.now();
        let totals = self.totals.lock();
        let quantile = |q| totals.durations.quantile(q).unwrap_or(0.0);
        PerformanceSnapshot {
            total: totals.successful + totals.failed,
            successful: totals.successful,
            failed: totals.failed,
            tokens: totals.tokens,
            retries: totals.retries,
            seconds: totals.seconds.value(),
            usd: totals.usd.value(),
            p50_seconds: quantile(0.50),
            p95_seconds: quantile(0.95),
            p99_seconds: quantile(0.99),
            uptime_seconds: secs_from_nanos(now.saturating_sub(totals.since)),
        }
    }

    /// Forgets everything; the uptime starts again.
    pub fn reset(&self) {
        let fresh = Totals::starting_at(self.clock.now());
        *self.totals.lock() = fresh;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::{ManualClock, SECOND};

    const HOUR: Nanos = 3600 * SECOND;

    fn generation(success: bool, time_seconds: f64) -> Generation {
        Generation { success, time_seconds, tokens: 100, retries: 1, cost_usd: 0.01 }
    }

    #[test]
    fn empty_totals_read_as_zero_not_as_nan() {
        let metrics = PerformanceMetrics::new(Clock::Manual(ManualClock::default()));
        let s = metrics.snapshot();
        assert_eq!(s, PerformanceSnapshot::default());
        for figure in [
            s.success_rate_percent(),
            s.avg_seconds(),
            s.avg_tokens(),
            s.avg_retries(),
            s.uptime_hours(),
            s.throughput_per_hour(),
        ] {
            assert_eq!(figure.to_bits(), 0.0_f64.to_bits());
        }
    }

    #[test]
    fn the_figures_of_an_afternoon() {
        let time = ManualClock::default();
        let metrics = PerformanceMetrics::new(Clock::Manual(time.clone()));
        for i in 0..10 {
            metrics.record_generation(generation(i != 3, f64::from(i + 1))).unwrap();
        }
        time.advance(2 * HOUR);
        let s = metrics.snapshot();
        assert_eq!((s.total, s.successful, s.failed), (10, 9, 1));
        assert_eq!((s.tokens, s.retries), (1000, 10));
        assert!((s.success_rate_percent() - 90.0).abs() < 1e-12);
        assert!((s.avg_seconds() - 5.5).abs() < 1e-12);
        assert!((s.usd - 0.1).abs() < 1e-15);
        assert!((s.uptime_hours() - 2.0).abs() < 1e-12);
        assert!((s.throughput_per_hour() - 5.0).abs() < 1e-12);
        assert!((s.p50_seconds - 5.0).abs() < 0.1);
        assert!((s.p99_seconds - 10.0).abs() < 0.2);
    }

    #[test]
    fn bad_numbers_are_refused_whole() {
        let metrics = PerformanceMetrics::new(Clock::Manual(ManualClock::default()));
        for bad in [-0.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let error = metrics.record_generation(generation(true, bad)).unwrap_err();
            assert_eq!(error.argument, "time_seconds");
            let mut g = generation(true, 1.0);
            g.cost_usd = bad;
            assert_eq!(metrics.record_generation(g).unwrap_err().argument, "cost_usd");
        }
        assert_eq!(metrics.snapshot().total, 0);
    }

    #[test]
    fn the_largest_counts_do_not_wrap() {
        let metrics = PerformanceMetrics::new(Clock::Manual(ManualClock::default()));
        let largest = Generation {
            success: true,
            time_seconds: f64::MAX,
            tokens: u64::MAX,
            retries: u64::MAX,
            cost_usd: f64::MAX,
        };
        metrics.record_generation(largest).unwrap();
        metrics.record_generation(largest).unwrap();
        let s = metrics.snapshot();
        assert_eq!(s.tokens, 2 * u128::from(u64::MAX));
        assert!(s.usd.is_finite() && s.avg_seconds().is_finite() && s.p99_seconds.is_finite());
    }

    #[test]
    fn a_reset_starts_the_uptime_again() {
        let time = ManualClock::default();
        let metrics = PerformanceMetrics::new(Clock::Manual(time.clone()));
        metrics.record_generation(generation(true, 1.0)).unwrap();
        time.advance(HOUR);
        metrics.reset();
        assert_eq!(metrics.snapshot(), PerformanceSnapshot::default());
    }

    #[test]
    fn eight_threads_count_everything_once() {
        let metrics = PerformanceMetrics::new(Clock::Manual(ManualClock::default()));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for i in 0..1000 {
                        metrics.record_generation(generation(i % 10 != 0, 0.001)).unwrap();
                    }
                });
            }
        });
        let s = metrics.snapshot();
        assert_eq!((s.successful, s.failed), (7200, 800));
        assert_eq!(s.tokens, 800_000);
        assert_eq!(s.usd.to_bits(), 80.0_f64.to_bits());
        assert_eq!(s.seconds.to_bits(), 8.0_f64.to_bits());
    }
}
