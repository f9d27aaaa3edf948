//! The counting of one key that is shared.

use super::super::decision::{Decision, Reason};
use super::super::limit::Limit;
use super::super::state::UNKNOWN;
use super::super::window::SlidingWindows;
use super::slices::Slices;
use super::{Leases, NOTICED, Outlook};
use crate::core::clock::{NEVER, Nanos, SECOND};
use crate::core::sync::Arc;
use crate::core::sync::atomic::Ordering;

/// In vain for now: ask again after so long at most, as others may give back.
const ASK_AGAIN: Nanos = SECOND / 2;

/// While the store does not answer, to ask again at once is of no use.
const AWAY: Nanos = SECOND / 10;

/// For callers to come at most this part of a limit is asked for: a process that dies takes it along.
const AHEAD: u64 = 100;

/// Groups that one window's use is told in.
const GROUPS: u64 = 64;

/// What a key wants of the store.
#[derive(Debug)]
pub(in crate::core::limiter) enum Due {
    /// Nothing, until it says so.
    Quiet,
    /// Perhaps something at that time.
    At(Nanos),
    /// This, now.
    Ask { want: u32, least: u32, back: Vec<(u64, u32)> },
}

/// Spends slices; on its own while the store is away.
#[derive(Debug)]
pub(in crate::core::limiter) struct Leased {
    outlook: Arc<Outlook>,
    limits: Box<[Limit]>,
    slices: Slices,
    /// What this process has used itself.
    own: SlidingWindows,
    /// What ended unspent, and goes back.
    back: Vec<(u64, u32)>,
    /// What callers who do not wait were refused since the store was last asked: in all, at most.
    refused: (u64, u32),
    /// What was spent since when, and what that comes to in the time that a slice lasts.
    spent: u64,
    since: Nanos,
    pace: u64,
    asking: bool,
    /// No use in asking before.
    again: Nanos,
    /// The store holds a place for us in its own line.
    claims: bool,
    /// It is known that something may be wanted.
    known: bool,
    /// What the store had left when it was last asked.
    left: u64,
    /// Nobody may forget this before.
    busy: Nanos,
    alone: Option<Alone>,
}

/// What may be used while the store is away.
#[derive(Debug)]
struct Alone {
    since: Nanos,
    /// Used in each window when the store went away.
    had: Box<[u64]>,
    /// When the windows have to be set anew.
    next: Nanos,
    /// Some window has no room at all.
    shut: bool,
}

/// Windows a little longer: what is used a moment after it was granted is still within them, as
/// it is within those of the store.
fn with_slack(limits: &[Limit], slack: Nanos) -> Vec<Limit> {
    let longer = |limit: &Limit| {
        Limit::new(limit.count(), limit.period().saturating_add(slack)).unwrap_or(*limit)
    };
    limits.iter().map(longer).collect()
}

impl Leased {
    pub(in crate::core::limiter) fn new(
        outlook: Arc<Outlook>,
        now: Nanos,
        limits: &[Limit],
    ) -> Self {
        // A new key of a process that is on its own has used nothing.
        let had = vec![0; limits.len()].into();
        let lost = outlook.lost_at();
        let alone = lost.map(|since| Alone { since, had, next: 0, shut: true });
        let slack = outlook.validity;
        Self {
            outlook,
            limits: limits.into(),
            slices: Slices::default(),
            own: SlidingWindows::new(&with_slack(limits, slack)),
            back: Vec::new(),
            refused: (0, 0),
            spent: 0,
            since: now,
            pace: 0,
            asking: false,
            again: 0,
            claims: false,
            known: false,
            left: 0,
            busy: 0,
            alone,
        }
    }

    fn too_large(&self, cost: u32) -> Option<Limit> {
        self.limits.iter().copied().find(|limit| u64::from(cost) > limit.count())
    }

    fn tightest(&self) -> Option<Limit> {
        self.limits.first().copied()
    }

