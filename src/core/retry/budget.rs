//! A bound on how many of all calls may be retries, shared by all who call the same upstream.
//!
//! When everything fails, retries multiply the load by the number of attempts, just when it can
//! be borne least. With a budget they add a share to it, whatever the attempts. As Finagle's
//! `RetryBudget` has it (Twitter, 2016): every call pays in a part of a retry, every retry takes
//! out a whole one, and a small reserve lets rare calls retry as well. What is saved is bounded
//! by a cap instead of by its age, as in the token buckets of gRPC (proposal A6) and the AWS
//! SDKs: paying in then needs no clock.
//!
//! All amounts are whole numbers, of millionths of a retry and of a USD.

use crate::core::clock::{Clock, Nanos, SECOND};
use crate::core::error::InvalidArgument;
use crate::core::sync::Mutex;
use crate::core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Millionths in a whole one.
const MILLION: u64 = 1_000_000;

/// A retry in the units of the reserve: millionths × nanoseconds of the second.
const RETRY: u128 = MILLION as u128 * SECOND as u128;

/// Seconds of which the money spent is known: a minute, and the one that has begun.
const SECONDS: usize = 61;

/// How a [`RetryBudget`] is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetSettings {
    /// What a call pays in, in millionths of a retry.
    pub ratio: u64,
    /// What comes into the reserve each second, in millionths of a retry.
    pub min_per_second: u64,
    /// The reserve holds what comes in during this time; a new one is full.
    pub window: Nanos,
    /// So much of what calls pay in is kept, in millionths of a retry.
    pub max_saved: u64,
    /// What retries may cost in any minute, in millionths of a USD.
    pub usd_per_minute: Option<u64>,
    /// Off: every retry is paid for, and counted.
    pub enabled: bool,
}

impl Default for BudgetSettings {
    fn default() -> Self {
        Self {
            ratio: MILLION / 5,
            min_per_second: MILLION,
            window: 10 * SECOND,
            max_saved: 100 * MILLION,
            usd_per_minute: None,
            enabled: true,
        }
    }
}

/// What a budget holds and has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetStats {
    /// Calls that paid in.
    pub calls: u64,
    /// Retries paid for.
    pub retries: u64,
    /// Retries refused for want of any.
    pub refused: u64,
    /// Retries refused since they would have cost too much.
    pub refused_usd: u64,
    /// Saved from calls, in millionths of a retry.
    pub saved: u64,
    /// In the reserve, in millionths of a retry.
    pub reserve: u64,
    /// Spent in this minute (and up to a second more), in millionths of a USD.
    pub spent: u64,
}

/// What retries are paid from.
#[derive(Debug)]
pub struct RetryBudget {
    settings: BudgetSettings,
    clock: Clock,
    /// Calls that have not been counted in `account` yet: the way of a call that succeeds.
    calls: AtomicU64,
    account: Mutex<Account>,
}

#[derive(Debug)]
struct Account {
    calls: u64,
    retries: u64,
    refused: u64,
    refused_usd: u64,
    /// Millionths of a retry.
    saved: u64,
    /// [`RETRY`] is one.
    reserve: u128,
    /// When the reserve was that.
    at: Nanos,
    spending: Spending,
}

/// Money by the second. A minute's sum counts the second that the minute began in as a whole, so
/// no sixty seconds hold more than is allowed.
#[derive(Debug)]
struct Spending {
    by_second: [u64; SECONDS],
    /// The newest second.
    second: u64,
    sum: u64,
}

impl Spending {
    fn advance(&mut self, now: Nanos) {
        let second = now / SECOND;
        let passed = second.saturating_sub(self.second);
        if passed == 0 {
            return;
        }
        self.second = second;
        let gone = passed.min(SECONDS as u64);
        for back in 0..gone {
            let slot = self.slot(second - back);
            self.sum -= std::mem::take(slot);
        }
    }

    fn slot(&mut self, second: u64) -> &mut u64 {
        &mut self.by_second[(second % SECONDS as u64) as usize]
    }
}

impl Account {
    fn new(settings: &BudgetSettings, now: Nanos) -> Self {
        Self {
            calls: 0,
            retries: 0,
            refused: 0,
            refused_usd: 0,
            saved: 0,
            reserve: RetryBudget::most_in_reserve(settings),
            at: now,
            spending: Spending { by_second: [0; SECONDS], second: now / SECOND, sum: 0 },
        }
    }
}

