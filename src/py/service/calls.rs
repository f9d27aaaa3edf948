//! The calls of a service, awaited or blocking: each once for both.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::bridge;
use super::class::{CacheService, Omitted};
use super::finish::{Finish, closed, ended};
use super::lease::Lease;
use super::options::{checked, namespace, tag, with_key};
use crate::py::awaitable::ready;
use crate::py::cache::tags;
use crate::py::convert::{LONGEST, duration};
use crate::runtime::counts::Counts;
use crate::runtime::frame::Body;
use crate::runtime::lifecycle::may_run;
use crate::runtime::near::Cut;
use crate::runtime::place::{Place, id_of};
use crate::runtime::service::{Answer, Service, parcel};
use crate::runtime::tier::{self, Part, Request};
use crate::runtime::waiting::Slot;

/// How long a thread waits before it looks for signals.
pub(super) const SLICE: Duration = Duration::from_millis(50);

/// Who waits for an answer: a coroutine, or the calling thread.
#[derive(Clone, Copy)]
pub(super) enum Wait {
    Async,
    Sync,
}

impl CacheService {
    pub(super) fn check_open(&self) -> PyResult<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        may_run().map(drop).map_err(|_| ended())
    }

    pub(super) fn place(ns: &Bound<'_, PyAny>, key: &Bound<'_, PyAny>) -> PyResult<Place> {
        let ns = namespace(ns)?;
        with_key(key, |key| Ok(Place::new(ns.into(), key)))
    }

    pub(super) fn ttl(&self, ttl: Omitted<'_, '_>) -> PyResult<Option<Duration>> {
        Ok(match ttl.map(|ttl| duration("ttl", ttl)).transpose()? {
            Some(LONGEST) => None,
            Some(nanos) => Some(Duration::from_nanos(nanos)),
            None => self.default_ttl,
        })
    }

    /// The bytes of a value that is to be stored, checked.
    pub(super) fn body(&self, value: &Bound<'_, PyAny>, place: &Place) -> PyResult<Body> {
        let bytes = self.coder.encode(value, place.id())?;
        let longest = self.core.settings().max_value_bytes;
        if bytes.len() > longest {
            Counts::add(&self.core.counts().rejections);
            return Err(PyValueError::new_err(format!(
                "value: {} bytes as codec={:?}, and max_value_bytes is {longest}",
                bytes.len(),
                self.coder.codec.name()
            )));
        }
        Ok(Body::of(bytes.into()))
    }

    /// What is loading now was read before this.
    pub(super) fn outdate_load(
        &self,
        ns: &Bound<'_, PyAny>,
        key: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let flights = self.flights.bind(ns.py());
        if !flights.get().store.flights().is_empty() {
            flights.call_method1("delete", ((ns, key),))?;
        }
        Ok(())
    }

    pub(super) fn outdate_loads(&self, what: Cut, name: &Bound<'_, PyAny>) -> PyResult<()> {
        let flights = self.flights.bind(name.py());
        if !flights.get().store.flights().is_empty() {
            let kind = match what {
                Cut::Namespace => "n",
                Cut::Tag => "t",
            };
            flights.call_method1("invalidate_tag", (format!("{kind}{name}"),))?;
        }
        Ok(())
    }

    pub(super) fn now(wait: Wait, value: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyAny>> {
        match wait {
            Wait::Async => ready(value.py(), value),
            Wait::Sync => Ok(value),
        }
    }

    pub(super) fn flag(py: Python<'_>, wait: Wait, flag: bool) -> PyResult<Bound<'_, PyAny>> {
        Self::now(wait, flag.into_pyobject(py)?.to_owned().into_any())
    }

    /// Sends a request, and waits as told to.
    pub(super) fn ask<'py>(
        slf: &Bound<'py, Self>,
        wait: Wait,
        request: Request,
        finish: Finish,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, core) = (slf.py(), &slf.get().core);
        match wait {
            Wait::Async => {
                let sent = bridge::ask(py, finish, |then, watch| {
                    core.send_watched(request, then, watch);
                })?;
                sent.ok_or_else(|| PyRuntimeError::new_err("no running event loop"))
            }
            Wait::Sync => {
                let answer = Self::wait_for(py, core, request)?;
                finish.finish(py, answer).map(|value| value.into_bound(py))
            }
        }
    }

    pub(super) fn wait_for(
        py: Python<'_>,
        core: &Arc<Service>,
        request: Request,
    ) -> PyResult<Answer> {
        let entered = core.enter(&request);
        let slot = Slot::of_this_thread();
        let filled = Arc::clone(&slot);
        let then = move |answer| filled.fill(answer);
        let mut again = false;
        match entered {
            Some((Part::Answer, entered)) => {
                return Ok(py.detach(move || {
                    let answer = entered.ask_here(&request);
                    drop(entered);
                    answer
                }));
            }
            Some((Part::Help, entered)) => {
                again = py.detach(move || {
                    let again = entered.send_and_help(request, then);
                    drop(entered);
                    again
                });
            }
            None => core.send(request, then),
        }
        loop {
            // Attached, or a fork could come in between.
            let entered = (again && slot.is_empty()).then(|| core.enter_again()).flatten();
            let answer = py.detach(|| match entered {
                Some(entered) => {
                    entered.help();
                    drop(entered);
                    slot.wait(Duration::ZERO)
                }
                None => slot.wait(SLICE),
            });
            if let Some(answer) = answer {
                return Ok(answer);
            }
            py.check_signals()?;
        }
    }

    /// A coroutine that makes the call once its loop runs, if none does now.
    pub(super) fn later<'py>(
        slf: &Bound<'py, Self>,
        wait: Wait,
        method: &str,
        arguments: impl FnOnce() -> PyResult<Bound<'py, PyTuple>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if matches!(wait, Wait::Sync) || bridge::has_loop(slf.py())? {
            return Ok(None);
        }
        let later = slf.py().import("ferrogate._replies")?.getattr("later")?;
        let mut all = vec![slf.getattr(method)?];
        all.extend(arguments()?.iter());
        later.call1(PyTuple::new(slf.py(), all)?).map(Some)
    }

    pub(super) fn look_up<'py>(
        slf: &Bound<'py, Self>,
        wait: Wait,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        this.check_open()?;
        let namespace = namespace(ns)?;
        let (id, held, place) = with_key(key, |key| {
            let id = id_of(namespace, key);
            let held = this.core.find(&id);
            let needed = held.is_none() && this.core.tier().is_some();
            Ok((id, held, needed.then(|| Place::numbered(id, namespace, key))))
        })?;
        let missing = || default.clone().unwrap_or_else(|| py.None().into_bound(py));
        if let Some(held) = held {
            let value = this.decode(py, &held.body, &id, Some(&this.core.counts().near_hits))?;
            return Self::now(wait, value.unwrap_or_else(missing));
        }
        let Some(place) = place else {
            Counts::add(&this.core.counts().misses);
            return Self::now(wait, missing());
        };
        if let Some(coroutine) =
            Self::later(slf, wait, "get", || (ns, key, missing()).into_pyobject(py))?
        {
            return Ok(coroutine);
        }
        let finish = Finish::Value(slf.clone().unbind(), id, missing().unbind());
        Self::ask(slf, wait, Request::Get(place), finish)
    }

    #[allow(clippy::too_many_arguments, reason = "one caller for each kind of waiting")]
    pub(super) fn write<'py>(
        slf: &Bound<'py, Self>,
        wait: Wait,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
        value: &Bound<'py, PyAny>,
        ttl: Omitted<'_, 'py>,
        tags: Omitted<'_, 'py>,
        loaded: Option<&Lease>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        this.check_open()?;
        let place = Self::place(ns, key)?;
        let (lifetime, names) = (this.ttl(ttl)?, names(tags)?);
        let body = this.body(value, &place)?;
        let lease = loaded.and_then(Lease::lease);
        if !this.core.settings().enabled || (loaded.is_some() && lease.is_none()) {
            return Self::flag(py, wait, false);
        }
        // Of what was loaded under a lease that the store knows nothing of.
        let since = lease.filter(tier::Lease::is_here).map(|lease| lease.since);
        if this.core.tier().is_none() {
            if lease.is_none() {
                this.outdate_load(ns, key)?;
            }
            let kept = this.core.keep(since, &place, body, lifetime, names);
            return Self::flag(py, wait, kept);
        }
        if lease.is_none()
            && let Some(coroutine) = Self::later(slf, wait, "set", || {
                let none = || py.None().into_bound(py);
                let (ttl, tags) = (ttl.cloned(), tags.cloned());
                let rest = (ttl.unwrap_or_else(none), tags.unwrap_or_else(none));
                (ns, key, value, rest.0, rest.1).into_pyobject(py)
            })?
        {
            return Ok(coroutine);
        }
        let near = if lease.is_none() {
            this.outdate_load(ns, key)?;
            this.core.put(&place, body.clone(), lifetime, Arc::clone(&names))
        } else if since.is_some() {
            if !this.core.keep(since, &place, body.clone(), lifetime, Arc::clone(&names)) {
                return Self::flag(py, wait, false);
            }
            since
        } else {
            Counts::add(&this.core.counts().sets);
            None
        };
        let lease = lease.filter(|lease| !lease.is_here());
        let parcel = parcel(this.core.settings(), body, near);
        let request = Request::Set { place, parcel, ttl: lifetime, tags: names, lease };
        let asked = Self::ask(slf, wait, request, Finish::Flag(slf.clone().unbind()))?;
        if let Some(loaded) = loaded {
            loaded.used_up();
        }
        Ok(asked)
    }

    pub(super) fn unmake<'py>(
        slf: &Bound<'py, Self>,
        wait: Wait,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        this.check_open()?;
        let place = Self::place(ns, key)?;
        if this.core.tier().is_some()
            && let Some(coroutine) =
                Self::later(slf, wait, "delete", || (ns, key).into_pyobject(slf.py()))?
        {
            return Ok(coroutine);
        }
        this.outdate_load(ns, key)?;
        let was = this.core.remove(&place);
        if this.core.tier().is_none() {
            return Self::flag(slf.py(), wait, was);
        }
        Self::ask(slf, wait, Request::Delete(place), Finish::Flag(slf.clone().unbind()))
    }

    pub(super) fn is_there<'py>(
        slf: &Bound<'py, Self>,
        wait: Wait,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        this.check_open()?;
        let place = Self::place(ns, key)?;
        let near = this.core.near().find(place.id()).is_some();
        if near || this.core.tier().is_none() {
            return Self::flag(slf.py(), wait, near);
        }
        if let Some(coroutine) =
            Self::later(slf, wait, "exists", || (ns, key).into_pyobject(slf.py()))?
        {
            return Ok(coroutine);
        }
        Self::ask(slf, wait, Request::Exists(place), Finish::Flag(slf.clone().unbind()))
    }

    pub(super) fn outdate<'py>(
        slf: &Bound<'py, Self>,
        wait: Wait,
        what: Cut,
        name: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        this.check_open()?;
        let text = match what {
            Cut::Namespace => namespace(name)?,
            Cut::Tag => tag(name)?,
        };
        let (method, request) = match what {
            Cut::Namespace => ("invalidate_namespace", Request::InvalidateNamespace(text.into())),
            Cut::Tag => ("invalidate_tag", Request::InvalidateTag(text.into())),
        };
        if this.core.tier().is_some()
            && let Some(coroutine) =
                Self::later(slf, wait, method, || (name,).into_pyobject(slf.py()))?
        {
            return Ok(coroutine);
        }
        this.outdate_loads(what, name)?;
        this.core.cut(what, text);
        if this.core.tier().is_none() {
            return Self::flag(slf.py(), wait, true);
        }
        Self::ask(slf, wait, request, Finish::Flag(slf.clone().unbind()))
    }

    pub(super) fn ping<'py>(slf: &Bound<'py, Self>, wait: Wait) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        if this.closed.load(Ordering::Acquire) || may_run().is_err() {
            return Self::flag(slf.py(), wait, false);
        }
        if this.core.tier().is_none() {
            return Self::flag(slf.py(), wait, true);
        }
        if let Some(coroutine) =
            Self::later(slf, wait, "health_check", || Ok(PyTuple::empty(slf.py())))?
        {
            return Ok(coroutine);
        }
        Self::ask(slf, wait, Request::Ping, Finish::Flag(slf.clone().unbind()))
    }

    pub(super) fn negotiate<'py>(
        slf: &Bound<'py, Self>,
        wait: Wait,
        request: Request,
        finish: Finish,
    ) -> PyResult<Bound<'py, PyAny>> {
        slf.get().check_open()?;
        Self::ask(slf, wait, request, finish)
    }
}

/// `tags=`, as stores have them.
pub(super) fn names(tags: Omitted<'_, '_>) -> PyResult<Arc<[Box<str>]>> {
    let tags = self::tags(tags)?;
    tags.iter().try_for_each(|tag| checked("tags", tag).map(drop))?;
    Ok(tags.iter().map(|tag| Box::from(&**tag)).collect())
}
