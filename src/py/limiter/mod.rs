//! `RateLimiter`: convert, ask the core, hand over the answer.
//!
//! A granted `acquire` is one native call that returns a [`ready`] awaitable;
//! only a refused one reaches the coroutine in `ferrogate/_waiting.py`.

mod hold;
mod types;
mod wait;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyString;

use self::hold::PyHold;
use self::types::{PyDecision, PyLimit, limit_from};
use self::wait::{PyTicket, Waker};
use crate::core::clock::{NEVER, Nanos, secs_from_nanos};
use crate::core::key::Key;
use crate::core::limiter::{Algorithm, Decision, Limit, Limiter, Outbox, Reason, Settings};
use crate::py::awaitable::{Unclaimed, ready, ready_or_back};
use crate::py::convert::{clock, duration_or_zero, globally_disabled, type_name};
use crate::py::edge::edge;
use crate::py::key::{Opaque, Walker, short_text, with_encoder};

/// The coroutine that waits, of `ferrogate/_waiting.py`.
static WAIT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
/// The function that makes a `RateLimitExceeded`, of the same module.
static EXCEEDED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Imports what is imported on first use.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    WAIT.import(py, "ferrogate._waiting", "wait_for_permit")?;
    EXCEEDED.import(py, "ferrogate._waiting", "exceeded")?;
    index(py);
    wait::prepare(py);
    // The free list of the decisions.
    drop(Bound::new(py, PyDecision(Decision::refused(Reason::Limited, 0)))?);
    Ok(())
}

fn index(py: Python<'_>) -> &Bound<'_, PyString> {
    intern!(py, "__index__")
}

type Core = Limiter<Key, Waker>;
type Out = Outbox<Key, Waker>;

pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyLimit>()?;
    m.add_class::<PyDecision>()?;
    m.add_class::<RateLimiter>()?;
    m.add_class::<PyHold>()?;
    m.add_class::<PyTicket>()
}

/// The native half of ``ferrogate.RateLimiter``.
#[pyclass(frozen, subclass, module = "ferrogate._core")]
pub(crate) struct RateLimiter {
    core: Core,
    name: Option<String>,
}

/// What one request asks for.
#[derive(Clone, Copy)]
struct Request {
    key: Option<Key>,
    cost: u32,
    slot: bool,
}

