//! Those who wait for another process to end its lease.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::core::sync::Mutex;
use crate::runtime::place::Id;
use crate::runtime::tier::{Done, Reply};

#[derive(Debug)]
enum State {
    Listening,
    Parked(Done),
    Rung,
}

/// So many wait at most: whoever was cancelled waits until a while has passed.
const MAX: usize = 100_000;

/// One who waits.
#[derive(Debug)]
pub(super) struct Waiter(Mutex<State>, Arc<AtomicUsize>);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Waiter {
    /// Has `done` answered as soon as it rings, which may have been before.
    pub(super) fn park(&self, done: Done) {
        let mut state = self.0.lock();
        if let State::Rung = *state {
            drop(state);
            done.end(Ok(Reply::Done));
        } else {
            *state = State::Parked(done);
        }
    }

    /// Ends the wait.
    pub(super) fn ring(&self) {
        let state = std::mem::replace(&mut *self.0.lock(), State::Rung);
        if let State::Parked(done) = state {
            done.end(Ok(Reply::Done));
        }
    }

    fn forget(&self) {
        if let State::Parked(done) = std::mem::replace(&mut *self.0.lock(), State::Rung) {
            done.forget();
        }
    }
}

/// All who wait, by where they wait.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<HashMap<Id, Vec<Arc<Waiter>>>>, Arc<AtomicUsize>);

impl Waits {
    /// One more, who hears what comes from now on; `None` if there are too many.
    pub(super) fn register(&self, id: &Id) -> Option<Arc<Waiter>> {
        if self.1.fetch_add(1, Ordering::AcqRel) >= MAX {
            self.1.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let waiter = Arc::new(Waiter(Mutex::new(State::Listening), Arc::clone(&self.1)));
        let mut all = self.0.lock();
        let here = all.entry(*id).or_default();
        // Those whose time was up ring by themselves and are dropped here.
        if here.len().is_power_of_two() {
            here.retain(|waiter| Arc::strong_count(waiter) > 1);
        }
        here.push(Arc::clone(&waiter));
        Some(waiter)
    }

    /// Something has happened there.
    pub(super) fn ring(&self, id: &Id) {
        let there = {
            let mut all = self.0.lock();
            if all.is_empty() { None } else { all.remove(id) }
        };
        for waiter in there.into_iter().flatten() {
            waiter.ring();
        }
    }

    /// Everybody is to look again.
    pub(super) fn ring_all(&self) {
        let all = std::mem::take(&mut *self.0.lock());
        for waiter in all.into_values().flatten() {
            waiter.ring();
        }
    }

    /// Drops those whose time was up.
    pub(super) fn sweep(&self) {
        self.0.lock().retain(|_, here| {
            here.retain(|waiter| Arc::strong_count(waiter) > 1);
            !here.is_empty()
        });
    }

    /// In a forked child nobody waits.
    pub(super) fn forget(&self) {
        for waiter in std::mem::take(&mut *self.0.lock()).into_values().flatten() {
            waiter.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::place::Place;

    #[test]
    fn whoever_rings_first_or_parks_first_the_wait_ends_once() {
        let (waits, ended) = (Waits::default(), Arc::new(AtomicUsize::new(0)));
        let done = || {
            let ended = Arc::clone(&ended);
            Done::new(move |_| {
                ended.fetch_add(1, Ordering::Relaxed);
            })
        };
        let place = Place::new("ns".into(), "k");
        let listen = || waits.register(place.id()).unwrap();
        let (early, late) = (listen(), listen());
        early.park(done());
        waits.ring(place.id());
        assert_eq!(ended.load(Ordering::Relaxed), 1);
        late.park(done());
        assert_eq!(ended.load(Ordering::Relaxed), 2);
        drop((early, late));
        let timed = listen();
        timed.park(done());
        timed.ring();
        waits.ring_all();
        assert_eq!(ended.load(Ordering::Relaxed), 3);
        drop(timed);
        waits.sweep();
        assert!(waits.0.lock().is_empty());
        let all: Vec<_> = (0..MAX).map(|_| listen()).collect();
        assert!(waits.register(place.id()).is_none());
        drop(all);
        waits.sweep();
        drop(listen());
    }
}
