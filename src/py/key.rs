//! Python values to canonical keys.
//!
//! All Python code that a key needs (`__hash__`, `__eq__`, `__cache_key__`,
//! `utcoffset` …) runs here, before any lock is taken.

use std::cell::Cell;
use std::ffi::c_int;
use std::fmt::Write as _;
use std::sync::Arc;

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyString, PyTuple, PyType};

use crate::core::key::encode::tag;
use crate::core::key::{Encoder, Key, hex_digest};
use crate::py::convert::type_name;
use crate::py::edge::edge;
use crate::py::intern::{Held, Interner};

/// Deeper structures are refused; Python's own recursion limit is of this order.
const MAX_DEPTH: usize = 128;

/// How much of the path to a structure that is too deep is shown.
const SHOWN_STEPS: usize = 8;

/// An encoder that grew beyond this is not kept for the next call.
const KEEP_BYTES: usize = 1 << 20;

/// What becomes of hashable objects without a canonical form.
#[derive(Clone, Copy)]
pub(crate) enum Opaque<'a> {
    /// They raise `TypeError`: the key must mean the same in every process.
    Refuse,
    /// They take part by identity of their equals, within the process.
    Intern(&'a Arc<Interner>),
}

/// Why a value has no key, and where in it.
pub(crate) struct Failure {
    /// From the innermost step to the outermost.
    path: Vec<String>,
    kind: Kind,
}

enum Kind {
    Unencodable(String),
    TooDeep { cycle: bool },
    Raised(PyErr),
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self { path: Vec::new(), kind: Kind::Raised(error) }
    }
}

impl Failure {
    fn of(kind: Kind) -> Self {
        Self { path: Vec::new(), kind }
    }

    pub(crate) fn within(mut self, step: impl FnOnce() -> String) -> Self {
        self.path.push(step());
        self
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        let path: String = failure.path.iter().rev().map(String::as_str).collect();
        let path = path.trim_start_matches('.');
        match failure.kind {
            // What user code raised goes through unchanged.
            Kind::Raised(error) => error,
            Kind::Unencodable(what) => PyTypeError::new_err(format!(
                "{path}: cannot make a cache key from {what}; choose the key yourself with key=, \
                 leave the argument out with ignore=, or give its class a __cache_key__() method"
            )),
            Kind::TooDeep { cycle } => {
                // A hundred times the same step helps nobody.
                let steps = failure.path.len();
                let mut path: String =
                    failure.path.iter().rev().take(SHOWN_STEPS).map(String::as_str).collect();
                if steps > SHOWN_STEPS {
                    path.push('…');
                }
                let path = path.trim_start_matches('.');
                let why = if cycle { "it contains itself" } else { "it is nested too deeply" };
                PyValueError::new_err(format!(
                    "{path}: cannot make a cache key: {why} (the limit is {MAX_DEPTH} levels)"
                ))
            }
        }
    }
}

/// Runs `body` with this thread's encoder, or with a new one if user code that
/// is called while encoding comes back here.
pub(crate) fn with_encoder<R>(typed: bool, body: impl FnOnce(&mut Encoder) -> R) -> R {
    thread_local! {
        static SPARE: Cell<Option<Box<Encoder>>> = const { Cell::new(None) };
    }
    let mut encoder = SPARE.take().unwrap_or_default();
    encoder.reset(typed);
    let result = body(&mut encoder);
    if encoder.capacity() <= KEEP_BYTES {
        SPARE.set(Some(encoder));
    }
    result
}

/// A key and the interned objects that it stands on.
pub(crate) struct Encoded {
    pub(crate) key: Key,
    pub(crate) held: Vec<Held>,
}

/// The key of one value.
#[inline]
pub(crate) fn key_of(value: &Bound<'_, PyAny>, interner: &Arc<Interner>) -> PyResult<Encoded> {
    if let Some(key) = short_text(value) {
        return Ok(Encoded { key, held: Vec::new() });
    }
    with_encoder(false, |encoder| {
        let mut walker = Walker::new(encoder, Opaque::Intern(interner));
        walker.value(value).map_err(|failure| failure.within(|| "key".to_owned()))?;
        let held = walker.finish();
        Ok(Encoded { key: Key::new(encoder.as_bytes()), held })
    })
}

