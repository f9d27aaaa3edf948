//! Limits that are shared through a store: what its task tells comes home to loops and threads.
//!
//! The task never attaches to the interpreter. It tells the core itself, rings the threads that
//! have something, and leaves the coroutines' wakers here for the loops that wait: each of them
//! watches one eventfd, and whichever comes first wakes them all.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rustix::event::{EventfdFlags, eventfd};

use super::{Core, Out};
use crate::core::clock::{Nanos, SECOND, nanos_from_duration};
use crate::core::key::Key;
use crate::core::limiter::Limit;
use crate::core::limiter::shared::{self, Charge, Leases, Wanted};
use crate::core::sync::Mutex;
use crate::py::service::{redis_config, watch_here};
use crate::py::waiting::{Waker, Wakes};
use crate::runtime::redis::{Books, LimitsConfig, SharedLimits};
use crate::runtime::watch::{Source, Watch};

/// A slice is valid for this part of the shortest window, and so long at most and at least. What
/// is left of the window for use is so much less; what a permit may take from being granted to
/// being used, so much more.
const PART: u64 = 50;
const LONGEST: Nanos = SECOND / 10;
const SHORTEST: Nanos = SECOND / 500;

/// `(members, joined, alone, slice, asks, failures, losses)`
pub(super) type Sharing = (u64, bool, bool, u64, u64, u64, u64);

/// What a limiter and the task that talks to its store share.
pub(super) struct Remote {
    core: Arc<Core>,
    wakes: Arc<Wakes>,
    validity: Nanos,
    /// Left by the task: those to wake, and those only to be dropped.
    wakers: Mutex<(Vec<Waker>, Vec<Waker>)>,
    left: AtomicBool,
    bell: Mutex<Bell>,
}

/// What loops watch.
struct Bell {
    fd: Arc<OwnedFd>,
    loops: Vec<Weak<Watch>>,
}

impl Bell {
    fn new() -> PyResult<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| {
            PyRuntimeError::new_err(format!("cannot wake event loops: {error}"))
        })?;
        Ok(Self { fd: Arc::new(fd), loops: Vec::new() })
    }
}

/// How limits are shared.
pub(super) fn sharing(limits: &[Limit], options: &Bound<'_, PyDict>) -> PyResult<shared::Sharing> {
    let shortest = limits.iter().map(|limit| limit.period()).min().unwrap_or(SECOND);
    let validity = (shortest / PART).clamp(SHORTEST, LONGEST);
    let patience = nanos_from_duration(redis_config(options)?.servers.timeout);
    Ok(shared::Sharing { validity, patience })
}

/// A limiter's way to its store.
pub(super) struct Store {
    remote: Arc<Remote>,
    limits: SharedLimits,
}

impl Store {
    pub(super) fn open(
        options: &Bound<'_, PyDict>,
        name: &str,
        core: &Arc<Core>,
        wakes: &Arc<Wakes>,
        validity: Nanos,
    ) -> PyResult<Self> {
        let config = redis_config(options)?;
        let config =
            LimitsConfig { servers: config.servers, prefix: config.prefix, name: name.to_owned() };
        let remote = Arc::new(Remote {
            core: Arc::clone(core),
            wakes: Arc::clone(wakes),
            validity,
            wakers: Mutex::default(),
            left: AtomicBool::new(false),
            bell: Mutex::new(Bell::new()?),
        });
        let books: Arc<dyn Books> = remote.clone();
        let limits = SharedLimits::new(config, Arc::downgrade(&books)).map_err(|_| ended())?;
        Ok(Self { remote, limits })
    }

    /// After every call of the core: asks for what it wants, and takes what the task has left.
    #[inline]
    pub(super) fn called(&self, wakers: &mut Vec<Waker>) {
        if self.remote.core.calls() {
            self.limits.poke();
        }
        if self.remote.left.load(Ordering::Acquire) {
            wakers.extend(self.remote.take());
        }
    }

    /// Hands what the task had to say to `logging`.
    #[inline]
    pub(super) fn log(&self, py: Python<'_>, limiter: &str) {
        let notices = self.limits.notices().take();
        if !notices.is_empty() {
            log(py, limiter, notices);
        }
    }

    /// A caller is refused as nobody answers.
    #[cold]
    pub(super) fn refused(&self, py: Python<'_>, limiter: &str) {
        self.limits.refused();
        self.log(py, limiter);
    }

    /// Has the event loop that runs here hear of what comes.
    pub(super) fn watch_here(&self, py: Python<'_>) -> PyResult<()> {
        if self.limits.is_closed() {
            return Err(ended());
        }
        let Some(watch) = watch_here(py)? else { return Ok(()) };
        let mut bell = self.remote.bell.lock();
        let known = Arc::downgrade(&watch);
        if bell.loops.iter().any(|one| one.ptr_eq(&known)) {
            return Ok(());
        }
        bell.loops.retain(|one| one.strong_count() > 0);
        let source: Arc<dyn Source> = self.remote.clone();
        watch.add(&*bell.fd, &Arc::downgrade(&source))?;
        bell.loops.push(known);
        Ok(())
    }

