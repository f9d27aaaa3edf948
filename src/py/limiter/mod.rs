//! `RateLimiter`: convert, ask the core, hand over the answer.
//!
//! A granted `acquire` is one native call that returns a [`ready`] awaitable;
//! only a refused one reaches Python, the `Place` of `ferrogate/_waiting.py`.

pub(super) mod adaptive;
mod enter;
mod forked;
pub(super) mod headers;
mod hold;
mod lines;
mod remote;
mod request;
mod types;
mod wait;

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use self::adaptive::{PyAdaptiveConcurrency, Slots};
pub(crate) use self::enter::Entry;
use self::forked::Forked;
use self::hold::PyHold;
use self::remote::{Sharing, Store, sharing};
use self::request::Request;
pub(crate) use self::request::{count, key_from};
use self::types::{PyDecision, PyLimit, limit_from};
pub(crate) use self::wait::gone;
use crate::core::clock::NEVER;
use crate::core::key::Key;
use crate::core::limiter::{Algorithm, Decision, Limiter, Outbox, Reason, Settings};
use crate::py::awaitable::ready;
use crate::py::convert::{clock, globally_disabled};
use crate::py::edge::edge;
use crate::py::waiting::{PyTicket, Waker, Wakes, seconds};

/// Imports what is imported on first use.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    // The free list of the decisions.
    drop(Bound::new(py, PyDecision(Decision::refused(Reason::Limited, 0)))?);
    Ok(())
}

type Core = Limiter<Key, Waker>;
type Out = Outbox<Key, Waker>;

pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyLimit>()?;
    m.add_class::<PyDecision>()?;
    m.add_class::<PyAdaptiveConcurrency>()?;
    m.add_class::<RateLimiter>()?;
    m.add_class::<PyHold>()?;
    m.add_function(wrap_pyfunction!(headers::parse_rate_limit_headers, m)?)?;
    m.add_class::<PyTicket>()
}

/// The native half of ``ferrogate.RateLimiter``.
#[pyclass(frozen, subclass, module = "ferrogate._core")]
pub(crate) struct RateLimiter {
    core: Arc<Core>,
    name: Option<String>,
    wakes: Arc<Wakes>,
    /// Where the limits are shared with other processes.
    store: Option<Store>,
    forked: Forked,
}

#[pymethods]
impl RateLimiter {
    #[new]
    #[pyo3(signature = (limits, *, burst, algorithm, max_keys, max_waiters, store, name, clock, enabled))]
    #[allow(clippy::too_many_arguments)] // Python's constructor
    fn new(
        limits: Vec<Bound<'_, PyAny>>,
        burst: Option<Bound<'_, PyAny>>,
        algorithm: &str,
        max_keys: &Bound<'_, PyAny>,
        max_waiters: &Bound<'_, PyAny>,
        store: Option<&Bound<'_, PyDict>>,
        name: Option<String>,
        clock: Option<Bound<'_, PyAny>>,
        enabled: bool,
    ) -> PyResult<Self> {
        edge("RateLimiter", || {
            let slots = burst.as_ref().map(|burst| Slots::from("burst", burst)).transpose()?;
            let limits = limits.iter().map(limit_from).collect::<PyResult<Vec<_>>>()?;
            let enabled = enabled && !globally_disabled();
            let store = store.filter(|_| enabled);
            let sharing = store.map(|options| sharing(&limits, options)).transpose()?;
            let settings = Settings {
                limits,
                burst: slots.and_then(Slots::fixed),
                adaptive: slots.and_then(Slots::adaptive),
                algorithm: Algorithm::parse(algorithm)?,
                max_keys: count("max_keys", max_keys)? as usize,
                max_waiters: count("max_waiters", max_waiters)? as usize,
                enabled,
                sharing,
            };
            let clock = self::clock(clock.as_ref())?;
            let (core, wakes) = (Arc::new(Core::new(settings, clock)?), Arc::<Wakes>::default());
            let store = match (store, sharing) {
                (Some(options), Some(sharing)) => {
                    let name = name.as_deref().unwrap_or_default();
                    Some(Store::open(options, name, &core, &wakes, sharing.validity)?)
                }
                _ => None,
            };
            Ok(Self { core, name, wakes, store, forked: Forked::default() })
        })
    }

