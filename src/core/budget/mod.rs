//! Money per calendar period: reserved before a call, settled after it, and never forgotten
//! before the period ends.
//!
//! An [`Account`] is what one key has spent in the running hour, day, week and month; plain
//! data, so that it may stand in a [`Table`] or in a row of somebody's store. When a period
//! begins and ends is told by the [`Terms`]: calendars and time zones are not known here.
//!
//! # What counts, and when
//! A reservation counts in full, in the period in which it was granted. Settled below, the
//! difference goes back, if that period still runs; settled above, the difference counts in
//! the period that runs then. A period is only ever followed by a later one: a wall clock that
//! goes back reopens nothing.

mod account;
mod table;

#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod model_tests;
#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod tests;

pub use self::account::{Account, Cell, Entry, News, Refusal, Shortfall};
pub use self::table::{Full, Table};

/// The most money that is counted: so much fits a store's integers.
pub const MOST: u64 = i64::MAX as u64;

/// How many kinds of periods there are.
pub const PERIODS: usize = 4;

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

/// A period of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Period {
    /// From a full hour on.
    Hour,
    /// From midnight on.
    Day,
    /// From midnight on Monday on.
    Week,
    /// From midnight on its first day on.
    Month,
}

impl Period {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; PERIODS] = [Self::Hour, Self::Day, Self::Week, Self::Month];

    /// Its name in limits.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }

    /// What its limit is called.
    #[must_use]
    pub const fn dimension(self) -> &'static str {
        match self {
            Self::Hour => "usd/hour",
            Self::Day => "usd/day",
            Self::Week => "usd/week",
            Self::Month => "usd/month",
        }
    }
}

/// When a period begins, and when the next one does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Its first millisecond.
    pub start: Millis,
    /// The first one that is not in it.
    pub end: Millis,
}

/// What holds for an account at one moment. Money is whole numbers of whatever unit all of
/// them are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// By the periods' order; at least one.
    pub limits: [Option<u64>; PERIODS],
    /// The periods that run now.
    pub spans: [Span; PERIODS],
    /// What is to be told when so much of a limit is used.
    pub thresholds: [Option<u64>; PERIODS],
    /// Whether it refuses anything at all.
    pub hard: bool,
}

impl Terms {
    /// The limits with their periods.
    pub fn each(&self) -> impl Iterator<Item = (Period, u64)> + use<> {
        let limits = self.limits;
        Period::ALL.into_iter().filter_map(move |p| limits[p as usize].map(|limit| (p, limit)))
    }

    /// The least of the limits that one request could never be granted beyond.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.each().map(|(_, limit)| limit).min().unwrap_or(MOST)
    }
}
