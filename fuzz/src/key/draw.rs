//! Values out of bytes.

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use num_bigint::BigInt;

use super::Value;
use super::model::{distinct, merged};

type From<'a, 'b> = &'a mut Unstructured<'b>;

const DAY: i64 = 86_400_000_000;
/// Deeper ones are refused at some point, and found no sooner here.
const DEEPEST: usize = 5;

pub(crate) fn value(from: From<'_, '_>) -> Result<Value> {
    one(from, 0, false)
}

/// A value `depth` levels down that is to be hashable, or need not be.
pub(super) fn one(from: From<'_, '_>, depth: usize, hashable: bool) -> Result<Value> {
    let kinds = if depth < DEEPEST { 28 } else { 20 };
    let drawn = match from.int_in_range(0..=kinds)? {
        0 => Value::None,
        1 => Value::Bool(from.arbitrary()?),
        2 => Value::Int(from.int_in_range(-3..=3)?.into()),
        3 => Value::Int(whole(from)?),
        4 => Value::Whole(whole(from)?),
        5 => Value::Float(float(from)?),
        6 => Value::Float(from.int_in_range(-3..=3_i8)?.into()),
        7 => Value::Decimal(from.arbitrary()?, digits(from)?, from.int_in_range(-330..=310)?),
        8 => Value::Decimal(from.arbitrary()?, digits(from)?, from.int_in_range(-4..=2)?),
        9 => Value::Infinite(from.arbitrary()?),
        10 => {
            let below = *from.choose(&[1, 2, 4, 8, 1 << 40, 3, 7])?;
            Value::Fraction(from.arbitrary::<i16>()?.into(), below)
        }
        11 => Value::Complex(float(from)?, float(from)?),
        12 => Value::Text(text(from)?, from.arbitrary()?),
        13 => Value::Bytes(bytes(from)?, from.int_in_range(0..=2)?),
        14 => Value::Member(from.int_in_range(0..=4)?),
        15 => Value::Date(from.int_in_range(400..=3_650_000)?),
        16 => Value::DateTime(from.int_in_range(400 * DAY..=3_650_000 * DAY)?, offset(from)?),
        17 => Value::Time(from.int_in_range(0..=DAY - 1)?, offset(from)?),
        18 => Value::Delta(
            from.int_in_range(-999_999_000..=999_999_000)?,
            from.int_in_range(-90_000..=90_000)?,
            from.int_in_range(-2_000_000..=2_000_000)?,
        ),
        19 => Value::Uuid(from.arbitrary()?),
        20 => path(from)?,
        21 => Value::List(many(from, depth, hashable)?),
        22 | 23 => Value::Tuple(many(from, depth, hashable)?),
        24 => Value::Set(distinct(many(from, depth, true)?), hashable || from.arbitrary()?),
        25 => {
            let mut items = Vec::new();
            for key in many(from, depth, true)? {
                items.push((key, one(from, depth + 1, false)?));
            }
            Value::Dict(merged(items), from.int_in_range(0..=2)?)
        }
        // As requests have them.
        26 => {
            let mut items = Vec::new();
            while items.len() < 12 && !once_in(from, 4)? {
                let key = Value::Text(short_name(from)?, false);
                items.push((key, one(from, depth + 1, false)?));
            }
            Value::Dict(merged(items), 0)
        }
        27 => Value::Fields(
            Box::new((one(from, depth + 1, hashable)?, one(from, depth + 1, hashable)?)),
            hashable || from.arbitrary()?,
        ),
        _ => Value::Custom(Box::new(one(from, depth + 1, hashable)?)),
    };
    Ok(if hashable && !drawn.is_hashable() { hashable_form(drawn) } else { drawn })
}

/// Whether a chance of one in `many` has come. Out of bytes, loops end: the first number is drawn.
fn once_in(from: From<'_, '_>, many: u8) -> Result<bool> {
    if from.is_empty() {
        return Ok(many < 5);
    }
    Ok(from.int_in_range(1..=many)? == many)
}

fn hashable_form(value: Value) -> Value {
    match value {
        Value::List(items) => Value::Tuple(items),
        Value::Bytes(bytes, _) => Value::Bytes(bytes, 0),
        _ => Value::None,
    }
}

