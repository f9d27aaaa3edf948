//! Exact sliding windows over one shared [`GrantLog`].
//!
//! A grant at `g` counts in a window of length `w` for every `t` with
//! `g ∈ (t − w, t]`. Each window remembers the oldest grant it still counts
//! and the sum from there to the newest; both move forward as time does, so a
//! decision costs O(1) amortised per window.

use super::decision::{Decision, Reason};
use super::limit::Limit;
use super::log::{GrantLog, How, Position, Removed};
use crate::core::clock::{NEVER, Nanos};

#[derive(Debug)]
struct Window {
    limit: Limit,
    /// Permits granted within the window.
    sum: u64,
    /// Time of the oldest counted grant; meaningless while `sum` is 0.
    oldest: Nanos,
    /// The oldest counted grant, or the end.
    cursor: Position,
    /// Costs in the cursor's block that have already expired.
    passed: u64,
}

impl Window {
    fn new(limit: Limit) -> Self {
        Self { limit, sum: 0, oldest: 0, cursor: Position::default(), passed: 0 }
    }

    #[inline]
    fn expire(&mut self, log: &GrantLog, now: Nanos) {
        if self.sum > 0 && now - self.oldest >= self.limit.period() {
            self.step(log, now);
        }
    }

    fn step(&mut self, log: &GrantLog, now: Nanos) {
        let expired = |at: Nanos| now - at >= self.limit.period();
        if log.is_empty() || expired(log.newest()) {
            self.sum = 0;
            return;
        }
        // The newest grant still counts, so both loops end before the log does.
        let mut block = log.block(self.cursor.block);
        while expired(block.newest()) {
            self.sum -= block.sum - self.passed;
            self.passed = 0;
            self.cursor = Position { block: self.cursor.block + 1, index: 0 };
            block = log.block(self.cursor.block);
            self.oldest = block.base();
        }
        while expired(self.oldest) {
            let index = self.cursor.index;
            let cost = block.cost(index);
            self.sum -= cost;
            self.passed += cost;
            self.oldest += block.gap_after(index);
            self.cursor.index += 1;
        }
    }

    #[inline]
    fn fits(&self, cost: u64) -> bool {
        self.sum.saturating_add(cost) <= self.limit.count()
    }

    /// The time until `cost` permits fit, if `cost` is at most the count.
    fn wait(&self, log: &GrantLog, now: Nanos, cost: u64) -> Nanos {
        if self.fits(cost) {
            return 0;
        }
        // `cost <= count`, so `missing <= sum`: the walk ends inside the log.
        let missing = self.sum - (self.limit.count() - cost);
        let mut wanted = missing + self.passed;
        let mut number = self.cursor.block;
        let mut block = log.block(number);
        while block.sum < wanted {
            wanted -= block.sum;
            number += 1;
            block = log.block(number);
        }
        self.limit.period() - (now - block.reach(wanted))
    }

    /// The time until `total` permits have been granted one after the other: a
    /// full window repeats itself every period.
    fn wait_for_many(&self, log: &GrantLog, now: Nanos, total: u64) -> Nanos {
        let rounds = (total - 1) / self.limit.count();
        let rest = total - rounds * self.limit.count();
        self.wait(log, now, rest).saturating_add(rounds.saturating_mul(self.limit.period()))
    }

    fn count_in(&mut self, at: Nanos, cost: u32, position: Position, before: u64) {
        if self.sum == 0 {
            self.cursor = position;
            self.passed = before;
            self.oldest = at;
        }
        self.sum += u64::from(cost);
    }

    fn left(&self) -> u64 {
        self.limit.count().saturating_sub(self.sum)
    }

    fn reset_after(&self, log: &GrantLog, now: Nanos) -> Nanos {
        if self.sum == 0 { 0 } else { self.limit.period() - (now - log.newest()) }
    }

    /// Follows a removal from the log.
    fn uncount(&mut self, log: &GrantLog, removed: Removed, cost: u32) {
        if self.sum == 0 {
            // The cursor is set anew by the next grant.
            return;
        }
        let Removed { position, how } = removed;
        if position >= self.cursor {
            self.sum -= u64::from(cost);
            if self.sum == 0 || position > self.cursor || how == How::Blanked {
                return;
            }
            // The oldest counted grant went; its place is the next one's now.
            if how == How::Alone && self.cursor.index == log.block(self.cursor.block).len() {
                self.cursor = Position { block: self.cursor.block + 1, index: 0 };
                self.passed = 0;
            }
            self.oldest = log.block(self.cursor.block).time(self.cursor.index);
        } else if position.block == self.cursor.block {
            self.passed -= u64::from(cost);
            self.cursor.index -= usize::from(how == How::Alone);
        } else if how == How::WithBlock {
            self.cursor.block -= 1;
        }
    }
}

/// Several exact windows, all or nothing.
#[derive(Debug)]
pub(super) struct SlidingWindows {
    log: GrantLog,
    /// Shortest period first: the last one decides what the log keeps.
    windows: Box<[Window]>,
}

impl SlidingWindows {
    /// `limits` are sorted by period.
    pub(super) fn new(limits: &[Limit]) -> Self {
        Self {
            log: GrantLog::default(),
            windows: limits.iter().copied().map(Window::new).collect(),
        }
    }