/// The key of a short exact ASCII `str`, the commonest one, without an encoder.
#[inline]
pub(crate) fn short_text(value: &Bound<'_, PyAny>) -> Option<Key> {
    short_ascii(value).and_then(Key::short_text)
}

/// Classes that are recognised by `isinstance`.
struct Known {
    enumeration: Py<PyType>,
    decimal: Py<PyType>,
    fraction: Py<PyType>,
    uuid: Py<PyType>,
    path: Py<PyType>,
    windows_path: Py<PyType>,
    datetime: Py<PyType>,
    date: Py<PyType>,
    time: Py<PyType>,
    timedelta: Py<PyType>,
    integral: Py<PyAny>,
    real: Py<PyAny>,
    mapping_proxy: Py<PyType>,
    /// The ``__eq__`` of the standard library's dicts, all of which equal a dict with their items.
    dict_equalities: [Py<PyAny>; 3],
}

fn known(py: Python<'_>) -> PyResult<&Known> {
    // Imported at the first unusual key, not at the package's import.
    static KNOWN: PyOnceLock<Known> = PyOnceLock::new();
    KNOWN.get_or_try_init(py, || {
        let class = |module: &str, name: &str| -> PyResult<Py<PyType>> {
            Ok(py.import(module)?.getattr(name)?.cast_into::<PyType>()?.unbind())
        };
        let equality = |class: &Bound<'_, PyAny>| -> PyResult<Py<PyAny>> {
            Ok(class.getattr("__eq__")?.unbind())
        };
        let collections = py.import("collections")?;
        Ok(Known {
            enumeration: class("enum", "Enum")?,
            decimal: class("decimal", "Decimal")?,
            fraction: class("fractions", "Fraction")?,
            uuid: class("uuid", "UUID")?,
            path: class("pathlib", "PurePath")?,
            windows_path: class("pathlib", "PureWindowsPath")?,
            datetime: class("datetime", "datetime")?,
            date: class("datetime", "date")?,
            time: class("datetime", "time")?,
            timedelta: class("datetime", "timedelta")?,
            integral: py.import("numbers")?.getattr("Integral")?.unbind(),
            real: py.import("numbers")?.getattr("Real")?.unbind(),
            mapping_proxy: class("types", "MappingProxyType")?,
            dict_equalities: [
                equality(py.get_type::<PyDict>().as_any())?,
                equality(&collections.getattr("OrderedDict")?)?,
                equality(&collections.getattr("Counter")?)?,
            ],
        })
    })
}

/// Whether instances of `class` compare and hash just as those of `base` do.
fn compares_as(class: &Bound<'_, PyType>, base: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(class.is(base)
        || (class.getattr("__eq__")?.is(&base.getattr("__eq__")?)
            && class.getattr("__hash__")?.is(&base.getattr("__hash__")?)))
}

/// Whether instances of `class` compare just as those of `base` do, hashable or not.
fn equals_as(class: &Bound<'_, PyType>, base: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(class.is(base) || class.getattr("__eq__")?.is(&base.getattr("__eq__")?))
}

/// Whether a dict would find `value` under `number`.
fn stands_for(value: &Bound<'_, PyAny>, number: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(value.eq(number)? && value.hash()? == number.hash()?)
}

fn to_i64(value: &Bound<'_, PyAny>, attribute: &str) -> PyResult<i64> {
    value.getattr(attribute)?.extract()
}

/// Walks one value and writes its encoding.
pub(crate) struct Walker<'a> {
    encoder: &'a mut Encoder,
    opaque: Opaque<'a>,
    held: Vec<Held>,
    /// The containers that are being walked, to tell a cycle from depth.
    open: Vec<usize>,
}

type Walk = Result<(), Failure>;

impl<'a> Walker<'a> {
    pub(crate) fn new(encoder: &'a mut Encoder, opaque: Opaque<'a>) -> Self {
        Self { encoder, opaque, held: Vec::new(), open: Vec::new() }
    }

    /// The interned objects that the encoding names.
    pub(crate) fn finish(self) -> Vec<Held> {
        self.held
    }

    pub(crate) fn encoder(&mut self) -> &mut Encoder {
        self.encoder
    }

