//! The states, and what leads from one to another.

use super::probes::Probes;
use super::settings::{LEAST_SHARE, Settings, Span};
use super::shared::Shared;
use super::window::{Waste, Window};
use super::{Permit, Refusal, Spend, State, Stats, Transition};
use crate::core::clock::{Clock, Nanos};
use crate::core::error::InvalidArgument;
use crate::core::outcome::Outcome;
use crate::core::random::Random;
use crate::core::sync::Mutex;
use crate::core::sync::atomic::AtomicBool;

/// A circuit breaker.
#[derive(Debug)]
pub struct Breaker {
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    /// Whether the time matters to a call that goes through a closed breaker. Reading the clock
    /// twice is a quarter of what such a call costs.
    timed: bool,
    /// Something is to be told to those that share the state.
    pub(super) calls: AtomicBool,
    pub(super) inner: Mutex<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) state: State,
    /// The number of the stretch since the last transition.
    stretch: u64,
    window: Window,
    waste: Waste,
    /// When it went where it is.
    since: Nanos,
    /// Until when it rests.
    pub(super) until: Nanos,
    /// How often it opened without having closed in between.
    pub(super) relapses: u32,
    pub(super) probes: Probes,
    /// Probes that have succeeded in a row.
    pub(super) good: u32,
    /// While it recovers: what of the next call may be let through already, 0..1.
    pub(super) share: Option<f64>,
    totals: Totals,
    /// What processes that share the state know of each other.
    pub(super) shared: Option<Box<Shared>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    successes: u64,
    failures: u64,
    throttled: u64,
    neutral: u64,
    slow: u64,
    rejected: u64,
    opened: u64,
}

impl Breaker {
    /// A closed breaker, or a disabled one.
    ///
    /// # Errors
    /// A setting that makes no sense.
    pub fn new(settings: Settings, clock: Clock) -> Result<Self, InvalidArgument> {
        settings.check()?;
        let inner = Inner {
            state: if settings.enabled { State::Closed } else { State::Disabled },
            stretch: 0,
            window: Window::new(settings.window),
            waste: Waste::new(),
            since: 0,
            until: 0,
            relapses: 0,
            probes: Probes::default(),
            good: 0,
            share: None,
            totals: Totals::default(),
            shared: None,
        };
        let timed = settings.slow_call.is_some() || matches!(settings.window, Span::Time(_));
        let calls = AtomicBool::new(false);
        Ok(Self { settings, clock, timed, calls, inner: Mutex::new(inner) })
    }

    /// What it was made with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Asks for leave to make a call; with it, the step that this has brought about, if any.
    #[inline]
    pub fn begin(&self) -> (Result<Permit, Refusal>, Option<Transition>) {
        let mut inner = self.inner.lock();
        if !self.timed && inner.lets_all_through() {
            return (Ok(Permit { stretch: inner.stretch, begun: 0, probe: None }), None);
        }
        let now = self.clock.now();
        if let Err(refusal) = self.leave(&mut inner, now) {
            inner.totals.rejected += 1;
            return (Err(refusal), None);
        }
        let step = inner.end_rest(now);
        let asked = inner.admit(&self.settings, now);
        inner.totals.rejected += u64::from(asked.is_err());
        if let Some(shared) = &mut inner.shared
            && asked.is_ok()
        {
            shared.used(now);
        }
        (asked, step)
    }

    /// Asks whether [`Breaker::begin`] would refuse, and takes nothing: for a caller that has to
    /// wait for something else first. A refusal counts as a rejected call.
    ///
    /// # Errors
    /// It would.
    pub fn check(&self) -> Result<(), Refusal> {
        let refusal = self.would_refuse();
        if refusal.is_some() {
            self.inner.lock().totals.rejected += 1;
        }
        refusal.map_or(Ok(()), Err)
    }

    /// [`Breaker::check`] by somebody who goes elsewhere if refused, which is not counted.
    pub fn would_refuse(&self) -> Option<Refusal> {
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        if let Err(refusal) = self.leave(&mut inner, now) {
            return Some(refusal);
        }
        let state = inner.shown(now);
        let retry_after = match state {
            State::Open => Some(inner.until - now),
            State::ForcedOpen => None,
            State::HalfOpen if inner.state == State::HalfOpen => {
                let Settings { half_open_max_calls, probe_timeout, .. } = self.settings;
                match inner.probes.free_after(half_open_max_calls, now, probe_timeout) {
                    None => return None,
                    some => some,
                }
            }
            _ => return None,
        };
        Some(Refusal { state, retry_after })
    }

    /// Whether a breaker that shares its state and has rested may probe.
    #[inline]
    fn leave(&self, inner: &mut Inner, now: Nanos) -> Result<(), Refusal> {
        let (leave, ask) = inner.leave(now);
        if ask {
            self.call();
        }
        leave.map_err(|wait| Refusal { state: State::HalfOpen, retry_after: Some(wait) })
    }

