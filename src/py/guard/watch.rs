//! The time limits of an event loop's calls: one timer for all of them.
//!
//! A timer of the loop's own for each attempt cost 2.5 µs to set and to cancel. Limits are mostly
//! alike, so the timer is seldom set anew: it stays for the earliest limit, whether or not that
//! call has ended, and looks for the next one when it fires.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyWeakrefMethods, PyWeakrefReference};
use pyo3::{PyTraverseError, PyVisit};

use crate::core::clock::{Nanos, nanos_from_secs, secs_from_nanos};
use crate::core::sync::{Arc, Mutex};
use crate::py::awaitable::{Stop, Visit};
use crate::py::edge::{edge, unraisable};
use crate::py::names;

static RUNNING_LOOP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static CURRENT_TASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Event loops refuse timers of many years.
const LONGEST: f64 = 86_400.0;
/// What rounding may have a timer fire too early by.
const EARLY: Nanos = 1_000;

pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    RUNNING_LOOP.import(py, "asyncio", "get_running_loop")?;
    CURRENT_TASK.import(py, "asyncio", "current_task")?;
    Ok(())
}

/// Whether the running task is asked by nobody to end.
pub(super) fn nobody_cancels(py: Python<'_>) -> bool {
    let cancelling = || -> PyResult<i64> {
        let running = RUNNING_LOOP.import(py, "asyncio", "get_running_loop")?.call0()?;
        let task = CURRENT_TASK.import(py, "asyncio", "current_task")?.call1((running,))?;
        task.call_method0(names::cancelling(py))?.extract()
    };
    cancelling().is_ok_and(|count| count == 0)
}

/// A task that is to be cancelled when its time is up.
pub(super) struct Alarm {
    task: Py<PyAny>,
    rang: AtomicBool,
    /// Cancellations of the task that were asked for before.
    before: i64,
}

impl Alarm {
    /// For the running task, and its loop; `None` if it is none: driven by hand.
    pub(super) fn of_this_task(py: Python<'_>) -> PyResult<Option<(Self, Bound<'_, PyAny>)>> {
        let running = RUNNING_LOOP.import(py, "asyncio", "get_running_loop")?.call0()?;
        let task = CURRENT_TASK.import(py, "asyncio", "current_task")?.call1((&running,))?;
        if task.is_none() {
            return Ok(None);
        }
        let before = task.call_method0(names::cancelling(py))?.extract()?;
        Ok(Some((Self { task: task.unbind(), rang: AtomicBool::new(false), before }, running)))
    }

    /// The time is up.
    pub(super) fn ring(&self, py: Python<'_>) -> PyResult<()> {
        self.rang.store(true, Ordering::Relaxed);
        self.task.bind(py).call_method0(names::cancel(py)).map(drop)
    }

    pub(super) fn has_rung(&self) -> bool {
        self.rang.load(Ordering::Relaxed)
    }

    /// Takes its cancellation back; whether it was the only one.
    pub(super) fn hush(&self, py: Python<'_>) -> PyResult<bool> {
        let left: i64 = self.task.bind(py).call_method0(names::uncancel(py))?.extract()?;
        Ok(left <= self.before)
    }

    pub(super) fn task(&self) -> &Py<PyAny> {
        &self.task
    }
}

/// The limits of one loop; the callback of its timer. The loop holds it by that, and each call
/// that has a limit; without both it goes.
#[pyclass(frozen, weakref, name = "_Watch", module = "ferrogate._core")]
pub(crate) struct Watch {
    event_loop: Py<PyWeakrefReference>,
    /// The loop jumps to its next timer: one that nobody needs any more must not be there.
    jumps: bool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By the loop's time in nanoseconds, and a number.
    alarms: BTreeMap<(Nanos, u64), Arc<Alarm>>,
    number: u64,
    /// For when the loop's timer is set, and its handle.
    armed: Option<(Nanos, Py<PyAny>)>,
}

/// The watches by the addresses of their loops.
static WATCHES: Mutex<Vec<(usize, Py<PyWeakrefReference>)>> = Mutex::new(Vec::new());

/// A limit that is set.
pub(super) struct Limit {
    watch: Py<Watch>,
    key: (Nanos, u64),
}

impl Limit {
    /// Rings after so long.
    pub(super) fn set(
        event_loop: &Bound<'_, PyAny>,
        alarm: &Arc<Alarm>,
        after: Nanos,
    ) -> PyResult<Self> {
        let py = event_loop.py();
        let watch = Watch::of(event_loop)?;
        let this = watch.get();
        let now = nanos_from_secs(event_loop.call_method0(names::time(py))?.extract()?);
        let due = now.saturating_add(after);
        let (key, arm) = {
            let mut inner = this.inner.lock();
            inner.number += 1;
            let key = (due, inner.number);
            inner.alarms.insert(key, Arc::clone(alarm));
            (key, inner.armed.as_ref().is_none_or(|(armed, _)| due < *armed))
        };
        let limit = Self { watch: watch.clone().unbind(), key };
        if arm {
            Watch::arm(&watch, event_loop, now, due)?;
        }
        Ok(limit)
    }

