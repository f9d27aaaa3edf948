//! JSON as RFC 8259 has it, from and to Python values.

use std::io::Write as _;

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString};

use super::MAX_DEPTH;
use super::refusal::{Refusal, step_of};
use crate::py::convert::type_name;

pub(super) fn encode(value: &Bound<'_, PyAny>) -> Result<Vec<u8>, Refusal> {
    let mut out = Vec::with_capacity(128);
    write(&mut out, value, 0)?;
    Ok(out)
}

fn write(out: &mut Vec<u8>, value: &Bound<'_, PyAny>, depth: usize) -> Result<(), Refusal> {
    if let Ok(text) = value.cast::<PyString>() {
        return write_text(out, text);
    }
    if value.is_none() {
        out.extend_from_slice(b"null");
    } else if let Ok(truth) = value.cast::<PyBool>() {
        out.extend_from_slice(if truth.is_true() { b"true" } else { b"false" });
    } else if value.is_instance_of::<PyInt>() {
        write_int(out, value)?;
    } else if let Ok(number) = value.cast::<PyFloat>() {
        let number = number.value();
        if !number.is_finite() {
            return Err(Refusal::of(format!("{number} is no JSON number")));
        }
        // `Debug` gives the shortest text that reads back as this very number, and always a
        // point or an exponent, so a float stays a float.
        let _ = write!(out, "{number:?}");
    } else if let Ok(list) = value.cast::<PyList>() {
        check_depth(depth)?;
        out.push(b'[');
        let mut index = 0;
        while let Ok(item) = list.get_item(index) {
            if index > 0 {
                out.push(b',');
            }
            write(out, &item, depth + 1)
                .map_err(|refusal| refusal.within(|| format!("[{index}]")))?;
            index += 1;
        }
        out.push(b']');
    } else if let Ok(dict) = value.cast::<PyDict>() {
        check_depth(depth)?;
        write_dict(out, dict, depth)?;
    } else {
        return Err(Refusal::of(format!("{} is no JSON value", type_name(value))));
    }
    Ok(())
}

fn check_depth(depth: usize) -> Result<(), Refusal> {
    if depth < MAX_DEPTH {
        return Ok(());
    }
    Err(Refusal::of(format!("it contains itself or is more than {MAX_DEPTH} levels deep")))
}

fn write_dict(out: &mut Vec<u8>, dict: &Bound<'_, PyDict>, depth: usize) -> Result<(), Refusal> {
    out.push(b'{');
    // A copy: whatever runs in between cannot change it.
    for (index, item) in dict.items().iter().enumerate() {
        let (key, value) = item.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
        if index > 0 {
            out.push(b',');
        }
        let Ok(text) = key.cast::<PyString>() else {
            let what = format!("{} as a key is no JSON name", type_name(&key));
            return Err(Refusal::of(what).within(|| step_of(&key)));
        };
        write_text(out, text)?;
        out.push(b':');
        write(out, &value, depth + 1).map_err(|refusal| refusal.within(|| step_of(&key)))?;
    }
    out.push(b'}');
    Ok(())
}

fn write_int(out: &mut Vec<u8>, value: &Bound<'_, PyAny>) -> Result<(), Refusal> {
    if let Ok(small) = value.extract::<i64>() {
        let _ = write!(out, "{small}");
        return Ok(());
    }
    // A subclass may print itself otherwise.
    let digits = value.py().get_type::<PyInt>().call_method1("__repr__", (value,))?;
    out.extend_from_slice(digits.cast::<PyString>().map_err(PyErr::from)?.to_str()?.as_bytes());
    Ok(())
}

fn write_text(out: &mut Vec<u8>, text: &Bound<'_, PyString>) -> Result<(), Refusal> {
    let Ok(text) = text.to_str() else {
        return Err(Refusal::of("a str with a lone surrogate is no Unicode text".into()));
    };
    out.push(b'"');
    let mut from = 0;
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..0x20 => b"",
            _ => continue,
        };
        out.extend_from_slice(&bytes[from..at]);
        if escape.is_empty() {
            let _ = write!(out, "\\u{byte:04x}");
        } else {
            out.extend_from_slice(escape);
        }
        from = at + 1;
    }
    out.extend_from_slice(&bytes[from..]);
    out.push(b'"');
    Ok(())
}

pub(super) fn decode<'py>(py: Python<'py>, body: &[u8]) -> Option<Bound<'py, PyAny>> {
    let text = std::str::from_utf8(body).ok()?;
    let mut reader = Reader { py, text, at: 0 };
    let value = reader.value(0)?;
    reader.blank();
    (reader.at == text.len()).then_some(value)
}

