//! How a call ended, by what it raised.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use super::CircuitBreaker;
use crate::core::outcome::Outcome;
use crate::py::outcome;

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
            match classify.call1((error,)).and_then(|said| outcome::named(&said)) {
                Ok(Some(outcome)) => return outcome,
                Ok(None) => {}
                Err(failed) => self.callback_failed(&classify, failed),
            }
        }
        outcome::of_error(error)
    }
}
