//! What the headers of an answer say about the provider's own limits.
//!
//! Understood are
//! - OpenAI's, and those of who is compatible with it (Azure, Groq, Mistral …):
//!   `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, resets as Go durations such as `6m0s`
//!   and `12ms` (OpenAI, "Rate limits"; Go, `time.ParseDuration`);
//! - Anthropic's: `anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,
//!   remaining,reset}`, resets as instants of RFC 3339 (Anthropic, "Rate limits");
//! - the generic `ratelimit-{limit,remaining,reset}` and `x-ratelimit-…`, resets as seconds
//!   (draft-ietf-httpapi-ratelimit-headers up to 07), as seconds since the epoch (GitHub) or as
//!   milliseconds since the epoch (OpenRouter);
//! - `retry-after` (RFC 9110, seconds or a date in any of the three formats), and
//!   `retry-after-ms` and `x-ms-retry-after-ms` (Azure, OpenAI), which are finer.
//!
//! Every reset is read in any of these forms, whoever sent it. Instants are taken against the
//! answer's `date`, so that a clock that is wrong here does no harm; without one, against the
//! wall clock. Nothing here trusts what came over the network: values are bounded, what makes
//! no sense is counted and left out, and nothing is allocated.

mod moments;

#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod tests;

pub use self::moments::UnixNanos;
use self::moments::{Moment, http_date, moment, number};
use crate::core::clock::{Nanos, SECOND};

/// No limit and no rest is higher: a million million.
pub const MOST_COUNT: u64 = 1_000_000_000_000;
/// No reset is farther: 31 days, the longest month.
pub const LONGEST_RESET: Nanos = 31 * 86_400 * SECOND;
/// No `retry-after` is longer: a day.
pub const LONGEST_RETRY_AFTER: Nanos = 86_400 * SECOND;

/// The longest name that is known, and some.
const LONGEST_NAME: usize = 48;
/// What is longer is nothing that a provider writes here.
const LONGEST_VALUE: usize = 64;

const TOO_MANY_REQUESTS: u16 = 429;

/// What is said of one thing that is limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dimension {
    /// How much is allowed in the provider's window, at least 1.
    pub limit: Option<u64>,
    /// How much of it is left.
    pub remaining: Option<u64>,
    /// When all of it is there again.
    pub reset_in: Option<Nanos>,
}

/// What the headers of one answer say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Requests.
    pub requests: Dimension,
    /// Tokens, without saying of what kind.
    pub tokens: Dimension,
    /// Tokens that are sent.
    pub input_tokens: Dimension,
    /// Tokens that come back.
    pub output_tokens: Dimension,
    /// How long to wait before the next request.
    pub retry_after: Option<Nanos>,
    /// Values of known headers that could not be read, or say nothing (a limit of 0, -1).
    pub ignored: u32,
    /// Values that were brought within bounds.
    pub clamped: u32,
}

impl Observed {
    /// How long nothing should be sent, after an answer with this status.
    ///
    /// What the server says itself comes first. A 429 without it waits for all that is spent to
    /// be there again.
    #[must_use]
    pub fn pause(&self, status: u16) -> Option<Nanos> {
        if status < 400 {
            return None;
        }
        if self.retry_after.is_some() || status != TOO_MANY_REQUESTS {
            return self.retry_after;
        }
        [self.requests, self.tokens, self.input_tokens, self.output_tokens]
            .iter()
            .filter(|dimension| dimension.remaining == Some(0))
            .filter_map(|dimension| dimension.reset_in)
            .max()
    }
}

/// Which of a dimension's values a header has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Limit,
    Remaining,
    Reset,
}

/// What a header is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// The dimension by its place in `Reader::resets`.
    Dimension(usize, Field),
    /// `RateLimit-*` without a dimension: requests, if nobody says more.
    Generic(Field),
    RetryAfter,
    RetryAfterMillis,
    Date,
}

impl Known {
    fn of(name: &str) -> Option<Self> {
        match name {
            "date" => return Some(Self::Date),
            "retry-after" => return Some(Self::RetryAfter),
            "retry-after-ms" | "x-ms-retry-after-ms" => return Some(Self::RetryAfterMillis),
            _ => {}
        }
        if let Some(rest) = name.strip_prefix("anthropic-ratelimit-") {
            let (dimension, field) = rest.rsplit_once('-')?;
            return Some(Self::Dimension(place(dimension)?, self::field(field)?));
        }
        let rest = name.strip_prefix("x-").unwrap_or(name).strip_prefix("ratelimit-")?;
        match rest.split_once('-') {
            None => Some(Self::Generic(field(rest)?)),
            Some((field, dimension)) => {
                Some(Self::Dimension(place(dimension)?, self::field(field)?))
            }
        }
    }
}

fn field(name: &str) -> Option<Field> {
    match name {
        "limit" => Some(Field::Limit),
        "remaining" => Some(Field::Remaining),
        "reset" => Some(Field::Reset),
        _ => None,
    }
}

fn place(dimension: &str) -> Option<usize> {
    ["requests", "tokens", "input-tokens", "output-tokens"].iter().position(|d| *d == dimension)
}

/// The place of what is not said to be about anything.
const GENERIC: usize = 4;

