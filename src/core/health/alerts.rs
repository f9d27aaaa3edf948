//! Alerts as a state machine: raised once, resolved, remembered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::core::clock::{Nanos, SECOND};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Something works worse than agreed.
    Warning,
    /// Something does not work, or soon will not.
    Critical,
}

impl Severity {
    /// `info`, `warning` or `critical`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// The severity of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Info, Self::Warning, Self::Critical].into_iter().find(|s| s.as_str() == name)
    }
}

/// What is known about one condition at this moment. A condition of which
/// nothing is known gives no signal and stays as it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// The condition's name, the identity of its alert.
    pub name: String,
    /// Whether it holds.
    pub state: State,
}

/// Whether a condition holds.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// It does not.
    Clear,
    /// It does.
    Firing {
        /// How bad it is.
        severity: Severity,
        /// What was measured.
        value: f64,
        /// What it was measured against.
        threshold: f64,
        /// A sentence for people.
        message: String,
    },
}

/// One incident, from the first time its condition held to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// The condition's name.
    pub name: String,
    /// The present severity; after the end the last one.
    pub severity: Severity,
    /// A sentence for people, of the latest evaluation in which it fired.
    pub message: String,
    /// The latest measured value.
    pub value: f64,
    /// What it was measured against.
    pub threshold: f64,
    /// Seconds since the Unix epoch.
    pub raised_at: f64,
    /// Seconds since the Unix epoch; `None` while it is active.
    pub resolved_at: Option<f64>,
    /// How often the condition came back within the flap window: 1 for a
    /// steady incident.
    pub times_raised: u64,
    /// When it was resolved, on the monotonic clock.
    ended: Nanos,
}

/// The bounds of an [`AlertBook`].
#[derive(Clone, Copy, Debug)]
pub struct AlertLimits {
    /// Alerts active at once; more are counted and not raised.
    pub active: usize,
    /// Resolved alerts remembered, the oldest go first.
    pub history: usize,
    /// A condition that comes back this soon after its end reopens the same
    /// incident instead of adding a new one to the history.
    pub flap_window: Nanos,
}

impl Default for AlertLimits {
    fn default() -> Self {
        Self { active: 1024, history: 256, flap_window: 60 * SECOND }
    }
}

/// Longest name and message kept, in bytes; a check may fail with a page of HTML.
const MAX_TEXT: usize = 512;

/// The active alerts and the history of those that ended.
#[derive(Debug, Default)]
pub struct AlertBook {
    limits: AlertLimits,
    active: BTreeMap<String, Alert>,
    history: VecDeque<Alert>,
    raised: u64,
    resolved: u64,
    dropped: u64,
    /// Conditions that fire and found no room: each is counted once until it
    /// clears. No more than the owner has conditions.
    waiting: BTreeSet<String>,
}

