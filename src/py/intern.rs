//! Python's own `==` and `hash` for keys without a canonical form.

use std::sync::Arc;

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use crate::core::key::intern::{Candidates, InternTable, ObjectId};
use crate::core::sync::Mutex;

/// The interned key objects of one cache. Its lock is only taken while attached.
#[derive(Default)]
pub(crate) struct Interner(Mutex<InternTable<Py<PyAny>>>);

/// Holds one interned object; the object leaves with its last holder.
pub(crate) struct Held {
    interner: Arc<Interner>,
    id: ObjectId,
}

impl Interner {
    /// The number of the object that equals `object`, as a `dict` would find it.
    ///
    /// # Errors
    /// Whatever the object's `__hash__` or `__eq__` raises.
    pub(crate) fn intern(
        self: &Arc<Self>,
        object: &Bound<'_, PyAny>,
    ) -> PyResult<(ObjectId, Held)> {
        let py = object.py();
        let hash = object.hash()?.cast_unsigned() as u64;
        loop {
            let seen = self.0.lock().candidates(hash, |known| known.clone_ref(py));
            if let Some(id) = Self::equal_one(object, &seen)? {
                if self.0.lock().hold(id) {
                    return Ok((id, self.held(id)));
                }
                continue;
            }
            let own = object.clone().unbind();
            let entered = self.0.lock().enter(hash, own, &seen);
            match entered {
                Ok(id) => return Ok((id, self.held(id))),
                // Somebody entered an object meanwhile, perhaps this one; the
                // reference comes back and is dropped here, unlocked.
                Err(object) => drop(object),
            }
        }
    }

    fn equal_one(
        object: &Bound<'_, PyAny>,
        seen: &Candidates<Py<PyAny>>,
    ) -> PyResult<Option<ObjectId>> {
        for (id, known) in &seen.objects {
            let known = known.bind(object.py());
            if known.is(object) || known.eq(object)? {
                return Ok(Some(*id));
            }
        }
        Ok(None)
    }

    fn held(self: &Arc<Self>, id: ObjectId) -> Held {
        Held { interner: Arc::clone(self), id }
    }

    /// Visits the objects, for the collector.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.0.lock().objects().try_for_each(|object| visit.call(object))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let gone = self.interner.0.lock().release(self.id);
        drop(gone);
    }
}
