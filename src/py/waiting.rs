//! Waiting in a limiter's line: tickets for coroutines, short detached sleeps for threads.
//!
//! One protocol for all limiters; a [`Standing`] says what a place in their line is.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pyo3::PyTraverseError;
use pyo3::PyVisit;
use pyo3::exceptions::PyRecursionError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyWeakrefMethods, PyWeakrefReference};

use crate::core::clock::{NEVER, Nanos, SECOND, secs_from_nanos};
use crate::core::sync::{Bell, Mutex};
use crate::py::edge::{edge, unraisable};
use crate::py::names;

/// Between two looks for a pending Ctrl-C.
const SIGNAL_SLICE: Duration = Duration::from_millis(50);

/// How long past its earliest possible turn a waiter trusts those before it to
/// take theirs; doubles with every look in vain, up to the second figure. A
/// head whose loop was closed wakes nobody, and this finds it.
const TRUST: (Nanos, Nanos) = (SECOND / 10, 60 * SECOND);

const MODULE: &str = "ferrogate._waiting";
/// The awaitable that waits.
static PLACE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
/// The coroutine that only raises.
static REFUSE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
/// The function that makes a `RateLimitExceeded`.
static EXCEEDED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Imports what is imported on first use.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    PLACE.import(py, MODULE, "Place")?;
    REFUSE.import(py, MODULE, "refuse")?;
    EXCEEDED.import(py, MODULE, "exceeded")?;
    Ok(())
}

/// The `RateLimitExceeded` of a request that was refused.
pub(crate) fn exceeded(
    py: Python<'_>,
    name: Option<&str>,
    limit: Option<String>,
    retry_after: Nanos,
    reason: &str,
) -> PyErr {
    let refuse = || -> PyResult<PyErr> {
        let exceeded = EXCEEDED.import(py, MODULE, "exceeded")?;
        let error = exceeded.call1((name, limit, seconds(retry_after), reason))?;
        Ok(PyErr::from_value(error))
    };
    refuse().unwrap_or_else(|error| error)
}

/// Seconds as Python sees them; never is infinite.
pub(crate) fn seconds(nanos: Nanos) -> f64 {
    if nanos == NEVER { f64::INFINITY } else { secs_from_nanos(nanos) }
}