    /// Gives a permit back with how the call ended and what it has cost; the step that this has
    /// brought about.
    #[inline]
    pub fn end(
        &self,
        permit: Permit,
        outcome: Outcome,
        spend: Option<Spend>,
    ) -> Option<Transition> {
        let Permit { stretch, begun, probe } = permit;
        let now = if self.timed || spend.is_some() { self.clock.now() } else { 0 };
        let slow = self.settings.slow_call.is_some_and(|slow| now.saturating_sub(begun) >= slow);
        let mut inner = self.inner.lock();
        inner.count(outcome, slow);
        if inner.stretch != stretch {
            // It was begun under other circumstances.
            return None;
        }
        if let Some(number) = probe {
            inner.probes.give_back(number);
        }
        let failed = match outcome {
            Outcome::Success => false,
            Outcome::Failure => true,
            Outcome::Throttled if self.settings.count_throttled => true,
            Outcome::Throttled | Outcome::Neutral => return None,
        };
        let mut wasteful = false;
        if inner.state != State::Disabled {
            inner.window.note(now, failed, slow);
            if failed && let Some(spend) = spend {
                let Settings { max_wasted_usd, max_wasted_tokens, .. } = self.settings;
                inner.waste.add(now, spend);
                wasteful = inner.waste.is_above(max_wasted_usd, max_wasted_tokens);
            }
        }
        match inner.state {
            State::Closed => (wasteful || self.is_too_much(&inner)).then(|| self.open(&mut inner)),
            State::HalfOpen if failed || slow && self.settings.slow_threshold.is_some() => {
                Some(self.open(&mut inner))
            }
            State::HalfOpen => {
                inner.good += 1;
                (inner.good >= self.settings.success_threshold).then(|| self.close(&mut inner))
            }
            State::Open | State::ForcedOpen | State::Disabled | State::MetricsOnly => None,
        }
    }

    /// Something that failed has cost so much, for those who learn of it beside a call's end; the
    /// step that this has brought about.
    pub fn note_waste(&self, spend: Spend) -> Option<Transition> {
        let now = self.clock.now();
        let Settings { max_wasted_usd, max_wasted_tokens, .. } = self.settings;
        let mut inner = self.inner.lock();
        if inner.state == State::Disabled {
            return None;
        }
        inner.waste.add(now, spend);
        let opens =
            inner.state == State::Closed && inner.waste.is_above(max_wasted_usd, max_wasted_tokens);
        opens.then(|| self.open(&mut inner))
    }

    #[inline]
    fn is_too_much(&self, inner: &Inner) -> bool {
        let Settings { failure_threshold, slow_threshold, .. } = self.settings;
        let [calls, failed, slow] = inner.window.sums();
        let over = |part: u64, threshold: f64| part as f64 > threshold * calls as f64;
        calls >= u64::from(self.settings.minimum_calls())
            && (over(failed, failure_threshold)
                || slow_threshold.is_some_and(|most| over(slow, most)))
    }

    #[cold]
    fn open(&self, inner: &mut Inner) -> Transition {
        let now = self.clock.now();
        let step = inner.go(State::Open, now);
        inner.totals.opened += 1;
        inner.until = now.saturating_add(self.settings.rest(inner.relapses, Random::shared()));
        inner.relapses = inner.relapses.saturating_add(1);
        self.changed(inner, now, false);
        step
    }

    #[cold]
    fn close(&self, inner: &mut Inner) -> Transition {
        let now = self.clock.now();
        let step = inner.go(State::Closed, now);
        inner.relapses = 0;
        // The first call after a recovery is always let through.
        inner.share = (self.settings.ramp_up > 0).then_some(1.0);
        self.changed(inner, now, false);
        step
    }

    #[inline]
    fn changed(&self, inner: &mut Inner, now: Nanos, by_hand: bool) {
        if inner.shared.is_some() {
            inner.changed(now, by_hand);
            self.call();
        }
    }

    /// Where it is; a breaker that has rested is half-open, though nobody has asked yet.
    #[must_use]
    pub fn state(&self) -> State {
        let now = self.clock.now();
        self.inner.lock().shown(now)
    }

    /// Lets nothing through until somebody says otherwise.
    pub fn force_open(&self) -> Option<Transition> {
        self.put(State::ForcedOpen)
    }

    /// Lets everything through and sums it up, until somebody says otherwise.
    pub fn disable(&self) -> Option<Transition> {
        self.put(State::Disabled)
    }

    /// Lets everything through and looks at it, until somebody says otherwise.
    pub fn metrics_only(&self) -> Option<Transition> {
        self.put(State::MetricsOnly)
    }

    /// Closes it, with nothing remembered but the totals. A recovery that is under way is over.
    pub fn reset(&self) -> Option<Transition> {
        self.put(State::Closed)
    }

