//! The bindings: convert, call the core, convert back.

mod awaitable;
mod convert;
mod edge;

use pyo3::prelude::*;

#[pymodule(gil_used = true)]
#[pyo3(name = "_core")]
fn core_module(m: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = m.py();
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add("FerrogateError", py.get_type::<edge::FerrogateError>())?;
    m.add("InternalError", py.get_type::<edge::InternalError>())?;
    #[cfg(feature = "failpoints")]
    {
        m.add_function(wrap_pyfunction!(edge::failpoint::_arm_failpoint, m)?)?;
        m.add_function(wrap_pyfunction!(edge::failpoint::_seen_failpoints, m)?)?;
    }
    m.add_class::<convert::PyManualClock>()?;
    awaitable::register(m)?;
    Ok(())
}
