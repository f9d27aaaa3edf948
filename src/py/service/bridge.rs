//! Brings answers home to an event loop: a whole batch per wake-up.
//!
//! A loop that has asked for something watches the eventfd of its [`Mailbox`].
//! The bridge itself is the callback, and only the loop refers to it: when the
//! loop is closed, the bridge goes with everything that waited.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyWeakrefMethods, PyWeakrefReference};

use super::finish::Finish;
use super::lease::{Hold, Lease};
use crate::core::sync::Mutex;
use crate::py::edge::edge;
use crate::runtime::generation;
use crate::runtime::mailbox::{Mailbox, Ticket};
use crate::runtime::service::Answer;
use crate::runtime::watch::Watch;

/// Every so many loops, those that are gone are forgotten.
const SWEEP: usize = 64;

/// Told again after a signal got in between.
const TRIES: usize = 4;

/// What a wake-up takes, to be got before anybody waits.
struct Asyncio {
    running_loop: Py<PyAny>,
    reply: Py<PyAny>,
    create_future: Py<PyString>,
    add_reader: Py<PyString>,
    done: Py<PyString>,
    set_result: Py<PyString>,
    set_exception: Py<PyString>,
}

impl Asyncio {
    fn get(py: Python<'_>) -> PyResult<&'static Self> {
        static KNOWN: PyOnceLock<Asyncio> = PyOnceLock::new();
        let name = |name: &str| PyString::intern(py, name).unbind();
        KNOWN.get_or_try_init(py, || {
            Ok(Self {
                running_loop: py.import("asyncio")?.getattr("_get_running_loop")?.unbind(),
                reply: py.import("ferrogate._replies")?.getattr("reply")?.unbind(),
                create_future: name("create_future"),
                add_reader: name("add_reader"),
                done: name("done"),
                set_result: name("set_result"),
                set_exception: name("set_exception"),
            })
        })
    }
}

/// Finishes what may only be begun once, before a fork comes in between.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    Asyncio::get(py).map(drop)
}

struct Waiting {
    future: Py<PyAny>,
    finish: Finish,
}

#[derive(Default)]
struct Pending {
    next: Ticket,
    waiting: HashMap<Ticket, Waiting>,
}

/// The callback by which an event loop fetches its answers.
#[pyclass(frozen, weakref, module = "ferrogate._core")]
pub(crate) struct Bridge {
    mailbox: Arc<Mailbox<Answer>>,
    pending: Mutex<Pending>,
    /// Leases in the hands of this loop's tasks: it may be closed over a load, whose task is then
    /// only found by the collector, and nobody else would load in the meantime.
    leases: Mutex<Vec<Weak<Hold>>>,
    generation: u64,
}

impl Bridge {
    /// Ends one wait; the error is a signal that came in between.
    fn settle(&self, py: Python<'_>, one: Waiting, answer: Answer) -> PyResult<()> {
        let asyncio = Asyncio::get(py)?;
        let future = one.future.bind(py);
        let is_done =
            || future.call_method0(asyncio.done.bind(py)).and_then(|done| done.is_truthy());
        let mut signal = Ok(());
        // A loop's own futures may be written in Python, where a signal comes in between.
        for _ in 0..TRIES {
            match is_done() {
                Ok(true) => return signal,
                Ok(false) => break,
                Err(error) => signal = Err(error),
            }
        }
        let leased = matches!(answer, Answer::Leased(_));
        let (how, what) = match one.finish.finish(py, answer) {
            Ok(value) => {
                if leased && let Ok(lease) = value.bind(py).get_item(1) {
                    lease.cast::<Lease>().map(|lease| self.watch_over(lease.get().hold())).ok();
                }
                (&asyncio.set_result, value)
            }
            Err(error) => (&asyncio.set_exception, error.into_value(py).into_any()),
        };
        for _ in 0..TRIES {
            match future.call_method1(how.bind(py), (&what,)) {
                Err(error) if !error.is_instance_of::<PyException>(py) => {
                    signal = Err(error);
                    if matches!(is_done(), Ok(true)) {
                        break;
                    }
                }
                _ => break,
            }
        }
        signal
    }

    fn watch_over(&self, lease: Weak<Hold>) {
        let mut leases = self.leases.lock();
        if leases.len().is_power_of_two() {
            leases.retain(|hold| hold.strong_count() > 0);
        }
        leases.push(lease);
    }
}

impl Drop for Bridge {
    /// With its loop.
    fn drop(&mut self) {
        for hold in std::mem::take(self.leases.get_mut()).iter().filter_map(Weak::upgrade) {
            let granted = hold.lock().take();
            drop(granted);
        }
    }
}

/// The bridges by the addresses of their loops. A bridge that lives has its loop alive.
static BRIDGES: Mutex<Vec<(usize, u64, Py<PyWeakrefReference>)>> = Mutex::new(Vec::new());

