//! `ferrogate._core.Cache`: convert, call the store, convert back.

use pyo3::exceptions::{PyKeyError, PyTypeError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use super::arguments::{Omitted, at_least_one, callable, policy};
use super::flight::{Flight, Lookup};
use super::freshness::Freshness;
use super::hooks::Hooks;
use super::loads::Found;
use super::store::{PyEntry, Store, lifetime, tags};
use crate::core::cache::{Bounds, Lifetime, State};
use crate::core::clock::{NEVER, Nanos, secs_from_nanos};
use crate::core::flight::Purpose;
use crate::py::awaitable::ready;
use crate::py::convert::{clock, globally_disabled, optional_duration, type_name};
use crate::py::edge::edge;

/// A bounded in-process cache: exact LRU or adaptive, with TTL, TTI, weights and tags.
///
/// The public class is ``ferrogate.Cache``.
#[pyclass(frozen, subclass, weakref, module = "ferrogate._core")]
pub(crate) struct Cache {
    pub(crate) store: Store,
    name: Option<String>,
}

/// A flight, whether the caller leads it, and ``(value,)`` if there is one already.
type Joined<'py> = (Bound<'py, Flight>, bool, Option<(Bound<'py, PyAny>,)>);

impl Cache {
    fn removed(&self, key: &Bound<'_, PyAny>) -> PyResult<Option<State>> {
        let encoded = self.store.key(key)?;
        Ok(self.store.remove(key.py(), &encoded.key, |state, _| state))
    }

    fn join<'py>(
        slf: &Bound<'py, Self>,
        lookup: &Lookup,
        purpose: Purpose,
    ) -> PyResult<(Bound<'py, Flight>, bool)> {
        let store = &slf.get().store;
        let (inner, leads) = store.flights().join(&lookup.key, purpose);
        if leads && purpose != Purpose::Answer {
            store.count_refresh();
        }
        let (cache, key, began) = (slf.clone().unbind(), lookup.key, store.clock.now());
        Ok((Bound::new(slf.py(), Flight::new(cache, key, inner, leads, began))?, leads))
    }
}

#[pymethods]
impl Cache {
    #[new]
    #[pyo3(signature = (max_size, *, ttl=None, tti=None, policy="lru", max_bytes=None, weigher=None, value=None, on_evict=None, name=None, clock=None, enabled=true))]
    #[allow(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn new(
        max_size: &Bound<'_, PyAny>,
        ttl: Omitted<'_, '_>,
        tti: Omitted<'_, '_>,
        policy: &str,
        max_bytes: Omitted<'_, '_>,
        weigher: Omitted<'_, '_>,
        value: Omitted<'_, '_>,
        on_evict: Omitted<'_, '_>,
        name: Option<String>,
        clock: Omitted<'_, '_>,
        enabled: bool,
    ) -> PyResult<Self> {
        edge("Cache", || {
            let bounds = Bounds {
                max_size: at_least_one("max_size", max_size)?,
                max_weight: max_bytes
                    .map(|max| at_least_one("max_bytes", max))
                    .transpose()?
                    .map(|max| max as u64),
                ttl: optional_duration("ttl", ttl)?,
                tti: optional_duration("tti", tti)?,
            };
            let hooks = Hooks::new(
                callable("weigher", weigher)?,
                callable("value", value)?,
                callable("on_evict", on_evict)?,
            );
            let enabled = enabled && !globally_disabled();
            let policy = self::policy(policy)?;
            let store = Store::new(bounds, policy, hooks, self::clock(clock)?, enabled);
            Ok(Self { store, name })
        })
    }

    /// The value under ``key``, or ``default``; counted as a hit or a miss.
    #[pyo3(signature = (key, /, default=None))]
    fn get<'py>(
        &self,
        key: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        edge("Cache.get", || Ok(self.store.find(key)?.or(default)))
    }

    fn __getitem__<'py>(&self, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        edge("Cache.__getitem__", || {
            self.store.find(key)?.ok_or_else(|| PyKeyError::new_err((key.clone().unbind(),)))
        })
    }

    /// Stores ``value``; ``ttl`` in seconds replaces the cache's own for this entry.
    #[pyo3(signature = (key, value, ttl=None, tags=None))]
    fn set(
        &self,
        key: &Bound<'_, PyAny>,
        value: Bound<'_, PyAny>,
        ttl: Omitted<'_, '_>,
        tags: Omitted<'_, '_>,
    ) -> PyResult<()> {
        edge("Cache.set", || {
            let lifetime = lifetime(ttl)?;
            let tags = self::tags(tags)?;
            self.store.set_item(key, value, lifetime, tags)
        })
    }

    fn __setitem__(&self, key: &Bound<'_, PyAny>, value: Bound<'_, PyAny>) -> PyResult<()> {
        edge("Cache.__setitem__", || self.store.set_item(key, value, Lifetime::Usual, Vec::new()))
    }

    /// Removes ``key``; true if it was there, also as a stale value or a failure.
    #[pyo3(signature = (key, /))]
    fn delete(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        edge("Cache.delete", || Ok(self.removed(key)?.is_some()))
    }

    fn __delitem__(&self, key: &Bound<'_, PyAny>) -> PyResult<()> {
        edge("Cache.__delitem__", || match self.removed(key)? {
            Some(State::Fresh) => Ok(()),
            _ => Err(PyKeyError::new_err((key.clone().unbind(),))),
        })
    }

    /// Whether ``key`` is there; neither counted nor made recent.
    #[pyo3(signature = (key, /))]
    fn exists(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        edge("Cache.exists", || self.store.contains(key))
    }

    fn __contains__(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.exists(key)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        edge("Cache.__len__", || {
            self.store.sweep(py);
            Ok(self.store.with(py, |table, now, _| table.count_fresh(now)))
        })
    }

    /// The keys as they were set, from the least to the most recently used: a snapshot.
    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        edge("Cache.__iter__", || {
            let keys = self.store.snapshot(|entry| entry.key.as_ref().map(|key| key.clone_ref(py)));
            Ok(PyList::new(py, keys)?.try_iter()?.into_any())
        })
    }

    /// Keys and values, from the least to the most recently used: a snapshot that counts nothing.
    fn _snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        edge("Cache._snapshot", || {
            let pairs = self.store.snapshot(|entry| {
                entry.key.as_ref().map(|key| (key.clone_ref(py), entry.value.clone_ref(py)))
            });
            PyList::new(py, pairs)
        })
    }

    /// ``(value,)`` under ``key``, or ``None``; counts nothing.
    fn _peek<'py>(&self, key: &Bound<'py, PyAny>) -> PyResult<Option<(Bound<'py, PyAny>,)>> {
        edge("Cache._peek", || {
            let encoded = self.store.key(key)?;
            Ok(self.store.peek(key.py(), &encoded.key).map(|value| (value,)))
        })
    }

    /// The value under ``key``; ``default`` is stored first if there is none, as one step.
    /// Never waits for a load: what that brings is not stored then.
    #[pyo3(signature = (key, default=None, *, tags=None))]
    fn setdefault<'py>(
        &self,
        key: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
        tags: Omitted<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("Cache.setdefault", || {
            let default = default.unwrap_or_else(|| key.py().None().into_bound(key.py()));
            self.store.set_default(key, default, self::tags(tags)?)
        })
    }

    /// Removes ``key`` and returns its value, as one step; or ``default``.
    #[pyo3(signature = (key, /, *default, **keywords))]
    fn pop<'py>(
        &self,
        key: &Bound<'py, PyAny>,
        default: &Bound<'py, PyTuple>,
        keywords: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("Cache.pop", || {
            // As collections.abc has it, also by its name.
            let named =
                keywords.map(|keywords| keywords.get_item("default")).transpose()?.flatten();
            let given = default.len() + keywords.map_or(0, PyDictMethods::len);
            if given > 1 || (given > default.len() && named.is_none()) {
                return Err(PyTypeError::new_err(
                    "pop: expected pop(key), pop(key, default) or pop(key, default=...)",
                ));
            }
            let default = default.iter().next().or(named);
            let py = key.py();
            let encoded = self.store.key(key)?;
            let pick = |state: State, entry: &PyEntry| {
                (state == State::Fresh).then(|| entry.value.bind(py).clone())
            };
            match self.store.remove(py, &encoded.key, pick).flatten() {
                Some(value) => Ok(value),
                None => default.ok_or_else(|| PyKeyError::new_err((key.clone().unbind(),))),
            }
        })
    }

    /// Removes and returns the least recently used (key, value).
    fn popitem<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        edge("Cache.popitem", || {
            let pair = self.store.with(py, |table, now, grave| {
                let mut pair = None;
                if table.remove_oldest(now, grave) {
                    pair = grave.last().map(|(_, entry)| {
                        (
                            entry.key.as_ref().map(|key| key.bind(py).clone()),
                            entry.value.bind(py).clone(),
                        )
                    });
                }
                pair
            });
            let (key, value) =
                pair.ok_or_else(|| PyKeyError::new_err("popitem(): cache is empty"))?;
            Ok((key.unwrap_or_else(|| py.None().into_bound(py)), value))
        })
    }

    /// Removes everything.
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        edge("Cache.clear", || {
            self.store.clear(py);
            Ok(())
        })
    }

    /// Removes all entries with this tag; returns how many.
    #[pyo3(signature = (tag, /))]
    fn invalidate_tag(&self, tag: &Bound<'_, PyAny>) -> PyResult<usize> {
        edge("Cache.invalidate_tag", || {
            let Ok(text) = tag.cast::<PyString>() else {
                let got = type_name(tag);
                return Err(PyTypeError::new_err(format!("tag: expected a str, got {got}")));
            };
            Ok(self.store.invalidate_tag(tag.py(), text.to_str()?))
        })
    }

    /// Removes what has expired; returns how many entries that were.
    fn cleanup(&self, py: Python<'_>) -> PyResult<usize> {
        edge("Cache.cleanup", || Ok(self.store.sweep(py)))
    }

    /// What is known about ``key``; see ``ferrogate.cache.Cache``.
    #[pyo3(signature = (key, /))]
    fn explain<'py>(&self, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
        edge("Cache.explain", || {
            let encoded = self.store.key(key)?;
            let table = self.store.lock();
            let now = self.store.clock.now();
            let found = table.explain(&encoded.key, now).map(|entry| {
                // Not the marks by which a cached function finds its own entries.
                let chosen = entry.tags.iter().filter(|tag| !tag.starts_with('\0'));
                let tags: Vec<String> = chosen.map(ToString::to_string).collect();
                let age = now.saturating_sub(entry.written);
                (age, entry.state, entry.fresh, entry.expires, entry.weight, tags)
            });
            drop(table);
            let facts = PyDict::new(key.py());
            facts.set_item("present", found.is_some())?;
            if let Some((age, state, fresh, expires, weight, tags)) = found {
                let until =
                    |end: Nanos| (end != NEVER).then(|| secs_from_nanos(end.saturating_sub(now)));
                facts.set_item("state", state.as_str())?;
                facts.set_item("age_seconds", secs_from_nanos(age))?;
                facts.set_item("fresh_for_seconds", until(fresh))?;
                facts.set_item("expires_in_seconds", until(expires))?;
                facts.set_item("weight", weight)?;
                facts.set_item("tags", tags)?;
            }
            Ok(facts)
        })
    }

    /// Counters and size; see ``ferrogate.cache.CacheStats``.
    fn get_stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        edge("Cache.get_stats", || {
            self.store.sweep(py);
            let (stats, size, weight, bounds) = self.store.stats();
            let lookups = stats.hits + stats.misses;
            let facts = PyDict::new(py);
            facts.set_item("name", &self.name)?;
            facts.set_item("enabled", self.store.enabled)?;
            facts.set_item("size", size)?;
            facts.set_item("max_size", bounds.max_size)?;
            facts.set_item("bytes", weight)?;
            facts.set_item("max_bytes", bounds.max_weight)?;
            facts.set_item("hits", stats.hits)?;
            facts.set_item("misses", stats.misses)?;
            facts.set_item(
                "hit_rate",
                if lookups == 0 { 0.0 } else { stats.hits as f64 / lookups as f64 },
            )?;
            facts.set_item("stale_hits", stats.stale_hits)?;
            facts.set_item("negative_hits", stats.negative_hits)?;
            facts.set_item("refreshes", stats.refreshes)?;
            facts.set_item("refresh_failures", stats.refresh_failures)?;
            facts.set_item("stale_on_error", stats.stale_on_error)?;
            facts.set_item("insertions", stats.insertions)?;
            facts.set_item("updates", stats.updates)?;
            facts.set_item("evictions", stats.evictions)?;
            facts.set_item("expirations", stats.expirations)?;
            facts.set_item("invalidations", stats.invalidations)?;
            facts.set_item("rejections", stats.rejections)?;
            facts.set_item("saved_tokens", stats.saved.tokens)?;
            facts.set_item("saved_usd", stats.saved.usd)?;
            facts.set_item("saved_seconds", stats.saved.seconds)?;
            let (policy, ghosts) = self.store.policy();
            facts.set_item("policy", policy.as_str())?;
            facts.set_item("ghost_entries", ghosts.entries)?;
            facts.set_item("ghost_bytes", ghosts.bytes)?;
            facts.set_item("loading", self.store.flights().len())?;
            Ok(facts)
        })
    }

    /// Sets all counters to zero; entries stay.
    fn reset_stats(&self) -> PyResult<()> {
        edge("Cache.reset_stats", || {
            self.store.lock().reset_stats();
            Ok(())
        })
    }

    /// The awaitable of a hit, or a ``Lookup`` to load and store with, or a pair: the
    /// awaitable and a ``Lookup`` to refresh with, or ``None`` and a failure.
    #[pyo3(signature = (key, freshness=None))]
    fn _ready_or_lookup<'py>(
        &self,
        key: &Bound<'py, PyAny>,
        freshness: Option<&Bound<'py, Freshness>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("Cache._ready_or_lookup", || {
            let py = key.py();
            let encoded = self.store.key(key)?;
            let found = self.store.look(py, &encoded.key, freshness.map(Bound::get));
            let lookup = || Bound::new(py, Lookup::new(encoded, Some(key.clone().unbind())));
            match found {
                Found::Value(value, false) => ready(py, value),
                Found::Value(value, true) => {
                    Ok((ready(py, value)?, lookup()?).into_pyobject(py)?.into_any())
                }
                Found::Failure(failure) => Ok((py.None(), failure).into_pyobject(py)?.into_any()),
                Found::Absent => Ok(lookup()?.into_any()),
            }
        })
    }

    /// ``(value,)`` for a caller whose load failed, if ``freshness`` allows a stale one.
    fn _fallback<'py>(
        &self,
        py: Python<'py>,
        lookup: &Lookup,
        freshness: &Freshness,
    ) -> PyResult<Option<(Bound<'py, PyAny>,)>> {
        edge("Cache._fallback", || {
            let within = freshness.stale_if_error();
            if within == 0 {
                return Ok(None);
            }
            Ok(self.store.fallback(py, &lookup.key, within).map(|value| (value,)))
        })
    }

    /// Joins the load for ``lookup``: ``(flight, leads, found)``; ``found`` is
    /// ``(value,)`` when somebody stored it since the miss: land that.
    fn _join<'py>(slf: &Bound<'py, Self>, lookup: &Lookup) -> PyResult<Joined<'py>> {
        edge("Cache._join", || {
            let (flight, leads) = Self::join(slf, lookup, Purpose::Answer)?;
            // The flight before ours may have landed between our miss and our joining.
            let store = &slf.get().store;
            let found = if leads { store.overtaken(slf.py(), &lookup.key) } else { None };
            Ok((flight, leads, found.map(|value| (value,))))
        })
    }

    /// As ``_join``, to replace the value that is served meanwhile.
    fn _join_refresh<'py>(slf: &Bound<'py, Self>, lookup: &Lookup) -> PyResult<Joined<'py>> {
        edge("Cache._join_refresh", || {
            let (flight, leads) = Self::join(slf, lookup, Purpose::Refresh)?;
            Ok((flight, leads, None))
        })
    }

    /// As ``_join``, whatever is there: joins only what was begun by this method too.
    fn _join_anew<'py>(slf: &Bound<'py, Self>, lookup: &Lookup) -> PyResult<Joined<'py>> {
        edge("Cache._join_anew", || {
            let (flight, leads) = Self::join(slf, lookup, Purpose::Anew)?;
            Ok((flight, leads, None))
        })
    }

    /// A flight for ``lookup`` that nobody joins, to store with and to abandon.
    fn _depart_alone<'py>(slf: &Bound<'py, Self>, lookup: &Lookup) -> PyResult<Bound<'py, Flight>> {
        edge("Cache._depart_alone", || {
            let store = &slf.get().store;
            let inner = store.flights().depart_alone(&lookup.key);
            let (cache, key, began) = (slf.clone().unbind(), lookup.key, store.clock.now());
            Bound::new(slf.py(), Flight::new(cache, key, inner, true, began))
        })
    }

    /// The name it was given.
    #[getter]
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Which entry makes room: ``"lru"`` or ``"adaptive"``.
    #[getter]
    fn policy(&self) -> &'static str {
        self.store.policy().0.as_str()
    }

    /// Entries at most.
    #[getter]
    fn max_size(&self) -> usize {
        self.store.lock().bounds().max_size
    }

    /// Weight at most, or ``None``.
    #[getter]
    fn max_bytes(&self) -> Option<u64> {
        self.store.lock().bounds().max_weight
    }

    /// Seconds to live, or ``None``.
    #[getter]
    fn ttl(&self) -> Option<f64> {
        self.store.lock().bounds().ttl.map(secs_from_nanos)
    }

    /// Seconds to idle, or ``None``.
    #[getter]
    fn tti(&self) -> Option<f64> {
        self.store.lock().bounds().tti.map(secs_from_nanos)
    }

    /// Whether it stores anything at all.
    #[getter]
    fn enabled(&self) -> bool {
        self.store.enabled
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.store.traverse(&visit)
    }

    fn __clear__(&self) {
        self.store.break_cycles();
    }
}
