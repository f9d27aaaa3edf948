//! The Python objects of values.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyComplex, PyDict, PyFrozenSet, PyList, PySet, PyTuple};

use super::Value;

/// The module with the classes of what is no built-in.
pub(super) struct Builder {
    module: Py<PyModule>,
}

impl Builder {
    pub(super) fn new(py: Python<'_>) -> PyResult<Self> {
        Ok(Self { module: py.import("keys_to_compare")?.unbind() })
    }

    pub(super) fn object<'py>(
        &self,
        py: Python<'py>,
        value: &Value,
    ) -> PyResult<Bound<'py, PyAny>> {
        let module = self.module.bind(py);
        let all = |items: &[Value]| -> PyResult<Vec<Bound<'py, PyAny>>> {
            items.iter().map(|item| self.object(py, item)).collect()
        };
        Ok(match value {
            Value::None => py.None().into_bound(py),
            Value::Bool(truth) => truth.into_pyobject(py)?.to_owned().into_any(),
            Value::Int(number) => module.call_method1("whole", (number.to_str_radix(16), false))?,
            Value::Whole(number) => {
                module.call_method1("whole", (number.to_str_radix(16), true))?
            }
            Value::Float(number) => number.into_pyobject(py)?.into_any(),
            Value::Decimal(negative, digits, exponent) => {
                let digits = PyTuple::new(py, digits)?;
                let parts = (u8::from(*negative), digits, *exponent);
                module.getattr("Decimal")?.call1((parts,))?
            }
            Value::Infinite(negative) => {
                let name = if *negative { "-Infinity" } else { "Infinity" };
                module.getattr("Decimal")?.call1((name,))?
            }
            Value::Fraction(above, below) => module.getattr("Fraction")?.call1((*above, *below))?,
            Value::Complex(real, imaginary) => {
                PyComplex::from_doubles(py, *real, *imaginary).into_any()
            }
            Value::Text(text, subclass) => {
                let bytes: Vec<u8> = text.iter().flat_map(|letter| letter.to_le_bytes()).collect();
                module.call_method1("text", (PyBytes::new(py, &bytes), *subclass))?
            }
            Value::Bytes(bytes, how) => {
                module.getattr("BYTES")?.get_item(how)?.call1((PyBytes::new(py, bytes),))?
            }
            Value::List(items) => PyList::new(py, all(items)?)?.into_any(),
            Value::Tuple(items) => PyTuple::new(py, all(items)?)?.into_any(),
            Value::Dict(items, how) => {
                let dict = PyDict::new(py);
                for (key, item) in items {
                    dict.set_item(self.object(py, key)?, self.object(py, item)?)?;
                }
                assert_eq!(dict.len(), items.len(), "the model merges keys as Python does");
                module.getattr("DICTS")?.get_item(how)?.call1((dict,))?
            }
            Value::Set(items, frozen) => {
                let count = items.len();
                let items = all(items)?;
                let set = if *frozen {
                    PyFrozenSet::new(py, items)?.into_any()
                } else {
                    PySet::new(py, items)?.into_any()
                };
                assert_eq!(set.len()?, count, "the model merges items as Python does");
                set
            }
            Value::Member(which) => module.getattr("MEMBERS")?.get_item(which)?,
            Value::Date(days) => module.call_method1("day", (*days,))?,
            Value::DateTime(wall, offset) => module.call_method1("moment", (*wall, *offset))?,
            Value::Time(wall, offset) => module.call_method1("time_of_day", (*wall, *offset))?,
            Value::Delta(days, seconds, micros) => {
                module.getattr("timedelta")?.call1((*days, *seconds, *micros))?
            }
            Value::Uuid(bytes) => module.call_method1("uuid", (PyBytes::new(py, bytes),))?,
            Value::Path(path, windows) => module.call_method1("path", (path, *windows))?,
            Value::Fields(fields, frozen) => {
                let class = module.getattr(if *frozen { "Frozen" } else { "Plain" })?;
                class.call1((self.object(py, &fields.0)?, self.object(py, &fields.1)?))?
            }
            Value::Custom(key) => module.getattr("Custom")?.call1((self.object(py, key)?,))?,
        })
    }
}
