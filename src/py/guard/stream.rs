//! A guarded stream: an async generator whose items come through the guard.
//!
//! The attempt lasts until the stream has ended: one that fails half-way is a failure, one that is
//! left, closed or cancelled says nothing. Only until its first item may it be tried again.

use pyo3::exceptions::{PyRuntimeError, PyStopAsyncIteration, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use pyo3::{PyTraverseError, PyVisit};

use super::attempts::{Attempts, TimeLimit};
use super::inner::Inner;
use super::machine::{At, Machine, Next, Steps};
use super::plan::Plan;
use super::target::Target;
use super::timing;
use crate::core::clock::Nanos;
use crate::core::outcome::Outcome;
use crate::core::sync::Mutex;
use crate::py::awaitable::{Stop, Visit, Visiting, driven};
use crate::py::convert::type_name;
use crate::py::edge::edge;
use crate::py::names;

/// What a stream is made of.
struct Live {
    attempts: Attempts,
    target: Target,
    /// The async iterator, once there is one.
    source: Option<Py<PyAny>>,
    /// An item has come: nothing is tried again.
    flowing: bool,
    /// The iterator is the fallback's, which nobody judges.
    fallen: bool,
    /// The stream has ended; what is asked of it still is the iterator's to answer.
    over: bool,
}

impl Live {
    fn traverse<E>(&self, visit: &Visiting<'_, E>) -> Result<(), E> {
        if let Some(source) = &self.source {
            visit(source)?;
        }
        self.attempts.traverse(visit)?;
        self.target.traverse(visit)
    }
}

enum State {
    Idle(Box<Live>),
    /// A step has it.
    Running,
    /// It goes.
    Gone,
}

/// What calling a guarded async generator function gives.
#[pyclass(frozen, weakref, module = "ferrogate._core")]
pub(crate) struct GuardedStream(Mutex<State>);

impl GuardedStream {
    pub(super) fn new(plan: Plan, target: Target) -> Self {
        let attempts = Attempts::new(plan);
        let live =
            Live { attempts, target, source: None, flowing: false, fallen: false, over: false };
        Self(Mutex::new(State::Idle(Box::new(live))))
    }

    /// Takes what it is made of, for one step; `None`: it has ended.
    fn take(&self) -> PyResult<Option<Box<Live>>> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Running) {
            State::Idle(live) => Ok(Some(live)),
            State::Gone => Ok(None),
            State::Running => {
                Err(PyRuntimeError::new_err("anext(): asynchronous generator is already running"))
            }
        }
    }

    fn put(&self, state: State) {
        *self.0.lock() = state;
    }

    fn step<'py>(slf: &Bound<'py, Self>, ask: Ask) -> PyResult<Bound<'py, PyAny>> {
        let step = StreamStep { stream: slf.clone().unbind(), ask, live: None };
        driven(slf.py(), Box::new(Machine::new(step)))
    }
}

impl Drop for GuardedStream {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut *self.0.lock(), State::Gone);
        let State::Idle(mut live) = state else { return };
        Python::attach(|py| {
            // It may go while an error passes, and that must stay the current one.
            let passing = PyErr::take(py);
            live.attempts.release(py, Outcome::Neutral);
            drop(live);
            if let Some(passing) = passing {
                passing.restore(py);
            }
        });
    }
}

#[pymethods]
impl GuardedStream {
    fn __aiter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __anext__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        edge("GuardedStream.__anext__", || Self::step(slf, Ask::Next))
    }

    /// The next item, with a value for the generator's ``yield``.
    fn asend<'py>(slf: &Bound<'py, Self>, value: Py<PyAny>) -> PyResult<Bound<'py, PyAny>> {
        edge("GuardedStream.asend", || Self::step(slf, Ask::Send(value)))
    }

    /// Raises at the generator's ``yield``.
    #[pyo3(signature = (*error))]
    fn athrow<'py>(
        slf: &Bound<'py, Self>,
        error: Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("GuardedStream.athrow", || {
            if error.is_empty() {
                return Err(PyTypeError::new_err("athrow: expected an exception"));
            }
            Self::step(slf, Ask::Throw(error.unbind()))
        })
    }

    /// Ends the stream and gives back what it holds.
    fn aclose<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        edge("GuardedStream.aclose", || Self::step(slf, Ask::Close))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match &*self.0.lock() {
            State::Idle(live) => live.traverse(&|held| visit.call(held)),
            State::Running | State::Gone => Ok(()),
        }
    }
}

/// What somebody wants of the stream.
enum Ask {
    Next,
    Send(Py<PyAny>),
    Throw(Py<PyTuple>),
    Close,
}

