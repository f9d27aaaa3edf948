//! Retries: whether a call that failed is made again, and after how long a wait.
//!
//! A [`Policy`] is what somebody decided once. A [`Run`] is one call under it: a few words that
//! live in whatever drives the call. Nothing here waits, and a call that succeeds costs a few
//! atomic additions.
//!
//! The delays are those of M. Brooker, "Exponential backoff and jitter", AWS Architecture Blog,
//! 2015: a ceiling that grows by a factor up to a bound, and a random time below it.

mod budget;

#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod tests;

use super::clock::{NEVER, Nanos, SECOND};
use super::error::InvalidArgument;
use super::outcome::Outcome;
use super::random::Random;
use super::sync::Arc;
use super::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use self::budget::{BudgetSettings, BudgetStats, RetryBudget};

/// How much of a delay is left to chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jitter {
    /// All of it: between nothing and the ceiling.
    Full,
    /// Half of it: between half the ceiling and the ceiling.
    Equal,
    /// Nothing: the ceiling itself.
    None,
}

impl Jitter {
    /// # Errors
    /// When there is none of that name.
    pub fn parse(name: &str) -> Result<Self, InvalidArgument> {
        match name {
            "full" => Ok(Self::Full),
            "equal" => Ok(Self::Equal),
            "none" => Ok(Self::None),
            _ => {
                let message = format!("expected \"full\", \"equal\" or \"none\", got {name:?}");
                Err(InvalidArgument::new("jitter", message))
            }
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Equal => "equal",
            Self::None => "none",
        }
    }

    /// The least delay below this ceiling.
    const fn floor(self, ceiling: Nanos) -> Nanos {
        match self {
            Self::Full => 0,
            Self::Equal => ceiling / 2,
            Self::None => ceiling,
        }
    }
}

/// How a [`Policy`] is set up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Calls in all, the first included.
    pub attempts: u32,
    /// The ceiling of the first delay.
    pub base: Nanos,
    /// By how much each ceiling is higher than the one before.
    pub factor: f64,
    /// No ceiling is higher.
    pub max_delay: Nanos,
    /// How much of a delay is left to chance.
    pub jitter: Jitter,
    /// From the beginning of the first call: no delay ends later.
    pub total_timeout: Option<Nanos>,
    /// What a server asks for beyond this is not waited for.
    pub max_retry_after: Nanos,
    /// Off: nothing is retried.
    pub enabled: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            attempts: 3,
            base: SECOND / 2,
            factor: 2.0,
            max_delay: 30 * SECOND,
            jitter: Jitter::Full,
            total_timeout: None,
            max_retry_after: 60 * SECOND,
            enabled: true,
        }
    }
}

impl Settings {
    fn check(&self) -> Result<(), InvalidArgument> {
        if self.attempts == 0 {
            return Err(InvalidArgument::new("attempts", "expected at least 1, got 0"));
        }
        if !self.factor.is_finite() || self.factor < 1.0 {
            let message = format!("expected a finite number of at least 1, got {}", self.factor);
            return Err(InvalidArgument::new("factor", message));
        }
        if self.base > self.max_delay {
            let message = "expected at most max_delay: no delay is ever longer than that";
            return Err(InvalidArgument::new("base", message));
        }
        Ok(())
    }

    /// The ceiling of the delay after so many calls, which is the last one's times `factor`.
    fn ceiling(&self, made: u32) -> Nanos {
        let grown = self.factor.powi(i32::try_from(made.saturating_sub(1)).unwrap_or(i32::MAX));
        // The cast saturates; a base of 0 stays 0 whatever it is multiplied with.
        if self.base == 0 { 0 } else { (self.base as f64 * grown) as Nanos }.min(self.max_delay)
    }
}

/// Why a call is not made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// All attempts were made.
    Attempts,
    /// The budget for retries is spent.
    Budget,
    /// The delay would end after the deadline.
    Deadline,
    /// The server asks for more patience than there is.
    RetryAfterTooLong,
    /// It is not of a kind that is retried.
    NotRetried,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Attempts, Self::Budget, Self::Deadline, Self::RetryAfterTooLong, Self::NotRetried];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Budget => "budget",
            Self::Deadline => "deadline",
            Self::RetryAfterTooLong => "retry_after_too_long",
            Self::NotRetried => "not_retried",
        }
    }
}

/// What is to be done about a call that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Wait that long, and make it again.
    Again(Nanos),
    /// Let it be.
    GiveUp(Reason),
}

