//! What a cache holds, and the only code that takes its lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::PyTypeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::flight::{Outcome, Waiter};
use super::hooks::Hooks;
use crate::core::cache::{
    Bounds, Ghosts, Graveyard, Insert, Lifetime, Policy, State, Stats, Table, Tag,
};
use crate::core::clock::Clock;
use crate::core::flight::Flights;
use crate::core::key::{Key, Probe};
use crate::core::sync::{Mutex, MutexGuard};
use crate::py::convert::{duration, type_name};
use crate::py::edge::edge;
use crate::py::intern::{Held, Interner};
use crate::py::key::{Encoded, key_of, text_probe};
use crate::runtime;

/// How many expired entries leave per lock.
const SWEEP: usize = 256;

/// A value with the object that was its key.
pub(crate) struct PyEntry {
    /// The key as the caller wrote it; absent where the key was made from arguments.
    pub(crate) key: Option<Py<PyAny>>,
    /// A [`Failure`](super::flight::Failure) where a load's failure is remembered.
    pub(crate) value: Py<PyAny>,
    /// Keeps the interned parts of the key for as long as the entry lives.
    #[allow(dead_code, reason = "held for its Drop")]
    pub(crate) held: Box<[Held]>,
}

/// The state behind a cache object. Its locks are only taken while attached,
/// and nothing under them creates, drops or calls a Python object.
pub(crate) struct Store {
    pub(super) table: Mutex<Table<PyEntry>>,
    pub(super) hooks: Hooks,
    pub(crate) interner: Arc<Interner>,
    pub(crate) flights: Flights<Outcome, Waiter>,
    generation: AtomicU64,
    pub(crate) clock: Clock,
    pub(crate) enabled: bool,
}

