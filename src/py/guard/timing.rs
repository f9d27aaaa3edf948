//! Time limits and pauses in asyncio.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::{PyTraverseError, PyVisit};

use super::watch::{self, Alarm, Limit};
use crate::core::clock::{Nanos, secs_from_nanos};
use crate::core::sync::Arc;
use crate::py::awaitable::{Stop, Visit};
use crate::py::edge::edge;
use crate::py::names;

static CANCELLED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static CALL_LATER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static PAUSE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static PAUSE_SYNC: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static TIMED_OUT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

const MODULE: &str = "ferrogate._pausing";

/// Imports what is imported on first use.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    watch::prepare(py)?;
    CANCELLED.import(py, "asyncio", "CancelledError")?;
    CALL_LATER.import(py, MODULE, "call_later")?;
    PAUSE.import(py, MODULE, "pause")?;
    PAUSE_SYNC.import(py, MODULE, "pause_sync")?;
    TIMED_OUT.import(py, MODULE, "timed_out")?;
    Ok(())
}

/// What the timer of a clock that tests move calls.
#[pyclass(frozen, name = "_Alarm", module = "ferrogate._core")]
pub(crate) struct PyAlarm(Arc<Alarm>);

#[pymethods]
impl PyAlarm {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        edge("_Alarm.__call__", || self.0.ring(py))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(self.0.task())
    }
}

/// An alarm that is set.
pub(super) struct Timer {
    alarm: Arc<Alarm>,
    set: Set,
}

enum Set {
    /// By the loop's one timer.
    Limit(Limit),
    /// By a timer of its own.
    Handle(Handle),
}

/// A timer of a loop.
pub(super) struct Handle(Py<PyAny>);

impl Handle {
    /// Calls back after so long.
    pub(super) fn set(
        event_loop: &Bound<'_, PyAny>,
        clock: Option<&Py<PyAny>>,
        after: Nanos,
        callback: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let py = event_loop.py();
        let after = secs_from_nanos(after);
        let handle = match clock {
            None => event_loop.call_method1(names::call_later(py), (after, callback))?,
            Some(clock) => {
                CALL_LATER.import(py, MODULE, "call_later")?.call1((clock, after, callback))?
            }
        };
        Ok(Self(handle.unbind()))
    }

    pub(super) fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.0.bind(py).call_method0(names::cancel(py)).map(drop)
    }

    pub(super) fn object(&self) -> &Py<PyAny> {
        &self.0
    }
}

impl Timer {
    /// Cancels the running task after so long, if it is not stopped before.
    pub(super) fn set(
        py: Python<'_>,
        clock: Option<&Py<PyAny>>,
        after: Nanos,
    ) -> PyResult<Option<Self>> {
        let Some((alarm, event_loop)) = Alarm::of_this_task(py)? else { return Ok(None) };
        let alarm = Arc::new(alarm);
        let set = if clock.is_some() {
            let ring = Bound::new(py, PyAlarm(Arc::clone(&alarm)))?;
            Set::Handle(Handle::set(&event_loop, clock, after, ring.as_any())?)
        } else {
            Set::Limit(Limit::set(&event_loop, &alarm, after)?)
        };
        Ok(Some(Self { alarm, set }))
    }

    /// Stops it; true if it rang and nobody else asked for the cancellation.
    pub(super) fn stop(self, py: Python<'_>) -> PyResult<bool> {
        if self.alarm.has_rung() {
            return self.alarm.hush(py);
        }
        match self.set {
            Set::Limit(limit) => limit.unset(py)?,
            Set::Handle(handle) => handle.cancel(py)?,
        }
        Ok(false)
    }

    pub(super) fn traverse(&self, visit: Visit<'_>) -> Result<(), Stop> {
        match &self.set {
            Set::Limit(limit) => limit.traverse(visit),
            Set::Handle(handle) => visit(handle.object()),
        }
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
