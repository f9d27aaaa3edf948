//! What happened in the last minutes, out of totals that only grow.

use std::collections::VecDeque;

use crate::core::clock::Nanos;

/// Points kept for one window: its edge is right to a sixtieth.
const POINTS: u64 = 60;

/// Totals since the start, as their owner counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Everything counted: generations, lookups.
    pub events: u64,
    /// Those of one kind: failures, hits.
    pub marked: u64,
    /// A sum over them: seconds.
    pub sum: f64,
}

/// The difference between the totals now and a window ago.
///
/// Alerts judge the last minutes rather than the life of the process: after a
/// million good calls a total outage would take hours to move a lifetime rate,
/// and an alert on it would take as long to go. Looked at seldom, the window
/// grows to the time since the last look, so that nothing passes unseen.
#[derive(Clone, Debug)]
pub struct SampledWindow {
    window: Nanos,
    points: VecDeque<(Nanos, Totals)>,
}

impl SampledWindow {
    /// A window that starts at the first look: what its owner has counted by
    /// then came at any time, and is no news.
    #[must_use]
    pub fn new(window: Nanos) -> Self {
        Self { window: window.max(1), points: VecDeque::new() }
    }

    /// Takes in the totals of this moment; returns what came in the window.
    pub fn observe(&mut self, now: Nanos, totals: Totals) -> Totals {
        let edge = now.saturating_sub(self.window);
        while self.points.get(1).is_some_and(|(at, _)| *at <= edge) {
            self.points.pop_front();
        }
        let mut base = self.points.front().map_or(totals, |(_, t)| *t);
        // Fewer than a window ago: the owner was reset, and what it shows came
        // since. Fewer than at the last look is not enough: two threads that
        // look at once may arrive here in the other order.
        if totals.events < base.events {
            self.points.clear();
            base = Totals::default();
            self.points.push_back((now, base));
        }
        let due = |at: Nanos| now.saturating_sub(at) >= self.window / POINTS;
        if self.points.back().is_none_or(|(at, _)| due(*at)) {
            self.points.push_back((now, totals));
        }
        let events = totals.events.saturating_sub(base.events);
        Totals {
            events,
            marked: totals.marked.saturating_sub(base.marked).min(events),
            sum: (totals.sum - base.sum).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::SECOND;
    use proptest::prelude::*;

    /// A window whose owner had counted nothing at its first look.
    fn begun() -> SampledWindow {
        let mut w = SampledWindow::new(300 * SECOND);
        assert_eq!(w.observe(0, Totals::default()), Totals::default());
        w
    }

    fn totals(events: u64, marked: u64) -> Totals {
        Totals { events, marked, sum: events as f64 }
    }

    #[test]
    fn old_failures_leave_the_window() {
        let mut w = begun();
        assert_eq!(w.observe(10 * SECOND, totals(10, 5)), totals(10, 5));
        assert_eq!(w.observe(100 * SECOND, totals(20, 5)), totals(20, 5));
        assert_eq!(w.observe(310 * SECOND, totals(30, 5)).marked, 0);
        assert_eq!(w.observe(1_000 * SECOND, totals(30, 5)), totals(0, 0));
    }

    /// A monitor made after a bad day once called it the last five minutes.
    #[test]
    fn what_came_before_the_first_look_is_no_news() {
        let mut w = SampledWindow::new(300 * SECOND);
        assert_eq!(w.observe(86_400 * SECOND, totals(1000, 900)), totals(0, 0));
        assert_eq!(w.observe(86_401 * SECOND, totals(1010, 901)), totals(10, 1));
    }

    #[test]
    fn a_reset_of_the_owner_starts_again() {
        let mut w = SampledWindow::new(300 * SECOND);
        w.observe(0, totals(1000, 900));
        assert_eq!(w.observe(SECOND, totals(4, 1)), totals(4, 1));
        w.observe(400 * SECOND, totals(1000, 10));
        w.observe(800 * SECOND, totals(1000, 10));
        assert_eq!(w.observe(801 * SECOND, totals(3, 2)), totals(3, 2));
    }

    /// Once taken for a reset, it made a lifetime of old failures look new.
    #[test]
    fn looks_that_arrive_in_the_other_order_are_no_reset() {
        let mut w = SampledWindow::new(300 * SECOND);
        w.observe(10 * SECOND, totals(1000, 900));
        w.observe(400 * SECOND, totals(1010, 900));
        assert_eq!(w.observe(800 * SECOND, totals(1021, 900)).marked, 0);
        assert_eq!(w.observe(800 * SECOND, totals(1020, 900)), totals(10, 0));
    }

    proptest! {
        /// Never more than happened, never negative, never unbounded.
        #[test]
        fn stays_bounded(steps in prop::collection::vec((0u64..200, 0u64..50, 0u64..50), 1..400)) {
            let mut w = begun();
            let (mut now, mut t) = (0, Totals::default());
            for (seconds, good, bad) in steps {
                now += seconds * SECOND;
                t = Totals { events: t.events + good + bad, marked: t.marked + bad, sum: t.sum };
                let seen = w.observe(now, t);
                prop_assert!(seen.marked <= seen.events && seen.events <= t.events);
                prop_assert!(seen.events >= good + bad, "the newest are always in");
                prop_assert!(w.points.len() as u64 <= POINTS + 2);
            }
        }
    }
}
