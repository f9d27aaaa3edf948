//! What equals what, written down once more: as numbers, sorted lists and tags, without bytes.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::Zero as _;

use super::Value;

/// The type of a number, where types are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Any,
    Bool,
    Int,
    Whole,
    Member,
    Float,
    Decimal,
    Fraction,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Model {
    None,
    Number(Kind, BigRational),
    Nan,
    Infinite(Kind, bool),
    Complex(Box<Model>, Box<Model>),
    Text(Vec<u32>),
    Bytes(Vec<u8>),
    List(Vec<Model>),
    Tuple(Vec<Model>),
    Dict(Vec<(Model, Model)>),
    Set(Vec<Model>),
    Member(usize),
    Date(i64),
    DateTime(bool, i64),
    Time(bool, i64),
    Delta(i128),
    Uuid([u8; 16]),
    Path(bool, String),
    Fields(bool, Box<(Model, Model)>),
    Custom(Box<Model>),
}

const MINUTE: i64 = 60_000_000;

pub(crate) fn of(value: &Value, typed: bool) -> Model {
    let of = |value: &Value| of(value, typed);
    let all = |values: &[Value]| values.iter().map(of).collect::<Vec<_>>();
    let kind = |kind: Kind| if typed { kind } else { Kind::Any };
    let whole = |k: Kind, number: &BigInt| {
        Model::Number(kind(k), BigRational::from_integer(number.clone()))
    };
    let float = |number: f64| match BigRational::from_float(number) {
        Some(ratio) => Model::Number(kind(Kind::Float), ratio),
        None if number.is_nan() => Model::Nan,
        None => Model::Infinite(kind(Kind::Float), number < 0.0),
    };
    match value {
        Value::None => Model::None,
        Value::Bool(truth) => whole(Kind::Bool, &BigInt::from(u8::from(*truth))),
        Value::Int(number) => whole(Kind::Int, number),
        Value::Whole(number) => whole(Kind::Whole, number),
        Value::Float(number) => float(*number),
        Value::Decimal(negative, digits, exponent) => {
            Model::Number(kind(Kind::Decimal), decimal(*negative, digits, *exponent))
        }
        Value::Infinite(negative) => Model::Infinite(kind(Kind::Decimal), *negative),
        Value::Fraction(above, below) => {
            let ratio = BigRational::new((*above).into(), (*below).into());
            Model::Number(kind(Kind::Fraction), ratio)
        }
        Value::Complex(real, imaginary) => {
            if *imaginary == 0.0 && !typed {
                float(*real)
            } else {
                Model::Complex(Box::new(float(*real)), Box::new(float(*imaginary)))
            }
        }
        Value::Text(text, _) => Model::Text(text.clone()),
        Value::Bytes(bytes, _) => Model::Bytes(bytes.clone()),
        Value::List(items) => Model::List(all(items)),
        Value::Tuple(items) => Model::Tuple(all(items)),
        Value::Dict(items, _) => {
            let mut items: Vec<_> = items.iter().map(|(key, item)| (of(key), of(item))).collect();
            items.sort();
            Model::Dict(items)
        }
        Value::Set(items, _) => {
            let mut items = all(items);
            items.sort();
            Model::Set(items)
        }
        // The last two are equal to their values.
        Value::Member(3) => whole(Kind::Member, &BigInt::from(1)),
        Value::Member(4) => Model::Text(vec!['a'.into()]),
        Value::Member(which) => Model::Member(*which),
        Value::Date(days) => Model::Date(*days),
        Value::DateTime(wall, offset) => Model::DateTime(offset.is_some(), instant(*wall, *offset)),
        Value::Time(wall, offset) => Model::Time(offset.is_some(), instant(*wall, *offset)),
        Value::Delta(days, seconds, micros) => {
            let seconds = i128::from(*days) * 86_400 + i128::from(*seconds);
            Model::Delta(seconds * 1_000_000 + i128::from(*micros))
        }
        Value::Uuid(bytes) => Model::Uuid(*bytes),
        Value::Path(path, windows) => {
            Model::Path(*windows, if *windows { path.to_ascii_lowercase() } else { path.clone() })
        }
        Value::Fields(fields, frozen) => {
            Model::Fields(*frozen, Box::new((of(&fields.0), of(&fields.1))))
        }
        Value::Custom(key) => Model::Custom(Box::new(of(key))),
    }
}

fn instant(wall: i64, offset: Option<i16>) -> i64 {
    wall - i64::from(offset.unwrap_or(0)) * MINUTE
}

fn decimal(negative: bool, digits: &[u8], exponent: i32) -> BigRational {
    let mut number = BigInt::zero();
    for digit in digits {
        number = number * 10 + *digit;
    }
    if negative {
        number = -number;
    }
    let power = BigInt::from(10).pow(exponent.unsigned_abs());
    if exponent < 0 { BigRational::new(number, power) } else { (number * power).into() }
}

impl Model {
    pub(crate) fn has_nan(&self) -> bool {
        match self {
            Self::Nan => true,
            Self::Complex(a, b) => a.has_nan() || b.has_nan(),
            Self::List(items) | Self::Tuple(items) | Self::Set(items) => {
                items.iter().any(Self::has_nan)
            }
            Self::Dict(items) => items.iter().any(|(a, b)| a.has_nan() || b.has_nan()),
            Self::Fields(_, fields) => fields.0.has_nan() || fields.1.has_nan(),
            Self::Custom(key) => key.has_nan(),
            _ => false,
        }
    }
}

impl Value {
    /// Whether there is an `OrderedDict` in it.
    pub(crate) fn is_ordered(&self) -> bool {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::Set(items, _) => {
                items.iter().any(Self::is_ordered)
            }
            Self::Dict(items, how) => {
                *how == 1 || items.iter().any(|(key, item)| key.is_ordered() || item.is_ordered())
            }
            Self::Fields(fields, _) => fields.0.is_ordered() || fields.1.is_ordered(),
            Self::Custom(key) => key.is_ordered(),
            _ => false,
        }
    }

    /// Whether Python lets it into a set.
    pub(crate) fn is_hashable(&self) -> bool {
        match self {
            Self::List(_) | Self::Dict(..) | Self::Set(_, false) | Self::Bytes(_, 1) => false,
            Self::Tuple(items) | Self::Set(items, true) => items.iter().all(Self::is_hashable),
            Self::Fields(fields, frozen) => {
                *frozen && fields.0.is_hashable() && fields.1.is_hashable()
            }
            Self::Custom(key) => key.is_hashable(),
            _ => true,
        }
    }
}

/// As a dict: the first of equal keys, and the last of their values. NaN equals nothing there.
pub(crate) fn merged(items: Vec<(Value, Value)>) -> Vec<(Value, Value)> {
    let mut kept: Vec<(Model, Value, Value)> = Vec::new();
    for (key, item) in items {
        let model = of(&key, false);
        match kept.iter_mut().find(|(other, ..)| *other == model && !model.has_nan()) {
            Some((_, _, before)) => *before = item,
            None => kept.push((model, key, item)),
        }
    }
    kept.into_iter().map(|(_, key, item)| (key, item)).collect()
}

/// As a set: the first of equals.
pub(crate) fn distinct(items: Vec<Value>) -> Vec<Value> {
    let pairs = merged(items.into_iter().map(|item| (item, Value::None)).collect());
    pairs.into_iter().map(|(item, _)| item).collect()
}
