//! One reply, for one thread that waits for it.

use std::sync::Arc;
use std::time::Duration;

use crate::core::sync::{Bell, Mutex};

/// Where the reply for a blocked thread goes.
#[derive(Debug)]
pub struct Slot<T> {
    bell: Bell,
    reply: Mutex<Option<T>>,
}

impl<T> Slot<T> {
    /// A slot for the calling thread; no other may wait for it.
    #[must_use]
    pub fn of_this_thread() -> Arc<Self> {
        Arc::new(Self { bell: Bell::of_this_thread(), reply: Mutex::new(None) })
    }

    /// Leaves the reply and wakes the thread.
    pub fn fill(&self, reply: T) {
        *self.reply.lock() = Some(reply);
        self.bell.ring();
    }

    /// Whether the reply has not come yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reply.lock().is_none()
    }

    /// Waits about `longest` at most; takes the reply if it has come.
    #[must_use]
    pub fn wait(&self, longest: Duration) -> Option<T> {
        if let Some(reply) = self.reply.lock().take() {
            return Some(reply);
        }
        self.bell.wait(longest);
        self.reply.lock().take()
    }
}