    /// Writes a value.
    pub(crate) fn value(&mut self, value: &Bound<'_, PyAny>) -> Walk {
        let class = value.get_type_ptr();
        // SAFETY: comparing addresses of the interpreter's static types.
        unsafe {
            if class == &raw mut ffi::PyUnicode_Type {
                return self.text(value);
            } else if class == &raw mut ffi::PyLong_Type {
                return self.integer(value);
            } else if class == &raw mut ffi::PyDict_Type {
                return self.dict(value);
            } else if class == &raw mut ffi::PyList_Type {
                return self.list(value.cast::<PyList>().map_err(PyErr::from)?);
            } else if class == &raw mut ffi::PyTuple_Type {
                return self.tuple(value.cast::<PyTuple>().map_err(PyErr::from)?);
            } else if class == &raw mut ffi::PyBool_Type {
                self.encoder.boolean(value.is_truthy()?);
                return Ok(());
            } else if class == &raw mut ffi::PyFloat_Type {
                self.encoder.float(ffi::PyFloat_AS_DOUBLE(value.as_ptr()));
                return Ok(());
            } else if value.is_none() {
                self.encoder.tag(tag::NONE);
                return Ok(());
            } else if class == &raw mut ffi::PyBytes_Type {
                self.encoder.bytes(value.cast::<PyBytes>().map_err(PyErr::from)?.as_bytes());
                return Ok(());
            }
        }
        self.enter(value, |walker| walker.unusual(value))
    }

    /// Guards one level of nesting.
    fn enter(&mut self, value: &Bound<'_, PyAny>, body: impl FnOnce(&mut Self) -> Walk) -> Walk {
        let address = value.as_ptr() as usize;
        if self.open.len() >= MAX_DEPTH {
            return Err(Failure::of(Kind::TooDeep { cycle: self.open.contains(&address) }));
        }
        self.open.push(address);
        let result = body(self);
        self.open.pop();
        result
    }

    fn text(&mut self, value: &Bound<'_, PyAny>) -> Walk {
        let mut len: ffi::Py_ssize_t = 0;
        // SAFETY: attached, and `value` is a str (or a subclass of it); the data lives as long as it does.
        unsafe {
            if ffi::PyUnicode_IS_COMPACT_ASCII(value.as_ptr()) != 0 {
                let len = ffi::PyUnicode_GET_LENGTH(value.as_ptr()) as usize;
                let data = ffi::PyUnicode_DATA(value.as_ptr()).cast::<u8>().cast_const();
                self.encoder.tagged(tag::STR, std::slice::from_raw_parts(data, len));
                return Ok(());
            }
            let data = ffi::PyUnicode_AsUTF8AndSize(value.as_ptr(), &raw mut len);
            if !data.is_null() {
                self.encoder
                    .tagged(tag::STR, std::slice::from_raw_parts(data.cast(), len as usize));
                return Ok(());
            }
            ffi::PyErr_Clear();
        }
        let bytes = value
            .py()
            .get_type::<PyString>()
            .call_method1("encode", (value, "utf-8", "surrogatepass"))?;
        let bytes = bytes.cast::<PyBytes>().map_err(PyErr::from)?;
        self.encoder.tagged(tag::SURROGATES, bytes.as_bytes());
        Ok(())
    }

    fn integer(&mut self, value: &Bound<'_, PyAny>) -> Walk {
        let mut overflow: c_int = 0;
        // SAFETY: attached, and `value` is an int (or a subclass of it).
        let small = unsafe { ffi::PyLong_AsLongLongAndOverflow(value.as_ptr(), &raw mut overflow) };
        if overflow == 0 {
            if small == -1
                && let Some(error) = PyErr::take(value.py())
            {
                return Err(error.into());
            }
            self.encoder.int(small);
            return Ok(());
        }
        let int = value.py().get_type::<pyo3::types::PyInt>();
        let bits: usize = int.call_method1("bit_length", (value,))?.extract()?;
        let magnitude = int.call_method1("__abs__", (value,))?;
        let bytes = int.call_method1("to_bytes", (magnitude, bits.div_ceil(8), "little"))?;
        let bytes = bytes.cast::<PyBytes>().map_err(PyErr::from)?;
        self.encoder.big_int(overflow < 0, bytes.as_bytes());
        Ok(())
    }

