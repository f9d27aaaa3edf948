//! Two values have one key exactly when they are equal as the documentation of keys says.

mod build;
mod draw;
mod model;
mod vary;

use std::cell::RefCell;
use std::collections::HashMap;

use ferrogate::core::key::Key;
use ferrogate::fuzzed::key_encoding;
use libfuzzer_sys::arbitrary::Unstructured;
use num_bigint::BigInt;
use pyo3::prelude::*;

use build::Builder;
use model::Model;

/// A value, and how it is written: `Int(1)`, `Float(1.0)` and `Bool(true)` are equal.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(BigInt),
    /// An `int` of a subclass.
    Whole(BigInt),
    Float(f64),
    /// `±digits * 10**exponent`.
    Decimal(bool, Vec<u8>, i32),
    Infinite(bool),
    /// Over 1, 2, 4, 8, 2**40, 3 or 7: what equals no float equals no decimal either. (If it did,
    /// their keys would differ, as is documented.)
    Fraction(i64, u64),
    Complex(f64, f64),
    /// Code points, lone surrogates among them; of a subclass or not.
    Text(Vec<u32>, bool),
    /// As `bytes`, `bytearray` or `memoryview`.
    Bytes(Vec<u8>, u8),
    List(Vec<Value>),
    /// As a tuple or a named one.
    Tuple(Vec<Value>),
    /// As a `dict`, an `OrderedDict` or a `MappingProxyType`.
    Dict(Vec<(Value, Value)>, u8),
    /// As a `frozenset`, or a `set`.
    Set(Vec<Value>, bool),
    /// Members of enums: an `Enum`'s two, another's one, an `IntEnum`'s, a `StrEnum`'s.
    Member(usize),
    Date(i64),
    /// Microseconds of the wall clock since year 1, and the offset in minutes.
    DateTime(i64, Option<i16>),
    Time(i64, Option<i16>),
    /// Days, seconds, microseconds.
    Delta(i32, i32, i32),
    Uuid([u8; 16]),
    /// A path of POSIX or of Windows.
    Path(String, bool),
    /// A frozen dataclass, which is hashable; or another one with the same fields.
    Fields(Box<(Value, Value)>, bool),
    /// What has a `__cache_key__`.
    Custom(Box<Value>),
}

/// So many encodings are remembered, to be compared with those of later inputs.
const REMEMBERED: usize = 100_000;

thread_local! {
    static BUILDER: RefCell<Option<Builder>> = const { RefCell::new(None) };
    static SEEN: RefCell<HashMap<(bool, Vec<u8>), Model>> = RefCell::default();
}

pub(crate) fn pair(py: Python<'_>, input: &[u8]) {
    let mut from = Unstructured::new(input);
    let Ok((a, b)) = draw::value(&mut from).and_then(|a| {
        let b = vary::varied(&mut from, &a)?;
        Ok((a, b))
    }) else {
        return;
    };
    BUILDER.with_borrow_mut(|builder| {
        let builder = builder.get_or_insert_with(|| Builder::new(py).expect("its classes"));
        let (left, right) = (builder.object(py, &a), builder.object(py, &b));
        let (left, right) = (left.expect("a value"), right.expect("a value"));
        for typed in [false, true] {
            check(&a, &b, &left, &right, typed);
        }
    });
}

fn check(a: &Value, b: &Value, left: &Bound<'_, PyAny>, right: &Bound<'_, PyAny>, typed: bool) {
    let encoding = |value| key_encoding(value, typed).expect("every one of these has a key");
    let (ours, theirs) = (encoding(left), encoding(right));
    assert_eq!(ours, encoding(left), "not the same twice");
    let (one, other) = (model::of(a, typed), model::of(b, typed));
    let equal = one == other;
    assert_eq!(ours == theirs, equal, "typed: {typed}\n{a:?}\n{b:?}\n{one:?}\n{other:?}");
    assert_eq!(Key::new(&ours) == Key::new(&theirs), equal, "{a:?}\n{b:?}");
    if equal {
        assert_eq!(Key::new(&ours).hash(), Key::new(&theirs).hash());
    } else {
        let prefix = ours.starts_with(&theirs) || theirs.starts_with(&ours);
        assert!(!prefix, "one is the beginning of the other\n{a:?}\n{b:?}");
    }
    // The model says what Python does, NaN apart, and dicts in an order of their own.
    let otherwise = one.has_nan() || other.has_nan() || (a.is_ordered() && b.is_ordered());
    if !typed && !otherwise {
        assert_eq!(left.eq(right).expect("they compare"), equal, "the model\n{a:?}\n{b:?}");
    }
    SEEN.with_borrow_mut(|seen| {
        if seen.len() > REMEMBERED {
            seen.clear();
        }
        // Text and the like, of which there is much, is told apart well enough.
        for (encoding, model) in [(ours, one), (theirs, other)] {
            if encoding.len() <= 2 * Key::INLINE {
                let known = seen.entry((typed, encoding)).or_insert_with(|| model.clone());
                assert_eq!(*known, model, "an input before had this encoding");
            }
        }
    });
}
