//! The instances whose methods are cached.
//!
//! `self` is part of a method's key, but by a number, not by reference: the
//! cache must not keep the instance alive, and when the instance dies its
//! entries go with it. One that nobody can refer to weakly takes part by its
//! value, if that is all it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyType, PyWeakrefMethods, PyWeakrefReference};

use crate::core::key::encode::tag;
use crate::core::sync::Mutex;
use crate::py::cache::Cache;
use crate::py::convert::type_name;
use crate::py::intern::Held;
use crate::py::key::class_and_value;

/// The classes that have a cached function as an attribute, not kept alive by it.
#[derive(Default)]
pub(crate) struct Owners(Mutex<Vec<Py<PyWeakrefReference>>>);

impl Owners {
    /// How many classes are remembered: a function is an attribute of one, a shared helper of a few.
    const MAX: usize = 16;

    fn live<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyAny>> {
        let known: Vec<_> = self.0.lock().iter().map(|weak| weak.clone_ref(py)).collect();
        known.iter().filter_map(|weak| weak.bind(py).upgrade()).collect()
    }

    pub(crate) fn add(&self, class: &Bound<'_, PyType>) -> PyResult<()> {
        let py = class.py();
        let live = self.live(py);
        if live.len() >= Self::MAX || live.iter().any(|owner| owner.is(class)) {
            return Ok(());
        }
        let mut owners = Vec::with_capacity(live.len() + 1);
        for owner in live.iter().chain(std::iter::once(class.as_any())) {
            owners.push(PyWeakrefReference::new(owner)?.unbind());
        }
        let replaced = std::mem::replace(&mut *self.0.lock(), owners);
        drop(replaced);
        Ok(())
    }

    /// Whether `object` is an instance of one of them.
    pub(crate) fn have(&self, object: &Bound<'_, PyAny>) -> bool {
        // SAFETY: attached; two live types. Unlike isinstance() this calls nobody.
        self.live(object.py()).iter().any(|owner| unsafe {
            ffi::PyType_IsSubtype(ffi::Py_TYPE(object.as_ptr()), owner.as_ptr().cast()) != 0
        })
    }

    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.0.lock().iter().try_for_each(|weak| visit.call(weak))
    }
}

type Known = HashMap<usize, (u64, Py<PyWeakrefReference>)>;

/// Numbers for live instances; its lock is only taken while attached.
#[derive(Default)]
pub(crate) struct Instances(Arc<Mutex<Known>>);

/// An instance's part of a key, and the tag that its entries go by.
pub(crate) struct Token {
    number: u64,
}

impl Token {
    pub(crate) fn encoding(&self) -> [u8; 9] {
        let mut bytes = [tag::INTERNED; 9];
        bytes[1..].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    pub(crate) fn tag(&self) -> String {
        instance_tag(self.number)
    }
}

/// What stands for an instance in a key.
pub(crate) enum Part {
    /// Its number.
    Token(Token),
    /// The encoding of its class and value, and what that stands on.
    Value(Vec<u8>, Vec<Held>),
}

/// A tag that no user can have chosen by accident.
fn instance_tag(number: u64) -> String {
    format!("\0self:{number}")
}

impl Instances {
    /// What stands for `instance` in the keys of `cache`.
    pub(crate) fn part(
        &self,
        instance: &Bound<'_, PyAny>,
        cache: &Bound<'_, Cache>,
        typed: bool,
    ) -> PyResult<Part> {
        // SAFETY: attached; reads a field of a live type. (`PyType_SUPPORTS_WEAKREFS` of pyo3-ffi
        // asks for a positive one, as was right before 3.12.)
        if unsafe { (*instance.get_type_ptr()).tp_weaklistoffset } != 0 {
            return self.token(instance, cache).map(Part::Token);
        }
        let (encoding, held) = class_and_value(instance, &cache.get().store.interner, typed)?
            .ok_or_else(|| {
                PyTypeError::new_err(format!(
                    "self: instances of {} cannot be weakly referenced, so a cached method would \
                     keep them alive; add '__weakref__' to __slots__, give the class a \
                     __cache_key__() method, or leave self out with ignore=(\"self\",)",
                    type_name(instance)
                ))
            })?;
        Ok(Part::Value(encoding, held))
    }

    /// The number of a live instance.
    fn token(&self, instance: &Bound<'_, PyAny>, cache: &Bound<'_, Cache>) -> PyResult<Token> {
        let py = instance.py();
        let address = instance.as_ptr() as usize;
        loop {
            let known =
                self.0.lock().get(&address).map(|(number, weak)| (*number, weak.clone_ref(py)));
            let seen = known.as_ref().map(|(number, _)| *number);
            if let Some((number, weak)) = known
                && weak.bind(py).upgrade().is_some_and(|live| live.is(instance))
            {
                return Ok(Token { number });
            }
            if let Some(token) = self.enter(instance, cache, seen)? {
                return Ok(token);
            }
        }
    }

    /// Gives the instance a number, unless another thread did since `seen`.
    fn enter(
        &self,
        instance: &Bound<'_, PyAny>,
        cache: &Bound<'_, Cache>,
        seen: Option<u64>,
    ) -> PyResult<Option<Token>> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let py = instance.py();
        let address = instance.as_ptr() as usize;
        // Above 2^63, so that it never meets the number of an interned object.
        let number = NEXT.fetch_add(1, Ordering::Relaxed) | (1 << 63);
        let known = Arc::downgrade(&self.0);
        let weak_cache = PyWeakrefReference::new(cache)?.unbind();
        let farewell = PyCFunction::new_closure(py, None, None, move |args, _| -> PyResult<()> {
            let py = args.py();
            let gone = known.upgrade().and_then(|known| {
                let mut known = known.lock();
                // The address may belong to a younger instance by now.
                let ours = known.get(&address).is_some_and(|(other, _)| *other == number);
                if ours { known.remove(&address) } else { None }
            });
            drop(gone);
            if let Some(cache) = weak_cache.bind(py).upgrade_as::<Cache>()? {
                cache.get().store.invalidate_tag(py, &instance_tag(number));
            }
            Ok(())
        })?;
        let weak = PyWeakrefReference::new_with(instance, farewell)?;
        let mut known = self.0.lock();
        if known.get(&address).map(|(number, _)| *number) != seen {
            drop(known);
            // Dropped unlocked, and before it can say farewell.
            drop(weak);
            return Ok(None);
        }
        let replaced = known.insert(address, (number, weak.unbind()));
        drop(known);
        drop(replaced);
        Ok(Some(Token { number }))
    }

    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.0.lock().values().try_for_each(|(_, weak)| visit.call(weak))
    }
}