    fn tuple(&mut self, tuple: &Bound<'_, PyTuple>) -> Walk {
        self.enter(tuple, |walker| {
            walker.encoder.tag(tag::TUPLE);
            walker.encoder.len(tuple.len());
            for (index, item) in tuple.iter_borrowed().enumerate() {
                walker.value(&item).map_err(|failure| failure.within(|| format!("[{index}]")))?;
            }
            Ok(())
        })
    }

    fn list(&mut self, list: &Bound<'_, PyList>) -> Walk {
        self.enter(list, |walker| {
            let len = list.len();
            walker.encoder.tag(tag::LIST);
            walker.encoder.len(len);
            for index in 0..len {
                // By index, because what an element runs may change the list under us.
                let item = list.get_item(index).map_err(|_| changed("list"))?;
                walker.value(&item).map_err(|failure| failure.within(|| format!("[{index}]")))?;
            }
            if list.len() == len { Ok(()) } else { Err(changed("list").into()) }
        })
    }

    fn dict(&mut self, value: &Bound<'_, PyAny>) -> Walk {
        self.enter(value, |walker| {
            let dict = value.cast::<PyDict>().map_err(PyErr::from)?;
            let len = dict.len();
            if let Some(items) = FewItems::of(dict) {
                return walker.few_items(&items);
            }
            walker.encoder.tag(tag::DICT);
            walker.encoder.len(len);
            let mut starts = Starts::new();
            let mut position: ffi::Py_ssize_t = 0;
            let (mut key, mut item) = (std::ptr::null_mut(), std::ptr::null_mut());
            // SAFETY: attached; the borrowed pair is turned into owned references before any Python
            // code can run, and the size is checked after each step as PyDict_Next demands.
            while unsafe {
                ffi::PyDict_Next(dict.as_ptr(), &raw mut position, &raw mut key, &raw mut item)
            } != 0
            {
                // SAFETY: as above.
                let (key, item) = unsafe {
                    (
                        Bound::from_borrowed_ptr(value.py(), key),
                        Bound::from_borrowed_ptr(value.py(), item),
                    )
                };
                starts.push(walker.encoder.position());
                walker.value(&key).map_err(|failure| failure.within(|| " (a key)".to_owned()))?;
                walker.value(&item).map_err(|failure| failure.within(|| step_to(&key)))?;
                if dict.len() != len {
                    return Err(changed("dict").into());
                }
            }
            // The same size again, but not the same items: the number written would be a lie.
            if starts.len != len {
                return Err(changed("dict").into());
            }
            walker.encoder.sort_parts(starts.as_mut());
            Ok(())
        })
    }

    /// A dict as most requests have them: a few short text keys. Ordering the
    /// keys first saves moving the values' encodings (a third of the time that
    /// a 10 KB chat request takes).
    fn few_items(&mut self, items: &FewItems<'_>) -> Walk {
        self.encoder.tag(tag::DICT);
        self.encoder.len(items.len);
        for (key, item) in items.items[..items.len].iter().flatten() {
            self.encoder.tagged(tag::STR, short_ascii(key).unwrap_or_default());
            self.value(item).map_err(|failure| failure.within(|| step_to(key)))?;
        }
        Ok(())
    }

    fn set(&mut self, value: &Bound<'_, PyAny>) -> Walk {
        let len = value.len()?;
        self.encoder.tag(tag::SET);
        self.encoder.len(len);
        let mut starts = Starts::new();
        for item in value.try_iter()? {
            starts.push(self.encoder.position());
            self.value(&item?).map_err(|failure| failure.within(|| "{…}".to_owned()))?;
        }
        if starts.len != len {
            return Err(changed("set").into());
        }
        self.encoder.sort_parts(starts.as_mut());
        Ok(())
    }

