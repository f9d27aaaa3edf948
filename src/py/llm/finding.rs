//! Limits that find themselves, from and for Python.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::{Granted, LLMLimiter};
use crate::core::error::InvalidArgument;
use crate::core::limiter::llm::{Change, Dimension};
use crate::py::limiter::adaptive::{self, Slots};

/// Of concurrency; `(share, cuts, told)` of what is allowed per minute.
pub(super) type Found<'py> = (Option<Bound<'py, PyDict>>, Option<(f64, u64, bool)>);

impl LLMLimiter {
    /// The request was sent, and refused before anything was made of it.
    pub(crate) fn refuse(&self, py: Python<'_>, granted: Granted) {
        self.calling(py, |core, out| core.refuse(granted, out));
    }

    pub(super) fn reconfigure(
        &self,
        py: Python<'_>,
        limits: [Change<u64>; Dimension::ALL.len()],
        concurrency: Change<Slots>,
    ) -> Result<(), InvalidArgument> {
        self.calling(py, |core, out| match concurrency {
            Change::To(Some(Slots::Adaptive(found))) => core.update_adaptive(limits, found, out),
            Change::To(Some(Slots::Fixed(slots))) => {
                core.update(limits, Change::To(Some(slots)), out)
            }
            Change::To(None) => core.update(limits, Change::To(None), out),
            Change::Keep => core.update(limits, Change::Keep, out),
        })
    }

    pub(super) fn found<'py>(&self, py: Python<'py>) -> PyResult<Found<'py>> {
        let (concurrency, rate) = self.core.adaptive_stats();
        let rate = rate.map(|rate| (rate.share, rate.cuts, rate.told));
        Ok((adaptive::stats(py, concurrency)?, rate))
    }
}
