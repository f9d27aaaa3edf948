//! `ferrogate._core.CacheService`: convert, ask the service, convert back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::calls::{SLICE, Wait, names};
use super::finish::Finish;
use super::lease::Lease;
use super::options::{after_forks, open_tier};
use crate::py::cache::Cache;
use crate::py::codec::Coder;
use crate::py::convert::{LONGEST, clock, duration, globally_disabled, optional_duration};
use crate::py::edge::edge;
use crate::runtime::frame::Codec;
use crate::runtime::near::{Cut, Near};
use crate::runtime::notices::Notices;
use crate::runtime::outage::Outages;
use crate::runtime::owed::Owed;
use crate::runtime::service::{Service, Settings};
use crate::runtime::tier::Request;

/// A near cache of bytes in front of a store that other processes share.
///
/// The public class is ``ferrogate.CacheService``.
#[pyclass(frozen, subclass, weakref, module = "ferrogate._core")]
pub(crate) struct CacheService {
    pub(super) core: Arc<Service>,
    pub(super) coder: Coder,
    pub(super) strict: bool,
    pub(super) name: String,
    pub(super) default_ttl: Option<Duration>,
    pub(super) closed: AtomicBool,
    /// Who loads what in this process; stores nothing itself.
    pub(super) flights: Py<Cache>,
}

/// An argument that was left out.
pub(super) type Omitted<'a, 'py> = Option<&'a Bound<'py, PyAny>>;