    /// Everything but the exact built-in types.
    fn unusual(&mut self, value: &Bound<'_, PyAny>) -> Walk {
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
            Opaque::Refuse => Err(Failure::of(Kind::Unencodable(format!(
                "an object of type {} that means the same in every process",
                type_name(value)
            )))),
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
        let same = |base: &Bound<'_, PyAny>| Ok::<_, PyErr>(is_enum || compares_as(class, base)?);
        // Containers are found by what they hold, whether or not a subclass made them hashable.
        let equal = |base: &Bound<'_, PyAny>| equals_as(class, base);
        if is(ffi::Py_TPFLAGS_UNICODE_SUBCLASS) && same(&py.get_type::<PyString>())? {
            self.text(value)?;
        } else if is(ffi::Py_TPFLAGS_LONG_SUBCLASS) && same(&py.get_type::<pyo3::types::PyInt>())? {
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
            self.encoder.float(value.extract::<f64>()?);
        } else if is(ffi::Py_TPFLAGS_BYTES_SUBCLASS) && same(&py.get_type::<PyBytes>())? {
            self.encoder.bytes(value.cast::<PyBytes>().map_err(PyErr::from)?.as_bytes());
        } else if let Ok(array) = value.cast::<PyByteArray>()
            && equal(&py.get_type::<PyByteArray>())?
        {
            self.encoder.bytes(&array.to_vec());
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
        } else if let Ok(complex) = value.cast::<pyo3::types::PyComplex>()
            && equal(&py.get_type::<pyo3::types::PyComplex>())?
        {
            use pyo3::types::PyComplexMethods;
            let (real, imag) = (complex.real(), complex.imag());
            if imag == 0.0 && !self.encoder.typed {
                self.encoder.float(real);
            } else {
                self.encoder.tag(tag::CUSTOM);
                self.encoder.str("complex");
                self.encoder.float(real);
                self.encoder.float(imag);
            }
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Values of the standard library that have a canonical form.
    fn standard_library(
        &mut self,
        value: &Bound<'_, PyAny>,
        class: &Bound<'_, PyType>,
    ) -> Result<bool, Failure> {
        let py = value.py();
        let known = known(py)?;
        let kept = |base: &Py<PyType>| -> PyResult<bool> {
            Ok(value.is_instance(base.bind(py))? && compares_as(class, base.bind(py))?)
        };
        if kept(&known.datetime)? {
            let days: i64 = value.call_method0("toordinal")?.extract()?;
            let micros = days * 86_400_000_000 + micros_of_day(value)?;
            let offset = offset_micros(value)?;
            let tag = if offset.is_some() { tag::AWARE } else { tag::DATETIME };
            self.encoder.fixed(tag, (micros - offset.unwrap_or(0)).to_le_bytes());
        } else if kept(&known.date)? {
            let days: i64 = value.call_method0("toordinal")?.extract()?;
            self.encoder.fixed(tag::DATE, days.to_le_bytes());
        } else if kept(&known.time)? {
            let offset = offset_micros(value)?;
            self.encoder
                .fixed(tag::TIME, (micros_of_day(value)? - offset.unwrap_or(0)).to_le_bytes());
            self.encoder.tag(u8::from(offset.is_some()));
        } else if kept(&known.timedelta)? {
            self.encoder.fixed(tag::TIMEDELTA, delta_micros(value)?.to_le_bytes());
        } else if kept(&known.decimal)? {
            self.decimal(value)?;
        } else if kept(&known.fraction)? {
            let denominator = value.getattr("denominator")?;
            if !self.encoder.typed && denominator.eq(1)? {
                self.value(&value.getattr("numerator")?)?;
            } else if let Some(float) = self.equal_float(value)? {
                self.encoder.float(float);
            } else {
                self.encoder.tag(tag::CUSTOM);
                self.encoder.str("fractions.Fraction");
                self.value(&value.getattr("numerator")?)?;
                self.value(&denominator)?;
            }
        } else if kept(&known.uuid)? {
            let bytes: [u8; 16] = value.getattr("bytes")?.extract()?;
            self.encoder.fixed(tag::UUID, bytes);
        } else if value.is_instance(known.path.bind(py))? && equals_as(class, known.path.bind(py))?
        {
            let windows = value.is_instance(known.windows_path.bind(py))?;
            let mut path = value.str()?.into_any();
            if windows {
                path = path.call_method0("lower")?;
            }
            self.encoder.tag(tag::PATH);
            self.encoder.tag(u8::from(windows));
            self.text(&path)?;
        } else if value.is_instance(known.integral.bind(py))? {
            // NumPy's integers and the like: equal to the int, so the same key.
            // SAFETY: attached; returns an int or null with an error set.
            let index =
                unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyNumber_Index(value.as_ptr()))? };
            if !stands_for(value, &index)? {
                return Ok(false);
            }
            self.integer(&index)?;
        } else if value.is_instance(known.real.bind(py))? {
            // SAFETY: attached; returns a float or null with an error set.
            let float =
                unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyNumber_Float(value.as_ptr()))? };
            if !stands_for(value, &float)? {
                return Ok(false);
            }
            self.encoder.float(float.extract()?);
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// The float that equals `value`, unless types are kept apart.
    fn equal_float(&self, value: &Bound<'_, PyAny>) -> PyResult<Option<f64>> {
        if self.encoder.typed {
            return Ok(None);
        }
        let Ok(float) = value.call_method0("__float__") else { return Ok(None) };
        Ok(if value.eq(&float)? { Some(float.extract()?) } else { None })
    }

