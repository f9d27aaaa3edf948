//! What an answer is in Python.

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::create_exception;
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use super::class::CacheService;
use super::lease::Lease;
use crate::py::edge::FerrogateError;
use crate::runtime::counts::Counts;
use crate::runtime::frame::Body;
use crate::runtime::place::Id;
use crate::runtime::service::Answer;
use crate::runtime::tier::TierError;

create_exception!(
    ferrogate,
    CacheUnavailable,
    FerrogateError,
    "The store behind a cache service cannot be reached; raised only by services that are strict."
);

/// What becomes of an answer.
pub(crate) enum Finish {
    /// The value at a place, or this instead.
    Value(Py<CacheService>, Id, Py<PyAny>),
    /// Whether it was done.
    Flag(Py<CacheService>),
    /// Who is to load: `("value", it)`, `("lease", lease)`, `("busy", seconds)`, `("unreadable",)`
    /// where something stands that is no value, or `("alone", whether to ask again)`.
    Lease(Py<CacheService>, Id),
}

impl Finish {
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Self::Value(service, _, default) => {
                visit.call(service)?;
                visit.call(default)
            }
            Self::Flag(service) | Self::Lease(service, _) => visit.call(service),
        }
    }

    fn service(&self) -> &CacheService {
        match self {
            Self::Value(service, ..) | Self::Flag(service) | Self::Lease(service, _) => {
                service.get()
            }
        }
    }

    pub(crate) fn finish(self, py: Python<'_>, answer: Answer) -> PyResult<Py<PyAny>> {
        let service = self.service();
        service.log(py)?;
        if let Answer::Failed(error) = &answer {
            service.refuse(error)?;
        }
        let flag = |flag: bool| Ok(flag.into_pyobject(py)?.to_owned().into_any().unbind());
        match (self, answer) {
            (Self::Value(service, id, default), Answer::Value(body)) => {
                Ok(service.get().decode_found(py, &body, &id)?.map_or(default, Bound::unbind))
            }
            (Self::Value(_, _, default), _) => Ok(default),
            (Self::Flag(_), answer) => flag(matches!(answer, Answer::Did(true))),
            (Self::Lease(service, id), answer) => lease(py, service.get(), &id, answer),
        }
    }
}

fn lease(py: Python<'_>, service: &CacheService, id: &Id, answer: Answer) -> PyResult<Py<PyAny>> {
    let unreadable = || ("unreadable",).into_pyobject(py).map(Bound::into_any);
    let tuple = match answer {
        Answer::Value(body) => match service.decode_found(py, &body, id)? {
            Some(value) => ("value", value).into_pyobject(py)?.into_any(),
            None => unreadable()?,
        },
        Answer::Unreadable => unreadable()?,
        Answer::Leased(granted) => ("lease", Lease::of(granted)).into_pyobject(py)?.into_any(),
        Answer::Busy(remaining) => ("busy", remaining.as_secs_f64()).into_pyobject(py)?.into_any(),
        // It has had its time.
        Answer::Failed(TierError::Late | TierError::Part(_)) => {
            ("alone", false).into_pyobject(py)?.into_any()
        }
        // A store that is not given up may only have been busy for longer than a request waits.
        Answer::Failed(_) => ("alone", !service.core.is_away()).into_pyobject(py)?.into_any(),
        _ => ("alone", false).into_pyobject(py)?.into_any(),
    };
    Ok(tuple.unbind())
}

impl CacheService {
    /// The value of a body. One that is none is counted as unreadable, and as a miss instead of
    /// the hit as which it was `counted`.
    pub(super) fn decode<'py>(
        &self,
        py: Python<'py>,
        body: &Body,
        place: &Id,
        counted: Option<&AtomicU64>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let value = self.coder.decode(py, body.bytes(), place)?;
        if value.is_none() {
            Counts::add(&self.core.counts().unreadable);
            if let Some(counted) = counted {
                Counts::add(&self.core.counts().misses);
                Counts::take_back(counted);
            }
        }
        Ok(value)
    }

    fn decode_found<'py>(
        &self,
        py: Python<'py>,
        body: &Body,
        place: &Id,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.decode(py, body, place, Some(&self.core.counts().tier_hits))
    }

    /// Raises what callers are to see of a tier that does not answer.
    fn refuse(&self, error: &TierError) -> PyResult<()> {
        match error {
            TierError::Ended if self.closed.load(Ordering::Acquire) => Err(closed()),
            TierError::Ended => Err(ended()),
            _ if !self.strict => Ok(()),
            TierError::Away(why) | TierError::Full(why) | TierError::Part(why) => {
                Err(CacheUnavailable::new_err(why.clone()))
            }
            TierError::Late => Err(CacheUnavailable::new_err("no answer in time")),
            TierError::Lost => Err(CacheUnavailable::new_err("the request was lost in a fork")),
        }
    }

    /// Hands what threads of ours had to say to `logging`.
    pub(super) fn log(&self, py: Python<'_>) -> PyResult<()> {
        let notices = self.core.notices().take();
        if notices.is_empty() {
            return Ok(());
        }
        let log = py.import("ferrogate._replies")?.getattr("log")?;
        for notice in notices {
            log.call1(("cache service", &self.name, notice))?;
        }
        Ok(())
    }
}

pub(super) fn closed() -> PyErr {
    PyRuntimeError::new_err("the cache service is closed")
}

pub(super) fn ended() -> PyErr {
    PyRuntimeError::new_err("ferrogate has shut down with the interpreter")
}
