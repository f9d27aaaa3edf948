//! Which generation namespaces and tags are in, as far as this process knows.
//!
//! Known generations spare a round trip. They only ever confirm a value: one that
//! they contradict is checked again in Redis. They are trusted only while the
//! channel of changes is up, and whoever reads one while it changes keeps nothing.
//!
//! Redis does not see that they are used, and those of the values that are read most would be the
//! first that it evicts: so they are touched from time to time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::core::clock::{Clock, Nanos, SECOND};
use crate::core::sync::Mutex;

/// So often one that is used is touched.
const TOUCH: Nanos = SECOND / 5;

/// So many at a time.
const IDLE: usize = 16;

/// With more, all are forgotten: each is then asked for once again.
const MAX: usize = 10_000;

#[derive(Debug)]
enum Entry {
    /// Somebody reads it; nobody has changed it since.
    Asked(u64),
    /// When it was last touched.
    Known(Arc<str>, Nanos),
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<String, Entry>,
    next: u64,
    /// To be touched.
    idle: Vec<String>,
}

/// The known generations, by their keys.
#[derive(Debug, Default)]
pub(super) struct Generations {
    trusted: AtomicBool,
    inner: Mutex<Inner>,
}

/// What is known of a generation.
#[derive(Debug)]
pub(super) enum Knowledge {
    Known(Arc<str>),
    /// It is to be asked for, and what is answered to be [`Generations::learn`]ed by this.
    Ask(u64),
}

impl Generations {
    pub(super) fn get(&self, name: &str) -> Knowledge {
        self.get_at(name, Clock::System.now())
    }

    fn get_at(&self, name: &str, now: Nanos) -> Knowledge {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if let Some(Entry::Known(known, touched)) = inner.entries.get_mut(name) {
            if now.saturating_sub(*touched) > TOUCH && inner.idle.len() < MAX {
                *touched = now;
                inner.idle.push(name.to_owned());
            }
            return Knowledge::Known(Arc::clone(known));
        }
        Self::begin(inner, name)
    }

    /// Some that Redis does not know to be in use, and is to be told of now.
    pub(super) fn idle(&self) -> Vec<String> {
        let mut inner = self.inner.lock();
        let rest = inner.idle.len().saturating_sub(IDLE);
        inner.idle.split_off(rest)
    }

    /// What to learn by, although something may be known.
    pub(super) fn ask(&self, name: &str) -> u64 {
        match Self::begin(&mut self.inner.lock(), name) {
            Knowledge::Ask(ticket) => ticket,
            Knowledge::Known(_) => 0,
        }
    }

    fn begin(inner: &mut Inner, name: &str) -> Knowledge {
        inner.next += 1;
        let ticket = inner.next;
        if inner.entries.len() >= MAX {
            inner.entries.clear();
        }
        inner.entries.insert(name.to_owned(), Entry::Asked(ticket));
        Knowledge::Ask(ticket)
    }

    /// Keeps what was read, unless it has changed since it was asked for.
    pub(super) fn learn(&self, name: &str, ticket: u64, generation: &str) {
        if !self.trusted.load(Ordering::Acquire) {
            return;
        }
        let mut inner = self.inner.lock();
        if let Some(entry) = inner.entries.get_mut(name)
            && matches!(entry, Entry::Asked(asked) if *asked == ticket)
        {
            *entry = Entry::Known(generation.into(), Clock::System.now());
        }
    }

    /// It has changed.
    pub(super) fn forget(&self, name: &str) {
        self.inner.lock().entries.remove(name);
    }

    /// Whether changes are heard of; forgets everything.
    pub(super) fn trust(&self, trusted: bool) {
        self.trusted.store(trusted, Ordering::Release);
        self.inner.lock().entries.clear();
    }

    /// How many are known or asked for.
    pub(super) fn len(&self) -> usize {
        self.inner.lock().entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(generations: &Generations, name: &str) -> Option<Arc<str>> {
        match generations.get(name) {
            Knowledge::Known(known) => Some(known),
            Knowledge::Ask(_) => None,
        }
    }

    #[test]
    fn what_changed_while_it_was_read_is_not_kept() {
        let generations = Generations::default();
        generations.learn("ns", generations.ask("ns"), "c1");
        assert_eq!(known(&generations, "ns"), None);
        generations.trust(true);
        generations.learn("ns", generations.ask("ns"), "c1");
        assert_eq!(known(&generations, "ns").as_deref(), Some("c1"));
        let late = generations.ask("ns");
        generations.forget("ns");
        generations.learn("ns", late, "c1");
        assert_eq!(known(&generations, "ns"), None);
        let late = generations.ask("ns");
        generations.forget("ns");
        let newer = generations.ask("ns");
        generations.learn("ns", late, "c1");
        assert!(known(&generations, "ns").is_none());
        generations.learn("ns", newer, "c2");
        // The look in between asked anew.
        assert_eq!(known(&generations, "ns"), None);
        generations.trust(false);
        assert_eq!(generations.len(), 0);
    }

    #[test]
    fn those_in_use_are_touched_now_and_then() {
        let generations = Generations::default();
        generations.trust(true);
        let now = Clock::System.now();
        for name in ["used", "unused"] {
            generations.learn(name, generations.ask(name), "c1");
        }
        for _ in 0..9 {
            generations.get_at("used", now);
        }
        assert!(generations.idle().is_empty());
        for _ in 0..9 {
            generations.get_at("used", now + 9 * TOUCH);
        }
        assert_eq!(generations.idle(), ["used"]);
        assert!(generations.idle().is_empty());
        for number in 0..2 * IDLE {
            let name = number.to_string();
            generations.learn(&name, generations.ask(&name), "c");
            generations.get_at(&name, now + 9 * TOUCH);
        }
        assert_eq!([generations.idle().len(), generations.idle().len()], [IDLE; 2]);
        assert!(generations.idle().is_empty());
    }

    #[test]
    fn they_are_bounded() {
        let generations = Generations::default();
        generations.trust(true);
        for number in 0..=2 * MAX {
            generations.learn(&number.to_string(), generations.ask(&number.to_string()), "c");
            assert!(generations.len() <= MAX);
        }
    }
}
