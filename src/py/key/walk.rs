//! The walk over the exact built-in types, and the containers among them.

use std::ffi::c_int;
use std::sync::Arc;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use super::bounds::{CHECK_BYTES, LONG_BYTES, SHALLOW};
use super::failure::{Failure, changed, step_to};
use super::few::FewItems;
use crate::core::key::Encoder;
use crate::core::key::encode::tag;
use crate::py::intern::{Held, Interner};

/// What becomes of hashable objects without a canonical form.
#[derive(Clone, Copy)]
pub(crate) enum Opaque<'a> {
    /// They raise `TypeError`: the key must mean the same in every process.
    Refuse,
    /// They take part by identity of their equals, within the process.
    Intern(&'a Arc<Interner>),
    /// They raise, but classes may be known by identity: the key means the same in this process.
    RefuseButClasses(&'a Arc<Interner>),
}

/// Walks one value and writes its encoding.
pub(crate) struct Walker<'a> {
    pub(super) encoder: &'a mut Encoder,
    pub(super) opaque: Opaque<'a>,
    pub(super) held: Vec<Held>,
    /// The containers that are being walked, to tell a cycle from depth.
    pub(super) open: Vec<usize>,
    /// How long the encoding may become before the next [`checkpoint`](Self::checkpoint).
    pub(super) unchecked: usize,
}

pub(super) type Walk = Result<(), Failure>;

impl<'a> Walker<'a> {
    pub(crate) fn new(encoder: &'a mut Encoder, opaque: Opaque<'a>) -> Self {
        Self { encoder, opaque, held: Vec::new(), open: Vec::new(), unchecked: CHECK_BYTES }
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
        if class == &raw mut ffi::PyUnicode_Type {
            return self.text(value);
        }
        // SAFETY: attached, and the value is alive.
        if unsafe { self.plain(value.as_ptr()) } {
            return Ok(());
        }
        if class == &raw mut ffi::PyDict_Type {
            return self.dict(value);
        } else if class == &raw mut ffi::PyList_Type {
            return self.list(value.cast::<PyList>().map_err(PyErr::from)?);
        } else if class == &raw mut ffi::PyTuple_Type {
            return self.tuple(value.cast::<PyTuple>().map_err(PyErr::from)?);
        } else if class == &raw mut ffi::PyLong_Type {
            return self.integer(value);
        } else if class == &raw mut ffi::PyBytes_Type {
            return self.bytes(value.cast::<PyBytes>().map_err(PyErr::from)?.as_bytes());
        }
        self.enter(value, |walker| walker.unusual(value))
    }

    /// Writes a value if that can run no Python code, not even by an allocation that
    /// makes the collector run, and cannot fail: ASCII text that is not long, integers of 64 bits, floats, truth values
    /// and None, of the exact types. A borrowed reference is enough for them.
    ///
    /// # Safety
    /// Attached, and `value` is alive.
    #[inline]
    unsafe fn plain(&mut self, value: *mut ffi::PyObject) -> bool {
        // SAFETY: comparing addresses of static types and objects, and reading what each type has.
        unsafe {
            if let Some(text) = ascii(value) {
                if text.len() >= LONG_BYTES {
                    return false;
                }
                self.encoder.tagged(tag::STR, text);
                return true;
            }
            let class = ffi::Py_TYPE(value);
            if class == &raw mut ffi::PyLong_Type {
                let mut overflow: c_int = 0;
                let small = ffi::PyLong_AsLongLongAndOverflow(value, &raw mut overflow);
                if overflow != 0 {
                    return false;
                }
                self.encoder.int(small);
            } else if class == &raw mut ffi::PyBool_Type {
                self.encoder.boolean(value == ffi::Py_True());
            } else if class == &raw mut ffi::PyFloat_Type {
                self.encoder.float(ffi::PyFloat_AS_DOUBLE(value));
            } else if value == ffi::Py_None() {
                self.encoder.tag(tag::NONE);
            } else {
                return false;
            }
        }
        true
    }

    /// Guards one level of nesting.
    fn enter(&mut self, value: &Bound<'_, PyAny>, body: impl FnOnce(&mut Self) -> Walk) -> Walk {
        let address = value.as_ptr() as usize;
        if self.open.len() >= SHALLOW {
            self.may_go_deeper(value)?;
        }
        self.open.push(address);
        let result = body(self).and_then(|()| self.check(value.py()));
        self.open.pop();
        result
    }

    pub(super) fn bytes(&mut self, value: &[u8]) -> Walk {
        self.room_for(value.len())?;
        self.encoder.bytes(value);
        Ok(())
    }

