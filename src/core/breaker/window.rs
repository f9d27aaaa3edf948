//! The calls that a breaker looks at, how many of them failed or were slow, and what failures
//! have cost.

use std::collections::VecDeque;

use super::{Span, Spend};
use crate::core::clock::{Nanos, SECOND};

/// Parts that a span of time is counted in.
const PARTS: u64 = 60;

/// Calls, failed and slow ones.
type Counts = [u64; 3];

#[derive(Debug)]
pub(super) enum Window {
    /// The last calls, oldest first: whether each failed, whether it was slow.
    Calls { last: VecDeque<(bool, bool)>, most: usize, sums: Counts },
    /// Those of a span of time.
    Time(Recent<u64, 3>),
}

impl Window {
    pub(super) fn new(span: Span) -> Self {
        match span {
            Span::Calls(calls) => {
                Self::Calls { last: VecDeque::new(), most: calls as usize, sums: [0; 3] }
            }
            Span::Time(span) => Self::Time(Recent::new(span)),
        }
    }

    /// Calls, and how many of them failed or were slow.
    pub(super) fn sums(&self) -> Counts {
        match self {
            Self::Calls { sums, .. } => *sums,
            Self::Time(recent) => recent.sums,
        }
    }

    pub(super) fn clear(&mut self) {
        match self {
            Self::Calls { last, sums, .. } => {
                last.clear();
                *sums = [0; 3];
            }
            Self::Time(recent) => recent.clear(),
        }
    }

    pub(super) fn note(&mut self, now: Nanos, failed: bool, slow: bool) {
        match self {
            Self::Calls { last, most, sums } => {
                if last.len() == *most
                    && let Some((failed, slow)) = last.pop_front()
                {
                    subtract(sums, [1, u64::from(failed), u64::from(slow)]);
                }
                last.push_back((failed, slow));
                add(sums, [1, u64::from(failed), u64::from(slow)]);
            }
            Self::Time(recent) => recent.add(now, [1, u64::from(failed), u64::from(slow)]),
        }
    }

    /// Leaves out what is too old.
    pub(super) fn turn(&mut self, now: Nanos) {
        if let Self::Time(recent) = self {
            recent.turn(now);
        }
    }
}

/// What went into failures within a minute.
#[derive(Debug)]
pub(super) struct Waste(Recent<u128, 2>);

/// Billionths: sums of floats would not come back to zero.
const NANO: f64 = 1e9;

impl Waste {
    pub(super) fn new() -> Self {
        Self(Recent::new(60 * SECOND))
    }

    pub(super) fn add(&mut self, now: Nanos, spend: Spend) {
        // A cast makes zero of what is negative or no number, and the most of what is too much.
        let nano_usd = (spend.usd * NANO).round() as u64;
        self.0.add(now, [u128::from(nano_usd), u128::from(spend.tokens)]);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn turn(&mut self, now: Nanos) {
        self.0.turn(now);
    }

    pub(super) fn sum(&self) -> Spend {
        let [nano_usd, tokens] = self.0.sums;
        Spend { usd: nano_usd as f64 / NANO, tokens: u64::try_from(tokens).unwrap_or(u64::MAX) }
    }

    pub(super) fn is_above(&self, usd: Option<f64>, tokens: Option<u64>) -> bool {
        let [nano_usd, sum] = self.0.sums;
        usd.is_some_and(|most| nano_usd > u128::from((most * NANO).round() as u64))
            || tokens.is_some_and(|most| sum > u128::from(most))
    }
}

/// Sums over the last so many nanoseconds, in sixtieths of it; at most 61 of them are kept.
#[derive(Debug)]
pub(super) struct Recent<T, const N: usize> {
    /// By the number of the sixtieth, oldest first.
    parts: VecDeque<(u64, [T; N])>,
    each: Nanos,
    sums: [T; N],
}

/// What can be summed up here.
pub(super) trait Sum: Copy + Default + std::ops::AddAssign + std::ops::SubAssign {}
impl Sum for u64 {}
impl Sum for u128 {}

impl<T: Sum, const N: usize> Recent<T, N> {
    fn new(span: Nanos) -> Self {
        let each = (span / PARTS).max(1);
        Self { parts: VecDeque::new(), each, sums: [T::default(); N] }
    }

    fn clear(&mut self) {
        self.parts.clear();
        self.sums = [T::default(); N];
    }

    fn add(&mut self, now: Nanos, more: [T; N]) {
        self.turn(now);
        let part = now / self.each;
        match self.parts.back_mut() {
            // A clock never goes back, but two threads may come in the other order.
            Some((last, sums)) if *last >= part => add(sums, more),
            _ => self.parts.push_back((part, more)),
        }
        add(&mut self.sums, more);
    }

    fn turn(&mut self, now: Nanos) {
        let part = now / self.each;
        while let Some(&(first, sums)) = self.parts.front()
            && part.saturating_sub(first) >= PARTS
        {
            subtract(&mut self.sums, sums);
            self.parts.pop_front();
        }
    }
}

fn add<T: Sum, const N: usize>(sums: &mut [T; N], more: [T; N]) {
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

fn subtract<T: Sum, const N: usize>(sums: &mut [T; N], less: [T; N]) {
    sums.iter_mut().zip(less).for_each(|(sum, less)| *sum -= less);
}
