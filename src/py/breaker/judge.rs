//! How a call ended, by what it raised.

use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};

use super::CircuitBreaker;
use crate::core::outcome::Outcome;
use crate::py::convert::type_name;
use crate::py::names;

/// Our own denials, which say nothing about the other side.
static DENIALS: PyOnceLock<Py<PyTuple>> = PyOnceLock::new();

const TOO_MANY_REQUESTS: u16 = 429;

fn denials(py: Python<'_>) -> PyResult<&Bound<'_, PyTuple>> {
    let denials = DENIALS.get_or_try_init(py, || {
        let exceptions = py.import("ferrogate.exceptions")?;
        let denials = (
            exceptions.getattr("RateLimitExceeded")?,
            exceptions.getattr("CircuitBreakerOpenError")?,
        );
        Ok::<_, PyErr>(denials.into_pyobject(py)?.unbind())
    })?;
    Ok(denials.bind(py))
}

pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    denials(py).map(drop)
}

impl CircuitBreaker {
    /// How a call ended that raised `error`, as the breaker's classifier says, or by default.
    pub(crate) fn outcome_of(&self, error: &Bound<'_, PyAny>) -> Outcome {
        // What ends a thread or a task is nobody's fault, and no classifier's business.
        if !error.is_instance_of::<PyException>() {
            return Outcome::Neutral;
        }
        if self.callbacks.classifies
            && let Some(classify) = self.callbacks.classifier(error.py())
        {
            match classify.call1((error,)).and_then(|said| said_outcome(&said)) {
                Ok(Some(outcome)) => return outcome,
                Ok(None) => {}
                Err(failed) => self.callback_failed(&classify, failed),
            }
        }
        outcome_of(error)
    }
}

/// An `Outcome`, its name, or `None` for the default.
fn said_outcome(said: &Bound<'_, PyAny>) -> PyResult<Option<Outcome>> {
    if said.is_none() {
        return Ok(None);
    }
    let named = said.cast::<PyString>().ok().and_then(|name| name.to_str().ok());
    named.and_then(Outcome::named).map(Some).ok_or_else(|| {
        let got = said.repr().map_or_else(|_| type_name(said), |repr| repr.to_string());
        PyTypeError::new_err(format!("classify: expected an Outcome or None, got {got}"))
    })
}

/// The default: our own denials are neutral, HTTP 429 is throttled, the rest is a failure.
fn outcome_of(error: &Bound<'_, PyAny>) -> Outcome {
    let py = error.py();
    if denials(py).and_then(|denials| error.is_instance(denials)).unwrap_or(false) {
        return Outcome::Neutral;
    }
    let is_429 = |of: &Bound<'_, PyAny>, name: &Bound<'_, PyString>| {
        // An attribute that raises says nothing.
        let status = of.getattr_opt(name).ok().flatten();
        status.and_then(|status| status.extract::<u16>().ok()) == Some(TOO_MANY_REQUESTS)
    };
    let throttled = is_429(error, names::status_code(py))
        || is_429(error, names::status(py))
        || error
            .getattr_opt(names::response(py))
            .ok()
            .flatten()
            .is_some_and(|response| is_429(&response, names::status_code(py)));
    if throttled { Outcome::Throttled } else { Outcome::Failure }
}