    #[inline]
    fn expire(&mut self, now: Nanos) {
        let Some(longest) = self.windows.last() else { return };
        if self.log.is_empty() {
            return;
        }
        if now - self.log.newest() >= longest.limit.period() {
            for window in &mut self.windows {
                window.sum = 0;
            }
            self.log.clear();
            return;
        }
        for window in &mut self.windows {
            window.expire(&self.log, now);
        }
        if let Some(longest) = self.windows.last() {
            self.log.retire_before(longest.cursor);
        }
    }

    #[inline]
    pub(super) fn try_take(&mut self, now: Nanos, cost: u32) -> Decision {
        self.expire(now);
        let units = u64::from(cost);
        if !self.windows.iter().all(|window| window.fits(units)) {
            return self.refuse(now, units);
        }
        if self.windows.is_empty() {
            return Decision::unlimited(Reason::Granted);
        }
        self.count(now, cost);
        let mut left = u64::MAX;
        let mut limit = None;
        for window in &self.windows {
            if window.left() < left {
                left = window.left();
                limit = Some(window.limit);
            }
        }
        Decision {
            granted: true,
            reason: Reason::Granted,
            retry_after: 0,
            remaining: left,
            limit,
            // The newest grant is this one.
            reset_after: limit.map_or(0, Limit::period),
        }
    }

    fn count(&mut self, now: Nanos, cost: u32) {
        let (position, before) = self.log.push(now, cost);
        for window in &mut self.windows {
            window.count_in(now, cost, position, before);
        }
    }

    /// Counts what somebody else has granted.
    pub(super) fn record(&mut self, now: Nanos, cost: u32) {
        self.expire(now);
        self.count(now, cost);
    }

    /// Shows every grant that the log still has, oldest first.
    pub(super) fn each_grant(&self, show: impl FnMut(Nanos, u64)) {
        self.log.each(show);
    }

    /// The limit that refuses `cost` longest, or would.
    pub(super) fn binding(&mut self, now: Nanos, cost: u32) -> Option<Limit> {
        self.expire(now);
        self.refuse(now, u64::from(cost)).limit
    }

    #[cold]
    fn refuse(&self, now: Nanos, cost: u64) -> Decision {
        let mut worst = Decision::refused(Reason::Limited, 0);
        for window in &self.windows {
            let never = cost > window.limit.count();
            let wait = if never { NEVER } else { window.wait(&self.log, now, cost) };
            if worst.limit.is_none() || wait > worst.retry_after {
                worst = Decision {
                    granted: false,
                    reason: if never { Reason::TooLarge } else { Reason::Limited },
                    retry_after: wait,
                    remaining: window.left(),
                    limit: Some(window.limit),
                    reset_after: window.reset_after(&self.log, now),
                };
            }
        }
        worst
    }

    /// The time until `cost` fits; [`NEVER`] if it is greater than a count.
    pub(super) fn wait(&mut self, now: Nanos, cost: u32) -> Nanos {
        self.expire(now);
        let cost = u64::from(cost);
        self.longest_wait(|window, log| {
            if cost > window.limit.count() { NEVER } else { window.wait(log, now, cost) }
        })
    }

    /// The time until `cost` fits behind `ahead` others: exact for one window
    /// and unit costs, else a lower bound.
    pub(super) fn wait_behind(&mut self, now: Nanos, ahead: u64, cost: u32) -> Nanos {
        self.expire(now);
        let cost = u64::from(cost);
        self.longest_wait(|window, log| {
            if cost > window.limit.count() {
                NEVER
            } else {
                window.wait_for_many(log, now, ahead.saturating_add(cost))
            }
        })
    }

    fn longest_wait(&self, wait: impl Fn(&Window, &GrantLog) -> Nanos) -> Nanos {
        self.windows.iter().map(|window| wait(window, &self.log)).max().unwrap_or(0)
    }

    /// Gives back `cost` permits granted at `at`; nothing to do once they have expired.
    pub(super) fn refund(&mut self, now: Nanos, at: Nanos, cost: u32) {
        self.expire(now);
        if let Some(removed) = self.log.remove(at, cost) {
            for window in &mut self.windows {
                window.uncount(&self.log, removed, cost);
            }
        }
    }

    /// When no grant counts any more.
    pub(super) fn idle_at(&self) -> Nanos {
        match self.windows.last() {
            Some(longest) if !self.log.is_empty() => {
                self.log.newest().saturating_add(longest.limit.period())
            }
            _ => 0,
        }
    }

    /// New limits over the same grants. A window longer than the longest so
    /// far starts with what that one counted.
    pub(super) fn update(&mut self, now: Nanos, limits: &[Limit]) {
        self.expire(now);
        let old = std::mem::take(&mut self.windows);
        self.windows = limits.iter().copied().map(Window::new).collect();
        let Some(longest) = old.last().filter(|_| !self.log.is_empty()) else { return };
        for window in &mut self.windows {
            window.sum = longest.sum;
            window.oldest = longest.oldest;
            window.cursor = longest.cursor;
            window.passed = longest.passed;
        }
        if self.windows.is_empty() {
            self.log.clear();
        }
        self.expire(now);
    }

    /// Permits used now, limit by limit.
    pub(super) fn used(&mut self, now: Nanos) -> Vec<(Limit, u64)> {
        self.expire(now);
        self.windows.iter().map(|window| (window.limit, window.sum)).collect()
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.log.bytes()
    }
}
