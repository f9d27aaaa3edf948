//! The lease of a load, in the hands of whoever loads.

use std::sync::{Arc, Weak};

use pyo3::prelude::*;

use crate::core::sync::Mutex;
use crate::py::edge::edge;
use crate::runtime::granted::Granted;
use crate::runtime::tier;

/// This process's permission to load. It goes back to the store by itself when nobody has it
/// any more: also if the task that asked for it is cancelled in the very tick of the answer.
#[pyclass(frozen, module = "ferrogate._core", name = "_Lease")]
pub(crate) struct Lease(Arc<Hold>);

/// A permission, until it is given back.
pub(super) type Hold = Mutex<Option<Granted>>;

impl Lease {
    pub(super) fn of(granted: Granted) -> Self {
        Self(Arc::new(Mutex::new(Some(granted))))
    }

    /// For who may have to give it back in the loader's place.
    pub(super) fn hold(&self) -> Weak<Hold> {
        Arc::downgrade(&self.0)
    }

    /// The lease, if it is still held.
    pub(super) fn lease(&self) -> Option<tier::Lease> {
        self.0.lock().as_ref().map(Granted::lease)
    }

    /// A request that ends it is on its way.
    pub(super) fn used_up(&self) {
        if let Some(granted) = &*self.0.lock() {
            granted.used_up();
        }
    }
}

#[pymethods]
impl Lease {
    /// Gives it back, and waits for nothing: also where no loop runs any more.
    fn release(&self) -> PyResult<()> {
        edge("_Lease.release", || {
            let granted = self.0.lock().take();
            drop(granted);
            Ok(())
        })
    }
}
