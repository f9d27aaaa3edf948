//! Times as headers write them: seconds, durations, instants and dates.

/// Nanoseconds since the Unix epoch; wide enough for every year that can be written.
pub type UnixNanos = i128;

const SECOND: i128 = 1_000_000_000;
const DAY: i64 = 86_400;

/// A number from here on is no duration in seconds: 2001-09-09 as seconds since the epoch.
const EPOCH_SECONDS: f64 = 1e9;
/// And from here on no instant in seconds: the same day in milliseconds.
const EPOCH_MILLIS: f64 = 1e12;
/// And from here on nothing at all: the year 5138 in milliseconds.
const NO_EPOCH: f64 = 1e14;

/// A time to come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Moment {
    /// After so many seconds.
    In(f64),
    /// At this instant.
    At(UnixNanos),
}

/// A time in any form: a number, a Go duration, RFC 3339, an HTTP date.
pub(super) fn moment(text: &str, wall: UnixNanos) -> Option<Moment> {
    if let Some(number) = number(text) {
        // To the microsecond, of which a float has some left.
        let at = |micros: f64| Moment::At(micros as i128 * 1_000);
        return Some(match number {
            n if (EPOCH_SECONDS..EPOCH_MILLIS).contains(&n) => at(n * 1e6),
            n if (EPOCH_MILLIS..NO_EPOCH).contains(&n) => at(n * 1e3),
            n => Moment::In(n),
        });
    }
    duration(text)
        .map(Moment::In)
        .or_else(|| rfc3339(text).map(Moment::At))
        .or_else(|| http_date(text, wall).map(Moment::At))
}

/// A decimal number, with a sign, a fraction and an exponent if need be; neither NaN nor infinite
/// as text, though one may overflow.
pub(super) fn number(text: &str) -> Option<f64> {
    let written = |b: u8| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E');
    if text.is_empty() || !text.bytes().all(written) {
        return None;
    }
    text.parse().ok()
}

/// Seconds of a Go duration: `1h2m3.5s`, `6m0s`, `12ms`, `250µs`. Days, which Go has not, as well.
fn duration(text: &str) -> Option<f64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let (negative, mut rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, after) = rest.split_at(end);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let nanos = match unit {
            "d" => 86_400e9,
            "h" => 3_600e9,
            "m" => 60e9,
            "s" => 1e9,
            "ms" => 1e6,
            "us" | "µs" | "μs" => 1e3,
            "ns" => 1.0,
            _ => return None,
        };
        // By whole nanoseconds first: 0.1 s and 100 ms are the same then.
        seconds += digits.parse::<f64>().ok()? * nanos / 1e9;
        rest = after;
    }
    Some(if negative { -seconds } else { seconds })
}

/// Digits and nothing else.
fn digits(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// `2026-01-02T03:04:05.678Z` or with an offset, as RFC 3339 has it. One without either is UTC,
/// as its senders mean it.
pub(super) fn rfc3339(text: &str) -> Option<UnixNanos> {
    let (date, rest) = (text.get(..10)?, text.get(11..)?);
    let mut parts = date.splitn(3, '-');
    let (year, month, day) = (four(parts.next()?)?, two(parts.next()?)?, two(parts.next()?)?);
    if !matches!(text.get(10..11)?, "T" | "t" | " ") {
        return None;
    }
    let clock = clock(rest.get(..8)?)?;
    let mut rest = rest.get(8..)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
        let (shown, after) = fraction.split_at(end);
        // Nine digits; what is finer is cut off.
        let known = shown.get(..9).unwrap_or(shown);
        nanos = i128::from(digits(known)?) * 10_i128.pow(9 - known.len() as u32);
        rest = after;
    }
    let offset = match rest {
        "" | "Z" | "z" => 0,
        _ => {
            let sign = match rest.as_bytes().first()? {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            let (hours, minutes) = rest.get(1..)?.split_once(':')?;
            let (hours, minutes) = (two(hours)?, two(minutes)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            sign * i64::from(hours * 3600 + minutes * 60)
        }
    };
    let seconds = days(year, month, day)? * DAY + clock - offset;
    Some(i128::from(seconds) * SECOND + nanos)
}

/// The date of RFC 9110, 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`, and the obsolete
/// `Sunday, 06-Nov-94 08:49:37 GMT` and `Sun Nov  6 08:49:37 1994`. The day of the week is not
/// looked at.
pub(super) fn http_date(text: &str, wall: UnixNanos) -> Option<UnixNanos> {
    let mut words = text.split_ascii_whitespace();
    let first = words.next()?;
    let (day, month, year, clock);
    if let Some(weekday) = first.strip_suffix(',') {
        is_weekday(weekday)?;
        let date = words.next()?;
        if let Some((d, rest)) = date.split_once('-') {
            let (m, y) = rest.split_once('-')?;
            (day, month) = (two(d)?, self::month(m)?);
            year = match y.len() {
                2 => near(digits(y)?, wall),
                4 => digits(y)?,
                _ => return None,
            };
        } else {
            (day, month) = (two(date)?, self::month(words.next()?)?);
            year = four(words.next()?)?;
        }
        clock = self::clock(words.next()?)?;
        if !matches!(words.next()?, "GMT" | "UTC") {
            return None;
        }
    } else {
        is_weekday(first)?;
        (month, day) = (self::month(words.next()?)?, digits(words.next()?)?);
        clock = self::clock(words.next()?)?;
        year = four(words.next()?)?;
    }
    if words.next().is_some() {
        return None;
    }
    Some(i128::from(days(year, month, day)? * DAY + clock) * SECOND)
}

fn two(text: &str) -> Option<u32> {
    if text.len() == 2 { digits(text) } else { None }
}

fn four(text: &str) -> Option<u32> {
    if text.len() == 4 { digits(text) } else { None }
}

fn is_weekday(text: &str) -> Option<()> {
    const SHORT: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    const LONG: [&str; 7] =
        ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
    (SHORT.contains(&text) || LONG.contains(&text)).then_some(())
}

fn month(text: &str) -> Option<u32> {
    const NAMES: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    NAMES.iter().position(|name| *name == text).map(|at| at as u32 + 1)
}

/// Of the years that end so, the last one that is at most 50 years ahead, as RFC 9110 wants it.
fn near(two_digits: u32, wall: UnixNanos) -> u32 {
    let days = i64::try_from(wall / SECOND).unwrap_or(0).div_euclid(DAY);
    let limit = u32::try_from(year_of(days)).unwrap_or(1970).saturating_add(50);
    let year = limit - limit % 100 + two_digits;
    if year > limit { year.saturating_sub(100) } else { year }
}

/// Seconds of `HH:MM:SS`; a leap second is the one after.
fn clock(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    if bytes.len() != 8 || bytes[2] != b':' || bytes[5] != b':' {
        return None;
    }
    let (hour, minute) = (digits(text.get(..2)?)?, digits(text.get(3..5)?)?);
    let second = digits(text.get(6..)?)?;
    (hour < 24 && minute < 60 && second <= 60)
        .then_some(i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar: H. Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `days_from_civil`. `None` for a date that there is not.
fn days(year: u32, month: u32, day: u32) -> Option<i64> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if day == 0 || day > length || year == 0 {
        return None;
    }
    let year = i64::from(year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year =
        (153 * (i64::from(month) + if month > 2 { -3 } else { 9 }) + 2) / 5 + i64::from(day) - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

/// The year of a day, by the same source's `civil_from_days`.
fn year_of(days: i64) -> i64 {
    let days = days + 719_468;
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Years begin in March here.
    year_of_era + days.div_euclid(146_097) * 400 + i64::from(of_year >= 306)
}