    fn put(&self, state: State) -> Option<Transition> {
        if !self.settings.enabled {
            return None;
        }
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        if inner.state == state && state != State::Closed {
            return None;
        }
        let step = inner.go(state, now);
        inner.relapses = 0;
        self.changed(&mut inner, now, true);
        (step.from != step.to).then_some(step)
    }

    /// In the child of a fork: whoever has begun a probe lives in the parent. If it lives here
    /// as well, how it ends still counts.
    pub fn after_fork(&self) {
        let mut inner = self.inner.lock();
        inner.probes.clear();
        inner.forget_others();
    }

    /// What it has seen and done.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        inner.window.turn(now);
        inner.waste.turn(now);
        let [calls, failed, slow] = inner.window.sums();
        let share = |part: u64| if calls == 0 { 0.0 } else { part as f64 / calls as f64 };
        let totals = inner.totals;
        let state = inner.shown(now);
        Stats {
            state,
            error_rate: share(failed),
            slow_rate: share(slow),
            calls,
            wasted: inner.waste.sum(),
            successes: totals.successes,
            failures: totals.failures,
            throttled: totals.throttled,
            neutral: totals.neutral,
            slow: totals.slow,
            rejected: totals.rejected,
            times_opened: totals.opened,
            probes: inner.probes.count(),
            retry_after: (state == State::Open).then(|| inner.until - now),
            sharing: inner.sharing(now),
        }
    }
}

impl Inner {
    pub(super) fn shown(&self, now: Nanos) -> State {
        if self.state == State::Open && now >= self.until { State::HalfOpen } else { self.state }
    }

    #[inline]
    fn lets_all_through(&self) -> bool {
        match self.state {
            State::Closed => self.share.is_none(),
            State::Disabled | State::MetricsOnly => true,
            State::Open | State::HalfOpen | State::ForcedOpen => false,
        }
    }

    /// Turns half-open after its rest.
    #[inline]
    fn end_rest(&mut self, now: Nanos) -> Option<Transition> {
        (self.state == State::Open && now >= self.until).then(|| self.go(State::HalfOpen, now))
    }

    #[cold]
    pub(super) fn go(&mut self, to: State, now: Nanos) -> Transition {
        let from = std::mem::replace(&mut self.state, to);
        self.stretch += 1;
        self.since = now;
        self.good = 0;
        self.share = None;
        self.probes.clear();
        if let Some(shared) = &mut self.shared {
            shared.stepped(to);
        }
        // What has opened it can be looked at until it is history.
        if !to.is_open() {
            self.window.clear();
            self.waste.clear();
        }
        Transition { from, to }
    }

    #[inline]
    fn admit(&mut self, settings: &Settings, now: Nanos) -> Result<Permit, Refusal> {
        let permit = |stretch, probe| Permit { stretch, begun: now, probe };
        let refusal = |state, retry_after| Err(Refusal { state, retry_after });
        match self.state {
            State::Closed => match self.ramp(settings, now) {
                None => Ok(permit(self.stretch, None)),
                left => refusal(State::Closed, left),
            },
            State::Disabled | State::MetricsOnly => Ok(permit(self.stretch, None)),
            State::Open => refusal(State::Open, Some(self.until - now)),
            State::ForcedOpen => refusal(State::ForcedOpen, None),
            State::HalfOpen => {
                let Settings { half_open_max_calls, probe_timeout, .. } = *settings;
                match self.probes.take(half_open_max_calls, now, probe_timeout) {
                    Ok(number) => Ok(permit(self.stretch, Some(number))),
                    Err(left) => refusal(State::HalfOpen, Some(left)),
                }
            }
        }
    }

    /// While it recovers calls are let through evenly: as much of each as of the ramp is over.
    /// For one that has to wait, when the ramp ends.
    #[inline]
    fn ramp(&mut self, settings: &Settings, now: Nanos) -> Option<Nanos> {
        let share = self.share?;
        let elapsed = now.saturating_sub(self.since);
        if elapsed >= settings.ramp_up {
            self.share = None;
            return None;
        }
        let so_far = elapsed as f64 / settings.ramp_up as f64;
        let share = if share < 1.0 { share + so_far.max(LEAST_SHARE) } else { share };
        if share < 1.0 {
            self.share = Some(share);
            return Some(settings.ramp_up - elapsed);
        }
        self.share = Some(share - 1.0);
        None
    }

    fn count(&mut self, outcome: Outcome, slow: bool) {
        let totals = &mut self.totals;
        totals.slow += u64::from(slow);
        *match outcome {
            Outcome::Success => &mut totals.successes,
            Outcome::Failure => &mut totals.failures,
            Outcome::Throttled => &mut totals.throttled,
            Outcome::Neutral => &mut totals.neutral,
        } += 1;
    }
}
