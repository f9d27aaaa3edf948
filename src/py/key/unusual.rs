//! Values beyond the exact built-in types: subclasses, enums, objects
//! with `__cache_key__`, and the opaque rest.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{
    PyByteArray, PyBytes, PyComplex, PyComplexMethods, PyDict, PyList, PyMemoryView, PyString,
    PyTuple, PyType,
};

use super::failure::{Failure, Kind};
use super::objects::{has_generated_equality, has_model_equality};
use super::standard::known;
use super::walk::{Opaque, Walk, Walker};
use crate::core::key::encode::tag;
use crate::py::convert::type_name;

/// Whether instances of `class` compare and hash just as those of `base` do.
pub(super) fn compares_as(class: &Bound<'_, PyType>, base: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(class.is(base)
        || (class.getattr("__eq__")?.is(&base.getattr("__eq__")?)
            && class.getattr("__hash__")?.is(&base.getattr("__hash__")?)))
}

/// Whether instances of `class` compare just as those of `base` do, hashable or not.
pub(super) fn equals_as(class: &Bound<'_, PyType>, base: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(class.is(base) || class.getattr("__eq__")?.is(&base.getattr("__eq__")?))
}

impl Walker<'_> {
    /// Everything but the exact built-in types.
    pub(super) fn unusual(&mut self, value: &Bound<'_, PyAny>) -> Walk {
        let class = value.get_type();
        if class.hasattr("__cache_key__")? && !value.is_instance_of::<PyType>() {
            self.encoder.tag(tag::CUSTOM);
            self.class(&class)?;
            let key = value.call_method0("__cache_key__")?;
            return self
                .value(&key)
                .map_err(|failure| failure.within(|| ".__cache_key__()".to_owned()));
        }
        if self.builtin_subclass(value, &class)? || self.standard_library(value, &class)? {
            return Ok(());
        }
        if !value.is_instance_of::<PyType>() {
            if class.hasattr("__dataclass_fields__")? && has_generated_equality(&class)? {
                return self.dataclass(value, &class);
            }
            if class.hasattr("__pydantic_validator__")? && has_model_equality(&class)? {
                return self.pydantic(value, &class);
            }
        }
        if class.getattr("__hash__")?.is_none() {
            return Err(Failure::of(Kind::Unencodable(format!(
                "an object of type {}",
                type_name(value)
            ))));
        }
        match self.opaque {
            Opaque::Refuse | Opaque::RefuseButClasses(_) => {
                Err(Failure::of(Kind::Unencodable(format!(
                    "an object of type {} that means the same in every process",
                    type_name(value)
                ))))
            }
            Opaque::Intern(interner) => {
                let (id, held) = interner.intern(value)?;
                self.held.push(held);
                self.encoder.fixed(tag::INTERNED, id.to_le_bytes());
                Ok(())
            }
        }
    }

    /// Subclasses of the built-in types that kept their equality.
    fn builtin_subclass(
        &mut self,
        value: &Bound<'_, PyAny>,
        class: &Bound<'_, PyType>,
    ) -> Result<bool, Failure> {
        let py = value.py();
        let known = known(py)?;
        let is_enum = value.is_instance(known.enumeration.bind(py))?;
        // SAFETY: reads the type's flags.
        let flags = unsafe { ffi::PyType_GetFlags(class.as_type_ptr()) };
        let is = |flag: std::ffi::c_ulong| flags & flag != 0;
        // An enum with a data type hashes by name but compares as its value does.
        let same = |base: &Bound<'_, PyAny>| {
            if is_enum { equals_as(class, base) } else { compares_as(class, base) }
        };
        // Containers are found by what they hold, whether or not a subclass made them hashable.
        let equal = |base: &Bound<'_, PyAny>| equals_as(class, base);
        if is(ffi::Py_TPFLAGS_UNICODE_SUBCLASS) && same(&py.get_type::<PyString>())? {
            self.text(value)?;
        } else if is(ffi::Py_TPFLAGS_LONG_SUBCLASS) && same(&py.get_type::<pyo3::types::PyInt>())? {
            self.kind(class)?;
            self.integer(value)?;
        } else if is_enum {
            self.encoder.tag(tag::ENUM);
            self.class(class)?;
            let name = value.getattr("_name_")?;
            let identity = if name.is_none() { value.getattr("_value_")? } else { name };
            self.value(&identity)?;
        } else if value.is_instance_of::<pyo3::types::PyFloat>()
            && same(&py.get_type::<pyo3::types::PyFloat>())?
        {
            self.kind(class)?;
            self.encoder.float(value.extract::<f64>()?);
        } else if is(ffi::Py_TPFLAGS_BYTES_SUBCLASS) && same(&py.get_type::<PyBytes>())? {
            self.bytes(value.cast::<PyBytes>().map_err(PyErr::from)?.as_bytes())?;
        } else if let Ok(array) = value.cast::<PyByteArray>()
            && equal(&py.get_type::<PyByteArray>())?
        {
            self.room_for(array.len())?;
            self.encoder.bytes(&array.to_vec());
        } else if let Ok(view) = value.cast::<PyMemoryView>() {
            self.room_for(view.getattr("nbytes")?.extract()?)?;
            // Equal to bytes unless its format or its shape gives its items another meaning.
            let bytes =
                view.call_method0("tobytes")?.cast_into::<PyBytes>().map_err(PyErr::from)?;
            if !view.eq(&bytes)? {
                return Ok(false);
            }
            self.bytes(bytes.as_bytes())?;
        } else if is(ffi::Py_TPFLAGS_TUPLE_SUBCLASS) && same(&py.get_type::<PyTuple>())? {
            self.tuple(value.cast::<PyTuple>().map_err(PyErr::from)?)?;
        } else if is(ffi::Py_TPFLAGS_LIST_SUBCLASS) && equal(&py.get_type::<PyList>())? {
            self.list(value.cast::<PyList>().map_err(PyErr::from)?)?;
        } else if is(ffi::Py_TPFLAGS_DICT_SUBCLASS) && {
            let equality = class.getattr("__eq__")?;
            known.dict_equalities.iter().any(|other| equality.is(other))
        } {
            self.dict(value)?;
        } else if value.is_instance(known.mapping_proxy.bind(py))? {
            let copy = PyDict::new(py);
            copy.call_method1("update", (value,))?;
            self.dict(&copy)?;
        } else if (value.is_instance_of::<pyo3::types::PySet>()
            && equal(&py.get_type::<pyo3::types::PySet>())?)
            || (value.is_instance_of::<pyo3::types::PyFrozenSet>()
                && equal(&py.get_type::<pyo3::types::PyFrozenSet>())?)
        {
            self.set(value)?;
        } else if let Ok(complex) = value.cast::<PyComplex>()
            && equal(&py.get_type::<PyComplex>())?
        {
            if !class.is(py.get_type::<PyComplex>()) {
                self.kind(class)?;
            }
            self.complex(complex);
        } else {
            return Ok(false);
        }
        Ok(true)
    }
    fn complex(&mut self, complex: &Bound<'_, PyComplex>) {
        let (real, imag) = (complex.real(), complex.imag());
        if imag == 0.0 && !self.encoder.typed {
            self.encoder.float(real);
        } else {
            self.encoder.tag(tag::CUSTOM);
            self.encoder.str("complex");
            self.encoder.float(real);
            self.encoder.float(imag);
        }
    }

    /// Before a number of another class than Python's own; only where types are kept apart.
    pub(super) fn kind(&mut self, class: &Bound<'_, PyType>) -> Walk {
        if self.encoder.typed {
            self.encoder.tag(tag::KIND);
            self.class(class)?;
        }
        Ok(())
    }
}
