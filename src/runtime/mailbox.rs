//! Replies on their way to an event loop: many at a time, one wake-up.
//!
//! The loop watches an eventfd, as it watches a socket. A thread of ours that
//! has a reply puts it into the box and, only if the box was empty, writes to
//! the eventfd. No GIL is taken for it: `call_soon_threadsafe`, which stock
//! bridges call from their threads, needs it, so every completion waits for
//! whoever holds the GIL, and an interpreter that is going down aborts.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use super::watch::Watch;
use crate::core::sync::Mutex;

/// The number of a request within its loop.
pub type Ticket = u64;

/// One event loop's letters of type `T`.
#[derive(Debug)]
pub struct Mailbox<T> {
    // Lives as long as anybody who may write to it: the number is never somebody else's.
    wake: OwnedFd,
    watch: Arc<Watch>,
    letters: Mutex<Vec<(Ticket, T)>>,
}

impl<T> Mailbox<T> {
    /// An empty box.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let watch = Arc::new(Watch::new()?);
        watch.wake_by(&wake)?;
        Ok(Self { wake, watch, letters: Mutex::new(Vec::new()) })
    }

    /// What the loop is to watch.
    #[must_use]
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Puts a letter in, and wakes the loop if it was the first.
    pub fn post(&self, ticket: Ticket, letter: T) {
        let first = {
            let mut letters = self.letters.lock();
            letters.push((ticket, letter));
            letters.len() == 1
        };
        if first {
            // It fails only when the counter is full, and then the loop is awake.
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }

    /// Takes out all there is.
    #[must_use]
    pub fn take(&self) -> Vec<(Ticket, T)> {
        // The eventfd first: a letter that comes in between wakes the loop again.
        let mut counter = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut counter);
        std::mem::take(&mut *self.letters.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn awake(mailbox: &Mailbox<u8>) -> bool {
        let mut polled = [rustix::event::PollFd::new(&mailbox.wake, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 }))
            .unwrap()
            == 1
    }

    #[test]
    fn many_letters_are_one_wake_up() {
        let mailbox = Mailbox::new().unwrap();
        assert!(!awake(&mailbox));
        mailbox.post(1, 10);
        mailbox.post(2, 20);
        mailbox.post(3, 30);
        assert!(awake(&mailbox));
        assert_eq!(mailbox.take(), [(1, 10), (2, 20), (3, 30)]);
        assert!(!awake(&mailbox));
        mailbox.post(4, 40);
        assert!(awake(&mailbox));
        assert_eq!(mailbox.take().len(), 1);
        assert!(mailbox.take().is_empty());
    }
}
