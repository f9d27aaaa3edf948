//! The class.

use std::sync::Arc;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::blocks::Blocks;
use super::callbacks::{Callbacks, Event};
use super::remote::{Sharing, Store};
use super::settings::{flag, integer, number, settings};
use crate::core::breaker::{Breaker, Permit, Refusal, Spend, Transition};
use crate::core::clock::secs_from_nanos;
use crate::core::outcome::Outcome;
use crate::py::awaitable::{Unclaimed, ready, ready_or_back};
use crate::py::convert::{clock, globally_disabled, type_name};
use crate::py::edge::edge;
use crate::py::guard::{self, Plan};

/// The function that makes a `CircuitBreakerOpenError`.
static OPEN_ERROR: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    open_error(py)?;
    Stats { shared: Some(Sharing::default()), ..Stats::default() }.into_pyobject(py).map(drop)
}

fn open_error(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    OPEN_ERROR.import(py, "ferrogate._breaking", "open_error")
}

/// The native half of ``ferrogate.CircuitBreaker``.
#[pyclass(frozen, subclass, module = "ferrogate._core")]
pub(crate) struct CircuitBreaker {
    core: Arc<Breaker>,
    /// Where its state is shared with other processes.
    store: Option<Store>,
    pub(super) name: String,
    pub(super) callbacks: Callbacks,
    pub(super) classify: Option<Py<PyAny>>,
    blocks: Blocks,
}

/// `get_stats()`.
#[derive(Default, IntoPyObject)]
struct Stats {
    name: String,
    state: &'static str,
    enabled: bool,
    error_rate: f64,
    slow_rate: f64,
    calls: u64,
    successes: u64,
    failures: u64,
    throttled: u64,
    neutral: u64,
    slow: u64,
    rejected: u64,
    times_opened: u64,
    probes: usize,
    retry_after: f64,
    wasted_usd: f64,
    wasted_tokens: u64,
    callback_errors: u64,
    shared: Option<Sharing>,
}

/// What other native parts ask of it.
impl CircuitBreaker {
    /// Whether it can refuse anything at all.
    #[inline]
    pub(crate) fn enabled(&self) -> bool {
        self.core.settings().enabled
    }

    /// Asks for leave to make a call, then runs the callbacks of the step that this brought about.
    #[inline]
    pub(crate) fn begin(slf: &Bound<'_, Self>) -> Result<Permit, Refusal> {
        Self::heard(slf);
        let (asked, step) = slf.get().core.begin();
        slf.get().told();
        if let Some(step) = step {
            Self::announce(slf, step);
        }
        asked
    }

    /// Gives a permit back, then runs the callbacks of the step that this brought about.
    #[inline]
    pub(crate) fn end(
        slf: &Bound<'_, Self>,
        permit: Permit,
        outcome: Outcome,
        spend: Option<Spend>,
    ) {
        let step = slf.get().core.end(permit, outcome, spend);
        slf.get().told();
        if let Some(step) = step {
            Self::announce(slf, step);
        }
    }

    /// Runs the callbacks of the steps that other processes have brought about.
    #[inline]
    fn heard(slf: &Bound<'_, Self>) {
        let Some(store) = &slf.get().store else { return };
        for step in store.heard(slf.py(), &slf.get().name) {
            Self::announce(slf, step);
        }
    }

    /// Has other processes told, if they are to be.
    #[inline]
    fn told(&self) {
        if let Some(store) = &self.store {
            store.called();
        }
    }

    /// The exception for a call that was not let through.
    #[cold]
    pub(crate) fn open_error(&self, py: Python<'_>, refusal: &Refusal) -> PyErr {
        let retry_after = refusal.retry_after.map_or(f64::INFINITY, secs_from_nanos);
        let arguments = (&self.name, refusal.state.name(), retry_after);
        match open_error(py).and_then(|make| make.call1(arguments)) {
            Ok(error) => PyErr::from_value(error),
            Err(error) => error,
        }
    }

    /// Refuses what [`CircuitBreaker::begin`] would refuse now; takes nothing.
    #[inline]
    pub(crate) fn check(&self, py: Python<'_>) -> PyResult<()> {
        let checked = self.core.check();
        self.told();
        checked.map_err(|refusal| self.open_error(py, &refusal))
    }

    /// What [`CircuitBreaker::begin`] would say now, for somebody who may as well go elsewhere.
    pub(crate) fn would_refuse(&self) -> Option<Refusal> {
        let refusal = self.core.would_refuse();
        self.told();
        refusal
    }

    fn force(slf: &Bound<'_, Self>, to: fn(&Breaker) -> Option<Transition>) {
        Self::heard(slf);
        let step = to(&slf.get().core);
        slf.get().told();
        if let Some(step) = step {
            Self::announce(slf, step);
        }
    }