impl Store {
    pub(crate) fn new(
        bounds: Bounds,
        policy: Policy,
        hooks: Hooks,
        clock: Clock,
        enabled: bool,
    ) -> Self {
        Self {
            table: Mutex::new(Table::new(bounds, policy)),
            hooks,
            interner: Arc::default(),
            flights: Flights::default(),
            generation: AtomicU64::new(runtime::generation()),
            clock,
            enabled,
        }
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, Table<PyEntry>> {
        self.table.lock()
    }

    /// The flights of this process; those of a parent process are forgotten first.
    pub(crate) fn flights(&self) -> &Flights<Outcome, Waiter> {
        let now = runtime::generation();
        if self.generation.swap(now, Ordering::Relaxed) != now {
            drop(self.flights.forget());
        }
        &self.flights
    }

    pub(crate) fn key(&self, key: &Bound<'_, PyAny>) -> PyResult<Encoded> {
        key_of(key, &self.interner)
    }

    /// The fresh value under `key`, counted and made the most recent; without a trace if
    /// there is none, or one that [`look`](Self::look) has to see.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "its calls were 5 of the 50 ns of a hit")]
    pub(crate) fn hit<'py>(&self, py: Python<'py>, key: &impl Probe) -> Option<Bound<'py, PyAny>> {
        let mut table = self.table.lock();
        // Taking a reference runs no code; the entry itself stays.
        table.hit(key, &self.clock).map(|entry| entry.value.bind(py).clone())
    }

    /// The fresh value under `key`, counted and made the most recent.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "its calls were 5 of the 50 ns of a hit")]
    pub(crate) fn get<'py>(&self, py: Python<'py>, key: &impl Probe) -> Option<Bound<'py, PyAny>> {
        let mut grave = Graveyard::new();
        let mut table = self.table.lock();
        // Taking a reference runs no code; the entry itself stays.
        let value =
            table.get(key, &self.clock, &mut grave).map(|entry| entry.value.bind(py).clone());
        drop(table);
        if !grave.is_empty() {
            self.bury(py, grave);
        }
        value
    }

    /// [`get`](Self::get) by the object that is the key.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "its calls were 5 of the 50 ns of a hit")]
    pub(crate) fn find<'py>(&self, key: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match text_probe(key) {
            Some(text) => Ok(self.get(key.py(), &text)),
            None => Ok(self.get(key.py(), &self.key(key)?.key)),
        }
    }

    /// The fresh value under `key`; neither counted nor made recent.
    pub(crate) fn peek<'py>(&self, py: Python<'py>, key: &Key) -> Option<Bound<'py, PyAny>> {
        self.table.lock().peek(key, &self.clock).map(|entry| entry.value.bind(py).clone())
    }

    /// The fresh value under `key` for a caller who has missed it, and need not load it after all.
    pub(crate) fn overtaken<'py>(&self, py: Python<'py>, key: &Key) -> Option<Bound<'py, PyAny>> {
        self.table.lock().overtaken(key, &self.clock).map(|entry| entry.value.bind(py).clone())
    }

    /// Whether there is a fresh value under the key `key`.
    #[inline]
    pub(crate) fn contains(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        match text_probe(key) {
            Some(text) => Ok(self.table.lock().peek(&text, &self.clock).is_some()),
            None => Ok(self.peek(key.py(), &self.key(key)?.key).is_some()),
        }
    }

    /// Writes a value under the object that is its key.
    #[inline]
    pub(crate) fn set_item(
        &self,
        key: &Bound<'_, PyAny>,
        value: Bound<'_, PyAny>,
        lifetime: Lifetime,
        tags: Vec<Tag>,
    ) -> PyResult<()> {
        let original = Some(key.clone());
        match text_probe(key) {
            Some(text) => self.write(key.py(), &text, Vec::new(), original, value, lifetime, tags),
            None => self.set(key.py(), self.key(key)?, original, value, lifetime, tags),
        }
    }

    /// Writes a value under the key that was made for it.
    pub(crate) fn set(
        &self,
        py: Python<'_>,
        encoded: Encoded,
        original: Option<Bound<'_, PyAny>>,
        value: Bound<'_, PyAny>,
        lifetime: Lifetime,
        tags: Vec<Tag>,
    ) -> PyResult<()> {
        self.write(py, &encoded.key, encoded.held, original, value, lifetime, tags)
    }

    /// The weigher runs before the lock, the listener after it.
    #[inline]
    #[allow(clippy::too_many_arguments, reason = "bundled, they were moved about for 8 ns")]
    fn write(
        &self,
        py: Python<'_>,
        key: &impl Probe,
        held: Vec<Held>,
        original: Option<Bound<'_, PyAny>>,
        value: Bound<'_, PyAny>,
        lifetime: Lifetime,
        tags: Vec<Tag>,
    ) -> PyResult<()> {
        if !self.enabled {
            return Ok(());
        }
        let weight = self.weight(py, original.as_ref(), &value)?;
        let saves = self.savings(py, original.as_ref(), &value, None)?;
        if !self.flights.is_empty() {
            self.outdate(key);
        }
        let held = held.into_boxed_slice();
        let original = original.map(Bound::unbind);
        let entry = PyEntry { key: original, value: value.unbind(), held };
        let insert = Insert { lifetime, weight, tags, aging: None, saves };
        let mut grave = Graveyard::new();
        let mut table = self.table.lock();
        let now = self.clock.now();
        let refused = table.insert(key, entry, insert, now, &mut grave);
        drop(table);
        // A value that alone exceeds the bound was not stored; drop it here, unlocked.
        drop(refused);
        if !grave.is_empty() {
            // Writers are called as methods, so `PyO3` knows that they are attached.
            self.bury_attached(py, grave);
        }
        Ok(())
    }

    /// The live value under `key`, or `default` written there, as one step.
    pub(crate) fn set_default<'py>(
        &self,
        key: &Bound<'py, PyAny>,
        default: Bound<'py, PyAny>,
        tags: Vec<Tag>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = key.py();
        let encoded = self.key(key)?;
        if let Some(found) = self.get(py, &encoded.key) {
            return Ok(found);
        }
        if !self.enabled {
            return Ok(default);
        }
        let weight = self.weight(py, Some(key), &default)?;
        let saves = self.savings(py, Some(key), &default, None)?;
        let held = encoded.held.into_boxed_slice();
        let original = Some(key.clone().unbind());
        let value = default.clone().unbind();
        let entry = PyEntry { key: original, value, held };
        let insert = Insert { weight, tags, saves, ..Insert::default() };
        let mut grave = Graveyard::new();
        let mut table = self.table.lock();
        // The weigher may have let somebody else in since the look.
        let found =
            table.overtaken(&encoded.key, &self.clock).map(|entry| entry.value.bind(py).clone());
        let unused = if found.is_some() {
            Err(entry)
        } else {
            let now = self.clock.now();
            table.insert(&encoded.key, entry, insert, now, &mut grave)
        };
        drop(table);
        drop(unused);
        if found.is_none() {
            self.flights().outdate(&encoded.key);
        }
        if !grave.is_empty() {
            self.bury_attached(py, grave);
        }
        Ok(found.unwrap_or(default))
    }

    /// What is written now is newer than what a load under way has read.
    #[cold]
    fn outdate(&self, key: &impl Probe) {
        self.flights().outdate(&key.to_key());
    }

    /// Runs an operation on the locked table and buries what it removed.
    pub(crate) fn with<R>(
        &self,
        py: Python<'_>,
        body: impl FnOnce(&mut Table<PyEntry>, u64, &mut Graveyard<PyEntry>) -> R,
    ) -> R {
        let mut grave = Graveyard::new();
        let mut table = self.table.lock();
        let now = self.clock.now();
        let result = body(&mut table, now, &mut grave);
        drop(table);
        if !grave.is_empty() {
            self.bury(py, grave);
        }
        result
    }

    /// Removes what has expired, a few at a time; returns how many.
    pub(crate) fn sweep(&self, py: Python<'_>) -> usize {
        let mut total = 0;
        loop {
            let swept = self.with(py, |table, now, grave| table.sweep(SWEEP, now, grave));
            total += swept;
            if swept < SWEEP {
                return total;
            }
        }
    }

    /// Removes the entry under `key` and outdates the load of it; returns what `pick`
    /// makes of the entry that was there, and of its state.
    pub(crate) fn remove<R>(
        &self,
        py: Python<'_>,
        key: &Key,
        pick: impl FnOnce(State, &PyEntry) -> R,
    ) -> Option<R> {
        self.flights().outdate(key);
        self.with(py, |table, now, grave| {
            let state = table.remove(key, now, grave)?;
            grave.last().map(|(_, entry)| pick(state, entry))
        })
    }

    /// Removes what is tagged now, a few at a time, and outdates the loads of what will be;
    /// returns how many were live. The listener
    /// hears of them at the end: what it writes under the same tag stays, and is not mistaken
    /// for what was there before (it went round for ever with a listener that did).
    pub(crate) fn invalidate_tag(&self, py: Python<'_>, tag: &str) -> usize {
        self.flights().outdate_tagged(tag);
        let mut grave = Graveyard::new();
        let mut total = 0;
        let mut left = self.table.lock().tagged(tag);
        while left > 0 {
            let batch = left.min(SWEEP);
            let mut table = self.table.lock();
            let now = self.clock.now();
            total += table.invalidate_tag(tag, batch, now, &mut grave);
            drop(table);
            left -= batch;
        }
        if !grave.is_empty() {
            self.bury(py, grave);
        }
        total
    }

    /// Removes everything and outdates every load.
    pub(crate) fn clear(&self, py: Python<'_>) {
        self.flights().outdate_all();
        self.with(py, Table::clear);
    }

    /// The fresh entries, copied by `pick`, from the least to the most recently used.
    pub(crate) fn snapshot<T>(&self, mut pick: impl FnMut(&PyEntry) -> Option<T>) -> Vec<T> {
        let mut table = self.table.lock();
        let now = self.clock.now();
        let mut picked = Vec::with_capacity(table.len());
        table.by_recency(now, |entry| picked.extend(pick(entry)));
        picked
    }

    pub(crate) fn count_miss(&self) {
        self.table.lock().count_miss();
    }

    /// Counters, size, weight and bounds at one instant; call `sweep` first for an exact size.
    pub(crate) fn stats(&self) -> (Stats, usize, u64, Bounds) {
        let table = self.table.lock();
        (table.stats(), table.len(), table.weight(), table.bounds())
    }

    /// Which entry makes room, and what is remembered to know that.
    pub(crate) fn policy(&self) -> (Policy, Ghosts) {
        let table = self.table.lock();
        (table.policy(), table.ghosts())
    }

    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        for entry in self.table.lock().values() {
            visit.call(&entry.key)?;
            visit.call(&entry.value)?;
        }
        self.hooks.traverse(visit)?;
        // Flights that are under way hold waiters only; a landed one is out of
        // the table and owned by whoever awaits it.
        let mut result = Ok(());
        self.flights.visit(|flight| {
            flight.visit(
                |_| {},
                |waiter| {
                    if result.is_ok() {
                        result = waiter.traverse(visit);
                    }
                },
            );
        });
        result?;
        self.interner.traverse(visit)
    }

    /// For the collector: everything goes, nobody is told.
    pub(crate) fn break_cycles(&self) {
        let mut grave = Graveyard::new();
        self.table.lock().clear(0, &mut grave);
        drop(grave);
        self.hooks.clear();
        drop(self.flights.forget());
    }
}

