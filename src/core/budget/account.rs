//! What one key has spent.

use super::{MOST, Millis, PERIODS, Period, Span, Terms};

/// Before every period.
const NEVER_BEGUN: Millis = Millis::MIN;

/// What has been told about a period: that its threshold was reached.
const TOLD_THRESHOLD: u8 = 1;
/// That something was refused for it, or spent beyond it.
const TOLD_EXCEEDED: u8 = 2;

/// One period of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// When it began.
    pub start: Millis,
    /// When it ends.
    pub end: Millis,
    /// Reserved and spent in it; [`MOST`] at most.
    pub used: u64,
    /// What has been told about it.
    pub told: u8,
}

impl Default for Cell {
    fn default() -> Self {
        Self { start: NEVER_BEGUN, end: NEVER_BEGUN, used: 0, told: 0 }
    }
}

/// What one key has spent in each period that there is a limit for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// A number that no other account of this key has had.
    pub born: u64,
    /// By the periods' order.
    pub cells: [Cell; PERIODS],
}

/// What was counted, and where: to be corrected once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How much.
    pub amount: u64,
    born: u64,
    starts: [Millis; PERIODS],
}

impl Entry {
    /// One that no account knows: a correction only counts what goes beyond it.
    #[must_use]
    pub fn unknown(amount: u64) -> Self {
        Self { amount, born: 0, starts: [NEVER_BEGUN; PERIODS] }
    }
}

/// Why something is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It does not fit into what is left.
    Exceeded,
    /// It would not fit into a whole period.
    TooLarge,
}

/// The limit that refuses, or would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// Why.
    pub refusal: Refusal,
    /// Whose limit: of all that it does not fit into the one that resets last.
    pub period: Period,
    /// The limit.
    pub limit: u64,
    /// Reserved and spent of it; may exceed it.
    pub used: u64,
    /// When it resets.
    pub resets_at: Millis,
}

/// Something that is to be told, once for each period of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// Whether the limit was exceeded; otherwise its threshold was reached.
    pub exceeded: bool,
    /// Which limit.
    pub period: Period,
    /// What it is.
    pub limit: u64,
    /// Reserved and spent of it.
    pub used: u64,
    /// When it resets.
    pub resets_at: Millis,
}

impl Account {
    /// One that has spent nothing.
    #[must_use]
    pub fn new(born: u64) -> Self {
        Self { born, ..Self::default() }
    }

    /// When the last period ends in which it has spent anything: then nothing of it counts any
    /// more. Before all times if it has spent nothing.
    #[must_use]
    pub fn until(&self) -> Millis {
        let counts = |cell: &&Cell| cell.used > 0 || cell.told > 0;
        self.cells.iter().filter(counts).map(|cell| cell.end).max().unwrap_or(NEVER_BEGUN)
    }

    /// Begins the periods that have come; never an earlier one.
    fn turn(&mut self, terms: &Terms) {
        for (period, _) in terms.each() {
            let Span { start, end } = terms.spans[period as usize];
            let cell = &mut self.cells[period as usize];
            if start > cell.start {
                *cell = Cell { start, end, used: 0, told: 0 };
            }
        }
    }

    /// As it stands now, without changing anything.
    #[must_use]
    pub fn seen(&self, terms: &Terms) -> Self {
        let mut now = *self;
        now.turn(terms);
        now
    }

    /// What is left of all limits together.
    #[must_use]
    pub fn left(&self, terms: &Terms) -> u64 {
        terms
            .each()
            .map(|(period, limit)| limit.saturating_sub(self.cells[period as usize].used))
            .min()
            .unwrap_or(MOST)
    }

    /// Counts it in all periods, or in none.
    ///
    /// What is spent out grants nothing more, however little is asked: a cost that nobody
    /// knows yet is asked for as none.
    ///
    /// # Errors
    /// It does not fit, and the terms are hard.
    pub fn reserve(
        &mut self,
        terms: &Terms,
        amount: u64,
        news: &mut Vec<News>,
    ) -> Result<Entry, Shortfall> {
        self.turn(terms);
        if terms.hard
            && let Some(short) = self.shortfall(terms, amount)
        {
            if short.refusal == Refusal::Exceeded {
                self.tell(short.period, short.limit, TOLD_EXCEEDED, news);
            }
            return Err(short);
        }
        Ok(self.count(terms, amount, news))
    }

    /// The limit that it does not fit into.
    fn shortfall(&self, terms: &Terms, amount: u64) -> Option<Shortfall> {
        let short = terms.each().filter_map(|(period, limit)| {
            let Cell { used, end, .. } = self.cells[period as usize];
            let left = limit.saturating_sub(used);
            let refusal = if amount > limit { Refusal::TooLarge } else { Refusal::Exceeded };
            (amount > left || left == 0).then_some(Shortfall {
                refusal,
                period,
                limit,
                used,
                resets_at: end,
            })
        });
        short.max_by_key(|short| (short.refusal == Refusal::TooLarge, short.resets_at))
    }

    /// Counts what was spent whether or not it fits.
    pub fn spend(&mut self, terms: &Terms, amount: u64, news: &mut Vec<News>) {
        self.turn(terms);
        self.count(terms, amount, news);
    }

    fn count(&mut self, terms: &Terms, amount: u64, news: &mut Vec<News>) -> Entry {
        let mut starts = [NEVER_BEGUN; PERIODS];
        for (period, _) in terms.each() {
            starts[period as usize] = self.cells[period as usize].start;
            self.add(terms, period, amount, news);
        }
        Entry { amount, born: self.born, starts }
    }

    /// Corrects what was counted to what it really was: less goes back to the periods that
    /// still run, more counts in those that run now.
    pub fn settle(&mut self, terms: &Terms, entry: &Entry, actual: u64, news: &mut Vec<News>) {
        self.turn(terms);
        let over = actual.saturating_sub(entry.amount);
        let under = entry.amount.saturating_sub(actual);
        for (period, _) in terms.each() {
            let cell = &mut self.cells[period as usize];
            if entry.born == self.born && entry.starts[period as usize] == cell.start {
                cell.used = cell.used.saturating_sub(under);
            }
            self.add(terms, period, over, news);
        }
    }

    fn add(&mut self, terms: &Terms, period: Period, amount: u64, news: &mut Vec<News>) {
        let Some(limit) = terms.limits[period as usize] else { return };
        let cell = &mut self.cells[period as usize];
        cell.used = cell.used.saturating_add(amount).min(MOST);
        let used = cell.used;
        if terms.thresholds[period as usize].is_some_and(|threshold| used >= threshold) {
            self.tell(period, limit, TOLD_THRESHOLD, news);
        }
        if used > limit {
            self.tell(period, limit, TOLD_EXCEEDED, news);
        }
    }

    fn tell(&mut self, period: Period, limit: u64, what: u8, news: &mut Vec<News>) {
        let cell = &mut self.cells[period as usize];
        if cell.told & what != 0 {
            return;
        }
        cell.told |= what;
        let Cell { used, end, .. } = *cell;
        let exceeded = what == TOLD_EXCEEDED;
        news.push(News { exceeded, period, limit, used, resets_at: end });
    }
}