struct Reader<'py, 'a> {
    py: Python<'py>,
    text: &'a str,
    at: usize,
}

impl<'py, 'a> Reader<'py, 'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blank(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn take(&mut self, expected: u8) -> Option<()> {
        (self.peek()? == expected).then(|| self.at += 1)
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.text[self.at..].starts_with(word).then(|| self.at += word.len())
    }

    fn value(&mut self, depth: usize) -> Option<Bound<'py, PyAny>> {
        self.blank();
        let py = self.py;
        Some(match self.peek()? {
            b'"' => PyString::new(py, &self.string()?).into_any(),
            b'{' => self.dict(depth)?,
            b'[' => self.list(depth)?,
            b't' => {
                self.word("true")?;
                PyBool::new(py, true).to_owned().into_any()
            }
            b'f' => {
                self.word("false")?;
                PyBool::new(py, false).to_owned().into_any()
            }
            b'n' => {
                self.word("null")?;
                py.None().into_bound(py)
            }
            _ => self.number()?,
        })
    }

    fn list(&mut self, depth: usize) -> Option<Bound<'py, PyAny>> {
        if depth >= MAX_DEPTH {
            return None;
        }
        self.take(b'[')?;
        let list = PyList::empty(self.py);
        self.blank();
        if self.take(b']').is_some() {
            return Some(list.into_any());
        }
        loop {
            list.append(self.value(depth + 1)?).ok()?;
            self.blank();
            if self.take(b',').is_none() {
                self.take(b']')?;
                return Some(list.into_any());
            }
        }
    }

    fn dict(&mut self, depth: usize) -> Option<Bound<'py, PyAny>> {
        if depth >= MAX_DEPTH {
            return None;
        }
        self.take(b'{')?;
        let dict = PyDict::new(self.py);
        self.blank();
        if self.take(b'}').is_some() {
            return Some(dict.into_any());
        }
        loop {
            self.blank();
            let key = self.string()?;
            self.blank();
            self.take(b':')?;
            let value = self.value(depth + 1)?;
            dict.set_item(key, value).ok()?;
            self.blank();
            if self.take(b',').is_none() {
                self.take(b'}')?;
                return Some(dict.into_any());
            }
        }
    }

    fn string(&mut self) -> Option<std::borrow::Cow<'a, str>> {
        self.take(b'"')?;
        let begin = self.at;
        let mut unescaped: Option<String> = None;
        let mut from = begin;
        loop {
            match self.peek()? {
                b'"' => {
                    let rest = &self.text[from..self.at];
                    self.at += 1;
                    return Some(match unescaped {
                        None => rest.into(),
                        Some(mut text) => {
                            text.push_str(rest);
                            text.into()
                        }
                    });
                }
                b'\\' => {
                    let text = unescaped.get_or_insert_default();
                    text.push_str(&self.text[from..self.at]);
                    self.at += 1;
                    let escaped = self.escape()?;
                    unescaped.get_or_insert_default().push(escaped);
                    from = self.at;
                }
                0..0x20 => return None,
                _ => self.at += 1,
            }
        }
    }

    fn escape(&mut self) -> Option<char> {
        let kind = self.peek()?;
        self.at += 1;
        Some(match kind {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.unit()?;
                if !(0xD800..0xDC00).contains(&first) {
                    return char::from_u32(first);
                }
                self.word("\\u")?;
                let second = self.unit()?.checked_sub(0xDC00).filter(|low| *low < 0x400)?;
                char::from_u32(0x1_0000 + ((first - 0xD800) << 10) + second)?
            }
            _ => return None,
        })
    }

    fn unit(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }

    fn digits(&mut self) -> Option<usize> {
        let begin = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        (self.at > begin).then_some(self.at - begin)
    }

    fn number(&mut self) -> Option<Bound<'py, PyAny>> {
        let begin = self.at;
        let _ = self.take(b'-');
        let leading_zero = self.peek() == Some(b'0');
        if self.digits()? > 1 && leading_zero {
            return None;
        }
        let mut whole = true;
        if self.take(b'.').is_some() {
            self.digits()?;
            whole = false;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
            whole = false;
        }
        let token = &self.text[begin..self.at];
        let py = self.py;
        if !whole {
            let number: f64 = token.parse().ok()?;
            return number.is_finite().then(|| PyFloat::new(py, number).into_any());
        }
        if let Ok(small) = token.parse::<i64>() {
            return small.into_pyobject(py).ok().map(Bound::into_any);
        }
        py.get_type::<PyInt>().call1((token,)).ok()
    }
}
