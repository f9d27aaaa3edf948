//! Time limits and pauses in asyncio.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::{PyTraverseError, PyVisit};

use crate::core::clock::{Nanos, secs_from_nanos};
use crate::py::awaitable::{Stop, Visit};
use crate::py::edge::edge;
use crate::py::names;

static RUNNING_LOOP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static CURRENT_TASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static CANCELLED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static CALL_LATER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static PAUSE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static PAUSE_SYNC: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static TIMED_OUT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

const MODULE: &str = "ferrogate._pausing";

/// Imports what is imported on first use.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    RUNNING_LOOP.import(py, "asyncio", "get_running_loop")?;
    CURRENT_TASK.import(py, "asyncio", "current_task")?;
    CANCELLED.import(py, "asyncio", "CancelledError")?;
    CALL_LATER.import(py, MODULE, "call_later")?;
    PAUSE.import(py, MODULE, "pause")?;
    PAUSE_SYNC.import(py, MODULE, "pause_sync")?;
    TIMED_OUT.import(py, MODULE, "timed_out")?;
    Ok(())
}

/// Cancels a task when its time is up; what the timer of a loop calls.
#[pyclass(frozen, name = "_Alarm", module = "ferrogate._core")]
pub(crate) struct Alarm {
    task: Py<PyAny>,
    rang: AtomicBool,
    /// Cancellations of the task that were asked for before.
    before: i64,
}

#[pymethods]
impl Alarm {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        edge("_Alarm.__call__", || {
            self.rang.store(true, Ordering::Relaxed);
            self.task.bind(py).call_method0(names::cancel(py))?;
            Ok(())
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.task)
    }
}

/// An alarm that is set.
pub(super) struct Timer {
    alarm: Py<Alarm>,
    handle: Py<PyAny>,
}

impl Timer {
    /// Cancels the running task after so long, if it is not put off before.
    pub(super) fn set(
        py: Python<'_>,
        clock: Option<&Py<PyAny>>,
        after: Nanos,
    ) -> PyResult<Option<Self>> {
        let running = RUNNING_LOOP.import(py, "asyncio", "get_running_loop")?.call0()?;
        let task = CURRENT_TASK.import(py, "asyncio", "current_task")?.call1((&running,))?;
        if task.is_none() {
            // Driven by hand: there is nobody to cancel.
            return Ok(None);
        }
        let before = task.call_method0(names::cancelling(py))?.extract()?;
        let alarm = Alarm { task: task.unbind(), rang: AtomicBool::new(false), before };
        let alarm = Bound::new(py, alarm)?;
        let seconds = secs_from_nanos(after);
        let handle = match clock {
            None => running.call_method1(names::call_later(py), (seconds, &alarm))?,
            Some(clock) => {
                CALL_LATER.import(py, MODULE, "call_later")?.call1((clock, seconds, &alarm))?
            }
        };
        Ok(Some(Self { alarm: alarm.unbind(), handle: handle.unbind() }))
    }

    /// Puts it off; true if it rang and nobody else asked for the cancellation.
    pub(super) fn stop(self, py: Python<'_>) -> PyResult<bool> {
        let alarm = self.alarm.get();
        if !alarm.rang.load(Ordering::Relaxed) {
            self.handle.bind(py).call_method0(names::cancel(py))?;
            return Ok(false);
        }
        let left: i64 = alarm.task.bind(py).call_method0(names::uncancel(py))?.extract()?;
        Ok(left <= alarm.before)
    }

    pub(super) fn traverse(&self, visit: Visit<'_>) -> Result<(), Stop> {
        visit(self.alarm.as_any())?;
        visit(&self.handle)
    }
}

/// Whether it is asyncio's `CancelledError`.
pub(super) fn is_cancellation(py: Python<'_>, error: &PyErr) -> bool {
    !error.is_instance_of::<PyException>(py)
        && CANCELLED
            .import(py, "asyncio", "CancelledError")
            .is_ok_and(|class| error.is_instance(py, class))
}

/// A coroutine that ends after so long.
pub(super) fn pause<'py>(
    py: Python<'py>,
    clock: Option<&Py<PyAny>>,
    nanos: Nanos,
) -> PyResult<Bound<'py, PyAny>> {
    PAUSE.import(py, MODULE, "pause")?.call1((clock, secs_from_nanos(nanos)))
}

/// Returns after so long.
pub(super) fn pause_sync(py: Python<'_>, clock: Option<&Py<PyAny>>, nanos: Nanos) -> PyResult<()> {
    PAUSE_SYNC.import(py, MODULE, "pause_sync")?.call1((clock, secs_from_nanos(nanos)))?;
    Ok(())
}

/// The error of an attempt (or of a call with all its attempts) that took too long.
pub(super) fn timed_out(py: Python<'_>, name: &str, kind: &str, limit: Nanos) -> PyErr {
    let make = || {
        let make = TIMED_OUT.import(py, MODULE, "timed_out")?;
        make.call1((name, kind, secs_from_nanos(limit))).map(PyErr::from_value)
    };
    make().unwrap_or_else(|error| error)
}
