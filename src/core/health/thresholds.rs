//! When a reading is an alert.

use super::alerts::{Severity, Signal, State};
use crate::core::error::InvalidArgument;

/// Lookups in the window below which a hit rate says nothing: a cache that has
/// just started misses every time, and with 100 lookups the rate of a 50 %
/// cache is known to about ±10 points (95 % confidence).
pub const MIN_LOOKUPS: u64 = 100;

/// Levels above (for the hit rate: below) which an alert is raised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AlertThreshold {
    /// Share of failed generations, 0..=100.
    pub error_rate_percent: f64,
    /// Mean time of a generation in seconds.
    pub avg_response_time_seconds: f64,
    /// Share of lookups that hit, 0..=100.
    pub cache_hit_rate_percent: f64,
    /// Memory used, 0..=100.
    pub memory_usage_percent: f64,
    /// Disk used, 0..=100.
    pub disk_usage_percent: f64,
}

impl Default for AlertThreshold {
    fn default() -> Self {
        Self {
            error_rate_percent: 10.0,
            avg_response_time_seconds: 30.0,
            cache_hit_rate_percent: 50.0,
            memory_usage_percent: 80.0,
            disk_usage_percent: 90.0,
        }
    }
}

/// What is judged; `None` is not known and leaves an alert as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Readings {
    /// Failed and all generations of the window.
    pub errors: Option<(u64, u64)>,
    /// Seconds spent in all generations of the window.
    pub seconds: Option<f64>,
    /// Hits and lookups of the window.
    pub lookups: Option<(u64, u64)>,
    /// Memory used, 0..=100.
    pub memory_percent: Option<f64>,
    /// Disk used, 0..=100.
    pub disk_percent: Option<f64>,
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

impl AlertThreshold {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A percentage outside 0..=100, or a time that is not above 0 and finite.
    pub fn validate(&self) -> Result<(), InvalidArgument> {
        let percents = [
            ("error_rate_percent", self.error_rate_percent),
            ("cache_hit_rate_percent", self.cache_hit_rate_percent),
            ("memory_usage_percent", self.memory_usage_percent),
            ("disk_usage_percent", self.disk_usage_percent),
        ];
        for (name, value) in percents {
            if !(0.0..=100.0).contains(&value) {
                return Err(InvalidArgument::new(
                    name,
                    format!("expected a percentage between 0 and 100, got {value}"),
                ));
            }
        }
        let seconds = self.avg_response_time_seconds;
        if !(seconds.is_finite() && seconds > 0.0) {
            return Err(InvalidArgument::new(
                "avg_response_time_seconds",
                format!("expected a finite number of seconds above 0, got {seconds}"),
            ));
        }
        Ok(())
    }

    /// One signal for each reading that is known.
    ///
    /// All comparisons are strict: a rate of exactly 10 % does not alert at
    /// 10. Critical begins at 2.5 times the error rate, at twice the response
    /// time, and for memory and disk three quarters of the way from the
    /// threshold to 100 % (80 → 95); a low hit rate costs money, not service,
    /// and is never more than a warning.
    #[must_use]
    pub fn judge(&self, readings: &Readings) -> Vec<Signal> {
        let mut signals = Vec::with_capacity(5);
        if let Some((failed, total)) = readings.errors {
            let limit = self.error_rate_percent;
            let rate = percent(failed, total);
            signals.push(above("error_rate", rate, limit, limit * 2.5, || {
                format!("{failed} of {total} generations failed: {rate:.1} % (limit {limit} %)")
            }));
            if let Some(seconds) = readings.seconds {
                let limit = self.avg_response_time_seconds;
                let mean = if total == 0 { 0.0 } else { seconds / total as f64 };
                signals.push(above("response_time", mean, limit, limit * 2.0, || {
                    format!("mean generation time {mean:.2} s (limit {limit} s)")
                }));
            }
        }
        if let Some((hits, lookups)) = readings.lookups {
            let limit = self.cache_hit_rate_percent;
            let rate = percent(hits, lookups);
            let state = if lookups >= MIN_LOOKUPS && rate < limit {
                State::Firing {
                    severity: Severity::Warning,
                    value: rate,
                    threshold: limit,
                    message: format!(
                        "cache hit rate {rate:.1} % of {lookups} lookups (limit {limit} %)"
                    ),
                }
            } else {
                State::Clear
            };
            signals.push(Signal { name: "cache_hit_rate".into(), state });
        }
        let resources = [
            ("memory_usage", "memory", readings.memory_percent, self.memory_usage_percent),
            ("disk_usage", "disk", readings.disk_percent, self.disk_usage_percent),
        ];
        for (name, what, reading, limit) in resources {
            if let Some(value) = reading {
                signals.push(above(name, value, limit, limit + (100.0 - limit) * 0.75, || {
                    format!("{what} {value:.1} % used (limit {limit} %)")
                }));
            }
        }
        signals
    }
}