/// `ttl=` of one write: absent means the cache's own, `None` no expiry.
pub(crate) fn lifetime(ttl: Option<&Bound<'_, PyAny>>) -> PyResult<Lifetime> {
    match ttl {
        None => Ok(Lifetime::Usual),
        Some(ttl) => Ok(Lifetime::For(duration("ttl", ttl)?)),
    }
}

/// `tags=`: an iterable of str.
pub(crate) fn tags(tags: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<Tag>> {
    let Some(tags) = tags else { return Ok(Vec::new()) };
    let wrong = |got: &Bound<'_, PyAny>| {
        PyTypeError::new_err(format!(
            "tags: expected an iterable of str such as [\"user:1\"], got {}",
            type_name(got)
        ))
    };
    if tags.is_instance_of::<PyString>() {
        // Iterating it would tag with its letters.
        return Err(wrong(tags));
    }
    let mut found: Vec<Tag> = Vec::new();
    for tag in tags.try_iter().map_err(|_| wrong(tags))? {
        let tag = tag?;
        let text = tag.cast::<PyString>().map_err(|_| wrong(&tag))?;
        let tag = Tag::from(text.to_str()?);
        if !found.contains(&tag) {
            found.push(tag);
        }
    }
    Ok(found)
}

/// Checks ``tags`` as every writer does; returns them without repetitions.
///
/// Raises:
///     TypeError: not an iterable of str, or a str itself.
#[pyfunction]
#[pyo3(name = "_check_tags")]
pub(crate) fn check_tags(tags: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    edge("_check_tags", || Ok(self::tags(Some(tags))?.iter().map(ToString::to_string).collect()))
}
