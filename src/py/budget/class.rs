//! The class.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use pyo3::{IntoPyObjectExt, PyTraverseError, PyVisit};

use super::books::{Books, Calendar, Stop, Who};
use super::hold::{Hold, PyBudgetReservation};
use super::news::Callbacks;
use super::refused::Refused;
use super::usd;
use crate::core::budget::{
    Account, Entry, MOST, Millis, News, PERIODS, Period, Span, Table, Terms,
};
use crate::core::sync::Mutex;
use crate::py::convert::{clock, globally_disabled};
use crate::py::edge::edge;
use crate::py::limiter::{count, key_from};
use crate::py::llm::{PyDenial, nano_usd};
use crate::py::service::after_forks;
use crate::runtime::budget::{BudgetFile, Config, Holder};
use crate::runtime::sqlite::OpenError;

type Argument<'a, 'py> = Option<&'a Bound<'py, PyAny>>;

/// So long a request waits for other processes' commits.
const BUSY: Duration = Duration::from_millis(250);

/// A test suite wants everything granted, and nothing counted.
static BYPASSED: AtomicBool = AtomicBool::new(false);

/// For ``ferrogate.testing.bypass``: whether budgets grant everything.
#[pyfunction]
#[pyo3(name = "_bypass_budgets")]
pub(super) fn bypass_budgets(on: bool) {
    BYPASSED.store(on, Ordering::Relaxed);
}

/// The limits, as they can change.
#[derive(Clone, Copy)]
struct Limits {
    limits: [Option<u64>; PERIODS],
    thresholds: [Option<u64>; PERIODS],
}

#[derive(Default)]
struct Counts {
    granted: AtomicU64,
    rejected: AtomicU64,
    settled: AtomicU64,
    released: AtomicU64,
    open: AtomicU64,
    /// What the open ones have reserved.
    reserved: AtomicU64,
    store_failures: AtomicU64,
}