#[pymethods]
impl CacheService {
    #[new]
    #[pyo3(signature = (*, near_bytes, default_ttl, codec, pickle, max_value_bytes, compress_over, strict, enabled, name, clock, tier, flights))]
    #[allow(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn new(
        near_bytes: u64,
        default_ttl: Omitted<'_, '_>,
        codec: &str,
        pickle: Option<(Py<PyAny>, Py<PyAny>)>,
        max_value_bytes: usize,
        compress_over: Option<usize>,
        strict: bool,
        enabled: bool,
        name: String,
        clock: Omitted<'_, '_>,
        tier: Option<&Bound<'_, PyDict>>,
        flights: Py<Cache>,
    ) -> PyResult<Self> {
        edge("CacheService", || {
            let Some(codec) = Codec::named(codec) else {
                return Err(PyValueError::new_err(format!("codec: no codec named {codec:?}")));
            };
            let clock = self::clock(clock)?;
            let (notices, owed) = (Arc::<Notices>::default(), Arc::<Owed>::default());
            let outages = Arc::<Outages>::default();
            let near = Arc::new(Near::new(near_bytes, clock.clone()));
            let enabled = enabled && !globally_disabled();
            let tier = match tier {
                Some(options) if enabled => {
                    Some(open_tier(options, &near, &clock, &notices, &owed, &outages)?)
                }
                _ => None,
            };
            let settings = Settings { codec, max_value_bytes, threshold: compress_over, enabled };
            let default_ttl = optional_duration("default_ttl", default_ttl)?;
            Ok(Self {
                core: Service::new(settings, near, tier, clock, notices, owed, outages),
                coder: Coder { codec, pickle },
                strict,
                name,
                default_ttl: default_ttl.filter(|ttl| *ttl != LONGEST).map(Duration::from_nanos),
                closed: AtomicBool::new(false),
                flights,
            })
        })
    }

    /// Awaits to the value under ``key`` in ``ns``, or to ``default``.
    #[pyo3(signature = (ns, key, default=None))]
    fn get<'py>(
        slf: &Bound<'py, Self>,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService.get", || Self::look_up(slf, Wait::Async, ns, key, default))
    }

    /// The blocking twin of ``get``.
    #[pyo3(signature = (ns, key, default=None))]
    fn get_sync<'py>(
        slf: &Bound<'py, Self>,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService.get_sync", || Self::look_up(slf, Wait::Sync, ns, key, default))
    }

    /// Stores ``value``; awaits to whether the store has it.
    #[pyo3(signature = (ns, key, value, ttl=None, tags=None))]
    fn set<'py>(
        slf: &Bound<'py, Self>,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
        value: &Bound<'py, PyAny>,
        ttl: Omitted<'_, 'py>,
        tags: Omitted<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService.set", || Self::write(slf, Wait::Async, ns, key, value, ttl, tags, None))
    }

    /// The blocking twin of ``set``.
    #[pyo3(signature = (ns, key, value, ttl=None, tags=None))]
    fn set_sync<'py>(
        slf: &Bound<'py, Self>,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
        value: &Bound<'py, PyAny>,
        ttl: Omitted<'_, 'py>,
        tags: Omitted<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService.set_sync", || {
            Self::write(slf, Wait::Sync, ns, key, value, ttl, tags, None)
        })
    }

    /// Stores what was loaded under a lease, unless it was invalidated meanwhile.
    #[pyo3(signature = (wait, ns, key, value, ttl, tags, lease))]
    #[allow(clippy::too_many_arguments, reason = "the fields of a set and of a lease")]
    fn _set_loaded<'py>(
        slf: &Bound<'py, Self>,
        wait: bool,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
        value: &Bound<'py, PyAny>,
        ttl: Omitted<'_, 'py>,
        tags: Omitted<'_, 'py>,
        lease: &Bound<'py, Lease>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService._set_loaded", || {
            Self::write(slf, how(wait), ns, key, value, ttl, tags, Some(lease.get()))
        })
    }

    /// Removes ``key``; awaits to whether it was there.
    fn delete<'py>(
        slf: &Bound<'py, Self>,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService.delete", || Self::unmake(slf, Wait::Async, ns, key))
    }

    /// The blocking twin of ``delete``.
    fn delete_sync<'py>(
        slf: &Bound<'py, Self>,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService.delete_sync", || Self::unmake(slf, Wait::Sync, ns, key))
    }

    /// Awaits to whether ``key`` is there; not counted, and the value is not read: of what another
    /// codec wrote, or whose tag was invalidated while the store was away, ``get`` is a miss.
    fn exists<'py>(
        slf: &Bound<'py, Self>,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService.exists", || Self::is_there(slf, Wait::Async, ns, key))
    }

    /// The blocking twin of ``exists``.
    fn exists_sync<'py>(
        slf: &Bound<'py, Self>,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService.exists_sync", || Self::is_there(slf, Wait::Sync, ns, key))
    }

    /// Outdates all values of a namespace in one step; awaits to whether the store did.
    fn invalidate_namespace<'py>(
        slf: &Bound<'py, Self>,
        ns: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService.invalidate_namespace", || {
            Self::outdate(slf, Wait::Async, Cut::Namespace, ns)
        })
    }

    /// The blocking twin of ``invalidate_namespace``.
    fn invalidate_namespace_sync<'py>(
        slf: &Bound<'py, Self>,
        ns: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService.invalidate_namespace_sync", || {
            Self::outdate(slf, Wait::Sync, Cut::Namespace, ns)
        })
    }

    /// Outdates all values that carry a tag in one step; awaits to whether the store did.
    fn invalidate_tag<'py>(
        slf: &Bound<'py, Self>,
        tag: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService.invalidate_tag", || Self::outdate(slf, Wait::Async, Cut::Tag, tag))
    }

    /// The blocking twin of ``invalidate_tag``.
    fn invalidate_tag_sync<'py>(
        slf: &Bound<'py, Self>,
        tag: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService.invalidate_tag_sync", || Self::outdate(slf, Wait::Sync, Cut::Tag, tag))
    }

    /// Awaits to whether the store answers and can be written to.
    fn health_check<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService.health_check", || Self::ping(slf, Wait::Async))
    }

    /// The blocking twin of ``health_check``.
    fn health_check_sync<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService.health_check_sync", || Self::ping(slf, Wait::Sync))
    }

    /// Asks to be the process that loads: ``("value", v)``, ``("lease", lease)``,
    /// ``("busy", seconds)``, ``("unreadable",)`` where something stands that is no value (``anew`` has
    /// it replaced), or ``("alone", whether to ask again)`` when the store cannot say.
    #[pyo3(signature = (wait, ns, key, tags, anew=false))]
    fn _lease<'py>(
        slf: &Bound<'py, Self>,
        wait: bool,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
        tags: Omitted<'_, 'py>,
        anew: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService._lease", || {
            let (py, this, place) = (slf.py(), slf.get(), Self::place(ns, key)?);
            // Somebody in this process may have stored it since the miss.
            let held = this.core.near().find(place.id());
            if let Some(held) = held
                && let Some(value) = this.decode(py, &held.body, place.id(), None)?
            {
                return Self::now(how(wait), ("value", value).into_pyobject(py)?.into_any());
            }
            if this.core.tier().is_none() {
                // The flight is the lease; what changes meanwhile outdates it all the same.
                let granted = this.core.granted_here(place);
                let lease = ("lease", Lease::of(granted)).into_pyobject(py)?.into_any();
                return Self::now(how(wait), lease);
            }
            let finish = Finish::Lease(slf.clone().unbind(), *place.id());
            let request = Request::Lease { place, tags: names(tags)?, anew };
            Self::negotiate(slf, how(wait), request, finish)
        })
    }

    /// Leave to load without the store's, which is away: what changes in this process from now on
    /// outdates the load.
    fn _lease_here(&self, ns: &Bound<'_, PyAny>, key: &Bound<'_, PyAny>) -> PyResult<Lease> {
        edge("CacheService._lease_here", || {
            Ok(Lease::of(self.core.granted_here(Self::place(ns, key)?)))
        })
    }

    /// Waits until another process ends its lease, at most for ``seconds``; ``False`` at once if
    /// nobody can wait now.
    fn _await<'py>(
        slf: &Bound<'py, Self>,
        wait: bool,
        ns: &Bound<'py, PyAny>,
        key: &Bound<'py, PyAny>,
        seconds: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CacheService._await", || {
            let longest = Duration::from_nanos(duration("seconds", seconds)?);
            let request = Request::Await(Self::place(ns, key)?, longest);
            Self::negotiate(slf, how(wait), request, Finish::Flag(slf.clone().unbind()))
        })
    }

    /// Refuses everything from now on, once the store has what was acknowledged.
    fn _close(&self, py: Python<'_>, patience: f64) -> PyResult<()> {
        edge("CacheService._close", || {
            let patience = Duration::from_secs_f64(patience.clamp(0.0, 3600.0));
            if !self.closed.swap(true, Ordering::AcqRel)
                && let Some(tier) = self.core.tier()
            {
                let mut left = patience;
                // Entered, so that no fork comes while its threads end; but only while detached:
                // who forks has the GIL, and waits until nobody is inside.
                while !left.is_zero() {
                    after_forks(py)?;
                    let entered = self.core.enter_to_close();
                    let closed = py.detach(move || {
                        let closed = tier.closing(left.min(SLICE));
                        drop(entered);
                        closed
                    });
                    if closed {
                        break;
                    }
                    left = left.saturating_sub(SLICE);
                    py.check_signals()?;
                }
                after_forks(py)?;
                let entered = self.core.enter_to_close();
                py.detach(move || {
                    tier.close(Duration::ZERO);
                    drop(entered);
                });
            }
            self.log(py)
        })
    }

    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Its name.
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    /// The counters, and figures of the near cache and of the store.
    fn _figures<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        edge("CacheService._figures", || {
            self.log(py)?;
            let figures = PyDict::new(py);
            let counts = self.core.counts();
            for (name, counter) in counts.all() {
                figures.set_item(name, counter.load(Ordering::Relaxed))?;
            }
            let (entries, bytes, evictions) = self.core.near().size();
            figures.set_item("near_entries", entries)?;
            figures.set_item("near_bytes", bytes)?;
            figures.set_item("near_evictions", evictions)?;
            figures.set_item("available", !self.core.is_away())?;
            figures.set_item("owed", self.core.owed())?;
            if let Some(tier) = self.core.tier() {
                for (name, figure) in tier.figures() {
                    figures.set_item(name, figure)?;
                }
            }
            Ok(figures)
        })
    }

    /// Counts from zero again.
    fn reset_stats(&self) -> PyResult<()> {
        edge("CacheService.reset_stats", || {
            for (_, counter) in self.core.counts().all() {
                AtomicU64::store(counter, 0, Ordering::Relaxed);
            }
            Ok(())
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.flights)?;
        if let Some((dumps, loads)) = &self.coder.pickle {
            visit.call(dumps)?;
            visit.call(loads)?;
        }
        Ok(())
    }
}

fn how(wait: bool) -> Wait {
    if wait { Wait::Sync } else { Wait::Async }
}
