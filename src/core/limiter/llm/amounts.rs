//! What one request takes of each dimension.

/// How many dimensions there are.
pub(super) const DIMENSIONS: usize = 5;

/// Sums over many requests: of `u64`s, so 128 bits never overflow.
pub(super) type Totals = [u128; DIMENSIONS];

/// One of the things that a provider limits per minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// Requests.
    Requests,
    /// Tokens of prompts.
    InputTokens,
    /// Tokens of answers.
    OutputTokens,
    /// Both kinds of tokens together.
    Tokens,
    /// Money, in [`NANO_USD`]ths.
    Usd,
}

/// Parts of a dollar that money is counted in: a token of the cheapest models costs about 20.
pub const NANO_USD: u64 = 1_000_000_000;

impl Dimension {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; DIMENSIONS] =
        [Self::Requests, Self::InputTokens, Self::OutputTokens, Self::Tokens, Self::Usd];

    /// Its name in errors and statistics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::Tokens => "tokens",
            Self::Usd => "usd",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dimension| dimension.name() == name)
    }

    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

/// What one request takes of each dimension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts(pub(super) [u64; DIMENSIONS]);

impl Amounts {
    /// Nothing.
    pub const NONE: Self = Self([0; DIMENSIONS]);

    /// The tokens together are the sum, as many providers count; `usd` in [`NANO_USD`]ths.
    #[must_use]
    pub fn new(requests: u64, input: u64, output: u64, usd: u64) -> Self {
        Self([requests, input, output, input.saturating_add(output), usd])
    }

    /// So much of one dimension.
    #[must_use]
    pub const fn get(&self, dimension: Dimension) -> u64 {
        self.0[dimension.index()]
    }

    /// What is sure to be used once the request is sent: an open reservation's output and
    /// money may come back at any time.
    #[must_use]
    pub(super) fn firm(&self) -> Self {
        let [requests, input, ..] = self.0;
        Self([requests, input, 0, input, 0])
    }

    /// Dimension by dimension.
    #[must_use]
    pub(super) fn each(&self, other: &Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        Self(std::array::from_fn(|d| combine(self.0[d], other.0[d])))
    }

    /// The smaller of both.
    pub(super) fn at_most(&self, other: &Self) -> Self {
        self.each(other, u64::min)
    }

    /// What of this exceeds `other`.
    pub(super) fn above(&self, other: &Self) -> Self {
        self.each(other, u64::saturating_sub)
    }

    pub(super) fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

pub(super) fn add(totals: &mut Totals, amounts: &Amounts) {
    for (total, amount) in totals.iter_mut().zip(amounts.0) {
        *total += u128::from(amount);
    }
}

pub(super) fn subtract(totals: &mut Totals, amounts: &Amounts) {
    for (total, amount) in totals.iter_mut().zip(amounts.0) {
        *total -= u128::from(amount);
    }
}