fn above(
    name: &str,
    value: f64,
    threshold: f64,
    critical: f64,
    message: impl FnOnce() -> String,
) -> Signal {
    let state = if value > threshold {
        let severity = if value > critical { Severity::Critical } else { Severity::Warning };
        State::Firing { severity, value, threshold, message: message() }
    } else {
        State::Clear
    };
    Signal { name: name.into(), state }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firing(readings: &Readings) -> Vec<(String, Severity)> {
        AlertThreshold::default()
            .judge(readings)
            .into_iter()
            .filter_map(|s| match s.state {
                State::Firing { severity, .. } => Some((s.name, severity)),
                State::Clear => None,
            })
            .collect()
    }

    #[test]
    fn at_the_threshold_nothing_fires() {
        let at = Readings {
            errors: Some((10, 100)),
            seconds: Some(3000.0),
            lookups: Some((50, 100)),
            memory_percent: Some(80.0),
            disk_percent: Some(90.0),
        };
        assert_eq!(firing(&at), []);
    }

    #[test]
    fn beyond_it_everything_does() {
        let beyond = Readings {
            errors: Some((11, 100)),
            seconds: Some(3001.0),
            lookups: Some((49, 100)),
            memory_percent: Some(95.1),
            disk_percent: Some(90.1),
        };
        let names = firing(&beyond);
        let expected = [
            ("error_rate", Severity::Warning),
            ("response_time", Severity::Warning),
            ("cache_hit_rate", Severity::Warning),
            ("memory_usage", Severity::Critical),
            ("disk_usage", Severity::Warning),
        ];
        assert_eq!(names, expected.map(|(n, s)| (n.to_string(), s)));
    }

    #[test]
    fn a_cold_cache_is_not_a_bad_cache() {
        assert_eq!(firing(&Readings { lookups: Some((0, 99)), ..Readings::default() }), []);
        assert_eq!(firing(&Readings { lookups: Some((0, 100)), ..Readings::default() }).len(), 1);
    }

    #[test]
    fn what_is_not_known_gives_no_signal() {
        assert!(AlertThreshold::default().judge(&Readings::default()).is_empty());
    }

    #[test]
    fn ranges_are_checked_by_name() {
        let bad = AlertThreshold { memory_usage_percent: 101.0, ..AlertThreshold::default() };
        assert_eq!(bad.validate().unwrap_err().argument, "memory_usage_percent");
        let bad = AlertThreshold { error_rate_percent: f64::NAN, ..AlertThreshold::default() };
        assert_eq!(bad.validate().unwrap_err().argument, "error_rate_percent");
        let bad = AlertThreshold { avg_response_time_seconds: 0.0, ..AlertThreshold::default() };
        assert_eq!(bad.validate().unwrap_err().argument, "avg_response_time_seconds");
        assert!(AlertThreshold::default().validate().is_ok());
    }
}
