//! `ferrogate._core.CacheService`: a near cache in front of a store.

mod bridge;
mod calls;
mod class;
mod finish;
mod lease;
mod options;

use pyo3::prelude::*;

pub(crate) use bridge::{prepare, watch_here};
pub(crate) use options::{after_forks, redis_config};

/// Makes the classes known.
pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<class::CacheService>()?;
    m.add_class::<lease::Lease>()?;
    m.add("CacheUnavailable", m.py().get_type::<finish::CacheUnavailable>())
}