    /// A block begins; its number.
    fn enter(slf: &Bound<'_, Self>) -> PyResult<u64> {
        let this = slf.get();
        let permit = Self::begin(slf).map_err(|refusal| this.open_error(slf.py(), &refusal))?;
        let (number, forgotten) = this.blocks.enter(slf.py(), permit);
        if let Some(permit) = forgotten {
            Self::end(slf, permit, Outcome::Neutral, None);
        }
        Ok(number)
    }

    /// A block ends, with what it raised.
    fn leave(slf: &Bound<'_, Self>, raised: &Bound<'_, PyAny>) {
        let this = slf.get();
        let Some(permit) = this.blocks.leave(slf.py()) else { return };
        let outcome = if raised.is_none() {
            Outcome::Success
        } else {
            this.outcome_of(slf.py(), Err(&PyErr::from_value(raised.clone())))
        };
        Self::end(slf, permit, outcome, None);
    }
}

/// Gives back the permit of an ``__aenter__`` that was never awaited.
fn give_back(breaker: &Bound<'_, PyAny>, spent: &Unclaimed) {
    let Ok(breaker) = breaker.cast::<CircuitBreaker>() else { return };
    if let Some(permit) = breaker.get().blocks.take(spent.at) {
        CircuitBreaker::end(breaker, permit, Outcome::Neutral, None);
    }
}

/// A str that UTF-8 can carry.
fn text(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    let Ok(text) = value.cast::<PyString>() else {
        let got = type_name(value);
        return Err(PyTypeError::new_err(format!("{argument}: expected a str, got {got}")));
    };
    text.to_str().map(ToOwned::to_owned).map_err(|_| {
        PyValueError::new_err(format!("{argument}: expected text that UTF-8 can carry"))
    })
}

#[pymethods]
impl CircuitBreaker {
    #[new]
    #[pyo3(signature = (name, config, *, store, clock, enabled, classify))]
    fn new(
        name: &Bound<'_, PyAny>,
        config: &Bound<'_, PyAny>,
        store: Option<&Bound<'_, PyDict>>,
        clock: Option<&Bound<'_, PyAny>>,
        enabled: &Bound<'_, PyAny>,
        classify: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        edge("CircuitBreaker", || {
            let name = text("name", name)?;
            let enabled = flag("enabled", enabled)? && !globally_disabled();
            if let Some(classify) = classify.as_ref().filter(|classify| !classify.is_callable()) {
                let got = type_name(classify);
                let expected =
                    "classify: expected a function of a result and an error, or None, got";
                return Err(PyTypeError::new_err(format!("{expected} {got}")));
            }
            let clock = self::clock(clock)?;
            let settings = settings(config, enabled)?;
            let (core, store) = match store.filter(|_| enabled) {
                None => (Arc::new(Breaker::new(settings, clock)?), None),
                Some(options) => {
                    let core = Arc::new(Breaker::sharing(settings, clock)?);
                    let store = Store::open(options, &name, &core)?;
                    (core, Some(store))
                }
            };
            Ok(Self {
                core,
                store,
                name,
                callbacks: Callbacks::default(),
                classify: classify.map(Bound::unbind),
                blocks: Blocks::default(),
            })
        })
    }