/// The native half of ``ferrogate.Budget``.
#[pyclass(frozen, subclass, module = "ferrogate._core")]
pub(crate) struct Budget {
    name: String,
    /// Whose account it is if nobody is named: a value, or a function that tells.
    key: Option<Py<PyAny>>,
    asks_for_key: bool,
    limits: Mutex<Limits>,
    threshold: Option<f64>,
    hard: bool,
    enabled: bool,
    books: Books,
    calendar: Calendar,
    counts: Counts,
    /// Whether the store could not be asked at last.
    away: AtomicBool,
    pub(super) callbacks: Callbacks,
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

fn sub(counter: &AtomicU64, amount: u64) {
    let less = |now: u64| Some(now.saturating_sub(amount));
    let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

/// What other native parts ask of it.
impl Budget {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether tenants have accounts of their own.
    pub(crate) fn is_keyed(&self) -> bool {
        self.key.is_some()
    }

    /// The most that one request can ever be granted.
    pub(crate) fn most(&self) -> u64 {
        let Limits { limits, .. } = *self.limits.lock();
        if self.hard { limits.into_iter().flatten().min().unwrap_or(MOST) } else { MOST }
    }

    /// Reserves so much, or says why not.
    ///
    /// # Errors
    /// A wrong key, or whatever the function that tells it raises.
    pub(crate) fn take(
        slf: &Bound<'_, Self>,
        amount: u64,
        key: Argument<'_, '_>,
    ) -> PyResult<Result<Hold, Refused>> {
        let (py, this) = (slf.py(), slf.get());
        let amount = amount.min(MOST);
        let who = this.who(py, key)?;
        if this.is_off() {
            this.count_grant(amount);
            return Ok(Ok(Hold::new(slf.clone().unbind(), who, Entry::unknown(amount), false)));
        }
        let asked =
            this.with(py, &who, |account, terms, news| account.reserve(terms, amount, news))?;
        let granted = match asked {
            Ok((granted, news)) => {
                if !news.is_empty() {
                    Self::announce(slf, &who, &news);
                }
                granted.map_err(|short| Refused::of_limit(short, amount, this.calendar.now()))
            }
            Err(Stop::Away(_)) if !this.hard => {
                this.books.owe(py, &who, &Entry::unknown(0), amount);
                Ok(Entry::unknown(amount))
            }
            Err(stop) => Err(Refused::of_stop(&stop, amount, this.calendar.now())),
        };
        Ok(match granted {
            Ok(entry) => {
                this.count_grant(amount);
                Ok(Hold::new(slf.clone().unbind(), who, entry, true))
            }
            Err(refused) => {
                add(&this.counts.rejected, 1);
                Err(refused.with_key(who.object))
            }
        })
    }

    /// Ends what was reserved; `None`: it was not spent.
    pub(super) fn correct(slf: &Bound<'_, Self>, hold: &Hold, actual: Option<u64>) {
        let (py, this) = (slf.py(), slf.get());
        sub(&this.counts.open, 1);
        sub(&this.counts.reserved, hold.entry.amount);
        add(if actual.is_some() { &this.counts.settled } else { &this.counts.released }, 1);
        let actual = actual.unwrap_or(0).min(MOST);
        if !hold.counted || actual == hold.entry.amount || this.is_off() {
            return;
        }
        let settled = this.with(py, &hold.who, |account, terms, news| {
            account.settle(terms, &hold.entry, actual, news);
        });
        match settled {
            Ok(Ok(((), news))) => {
                if !news.is_empty() {
                    Self::announce(slf, &hold.who, &news);
                }
            }
            Ok(Err(_)) => this.books.owe(py, &hold.who, &hold.entry, actual),
            // After the interpreter's shutdown it stays as reserved; a calendar does not fail
            // that has not failed before.
            Err(_) => {}
        }
    }

    fn count_grant(&self, amount: u64) {
        add(&self.counts.granted, 1);
        add(&self.counts.open, 1);
        add(&self.counts.reserved, amount);
    }

    fn is_off(&self) -> bool {
        !self.enabled || BYPASSED.load(Ordering::Relaxed)
    }

    /// Does something with an account; also what is to be told then, with no lock held.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        who: &Who,
        act: impl Fn(&mut Account, &Terms, &mut Vec<News>) -> T + Send + Sync,
    ) -> PyResult<Result<(T, Vec<News>), Stop>> {
        let terms = |spans| self.terms(spans);
        let done = self.books.with(py, who, &self.calendar, terms, |account, terms| {
            let mut news = Vec::new();
            (act(account, terms, &mut news), news)
        })?;
        self.note_store(py, &done);
        Ok(done)
    }

    /// Logs the first failure of the store since it was last well.
    fn note_store<T>(&self, py: Python<'_>, done: &Result<T, Stop>) {
        let Err(Stop::Away(why)) = done else {
            if self.away.load(Ordering::Relaxed) {
                self.away.store(false, Ordering::Relaxed);
            }
            return;
        };
        add(&self.counts.store_failures, 1);
        if !self.away.swap(true, Ordering::Relaxed) {
            self.report(py, &format!("its store cannot be asked: {why}"), None);
        }
    }

    fn terms(&self, spans: [Span; PERIODS]) -> Terms {
        let Limits { limits, thresholds } = *self.limits.lock();
        Terms { limits, spans, thresholds, hard: self.hard }
    }

    /// The account of `key`, or of whom the budget is for.
    fn who(&self, py: Python<'_>, key: Argument<'_, '_>) -> PyResult<Who> {
        let told;
        let object = match (key, &self.key) {
            (Some(key), _) => Some(key),
            (None, None) => None,
            (None, Some(own)) if self.asks_for_key => {
                told = own.bind(py).call0()?;
                Some(&told)
            }
            (None, Some(own)) => Some(own.bind(py)),
        };
        let object = object.filter(|object| !object.is_none());
        let key = object.map(|object| key_from("key", object)).transpose()?;
        let holder = match &self.books {
            Books::Memory(_) => None,
            Books::File(_) => {
                let label = object.map(label).transpose()?.unwrap_or_default();
                Some(Holder::new(&self.name, key.as_ref(), &label))
            }
        };
        Ok(Who { key, object: object.map(|object| object.clone().unbind()), holder })
    }

    /// An account as it stands now, and the time.
    fn look(&self, py: Python<'_>, key: Argument<'_, '_>) -> PyResult<(Account, Terms, Millis)> {
        let who = self.who(py, key)?;
        let now = self.calendar.now();
        let terms = self.terms(self.calendar.at(py, now)?);
        if !self.enabled {
            return Ok((Account::default().seen(&terms), terms, now));
        }
        let seen = self.books.look(py, &who, &terms)?;
        self.note_store(py, &seen);
        match seen {
            Ok(account) => Ok((account, terms, now)),
            Err(Stop::Away(why)) => Err(self.store_error(&why)),
            Err(Stop::Full(_)) => Ok((Account::default().seen(&terms), terms, now)),
        }
    }

    fn store_error(&self, why: &str) -> PyErr {
        PyOSError::new_err(format!(
            "the store of the budget {:?} cannot be asked: {why}",
            self.name
        ))
    }
}

/// What people see of a key in a file.
fn label(key: &Bound<'_, PyAny>) -> PyResult<String> {
    const LONGEST: usize = 200;
    let text = if let Ok(text) = key.cast::<PyString>() {
        text.to_string_lossy().into_owned()
    } else {
        key.repr()?.to_string_lossy().into_owned()
    };
    Ok(text.chars().take(LONGEST).collect())
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
                Err(Stop::Away(_)) => this.books.owe(py, &who, &Entry::unknown(0), amount),
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
            let owed = match &self.books {
                Books::Memory(_) => 0,
                Books::File(file) => py.detach(|| file.owed()),
            };
            stats.set_item("unsaved", owed)?;
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