fn many(from: From<'_, '_>, depth: usize, hashable: bool) -> Result<Vec<Value>> {
    let mut items = Vec::new();
    let most = if once_in(from, 16)? { 20 } else { 4 };
    while items.len() < most && !once_in(from, 3)? {
        items.push(one(from, depth + 1, hashable)?);
    }
    if once_in(from, 32)? {
        // More than fit the one byte of a short length.
        items.extend(std::iter::repeat_n(Value::None, 128));
    }
    Ok(items)
}

pub(super) fn whole(from: From<'_, '_>) -> Result<BigInt> {
    Ok(match from.int_in_range(0..=3)? {
        0 => from.arbitrary::<i64>()?.into(),
        1 => from.arbitrary::<i128>()?.into(),
        // About the powers of two.
        2 => {
            let power: BigInt = BigInt::from(1) << from.int_in_range(7..=1030)?;
            let sign = if from.arbitrary()? { 1 } else { -1 };
            power * sign + from.int_in_range(-1..=1)?
        }
        // From 4,000 digits on a decimal is not the same key, as is documented.
        _ => {
            let bytes = bytes(from)?;
            BigInt::from_signed_bytes_le(&bytes[..bytes.len().min(1_600)])
        }
    })
}

pub(super) fn float(from: From<'_, '_>) -> Result<f64> {
    Ok(match from.int_in_range(0..=3)? {
        0 => f64::from_bits(from.arbitrary()?),
        1 => *from.choose(&[0.0, -0.0, f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY])?,
        2 => f64::from(from.arbitrary::<i32>()?) / 8.0,
        _ => 2.0_f64.powi(from.int_in_range(-1074..=1023)?),
    })
}

fn digits(from: From<'_, '_>) -> Result<Vec<u8>> {
    let mut digits = vec![from.int_in_range(0..=9)?];
    while digits.len() < 30 && !once_in(from, 3)? {
        digits.push(from.int_in_range(0..=9)?);
    }
    Ok(digits)
}

/// Once in a while around the lengths where the form changes: 62, 64, 128, 16384.
fn repeated<T: Clone>(from: From<'_, '_>, part: Vec<T>) -> Result<Vec<T>> {
    if part.is_empty() || !once_in(from, 8)? {
        return Ok(part);
    }
    let length = *from.choose(&[61, 62, 63, 64, 65, 127, 128, 129, 16_383, 16_384])?;
    Ok(part.into_iter().cycle().take(length).collect())
}

pub(super) fn bytes(from: From<'_, '_>) -> Result<Vec<u8>> {
    let length = from.int_in_range(0..=12)?;
    let part = from.bytes(length.min(from.len()))?.to_vec();
    repeated(from, part)
}

pub(super) fn text(from: From<'_, '_>) -> Result<Vec<u32>> {
    let mut text = Vec::new();
    while text.len() < 12 && !once_in(from, 4)? {
        text.push(match from.int_in_range(0..=4)? {
            0 => from.int_in_range(0x80..=0xD7FF)?,
            1 => from.int_in_range(0xD800..=0xDFFF)?,
            2 => from.int_in_range(0xE000..=0x10_FFFF)?,
            _ => from.int_in_range(0..=0x7F)?,
        });
    }
    repeated(from, text)
}

fn short_name(from: From<'_, '_>) -> Result<Vec<u32>> {
    let length = from.int_in_range(0..=3)?;
    let part = from.bytes(length.min(from.len()))?.to_vec();
    let part = repeated(from, part)?;
    Ok(part.into_iter().map(|byte| u32::from(byte & 0x7F)).collect())
}

fn offset(from: From<'_, '_>) -> Result<Option<i16>> {
    Ok(if from.arbitrary()? { Some(from.int_in_range(-1439..=1439)?) } else { None })
}

fn path(from: From<'_, '_>) -> Result<Value> {
    let mut path = String::new();
    while path.len() < 12 && !once_in(from, 4)? {
        if !path.is_empty() && from.arbitrary()? {
            path.push('/');
        }
        path.push(*from.choose(&['a', 'b', 'A', 'B'])?);
    }
    Ok(Value::Path(if path.is_empty() { "a".to_owned() } else { path }, from.arbitrary()?))
}