/// One `anext`, `asend`, `athrow` or `aclose`.
struct StreamStep {
    stream: Py<GuardedStream>,
    ask: Ask,
    /// The stream's, while the step runs.
    live: Option<Box<Live>>,
}

impl StreamStep {
    /// It is there from the first step on until the stream's end.
    fn live(&mut self) -> PyResult<&mut Live> {
        self.live.as_deref_mut().ok_or_else(|| PyRuntimeError::new_err("the stream has ended"))
    }

    /// Begins an attempt.
    fn admit(&mut self, py: Python<'_>) -> PyResult<Next> {
        let live = self.live()?;
        if let Some(place) = live.attempts.admit(py, &live.target)? {
            return Next::of(At::Line, place);
        }
        let _within = live.attempts.within();
        match live.attempts.call(py, &live.target).and_then(Inner::of) {
            // An `async def` that returns a stream.
            Ok(Ok(inner)) => Ok(Next::Drive(At::Attempt, inner)),
            Ok(Err(iterable)) => self.opened(&iterable),
            Err(error) => self.broken(py, error),
        }
    }

    /// There is something to iterate over.
    fn opened(&mut self, iterable: &Bound<'_, PyAny>) -> PyResult<Next> {
        let py = iterable.py();
        let Some(aiter) = iterable.get_type().getattr_opt(names::dunder_aiter(py))? else {
            let got = type_name(iterable);
            return Err(PyTypeError::new_err(format!("expected an async iterator, got {got}")));
        };
        let source = aiter.call1((iterable,))?;
        self.live()?.source = Some(source.unbind());
        self.pass_on(py)
    }

    /// Asks the iterator for what was asked of us.
    fn pass_on(&mut self, py: Python<'_>) -> PyResult<Next> {
        let source = self.live()?.source.as_ref().map(|source| source.clone_ref(py));
        let Some(source) = source else { return Err(PyStopAsyncIteration::new_err(())) };
        let source = source.bind(py);
        let asked = match &self.ask {
            Ask::Next => source.call_method0(names::dunder_anext(py)),
            Ask::Send(value) => source.call_method1(names::asend(py), (value,)),
            Ask::Throw(error) => source.call_method1(names::athrow(py), error.clone_ref(py)),
            Ask::Close => match source.getattr_opt(names::aclose(py))? {
                Some(aclose) => aclose.call0(),
                // An iterator that is no generator has nothing to close.
                None => return Ok(self.closed(py)),
            },
        };
        match asked.and_then(Inner::of) {
            Ok(Ok(inner)) => Ok(Next::Drive(At::Item, inner)),
            Ok(Err(value)) => {
                let got = type_name(&value);
                Err(PyTypeError::new_err(format!("__anext__: expected an awaitable, got {got}")))
            }
            Err(error) => self.broken(py, error),
        }
    }

    /// The step has its result, and the stream goes on with the next one.
    fn item(&mut self, item: Py<PyAny>) -> Next {
        if let Some(mut live) = self.live.take() {
            live.flowing = true;
            self.stream.get().put(State::Idle(live));
        }
        Next::Done(item)
    }

    fn closed(&mut self, py: Python<'_>) -> Next {
        self.end(py);
        Next::Done(py.None())
    }

    /// The iterator has raised: its end, or a failure.
    fn broken(&mut self, py: Python<'_>, error: PyErr) -> PyResult<Next> {
        let live = self.live()?;
        if live.fallen || live.over {
            return Err(error);
        }
        if live.source.is_some() && error.is_instance_of::<PyStopAsyncIteration>(py) {
            live.attempts.ended(py, &Ok(py.None()), false)?;
            return Err(error);
        }
        if matches!(self.ask, Ask::Throw(_) | Ask::Close) {
            // The reader's own error says nothing about the other side.
            return Err(error);
        }
        let failed = Err(error);
        let live = self.live()?;
        let may = !live.flowing;
        let Some(pause) = live.attempts.ended(py, &failed, may)? else {
            return failed.map(Next::Done);
        };
        live.source = None;
        if pause == 0 {
            return self.admit(py);
        }
        Next::of(At::Pause, timing::pause(py, live.attempts.parts().clock_object(), pause)?)
    }

    /// The stream's end: what it holds goes back, as far as it has not yet.
    fn end(&mut self, py: Python<'_>) {
        if let Some(mut live) = self.live.take() {
            live.attempts.release(py, Outcome::Neutral);
            live.over = true;
            let arguments = live.target.let_go();
            self.stream.get().put(State::Idle(live));
            drop(arguments);
        }
    }
}

