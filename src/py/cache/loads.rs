//! What loads do with a cache: they see every state of an entry, and store under their flight.

use pyo3::prelude::*;

use super::flight::{Lookup, Outcome, Waiter};
use super::freshness::Freshness;
use super::store::{PyEntry, Store};
use crate::core::cache::{Aging, Graveyard, Insert, Lifetime, Look, Savings, Tag, Wish};
use crate::core::clock::Nanos;
use crate::core::flight::Flight;
use crate::core::key::Key;

/// What a lookup found that may lead to a load.
pub(crate) enum Found<'py> {
    /// A value, and whether the caller is to refresh it.
    Value(Bound<'py, PyAny>, bool),
    /// A remembered failure.
    Failure(Bound<'py, PyAny>),
    Absent,
}

impl Store {
    /// What the terms of `freshness` may be served under `key`, counted and made the most recent.
    pub(crate) fn look<'py>(
        &self,
        py: Python<'py>,
        key: &Key,
        freshness: Option<&Freshness>,
    ) -> Found<'py> {
        let wish = freshness.map_or(Wish::default(), Freshness::wish);
        let mut grave = Graveyard::new();
        let mut table = self.table.lock();
        let found = match table.look(key, &self.clock, wish, &mut grave) {
            Look::Value(entry, refresh) => Found::Value(entry.value.bind(py).clone(), refresh),
            Look::Failure(entry) => Found::Failure(entry.value.bind(py).clone()),
            Look::Absent => Found::Absent,
        };
        drop(table);
        if !grave.is_empty() {
            self.bury(py, grave);
        }
        found
    }

    /// The value for a caller whose load failed, if it may be served.
    pub(crate) fn fallback<'py>(
        &self,
        py: Python<'py>,
        key: &Key,
        within: Nanos,
    ) -> Option<Bound<'py, PyAny>> {
        let mut table = self.table.lock();
        let now = self.clock.now();
        table.fallback(key, within, now).map(|entry| entry.value.bind(py).clone())
    }

    /// Writes what a flight has loaded in `took`, unless that is outdated; returns what it saves
    /// whoever does not have to load it.
    pub(crate) fn set_loaded(
        &self,
        lookup: &Bound<'_, Lookup>,
        value: Bound<'_, PyAny>,
        freshness: Option<&Freshness>,
        took: Nanos,
        flight: &Flight<Outcome, Waiter>,
    ) -> PyResult<Option<Savings>> {
        if !self.enabled {
            return Ok(None);
        }
        let (py, lookup) = (lookup.py(), lookup.get());
        let weight = self.weight(py, lookup.original(py), &value)?;
        let saves = self.savings(py, lookup.original(py), &value, Some(took))?;
        let saved = saves.as_deref().copied();
        let entry = lookup.entry(py, value);
        self.store(py, entry, &lookup.key, flight, |usual, tags| {
            let (lifetime, aging) = match freshness {
                Some(freshness) => freshness.dates(usual, took),
                None => (Lifetime::Usual, None),
            };
            Insert { lifetime, weight, tags, aging, saves }
        });
        Ok(saved)
    }

    /// Remembers for `ttl` that a flight has failed, unless that is outdated or there is a value.
    pub(crate) fn set_failed(
        &self,
        lookup: &Bound<'_, Lookup>,
        failure: Bound<'_, PyAny>,
        weight: u64,
        ttl: Nanos,
        flight: &Flight<Outcome, Waiter>,
    ) {
        if !self.enabled {
            return;
        }
        let (py, lookup) = (lookup.py(), lookup.get());
        let entry = lookup.entry(py, failure);
        self.store(py, entry, &lookup.key, flight, |_, tags| Insert {
            lifetime: Lifetime::For(ttl),
            weight,
            tags,
            aging: Some(Box::new(Aging::of_failure())),
            saves: None,
        });
    }

    fn store(
        &self,
        py: Python<'_>,
        entry: PyEntry,
        key: &Key,
        flight: &Flight<Outcome, Waiter>,
        insert: impl FnOnce(Option<Nanos>, Vec<Tag>) -> Insert,
    ) {
        let mut entry = Some(entry);
        let mut grave = Graveyard::new();
        let stored = flight.store(|tags| {
            let mut table = self.table.lock();
            let now = self.clock.now();
            let insert = insert(table.bounds().ttl, tags);
            entry.take().map(|entry| table.insert(key, entry, insert, now, &mut grave))
        });
        // Unlocked: what was refused, and what is outdated.
        drop((stored, entry));
        if !grave.is_empty() {
            self.bury_attached(py, grave);
        }
    }

    pub(crate) fn count_saved(&self, saved: &Savings) {
        self.table.lock().count_saved(saved);
    }

    pub(crate) fn count_refresh(&self) {
        self.table.lock().count_refresh();
    }

    pub(crate) fn count_refresh_failure(&self) {
        self.table.lock().count_refresh_failure();
    }
}