impl AlertBook {
    /// An empty book.
    #[must_use]
    pub fn new(limits: AlertLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Takes in one evaluation; `now` is monotonic, `unix` the same moment for people.
    pub fn apply(&mut self, now: Nanos, unix: f64, signals: Vec<Signal>) {
        for Signal { name, state } in signals {
            match state {
                State::Clear => self.resolve(&name, now, unix),
                State::Firing { severity, value, threshold, message } => {
                    let Some(alert) = self.open(cut(name), now, unix) else { continue };
                    alert.severity = severity;
                    alert.value = value;
                    alert.threshold = threshold;
                    alert.message = cut(message);
                }
            }
        }
    }

    /// The active alert of that name: as it is, reopened, or new. `None` when
    /// the book is full.
    fn open(&mut self, name: String, now: Nanos, unix: f64) -> Option<&mut Alert> {
        if !self.active.contains_key(&name) {
            if self.active.len() >= self.limits.active {
                self.dropped += u64::from(self.waiting.insert(name));
                return None;
            }
            self.waiting.remove(&name);
            let alert = self.reopen(&name, now).unwrap_or_else(|| {
                self.raised += 1;
                Alert {
                    name: name.clone(),
                    severity: Severity::Info,
                    message: String::new(),
                    value: 0.0,
                    threshold: 0.0,
                    raised_at: unix,
                    resolved_at: None,
                    times_raised: 1,
                    ended: 0,
                }
            });
            self.active.insert(name.clone(), alert);
        }
        self.active.get_mut(&name)
    }

    fn reopen(&mut self, name: &str, now: Nanos) -> Option<Alert> {
        let index = self.history.iter().rposition(|a| a.name == name)?;
        let ended = self.history.get(index)?.ended;
        if now.saturating_sub(ended) >= self.limits.flap_window {
            return None;
        }
        let mut alert = self.history.remove(index)?;
        alert.resolved_at = None;
        alert.times_raised += 1;
        self.resolved = self.resolved.saturating_sub(1);
        Some(alert)
    }

    /// Ends an alert, for instance of a check that is no longer registered.
    pub fn resolve(&mut self, name: &str, now: Nanos, unix: f64) {
        let name = shortened(name);
        self.waiting.remove(name);
        let Some(mut alert) = self.active.remove(name) else { return };
        alert.resolved_at = Some(unix);
        alert.ended = now;
        self.resolved += 1;
        self.history.push_back(alert);
        while self.history.len() > self.limits.history {
            self.history.pop_front();
        }
    }

    /// The active alerts, the worst first, by name among equals.
    #[must_use]
    pub fn active(&self) -> Vec<Alert> {
        let mut alerts: Vec<_> = self.active.values().cloned().collect();
        alerts.sort_by_key(|alert| std::cmp::Reverse(alert.severity));
        alerts
    }

    /// All incidents known, active ones included, in the order they began.
    #[must_use]
    pub fn history(&self) -> Vec<Alert> {
        let mut all: Vec<_> = self.history.iter().chain(self.active.values()).cloned().collect();
        all.sort_by(|a, b| a.raised_at.total_cmp(&b.raised_at));
        all
    }

    /// Incidents raised, resolved, and not raised for want of room.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.raised, self.resolved, self.dropped)
    }
}

/// At most [`MAX_TEXT`] bytes, whole characters.
fn shortened(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or(text)
}

