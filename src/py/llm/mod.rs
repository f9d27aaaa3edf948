//! `LLMLimiter`: convert, ask the core, hand over the answer.
//!
//! A granted `reserve` is one native call that returns an awaitable that is ready, with
//! the [`Reservation`](PyReservation); one that goes unawaited takes the
//! reservation with it, and that gives itself back.

mod calls;
mod denial;
mod finding;
mod lines;
mod money;
mod request;
mod reservation;
mod wait;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use pyo3::{IntoPyObjectExt, PyTraverseError, PyVisit};

pub(crate) use self::denial::PyDenial;
use self::denial::amount;
use self::finding::Found;
pub(crate) use self::lines::{Stood, asked, asked_tokens};
pub(crate) use self::request::nano_usd;
use self::request::{LIMITS, ask, change, limit, weights, whole};
pub(crate) use self::reservation::PyReservation;
use crate::core::key::Key;
use crate::core::limiter::Outbox;
use crate::core::limiter::llm::{
    Ask, Change, Dimension, Fairness, Grant, LlmLimiter, Settings, Told,
};
use crate::py::budget::Budget;
use crate::py::convert::{clock, duration_or_zero, globally_disabled};
use crate::py::edge::edge;
use crate::py::limiter::adaptive::Slots;
use crate::py::limiter::count;
use crate::py::waiting::{Waker, Wakes, seconds};

type Core = LlmLimiter<Key, Waker>;
type Out = Outbox<Key, Waker>;
/// What is asked for.
pub(crate) type Asked = Ask<Key>;
/// What was granted; to be settled or released.
pub(crate) type Granted = Grant<Key>;
type Argument<'a, 'py> = Option<&'a Bound<'py, PyAny>>;

/// What is allowed, used, left and owed of a dimension.
type DimensionRow<'py> =
    (&'static str, Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);
/// Granted, rejected, settled, released, open, waiting; slots in use; tenants, models.
type Counts = (u64, u64, u64, u64, u64, u64, u32, usize, usize);

pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<LLMLimiter>()?;
    m.add_class::<PyReservation>()?;
    m.add_class::<PyDenial>()
}

/// The native half of ``ferrogate.LLMLimiter``.
#[pyclass(frozen, subclass, module = "ferrogate._core")]
pub(crate) struct LLMLimiter {
    core: Core,
    name: Option<String>,
    fairness: Fairness,
    wakes: Wakes,
    /// Whose money the calls spend.
    budget: Option<Py<Budget>>,
}

impl LLMLimiter {
    /// Calls the core, then wakes whom it says, with no lock held.
    #[inline]
    fn calling<T>(&self, py: Python<'_>, body: impl FnOnce(&Core, &mut Out) -> T) -> T {
        let mut out = Out::new();
        let answer = body(&self.core, &mut out);
        self.wakes.send(py, out.take_wakes());
        answer
    }
}

