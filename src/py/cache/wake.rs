//! Ends the wait of an asyncio future from any thread.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyString;

use crate::core::random::Random;
use crate::py::edge::edge;

/// How often a waiter is told again after a signal got in between.
const TRIES: usize = 4;

/// What waking a future takes.
pub(super) struct Asyncio {
    running_loop: Py<PyAny>,
    settle: Py<PyAny>,
    call: Py<PyString>,
}

impl Asyncio {
    /// To be got before anybody waits, so that waking them imports nothing.
    pub(super) fn get(py: Python<'_>) -> PyResult<&'static Self> {
        static KNOWN: PyOnceLock<Asyncio> = PyOnceLock::new();
        KNOWN.get_or_try_init(py, || {
            Ok(Self {
                running_loop: py.import("asyncio")?.getattr("_get_running_loop")?.unbind(),
                settle: wrap_pyfunction!(settle, py)?.into_any().unbind(),
                call: PyString::intern(py, "call_soon_threadsafe").unbind(),
            })
        })
    }

    /// Has `future` end its wait, in the thread of its loop; a loop that is closed
    /// already is none of our business, for nobody waits there any more.
    ///
    /// # Errors
    /// The signal that came meanwhile; the future is woken all the same.
    pub(super) fn wake(
        &self,
        event_loop: &Bound<'_, PyAny>,
        future: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let mut signal = Ok(());
        for _ in 0..TRIES {
            match self.tell(event_loop, future) {
                Err(error) if !error.is_instance_of::<PyException>(future.py()) => {
                    signal = Err(error);
                }
                _ => break,
            }
        }
        signal
    }

    fn tell(&self, event_loop: &Bound<'_, PyAny>, future: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = future.py();
        if self.running_loop.bind(py).call0()?.is(event_loop) {
            return settle_now(future);
        }
        event_loop.call_method1(self.call.bind(py), (&self.settle, future)).map(drop)
    }
}

/// Called by the loop of ``future``; it may have been cancelled or settled by then.
#[pyfunction]
#[pyo3(name = "_settle")]
fn settle(future: &Bound<'_, PyAny>) -> PyResult<()> {
    edge("_settle", || settle_now(future))
}

fn settle_now(future: &Bound<'_, PyAny>) -> PyResult<()> {
    if !future.call_method0("done")?.is_truthy()? {
        future.call_method1("set_result", (future.py().None(),))?;
    }
    Ok(())
}

/// Finishes what may only be begun once, before a fork comes in between.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    let _ = Random::shared();
    Asyncio::get(py).map(drop)
}
