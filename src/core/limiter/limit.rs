//! What is allowed: so many permits in so much time.

use std::fmt;
use std::str::FromStr;

use crate::core::clock::{Nanos, SECOND, nanos_from_secs, secs_from_nanos};
use crate::core::error::InvalidArgument;

const MINUTE: Nanos = 60 * SECOND;
const HOUR: Nanos = 60 * MINUTE;
const DAY: Nanos = 24 * HOUR;
/// Half of what the clock can count: sums of two times cannot overflow into "never".
const MAX_PERIOD: Nanos = u64::MAX / 2;
const EXPECTED: &str =
    "expected \"<count>/<period>\" such as \"60/minute\", \"1000/hour\" or \"5/10s\"";

/// At most `count` permits in any half-open stretch of `period`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    count: u64,
    period: Nanos,
}

impl Limit {
    /// # Errors
    /// When the count or the period is zero, or the period is longer than 292 years.
    pub fn new(count: u64, period: Nanos) -> Result<Self, InvalidArgument> {
        if count == 0 {
            return Err(InvalidArgument::new("count", "expected at least 1, got 0"));
        }
        if period > MAX_PERIOD {
            let message = format!("expected at most 292 years, got {period} ns");
            return Err(InvalidArgument::new("period", message));
        }
        if period == 0 {
            return Err(InvalidArgument::new("period", "expected more than 0 seconds, got 0"));
        }
        Ok(Self { count, period })
    }

    /// Permits per period.
    #[inline]
    #[must_use]
    pub fn count(self) -> u64 {
        self.count
    }

    /// The length of the window.
    #[inline]
    #[must_use]
    pub fn period(self) -> Nanos {
        self.period
    }
}

impl FromStr for Limit {
    type Err = InvalidArgument;

    fn from_str(text: &str) -> Result<Self, InvalidArgument> {
        let wrong = || InvalidArgument::new("limits", format!("{EXPECTED}, got {text:?}"));
        let (count, period) = text.split_once('/').ok_or_else(wrong)?;
        let count = count.trim();
        if count.is_empty() || count.starts_with('_') || count.ends_with('_') {
            return Err(wrong());
        }
        if !count.bytes().all(|b| b.is_ascii_digit() || b == b'_') {
            return Err(wrong());
        }
        let count = count.replace('_', "").parse().map_err(|_| wrong())?;
        let period = parse_period(period.trim()).ok_or_else(wrong)?;
        Self::new(count, period).map_err(|_| wrong())
    }
}

fn parse_period(text: &str) -> Option<Nanos> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit.trim() {
        "ms" | "millisecond" | "milliseconds" => SECOND / 1000,
        "s" | "sec" | "second" | "seconds" => SECOND,
        "m" | "min" | "minute" | "minutes" => MINUTE,
        "h" | "hour" | "hours" => HOUR,
        "d" | "day" | "days" => DAY,
        _ => return None,
    };
    if number.is_empty() {
        return Some(unit);
    }
    // Whole numbers stay exact; only a fraction goes through a float.
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit);
    }
    let number: f64 = number.parse().ok()?;
    let nanos = nanos_from_secs(number * secs_from_nanos(unit));
    (nanos < u64::MAX).then_some(nanos)
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.count)?;
        match self.period {
            SECOND => f.write_str("second"),
            MINUTE => f.write_str("minute"),
            HOUR => f.write_str("hour"),
            DAY => f.write_str("day"),
            period if period % SECOND == 0 => write!(f, "{}s", period / SECOND),
            period => {
                let fraction = format!("{:09}", period % SECOND);
                write!(f, "{}.{}s", period / SECOND, fraction.trim_end_matches('0'))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, count, period, shown) in [
            ("60/minute", 60, MINUTE, "60/minute"),
            ("1000/hour", 1000, HOUR, "1000/hour"),
            ("5/10s", 5, 10 * SECOND, "5/10s"),
            ("2/1.5s", 2, SECOND * 3 / 2, "2/1.5s"),
            (" 1_000_000 / day ", 1_000_000, DAY, "1000000/day"),
            ("3/2 hours", 3, 2 * HOUR, "3/7200s"),
            ("7/250ms", 7, SECOND / 4, "7/0.25s"),
        ] {
            let limit: Limit = text.parse().unwrap();
            assert_eq!((limit.count(), limit.period()), (count, period), "{text}");
            assert_eq!(limit.to_string(), shown);
            assert_eq!(shown.parse::<Limit>().unwrap(), limit);
        }
    }

    #[test]
    fn refuses_everything_else_and_says_what_came() {
        for text in [
            "",
            "/",
            "60",
            "60/",
            "/minute",
            "0/minute",
            "-1/minute",
            "1.5/minute",
            "60/fortnight",
            "60/0s",
            "60/-1s",
            "60/1.2.3s",
            "60/.s",
            "_6/s",
            "1/99999999999999999999d",
            "99999999999999999999/s",
            "60/minute/hour",
        ] {
            let error = text.parse::<Limit>().unwrap_err();
            assert_eq!(error.argument, "limits");
            assert!(error.message.contains(&format!("{text:?}")), "{error}");
        }
    }
}
