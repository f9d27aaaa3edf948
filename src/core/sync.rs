//! The locks. The only file that names `parking_lot`; under `cfg(ferrogate_loom)` the
//! same names are loom's, so that the model checker runs the shipped code. It is not
//! `cfg(loom)`: dependencies know that one, too, and some do not build with it.

#[cfg(not(ferrogate_loom))]
pub use parking_lot::{Mutex, MutexGuard};
#[cfg(not(ferrogate_loom))]
pub use std::sync::{Arc, atomic};

#[cfg(ferrogate_loom)]
pub use self::model::{Mutex, MutexGuard};
#[cfg(ferrogate_loom)]
pub use loom::sync::{Arc, atomic};

#[cfg(ferrogate_loom)]
mod model {
    //! loom's primitives in parking_lot's shape: no poisoning, guards by reference.
    pub use loom::sync::MutexGuard;

    #[derive(Debug, Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            match self.0.lock() {
                Ok(guard) => guard,
                Err(poisoned) => poisoned.into_inner(),
            }
        }

        pub fn into_inner(self) -> T {
            match self.0.into_inner() {
                Ok(value) => value,
                Err(poisoned) => poisoned.into_inner(),
            }
        }
    }
}

/// One thread's waiting, to be ended by any other.
///
/// Built on the thread's own parking place instead of a condition variable of
/// `parking_lot`: that keeps the waiting threads of the whole process in one
/// table, and its locks do not survive a fork that comes while a thread goes to
/// sleep or wakes up (measured: 2 of 10 children hung in their first wait). Here
/// is no lock at all.
#[cfg(not(ferrogate_loom))]
#[derive(Debug)]
pub struct Bell {
    rung: atomic::AtomicBool,
    sleeper: std::thread::Thread,
}

#[cfg(not(ferrogate_loom))]
impl Bell {
    /// A bell for the calling thread; no other may wait for it.
    #[must_use]
    pub fn of_this_thread() -> Self {
        Self { rung: atomic::AtomicBool::new(false), sleeper: std::thread::current() }
    }

    /// Ends the wait under way, or the next one.
    pub fn ring(&self) {
        self.rung.store(true, atomic::Ordering::Release);
        self.sleeper.unpark();
    }

    /// Waits until it is rung, at most about `longest`; true, once, if it was. May
    /// come back early, so callers check what they wait for again.
    pub fn wait(&self, longest: std::time::Duration) -> bool {
        if !self.rung.load(atomic::Ordering::Acquire) {
            std::thread::park_timeout(longest);
        }
        self.rung.swap(false, atomic::Ordering::AcqRel)
    }
}