/// What a policy has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryStats {
    /// Runs begun.
    pub calls: u64,
    /// Calls made again.
    pub retries: u64,
    /// Delays asked for, in all.
    pub delayed: Nanos,
    /// Runs given up, in the order of [`Reason::ALL`].
    pub given_up: [u64; 5],
}

#[derive(Debug, Default)]
struct Counts {
    calls: AtomicU64,
    retries: AtomicU64,
    delayed: AtomicU64,
    given_up: [AtomicU64; 5],
}

/// When and how often a call that failed is made again.
///
/// Clones share what they count, and the budget.
#[derive(Clone, Debug)]
pub struct Policy {
    settings: Settings,
    budget: Option<Arc<RetryBudget>>,
    counts: Arc<Counts>,
}

impl Policy {
    /// # Errors
    /// Without any attempt, with a factor below 1, or with a base above the longest delay.
    pub fn new(
        settings: Settings,
        budget: Option<Arc<RetryBudget>>,
    ) -> Result<Self, InvalidArgument> {
        settings.check()?;
        Ok(Self { settings, budget, counts: Arc::new(Counts::default()) })
    }

    /// How it was set up.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What pays for its retries.
    #[must_use]
    pub fn budget(&self) -> Option<&Arc<RetryBudget>> {
        self.budget.as_ref()
    }

    /// Other terms for some of its calls. Where they have no budget this one's pays, and what
    /// they do is counted here.
    ///
    /// # Errors
    /// As [`Policy::new`].
    pub fn with(
        &self,
        settings: Settings,
        budget: Option<Arc<RetryBudget>>,
    ) -> Result<Self, InvalidArgument> {
        settings.check()?;
        let budget = budget.or_else(|| self.budget.clone());
        Ok(Self { settings, budget, counts: Arc::clone(&self.counts) })
    }

    /// Whether [`Policy::begin`] looks at the time that it is told.
    #[inline]
    #[must_use]
    pub fn needs_clock(&self) -> bool {
        self.settings.total_timeout.is_some()
    }

    /// The first call begins. `now` may be anything if [`Policy::needs_clock`] says no.
    #[inline]
    #[must_use]
    pub fn begin(&self, now: Nanos) -> Run {
        self.counts.calls.fetch_add(1, Relaxed);
        if let Some(budget) = &self.budget {
            budget.deposit();
        }
        let deadline = self.settings.total_timeout.map_or(NEVER, |total| now.saturating_add(total));
        Run { begun: now, deadline, made: 1 }
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> RetryStats {
        let counts = &self.counts;
        let mut given_up = [0; 5];
        for (sum, count) in given_up.iter_mut().zip(&counts.given_up) {
            *sum = count.load(Relaxed);
        }
        RetryStats {
            calls: counts.calls.load(Relaxed),
            retries: counts.retries.load(Relaxed),
            delayed: counts.delayed.load(Relaxed),
            given_up,
        }
    }

    fn count(&self, verdict: Verdict) {
        match verdict {
            Verdict::Again(delay) => {
                self.counts.retries.fetch_add(1, Relaxed);
                self.counts.delayed.fetch_add(delay, Relaxed);
            }
            Verdict::GiveUp(reason) => {
                let at = Reason::ALL.iter().position(|known| *known == reason);
                if let Some(count) = at.and_then(|at| self.counts.given_up.get(at)) {
                    count.fetch_add(1, Relaxed);
                }
            }
        }
    }
}

/// One call and those that are made in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    begun: Nanos,
    /// No delay may end later.
    deadline: Nanos,
    /// Calls made so far, the one under way included.
    made: u32,
}

impl Run {
    /// Ends at `deadline` at the latest, as whoever asked for the call says. The run must have
    /// begun with the time.
    #[must_use]
    pub fn until(self, deadline: Nanos) -> Self {
        Self { deadline: self.deadline.min(deadline), ..self }
    }

