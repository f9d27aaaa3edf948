//! Values of the standard library that have a canonical form.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};

use super::failure::Failure;
use super::unusual::{compares_as, equals_as};
use super::walk::{Walk, Walker};
use crate::core::key::encode::tag;

/// Classes that are recognised by `isinstance`.
pub(super) struct Known {
    pub(super) enumeration: Py<PyType>,
    decimal: Py<PyType>,
    fraction: Py<PyType>,
    uuid: Py<PyType>,
    path: Py<PyType>,
    windows_path: Py<PyType>,
    datetime: Py<PyType>,
    date: Py<PyType>,
    time: Py<PyType>,
    timedelta: Py<PyType>,
    timezone: Py<PyType>,
    pub(super) integral: Py<PyAny>,
    pub(super) real: Py<PyAny>,
    pub(super) mapping_proxy: Py<PyType>,
    /// The ``__eq__`` of the standard library's dicts, all of which equal a dict with their items.
    pub(super) dict_equalities: [Py<PyAny>; 3],
}

pub(super) fn known(py: Python<'_>) -> PyResult<&Known> {
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
            timezone: class("datetime", "timezone")?,
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

/// Imports what is imported on first use.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    known(py).map(drop)
}

impl Walker<'_> {
    /// Values of the standard library that have a canonical form.
    pub(super) fn standard_library(
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
            if let Some(offset) = offset
                && is_skipped(value, offset)?
            {
                // Its instant is another time's too, which it does not equal.
                self.encoder.fixed(tag::SKIPPED, micros.to_le_bytes());
            }
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
            if !class.is(known.decimal.bind(py)) {
                self.kind(class)?;
            }
            self.decimal(value)?;
        } else if kept(&known.fraction)? {
            if !class.is(known.fraction.bind(py)) {
                self.kind(class)?;
            }
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
        } else {
            return self.foreign(value, class);
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
        if !finite {
            self.encoder.tag(sign);
            // "n" or "N", and the payload if there is one.
            let mut kind: String = exponent.extract()?;
            kind.extend(digits.iter().map(|digit| char::from(b'0' + digit)));
            self.encoder.str(&kind);
            return Ok(());
        }
        let significant = digits.iter().rposition(|digit| *digit != 0).map_or(0, |last| last + 1);
        // There is one zero, as with floats.
        self.encoder.tag(if significant == 0 { 0 } else { sign });
        let dropped = (digits.len() - significant) as i64;
        let exponent = if significant == 0 { 0 } else { exponent.extract::<i64>()? + dropped };
        self.encoder.int(exponent);
        self.encoder.bytes(&digits[..significant]);
        Ok(())
    }
}

fn to_i64(value: &Bound<'_, PyAny>, attribute: &str) -> PyResult<i64> {
    value.getattr(attribute)?.extract()
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

/// Whether a change of the clocks leaves out this time of its zone: the way to its instant
/// and back does not lead to it.
fn is_skipped(value: &Bound<'_, PyAny>, offset: i64) -> PyResult<bool> {
    let py = value.py();
    let known = known(py)?;
    let zone = value.getattr("tzinfo")?;
    // Fixed offsets skip nothing.
    if zone.get_type().is(known.timezone.bind(py)) {
        return Ok(false);
    }
    let way = || -> PyResult<bool> {
        let (bare, zoned) = (PyDict::new(py), PyDict::new(py));
        bare.set_item("tzinfo", py.None())?;
        zoned.set_item("tzinfo", &zone)?;
        let wall = value.call_method("replace", (), Some(&bare))?;
        let offset = known.timedelta.bind(py).call1((0, 0, offset))?;
        let instant = wall.call_method1("__sub__", (offset,))?;
        let instant = instant.call_method("replace", (), Some(&zoned))?;
        let back = zone.call_method1("fromutc", (instant,))?;
        back.call_method("replace", (), Some(&bare))?.ne(&wall)
    };
    way().or_else(|error| {
        // No way back (a zone without `dst()`, the first or last day of time).
        if error.is_instance_of::<PyException>(py) { Ok(false) } else { Err(error) }
    })
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