    #[inline]
    pub(in crate::core::limiter) fn try_take(&mut self, now: Nanos, cost: u32) -> Decision {
        if let Some(limit) = self.too_large(cost) {
            let never = Decision::refused(Reason::TooLarge, NEVER);
            return Decision { limit: Some(limit), ..never };
        }
        if self.alone.is_some() {
            return self.take_alone(now, cost);
        }
        self.slices.end(now, &mut self.back);
        let left = self.slices.left();
        if left < u64::from(cost) {
            return self.refuse(now);
        }
        self.slices.spend(cost);
        self.own.record(now, cost);
        self.spent += u64::from(cost);
        let here = left - u64::from(cost);
        if here == 0 || 2 * here < self.pace {
            self.call();
        }
        let limit = self.tightest();
        Decision {
            granted: true,
            reason: Reason::Granted,
            retry_after: 0,
            remaining: here.saturating_add(self.left),
            limit,
            reset_after: limit.map_or(0, Limit::period),
        }
    }

    #[cold]
    fn refuse(&mut self, now: Nanos) -> Decision {
        self.call();
        let refused = Decision::refused(self.reason(), self.wait_for_lease(now));
        let limit = self.tightest();
        Decision { limit, reset_after: limit.map_or(0, Limit::period), ..refused }
    }

    fn wait_for_lease(&self, now: Nanos) -> Nanos {
        match self.outlook.next_attempt() {
            Some(attempt) => attempt.saturating_sub(now).max(AWAY),
            None => self.again.saturating_sub(now).max(UNKNOWN),
        }
    }

    fn reason(&self) -> Reason {
        let away = self.outlook.next_attempt().is_some();
        if away { Reason::StoreUnavailable } else { Reason::Limited }
    }

    /// What is refused behind others for another reason than them.
    pub(in crate::core::limiter) fn refuse_behind(&mut self, now: Nanos) -> Option<Decision> {
        let away = self.reason() == Reason::StoreUnavailable;
        away.then(|| Decision { limit: self.tightest(), ..self.refuse(now) })
    }

    /// A caller who does not wait was refused.
    pub(in crate::core::limiter) fn was_refused(&mut self, cost: u32) {
        self.refused.0 = self.refused.0.saturating_add(u64::from(cost));
        self.refused.1 = self.refused.1.max(cost);
        self.call();
    }

    /// Whether its key is to be kept in mind; says so once.
    pub(in crate::core::limiter) fn appears(&mut self) -> bool {
        !std::mem::replace(&mut self.known, true)
    }

    fn call(&self) {
        self.outlook.calls.store(true, Ordering::Release);
    }

    /// What is to be asked for, with so much waiting, of which the first wants `head`.
    pub(in crate::core::limiter) fn due(&mut self, now: Nanos, waiting: u64, head: u32) -> Due {
        if self.alone.is_some() {
            self.known = false;
            return Due::Quiet;
        }
        if self.asking {
            return Due::At(NEVER);
        }
        self.slices.end(now, &mut self.back);
        self.measure(now);
        let left = self.slices.left();
        let least = self.limits.iter().map(|limit| limit.count()).min().unwrap_or(0);
        let ahead = self.pace.min(least / AHEAD);
        let ahead = if 2 * left < ahead { ahead } else { 0 };
        let want = waiting.max(self.refused.0).max(ahead).saturating_sub(left).min(least);
        let want = u32::try_from(want).unwrap_or(u32::MAX);
        let mut next = self.slices.first_end().unwrap_or(NEVER);
        let asks = want > 0 && now >= self.again;
        if want > 0 && !asks {
            next = next.min(self.again);
        }
        if asks || !self.back.is_empty() || want == 0 && self.claims {
            self.asking = true;
            self.busy = now.saturating_add(self.outlook.patience).saturating_add(SECOND);
            let head = if head > 0 { head } else { self.refused.1 };
            let least = u64::from(head).saturating_sub(left).max(1);
            let want = if asks { want } else { 0 };
            if asks {
                self.refused = (0, 0);
            }
            let least = u32::try_from(least).unwrap_or(u32::MAX).min(want);
            return Due::Ask { want, least, back: std::mem::take(&mut self.back) };
        }
        if next == NEVER {
            self.known = false;
            return Due::Quiet;
        }
        Due::At(next)
    }