/// The awaitable of a place in the line, which is taken by the call: it may be awaited much
/// later. One without a place is as good as a timeout, and told where that is.
pub(crate) fn place(py: Python<'_>, ticket: PyResult<PyTicket>) -> PyResult<Bound<'_, PyAny>> {
    match ticket {
        Ok(ticket) => PLACE.import(py, MODULE, "Place")?.call1((ticket,)),
        Err(error) => REFUSE.import(py, MODULE, "refuse")?.call1((error,)),
    }
}

/// Wakes one waiter; cloning and dropping it never touches a Python object's
/// count while a lock is held (clones share one, the last leaves by the outbox).
#[derive(Clone)]
pub(crate) struct Waker(Arc<Sleeper>);

enum Sleeper {
    /// A coroutine's `Waiter`, weakly: the line must not keep a task of a dead
    /// loop alive, whose end returns the ticket. Known from the first look at
    /// the ticket on; before that look nobody is woken.
    Task(OnceLock<Py<PyWeakrefReference>>),
    /// A thread.
    Thread(Bell),
}

/// What has become of a wake.
enum Woken {
    /// It was told, or has gone.
    Yes,
    /// Its loop was closed: its place goes to the next.
    Dead(Py<PyTicket>),
    /// It could not be told, as at the recursion limit.
    Not,
}

impl Waker {
    pub(crate) fn of_coroutine() -> Self {
        Self(Arc::new(Sleeper::Task(OnceLock::new())))
    }

    /// Whom to wake, told at every look.
    fn belongs_to(&self, waiter: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Sleeper::Task(known) = &*self.0
            && known.get().is_none()
        {
            let reference = PyWeakrefReference::new(waiter)?.unbind();
            // Only one coroutine has the ticket.
            drop(known.set(reference));
        }
        Ok(())
    }

    pub(crate) fn of_thread() -> Self {
        Self(Arc::new(Sleeper::Thread(Bell::of_this_thread())))
    }

    /// Wakes a thread, which takes no interpreter; false for a coroutine.
    pub(crate) fn ring(&self) -> bool {
        match &*self.0 {
            Sleeper::Task(_) => false,
            Sleeper::Thread(bell) => {
                bell.ring();
                true
            }
        }
    }

    fn wake(&self, py: Python<'_>) -> Woken {
        match &*self.0 {
            Sleeper::Task(reference) => {
                let reference = reference.get().map(|reference| reference.bind(py));
                let Some(waiter) = reference.and_then(PyWeakrefMethods::upgrade) else {
                    return Woken::Yes;
                };
                let report = |error: PyErr| {
                    // At its limit the interpreter could not report it, and nothing is lost.
                    if !error.is_instance_of::<PyRecursionError>(py) {
                        unraisable(error, &waiter);
                    }
                };
                Self::told(&waiter).unwrap_or_else(|error| {
                    // `wake` may be called again; this time nothing is pending.
                    let again = Self::told(&waiter);
                    report(error);
                    again.unwrap_or_else(|error| {
                        report(error);
                        Woken::Not
                    })
                })
            }
            Sleeper::Thread(bell) => {
                bell.ring();
                Woken::Yes
            }
        }
    }

    fn told(waiter: &Bound<'_, PyAny>) -> PyResult<Woken> {
        let answer = waiter.call_method0(names::wake(waiter.py()))?;
        let dead = answer.cast_into::<PyTicket>();
        Ok(dead.map_or(Woken::Yes, |ticket| Woken::Dead(ticket.unbind())))
    }

    /// Sleeps until woken, at most a signal slice and at most `longest`.
    fn sleep(&self, longest: Nanos) {
        if let Sleeper::Thread(bell) = &*self.0 {
            bell.wait(SIGNAL_SLICE.min(Duration::from_nanos(longest)));
        }
    }
}

/// A place in some limiter's line.
pub(crate) trait Standing: Send + Sync {
    /// `None`: granted. Else how long to sleep; those who do not know when their turn comes
    /// add `trust`. Raises when the time is up.
    fn look(&self, py: Python<'_>, trust: Nanos) -> PyResult<Option<Nanos>>;
    /// What the wait is for, once granted.
    fn result(&self, py: Python<'_>) -> Py<PyAny>;
    /// Leaves the line; whom to wake.
    fn leave(&self) -> Vec<Waker>;
    /// Gives back what was granted; whom to wake.
    fn give_back(&self, py: Python<'_>) -> Vec<Waker>;
    /// The caller has what was granted.
    fn kept(&self) {}
    /// Wakes them as its limiter does.
    fn wake(&self, py: Python<'_>, wakers: Vec<Waker>);
    /// Visits the objects that it holds.
    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError>;
}

/// Where a ticket stands: in the line; granted, but not yet its caller's; given up or kept.
const WAITING: u8 = 0;
const GRANTED: u8 = 1;
const DONE: u8 = 2;

/// A place in the line. One that goes before its caller has kept it (Ctrl-C may come after any
/// call and before the next line) gives back its place, or what it was granted.
#[pyclass(frozen, name = "_Ticket", module = "ferrogate._core")]
pub(crate) struct PyTicket {
    standing: Box<dyn Standing>,
    waker: Waker,
    /// Grows from the first figure of [`TRUST`] to the second.
    trust: AtomicU64,
    stage: AtomicU8,
}

impl PyTicket {
    /// For a coroutine that is yet to run.
    pub(crate) fn new(standing: Box<dyn Standing>, waker: Waker) -> Self {
        let trust = AtomicU64::new(TRUST.0);
        Self { standing, waker, trust, stage: AtomicU8::new(WAITING) }
    }

    fn withdraw(&self, py: Python<'_>) -> Vec<Waker> {
        match self.stage.swap(DONE, Ordering::Relaxed) {
            WAITING => self.standing.leave(),
            GRANTED => self.standing.give_back(py),
            _ => Vec::new(),
        }
    }

    fn give_back(&self, py: Python<'_>) {
        let wakers = self.withdraw(py);
        self.standing.wake(py, wakers);
    }
}

impl Drop for PyTicket {
    fn drop(&mut self) {
        if self.stage.load(Ordering::Relaxed) == DONE {
            return;
        }
        Python::attach(|py| {
            // It may go while an error passes, and that must stay the current one.
            let passing = PyErr::take(py);
            self.give_back(py);
            if let Some(passing) = passing {
                passing.restore(py);
            }
        });
    }
}

#[pymethods]
impl PyTicket {
    /// ``None``: granted. Else the seconds after which to look again, if ``waiter`` is not woken
    /// before, by its ``wake()``, from any thread. That returns the ticket if nobody is there to
    /// be woken any more.
    fn poll(&self, waiter: &Bound<'_, PyAny>) -> PyResult<Option<f64>> {
        edge("_Ticket.poll", || {
            self.waker.belongs_to(waiter)?;
            let trust = self.trust.load(Ordering::Relaxed);
            self.trust.store((2 * trust).min(TRUST.1), Ordering::Relaxed);
            let delay = self.standing.look(waiter.py(), trust)?;
            if delay.is_none() {
                self.stage.store(GRANTED, Ordering::Relaxed);
            }
            Ok(delay.map(seconds))
        })
    }

    /// What was granted.
    #[getter]
    fn result(&self, py: Python<'_>) -> Py<PyAny> {
        self.standing.result(py)
    }

    /// The caller has what was granted; assigned, because no signal is handled before the next line.
    #[setter]
    fn set_kept(&self, kept: bool) {
        if kept {
            self.stage.store(DONE, Ordering::Relaxed);
            self.standing.kept();
        }
    }

    /// Leaves the line, or gives back what was not kept.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        edge("_Ticket.cancel", || {
            self.give_back(py);
            Ok(())
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.standing.traverse(&visit)
    }
}

/// Wakes waiters, and remembers those whose wake failed for the next call to try again.
#[derive(Default)]
pub(crate) struct Wakes {
    missed: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Wakes {
    /// Wakes them and those that were missed; no lock is held.
    #[inline]
    pub(crate) fn send(&self, py: Python<'_>, wakers: Vec<Waker>) {
        if !wakers.is_empty() || self.missed.load(Ordering::Relaxed) {
            self.send_all(py, wakers);
        }
    }

    /// Also wakes those who come to stand where nobody was left to be woken: one after the
    /// other, because a loop may be closed with thousands of waiters.
    #[cold]
    fn send_all(&self, py: Python<'_>, wakers: Vec<Waker>) {
        let mut wakers = VecDeque::from(wakers);
        if self.missed.swap(false, Ordering::AcqRel) {
            wakers.extend(std::mem::take(&mut *self.wakers.lock()));
        }
        let mut missed = Vec::new();
        while let Some(waker) = wakers.pop_front() {
            match waker.wake(py) {
                Woken::Yes => {}
                Woken::Not => missed.push(waker),
                Woken::Dead(ticket) => wakers.extend(ticket.get().withdraw(py)),
            }
        }
        if !missed.is_empty() {
            self.wakers.lock().extend(missed);
            self.missed.store(true, Ordering::Release);
        }
    }
}

/// Blocks this thread until `look` says that it is granted, with pauses for Ctrl-C; `leave`
/// gives the place back if it raises.
pub(crate) fn wait_here(
    py: Python<'_>,
    waker: &Waker,
    look: impl Fn(Nanos) -> PyResult<Option<Nanos>>,
    leave: impl FnOnce(),
) -> PyResult<()> {
    loop {
        let waited = look(TRUST.0).and_then(|delay| match delay {
            None => Ok(true),
            Some(delay) => {
                py.detach(|| waker.sleep(delay));
                py.check_signals().map(|()| false)
            }
        });
        match waited {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => {
                leave();
                return Err(error);
            }
        }
    }
}