impl Steps for StreamStep {
    fn begin(&mut self, py: Python<'_>) -> PyResult<Next> {
        self.live = self.stream.get().take()?;
        let ask = matches!(self.ask, Ask::Next | Ask::Send(_));
        match self.live.as_deref_mut() {
            Some(live) if live.source.is_some() => self.pass_on(py),
            Some(live) if ask && !live.over => {
                live.attempts.begin();
                self.admit(py)
            }
            // A generator that has not begun takes it, and none of its code runs.
            Some(live) if !ask && !live.over => {
                let iterable = live.attempts.call(py, &live.target)?;
                self.opened(&iterable)
            }
            // It failed before there was anything to iterate over.
            _ if matches!(self.ask, Ask::Close) => Ok(self.closed(py)),
            _ => Err(PyStopAsyncIteration::new_err(())),
        }
    }

    fn ended(&mut self, py: Python<'_>, at: At, result: PyResult<Py<PyAny>>) -> PyResult<Next> {
        match (at, result) {
            (At::Line, Ok(came)) => {
                self.live()?.attempts.arrived(py, came)?;
                self.admit(py)
            }
            (At::Pause, Ok(_)) => self.admit(py),
            (At::Line, Err(error)) => {
                self.live()?.attempts.refused(py, &error);
                Err(error)
            }
            (At::Fallback | At::Attempt | At::Rival, Ok(iterable)) => {
                self.opened(iterable.bind(py))
            }
            (At::Fallback | At::Pause | At::Rival, Err(error)) => Err(error),
            (At::Item, Ok(_)) if matches!(self.ask, Ask::Close) => Ok(self.closed(py)),
            (At::Item, Ok(item)) => {
                let live = self.live()?;
                if !live.flowing {
                    live.attempts.first_token(py).tell(py);
                }
                live.attempts.note_item(item.bind(py));
                Ok(self.item(item))
            }
            (At::Item | At::Attempt, Err(error)) => self.broken(py, error),
        }
    }

    /// Another stream in place of one that has not begun to flow, or the end.
    fn failed(&mut self, py: Python<'_>, error: PyErr) -> PyResult<Next> {
        let asked = matches!(self.ask, Ask::Next | Ask::Send(_));
        let may = |live: &Live| {
            let has_fallback = live.attempts.parts().fallback.is_some();
            has_fallback && !live.flowing && !live.fallen && !live.over
        };
        let answer = match self.live.as_deref_mut() {
            Some(live)
                if asked && may(live) && !error.is_instance_of::<PyStopAsyncIteration>(py) =>
            {
                live.source = None;
                live.fallen = true;
                live.attempts.fall_back(py, error)
            }
            _ => Err(error),
        };
        let next = answer.and_then(|answer| match Inner::of(answer)? {
            Ok(inner) => Ok(Next::Drive(At::Fallback, inner)),
            Err(iterable) => self.opened(&iterable),
        });
        if next.is_err() {
            self.end(py);
        }
        next
    }

    fn limit(&self, at: At) -> Option<(Nanos, TimeLimit)> {
        let live = self.live.as_deref().filter(|live| !live.fallen)?;
        if matches!(self.ask, Ask::Close | Ask::Throw(_)) {
            // Whatever it takes to clean up.
            return None;
        }
        match at {
            // Once it flows only the deadline bounds it: its pace is the reader's matter, too.
            At::Item if live.flowing => {
                live.attempts.left_of_own().map(|left| (left, TimeLimit::Total))
            }
            At::Item | At::Attempt => live.attempts.limit(),
            At::Line | At::Pause | At::Rival | At::Fallback => None,
        }
    }

    fn abandon(&mut self, py: Python<'_>) {
        // In the middle of an item nobody can go on from there.
        self.end(py);
    }

    fn attempts(&self) -> Option<&Attempts> {
        self.live.as_deref().map(|live| &live.attempts)
    }

    fn is_call(&self) -> bool {
        false
    }

    fn function(&self) -> &Py<PyAny> {
        self.live.as_ref().map_or(self.stream.as_any(), |live| live.target.function())
    }

    fn traverse(&self, visit: Visit<'_>) -> Result<(), Stop> {
        visit(self.stream.as_any())?;
        match &self.ask {
            Ask::Send(value) => visit(value)?,
            Ask::Throw(error) => visit(error.as_any())?,
            Ask::Next | Ask::Close => {}
        }
        self.live.as_ref().map_or(Ok(()), |live| live.traverse(visit))
    }
}
