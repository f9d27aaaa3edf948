//! MessagePack, from and to Python values.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString};
use rmp::{Marker, encode as to};

use super::MAX_DEPTH;
use super::refusal::{Refusal, step_of};
use crate::py::convert::type_name;

pub(super) fn encode(value: &Bound<'_, PyAny>) -> Result<Vec<u8>, Refusal> {
    let mut out = Vec::with_capacity(128);
    write(&mut out, value, 0)?;
    Ok(out)
}

/// Writing to memory does not fail.
fn written<T, E>(_: Result<T, E>) {}

fn length(of: usize) -> Result<u32, Refusal> {
    u32::try_from(of).map_err(|_| Refusal::of("it has more than 2**32 - 1 parts".into()))
}

fn write(out: &mut Vec<u8>, value: &Bound<'_, PyAny>, depth: usize) -> Result<(), Refusal> {
    if let Ok(text) = value.cast::<PyString>() {
        let Ok(text) = text.to_str() else {
            return Err(Refusal::of("a str with a lone surrogate is no Unicode text".into()));
        };
        length(text.len())?;
        written(to::write_str(out, text));
    } else if value.is_none() {
        written(to::write_nil(out));
    } else if let Ok(truth) = value.cast::<PyBool>() {
        written(to::write_bool(out, truth.is_true()));
    } else if value.is_instance_of::<PyInt>() {
        if let Ok(number) = value.extract::<i64>() {
            written(to::write_sint(out, number));
        } else if let Ok(number) = value.extract::<u64>() {
            written(to::write_uint(out, number));
        } else {
            return Err(Refusal::of("an int of more than 64 bits".into()));
        }
    } else if let Ok(number) = value.cast::<PyFloat>() {
        written(to::write_f64(out, number.value()));
    } else if let Ok(bytes) = value.cast::<PyBytes>() {
        length(bytes.as_bytes().len())?;
        written(to::write_bin(out, bytes.as_bytes()));
    } else if let Ok(list) = value.cast::<PyList>() {
        check_depth(depth)?;
        // A copy: its length is written before its items.
        let items: Vec<_> = list.iter().collect();
        written(to::write_array_len(out, length(items.len())?));
        for (index, item) in items.iter().enumerate() {
            write(out, item, depth + 1)
                .map_err(|refusal| refusal.within(|| format!("[{index}]")))?;
        }
    } else if let Ok(dict) = value.cast::<PyDict>() {
        check_depth(depth)?;
        let items = dict.items();
        written(to::write_map_len(out, length(items.len())?));
        for item in items.iter() {
            let (key, value) = item.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
            write(out, &key, depth + 1).map_err(|refusal| refusal.within(|| step_of(&key)))?;
            write(out, &value, depth + 1).map_err(|refusal| refusal.within(|| step_of(&key)))?;
        }
    } else {
        return Err(Refusal::of(format!("{} is no MessagePack value", type_name(value))));
    }
    Ok(())
}

fn check_depth(depth: usize) -> Result<(), Refusal> {
    if depth < MAX_DEPTH {
        return Ok(());
    }
    Err(Refusal::of(format!("it contains itself or is more than {MAX_DEPTH} levels deep")))
}

pub(super) fn decode<'py>(py: Python<'py>, body: &[u8]) -> Option<Bound<'py, PyAny>> {
    let mut reader = Reader { py, rest: body };
    let value = reader.value(0)?;
    reader.rest.is_empty().then_some(value)
}

struct Reader<'py, 'a> {
    py: Python<'py>,
    rest: &'a [u8],
}

impl<'py, 'a> Reader<'py, 'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn count(&mut self, bytes: usize) -> Option<usize> {
        let number =
            self.take(bytes)?.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
        Some(number)
    }

    fn value(&mut self, depth: usize) -> Option<Bound<'py, PyAny>> {
        let py = self.py;
        let int = |number: i64| number.into_pyobject(py).ok().map(Bound::into_any);
        match Marker::from_u8(self.array::<1>()?[0]) {
            Marker::Null => Some(py.None().into_bound(py)),
            Marker::True => Some(PyBool::new(py, true).to_owned().into_any()),
            Marker::False => Some(PyBool::new(py, false).to_owned().into_any()),
            Marker::FixPos(number) => int(number.into()),
            Marker::FixNeg(number) => int(number.into()),
            Marker::U8 => int(u8::from_be_bytes(self.array()?).into()),
            Marker::U16 => int(u16::from_be_bytes(self.array()?).into()),
            Marker::U32 => int(u32::from_be_bytes(self.array()?).into()),
            Marker::U64 => {
                u64::from_be_bytes(self.array()?).into_pyobject(py).ok().map(Bound::into_any)
            }
            Marker::I8 => int(i8::from_be_bytes(self.array()?).into()),
            Marker::I16 => int(i16::from_be_bytes(self.array()?).into()),
            Marker::I32 => int(i32::from_be_bytes(self.array()?).into()),
            Marker::I64 => int(i64::from_be_bytes(self.array()?)),
            Marker::F32 => {
                Some(PyFloat::new(py, f32::from_be_bytes(self.array()?).into()).into_any())
            }
            Marker::F64 => Some(PyFloat::new(py, f64::from_be_bytes(self.array()?)).into_any()),
            Marker::FixStr(length) => self.text(length.into()),
            Marker::Str8 => self.count(1).and_then(|length| self.text(length)),
            Marker::Str16 => self.count(2).and_then(|length| self.text(length)),
            Marker::Str32 => self.count(4).and_then(|length| self.text(length)),
            Marker::Bin8 => self.count(1).and_then(|length| self.bytes(length)),
            Marker::Bin16 => self.count(2).and_then(|length| self.bytes(length)),
            Marker::Bin32 => self.count(4).and_then(|length| self.bytes(length)),
            Marker::FixArray(length) => self.list(length.into(), depth),
            Marker::Array16 => self.count(2).and_then(|length| self.list(length, depth)),
            Marker::Array32 => self.count(4).and_then(|length| self.list(length, depth)),
            Marker::FixMap(length) => self.dict(length.into(), depth),
            Marker::Map16 => self.count(2).and_then(|length| self.dict(length, depth)),
            Marker::Map32 => self.count(4).and_then(|length| self.dict(length, depth)),
            // Extensions: nothing of ours.
            _ => None,
        }
    }

    fn text(&mut self, length: usize) -> Option<Bound<'py, PyAny>> {
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        Some(PyString::new(self.py, text).into_any())
    }

    fn bytes(&mut self, length: usize) -> Option<Bound<'py, PyAny>> {
        Some(PyBytes::new(self.py, self.take(length)?).into_any())
    }

    fn list(&mut self, length: usize, depth: usize) -> Option<Bound<'py, PyAny>> {
        if depth >= MAX_DEPTH {
            return None;
        }
        // Grown as items come: a length is only somebody's word.
        let list = PyList::empty(self.py);
        for _ in 0..length {
            list.append(self.value(depth + 1)?).ok()?;
        }
        Some(list.into_any())
    }

    fn dict(&mut self, length: usize, depth: usize) -> Option<Bound<'py, PyAny>> {
        if depth >= MAX_DEPTH {
            return None;
        }
        let dict = PyDict::new(self.py);
        for _ in 0..length {
            let key = self.value(depth + 1)?;
            dict.set_item(key, self.value(depth + 1)?).ok()?;
        }
        Some(dict.into_any())
    }
}