    /// Calls made so far, the one under way included.
    #[inline]
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.made
    }

    /// How long it has taken; unknown where nobody needed the time when it began.
    #[must_use]
    pub fn elapsed(&self, now: Nanos) -> Option<Nanos> {
        (self.deadline != NEVER).then(|| now.saturating_sub(self.begun))
    }

    /// What is to be done now that a call has ended so.
    ///
    /// `retry_after` is what the server asked for, and no delay is shorter; jitter comes on top,
    /// or all who were refused together would come back together. `cost` is what the next call
    /// may cost in millionths of a USD, as far as that is known. Nothing is taken from the
    /// budget unless the answer is [`Verdict::Again`].
    pub fn after(
        &mut self,
        policy: &Policy,
        outcome: Outcome,
        retry_after: Option<Nanos>,
        cost: Option<u64>,
        now: Nanos,
    ) -> Verdict {
        let random = |most| Random::shared().up_to(most);
        self.after_drawing(policy, outcome, retry_after, cost, now, random)
    }

    /// [`Run::after`] where the next call goes to somebody else, at once: [`Verdict::Again`] says
    /// for how long whoever failed is to be left alone, which may be longer than there is time.
    pub fn after_elsewhere(
        &mut self,
        policy: &Policy,
        outcome: Outcome,
        retry_after: Option<Nanos>,
        cost: Option<u64>,
        now: Nanos,
    ) -> Verdict {
        let random = |most| Random::shared().up_to(most);
        let verdict = match self.may(policy, outcome) {
            Ok(()) if self.left(now) == Some(0) => Verdict::GiveUp(Reason::Deadline),
            Ok(()) => self.paid(policy, self.pause(policy, retry_after, random), cost),
            Err(reason) => Verdict::GiveUp(reason),
        };
        // Nobody waits for it.
        policy.count(match verdict {
            Verdict::Again(_) => Verdict::Again(0),
            given_up @ Verdict::GiveUp(_) => given_up,
        });
        verdict
    }

    /// What is left until all calls must be over; `None`: no end.
    #[must_use]
    pub fn left(&self, now: Nanos) -> Option<Nanos> {
        (self.deadline != NEVER).then(|| self.deadline.saturating_sub(now))
    }

    /// The call has ended in a way that whoever judges errors does not want retried.
    #[must_use]
    pub fn not_retried(self, policy: &Policy) -> Verdict {
        let verdict = Verdict::GiveUp(Reason::NotRetried);
        policy.count(verdict);
        verdict
    }

    /// [`Run::after`] with a source of randomness: a number from 0 to the one given.
    fn after_drawing(
        &mut self,
        policy: &Policy,
        outcome: Outcome,
        retry_after: Option<Nanos>,
        cost: Option<u64>,
        now: Nanos,
        random: impl FnOnce(Nanos) -> Nanos,
    ) -> Verdict {
        let verdict = match self.delay(policy, outcome, retry_after, now, random) {
            Ok(delay) => self.paid(policy, delay, cost),
            Err(reason) => Verdict::GiveUp(reason),
        };
        policy.count(verdict);
        verdict
    }

    /// One more call, if the budget pays for it.
    fn paid(&mut self, policy: &Policy, delay: Nanos, cost: Option<u64>) -> Verdict {
        if policy.budget().is_some_and(|budget| !budget.try_withdraw(cost)) {
            return Verdict::GiveUp(Reason::Budget);
        }
        self.made = self.made.saturating_add(1);
        Verdict::Again(delay)
    }

    /// Whether it is to be made again at all.
    fn may(&self, policy: &Policy, outcome: Outcome) -> Result<(), Reason> {
        let settings = &policy.settings;
        if !settings.enabled || !matches!(outcome, Outcome::Failure | Outcome::Throttled) {
            return Err(Reason::NotRetried);
        }
        if self.made >= settings.attempts {
            return Err(Reason::Attempts);
        }
        Ok(())
    }

    /// How long the next call to the same server waits: as long as that asked, or by the policy.
    fn pause(
        &self,
        policy: &Policy,
        retry_after: Option<Nanos>,
        random: impl FnOnce(Nanos) -> Nanos,
    ) -> Nanos {
        let ceiling = policy.settings.ceiling(self.made);
        let floor = policy.settings.jitter.floor(ceiling);
        retry_after.unwrap_or(0).max(floor).saturating_add(random(ceiling - floor))
    }

    fn delay(
        &self,
        policy: &Policy,
        outcome: Outcome,
        retry_after: Option<Nanos>,
        now: Nanos,
        random: impl FnOnce(Nanos) -> Nanos,
    ) -> Result<Nanos, Reason> {
        self.may(policy, outcome)?;
        // Time left; a run without a deadline has all there is, whatever the time.
        let left = if self.deadline == NEVER { NEVER } else { self.deadline.saturating_sub(now) };
        let asked = retry_after.unwrap_or(0);
        if asked > policy.settings.max_retry_after || (asked > 0 && asked >= left) {
            return Err(Reason::RetryAfterTooLong);
        }
        let delay = self.pause(policy, retry_after, random);
        // A call that begins at the deadline could only be late.
        if delay >= left {
            return Err(Reason::Deadline);
        }
        Ok(delay)
    }
}
