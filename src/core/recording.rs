//! What attempts came to, kept for those who want to know what other thresholds had made of them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::clock::Nanos;
use crate::core::outcome::Outcome;
use crate::core::sync::Mutex;

/// One attempt, or one that was refused before it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Which call it belongs to, from 1.
    pub call: u64,
    /// Which attempt of that it was, from 1.
    pub number: u32,
    /// When it began, or was refused.
    pub at: Nanos,
    /// How long it had waited by then for permits and slots.
    pub waited: Nanos,
    /// How long it took.
    pub took: Nanos,
    /// How it ended; `None`: it was refused.
    pub outcome: Option<Outcome>,
    /// Tokens of the prompt, as far as they are known.
    pub input_tokens: u64,
    /// Tokens of the answer, as far as they are known.
    pub output_tokens: u64,
    /// Billionths of a US dollar, as far as they are known.
    pub nano_usd: u64,
}

/// The newest attempts, so many at most.
#[derive(Debug)]
pub struct Recording {
    most: usize,
    calls: AtomicU64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    attempts: VecDeque<Attempt>,
    dropped: u64,
}

impl Recording {
    /// Keeps at most so many, the newest.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, calls: AtomicU64::new(0), kept: Mutex::default() }
    }

    /// How many it keeps at most.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most
    }

    /// The number of a call that begins.
    pub fn next_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Keeps one, in place of the oldest if there are too many.
    pub fn push(&self, attempt: Attempt) {
        let mut kept = self.kept.lock();
        if kept.attempts.len() >= self.most {
            kept.attempts.pop_front();
            kept.dropped += 1;
        }
        kept.attempts.push_back(attempt);
    }

    /// The ones that are kept, in the order of their ends.
    #[must_use]
    pub fn attempts(&self) -> Vec<Attempt> {
        self.kept.lock().attempts.iter().copied().collect()
    }

    /// How many are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.lock().attempts.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many made room for newer ones.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.kept.lock().dropped
    }

    /// Forgets all of them.
    pub fn clear(&self) {
        let before = std::mem::take(&mut *self.kept.lock());
        drop(before);
    }
}

#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod tests {
    use super::{Attempt, Recording};

    fn attempt(call: u64) -> Attempt {
        Attempt {
            call,
            number: 1,
            at: call,
            waited: 0,
            took: 1,
            outcome: None,
            input_tokens: 0,
            output_tokens: 0,
            nano_usd: 0,
        }
    }

    #[test]
    fn the_newest_are_kept() {
        let recording = Recording::new(3);
        for expected in 1..=5 {
            let call = recording.next_call();
            assert_eq!(call, expected);
            recording.push(attempt(call));
        }
        let kept: Vec<u64> = recording.attempts().iter().map(|attempt| attempt.call).collect();
        assert_eq!((kept, recording.len(), recording.dropped()), (vec![3, 4, 5], 3, 2));
        recording.clear();
        assert!(recording.is_empty());
        assert_eq!((recording.dropped(), recording.next_call()), (0, 6));
    }
}
