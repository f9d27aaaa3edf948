//! A state that is shared through a store: what its task tells comes home with the next call.
//!
//! The task never attaches to the interpreter. It tells the core itself, and leaves the steps that
//! this has brought about here: whoever uses the breaker next runs their callbacks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::core::breaker::{Answer, Breaker, Report, Transition};
use crate::core::clock::Nanos;
use crate::core::sync::Mutex;
use crate::py::service::redis_config;
use crate::runtime::redis::{LimitsConfig, SharedBreaker, Switch};

/// So many steps are left to be announced; of more, the newest.
const MOST: usize = 32;

/// `get_stats()["shared"]`.
#[derive(Default, IntoPyObject)]
pub(super) struct Sharing {
    joined: bool,
    alone: bool,
    probing: bool,
    opened_elsewhere: u64,
    closed_elsewhere: u64,
    asks: u64,
    failures: u64,
    losses: u64,
}

/// What a breaker and the task that talks to its store share.
struct Remote {
    core: Arc<Breaker>,
    left: AtomicBool,
    steps: Mutex<Vec<Transition>>,
}

impl Switch for Remote {
    fn report(&self) -> Report {
        self.core.report()
    }

    fn next_report(&self) -> Nanos {
        self.core.next_report()
    }

    fn answered(&self, report: &Report, sent: Nanos, answer: &Answer) {
        let Some(step) = self.core.answered(report, sent, answer) else { return };
        let mut steps = self.steps.lock();
        if steps.len() >= MOST {
            steps.remove(0);
        }
        steps.push(step);
        self.left.store(true, Ordering::Release);
    }

    fn alone(&self) {
        self.core.alone();
    }

    fn last_report(&self) -> Report {
        self.core.last_report()
    }

    fn probe_timeout(&self) -> Nanos {
        self.core.settings().probe_timeout
    }
}

/// A breaker's way to its store.
pub(super) struct Store {
    remote: Arc<Remote>,
    shared: SharedBreaker,
}

impl Store {
    pub(super) fn open(
        options: &Bound<'_, PyDict>,
        name: &str,
        core: &Arc<Breaker>,
    ) -> PyResult<Self> {
        let config = redis_config(options)?;
        let config =
            LimitsConfig { servers: config.servers, prefix: config.prefix, name: name.to_owned() };
        let core = Arc::clone(core);
        let remote =
            Arc::new(Remote { core, left: AtomicBool::new(false), steps: Mutex::default() });
        let switch: Arc<dyn Switch> = remote.clone();
        let shared = SharedBreaker::new(config, switch).map_err(|_| {
            PyRuntimeError::new_err(
                "ferrogate has shut down with the interpreter; nothing is shared any more",
            )
        })?;
        Ok(Self { remote, shared })
    }

    /// Before the core is asked: the steps that were made from outside since.
    #[inline]
    pub(super) fn heard(&self, py: Python<'_>, breaker: &str) -> Vec<Transition> {
        self.shared.ensure_running();
        let notices = self.shared.notices().take();
        if !notices.is_empty() {
            log(py, breaker, notices);
        }
        if !self.remote.left.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut steps = self.remote.steps.lock();
        self.remote.left.store(false, Ordering::Release);
        std::mem::take(&mut *steps)
    }

    /// After it was asked.
    #[inline]
    pub(super) fn called(&self) {
        if self.remote.core.calls() {
            self.shared.poke();
        }
    }

    /// What the statistics say of it.
    pub(super) fn figures(&self) -> Sharing {
        let figures = self.shared.figures();
        let Some(sharing) = self.remote.core.stats().sharing else { return Sharing::default() };
        Sharing {
            joined: sharing.joined,
            alone: figures.lost.load(Ordering::Relaxed),
            probing: sharing.probing,
            opened_elsewhere: sharing.opened_elsewhere,
            closed_elsewhere: sharing.closed_elsewhere,
            asks: figures.asks.load(Ordering::Relaxed),
            failures: figures.failures.load(Ordering::Relaxed),
            losses: figures.losses.load(Ordering::Relaxed),
        }
    }
}

#[cold]
fn log(py: Python<'_>, breaker: &str, notices: Vec<String>) {
    let logged = py.import("ferrogate._replies").and_then(|replies| {
        let log = replies.getattr("log")?;
        notices
            .into_iter()
            .try_for_each(|one| log.call1(("circuit breaker", breaker, one)).map(drop))
    });
    if let Err(error) = logged {
        // What a handler raises is none of the caller's business, who only wants to know.
        error.write_unraisable(py, None);
    }
}