    fn decimal(&mut self, value: &Bound<'_, PyAny>) -> Walk {
        let finite: bool = value.call_method0("is_finite")?.extract()?;
        if finite && !self.encoder.typed {
            // Beyond that size an equal int is not a realistic argument, and making it is slow.
            let adjusted: i64 = value.call_method0("adjusted")?.extract()?;
            if adjusted < 4_000 && value.eq(value.call_method0("__int__")?)? {
                return self.integer(&value.call_method0("__int__")?);
            }
            if let Some(float) = self.equal_float(value)? {
                self.encoder.float(float);
                return Ok(());
            }
        }
        let (sign, digits, exponent): (u8, Vec<u8>, Bound<'_, PyAny>) =
            value.call_method0("as_tuple")?.extract()?;
        if !finite && !self.encoder.typed && value.call_method0("is_infinite")?.is_truthy()? {
            self.encoder.float(if sign == 0 { f64::INFINITY } else { f64::NEG_INFINITY });
            return Ok(());
        }
        self.encoder.tag(tag::DECIMAL);
        self.encoder.tag(sign);
        if !finite {
            let kind: String = exponent.extract()?;
            self.encoder.str(&kind);
            return Ok(());
        }
        let significant = digits.iter().rposition(|digit| *digit != 0).map_or(0, |last| last + 1);
        let dropped = (digits.len() - significant) as i64;
        let exponent = if significant == 0 { 0 } else { exponent.extract::<i64>()? + dropped };
        self.encoder.int(exponent);
        self.encoder.bytes(&digits[..significant]);
        Ok(())
    }

    fn dataclass(&mut self, value: &Bound<'_, PyAny>, class: &Bound<'_, PyType>) -> Walk {
        let fields = class.getattr("__dataclass_fields__")?;
        let fields: Vec<Bound<'_, PyAny>> =
            fields.call_method0("values")?.try_iter()?.collect::<PyResult<_>>()?;
        self.encoder.tag(tag::FIELDS);
        self.class(class)?;
        for field in fields {
            // Pseudo-fields (ClassVar, InitVar) and those that `==` skips do not count.
            let kind = field.getattr("_field_type")?.str()?;
            if kind.to_string_lossy() != "_FIELD" || !field.getattr("compare")?.is_truthy()? {
                continue;
            }
            let name = field.getattr("name")?.cast_into::<PyString>().map_err(PyErr::from)?;
            self.text(&name)?;
            let item = value.getattr(&name)?;
            self.value(&item).map_err(|failure| failure.within(|| step_to(&name)))?;
        }
        self.encoder.tag(tag::NONE);
        Ok(())
    }

    /// As the model's `==`: fields, extra fields and private attributes, but
    /// not what a cached property has left in the instance's dict.
    fn pydantic(&mut self, value: &Bound<'_, PyAny>, class: &Bound<'_, PyType>) -> Walk {
        let fields = class
            .getattr("__pydantic_fields__")
            .or_else(|_| class.getattr("model_fields"))?
            .try_iter()?
            .collect::<PyResult<Vec<_>>>()?;
        let values = value.getattr("__dict__")?;
        let values = values.cast::<PyDict>().map_err(PyErr::from)?;
        self.encoder.tag(tag::FIELDS);
        self.class(class)?;
        for name in fields {
            let name = name.cast_into::<PyString>().map_err(PyErr::from)?;
            // `model_construct` and `del` leave fields without a value.
            let Some(item) = values.get_item(&name)? else { continue };
            self.text(&name)?;
            self.value(&item).map_err(|failure| failure.within(|| step_to(&name)))?;
        }
        for more in ["__pydantic_extra__", "__pydantic_private__"] {
            match value.getattr(more) {
                Ok(more) if more.is_instance_of::<PyDict>() => self.dict(&more)?,
                _ => self.encoder.tag(tag::NONE),
            }
        }
        Ok(())
    }

    /// A class by its qualified name; within the process also by identity if that
    /// name does not lead to it (local and generated classes).
    fn class(&mut self, class: &Bound<'_, PyType>) -> Walk {
        let name = class.fully_qualified_name()?;
        self.text(&name)?;
        if let Opaque::Intern(interner) = self.opaque
            && !is_found_by_name(class)?
        {
            let (id, held) = interner.intern(class)?;
            self.held.push(held);
            self.encoder.fixed(tag::INTERNED, id.to_le_bytes());
        }
        Ok(())
    }
}

/// Whether `module.qualified.name` is this very class.
fn is_found_by_name(class: &Bound<'_, PyType>) -> PyResult<bool> {
    let name = class.qualname()?;
    let name = name.to_string_lossy();
    if name.contains("<locals>") {
        return Ok(false);
    }
    let modules = class.py().import("sys")?.getattr("modules")?;
    let Ok(module) = modules.get_item(class.module()?) else { return Ok(false) };
    let found = name.split('.').try_fold(module, |inside, name| inside.getattr(name));
    Ok(found.is_ok_and(|found| found.is(class)))
}

/// Whether `==` of a dataclass is the one that ``@dataclass`` wrote: not with
/// ``eq=False``, and not if the class brings its own.
fn has_generated_equality(class: &Bound<'_, PyType>) -> PyResult<bool> {
    let Ok(code) = class.getattr("__eq__")?.getattr("__code__") else { return Ok(false) };
    // What `dataclasses` compiles has no file.
    code.getattr("co_filename")?.eq("<string>")
}

/// Whether `==` of a pydantic model is pydantic's own.
fn has_model_equality(class: &Bound<'_, PyType>) -> PyResult<bool> {
    let base = class.py().import("pydantic")?.getattr("BaseModel")?;
    equals_as(class, &base)
}

/// The items of a small dict whose keys are all short exact ASCII text, in the
/// order of their encodings; owned, so that the dict may change meanwhile.
struct FewItems<'py> {
    items: [Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>; 8],
    len: usize,
}

