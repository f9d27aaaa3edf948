//! Hedging: a second call beside one that takes long, and the first that succeeds is the answer.
//!
//! J. Dean and L. A. Barroso, "The Tail at Scale", CACM 2013. The first call is driven in place;
//! the second has a task of its own, and when it wins it cancels the first as a time limit would.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use pyo3::{PyTraverseError, PyVisit};

use super::attempts::Attempts;
use super::class::Guard;
use super::plan::Plan;
use super::target::Target;
use super::timing::Handle;
use super::watch::Alarm;
use crate::core::clock::{Clock, Nanos};
use crate::core::outcome::Outcome;
use crate::core::quantile::{PerMille, Quantile};
use crate::core::sync::Mutex;
use crate::py::awaitable::{Stop, Visit};
use crate::py::convert::optional_duration;
use crate::py::edge::edge;
use crate::py::names;
use crate::py::retry::PyRetryBudget;

const NANOS_PER_MICRO: Nanos = 1_000;

/// When a second call is made, and of what; the native half of ``ferrogate.Hedge``.
#[pyclass(frozen, subclass, module = "ferrogate._core")]
pub(crate) struct Hedge {
    /// Another callable, with the same arguments.
    to: Option<Py<PyAny>>,
    /// Fixed; `None`: the quantile.
    delay: Option<Nanos>,
    /// Of what successful calls take, in microseconds.
    latency: Mutex<Quantile>,
    budget: Py<PyRetryBudget>,
    begun: AtomicU64,
    won: AtomicU64,
}

#[pymethods]
impl Hedge {
    #[new]
    fn new(
        to: Option<Py<PyAny>>,
        delay: Option<&Bound<'_, PyAny>>,
        quantile: f64,
        budget: Py<PyRetryBudget>,
    ) -> PyResult<Self> {
        edge("Hedge", || {
            Ok(Self {
                to,
                delay: optional_duration("delay", delay)?,
                latency: Mutex::new(Quantile::new(PerMille((quantile * 1e3).round() as u32))),
                budget,
                begun: AtomicU64::new(0),
                won: AtomicU64::new(0),
            })
        })
    }

    /// `(hedges, wins, delay in seconds or None)`
    fn _stats(&self) -> PyResult<(u64, u64, Option<f64>)> {
        edge("Hedge._stats", || {
            let delay = self.after().map(crate::core::clock::secs_from_nanos);
            Ok((self.begun.load(Ordering::Relaxed), self.won.load(Ordering::Relaxed), delay))
        })
    }

    #[getter]
    fn budget(&self, py: Python<'_>) -> Py<PyRetryBudget> {
        self.budget.clone_ref(py)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.to)?;
        visit.call(&self.budget)
    }
}

impl Hedge {
    /// How long the first call is waited for; `None`: nobody knows yet.
    fn after(&self) -> Option<Nanos> {
        self.delay.or_else(|| Some(self.latency.lock().get()?.saturating_mul(NANOS_PER_MICRO)))
    }

    /// A call has succeeded, or was beaten, after so long.
    pub(super) fn observe(&self, took: Nanos) {
        if self.delay.is_none() {
            self.latency.lock().observe(took / NANOS_PER_MICRO);
        }
    }

    /// The second call's answer was the one.
    pub(super) fn count_win(&self) {
        self.won.fetch_add(1, Ordering::Relaxed);
    }

    /// A call begins.
    pub(super) fn deposit(&self) {
        self.budget.get().core().deposit();
    }
}

/// The second call, from the moment that the first one waits.
#[pyclass(frozen, name = "_Rival", module = "ferrogate._core")]
pub(crate) struct Rival {
    guard: Py<Guard>,
    target: Target,
    /// Where the first is under way, if the second is to be made at another target.
    beside: Option<usize>,
    event_loop: Py<PyAny>,
    alarm: Alarm,
    /// What it may cost, in millionths of a USD.
    cost: Option<u64>,
    task: Mutex<Option<Py<PyAny>>>,
    won: AtomicBool,
    /// The first has ended.
    over: AtomicBool,
}