/// The bridge of `event_loop`, which is the running one.
fn bridge_of<'py>(event_loop: &Bound<'py, PyAny>) -> PyResult<Bound<'py, Bridge>> {
    let py = event_loop.py();
    let address = event_loop.as_ptr() as usize;
    let now = generation();
    let known = {
        let bridges = BRIDGES.lock();
        let found = bridges.iter().find(|(of, born, _)| (*of, *born) == (address, now));
        found.map(|(_, _, bridge)| bridge.clone_ref(py))
    };
    if let Some(known) = known
        && let Some(bridge) = known.bind(py).upgrade()
    {
        return Ok(bridge.cast_into::<Bridge>()?);
    }
    let mailbox = Mailbox::new()
        .map_err(|error| PyRuntimeError::new_err(format!("cannot wake the event loop: {error}")))?;
    let descriptor = mailbox.watch().descriptor();
    let mailbox = Arc::new(mailbox);
    let (pending, leases) = (Mutex::default(), Mutex::default());
    let bridge = Bridge { mailbox, pending, leases, generation: now };
    let bridge = Bound::new(py, bridge)?;
    let weak = PyWeakrefReference::new(&bridge)?.unbind();
    let add_reader = Asyncio::get(py)?.add_reader.bind(py);
    event_loop.call_method1(add_reader, (descriptor, &bridge))?;
    let stale = {
        let mut bridges = BRIDGES.lock();
        let all = std::mem::take(&mut *bridges);
        let sweep = all.len() % SWEEP == SWEEP - 1;
        let (keep, stale): (Vec<_>, Vec<_>) = all.into_iter().partition(|(of, born, bridge)| {
            *of != address && *born == now && !(sweep && bridge.bind(py).upgrade().is_none())
        });
        *bridges = keep;
        bridges.push((address, now, weak));
        stale
    };
    drop(stale);
    Ok(bridge)
}

/// What the event loop that runs in this thread watches; `None` without one.
pub(crate) fn watch_here(py: Python<'_>) -> PyResult<Option<Arc<Watch>>> {
    let event_loop = Asyncio::get(py)?.running_loop.bind(py).call0()?;
    if event_loop.is_none() {
        return Ok(None);
    }
    Ok(Some(Arc::clone(bridge_of(&event_loop)?.get().mailbox.watch())))
}

/// Whether an event loop runs in this thread.
pub(super) fn has_loop(py: Python<'_>) -> PyResult<bool> {
    Ok(!Asyncio::get(py)?.running_loop.bind(py).call0()?.is_none())
}

/// An awaitable of what `ask` brings. `ask` gets where the answer goes, and what the loop
/// watches; `None` without a running loop.
pub(super) fn ask(
    py: Python<'_>,
    finish: Finish,
    ask: impl FnOnce(Box<dyn FnOnce(Answer) + Send>, &Arc<Watch>),
) -> PyResult<Option<Bound<'_, PyAny>>> {
    let asyncio = Asyncio::get(py)?;
    let event_loop = asyncio.running_loop.bind(py).call0()?;
    if event_loop.is_none() {
        return Ok(None);
    }
    let bridge = bridge_of(&event_loop)?;
    let future = event_loop.call_method0(asyncio.create_future.bind(py))?;
    let reply = asyncio.reply.bind(py).call1((&future,))?;
    let bridge = bridge.get();
    let ticket = {
        let mut pending = bridge.pending.lock();
        let ticket = pending.next;
        pending.next += 1;
        pending.waiting.insert(ticket, Waiting { future: future.unbind(), finish });
        ticket
    };
    let mailbox = Arc::clone(&bridge.mailbox);
    ask(Box::new(move |answer| mailbox.post(ticket, answer)), bridge.mailbox.watch());
    Ok(Some(reply))
}

#[pymethods]
impl Bridge {
    /// Called by the loop: settles all that has been answered.
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        edge("Bridge.__call__", || {
            if self.generation != generation() {
                // A loop that was forked while it ran; its eventfd is the parent's.
                return Ok(());
            }
            self.mailbox.watch().look();
            let letters = self.mailbox.take();
            let mut settled = Vec::with_capacity(letters.len());
            {
                let mut pending = self.pending.lock();
                for (ticket, answer) in letters {
                    settled.extend(pending.waiting.remove(&ticket).map(|one| (one, answer)));
                }
            }
            let mut signal = Ok(());
            for (one, answer) in settled {
                signal = signal.and(self.settle(py, one, answer));
            }
            signal
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let pending = self.pending.lock();
        for waiting in pending.waiting.values() {
            visit.call(&waiting.future)?;
            waiting.finish.traverse(&visit)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let pending = std::mem::take(&mut self.pending.lock().waiting);
        drop(pending);
    }
}
