//! A reservation for somebody who may as well go elsewhere: now or not at all, or from a line that
//! is left as soon as something else turns up.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::request::ask;
use super::{Asked, LLMLimiter, Out, PyReservation};
use crate::core::clock::NEVER;
use crate::core::key::Key;
use crate::core::limiter::Ticket;
use crate::core::limiter::llm::{Looked, Verdict};
use crate::py::convert::type_name;
use crate::py::limiter::gone;
use crate::py::waiting::Waker;

/// What has become of a place in a limiter's line.
pub(crate) enum Stood {
    /// What was waited for.
    Granted(Py<PyReservation>),
    /// Still waiting; see [`Looked::Wait`].
    Waits { nap: u64, sure: bool },
    /// It cannot be granted any more.
    Refused(Verdict),
}

/// The keywords of ``reserve``, but for its ``timeout``.
pub(crate) fn asked(keywords: &Bound<'_, PyDict>) -> PyResult<Asked> {
    const KNOWN: [&str; 6] =
        ["input_tokens", "output_tokens", "max_output_tokens", "cost_usd", "model", "tenant"];
    let mut values: [Option<Bound<'_, PyAny>>; KNOWN.len()] = Default::default();
    for (name, value) in keywords {
        let text = name.cast::<PyString>().ok().and_then(|name| name.to_str().ok());
        match KNOWN.iter().position(|known| text == Some(known)) {
            Some(at) => values[at] = Some(value).filter(|value| !value.is_none()),
            None if text == Some("timeout") => {}
            None => {
                let message = format!(
                    "estimate: expected it to return a dict of the keywords of \
                     LLMLimiter.reserve, got {}",
                    name.repr()?
                );
                return Err(pyo3::exceptions::PyTypeError::new_err(message));
            }
        }
    }
    let [input, output, most, cost, model, tenant] = values.each_ref().map(Option::as_ref);
    ask(input, output, most, cost, model, tenant)
}

/// [`asked`] of a number: the tokens of the prompt.
pub(crate) fn asked_tokens(tokens: &Bound<'_, PyAny>) -> PyResult<Asked> {
    if tokens.is_none() {
        let message =
            format!("estimate: expected it to return an int or a dict, got {}", type_name(tokens));
        return Err(pyo3::exceptions::PyTypeError::new_err(message));
    }
    ask(Some(tokens), None, None, None, None, None)
}

impl LLMLimiter {
    /// A reservation.
    ///
    /// # Errors
    /// The refusal, which is not counted.
    pub(crate) fn reserve_now(
        slf: &Bound<'_, Self>,
        ask: &Asked,
    ) -> PyResult<Result<Py<PyReservation>, Verdict>> {
        let granted = match slf.get().enter(slf.py(), ask) {
            Ok(granted) => granted,
            Err(verdict) => return Ok(Err(verdict)),
        };
        Py::new(slf.py(), PyReservation::new(slf.clone().unbind(), granted, None)).map(Ok)
    }

    /// Joins the line, for as long as it takes.
    ///
    /// # Errors
    /// The refusal, when there is no place in it.
    pub(crate) fn stand(
        &self,
        py: Python<'_>,
        ask: &Asked,
        waker: Waker,
    ) -> Result<Ticket, Verdict> {
        self.calling(py, |core, out| core.enqueue(ask, NEVER, waker, out))
    }

    /// What has become of a place in the line.
    pub(crate) fn stands(
        slf: &Bound<'_, Self>,
        tenant: Option<Key>,
        ticket: Ticket,
    ) -> PyResult<Stood> {
        let py = slf.py();
        match slf.get().calling(py, |core, out| core.poll(tenant, ticket, out)) {
            Looked::Granted(granted) => {
                let reservation = PyReservation::new(slf.clone().unbind(), granted, None);
                Py::new(py, reservation).map(Stood::Granted)
            }
            Looked::Wait { nap, sure } => Ok(Stood::Waits { nap, sure }),
            Looked::Refused(verdict) => Ok(Stood::Refused(verdict)),
            Looked::Gone => Err(gone()),
        }
    }

    /// Leaves the line; whom to wake.
    pub(crate) fn step_out(&self, tenant: Option<Key>, ticket: Ticket) -> Vec<Waker> {
        let mut out = Out::new();
        self.core.cancel(tenant, ticket, &mut out);
        out.take_wakes()
    }

    /// The tokens of an answer as they would be reserved: estimates included.
    pub(crate) fn output_tokens(&self, ask: &Asked) -> u64 {
        self.core.amounts(ask).get(crate::core::limiter::llm::Dimension::OutputTokens)
    }
}