/// Reads the headers of one answer, one after the other; the first of a name counts.
#[derive(Clone, Debug)]
pub struct Reader {
    wall: UnixNanos,
    date: Option<UnixNanos>,
    dimensions: [Dimension; GENERIC + 1],
    /// Those that are instants wait for the date.
    resets: [Option<Moment>; GENERIC + 1],
    retry_after: Option<Moment>,
    retry_after_millis: Option<Nanos>,
    ignored: u32,
    clamped: u32,
}

impl Reader {
    /// For an answer that came when the wall clock showed `wall`.
    #[must_use]
    pub fn new(wall: UnixNanos) -> Self {
        Self {
            wall,
            date: None,
            dimensions: [Dimension::default(); GENERIC + 1],
            resets: [None; GENERIC + 1],
            retry_after: None,
            retry_after_millis: None,
            ignored: 0,
            clamped: 0,
        }
    }

    /// Whether a header of that name is read at all.
    #[must_use]
    pub fn knows(name: &[u8]) -> bool {
        known(name).is_some()
    }

    /// Reads a header. Names are compared without case.
    pub fn header(&mut self, name: &[u8], value: &[u8]) {
        let Some(known) = known(name) else { return };
        let value = match std::str::from_utf8(value.trim_ascii()) {
            Ok(value) if value.len() <= LONGEST_VALUE => value,
            _ => return self.ignore(),
        };
        match known {
            Known::Date => match http_date(value, self.wall) {
                Some(date) => _ = self.date.get_or_insert(date),
                None => self.ignore(),
            },
            Known::RetryAfter => match moment(value, self.wall) {
                Some(moment) => _ = self.retry_after.get_or_insert(moment),
                None => self.ignore(),
            },
            Known::RetryAfterMillis => match number(value) {
                Some(millis) => {
                    let nanos = self.bounded(millis * 1e6, LONGEST_RETRY_AFTER);
                    self.retry_after_millis.get_or_insert(nanos);
                }
                None => self.ignore(),
            },
            Known::Generic(field) => self.dimension(GENERIC, field, value),
            Known::Dimension(place, field) => self.dimension(place, field, value),
        }
    }

    fn dimension(&mut self, place: usize, field: Field, value: &str) {
        if field == Field::Reset {
            return match moment(value, self.wall) {
                Some(moment) => _ = self.resets[place].get_or_insert(moment),
                None => self.ignore(),
            };
        }
        // Of a list, `100, 100;w=60`, the first is the one in force.
        let first = value.split([',', ';']).next().unwrap_or(value).trim_ascii_end();
        // -1 is "none there is", or "nobody knows": nothing to keep to, like a limit of 0.
        let count = if first == "-1" { None } else { number(first) };
        let Some(count) = count.filter(|count| field != Field::Limit || *count >= 1.0) else {
            return self.ignore();
        };
        let count = self.bounded(count, MOST_COUNT);
        let dimension = &mut self.dimensions[place];
        let slot = match field {
            Field::Limit => &mut dimension.limit,
            _ => &mut dimension.remaining,
        };
        slot.get_or_insert(count);
    }

    /// All that was read.
    #[must_use]
    pub fn finish(mut self) -> Observed {
        let now = self.date.unwrap_or(self.wall);
        for place in 0..self.dimensions.len() {
            self.dimensions[place].reset_in =
                self.resets[place].map(|moment| self.until(moment, now, LONGEST_RESET));
            let Dimension { limit, remaining, .. } = self.dimensions[place];
            if let (Some(limit), Some(remaining)) = (limit, remaining)
                && remaining > limit
            {
                self.clamped += 1;
                self.dimensions[place].remaining = Some(limit);
            }
        }
        let retry_after = match (self.retry_after_millis, self.retry_after) {
            (Some(millis), _) => Some(millis),
            (None, Some(moment)) => Some(self.until(moment, now, LONGEST_RETRY_AFTER)),
            (None, None) => None,
        };
        let [requests, tokens, input_tokens, output_tokens, generic] = self.dimensions;
        Observed {
            // Who speaks of requests at all has said it better there.
            requests: if requests == Dimension::default() { generic } else { requests },
            tokens,
            input_tokens,
            output_tokens,
            retry_after,
            ignored: self.ignored,
            clamped: self.clamped,
        }
    }

    fn ignore(&mut self) {
        self.ignored = self.ignored.saturating_add(1);
    }

    /// A number within 0 and `most`, counted if it was not there.
    fn bounded(&mut self, number: f64, most: u64) -> u64 {
        if number < 0.0 || number > most as f64 {
            self.clamped = self.clamped.saturating_add(1);
        }
        (number as u64).min(most)
    }

    /// The time until `moment`. One that has passed is no mistake: it passed on the way.
    fn until(&mut self, moment: Moment, now: UnixNanos, most: Nanos) -> Nanos {
        let nanos = match moment {
            Moment::In(seconds) => return self.bounded(seconds * SECOND as f64, most),
            Moment::At(instant) => instant.saturating_sub(now).max(0),
        };
        let within = u64::try_from(nanos).unwrap_or(u64::MAX).min(most);
        if i128::from(within) != nanos {
            self.clamped = self.clamped.saturating_add(1);
        }
        within
    }
}

fn known(name: &[u8]) -> Option<Known> {
    let mut lower = [0; LONGEST_NAME];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    Known::of(std::str::from_utf8(lower).ok()?)
}