    fn measure(&mut self, now: Nanos) {
        let elapsed = now.saturating_sub(self.since);
        let validity = self.outlook.validity;
        if elapsed >= validity {
            let pace = u128::from(self.spent) * u128::from(validity) / u128::from(elapsed.max(1));
            self.pace = u64::try_from(pace).unwrap_or(u64::MAX);
            self.spent = 0;
            self.since = now;
        } else {
            self.pace = self.pace.max(self.spent);
        }
    }

    pub(super) fn arrived(&mut self, now: Nanos, leases: &Leases) {
        self.asking = false;
        self.left = leases.left;
        self.claims = leases.granted < leases.want;
        self.again = leases.again.min(now.saturating_add(ASK_AGAIN));
        if leases.granted > 0 {
            if leases.until > now && self.alone.is_none() {
                self.slices.add(now, leases.until, leases.slice, leases.granted);
            } else {
                self.back.push((leases.slice, leases.granted));
            }
        }
        self.call();
    }

    pub(super) fn failed(&mut self, now: Nanos, again: Nanos) {
        self.asking = false;
        self.again = again.min(now.saturating_add(ASK_AGAIN));
        self.call();
    }

    /// What may be spent of slices.
    pub(super) fn left(&mut self, now: Nanos) -> u64 {
        self.slices.end(now, &mut self.back);
        self.slices.left()
    }

    pub(super) fn closing(&mut self) {
        self.slices.end(NEVER, &mut self.back);
    }

    pub(super) fn lost(&mut self, now: Nanos) {
        self.slices.clear();
        self.back.clear();
        self.asking = false;
        self.claims = false;
        // What the store counts for sure, now that it counts for nobody else.
        let mut had: Box<[u64]> = vec![0; self.limits.len()].into();
        self.own.each_grant(|at, cost| {
            for (limit, had) in self.limits.iter().zip(&mut had) {
                if now.saturating_sub(at) < limit.period() {
                    *had += cost;
                }
            }
        });
        self.alone = Some(Alone { since: now, had, next: 0, shut: true });
        self.set_windows(now);
    }

    pub(super) fn found(&mut self, now: Nanos) {
        self.slices.clear();
        self.back.clear();
        self.asking = false;
        self.claims = false;
        self.again = 0;
        if self.alone.take().is_some() {
            self.own.update(now, &with_slack(&self.limits, self.outlook.validity));
        }
        self.call();
    }

    /// Sets the windows to what may be used on one's own now.
    fn set_windows(&mut self, now: Nanos) {
        let Some(alone) = &mut self.alone else { return };
        if now < alone.next {
            return;
        }
        let members = self.outlook.members();
        let late = self.outlook.validity.saturating_add(NOTICED);
        (alone.next, alone.shut) = (NEVER, false);
        let mut windows = Vec::with_capacity(self.limits.len());
        for (limit, had) in self.limits.iter().zip(&alone.had) {
            let share = limit.count() / members;
            let all = alone.since.saturating_add(limit.period()).saturating_add(late);
            let room = if now < all {
                alone.next = alone.next.min(all);
                share.min(*had)
            } else {
                share
            };
            let period = limit.period().saturating_add(self.outlook.validity);
            match Limit::new(room, period) {
                Ok(window) => windows.push(window),
                Err(_) => alone.shut = true,
            }
        }
        if !alone.shut {
            self.own.update(now, &windows);
        }
    }

    #[cold]
    fn take_alone(&mut self, now: Nanos, cost: u32) -> Decision {
        self.set_windows(now);
        let wait = self.wait_alone(now, cost);
        if wait == 0 {
            return self.own.try_take(now, cost);
        }
        let refused = Decision::refused(self.reason(), wait);
        Decision { limit: self.tightest(), ..refused }
    }

