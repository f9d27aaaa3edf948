//! How a call ended, as a breaker sees it.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use super::CircuitBreaker;
use crate::core::outcome::Outcome;
use crate::py::outcome;

impl CircuitBreaker {
    /// How a call ended with a result or an error, as the breaker's classifier says, or by
    /// default.
    #[inline]
    pub(crate) fn outcome_of(&self, py: Python<'_>, ended: Result<&Py<PyAny>, &PyErr>) -> Outcome {
        if let Some(classify) = &self.classify
            && let Some(outcome) = self.asked(classify.bind(py), ended)
        {
            return outcome;
        }
        match ended {
            Ok(_) => Outcome::Success,
            Err(error) => outcome::of_error(error.value(py).as_any()),
        }
    }

    #[cold]
    fn asked(
        &self,
        classify: &Bound<'_, PyAny>,
        ended: Result<&Py<PyAny>, &PyErr>,
    ) -> Option<Outcome> {
        let py = classify.py();
        let answer = match ended {
            Ok(result) => classify.call1((result, py.None())),
            // What ends a thread or a task is nobody's fault, and no classifier's business.
            Err(error) if !error.is_instance_of::<PyException>(py) => return None,
            Err(error) => classify.call1((py.None(), error.value(py))),
        };
        answer.and_then(|said| outcome::named(&said)).unwrap_or_else(|failed| {
            self.callback_failed(classify, failed);
            None
        })
    }
}