    #[pyo3(signature = (cost = None, key = None), text_signature = "($self, cost=1, key=None)")]
    fn try_acquire(
        &self,
        py: Python<'_>,
        cost: Option<&Bound<'_, PyAny>>,
        key: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyDecision> {
        edge("RateLimiter.try_acquire", || {
            let request = Request::new(cost, key, false)?;
            let decision = self
                .calling(py, |core, out| core.try_acquire(request.key.as_ref(), request.cost, out));
            self.says_why(py, decision);
            Ok(PyDecision(decision))
        })
    }

    #[pyo3(
        signature = (cost = None, key = None, timeout = None),
        text_signature = "($self, cost=1, key=None, timeout=None)"
    )]
    fn acquire<'py>(
        slf: &Bound<'py, Self>,
        cost: Option<&Bound<'py, PyAny>>,
        key: Option<&Bound<'py, PyAny>>,
        timeout: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("RateLimiter.acquire", || {
            let request = Request::new(cost, key, false)?;
            Self::enter_async(slf, &request, timeout, slf.py().None().into_bound(slf.py()))
        })
    }

    #[pyo3(
        signature = (cost = None, key = None, timeout = None),
        text_signature = "($self, cost=1, key=None, timeout=None)"
    )]
    fn acquire_sync(
        slf: &Bound<'_, Self>,
        cost: Option<&Bound<'_, PyAny>>,
        key: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        edge("RateLimiter.acquire_sync", || {
            slf.get().enter_sync(slf.py(), &Request::new(cost, key, false)?, timeout)
        })
    }

    fn __enter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        edge("RateLimiter.__enter__", || {
            slf.get().enter_sync(slf.py(), &Request::ENTER, None)?;
            Ok(slf.clone())
        })
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        edge("RateLimiter.__exit__", || {
            self.release(py);
            Ok(())
        })
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        edge("RateLimiter.__aenter__", || {
            Self::enter_async(slf, &Request::ENTER, None, slf.clone().into_any())
        })
    }

    fn __aexit__<'py>(
        &self,
        py: Python<'py>,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("RateLimiter.__aexit__", || {
            self.release(py);
            ready(py, py.None().into_bound(py))
        })
    }

    /// A permit and a slot around every call, for the decorator.
    fn _hold(slf: Py<Self>, cost: Py<PyAny>, timeout: Option<Py<PyAny>>) -> PyResult<PyHold> {
        edge("RateLimiter._hold", || Ok(PyHold { limiter: slf, cost, timeout }))
    }

    /// Whether calls with these arguments could ever be granted.
    fn _check(
        &self,
        py: Python<'_>,
        cost: &Bound<'_, PyAny>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        edge("RateLimiter._check", || {
            let request = Request::new(Some(cost), None, true)?;
            self.deadline(timeout)?;
            if self.core.eta(None, request.cost) == NEVER {
                let never = Decision::refused(Reason::TooLarge, NEVER);
                return Err(self.refusal(py, &request, never));
            }
            Ok(())
        })
    }

    #[pyo3(signature = (cost = None, key = None), text_signature = "($self, cost=1, key=None)")]
    fn eta(
        &self,
        cost: Option<&Bound<'_, PyAny>>,
        key: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<f64> {
        edge("RateLimiter.eta", || {
            let request = Request::new(cost, key, false)?;
            Ok(seconds(self.core.eta(request.key.as_ref(), request.cost)))
        })
    }

    /// ``update`` with the limits in a list.
    fn _update(&self, py: Python<'_>, limits: Vec<Bound<'_, PyAny>>) -> PyResult<()> {
        edge("RateLimiter._update", || {
            let limits = limits.iter().map(limit_from).collect::<PyResult<_>>()?;
            self.calling(py, |core, out| core.update(limits, out)).map_err(Into::into)
        })
    }

    /// For ``ferrogate.testing.reset_all``: windows and buckets are as new; the counters go on.
    fn _reset(&self, py: Python<'_>) -> PyResult<()> {
        edge("RateLimiter._reset", || {
            self.calling(py, Core::reset);
            Ok(())
        })
    }

    /// After a ``ManualClock`` moved.
    fn _clock_moved(&self, py: Python<'_>) -> PyResult<()> {
        edge("RateLimiter._clock_moved", || {
            self.calling(py, Core::clock_moved);
            Ok(())
        })
    }

    /// In the child of a fork.
    fn _after_fork(&self, py: Python<'_>) -> PyResult<()> {
        edge("RateLimiter._after_fork", || {
            self.forked.here(self.core.stats().concurrent);
            if let Some(store) = &self.store {
                store.after_fork()?;
            }
            self.calling(py, Core::after_fork);
            Ok(())
        })
    }

    /// `(acquired, rejected, rejection_rate, waiting, concurrent, keys, [(limit, used), …])`
    #[allow(clippy::type_complexity)] // spelled out in `_core.pyi`
    fn _stats(&self) -> PyResult<(u64, u64, f64, u64, u32, usize, Vec<(PyLimit, u64)>)> {
        edge("RateLimiter._stats", || {
            let stats = self.core.stats();
            let rate = stats.rejection_rate();
            let windows = stats.windows.iter().map(|&(limit, used)| (PyLimit(limit), used));
            let windows = windows.collect();
            let core = (stats.acquired, stats.rejected, rate, stats.waiting, stats.concurrent);
            Ok((core.0, core.1, core.2, core.3, core.4, stats.keys, windows))
        })
    }

    /// `(members, joined, alone, slice, asks, failures, losses)` where the limits are shared.
    fn _sharing(&self) -> PyResult<Option<Sharing>> {
        edge("RateLimiter._sharing", || Ok(self.store.as_ref().map(Store::figures)))
    }

    /// What is known of slots that find their own number.
    fn _adaptive_stats<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        edge("RateLimiter._adaptive_stats", || adaptive::stats(py, self.core.adaptive_stats()))
    }

    #[getter]
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    #[getter]
    fn limits(&self) -> PyResult<Vec<PyLimit>> {
        edge("RateLimiter.limits", || Ok(self.core.limits().into_iter().map(PyLimit).collect()))
    }

    #[getter]
    fn burst(&self) -> Option<u32> {
        self.core.burst()
    }

    #[getter]
    fn algorithm(&self) -> &'static str {
        self.core.algorithm().as_str()
    }

    #[getter]
    fn max_keys(&self) -> usize {
        self.core.max_keys()
    }

    #[getter]
    fn enabled(&self) -> bool {
        self.core.enabled()
    }
}