    /// Never for ever: the store may be back at any time.
    fn wait_alone(&mut self, now: Nanos, cost: u32) -> Nanos {
        let Some(alone) = &self.alone else { return UNKNOWN };
        let next = alone.next.saturating_sub(now);
        let wait = if alone.shut { NEVER } else { self.own.wait(now, cost) };
        wait.min(next).min(SECOND)
    }

    /// An estimate of the time until `cost` is granted.
    pub(in crate::core::limiter) fn wait(&mut self, now: Nanos, cost: u32) -> Nanos {
        if self.too_large(cost).is_some() {
            return NEVER;
        }
        if self.alone.is_some() {
            self.set_windows(now);
            return self.wait_alone(now, cost);
        }
        self.slices.end(now, &mut self.back);
        if self.slices.left() >= u64::from(cost) { 0 } else { self.wait_for_lease(now) }
    }

    /// When the first in line is to look again by itself: what is leased wakes it.
    pub(in crate::core::limiter) fn look_after(&mut self, now: Nanos, cost: u32) -> Nanos {
        if self.alone.is_some() && self.too_large(cost).is_none() {
            self.set_windows(now);
            return self.wait_alone(now, cost).max(UNKNOWN);
        }
        NEVER
    }

    pub(in crate::core::limiter) fn binding(&self, cost: u32) -> Option<Limit> {
        self.too_large(cost).or_else(|| self.tightest())
    }

    pub(in crate::core::limiter) fn refund(&mut self, now: Nanos, at: Nanos, cost: u32) {
        self.slices.end(now, &mut self.back);
        // What was used alone may have been told to the store: it stays used. So does what was
        // spent of a slice that has ended.
        if self.alone.is_none() && self.slices.unspend(at, cost) {
            self.own.refund(now, at, cost);
            self.call();
        }
    }

    pub(in crate::core::limiter) fn idle_at(&self) -> Nanos {
        let slices = self.slices.first_end().unwrap_or(0);
        let back = if self.back.is_empty() { 0 } else { self.busy };
        let asking = if self.asking || self.claims { self.busy } else { 0 };
        self.own.idle_at().max(slices).max(back).max(asking)
    }

    /// New counts; the windows stay as long as they are.
    pub(in crate::core::limiter) fn update(&mut self, now: Nanos, limits: &[Limit]) {
        self.limits = limits.into();
        match &mut self.alone {
            Some(alone) => {
                alone.next = 0;
                self.set_windows(now);
            }
            None => self.own.update(now, &with_slack(limits, self.outlook.validity)),
        }
        self.again = 0;
        self.call();
    }

    /// What this process has used itself, limit by limit.
    pub(in crate::core::limiter) fn used(&mut self, now: Nanos) -> Vec<(Limit, u64)> {
        let used = self.own.used(now).into_iter().map(|(_, used)| used);
        self.limits.iter().copied().zip(used).collect()
    }

    /// What was used from `since` on, in groups by their latest time.
    pub(super) fn used_since(&mut self, now: Nanos, since: Nanos) -> Vec<(Nanos, u64)> {
        let longest = self.limits.last().map_or(0, |limit| limit.period());
        let longest = longest.saturating_add(self.outlook.validity);
        let step = (longest / GROUPS).max(1);
        let mut groups: Vec<(Nanos, u64)> = Vec::new();
        let mut begun = 0;
        self.own.each_grant(|at, cost| {
            if at < since || now.saturating_sub(at) >= longest {
                return;
            }
            match groups.last_mut() {
                Some(group) if at - begun < step => {
                    group.0 = at;
                    group.1 += cost;
                }
                _ => {
                    begun = at;
                    groups.push((at, cost));
                }
            }
        });
        groups
    }

    /// In the child of a fork: what was leased and used is the parent's.
    pub(in crate::core::limiter) fn after_fork(&mut self, now: Nanos) {
        let fresh = Self::new(Arc::clone(&self.outlook), now, &self.limits);
        *self = fresh;
    }
}
