//! What the hits of a cache saved.

/// What one load costs, which a hit saves; or what all hits together saved.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Savings {
    /// Tokens that were neither sent nor generated.
    pub tokens: u64,
    /// US dollars.
    pub usd: f64,
    /// Seconds that a load takes.
    pub seconds: f64,
}

impl Savings {
    /// One more hit.
    #[inline]
    pub fn add(&mut self, one: &Self) {
        self.tokens = self.tokens.saturating_add(one.tokens);
        self.usd += one.usd;
        self.seconds += one.seconds;
    }
}
