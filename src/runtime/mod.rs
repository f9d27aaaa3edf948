//! The life of the process.
//!
//! Nothing here starts a thread: the components of this floor's first tenants
//! (Redis, `SQLite`, the admin server) are not built yet. What every component
//! already needs is to notice that it woke up in a forked child.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::random::Random;

static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Counts the forks between the first process and this one; state that another
/// process's threads or tasks were to finish is void when it differs.
#[must_use]
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// Called in the child after `fork`.
pub fn after_fork_in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    Random::shared().stir();
}