impl<'py> FewItems<'py> {
    fn of(dict: &Bound<'py, PyDict>) -> Option<Self> {
        let mut few = Self { items: [const { None }; 8], len: 0 };
        if dict.len() > few.items.len() {
            return None;
        }
        let py = dict.py();
        let mut position: ffi::Py_ssize_t = 0;
        let (mut key, mut item) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: attached; nothing in the loop runs Python code, so the dict stays as it is.
        while unsafe {
            ffi::PyDict_Next(dict.as_ptr(), &raw mut position, &raw mut key, &raw mut item)
        } != 0
        {
            // SAFETY: borrowed from the dict, owned from here on.
            let (key, item) =
                unsafe { (Bound::from_borrowed_ptr(py, key), Bound::from_borrowed_ptr(py, item)) };
            let text = short_ascii(&key)?;
            if few.len == few.items.len() {
                return None;
            }
            let mut place = few.len;
            while place > 0 {
                let other = few.items[place - 1].as_ref().and_then(|(key, _)| short_ascii(key))?;
                // As the encodings compare: the length comes first.
                if (other.len(), other) < (text.len(), text) {
                    break;
                }
                few.items.swap(place - 1, place);
                place -= 1;
            }
            few.items[place] = Some((key, item));
            few.len += 1;
        }
        Some(few)
    }
}

