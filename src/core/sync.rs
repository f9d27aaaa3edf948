//! The locks. The only file that names `parking_lot`; under `cfg(loom)` the
//! same names are loom's, so that the model checker runs the shipped code.

#[cfg(not(loom))]
pub use parking_lot::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub use std::sync::{Arc, atomic};

#[cfg(loom)]
pub use self::model::{Condvar, Mutex, MutexGuard};
#[cfg(loom)]
pub use loom::sync::{Arc, atomic};

#[cfg(loom)]
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

    #[derive(Debug, Default)]
    pub struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub fn new() -> Self {
            Self(loom::sync::Condvar::new())
        }

        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}

/// Waits for a notification or for `timeout`, whichever comes first; may wake
/// spuriously, so callers check their condition again.
#[cfg(not(loom))]
pub fn wait_for<T>(condvar: &Condvar, guard: &mut MutexGuard<'_, T>, timeout: std::time::Duration) {
    condvar.wait_for(guard, timeout);
}
