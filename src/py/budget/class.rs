//! The class.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3::{IntoPyObjectExt, PyTraverseError, PyVisit};

use super::asking::add;
use super::books::{Books, Calendar, Stop};
use super::hold::PyBudgetReservation;
use super::news::Callbacks;
use super::usd;
use crate::core::budget::{Entry, MOST, Millis, PERIODS, Period, Table};
use crate::core::sync::Mutex;
use crate::py::convert::{clock, globally_disabled};
use crate::py::edge::edge;
use crate::py::limiter::count;
use crate::py::llm::{PyDenial, nano_usd};
use crate::py::service::after_forks;
use crate::runtime::budget::{BudgetFile, Config};
use crate::runtime::sqlite::OpenError;

pub(super) type Argument<'a, 'py> = Option<&'a Bound<'py, PyAny>>;

/// So long a request waits for other processes' commits.
const BUSY: Duration = Duration::from_millis(250);

/// A test suite wants everything granted, and nothing counted.
pub(super) static BYPASSED: AtomicBool = AtomicBool::new(false);

/// For ``ferrogate.testing.bypass``: whether budgets grant everything.
#[pyfunction]
#[pyo3(name = "_bypass_budgets")]
pub(super) fn bypass_budgets(on: bool) {
    BYPASSED.store(on, Ordering::Relaxed);
}

/// The limits, as they can change.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) limits: [Option<u64>; PERIODS],
    pub(super) thresholds: [Option<u64>; PERIODS],
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) granted: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) settled: AtomicU64,
    pub(super) released: AtomicU64,
    pub(super) open: AtomicU64,
    /// What the open ones have reserved.
    pub(super) reserved: AtomicU64,
    pub(super) store_failures: AtomicU64,
}

/// The native half of ``ferrogate.Budget``.
#[pyclass(frozen, subclass, module = "ferrogate._core")]
pub(crate) struct Budget {
    pub(super) name: String,
    /// Whose account it is if nobody is named: a value, or a function that tells.
    pub(super) key: Option<Py<PyAny>>,
    pub(super) asks_for_key: bool,
    pub(super) limits: Mutex<Limits>,
    threshold: Option<f64>,
    pub(super) hard: bool,
    pub(super) enabled: bool,
    pub(super) books: Books,
    pub(super) calendar: Calendar,
    pub(super) counts: Counts,
    /// Whether the store could not be asked at last.
    pub(super) away: AtomicBool,
    pub(super) callbacks: Callbacks,
}