impl RetryBudget {
    /// # Errors
    /// Where a ratio is above 1, or nothing can ever be paid.
    pub fn new(settings: BudgetSettings, clock: Clock) -> Result<Self, InvalidArgument> {
        if settings.ratio > MILLION {
            return Err(InvalidArgument::new("ratio", "expected a ratio of 0..1"));
        }
        let saves = settings.ratio > 0 && settings.max_saved >= MILLION;
        if settings.min_per_second == 0 && !saves {
            let message = "expected more than 0 where nothing is ever saved from calls (ratio, \
                           max_saved): no retry could be paid; to retry nothing, attempts=1";
            return Err(InvalidArgument::new("min_per_second", message));
        }
        if settings.usd_per_minute == Some(0) {
            let message = "expected at least a millionth of a USD; to retry nothing, attempts=1";
            return Err(InvalidArgument::new("usd_per_minute", message));
        }
        let account = Account::new(&settings, clock.now());
        Ok(Self { settings, clock, calls: AtomicU64::new(0), account: Mutex::new(account) })
    }

    /// How it was set up.
    #[must_use]
    pub fn settings(&self) -> &BudgetSettings {
        &self.settings
    }

    /// A whole retry at least, or a slow reserve would never pay one.
    fn most_in_reserve(settings: &BudgetSettings) -> u128 {
        match settings.min_per_second {
            0 => 0,
            rate => (u128::from(rate) * u128::from(settings.window)).max(RETRY),
        }
    }

    /// A call that is no retry begins.
    #[inline]
    pub fn deposit(&self) {
        self.calls.fetch_add(1, Relaxed);
    }

    /// Pays for a retry that costs so much, as far as that is known; false if there is not enough.
    pub fn try_withdraw(&self, cost: Option<u64>) -> bool {
        let mut account = self.account.lock();
        self.settle(&mut account);
        if !self.settings.enabled {
            account.retries += 1;
            return true;
        }
        let cost = if self.settings.usd_per_minute.is_some() { cost.unwrap_or(0) } else { 0 };
        let most = self.settings.usd_per_minute.unwrap_or(u64::MAX);
        if account.spending.sum.checked_add(cost).is_none_or(|spent| spent > most) {
            account.refused_usd += 1;
            return false;
        }
        // The reserve first: it comes back by itself.
        if account.reserve >= RETRY {
            account.reserve -= RETRY;
        } else if account.saved >= MILLION {
            account.saved -= MILLION;
        } else {
            account.refused += 1;
            return false;
        }
        account.retries += 1;
        let second = account.spending.second;
        *account.spending.slot(second) += cost;
        account.spending.sum += cost;
        true
    }

    /// As new, for test suites; the counters go on.
    pub fn reset(&self) {
        let mut account = self.account.lock();
        self.settle(&mut account);
        let Account { calls, retries, refused, refused_usd, .. } = *account;
        let new = Account::new(&self.settings, account.at);
        *account = Account { calls, retries, refused, refused_usd, ..new };
    }

    /// What it holds now, and has seen.
    #[must_use]
    pub fn stats(&self) -> BudgetStats {
        let mut account = self.account.lock();
        self.settle(&mut account);
        BudgetStats {
            calls: account.calls,
            retries: account.retries,
            refused: account.refused,
            refused_usd: account.refused_usd,
            saved: account.saved,
            reserve: u64::try_from(account.reserve / u128::from(SECOND)).unwrap_or(u64::MAX),
            spent: account.spending.sum,
        }
    }

    /// Counts what has come in since. Calls only add, so a cap on their sum is a cap on each.
    fn settle(&self, account: &mut Account) {
        let calls = self.calls.swap(0, Relaxed);
        account.calls = account.calls.saturating_add(calls);
        account.saved = calls
            .saturating_mul(self.settings.ratio)
            .saturating_add(account.saved)
            .min(self.settings.max_saved);
        let now = self.clock.now();
        let gained = u128::from(now.saturating_sub(account.at))
            .saturating_mul(u128::from(self.settings.min_per_second));
        account.reserve =
            account.reserve.saturating_add(gained).min(Self::most_in_reserve(&self.settings));
        account.at = account.at.max(now);
        account.spending.advance(now);
    }
}
