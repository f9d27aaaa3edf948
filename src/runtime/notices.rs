//! Sentences for the log, from threads that cannot log.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::core::sync::Mutex;

/// How many wait for somebody to fetch them; more are dropped.
const MAX: usize = 32;

/// Sentences for the log.
#[derive(Debug, Default)]
pub struct Notices {
    any: AtomicBool,
    sentences: Mutex<Vec<String>>,
}

impl Notices {
    /// One more.
    pub fn add(&self, sentence: String) {
        let mut sentences = self.sentences.lock();
        if sentences.len() < MAX {
            sentences.push(sentence);
            self.any.store(true, Ordering::Release);
        }
    }

    /// All that came since the last call; costs next to nothing when there is none.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut sentences = self.sentences.lock();
        self.any.store(false, Ordering::Release);
        std::mem::take(&mut *sentences)
    }
}
