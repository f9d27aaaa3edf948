//! Single flight across threads and event loops.
//!
//! The core decides who leads; here are its waiters: an asyncio future of any
//! loop, or a thread. Waiting on futures is Python's business
//! (`ferrogate/_flight.py`); threads wait here, off the GIL, in slices of 50 ms
//! so that Ctrl-C works.

use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use super::class::Cache;
use super::freshness::Freshness;
use super::store::{PyEntry, tags};
use super::wake::Asyncio;
use crate::core::cache::Savings;
use crate::core::clock::Nanos;
use crate::core::flight::{Flight as CoreFlight, Landing, Purpose, WaiterId};
use crate::core::key::Key;
use crate::core::sync::{Bell, Mutex};
use crate::py::convert::duration;
use crate::py::edge::edge;
use crate::py::intern::Held;
use crate::py::key::Encoded;

/// How long a thread waits before it looks for signals.
const SLICE: Duration = Duration::from_millis(50);

/// What a load came to.
pub(crate) enum Outcome {
    /// With what it saves whoever joined the load.
    Value(Py<PyAny>, Option<Savings>),
    Error(Py<PyAny>),
}

/// Who wants to know that a flight has landed.
pub(crate) enum Waiter {
    /// An asyncio future with its loop.
    Future(Py<PyAny>, Py<PyAny>),
    /// A blocked thread.
    Thread(Arc<Bell>),
}

impl Waiter {
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Self::Future(event_loop, future) => {
                visit.call(event_loop)?;
                visit.call(future)
            }
            Self::Thread(_) => Ok(()),
        }
    }
}

/// A key to be stored under later, once its value is there.
#[pyclass(frozen, module = "ferrogate._core")]
pub(crate) struct Lookup {
    pub(crate) key: Key,
    pub(crate) original: Option<Py<PyAny>>,
    pub(crate) held: Mutex<Vec<Held>>,
}

impl Lookup {
    pub(crate) fn new(encoded: Encoded, original: Option<Py<PyAny>>) -> Self {
        Self { key: encoded.key, original, held: Mutex::new(encoded.held) }
    }

    /// The key as the caller wrote it.
    pub(super) fn original<'py>(&self, py: Python<'py>) -> Option<&Bound<'py, PyAny>> {
        self.original.as_ref().map(|key| key.bind(py))
    }

    /// An entry of this key; the key's interned parts go over to it.
    pub(super) fn entry(&self, py: Python<'_>, value: Bound<'_, PyAny>) -> PyEntry {
        let held = std::mem::take(&mut *self.held.lock()).into_boxed_slice();
        let key = self.original.as_ref().map(|key| key.clone_ref(py));
        PyEntry { key, value: value.unbind(), held }
    }
}

#[pymethods]
impl Lookup {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.original)
    }
}

/// What a load raised, remembered instead of a value.
#[pyclass(frozen, module = "ferrogate._core")]
pub(crate) struct Failure {
    #[pyo3(get)]
    pub(crate) error: Py<PyAny>,
    /// The exception's context, which each raise replaces.
    #[pyo3(get)]
    context: Py<PyAny>,
}

#[pymethods]
impl Failure {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.error)?;
        visit.call(&self.context)
    }
}

/// One load that is under way, shared by all who want its value.
#[pyclass(frozen, module = "ferrogate._core")]
pub(crate) struct Flight {
    pub(crate) cache: Py<Cache>,
    pub(crate) key: Key,
    pub(crate) inner: Arc<CoreFlight<Outcome, Waiter>>,
    /// Whether this object is the leader's; the followers have their own.
    pub(crate) leads: bool,
    /// When it began, for its leader.
    pub(crate) began: Nanos,
    /// What the value saves those who joined, once it is stored.
    pub(crate) saves: Mutex<Option<Savings>>,
}

impl Drop for Flight {
    /// A leader that goes without landing (a signal between two lines, a
    /// coroutine thrown away with its loop) must not leave its key blocked.
    fn drop(&mut self) {
        if !self.leads || self.inner.landing().is_some() {
            return;
        }
        Python::attach(|py| {
            // It may go while an error passes, and that must stay the current one.
            let passing = PyErr::take(py);
            if let Err(error) = self.land(py, Landing::Abandoned) {
                error.write_unraisable(py, None);
            }
            if let Some(passing) = passing {
                passing.restore(py);
            }
        });
    }
}

