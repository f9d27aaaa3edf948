//! Blocks that were open at a fork, and end in the child.
//!
//! The child starts with all slots free: whoever held them lives in the parent,
//! or, as the block that forked, in both. When that block ends in the child it
//! must not release the slot of somebody who went in since. An ``__exit__``
//! cannot say which ``__enter__`` it belongs to, but blocks of one thread nest:
//! as long as that thread has gone in since the fork, its exits are of those.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{ThreadId, current};

use crate::core::sync::Mutex;

/// What a fork has left open.
#[derive(Default)]
pub(super) struct Forked {
    /// Nothing else is looked at in a process that was not forked inside a block.
    any: AtomicBool,
    open: Mutex<Option<Open>>,
}

struct Open {
    /// The only thread that lives in the child too.
    thread: ThreadId,
    /// Blocks that were open at the fork, at most.
    before: u32,
    /// Slots that this thread has taken since.
    since: u32,
}

impl Forked {
    /// In the child, where `before` slots were in use.
    pub(super) fn here(&self, before: u32) {
        let open = Open { thread: current().id(), before, since: 0 };
        *self.open.lock() = (before > 0).then_some(open);
        self.any.store(before > 0, Ordering::Relaxed);
    }

    /// A slot was taken.
    #[inline]
    pub(super) fn enters(&self) {
        if self.any.load(Ordering::Relaxed) {
            self.enters_since();
        }
    }

    #[cold]
    fn enters_since(&self) {
        if let Some(open) = &mut *self.open.lock()
            && open.thread == current().id()
        {
            open.since += 1;
        }
    }

    /// A block ends; whether its slot is one of this process.
    #[inline]
    pub(super) fn leaves(&self) -> bool {
        !self.any.load(Ordering::Relaxed) || self.leaves_since()
    }

    #[cold]
    fn leaves_since(&self) -> bool {
        let mut guard = self.open.lock();
        let Some(open) = guard.as_mut().filter(|open| open.thread == current().id()) else {
            return true;
        };
        if open.since > 0 {
            open.since -= 1;
            return true;
        }
        open.before -= 1;
        if open.before == 0 {
            *guard = None;
            self.any.store(false, Ordering::Relaxed);
        }
        false
    }
}
