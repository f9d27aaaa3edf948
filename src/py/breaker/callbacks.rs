//! The callbacks that a breaker calls, never under a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::{PyKeyboardInterrupt, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::CircuitBreaker;
use crate::core::breaker::{State, Transition};
use crate::core::sync::Mutex;
use crate::py::edge::unraisable;

/// The function that writes the first failure of a breaker's callbacks to the log.
static REPORT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

fn report(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    REPORT.import(py, "ferrogate._breaking", "report")
}

pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    report(py).map(drop)
}

/// What a callback waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Open,
    Close,
    HalfOpen,
}

impl Event {
    pub(super) fn named(name: &str) -> PyResult<Self> {
        match name {
            "open" => Ok(Self::Open),
            "close" => Ok(Self::Close),
            "half_open" => Ok(Self::HalfOpen),
            _ => Err(PyValueError::new_err("event: expected open, close or half_open")),
        }
    }

    /// What a step is to those who watch. One that goes from one kind of open to the other, or
    /// only switches judging on or off, is nothing.
    fn of(Transition { from, to }: Transition) -> Option<Self> {
        match to {
            State::Open | State::ForcedOpen if !from.is_open() => Some(Self::Open),
            State::HalfOpen => Some(Self::HalfOpen),
            State::Closed if from.is_open() || from == State::HalfOpen => Some(Self::Close),
            _ => None,
        }
    }
}

/// Who is called when.
#[derive(Default)]
pub(super) struct Callbacks {
    /// As long as the collector has not taken them.
    watchers: Mutex<Vec<(Event, Py<PyAny>)>>,
    /// How often one of them, or the classifier, raised.
    failures: AtomicU64,
}

impl Callbacks {
    pub(super) fn watch(&self, event: Event, callback: Py<PyAny>) {
        self.watchers.lock().push((event, callback));
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.watchers.lock().iter().try_for_each(|(_, callback)| visit.call(callback))
    }

    /// For the collector.
    pub(super) fn clear(&self) {
        let watchers = std::mem::take(&mut *self.watchers.lock());
        drop(watchers);
    }
}

impl CircuitBreaker {
    /// Calls who watches for this step, in order of registration.
    #[cold]
    pub(super) fn announce(slf: &Bound<'_, Self>, step: Transition) {
        let Some(event) = Event::of(step) else { return };
        let py = slf.py();
        let watchers = slf.get().callbacks.watchers.lock();
        let watching: Vec<Py<PyAny>> = watchers
            .iter()
            .filter(|(watched, _)| *watched == event)
            .map(|(_, callback)| callback.clone_ref(py))
            .collect();
        drop(watchers);
        for callback in watching {
            let callback = callback.into_bound(py);
            if let Err(error) = callback.call1((slf,)) {
                slf.get().callback_failed(&callback, error);
            }
        }
    }

    /// Counts it, and logs the first of a breaker: one that fails once fails often.
    #[cold]
    pub(super) fn callback_failed(&self, callback: &Bound<'_, PyAny>, error: PyErr) {
        let py = callback.py();
        let before = self.callbacks.failures.fetch_add(1, Ordering::Relaxed);
        if error.is_instance_of::<PyKeyboardInterrupt>(py) {
            unraisable(error, callback);
        } else if before == 0 {
            let logged = report(py)
                .and_then(|report| report.call1((&self.name, callback, error.into_value(py))));
            if let Err(error) = logged {
                unraisable(error, callback);
            }
        }
    }
}
