//! Leases that were asked for, and whose answer did not come in time.
//!
//! A paused server carries out what it had received, also for those who have given
//! up: the lease that it then gives would keep everybody waiting until it runs
//! out. So it is ended as soon as the server answers, and again from time to time
//! for as long as it could stand there: the two ways to the server are not ordered.

use std::collections::HashMap;

use crate::core::clock::Nanos;
use crate::core::sync::Mutex;

/// More run out by themselves.
const MAX: usize = 10_000;

/// All of one service: by their tokens, their keys and when they are gone by themselves.
#[derive(Debug, Default)]
pub(super) struct Orphans(Mutex<HashMap<u64, (String, Nanos)>>);

impl Orphans {
    /// One more.
    pub(super) fn add(&self, token: u64, name: String, until: Nanos) {
        let mut all = self.0.lock();
        if all.len() < MAX {
            all.entry(token).or_insert((name, until));
        }
    }

    /// Those that may still stand there: their tokens and keys.
    pub(super) fn living(&self, now: Nanos) -> Vec<(u64, String)> {
        let mut all = self.0.lock();
        all.retain(|_, (_, until)| *until > now);
        all.iter().map(|(token, (name, _))| (*token, name.clone())).collect()
    }

    /// Redis had it, and has it no longer.
    pub(super) fn ended(&self, token: u64) {
        self.0.lock().remove(&token);
    }

    /// In a forked child they are the parent's.
    pub(super) fn forget(&self) {
        self.0.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_told_of_until_it_has_run_out_or_ended() {
        let orphans = Orphans::default();
        orphans.add(1, "a".into(), 10);
        orphans.add(1, "a".into(), 99);
        orphans.add(2, "b".into(), 20);
        assert_eq!(orphans.living(9).len(), 2);
        assert_eq!(orphans.living(10), [(2, "b".to_owned())]);
        orphans.ended(2);
        assert!(orphans.living(10).is_empty());
    }
}
