//! The deadline of the guarded call whose code runs in this thread now.
//!
//! What that code calls has no more time than it: a guard within a guard refuses at once what could
//! only come too late, and does not try again beyond. It is read when a call is made, so that tasks
//! made of guarded calls (`gather`, a `TaskGroup`) know it, too; other threads do not, nor does what
//! a plain function calls: greenlets may leave one in its middle, where coroutines end each step.

use std::cell::Cell;

use crate::core::clock::{Clock, NEVER, Nanos};

thread_local! {
    static AROUND: Cell<Around> = const { Cell::new(Around::NONE) };
}

/// A deadline, and on whose clock it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Around {
    clock: usize,
    deadline: Nanos,
}

/// While it lives, the code that runs in this thread has the deadline that it was made with.
pub(super) struct Within(Around);

impl Around {
    const NONE: Self = Self { clock: 0, deadline: NEVER };

    /// That of whoever calls now.
    #[inline]
    pub(super) fn current() -> Self {
        AROUND.get()
    }

    /// What it is on this clock; clocks that differ have nothing to tell each other.
    #[inline]
    pub(super) fn deadline(self, clock: &Clock) -> Nanos {
        if self.deadline == NEVER || self.clock != clock.identity() { NEVER } else { self.deadline }
    }
}

impl Within {
    /// Code that runs from here on must be done by `deadline`; [`NEVER`]: nothing changes.
    #[inline]
    pub(super) fn new(clock: &Clock, deadline: Nanos) -> Option<Self> {
        if deadline == NEVER {
            return None;
        }
        Some(Self(AROUND.replace(Around { clock: clock.identity(), deadline })))
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        AROUND.set(self.0);
    }
}