    /// It does not ring any more.
    pub(super) fn unset(&self, py: Python<'_>) -> PyResult<()> {
        let watch = self.watch.get();
        let (gone, idle) = {
            let mut inner = watch.inner.lock();
            let gone = inner.alarms.remove(&self.key);
            let idle = watch.jumps && inner.alarms.is_empty();
            (gone, if idle { inner.armed.take() } else { None })
        };
        drop(gone);
        match idle {
            Some((_, handle)) => handle.bind(py).call_method0(names::cancel(py)).map(drop),
            None => Ok(()),
        }
    }

    pub(super) fn traverse(&self, visit: Visit<'_>) -> Result<(), Stop> {
        visit(self.watch.as_any())
    }
}

impl Watch {
    /// The watch of `event_loop`, which is the running one.
    fn of<'py>(event_loop: &Bound<'py, PyAny>) -> PyResult<Bound<'py, Self>> {
        let py = event_loop.py();
        let address = event_loop.as_ptr() as usize;
        let known = {
            let watches = WATCHES.lock();
            let found = watches.iter().find(|(of, _)| *of == address);
            found.map(|(_, watch)| watch.clone_ref(py))
        };
        if let Some(watch) = known.and_then(|known| known.bind(py).upgrade())
            && let Ok(watch) = watch.cast_into::<Self>()
            // A call that outlived its loop keeps the watch of a loop whose address is another's.
            && watch.get().event_loop.bind(py).upgrade().is_some_and(|of| of.is(event_loop))
        {
            return Ok(watch);
        }
        Self::new(event_loop, address)
    }

    #[cold]
    fn new<'py>(event_loop: &Bound<'py, PyAny>, address: usize) -> PyResult<Bound<'py, Self>> {
        let py = event_loop.py();
        let jumps = event_loop.getattr_opt(names::jumps(py))?.is_some();
        let of = PyWeakrefReference::new(event_loop)?.unbind();
        let watch = Bound::new(py, Self { event_loop: of, jumps, inner: Mutex::default() })?;
        let weak = PyWeakrefReference::new(&watch)?.unbind();
        let all = std::mem::take(&mut *WATCHES.lock());
        let (mut keep, stale): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|(of, watch)| *of != address && watch.bind(py).upgrade().is_some());
        keep.push((address, weak));
        // Another thread may have noted one of its own by now.
        WATCHES.lock().append(&mut keep);
        drop(stale);
        Ok(watch)
    }

    /// Has the loop's timer fire at `due`, and not at any other time.
    #[cold]
    fn arm(
        slf: &Bound<'_, Self>,
        event_loop: &Bound<'_, PyAny>,
        now: Nanos,
        due: Nanos,
    ) -> PyResult<()> {
        let py = slf.py();
        let delay = secs_from_nanos(due.saturating_sub(now)).min(LONGEST);
        let handle = event_loop.call_method1(names::call_later(py), (delay, slf))?.unbind();
        let old = slf.get().inner.lock().armed.replace((due, handle));
        match old {
            Some((_, handle)) => handle.bind(py).call_method0(names::cancel(py)).map(drop),
            None => Ok(()),
        }
    }

    fn ring(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let event_loop = RUNNING_LOOP.import(py, "asyncio", "get_running_loop")?.call0()?;
        let now = nanos_from_secs(event_loop.call_method0(names::time(py))?.extract()?);
        let (due, fired) = {
            let mut inner = slf.get().inner.lock();
            let rest = inner.alarms.split_off(&(now.saturating_add(EARLY), u64::MAX));
            (std::mem::replace(&mut inner.alarms, rest), inner.armed.take())
        };
        drop(fired);
        for alarm in due.into_values() {
            if let Err(error) = alarm.ring(py) {
                unraisable(error, alarm.task.bind(py));
            }
        }
        // What rang may have set other limits by now.
        let next = {
            let inner = slf.get().inner.lock();
            let next = inner.alarms.first_key_value().map(|((next, _), _)| *next);
            next.filter(|next| inner.armed.as_ref().is_none_or(|(armed, _)| next < armed))
        };
        next.map_or(Ok(()), |next| Self::arm(slf, &event_loop, now, next))
    }
}

#[pymethods]
impl Watch {
    fn __call__(slf: &Bound<'_, Self>) -> PyResult<()> {
        edge("_Watch.__call__", || Self::ring(slf))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let inner = self.inner.lock();
        for alarm in inner.alarms.values() {
            visit.call(&alarm.task)?;
        }
        inner.armed.as_ref().map_or(Ok(()), |(_, handle)| visit.call(handle))
    }
}