impl Flight {
    pub(crate) fn new(
        cache: Py<Cache>,
        key: Key,
        inner: Arc<CoreFlight<Outcome, Waiter>>,
        leads: bool,
        began: Nanos,
    ) -> Self {
        Self { cache, key, inner, leads, began, saves: Mutex::default() }
    }

    /// Ends the flight and wakes all who wait, in one go: a signal that comes between
    /// would lose them, for nobody else knows of them any more. It is raised at the end.
    fn land(&self, py: Python<'_>, landing: Landing<Outcome>) -> PyResult<()> {
        let waiters = self.cache.get().store.flights().land(&self.key, &self.inner, landing);
        let mut signal = Ok(());
        for waiter in waiters {
            let (event_loop, future) = match waiter {
                Waiter::Future(event_loop, future) => (event_loop, future),
                Waiter::Thread(bell) => {
                    bell.ring();
                    continue;
                }
            };
            let woken = Asyncio::get(py)
                .and_then(|asyncio| asyncio.wake(event_loop.bind(py), future.bind(py)));
            signal = signal.and(woken);
        }
        signal
    }
}

#[pymethods]
impl Flight {
    /// Its number, unique in the process.
    #[getter]
    fn id(&self) -> u64 {
        self.inner.id()
    }

    /// Has `future` (of `loop`) woken at the landing; ``None`` if it has landed already.
    fn enroll(
        &self,
        py: Python<'_>,
        r#loop: Py<PyAny>,
        future: Py<PyAny>,
    ) -> PyResult<Option<WaiterId>> {
        edge("Flight.enroll", || {
            Asyncio::get(py)?;
            Ok(self.inner.enroll(Waiter::Future(r#loop, future)).ok())
        })
    }

    /// The same flight for somebody who does not lead it.
    fn handle(&self, py: Python<'_>) -> PyResult<Self> {
        edge("Flight.handle", || {
            let (cache, inner) = (self.cache.clone_ref(py), Arc::clone(&self.inner));
            Ok(Self::new(cache, self.key, inner, false, self.began))
        })
    }

    /// Says, before the load begins, what the value will be tagged with.
    fn tag(&self, tags: &Bound<'_, PyAny>) -> PyResult<()> {
        edge("Flight.tag", || {
            self.inner.tag(self::tags(Some(tags))?);
            Ok(())
        })
    }

    /// Stores the loaded value, unless it was invalidated since the load began.
    #[pyo3(signature = (lookup, value, freshness=None))]
    fn store(
        &self,
        lookup: &Bound<'_, Lookup>,
        value: Bound<'_, PyAny>,
        freshness: Option<&Bound<'_, Freshness>>,
    ) -> PyResult<()> {
        edge("Flight.store", || {
            let store = &self.cache.get().store;
            let took = store.clock.now().saturating_sub(self.began);
            let freshness = freshness.map(Bound::get);
            *self.saves.lock() = store.set_loaded(lookup, value, freshness, took, &self.inner)?;
            Ok(())
        })
    }

    /// Remembers for ``ttl`` seconds that it failed with ``error``, in whatever context that has
    /// now. Not if it was invalidated since it began, or if there is a value.
    fn store_failure(
        &self,
        lookup: &Bound<'_, Lookup>,
        error: &Bound<'_, PyAny>,
        ttl: &Bound<'_, PyAny>,
        weight: u64,
    ) -> PyResult<()> {
        edge("Flight.store_failure", || {
            let (store, ttl) = (&self.cache.get().store, duration("ttl", ttl)?);
            let context = error.getattr("__context__")?.unbind();
            let failure = Failure { error: error.clone().unbind(), context };
            let failure = Bound::new(error.py(), failure)?.into_any();
            store.set_failed(lookup, failure, weight, ttl, &self.inner);
            Ok(())
        })
    }

    /// What it loads is not to be stored, nor to be waited for by those who come now.
    fn outdate(&self) -> PyResult<()> {
        edge("Flight.outdate", || {
            self.cache.get().store.flights().outdate_one(&self.key, &self.inner);
            Ok(())
        })
    }

    /// Does not want to be woken any more; returns how many still do.
    fn leave(&self, waiter: WaiterId) -> PyResult<usize> {
        edge("Flight.leave", || {
            let (waiter, remaining) = self.inner.leave(waiter);
            drop(waiter);
            Ok(remaining)
        })
    }

    /// Whether this very thread runs it, whatever a monkey-patched ``threading`` calls it.
    fn is_of_this_thread(&self) -> PyResult<bool> {
        edge("Flight.is_of_this_thread", || Ok(self.inner.is_of_this_thread()))
    }

    /// This thread runs it from now on.
    fn move_here(&self) -> PyResult<()> {
        edge("Flight.move_here", || {
            self.inner.move_here();
            Ok(())
        })
    }

    /// Whether it goes on though nobody waits for it.
    #[getter]
    fn unattended(&self) -> bool {
        self.inner.purpose() == Purpose::Refresh
    }

    /// Whether the cache is bounded by weight.
    #[getter]
    fn weighs(&self) -> bool {
        self.cache.get().store.weighs()
    }

    /// How many wait for it.
    fn waiting(&self) -> PyResult<usize> {
        edge("Flight.waiting", || Ok(self.inner.waiting()))
    }

    /// Lands with a value.
    fn land_value(&self, py: Python<'_>, value: Py<PyAny>) -> PyResult<()> {
        edge("Flight.land_value", || {
            let saves = *self.saves.lock();
            self.land(py, Landing::Done(Arc::new(Outcome::Value(value, saves))))
        })
    }

    /// Lands with ``(exception, traceback, context)``.
    fn land_error(&self, py: Python<'_>, error: Py<PyAny>) -> PyResult<()> {
        edge("Flight.land_error", || {
            if self.leads && self.inner.purpose() != Purpose::Answer {
                self.cache.get().store.count_refresh_failure();
            }
            self.land(py, Landing::Done(Arc::new(Outcome::Error(error))))
        })
    }

    /// Lands with nothing: whoever still wants the value starts again.
    fn abandon(&self, py: Python<'_>) -> PyResult<()> {
        edge("Flight.abandon", || self.land(py, Landing::Abandoned))
    }

    /// For one of those who waited, how it landed: ``(True, value)``, ``(False, (exception, traceback, context))``,
    /// or ``None`` when abandoned.
    fn outcome(&self, py: Python<'_>) -> PyResult<Option<(bool, Py<PyAny>)>> {
        edge("Flight.outcome", || match self.inner.landing() {
            Some(Landing::Done(outcome)) => Ok(Some(match &*outcome {
                Outcome::Value(value, saves) => {
                    if let Some(saves) = saves.filter(|_| !self.leads) {
                        self.cache.get().store.count_saved(&saves);
                    }
                    (true, value.clone_ref(py))
                }
                Outcome::Error(error) => (false, error.clone_ref(py)),
            })),
            Some(Landing::Abandoned) => Ok(None),
            None => Err(PyRuntimeError::new_err("the flight has not landed")),
        })
    }

    /// Blocks this thread until the landing, or for about ``timeout`` seconds; signals are
    /// handled meanwhile. True if it has landed.
    fn wait(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        edge("Flight.wait", || {
            let bell = Arc::new(Bell::of_this_thread());
            let Ok(waiter) = self.inner.enroll(Waiter::Thread(Arc::clone(&bell))) else {
                return Ok(true);
            };
            let mut slices = (timeout / SLICE.as_secs_f64()).ceil() as u64;
            while !py.detach(|| bell.wait(SLICE)) {
                slices = slices.saturating_sub(1);
                let signal = py.check_signals();
                if signal.is_err() || slices == 0 {
                    // Not in line any more: it has landed in the meantime.
                    let landed = self.inner.leave(waiter).0.is_none();
                    return signal.map(|()| landed);
                }
            }
            Ok(true)
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.cache)
    }
}