#[pymethods]
impl RateLimiter {
    #[new]
    #[pyo3(signature = (limits, *, burst, algorithm, max_keys, max_waiters, name, clock, enabled))]
    #[allow(clippy::too_many_arguments)] // Python's constructor
    fn new(
        limits: Vec<Bound<'_, PyAny>>,
        burst: Option<Bound<'_, PyAny>>,
        algorithm: &str,
        max_keys: &Bound<'_, PyAny>,
        max_waiters: &Bound<'_, PyAny>,
        name: Option<String>,
        clock: Option<Bound<'_, PyAny>>,
        enabled: bool,
    ) -> PyResult<Self> {
        edge("RateLimiter", || {
            let settings = Settings {
                limits: limits.iter().map(limit_from).collect::<PyResult<_>>()?,
                burst: burst.as_ref().map(|burst| count("burst", burst)).transpose()?,
                algorithm: Algorithm::parse(algorithm)?,
                max_keys: count("max_keys", max_keys)? as usize,
                max_waiters: count("max_waiters", max_waiters)? as usize,
                enabled: enabled && !globally_disabled(),
            };
            let clock = self::clock(clock.as_ref())?;
            Ok(Self { core: Core::new(settings, clock)?, name })
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
            Self::enter_async(slf, &request, key, timeout, slf.py().None().into_bound(slf.py()))
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
            Self::enter_async(slf, &Request::ENTER, None, None, slf.clone().into_any())
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

    /// Joins the line; the waiter's ``wake()`` is called from any thread.
    fn _enqueue(
        slf: &Bound<'_, Self>,
        waiter: &Bound<'_, PyAny>,
        cost: &Bound<'_, PyAny>,
        key: Option<&Bound<'_, PyAny>>,
        slot: bool,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyTicket> {
        edge("RateLimiter._enqueue", || {
            let request = Request::new(Some(cost), key, slot)?;
            let deadline = slf.get().deadline(timeout)?;
            Self::join(slf, request, deadline, Waker::of_task(waiter)?)
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

/// Gives back what a granted, never awaited `acquire` has spent.
fn give_back(limiter: &Bound<'_, PyAny>, spent: &Unclaimed) {
    let Ok(limiter) = limiter.cast::<RateLimiter>() else { return };
    limiter.get().calling(limiter.py(), |core, out| {
        core.undo(spent.key.as_deref(), spent.at, spent.cost, spent.slot, out);
    });
}

impl RateLimiter {
    /// Calls the core, then wakes whom it says, with no lock held.
    #[inline]
    fn calling<T>(&self, py: Python<'_>, body: impl FnOnce(&Core, &mut Out) -> T) -> T {
        let mut out = Out::new();
        let answer = body(&self.core, &mut out);
        for waker in out.take_wakes() {
            waker.wake(py);
        }
        answer
    }

    fn try_enter(&self, py: Python<'_>, request: &Request) -> Decision {
        self.calling(py, |core, out| {
            core.try_enter(request.key.as_ref(), request.cost, request.slot, out)
        })
    }

    fn enter_async<'py>(
        slf: &Bound<'py, Self>,
        request: &Request,
        key: Option<&Bound<'py, PyAny>>,
        timeout: Option<&Bound<'py, PyAny>>,
        result: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let this = slf.get();
        // A wrong timeout is an error whether or not it is needed.
        this.deadline(timeout)?;
        let (decision, at) = this.calling(py, |core, out| {
            core.try_enter_at(request.key.as_ref(), request.cost, request.slot, out)
        });
        if decision.granted {
            let Request { key, cost, slot } = *request;
            let key = key.map(Box::new);
            let spent = Unclaimed { give_back, at, cost, slot, key };
            return ready_or_back(py, result, slf.clone().into_any(), spent);
        }
        if decision.is_never() {
            this.core.count_rejection();
            return Err(this.refusal(py, request, decision));
        }
        let wait = WAIT.import(py, "ferrogate._waiting", "wait_for_permit")?;
        wait.call1((slf, request.cost, key, request.slot, timeout, result))
    }

    fn enter_sync(
        &self,
        py: Python<'_>,
        request: &Request,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let deadline = self.deadline(timeout)?;
        let decision = self.try_enter(py, request);
        if decision.granted {
            return Ok(());
        }
        self.wait_sync(py, request, deadline)
    }

    fn release(&self, py: Python<'_>) {
        // Nothing to release is fine: a fork inside the block has reset the slots.
        self.calling(py, Core::release_slot);
    }

    fn deadline(&self, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Nanos> {
        let Some(timeout) = timeout else { return Ok(NEVER) };
        let timeout = duration_or_zero("timeout", timeout)?;
        Ok(self.core.clock().now().saturating_add(timeout))
    }

    /// The exception for a request that was refused for good.
    #[cold]
    fn refusal(&self, py: Python<'_>, request: &Request, decision: Decision) -> PyErr {
        let limit =
            decision.limit.or_else(|| self.core.binding(request.key.as_ref(), request.cost));
        if decision.reason == Reason::TooLarge {
            let limit = limit.map_or_else(String::new, |limit| limit.to_string());
            let cost = request.cost;
            return PyValueError::new_err(format!(
                "cost: expected at most what \"{limit}\" allows at all, got {cost}"
            ));
        }
        let refuse = || -> PyResult<PyErr> {
            let exceeded = EXCEEDED.import(py, "ferrogate._waiting", "exceeded")?;
            let retry_after = seconds(decision.retry_after);
            let limit = limit.map(|limit: Limit| limit.to_string());
            let reason = decision.reason.as_str();
            let error = exceeded.call1((self.name.as_deref(), limit, retry_after, reason))?;
            Ok(PyErr::from_value(error))
        };
        refuse().unwrap_or_else(|error| error)
    }
}

impl Request {
    /// `with` and `async with`.
    const ENTER: Self = Self { key: None, cost: 1, slot: true };

    #[inline]
    fn new(
        cost: Option<&Bound<'_, PyAny>>,
        key: Option<&Bound<'_, PyAny>>,
        slot: bool,
    ) -> PyResult<Self> {
        let cost = match cost {
            None => 1,
            Some(cost) => count("cost", cost)?,
        };
        let key = match key {
            None => None,
            Some(key) => Some(key_from(key)?),
        };
        Ok(Self { key, cost, slot })
    }
}

/// Seconds as Python sees them; never is infinite.
fn seconds(nanos: Nanos) -> f64 {
    if nanos == NEVER { f64::INFINITY } else { secs_from_nanos(nanos) }
}

/// A whole number from 1 on.
fn count(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<u32> {
    if let Ok(count) = value.extract::<u32>()
        && count > 0
    {
        return Ok(count);
    }
    let expected = format!("{argument}: expected an int from 1 to {}, got ", u32::MAX);
    if value.hasattr(index(value.py()))? {
        return Err(PyValueError::new_err(format!("{expected}{}", value.repr()?)));
    }
    Err(PyTypeError::new_err(format!("{expected}{}", type_name(value))))
}

/// Limiter keys mean the same in every process, so opaque objects are refused.
fn key_from(value: &Bound<'_, PyAny>) -> PyResult<Key> {
    if let Some(key) = short_text(value) {
        return Ok(key);
    }
    with_encoder(false, |encoder| {
        let mut walker = Walker::new(encoder, Opaque::Refuse);
        walker.value(value).map_err(|failure| failure.within(|| "key".to_owned()))?;
        Ok(Key::new(encoder.as_bytes()))
    })
}