#[pymethods]
impl Rival {
    /// Without an argument: the first call has taken long. With the task: the second has ended.
    #[pyo3(signature = (*task))]
    fn __call__(slf: &Bound<'_, Self>, task: &Bound<'_, PyTuple>) -> PyResult<()> {
        edge("_Rival.__call__", || match task.get_item(0) {
            Err(_) => Self::begin(slf),
            Ok(task) => slf.get().ended(&task),
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.guard)?;
        visit.call(&self.event_loop)?;
        visit.call(self.alarm.task())?;
        visit.call(&*self.task.lock())?;
        self.target.traverse(&|held| visit.call(held))
    }
}

impl Rival {
    fn begin(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let Some(hedge) = this.guard.get().hedge() else { return Ok(()) };
        if this.over.load(Ordering::Relaxed)
            || !hedge.get().budget.get().core().try_withdraw(this.cost)
        {
            return Ok(());
        }
        hedge.get().begun.fetch_add(1, Ordering::Relaxed);
        let plan = Plan::Rival(this.guard.clone_ref(py), this.beside);
        let target = this.target.clone_ref(py, hedge.get().to.as_ref());
        let coroutine = super::call(py, plan, target)?;
        let task = this.event_loop.bind(py).call_method1(names::create_task(py), (coroutine,))?;
        let before = this.task.lock().replace(task.clone().unbind());
        drop(before);
        task.call_method1(names::add_done_callback(py), (slf,)).map(drop)
    }

    /// The second call has ended: its success ends the first.
    fn ended(&self, task: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = task.py();
        if task.call_method0(names::cancelled(py))?.is_truthy()? {
            return Ok(());
        }
        // Asked for in any case: an exception that nobody asks for is logged.
        let failed = !task.call_method0(names::exception(py))?.is_none();
        if failed || self.over.load(Ordering::Relaxed) {
            return Ok(());
        }
        let result = Ok(task.call_method0(names::result(py))?.unbind());
        let judge = Attempts::new(Plan::Rival(self.guard.clone_ref(py), None));
        if judge.classify(py, &result) != Outcome::Success {
            return Ok(());
        }
        self.won.store(true, Ordering::Relaxed);
        self.alarm.ring(py)
    }
}

/// A rival that stands by.
pub(super) struct Standby {
    rival: Py<Rival>,
    handle: Handle,
    since: Nanos,
}

impl Standby {
    /// Has a second call made in a while; `None` if there is no telling when, or no task.
    pub(super) fn set(
        py: Python<'_>,
        guard: &Py<Guard>,
        target: &Target,
        since: Nanos,
        cost: Option<u64>,
        at: Option<usize>,
    ) -> PyResult<Option<Self>> {
        let this = guard.get();
        let Some(hedge) = this.hedge() else { return Ok(None) };
        let Some(after) = hedge.get().after() else { return Ok(None) };
        let Some((alarm, event_loop)) = Alarm::of_this_task(py)? else { return Ok(None) };
        let waited = this.clock.now().saturating_sub(since);
        let rival = Rival {
            guard: guard.clone_ref(py),
            target: target.clone_ref(py, None),
            beside: at.filter(|_| hedge.get().to.is_none()),
            event_loop: event_loop.clone().unbind(),
            alarm,
            cost,
            task: Mutex::new(None),
            won: AtomicBool::new(false),
            over: AtomicBool::new(false),
        };
        let rival = Bound::new(py, rival)?;
        let clock = this.clock_object.as_ref();
        let handle = Handle::set(&event_loop, clock, after.saturating_sub(waited), rival.as_any())?;
        Ok(Some(Self { rival: rival.unbind(), handle, since }))
    }

    /// How long the first call has been under way.
    pub(super) fn took(&self, clock: &Clock) -> Nanos {
        clock.now().saturating_sub(self.since)
    }

    /// The first call has ended; what became of the second.
    pub(super) fn end(self, py: Python<'_>) -> PyResult<Second> {
        let rival = self.rival.get();
        rival.over.store(true, Ordering::Relaxed);
        self.handle.cancel(py)?;
        let task = rival.task.lock().take();
        let Some(task) = task else { return Ok(Second::None) };
        if rival.won.load(Ordering::Relaxed) {
            return Ok(Second::Won(task, rival.alarm.hush(py)?));
        }
        Ok(Second::Running(task))
    }

    pub(super) fn traverse(&self, visit: Visit<'_>) -> Result<(), Stop> {
        visit(self.rival.as_any())?;
        visit(self.handle.object())
    }
}

/// What became of the second call.
pub(super) enum Second {
    /// It was not made.
    None,
    /// It is under way, or has failed.
    Running(Py<PyAny>),
    /// It succeeded; whether the first was cancelled for that alone.
    Won(Py<PyAny>, bool),
}
