//! The callbacks of a budget, never under a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::{PyTraverseError, PyVisit};

use super::books::Who;
use super::class::Budget;
use crate::core::budget::News;
use crate::core::sync::Mutex;
use crate::py::edge::unraisable;

/// The function that makes what a callback is called with.
static ALERT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
/// The function that writes the first failure of a budget's callbacks, or of its store, to the log.
static REPORT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

const MODULE: &str = "ferrogate._budgeting";

pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    ALERT.import(py, MODULE, "alert")?;
    REPORT.import(py, MODULE, "report").map(drop)
}

/// Who is told what.
pub(super) struct Callbacks {
    /// When a limit is exceeded, and when its threshold is reached; as long as the collector
    /// has not taken them.
    hooks: Mutex<[Option<Py<PyAny>>; 2]>,
    failures: AtomicU64,
}

impl Callbacks {
    pub(super) fn new(on_exceeded: Option<Py<PyAny>>, on_threshold: Option<Py<PyAny>>) -> Self {
        Self { hooks: Mutex::new([on_exceeded, on_threshold]), failures: AtomicU64::new(0) }
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.hooks.lock().iter().try_for_each(|hook| visit.call(hook))
    }

    /// For the collector.
    pub(super) fn clear(&self) {
        let hooks = std::mem::take(&mut *self.hooks.lock());
        drop(hooks);
    }
}

impl Budget {
    /// Tells what has happened to an account.
    #[cold]
    pub(super) fn announce(slf: &Bound<'_, Self>, who: &Who, news: &[News]) {
        let py = slf.py();
        for news in news {
            let which = usize::from(!news.exceeded);
            let hook =
                slf.get().callbacks.hooks.lock()[which].as_ref().map(|hook| hook.clone_ref(py));
            let Some(hook) = hook else { continue };
            let hook = hook.into_bound(py);
            let facts = (news.period.name(), news.limit, news.used, news.resets_at);
            let told = ALERT
                .import(py, MODULE, "alert")
                .and_then(|alert| alert.call1((slf, &who.object, news.exceeded, facts)))
                .and_then(|alert| hook.call1((alert,)));
            if let Err(error) = told {
                slf.get().callback_failed(&hook, error);
            }
        }
    }

    /// Counts it, and logs the first of a budget: one that fails once fails often.
    #[cold]
    fn callback_failed(&self, hook: &Bound<'_, PyAny>, error: PyErr) {
        let py = hook.py();
        let before = self.callbacks.failures.fetch_add(1, Ordering::Relaxed);
        if error.is_instance_of::<PyKeyboardInterrupt>(py) {
            unraisable(error, hook);
        } else if before == 0 {
            self.report(
                py,
                &format!("{} raised; later failures are only counted", text(hook)),
                Some(error),
            );
        }
    }

    /// Says in the log what has happened.
    #[cold]
    pub(super) fn report(&self, py: Python<'_>, what: &str, error: Option<PyErr>) {
        let error = error.map(|error| error.into_value(py));
        let logged = REPORT
            .import(py, MODULE, "report")
            .and_then(|report| report.call1((self.name(), what, error)));
        if let Err(error) = logged {
            error.write_unraisable(py, None);
        }
    }
}

fn text(hook: &Bound<'_, PyAny>) -> String {
    hook.repr().map_or_else(|_| "a callback".to_owned(), |repr| repr.to_string())
}