/// Limits as Python has read them: numbers of periods, and dollars.
fn limits_from(given: &[(usize, Bound<'_, PyAny>)], threshold: Option<f64>) -> PyResult<Limits> {
    let mut limits = [None; PERIODS];
    for (period, amount) in given {
        let nano = nano_usd("limits", amount)?;
        if nano == 0 || nano > MOST {
            return Err(PyValueError::new_err(format!(
                "limits: expected more than 0 and at most {} US dollars, got {amount}",
                MOST / crate::core::limiter::llm::NANO_USD
            )));
        }
        let limit = limits
            .get_mut(*period)
            .ok_or_else(|| PyValueError::new_err("limits: expected hour, day, week or month"))?;
        *limit = Some(nano);
    }
    // Rounded up: a share of a limit is not reached before it is.
    let part = |limit: u64| threshold.map(|share| (limit as f64 * share).ceil() as u64);
    let thresholds = limits.map(|limit| limit.and_then(part));
    Ok(Limits { limits, thresholds })
}

fn open_error(path: &str, error: &OpenError) -> PyErr {
    let way_out = "restore a copy of it, or move it aside (with its -wal) to begin at zero";
    match error {
        OpenError::Unfit(why) => PyValueError::new_err(format!("store: {why}")),
        OpenError::Broken(why) | OpenError::NoDatabase(why) => PyOSError::new_err(format!(
            "store: {path} is broken ({why}), and what was spent cannot be told; {way_out}"
        )),
        other if other.text().contains(path) => {
            PyOSError::new_err(format!("store: {}", other.text()))
        }
        other => PyOSError::new_err(format!("store: {path}: {}", other.text())),
    }
}

#[pymethods]
impl Budget {
    #[new]
    #[pyo3(signature = (
        limits, *, key, asks_for_key, path, name, timezone, calendar, hard, on_exceeded,
        on_threshold, threshold, max_keys, clock, enabled
    ))]
    #[allow(clippy::too_many_arguments)] // Python's constructor
    fn new(
        py: Python<'_>,
        limits: Vec<(usize, Bound<'_, PyAny>)>,
        key: Option<Py<PyAny>>,
        asks_for_key: bool,
        path: Option<PathBuf>,
        name: String,
        timezone: String,
        calendar: Py<PyAny>,
        hard: bool,
        on_exceeded: Option<Py<PyAny>>,
        on_threshold: Option<Py<PyAny>>,
        threshold: f64,
        max_keys: &Bound<'_, PyAny>,
        clock: Argument<'_, '_>,
        enabled: bool,
    ) -> PyResult<Self> {
        edge("Budget", || {
            let threshold = on_threshold.is_some().then_some(threshold);
            let limits = limits_from(&limits, threshold)?;
            let max_keys = count("max_keys", max_keys)?;
            let enabled = enabled && !globally_disabled();
            let books = match path {
                Some(path) if enabled => {
                    let shown = path.display().to_string();
                    let budget = name.clone();
                    let max_keys = max_keys.into();
                    after_forks(py)?;
                    let file =
                        BudgetFile::new(Config { path, busy: BUSY, budget, timezone, max_keys });
                    let ended = "ferrogate has shut down with the interpreter";
                    let file = file.map_err(|_| PyRuntimeError::new_err(ended))?;
                    let inside = file.enter().map_err(|_| PyRuntimeError::new_err(ended))?;
                    let opened = py.detach(move || inside.open());
                    opened.map_err(|error| open_error(&shown, &error))?;
                    Books::File(file)
                }
                _ => Books::Memory(Mutex::new(Table::new(max_keys as usize))),
            };
            Ok(Self {
                name,
                key,
                asks_for_key,
                limits: Mutex::new(limits),
                threshold,
                hard,
                enabled,
                books,
                calendar: Calendar::new(self::clock(clock)?, calendar),
                counts: Counts::default(),
                away: AtomicBool::new(false),
                callbacks: Callbacks::new(on_exceeded, on_threshold),
            })
        })
    }

    /// Reserves so many dollars of every limit or of none, now: a :class:`BudgetReservation`, or a
    /// :class:`Denial`, which is false. Never waits.
    ///
    /// What is spent out grants nothing more, not even 0.
    ///
    /// Args:
    ///     usd: what the call will cost at most, or as a rule.
    ///     key: whose money; not given, the budget's own ``key=``.
    ///
    /// Raises:
    ///     ValueError, TypeError: a wrong argument.
    #[pyo3(signature = (usd, key = None))]
    fn try_reserve<'py>(
        slf: &Bound<'py, Self>,
        usd: &Bound<'py, PyAny>,
        key: Argument<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("Budget.try_reserve", || {
            let amount = nano_usd("usd", usd)?;
            match Self::take(slf, amount, key)? {
                Ok(hold) => PyBudgetReservation::new(hold).into_bound_py_any(slf.py()),
                Err(refused) => PyDenial::from(&refused).into_bound_py_any(slf.py()),
            }
        })
    }

    /// Like ``try_reserve``, but raises what it refuses.
    ///
    /// Raises:
    ///     BudgetExceededError: it does not fit into what is left of a limit.
    ///     ValueError: more than a limit allows at all, or a wrong argument.
    ///     TypeError: a wrong argument.
    #[pyo3(signature = (usd, key = None))]
    fn reserve(
        slf: &Bound<'_, Self>,
        usd: &Bound<'_, PyAny>,
        key: Argument<'_, '_>,
    ) -> PyResult<PyBudgetReservation> {
        edge("Budget.reserve", || {
            let amount = nano_usd("usd", usd)?;
            Self::take(slf, amount, key)?
                .map(PyBudgetReservation::new)
                .map_err(|refused| refused.error(slf, "usd"))
        })
    }

    /// Counts what has been spent already, whether or not it fits: what exceeds a limit is owed
    /// until the limit resets, and nothing is granted until then.
    ///
    /// Raises:
    ///     ValueError, TypeError: a wrong argument.
    #[pyo3(signature = (usd, key = None))]
    fn spend(slf: &Bound<'_, Self>, usd: &Bound<'_, PyAny>, key: Argument<'_, '_>) -> PyResult<()> {
        edge("Budget.spend", || {
            let (py, this) = (slf.py(), slf.get());
            let amount = nano_usd("usd", usd)?.min(MOST);
            let who = this.who(py, key)?;
            if this.is_off() {
                return Ok(());
            }
            match this.with(py, &who, |account, terms, news| account.spend(terms, amount, news))? {
                Ok(((), news)) => Self::announce(slf, &who, &news),
                Err(Stop::Away(_)) => this.books.owe(py, &who, &Entry::unknown(0), amount)?,
                // Nobody grants this key anything either.
                Err(Stop::Full(_)) => add(&this.counts.rejected, 1),
            }
            Ok(())
        })
    }

    /// Dollars that can still be reserved: what is left of the limit that has the least left.
    ///
    /// Raises:
    ///     OSError: the store cannot be asked.
    #[pyo3(signature = (key = None))]
    fn remaining(&self, py: Python<'_>, key: Argument<'_, '_>) -> PyResult<f64> {
        edge("Budget.remaining", || {
            let (account, terms, _) = self.look(py, key)?;
            Ok(usd(account.left(&terms)))
        })
    }

    /// ``(period, limit, used, resets at)`` of each limit, in billionths of a dollar and in
    /// milliseconds since 1970.
    #[pyo3(signature = (key = None))]
    fn _usage(
        &self,
        py: Python<'_>,
        key: Argument<'_, '_>,
    ) -> PyResult<Vec<(&'static str, u64, u64, Millis)>> {
        edge("Budget._usage", || {
            let (account, terms, _) = self.look(py, key)?;
            let row = |(period, limit): (Period, u64)| {
                let cell = account.cells[period as usize];
                (period.name(), limit, cell.used, cell.end)
            };
            Ok(terms.each().map(row).collect())
        })
    }

    /// Forgets what one key has spent, or with ``all_keys`` what all of them have.
    #[pyo3(signature = (key, all_keys))]
    fn _forget(&self, py: Python<'_>, key: Argument<'_, '_>, all_keys: bool) -> PyResult<bool> {
        edge("Budget._forget", || {
            let who = if all_keys { None } else { Some(self.who(py, key)?) };
            if all_keys {
                self.calendar.forget();
            }
            if !self.enabled {
                return Ok(false);
            }
            let gone = self.books.reset(py, who.as_ref())?;
            self.note_store(py, &gone);
            match gone {
                Ok(gone) => Ok(gone),
                Err(Stop::Away(why)) => Err(self.store_error(&why)),
                Err(Stop::Full(_)) => Ok(false),
            }
        })
    }

    /// The time that counts, in milliseconds since 1970.
    fn _now(&self) -> Millis {
        self.calendar.now()
    }

    /// Other limits from now on.
    fn _update(&self, limits: Vec<(usize, Bound<'_, PyAny>)>) -> PyResult<()> {
        edge("Budget._update", || {
            let limits = limits_from(&limits, self.threshold)?;
            *self.limits.lock() = limits;
            Ok(())
        })
    }

    /// In the child of a fork: open reservations are the parent's.
    fn _after_fork(&self) -> PyResult<()> {
        edge("Budget._after_fork", || {
            self.counts.open.store(0, Ordering::Relaxed);
            self.counts.reserved.store(0, Ordering::Relaxed);
            Ok(())
        })
    }

    fn _stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        edge("Budget._stats", || {
            let stats = PyDict::new(py);
            let counts = &self.counts;
            for (name, count) in [
                ("granted", &counts.granted),
                ("rejected", &counts.rejected),
                ("settled", &counts.settled),
                ("released", &counts.released),
                ("open", &counts.open),
                ("store_errors", &counts.store_failures),
            ] {
                stats.set_item(name, count.load(Ordering::Relaxed))?;
            }
            stats.set_item("reserved_usd", usd(counts.reserved.load(Ordering::Relaxed)))?;
            stats.set_item("callback_errors", self.callbacks.failures())?;
            stats.set_item("keys", self.books.keys(py)?)?;
            stats.set_item("unsaved", self.books.owed(py)?)?;
            Ok(stats)
        })
    }

    #[getter(name)]
    fn py_name(&self) -> &str {
        &self.name
    }

    #[getter]
    fn hard(&self) -> bool {
        self.hard
    }

    #[getter]
    fn enabled(&self) -> bool {
        self.enabled
    }

    fn __reduce__(&self) -> PyResult<()> {
        edge("Budget.__reduce__", || {
            Err(PyTypeError::new_err(format!(
                "cannot pickle or copy the budget {:?}: make one in each process; those with the \
                 same name and store spend the same money",
                self.name
            )))
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.key)?;
        visit.call(&self.calendar.spans)?;
        self.callbacks.traverse(&visit)
    }

    fn __clear__(&self) {
        self.callbacks.clear();
    }
}
