//! Scalars of other libraries that equal one of Python's.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyComplex, PyDict, PyFloat, PyType};

use super::failure::Failure;
use super::standard::known;
use super::walk::Walker;

impl Walker<'_> {
    /// Scalars of other libraries that equal one of Python's.
    pub(super) fn foreign(
        &mut self,
        value: &Bound<'_, PyAny>,
        class: &Bound<'_, PyType>,
    ) -> Result<bool, Failure> {
        let py = value.py();
        let known = known(py)?;
        if let Some(kind) = numpy_kind(value)? {
            return self.numpy(value, class, kind);
        }
        if value.is_instance(known.integral.bind(py))? {
            // SAFETY: attached; returns an int or null with an error set.
            let index =
                unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyNumber_Index(value.as_ptr()))? };
            if !stands_for(value, &index)? {
                return Ok(false);
            }
            self.kind(class)?;
            self.integer(&index)?;
        } else if value.is_instance(known.real.bind(py))? {
            // SAFETY: attached; returns a float or null with an error set.
            let float =
                unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyNumber_Float(value.as_ptr()))? };
            if !stands_for(value, &float)? {
                return Ok(false);
            }
            self.kind(class)?;
            self.encoder.float(float.extract()?);
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// A scalar of NumPy, if it equals something of Python's with the same hash.
    fn numpy(
        &mut self,
        value: &Bound<'_, PyAny>,
        class: &Bound<'_, PyType>,
        kind: char,
    ) -> Result<bool, Failure> {
        let py = value.py();
        let equal = match kind {
            'b' | 'i' | 'u' | 'U' | 'S' => value.call_method0("item")?,
            // Not `item()`, which keeps long doubles as they are.
            'f' => py.get_type::<PyFloat>().call1((value,))?,
            'c' => py.get_type::<PyComplex>().call1((value,))?,
            // Times: equal to Python's, but hashed otherwise. Records.
            _ => return Ok(false),
        };
        // NaN equals itself here.
        let is_nan = matches!(kind, 'f' | 'c') && equal.ne(&equal)?;
        if !is_nan && !stands_for(value, &equal)? {
            return Ok(false);
        }
        if !matches!(kind, 'U' | 'S') {
            self.kind(class)?;
        }
        self.value(&equal)?;
        Ok(true)
    }
}

/// Whether a dict would find `value` under `number`.
fn stands_for(value: &Bound<'_, PyAny>, number: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(value.eq(number)? && value.hash()? == number.hash()?)
}

/// The kind of a scalar of NumPy, as `dtype.kind` says it.
fn numpy_kind(value: &Bound<'_, PyAny>) -> PyResult<Option<char>> {
    let modules = value.py().import("sys")?.getattr("modules")?.cast_into::<PyDict>()?;
    // Where it was never imported there are none.
    let Some(numpy) = modules.get_item("numpy")? else { return Ok(None) };
    let Ok(generic) = numpy.getattr("generic") else { return Ok(None) };
    if !value.is_instance(&generic)? {
        return Ok(None);
    }
    value.getattr("dtype")?.getattr("kind")?.extract().map(Some)
}
