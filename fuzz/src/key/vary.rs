//! The same value written otherwise, and what only looks like it.

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use num_bigint::BigInt;
use num_traits::ToPrimitive as _;

use super::Value;
use super::draw;
use super::model::{distinct, merged};

type From<'a, 'b> = &'a mut Unstructured<'b>;

pub(crate) fn varied(from: From<'_, '_>, value: &Value) -> Result<Value> {
    part(from, value, 0, false)
}

fn part(from: From<'_, '_>, value: &Value, depth: usize, hashable: bool) -> Result<Value> {
    let new = match from.int_in_range(0..=7)? {
        0..=3 => inside(from, value, depth, hashable)?,
        4 | 5 => equal(from, value)?,
        6 => alike(from, value)?,
        _ => draw::one(from, depth, hashable)?,
    };
    Ok(if hashable && !new.is_hashable() { value.clone() } else { new })
}

/// Varies the parts of a container.
fn inside(from: From<'_, '_>, value: &Value, depth: usize, hashable: bool) -> Result<Value> {
    let mut all = |items: &[Value], hashable: bool| -> Result<Vec<Value>> {
        items.iter().map(|item| part(from, item, depth + 1, hashable)).collect()
    };
    Ok(match value {
        Value::List(items) => Value::List(all(items, hashable)?),
        Value::Tuple(items) => Value::Tuple(all(items, hashable)?),
        Value::Set(items, frozen) => Value::Set(distinct(all(items, true)?), *frozen),
        Value::Dict(items, how) => {
            let mut new = Vec::new();
            for (key, item) in items {
                let key = part(from, key, depth + 1, true)?;
                new.push((key, part(from, item, depth + 1, false)?));
            }
            Value::Dict(merged(new), *how)
        }
        Value::Fields(fields, frozen) => {
            let first = part(from, &fields.0, depth + 1, hashable)?;
            let fields = Box::new((first, part(from, &fields.1, depth + 1, hashable)?));
            Value::Fields(fields, *frozen)
        }
        Value::Custom(key) => Value::Custom(Box::new(part(from, key, depth + 1, hashable)?)),
        other => other.clone(),
    })
}

/// Equal as a rule: the model has the last word.
fn equal(from: From<'_, '_>, value: &Value) -> Result<Value> {
    Ok(match value {
        Value::Bool(truth) => number(from, &BigInt::from(u8::from(*truth)))?,
        Value::Int(whole) | Value::Whole(whole) => number(from, whole)?,
        Value::Float(float) if float.is_finite() && float.fract() == 0.0 => {
            let whole = num_rational::BigRational::from_float(*float).expect("finite").to_integer();
            number(from, &whole)?
        }
        Value::Float(float) if float.is_infinite() => Value::Infinite(*float < 0.0),
        Value::Float(float) => Value::Complex(*float, -0.0),
        Value::Infinite(negative) => {
            Value::Float(if *negative { f64::NEG_INFINITY } else { f64::INFINITY })
        }
        Value::Decimal(negative, digits, exponent) => {
            let mut digits = digits.clone();
            digits.push(0);
            Value::Decimal(*negative, digits, exponent - 1)
        }
        Value::Fraction(above, below) => Value::Float(*above as f64 / *below as f64),
        Value::Complex(real, imaginary) if *imaginary == 0.0 => Value::Float(*real),
        Value::Text(text, subclass) => Value::Text(text.clone(), !subclass),
        Value::Bytes(bytes, _) => Value::Bytes(bytes.clone(), from.int_in_range(0..=2)?),
        Value::Dict(items, _) => {
            let mut items = items.clone();
            items.reverse();
            Value::Dict(items, from.int_in_range(0..=2)?)
        }
        Value::Set(items, frozen) => {
            let mut items = items.clone();
            items.reverse();
            Value::Set(items, !frozen)
        }
        Value::Member(3) => Value::Int(1.into()),
        Value::Member(4) => Value::Text(vec!['a'.into()], false),
        Value::DateTime(wall, Some(offset)) => {
            let other = from.int_in_range(-1439..=1439)?;
            Value::DateTime(wall + i64::from(other - offset) * 60_000_000, Some(other))
        }
        Value::Path(path, true) => Value::Path(path.to_ascii_uppercase(), true),
        other => other.clone(),
    })
}

/// A whole number of one type or another.
fn number(from: From<'_, '_>, whole: &BigInt) -> Result<Value> {
    let float = whole.to_f64().unwrap_or(f64::INFINITY);
    Ok(match from.int_in_range(0..=7)? {
        0 => Value::Float(float),
        1 => Value::Complex(float, 0.0),
        2 => {
            let digits = whole.magnitude().to_radix_be(10);
            Value::Decimal(whole.sign() == num_bigint::Sign::Minus, digits, 0)
        }
        3 => match whole.to_i64() {
            Some(small) => Value::Fraction(small, 1),
            None => Value::Int(whole.clone()),
        },
        4 => Value::Whole(whole.clone()),
        5 if *whole == BigInt::from(0) || *whole == BigInt::from(1) => {
            Value::Bool(*whole == BigInt::from(1))
        }
        6 if *whole == BigInt::from(1) => Value::Member(3),
        _ => Value::Int(whole.clone()),
    })
}

/// Unequal as a rule, though of the same parts.
fn alike(from: From<'_, '_>, value: &Value) -> Result<Value> {
    Ok(match value {
        Value::List(items) => Value::Tuple(regrouped(from, items)?),
        Value::Tuple(items) => Value::Tuple(regrouped(from, items)?),
        Value::Set(items, _) => Value::Tuple(items.clone()),
        Value::Dict(items, _) => {
            let mut flat = Vec::new();
            for (key, item) in items {
                flat.extend([key.clone(), item.clone()]);
            }
            Value::List(flat)
        }
        Value::Text(text, _) => {
            let bytes = text.iter().map(|letter| *letter as u8).collect();
            Value::Bytes(bytes, 0)
        }
        Value::Bytes(bytes, _) => Value::Text(bytes.iter().map(|b| u32::from(*b)).collect(), false),
        Value::Int(whole) => Value::Int(whole + from.int_in_range(-1..=1)?),
        Value::Float(float) => Value::Float(f64::from_bits(float.to_bits().wrapping_add(1))),
        Value::Decimal(negative, digits, exponent) => {
            Value::Decimal(*negative, digits.clone(), exponent + 1)
        }
        Value::Complex(real, imaginary) => Value::Complex(*imaginary, *real),
        Value::Infinite(negative) => Value::Infinite(!negative),
        Value::Date(days) => Value::DateTime(days * 86_400_000_000, None),
        Value::DateTime(wall, offset) => {
            Value::DateTime(*wall, if offset.is_some() { None } else { Some(0) })
        }
        Value::Time(wall, offset) => {
            Value::Time(*wall, if offset.is_some() { None } else { Some(0) })
        }
        Value::Uuid(bytes) => Value::Bytes(bytes.to_vec(), 0),
        Value::Path(path, windows) => Value::Path(path.clone(), !windows),
        Value::Fields(fields, frozen) => Value::Fields(fields.clone(), !frozen),
        Value::Custom(key) => (**key).clone(),
        Value::Member(0) => Value::Member(2),
        other => Value::Tuple(vec![other.clone()]),
    })
}

/// The same items, some of them in a tuple of their own.
fn regrouped(from: From<'_, '_>, items: &[Value]) -> Result<Vec<Value>> {
    let cut = from.int_in_range(0..=items.len())?;
    let (before, after) = items.split_at(cut);
    Ok(before.iter().cloned().chain([Value::Tuple(after.to_vec())]).collect())
}