fn cut(mut text: String) -> String {
    text.truncate(shortened(&text).len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fires(name: &str, severity: Severity, value: f64) -> Signal {
        let message = format!("{name} is {value}");
        let state = State::Firing { severity, value, threshold: 1.0, message };
        Signal { name: name.into(), state }
    }

    fn clear(name: &str) -> Signal {
        Signal { name: name.into(), state: State::Clear }
    }

    fn at(book: &mut AlertBook, second: u64, signals: Vec<Signal>) {
        book.apply(second * SECOND, 1000.0 + second as f64, signals);
    }

    #[test]
    fn raised_once_updated_resolved_remembered() {
        let mut book = AlertBook::default();
        at(&mut book, 1, vec![fires("m", Severity::Warning, 85.0)]);
        at(&mut book, 2, vec![fires("m", Severity::Critical, 97.0)]);
        let active = book.active();
        assert_eq!(active.len(), 1);
        assert_eq!((active[0].severity, active[0].value), (Severity::Critical, 97.0));
        assert_eq!(active[0].raised_at.to_bits(), 1001.0_f64.to_bits());
        at(&mut book, 5, vec![clear("m")]);
        assert!(book.active().is_empty());
        let history = book.history();
        assert_eq!(history.len(), 1);
        assert_eq!(history[0].resolved_at, Some(1005.0));
        assert_eq!(book.counts(), (1, 1, 0));
    }

    #[test]
    fn flapping_is_one_incident() {
        let mut book = AlertBook::default();
        for i in 0..20 {
            at(&mut book, 2 * i, vec![fires("m", Severity::Warning, 81.0)]);
            at(&mut book, 2 * i + 1, vec![clear("m")]);
        }
        let history = book.history();
        assert_eq!(history.len(), 1);
        assert_eq!(history[0].times_raised, 20);
        assert_eq!(history[0].raised_at.to_bits(), 1000.0_f64.to_bits());
        at(&mut book, 500, vec![fires("m", Severity::Warning, 81.0)]);
        assert_eq!(book.history().len(), 2, "after the flap window it is a new one");
    }

    #[test]
    fn an_unknown_condition_stays_as_it_was() {
        let mut book = AlertBook::default();
        at(&mut book, 1, vec![fires("m", Severity::Warning, 85.0)]);
        at(&mut book, 2, vec![clear("other")]);
        assert_eq!(book.active().len(), 1);
    }

    #[test]
    fn the_worst_comes_first() {
        let mut book = AlertBook::default();
        at(&mut book, 1, vec![fires("b", Severity::Warning, 2.0), fires("a", Severity::Info, 2.0)]);
        at(&mut book, 2, vec![fires("z", Severity::Critical, 2.0)]);
        let names: Vec<_> = book.active().into_iter().map(|a| a.name).collect();
        assert_eq!(names, ["z", "b", "a"]);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let mut book = AlertBook::default();
        let mut signal = fires("m", Severity::Info, 2.0);
        if let State::Firing { message, .. } = &mut signal.state {
            *message = "ä".repeat(1000);
        }
        at(&mut book, 1, vec![signal]);
        assert_eq!(book.active()[0].message, "ä".repeat(256));
    }

    #[test]
    fn a_long_name_is_resolved_as_it_was_raised() {
        let mut book = AlertBook::default();
        let name = "ä".repeat(1000);
        at(&mut book, 1, vec![fires(&name, Severity::Info, 2.0)]);
        book.resolve(&name, SECOND, 1001.0);
        assert!(book.active().is_empty());
        at(&mut book, 2, vec![fires(&name, Severity::Info, 2.0)]);
        at(&mut book, 3, vec![clear(&name)]);
        assert!(book.active().is_empty());
    }

    #[test]
    fn a_condition_without_room_counts_once_until_it_clears() {
        let mut book = AlertBook::new(AlertLimits { active: 1, ..AlertLimits::default() });
        let both = || vec![fires("a", Severity::Info, 2.0), fires("b", Severity::Info, 2.0)];
        for second in 0..100 {
            at(&mut book, second, both());
        }
        assert_eq!(book.counts(), (1, 0, 1));
        at(&mut book, 100, vec![clear("b")]);
        at(&mut book, 101, both());
        assert_eq!(book.counts(), (1, 0, 2));
        // Room at last: it is raised, late.
        at(&mut book, 102, vec![clear("a"), fires("b", Severity::Info, 2.0)]);
        assert_eq!(book.active()[0].name, "b");
        assert_eq!(book.counts(), (2, 1, 2));
        assert!(book.waiting.is_empty());
    }

    proptest! {
        /// Bounds hold, no name is active twice, every incident is accounted for.
        #[test]
        fn bounded_and_consistent(
            steps in prop::collection::vec((0u64..100, 0u8..12, any::<bool>()), 1..300)
        ) {
            let limits = AlertLimits { active: 5, history: 7, flap_window: 60 * SECOND };
            let mut book = AlertBook::new(limits);
            let mut second = 0;
            for (wait, name, fire) in steps {
                second += wait;
                let name = format!("n{name}");
                let signal = if fire { fires(&name, Severity::Warning, 2.0) } else { clear(&name) };
                at(&mut book, second, vec![signal]);
                prop_assert!(book.active.len() <= 5 && book.history.len() <= 7);
                prop_assert!(book.waiting.iter().all(|name| !book.active.contains_key(name)));
                let (raised, resolved, _) = book.counts();
                prop_assert_eq!(raised - resolved, book.active.len() as u64);
                prop_assert!(book.history.iter().all(|a| a.resolved_at.is_some()));
                let history = book.history();
                prop_assert!(history.windows(2).all(|w| w[0].raised_at <= w[1].raised_at));
            }
        }
    }
}