    /// Whether it can be asked at all.
    pub(super) fn check(&self) -> PyResult<()> {
        if self.limits.is_closed() { Err(ended()) } else { Ok(()) }
    }

    /// In the child of a fork, which must not take the parent's wakes.
    pub(super) fn after_fork(&self) -> PyResult<()> {
        let bell = Bell::new()?;
        let old = std::mem::replace(&mut *self.remote.bell.lock(), bell);
        drop(old);
        let left = std::mem::take(&mut *self.remote.wakers.lock());
        drop(left);
        self.remote.left.store(false, Ordering::Release);
        Ok(())
    }

    /// What the statistics say of it.
    pub(super) fn figures(&self) -> Sharing {
        let figures = self.limits.figures();
        let core = &self.remote.core;
        (
            core.members().unwrap_or(1),
            figures.joined.load(Ordering::Relaxed),
            core.lost_at().is_some(),
            core.leased(),
            figures.asks.load(Ordering::Relaxed),
            figures.failures.load(Ordering::Relaxed),
            figures.losses.load(Ordering::Relaxed),
        )
    }
}

impl Remote {
    /// Tells the core; what follows for coroutines is left to whoever is attached.
    fn tell(&self, body: impl FnOnce(&Core, &mut Out)) {
        let mut out = Out::new();
        body(&self.core, &mut out);
        let (wakes, buried) = (out.take_wakes(), out.take_buried());
        if wakes.is_empty() && buried.is_empty() {
            return;
        }
        let (threads, coroutines): (Vec<_>, Vec<_>) = wakes.into_iter().partition(Waker::ring);
        // All of them: dropping a coroutine's last one needs the interpreter.
        let mut left = self.wakers.lock();
        let ring = !coroutines.is_empty();
        left.0.extend(coroutines);
        left.1.extend(buried);
        left.1.extend(threads);
        self.left.store(true, Ordering::Release);
        drop(left);
        if ring {
            let fd = Arc::clone(&self.bell.lock().fd);
            // It fails only when the counter is full, and then the loops are awake.
            let _ = rustix::io::write(&*fd, &1_u64.to_ne_bytes());
        }
    }

    /// Those to wake. Called attached.
    fn take(&self) -> Vec<Waker> {
        let (wakers, buried) = {
            let mut left = self.wakers.lock();
            self.left.store(false, Ordering::Release);
            std::mem::take(&mut *left)
        };
        drop(buried);
        wakers
    }
}

impl Source for Remote {
    fn ready(&self) {
        let fd = Arc::clone(&self.bell.lock().fd);
        let mut counter = [0; 8];
        // Before the wakers are taken: those that come in between ring again.
        let _ = rustix::io::read(&*fd, &mut counter);
        if self.left.load(Ordering::Acquire) {
            Python::attach(|py| self.wakes.send(py, self.take()));
        }
    }
}

impl Books for Remote {
    fn limits(&self) -> Vec<Limit> {
        self.core.limits()
    }

    fn validity(&self) -> Nanos {
        self.validity
    }

    fn due(&self) -> Wanted<Key> {
        self.core.due()
    }

    fn arrived(&self, key: Option<&Key>, leases: &Leases) {
        self.tell(|core, out| core.arrived(key, leases, out));
    }

    fn failed(&self, key: Option<&Key>, again: Nanos) {
        self.core.failed(key, again);
    }

    fn next_attempt(&self, at: Nanos) {
        self.core.next_attempt(at);
    }

    fn lost(&self) {
        self.tell(Core::lost);
    }

    fn found(&self) {
        self.tell(Core::found);
    }

    fn shared_by(&self, members: u32) {
        self.core.shared_by(members);
    }

    fn charges(&self, since: Nanos) -> Vec<Charge<Key>> {
        self.core.charges(since)
    }

    fn is_idle(&self) -> bool {
        self.core.is_idle()
    }

    fn interrupted(&self) {
        self.core.interrupted();
    }

    fn closing(&self) {
        self.core.closing();
    }
}

#[cold]
fn log(py: Python<'_>, limiter: &str, notices: Vec<String>) {
    let logged = py.import("ferrogate._replies").and_then(|replies| {
        let log = replies.getattr("log")?;
        notices.into_iter().try_for_each(|one| log.call1(("limiter", limiter, one)).map(drop))
    });
    if let Err(error) = logged {
        // What a handler raises is none of the caller's business, who only wants a permit.
        error.write_unraisable(py, None);
    }
}

#[cold]
fn ended() -> PyErr {
    PyRuntimeError::new_err(
        "ferrogate has shut down with the interpreter; nothing is shared any more",
    )
}