    #[pyo3(signature = (function, /, *args, **kwargs))]
    fn call<'py>(
        slf: &Bound<'py, Self>,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CircuitBreaker.call", || {
            guard::call_with(Plan::Breaker(slf.clone().unbind()), function, args, kwargs)
        })
    }

    #[pyo3(signature = (function, /, *args, **kwargs))]
    fn call_sync<'py>(
        slf: &Bound<'py, Self>,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        edge("CircuitBreaker.call_sync", || {
            guard::call_blocking_with(Plan::Breaker(slf.clone().unbind()), function, args, kwargs)
        })
    }

    /// Where it is.
    #[getter]
    fn state(slf: &Bound<'_, Self>) -> PyResult<&'static str> {
        edge("CircuitBreaker.state", || {
            Self::heard(slf);
            Ok(slf.get().core.state().name())
        })
    }

    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    #[getter(enabled)]
    fn is_enabled(&self) -> bool {
        self.enabled()
    }

    fn is_open(slf: &Bound<'_, Self>) -> PyResult<bool> {
        edge("CircuitBreaker.is_open", || {
            Self::heard(slf);
            Ok(slf.get().core.state().is_open())
        })
    }

    fn force_open(slf: &Bound<'_, Self>) -> PyResult<()> {
        edge("CircuitBreaker.force_open", || {
            Self::force(slf, Breaker::force_open);
            Ok(())
        })
    }

    fn disable(slf: &Bound<'_, Self>) -> PyResult<()> {
        edge("CircuitBreaker.disable", || {
            Self::force(slf, Breaker::disable);
            Ok(())
        })
    }

    fn metrics_only(slf: &Bound<'_, Self>) -> PyResult<()> {
        edge("CircuitBreaker.metrics_only", || {
            Self::force(slf, Breaker::metrics_only);
            Ok(())
        })
    }

    fn reset(slf: &Bound<'_, Self>) -> PyResult<()> {
        edge("CircuitBreaker.reset", || {
            Self::force(slf, Breaker::reset);
            Ok(())
        })
    }

    #[pyo3(signature = (*, usd = None, tokens = None), text_signature = "($self, *, usd=0.0, tokens=0)")]
    fn record_waste(
        slf: &Bound<'_, Self>,
        usd: Option<&Bound<'_, PyAny>>,
        tokens: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        edge("CircuitBreaker.record_waste", || {
            let usd = usd.map_or(Ok(0.0), |usd| number("usd", usd))?;
            if !(usd >= 0.0 && usd.is_finite()) {
                let expected = format!("usd: expected US dollars of at least 0, got {usd}");
                return Err(PyValueError::new_err(expected));
            }
            let tokens = tokens.map_or(Ok(0), |tokens| integer("tokens", tokens, u64::MAX))?;
            Self::heard(slf);
            let step = slf.get().core.note_waste(Spend { usd, tokens });
            slf.get().told();
            if let Some(step) = step {
                Self::announce(slf, step);
            }
            Ok(())
        })
    }

    /// Has ``callback`` called when it goes to ``event``.
    fn _watch(&self, event: &str, callback: Py<PyAny>) -> PyResult<()> {
        edge("CircuitBreaker._watch", || {
            self.callbacks.watch(Event::named(event)?, callback);
            Ok(())
        })
    }

    fn get_stats(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        edge("CircuitBreaker.get_stats", || {
            Self::heard(slf);
            let (this, py) = (slf.get(), slf.py());
            let seen = this.core.stats();
            let stats = Stats {
                name: this.name.clone(),
                state: seen.state.name(),
                enabled: this.enabled(),
                error_rate: seen.error_rate,
                slow_rate: seen.slow_rate,
                calls: seen.calls,
                successes: seen.successes,
                failures: seen.failures,
                throttled: seen.throttled,
                neutral: seen.neutral,
                slow: seen.slow,
                rejected: seen.rejected,
                times_opened: seen.times_opened,
                probes: seen.probes,
                retry_after: seen.retry_after.map_or(0.0, secs_from_nanos),
                wasted_usd: seen.wasted.usd,
                wasted_tokens: seen.wasted.tokens,
                callback_errors: this.callbacks.failures(),
                shared: this.store.as_ref().map(Store::figures),
            };
            Ok(stats.into_pyobject(py)?.into_any().unbind())
        })
    }

    fn __enter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        edge("CircuitBreaker.__enter__", || {
            Self::enter(slf)?;
            Ok(slf.clone())
        })
    }

    fn __exit__(
        slf: &Bound<'_, Self>,
        _type: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        edge("CircuitBreaker.__exit__", || {
            Self::leave(slf, value);
            Ok(())
        })
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        edge("CircuitBreaker.__aenter__", || {
            let number = Self::enter(slf)?;
            let slf = slf.clone().into_any();
            let spent = Unclaimed { give_back, at: number, cost: 0, slot: false, key: None };
            ready_or_back(slf.py(), slf.clone(), slf, spent)
        })
    }

    fn __aexit__<'py>(
        slf: &Bound<'py, Self>,
        _type: &Bound<'py, PyAny>,
        value: &Bound<'py, PyAny>,
        _traceback: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CircuitBreaker.__aexit__", || {
            Self::leave(slf, value);
            ready(slf.py(), slf.py().None().into_bound(slf.py()))
        })
    }

    /// In the child of a fork.
    fn _after_fork(&self) -> PyResult<()> {
        edge("CircuitBreaker._after_fork", || {
            self.core.after_fork();
            self.blocks.after_fork();
            Ok(())
        })
    }

    fn __reduce__(&self) -> PyResult<()> {
        edge("CircuitBreaker.__reduce__", || {
            Err(PyTypeError::new_err(format!(
                "cannot pickle or copy the circuit breaker {:?}: a breaker is one per process; \
                 make one in each, from the same CircuitBreakerConfig",
                self.name
            )))
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.classify)?;
        self.callbacks.traverse(&visit)
    }

    fn __clear__(&self) {
        self.callbacks.clear();
    }
}
