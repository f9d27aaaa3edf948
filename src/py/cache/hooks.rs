//! The user code that a cache calls: its weigher, its appraiser and its listener, never under
//! a lock.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyKeyboardInterrupt, PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyInt;

use super::flight::Failure;
use super::savings::savings;
use super::store::{PyEntry, Store};
use crate::core::cache::{Graveyard, Savings};
use crate::core::clock::Nanos;
use crate::core::sync::Mutex;
use crate::py::edge::unraisable;

/// They, as long as the collector has not taken them.
#[derive(Default)]
struct Callables {
    weigher: Option<Py<PyAny>>,
    value: Option<Py<PyAny>>,
    on_evict: Option<Py<PyAny>>,
}

/// What a cache calls.
pub(crate) struct Hooks {
    callables: Mutex<Callables>,
    /// Whether there is one: the common case takes no lock for them.
    listened: AtomicBool,
    weighed: AtomicBool,
    valued: AtomicBool,
}

impl Hooks {
    pub(crate) fn new(
        weigher: Option<Py<PyAny>>,
        value: Option<Py<PyAny>>,
        on_evict: Option<Py<PyAny>>,
    ) -> Self {
        Self {
            listened: AtomicBool::new(on_evict.is_some()),
            weighed: AtomicBool::new(weigher.is_some()),
            valued: AtomicBool::new(value.is_some()),
            callables: Mutex::new(Callables { weigher, value, on_evict }),
        }
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let callables = self.callables.lock();
        visit.call(&callables.weigher)?;
        visit.call(&callables.value)?;
        visit.call(&callables.on_evict)
    }

    /// For the collector.
    pub(super) fn clear(&self) {
        let callables = std::mem::take(&mut *self.callables.lock());
        drop(callables);
    }
}

impl Store {
    /// Whether entries have weights at all.
    pub(super) fn weighs(&self) -> bool {
        self.hooks.weighed.load(Ordering::Relaxed)
    }

    /// What the weigher says of an entry; without one, nothing weighs anything.
    #[inline]
    pub(super) fn weight(
        &self,
        py: Python<'_>,
        key: Option<&Bound<'_, PyAny>>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<u64> {
        if self.weighs() { self.weigh(py, key, value) } else { Ok(0) }
    }

    fn weigh(
        &self,
        py: Python<'_>,
        key: Option<&Bound<'_, PyAny>>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<u64> {
        let weigher =
            self.hooks.callables.lock().weigher.as_ref().map(|weigher| weigher.bind(py).clone());
        let Some(weigher) = weigher else { return Ok(0) };
        let weight = weigher.call1((key, value))?;
        weight.extract::<u64>().or_else(|_| {
            let is_int = weight.is_instance_of::<PyInt>();
            if is_int && weight.gt(0)? {
                // More than 64 bits: heavier than any bound.
                return Ok(u64::MAX);
            }
            let shown = weight.repr().map_or_else(|_| "?".into(), |repr| repr.to_string());
            let wrong = format!("weigher: expected an int of at least 0, got {shown}");
            Err(if is_int { PyValueError::new_err(wrong) } else { PyTypeError::new_err(wrong) })
        })
    }

    /// What each hit on an entry will save, as `value=` says; a load that `took` so long saves
    /// that time, unless it says otherwise.
    #[inline]
    pub(super) fn savings(
        &self,
        py: Python<'_>,
        key: Option<&Bound<'_, PyAny>>,
        value: &Bound<'_, PyAny>,
        took: Option<Nanos>,
    ) -> PyResult<Option<Box<Savings>>> {
        if !self.hooks.valued.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let appraise =
            self.hooks.callables.lock().value.as_ref().map(|appraise| appraise.bind(py).clone());
        let Some(appraise) = appraise else { return Ok(None) };
        savings(&appraise.call1((key, value))?, took).map(|savings| Some(Box::new(savings)))
    }

    /// Tells the listener and drops what was removed, with no lock held.
    #[cold]
    pub(crate) fn bury(&self, _: Python<'_>, grave: Graveyard<PyEntry>) {
        // The interpreter's direct calls (vectorcall) hold the GIL without `PyO3`
        // knowing; it would put off the drops until somebody attaches.
        // SAFETY: the token says that this thread is attached. Unchecked, because the checked way
        // panics while the interpreter finalises.
        unsafe { Python::attach_unchecked(|py| self.bury_attached(py, grave)) };
    }

    pub(super) fn bury_attached(&self, py: Python<'_>, grave: Graveyard<PyEntry>) {
        if !self.hooks.listened.load(Ordering::Relaxed) {
            drop(grave);
            return;
        }
        let listener =
            self.hooks.callables.lock().on_evict.as_ref().map(|listener| listener.bind(py).clone());
        let mut interrupt = None;
        for (cause, entry) in grave {
            let Some(listener) = &listener else { continue };
            let key = entry.key.as_ref().map(|key| key.bind(py));
            let value = entry.value.bind(py);
            let value = match value.cast::<Failure>() {
                Ok(failure) => failure.get().error.bind(py),
                Err(_) => value,
            };
            // A listener that fails must not fail the operation that happened to evict.
            match listener.call1((key, value, cause.as_str())) {
                // At the end, or it would be raised in the next call instead of that.
                Err(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) => {
                    interrupt = Some((error, listener));
                }
                Err(error) => unraisable(error, listener),
                Ok(_) => {}
            }
        }
        if let Some((error, listener)) = interrupt {
            unraisable(error, listener);
        }
    }
}