    pub(super) fn text(&mut self, value: &Bound<'_, PyAny>) -> Walk {
        let mut len: ffi::Py_ssize_t = 0;
        // SAFETY: attached, and `value` is a str (or a subclass of it); the data lives as long as it does.
        unsafe {
            if ffi::PyUnicode_IS_COMPACT_ASCII(value.as_ptr()) != 0 {
                let len = ffi::PyUnicode_GET_LENGTH(value.as_ptr()) as usize;
                self.room_for(len)?;
                let data = ffi::PyUnicode_DATA(value.as_ptr()).cast::<u8>().cast_const();
                self.encoder.tagged(tag::STR, std::slice::from_raw_parts(data, len));
                return Ok(());
            }
            let data = ffi::PyUnicode_AsUTF8AndSize(value.as_ptr(), &raw mut len);
            if !data.is_null() {
                self.room_for(len as usize)?;
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
        self.room_for(bytes.as_bytes().len())?;
        self.encoder.tagged(tag::SURROGATES, bytes.as_bytes());
        Ok(())
    }

    pub(super) fn integer(&mut self, value: &Bound<'_, PyAny>) -> Walk {
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
        self.room_for(bits.div_ceil(8))?;
        let magnitude = int.call_method1("__abs__", (value,))?;
        let bytes = int.call_method1("to_bytes", (magnitude, bits.div_ceil(8), "little"))?;
        let bytes = bytes.cast::<PyBytes>().map_err(PyErr::from)?;
        self.encoder.big_int(overflow < 0, bytes.as_bytes());
        Ok(())
    }

    pub(super) fn tuple(&mut self, tuple: &Bound<'_, PyTuple>) -> Walk {
        self.enter(tuple, |walker| {
            walker.encoder.tag(tag::TUPLE);
            walker.encoder.len(tuple.len());
            for (index, item) in tuple.iter_borrowed().enumerate() {
                walker.value(&item).map_err(|failure| failure.within(|| format!("[{index}]")))?;
                walker.check(tuple.py())?;
            }
            Ok(())
        })
    }

    pub(super) fn list(&mut self, list: &Bound<'_, PyList>) -> Walk {
        self.enter(list, |walker| {
            let len = list.len();
            walker.encoder.tag(tag::LIST);
            walker.encoder.len(len);
            for index in 0..len {
                // By index, because what an element runs may change the list under us.
                if index >= list.len() {
                    return Err(changed("list").into());
                }
                // SAFETY: attached, and the index is below the present length; owned before
                // any Python code can run.
                let item = unsafe {
                    let item = ffi::PyList_GET_ITEM(list.as_ptr(), index as ffi::Py_ssize_t);
                    if walker.plain(item) {
                        walker.check(list.py())?;
                        continue;
                    }
                    Bound::from_borrowed_ptr(list.py(), item)
                };
                walker.value(&item).map_err(|failure| failure.within(|| format!("[{index}]")))?;
            }
            if list.len() == len { Ok(()) } else { Err(changed("list").into()) }
        })
    }

    pub(super) fn dict(&mut self, value: &Bound<'_, PyAny>) -> Walk {
        self.enter(value, |walker| {
            let dict = value.cast::<PyDict>().map_err(PyErr::from)?;
            let len = dict.len();
            let mut items = FewItems::new();
            if items.take(dict) {
                return walker.few_items(value.py(), &mut items);
            }
            walker.encoder.tag(tag::DICT);
            walker.encoder.len(len);
            let mark = walker.encoder.mark();
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
                walker.encoder.part();
                walker.value(&key).map_err(|failure| failure.within(|| " (a key)".to_owned()))?;
                walker.value(&item).map_err(|failure| failure.within(|| step_to(&key)))?;
                walker.check(value.py())?;
                if dict.len() != len {
                    return Err(changed("dict").into());
                }
            }
            // The same size again, but not the same items: the number written would be a lie.
            if walker.encoder.parts_since(mark) != len {
                return Err(changed("dict").into());
            }
            walker.encoder.sort_parts(mark);
            Ok(())
        })
    }

    fn few_items(&mut self, py: Python<'_>, items: &mut FewItems) -> Walk {
        self.encoder.tag(tag::DICT);
        self.encoder.len(items.len());
        while let Some((key, item)) = items.next() {
            self.encoder.tagged(tag::STR, key);
            // SAFETY: attached; the value is alive, for no Python code ran yet or `keep` was called before.
            if unsafe { self.plain(item) } {
                continue;
            }
            // SAFETY: as above.
            let (key, item) = unsafe { items.keep(py) };
            self.value(&item).map_err(|failure| failure.within(|| step_to(&key)))?;
        }
        Ok(())
    }

    pub(super) fn set(&mut self, value: &Bound<'_, PyAny>) -> Walk {
        let len = value.len()?;
        self.encoder.tag(tag::SET);
        self.encoder.len(len);
        let mark = self.encoder.mark();
        for item in value.try_iter()? {
            self.encoder.part();
            self.value(&item?).map_err(|failure| failure.within(|| "{…}".to_owned()))?;
            self.check(value.py())?;
        }
        if self.encoder.parts_since(mark) != len {
            return Err(changed("set").into());
        }
        self.encoder.sort_parts(mark);
        Ok(())
    }
}

/// The bytes of an exact ASCII `str`.
///
/// # Safety
/// Attached; `value` is alive, and stays so as long as the bytes are used.
#[inline(always)]
#[expect(clippy::inline_always, reason = "its calls were 5 of the 50 ns of a hit")]
pub(super) unsafe fn ascii<'a>(value: *mut ffi::PyObject) -> Option<&'a [u8]> {
    // SAFETY: a compact ASCII string's data lives and stays as long as the object.
    unsafe {
        if ffi::Py_TYPE(value) != &raw mut ffi::PyUnicode_Type
            || ffi::PyUnicode_IS_COMPACT_ASCII(value) == 0
        {
            return None;
        }
        let len = ffi::PyUnicode_GET_LENGTH(value) as usize;
        let data = ffi::PyUnicode_DATA(value).cast::<u8>().cast_const();
        Some(std::slice::from_raw_parts(data, len))
    }
}
