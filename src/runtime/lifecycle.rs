//! Starts, forks and ends what runs in threads of ours.
//!
//! Tenants start when somebody first needs them, never at import. Before a fork
//! all of them are stopped and joined, and go on afterwards in the parent; the
//! child begins anew when it needs to. At exit they are closed within a deadline,
//! and from then on every request is refused.
//!
//! The caller of [`before_fork`] holds the GIL throughout. Whoever is to start
//! something holds it too, or is counted by its tenant, which waits for them in
//! [`Tenant::quiesce`]: so they never meet in the middle.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::core::clock::{Clock, nanos_from_duration};
use crate::core::random::Random;
use crate::core::sync::Mutex;

/// Threads of the tokio runtime. They only move bytes; a third gained nothing on two cores.
const WORKERS: usize = 2;

/// How long the runtime's own tasks may take to notice that it stops.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

static GENERATION: AtomicU64 = AtomicU64::new(0);
static LIFE: Mutex<Life> = Mutex::new(Life::new());

/// Something that owns threads, tasks, sockets or files for as long as the process lives.
pub trait Tenant: Send + Sync {
    /// Stops and joins its threads and closes what must not be open across a fork; what is
    /// queued stays queued. The caller holds the GIL, so this must not wait for Python.
    fn quiesce(&self);
    /// Goes on after the fork, in the parent.
    fn resume(&self);
    /// Forgets, in the forked child, what the parent's threads were to finish.
    fn forget(&self);
    /// Finishes what is queued within `patience`, closes, and refuses everything from then on.
    fn close(&self, patience: Duration);
}

/// The runtime was shut down with the interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended;

struct Life {
    ended: bool,
    /// Forks under way; several threads may be about to.
    forks: u32,
    pid: u32,
    runtime: Option<Runtime>,
    tenants: Vec<Weak<dyn Tenant>>,
}

impl Life {
    const fn new() -> Self {
        Self { ended: false, forks: 0, pid: 0, runtime: None, tenants: Vec::new() }
    }

    fn living(&mut self) -> Vec<Arc<dyn Tenant>> {
        self.tenants.retain(|tenant| tenant.strong_count() > 0);
        self.tenants.iter().filter_map(Weak::upgrade).collect()
    }
}

/// Counts the forks between the first process and this one; state that another
/// process's threads or tasks were to finish is void when it differs.
#[must_use]
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// Has `tenant` told about forks and the end.
///
/// # Errors
/// [`Ended`] after the shutdown.
pub fn admit(tenant: Weak<dyn Tenant>) -> Result<(), Ended> {
    let mut life = LIFE.lock();
    if life.ended {
        return Err(Ended);
    }
    if life.tenants.len().is_power_of_two() {
        life.living();
    }
    life.tenants.push(tenant);
    Ok(())
}

/// Whether threads may be started now: not between the two halves of a fork; the tenant is
/// told to [`Tenant::resume`] after it.
///
/// # Errors
/// [`Ended`] after the shutdown.
pub fn may_run() -> Result<bool, Ended> {
    let life = LIFE.lock();
    if life.ended { Err(Ended) } else { Ok(life.forks == 0) }
}

/// The tokio runtime, started on first use; `None` in the middle of a fork.
///
/// # Errors
/// [`Ended`] after the shutdown, an I/O error if its threads cannot be started.
pub fn runtime() -> Result<Option<Handle>, StartError> {
    let mut life = LIFE.lock();
    if life.ended {
        return Err(StartError::Ended);
    }
    if life.forks > 0 {
        return Ok(None);
    }
    let pid = std::process::id();
    if life.pid != pid {
        // Forked by somebody who does not tell Python: its threads are not here.
        std::mem::forget(life.runtime.take());
        life.pid = pid;
    }
    if life.runtime.is_none() {
        let built = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("ferrogate")
            .enable_all()
            .build();
        life.runtime = Some(built.map_err(StartError::Io)?);
    }
    Ok(life.runtime.as_ref().map(|runtime| runtime.handle().clone()))
}

/// Why the runtime did not start.
#[derive(Debug)]
pub enum StartError {
    /// After the shutdown.
    Ended,
    /// The system refused.
    Io(std::io::Error),
}

/// Stops and joins everything, so that the fork copies no thread's work half-done.
pub fn before_fork() {
    let (tenants, runtime) = {
        let mut life = LIFE.lock();
        life.forks += 1;
        (life.living(), life.runtime.take())
    };
    for tenant in tenants {
        tenant.quiesce();
    }
    if let Some(runtime) = runtime {
        runtime.shutdown_timeout(STOP_PATIENCE);
    }
}

/// Goes on in the parent, also when the fork failed.
pub fn after_fork_in_parent() {
    let tenants = {
        let mut life = LIFE.lock();
        life.forks = life.forks.saturating_sub(1);
        if life.forks > 0 || life.ended {
            return;
        }
        life.living()
    };
    for tenant in tenants {
        tenant.resume();
    }
}

/// Begins anew in the child.
pub fn after_fork_in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    Random::shared().stir();
    let tenants = {
        let mut life = LIFE.lock();
        life.forks = 0;
        life.pid = 0;
        // Only there if nobody told us before the fork; its threads are not here.
        std::mem::forget(life.runtime.take());
        life.living()
    };
    for tenant in tenants {
        tenant.forget();
    }
}

/// Ends everything within `patience`; every later request is refused. Idempotent.
pub fn shutdown(patience: Duration) {
    let (tenants, runtime) = {
        let mut life = LIFE.lock();
        life.ended = true;
        (life.living(), life.runtime.take())
    };
    let clock = Clock::System;
    let until = clock.now().saturating_add(nanos_from_duration(patience));
    let left = || Duration::from_nanos(until.saturating_sub(clock.now()));
    for tenant in tenants {
        tenant.close(left());
    }
    if let Some(runtime) = runtime {
        runtime.shutdown_timeout(left());
    }
}