/// The bytes of an exact ASCII `str` of less than 128 characters.
#[inline]
fn short_ascii<'a>(value: &'a Bound<'_, PyAny>) -> Option<&'a [u8]> {
    let value = value.as_ptr();
    // SAFETY: attached; a compact ASCII string's data lives and stays as long as the object.
    unsafe {
        if ffi::Py_TYPE(value) != &raw mut ffi::PyUnicode_Type
            || ffi::PyUnicode_IS_COMPACT_ASCII(value) == 0
        {
            return None;
        }
        let len = ffi::PyUnicode_GET_LENGTH(value) as usize;
        let data = ffi::PyUnicode_DATA(value).cast::<u8>().cast_const();
        (len < 128).then(|| std::slice::from_raw_parts(data, len))
    }
}

/// Positions of the parts of an unordered collection; small ones stay off the heap.
struct Starts {
    few: [usize; 16],
    len: usize,
    many: Vec<usize>,
}

impl Starts {
    fn new() -> Self {
        Self { few: [0; 16], len: 0, many: Vec::new() }
    }

    fn push(&mut self, position: usize) {
        if self.len < self.few.len() {
            self.few[self.len] = position;
        } else {
            if self.many.is_empty() {
                self.many.extend_from_slice(&self.few);
            }
            self.many.push(position);
        }
        self.len += 1;
    }

    fn as_mut(&mut self) -> &mut [usize] {
        if self.many.is_empty() { &mut self.few[..self.len] } else { &mut self.many }
    }
}

fn changed(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!("{what} changed while its cache key was made"))
}

/// `.name` for identifiers, `['any other key']` otherwise.
fn step_to(key: &Bound<'_, PyAny>) -> String {
    if let Ok(text) = key.extract::<String>()
        && !text.is_empty()
        && text.chars().all(|c| c.is_alphanumeric() || c == '_')
        && !text.starts_with(|c: char| c.is_ascii_digit())
    {
        return format!(".{text}");
    }
    let mut step = String::from("[");
    match key.repr() {
        Ok(repr) => {
            let repr = repr.to_string_lossy();
            let shown: String = repr.chars().take(40).collect();
            let _ = write!(step, "{shown}{}", if shown.len() < repr.len() { "…" } else { "" });
        }
        Err(_) => step.push('?'),
    }
    step.push(']');
    step
}

fn micros_of_day(value: &Bound<'_, PyAny>) -> PyResult<i64> {
    let seconds =
        to_i64(value, "hour")? * 3600 + to_i64(value, "minute")? * 60 + to_i64(value, "second")?;
    Ok(seconds * 1_000_000 + to_i64(value, "microsecond")?)
}

/// In 128 bits: `timedelta.max` is 8.6e19 µs.
fn delta_micros(value: &Bound<'_, PyAny>) -> PyResult<i128> {
    let seconds = to_i64(value, "days")? * 86_400 + to_i64(value, "seconds")?;
    Ok(i128::from(seconds) * 1_000_000 + i128::from(to_i64(value, "microseconds")?))
}

fn offset_micros(value: &Bound<'_, PyAny>) -> PyResult<Option<i64>> {
    let offset = value.call_method0("utcoffset")?;
    // An offset is less than a day, so it fits.
    if offset.is_none() {
        Ok(None)
    } else {
        delta_micros(&offset).map(|micros| Some(micros as i64))
    }
}
/// cache_key(*parts, **named)
/// --
///
/// A canonical key: 64 hexadecimal digits (BLAKE3 of the canonical encoding)
/// that are the same in every process, Python version and machine.
///
/// Equal values have equal keys as Python's ``==`` has it (``1 == 1.0 ==
/// True``; a list is no tuple; the order of a dict or a set does not count).
///
/// Raises:
///     TypeError: a part has no canonical form; names its path and the ways out.
///     ValueError: a part is nested too deeply or contains itself.
#[pyfunction]
#[pyo3(signature = (*parts, **named))]
pub(crate) fn cache_key(
    parts: &Bound<'_, PyTuple>,
    named: Option<&Bound<'_, PyDict>>,
) -> PyResult<String> {
    edge("cache_key", || {
        with_encoder(false, |encoder| {
            let mut walker = Walker::new(encoder, Opaque::Refuse);
            walker.tuple(parts).map_err(|failure| failure.within(|| "parts".to_owned()))?;
            if let Some(named) = named {
                walker.dict(named)?;
            }
            Ok(hex_digest(encoder.as_bytes()))
        })
    })
}