#[pymethods]
impl LLMLimiter {
    #[new]
    #[pyo3(signature = (
        name, *, limits, concurrency, adaptive_rate, fairness, weights, max_waiters, max_tenants, max_models,
        estimate_quantile, default_output_tokens, window_margin, budget, clock, enabled
    ))]
    #[allow(clippy::too_many_arguments)] // Python's constructor
    fn new(
        name: Option<String>,
        limits: [Option<Bound<'_, PyAny>>; Dimension::ALL.len()],
        concurrency: Argument<'_, '_>,
        adaptive_rate: bool,
        fairness: &str,
        weights: Argument<'_, '_>,
        max_waiters: &Bound<'_, PyAny>,
        max_tenants: &Bound<'_, PyAny>,
        max_models: &Bound<'_, PyAny>,
        estimate_quantile: f64,
        default_output_tokens: Argument<'_, '_>,
        window_margin: &Bound<'_, PyAny>,
        budget: Option<Py<Budget>>,
        clock: Argument<'_, '_>,
        enabled: bool,
    ) -> PyResult<Self> {
        edge("LLMLimiter", || {
            let mut numbers = [None; Dimension::ALL.len()];
            for (d, given) in limits.iter().enumerate() {
                numbers[d] = given.as_ref().map(|value| limit(d, value)).transpose()?;
            }
            let fairness = Fairness::parse(fairness)?;
            let weights = self::weights(weights)?;
            if !weights.is_empty() && fairness == Fairness::Fifo {
                let message = "weights: expected none with fairness=\"fifo\"; use \"weighted\"";
                return Err(PyValueError::new_err(message));
            }
            let slots = concurrency.map(|slots| Slots::from("concurrency", slots)).transpose()?;
            let usual = Settings::<Key>::default();
            let margin = duration_or_zero("window_margin", window_margin)?;
            let settings = Settings {
                limits: numbers,
                concurrency: slots.and_then(Slots::fixed),
                adaptive: slots.and_then(Slots::adaptive),
                adaptive_rate,
                period: usual.period.saturating_add(margin),
                fairness,
                weights,
                max_waiters: count("max_waiters", max_waiters)? as usize,
                max_tenants: count("max_tenants", max_tenants)? as usize,
                max_models: count("max_models", max_models)? as usize,
                estimate_quantile,
                default_output: default_output_tokens
                    .map(|tokens| whole("default_output_tokens", tokens, 0))
                    .transpose()?,
                priced: budget.is_some(),
                enabled: enabled && !globally_disabled(),
            };
            let core = Core::new(settings, self::clock(clock)?)?;
            Ok(Self { core, name, fairness, wakes: Wakes::default(), budget })
        })
    }

    /// Reserves all of it or nothing, now: a :class:`Reservation`, or a :class:`Denial`, which is
    /// false. Never waits, and never overtakes who does.
    ///
    /// Args:
    ///     input_tokens: of the prompt; 0 if not given.
    ///     output_tokens: of the answer; not given, as many as the model's answers stay within
    ///         as a rule (``estimate_quantile``).
    ///     max_output_tokens: the most that the answer can take: bounds that estimate, and is
    ///         reserved while the model is unknown.
    ///     cost_usd: dollars; not given, as the model's calls cost as a rule, 0 at first.
    ///     model: whose estimates to use and to learn from.
    ///     tenant: who asks, for ``fairness="weighted"``.
    ///
    /// Raises:
    ///     ValueError, TypeError: a wrong argument.
    #[pyo3(signature = (
        *, input_tokens = None, output_tokens = None, max_output_tokens = None, cost_usd = None,
        model = None, tenant = None
    ))]
    #[allow(clippy::too_many_arguments)] // Python's keywords
    fn try_reserve<'py>(
        slf: &Bound<'py, Self>,
        input_tokens: Argument<'_, 'py>,
        output_tokens: Argument<'_, 'py>,
        max_output_tokens: Argument<'_, 'py>,
        cost_usd: Argument<'_, 'py>,
        model: Argument<'_, 'py>,
        tenant: Argument<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("LLMLimiter.try_reserve", || {
            let py = slf.py();
            let ask = ask(input_tokens, output_tokens, max_output_tokens, cost_usd, model, tenant)?;
            let granted = match slf.get().calling(py, |core, out| core.try_reserve(&ask, out)) {
                Ok(granted) => granted,
                Err(verdict) => return PyDenial::from(verdict).into_bound_py_any(py),
            };
            match slf.get().with_money(py, granted, &ask, tenant)? {
                Ok((granted, money)) => {
                    PyReservation::new(slf.clone().unbind(), granted, money).into_bound_py_any(py)
                }
                Err(refused) => PyDenial::from(&refused).into_bound_py_any(py),
            }
        })
    }

    /// Waits its turn for a :class:`Reservation`; the arguments are those of ``try_reserve``.
    ///
    /// Its place in the line is taken by the call. What is granted and never awaited, or whose
    /// wait is cancelled, is given back.
    ///
    /// Args:
    ///     timeout: seconds (or a timedelta) to wait at most; ``None``: without end. A wait that
    ///         is sure to take longer (``eta``) is refused at once.
    ///
    /// Raises:
    ///     RateLimitExceeded: not granted within ``timeout``, or a table is full.
    ///     ValueError: more than can ever be granted, or a wrong argument.
    ///     TypeError: a wrong argument.
    #[pyo3(signature = (
        *, input_tokens = None, output_tokens = None, max_output_tokens = None, cost_usd = None,
        model = None, tenant = None, timeout = None
    ))]
    #[allow(clippy::too_many_arguments)] // Python's keywords
    fn reserve<'py>(
        slf: &Bound<'py, Self>,
        input_tokens: Argument<'_, 'py>,
        output_tokens: Argument<'_, 'py>,
        max_output_tokens: Argument<'_, 'py>,
        cost_usd: Argument<'_, 'py>,
        model: Argument<'_, 'py>,
        tenant: Argument<'_, 'py>,
        timeout: Argument<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("LLMLimiter.reserve", || {
            let ask = ask(input_tokens, output_tokens, max_output_tokens, cost_usd, model, tenant)?;
            // A wrong timeout is an error whether or not it is needed.
            let deadline = slf.get().deadline(timeout)?;
            Self::reserve_async(slf, &ask, tenant, deadline)
        })
    }

    /// ``reserve`` for threads: blocks, and Ctrl-C ends it.
    #[pyo3(signature = (
        *, input_tokens = None, output_tokens = None, max_output_tokens = None, cost_usd = None,
        model = None, tenant = None, timeout = None
    ))]
    #[allow(clippy::too_many_arguments)] // Python's keywords
    fn reserve_sync<'py>(
        slf: &Bound<'py, Self>,
        input_tokens: Argument<'_, 'py>,
        output_tokens: Argument<'_, 'py>,
        max_output_tokens: Argument<'_, 'py>,
        cost_usd: Argument<'_, 'py>,
        model: Argument<'_, 'py>,
        tenant: Argument<'_, 'py>,
        timeout: Argument<'_, 'py>,
    ) -> PyResult<PyReservation> {
        edge("LLMLimiter.reserve_sync", || {
            let py = slf.py();
            let this = slf.get();
            let ask = ask(input_tokens, output_tokens, max_output_tokens, cost_usd, model, tenant)?;
            let deadline = this.deadline(timeout)?;
            match this.enter(py, &ask) {
                Ok(granted) => Self::reservation(slf, granted, &ask, tenant),
                Err(never) if never.is_never() => {
                    this.core.count_rejection();
                    Err(this.refusal(py, &never))
                }
                Err(_) => {
                    let (ask, money) = this.money_to_wait(py, &ask, tenant)?;
                    let granted = this.wait_sync(py, &ask, deadline)?;
                    Ok(PyReservation::new(slf.clone().unbind(), granted, money))
                }
            }
        })
    }

    /// A lower bound of the seconds until a newcomer would be granted this; infinite if never.
    ///
    /// Counted are what was settled, the requests and prompts of open reservations, and those of
    /// all who wait before it. The output and money of open reservations are not: they may come
    /// back at any time. Only a release, or somebody who leaves the line, makes it shorter.
    #[pyo3(signature = (
        *, input_tokens = None, output_tokens = None, max_output_tokens = None, cost_usd = None,
        model = None, tenant = None
    ))]
    fn eta(
        &self,
        input_tokens: Argument<'_, '_>,
        output_tokens: Argument<'_, '_>,
        max_output_tokens: Argument<'_, '_>,
        cost_usd: Argument<'_, '_>,
        model: Argument<'_, '_>,
        tenant: Argument<'_, '_>,
    ) -> PyResult<f64> {
        edge("LLMLimiter.eta", || {
            let ask = ask(input_tokens, output_tokens, max_output_tokens, cost_usd, model, tenant)?;
            Ok(seconds(self.core.eta(&ask)))
        })
    }

    /// Grants nothing for ``duration`` seconds (or a timedelta): the provider asked for patience.
    ///
    /// Once for all callers. A pause under way that ends later stays.
    fn pause(&self, py: Python<'_>, duration: &Bound<'_, PyAny>) -> PyResult<()> {
        edge("LLMLimiter.pause", || {
            let length = duration_or_zero("duration", duration)?;
            self.calling(py, |core, out| core.pause(length, out));
            Ok(())
        })
    }

    /// Ends a pause.
    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        edge("LLMLimiter.resume", || {
            self.calling(py, Core::resume);
            Ok(())
        })
    }

    /// Keeps to what the provider says of one dimension; it never allows more than the settings.
    ///
    /// Args:
    ///     dimension: ``"requests"``, ``"input_tokens"``, ``"output_tokens"``, ``"tokens"`` or
    ///         ``"usd"``.
    ///     limit: what it allows per minute; 0 is taken for garbage.
    ///     remaining: what it would still allow.
    ///     reset: seconds (or a timedelta) until it allows all again; a minute at most.
    ///     reservation: the one that its answer belongs to: ``remaining`` was true when that
    ///         request arrived. Without it, it is taken as of now.
    ///
    /// Raises:
    ///     ValueError, TypeError: a wrong argument.
    #[pyo3(signature = (dimension, *, limit = None, remaining = None, reset = None, reservation = None))]
    fn learn(
        &self,
        py: Python<'_>,
        dimension: &Bound<'_, PyString>,
        limit: Argument<'_, '_>,
        remaining: Argument<'_, '_>,
        reset: Argument<'_, '_>,
        reservation: Option<&Bound<'_, PyReservation>>,
    ) -> PyResult<()> {
        edge("LLMLimiter.learn", || {
            let known = dimension.to_str().ok().and_then(Dimension::named);
            let Some(dimension) = known else {
                let names = Dimension::ALL.map(Dimension::name).join(", ");
                let shown = dimension.repr()?;
                let message = format!("dimension: expected one of {names}, got {shown}");
                return Err(PyValueError::new_err(message));
            };
            let units = |argument: &'static str, value: Argument<'_, '_>| match dimension {
                Dimension::Usd => value.map(|value| nano_usd(argument, value)).transpose(),
                _ => value.map(|value| whole(argument, value, 0)).transpose(),
            };
            let told = Told {
                limit: units("limit", limit)?,
                remaining: units("remaining", remaining)?,
                reset: reset.map(|reset| duration_or_zero("reset", reset)).transpose()?,
            };
            let answered = reservation.map(|reservation| reservation.get().mark());
            self.calling(py, |core, out| core.learn(dimension, &told, answered, out));
            Ok(())
        })
    }

    /// The provider has refused a request, for its rate or only for the load; ``reservation``:
    /// which one, if known.
    fn _refused(
        &self,
        py: Python<'_>,
        for_rate: bool,
        reservation: Option<&Bound<'_, PyReservation>>,
    ) -> PyResult<()> {
        edge("LLMLimiter._refused", || {
            let answered = reservation.map(|reservation| reservation.get().mark());
            self.calling(py, |core, out| core.refused(answered, for_rate, out));
            Ok(())
        })
    }

    /// What is known of limits that find themselves: on concurrency, and `(share, cuts, told)` of
    /// those per minute.
    fn _adaptive_stats<'py>(&self, py: Python<'py>) -> PyResult<Found<'py>> {
        edge("LLMLimiter._adaptive_stats", || self.found(py))
    }

    /// ``update`` with ``...`` for what stays.
    fn _update(
        &self,
        py: Python<'_>,
        limits: [Bound<'_, PyAny>; Dimension::ALL.len()],
        concurrency: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        edge("LLMLimiter._update", || {
            let mut changes = [Change::Keep; Dimension::ALL.len()];
            for (d, given) in limits.iter().enumerate() {
                changes[d] = change(given, |value| limit(d, value))?;
            }
            let concurrency = change(concurrency, |slots| Slots::from("concurrency", slots))?;
            self.reconfigure(py, changes, concurrency)?;
            Ok(())
        })
    }

    /// After a ``ManualClock`` moved.
    fn _clock_moved(&self, py: Python<'_>) -> PyResult<()> {
        edge("LLMLimiter._clock_moved", || {
            self.calling(py, Core::clock_moved);
            Ok(())
        })
    }

    /// For ``ferrogate.testing.reset_all``: windows and estimates are as new; the counters go on.
    fn _reset(&self, py: Python<'_>) -> PyResult<()> {
        edge("LLMLimiter._reset", || {
            self.calling(py, Core::reset);
            Ok(())
        })
    }

    /// In the child of a fork.
    fn _after_fork(&self, py: Python<'_>) -> PyResult<()> {
        edge("LLMLimiter._after_fork", || {
            self.calling(py, Core::after_fork);
            Ok(())
        })
    }

    /// Counts; seconds of the pause; `(dimension, limit, used, remaining, debt)` of each limit.
    fn _stats<'py>(&self, py: Python<'py>) -> PyResult<(Counts, f64, Vec<DimensionRow<'py>>)> {
        edge("LLMLimiter._stats", || {
            let stats = self.core.stats();
            let rows = stats.dimensions.iter().map(|known| {
                let of = |units: u128| amount(py, known.dimension, units);
                let [limit, left] = [known.limit, known.left].map(u128::from);
                Ok((
                    known.dimension.name(),
                    of(limit)?,
                    of(known.used)?,
                    of(left)?,
                    of(known.debt)?,
                ))
            });
            let rows = rows.collect::<PyResult<_>>()?;
            let counts = (
                stats.granted,
                stats.rejected,
                stats.settled,
                stats.released,
                stats.open,
                stats.waiting,
                stats.concurrent,
                stats.tenants,
                stats.models,
            );
            Ok((counts, seconds(stats.paused), rows))
        })
    }

    /// The configured limits by the names of their arguments; ``None`` where there is none.
    #[getter]
    fn limits<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        edge("LLMLimiter.limits", || {
            let limits = PyDict::new(py);
            for (dimension, limit) in Dimension::ALL.into_iter().zip(self.core.limits()) {
                let limit = limit.map(|limit| amount(py, dimension, limit.into())).transpose()?;
                limits.set_item(LIMITS[dimension as usize], limit)?;
            }
            Ok(limits)
        })
    }

    /// Whose money the calls spend, or ``None``.
    #[getter]
    fn budget(&self, py: Python<'_>) -> Option<Py<Budget>> {
        self.budget.as_ref().map(|budget| budget.clone_ref(py))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.budget)
    }

    #[getter]
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    #[getter]
    fn concurrency(&self) -> Option<u32> {
        self.core.concurrency()
    }

    #[getter]
    fn fairness(&self) -> &'static str {
        self.fairness.as_str()
    }

    #[getter]
    fn enabled(&self) -> bool {
        self.core.enabled()
    }
}
