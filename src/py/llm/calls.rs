//! What the limiter is asked from inside: by reservations, guards and waiters.

use pyo3::prelude::*;

use super::{Argument, Asked, Granted, LLMLimiter, Out};
use crate::core::clock::{NEVER, Nanos};
use crate::core::limiter::llm::{Usage, Verdict};
use crate::core::outcome::Outcome;
use crate::py::convert::duration_or_zero;
use crate::py::waiting::Waker;

impl LLMLimiter {
    /// Reserves for a caller that will wait, or try elsewhere, if refused: the refusal is not
    /// counted.
    pub(super) fn enter(&self, py: Python<'_>, ask: &Asked) -> Result<Granted, Verdict> {
        self.calling(py, |core, out| core.try_enter(ask, out))
    }

    /// The request is done.
    pub(crate) fn settle(&self, py: Python<'_>, granted: Granted, usage: &Usage, outcome: Outcome) {
        self.calling(py, |core, out| core.settle_as(granted, usage, outcome, out));
    }

    /// The request came to nothing; whom to wake.
    pub(crate) fn release_quietly(&self, granted: Granted, sent: bool) -> Vec<Waker> {
        let mut out = Out::new();
        self.core.release(granted, sent, &mut out);
        out.take_wakes()
    }

    /// Grants nothing for so long.
    pub(crate) fn pause_for(&self, py: Python<'_>, length: Nanos) {
        self.calling(py, |core, out| core.pause(length, out));
    }

    pub(super) fn deadline(&self, timeout: Argument<'_, '_>) -> PyResult<Nanos> {
        let Some(timeout) = timeout else { return Ok(NEVER) };
        let timeout = duration_or_zero("timeout", timeout)?;
        Ok(self.core.clock().now().saturating_add(timeout))
    }
}
