//! Python arguments to core values, with errors that name the argument.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDelta, PyDeltaAccess, PyFloat, PyInt};

use crate::core::clock::{
    Clock, ManualClock, NEVER, Nanos, SECOND, nanos_from_secs, secs_from_nanos,
};
use crate::core::error::InvalidArgument;
use crate::py::edge::edge;

impl From<InvalidArgument> for PyErr {
    fn from(error: InvalidArgument) -> Self {
        PyValueError::new_err(error.to_string())
    }
}

/// The class name of a value, for messages.
pub(crate) fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "object".to_owned(), |name| name.to_string())
}

/// What a duration argument may be.
const ABOVE_ZERO: &str = "above 0 seconds";
const ZERO_OR_MORE: &str = "of at least 0 seconds";

/// The longest duration, which `math.inf` becomes.
pub(crate) const LONGEST: Nanos = NEVER - 1;

/// A duration in seconds (`float`, `int`) or a `timedelta`; must be above zero.
pub(crate) fn duration(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<Nanos> {
    match seconds_or_delta(argument, value, ABOVE_ZERO)? {
        0 => Err(not_a_duration(argument, value, ABOVE_ZERO)),
        nanos => Ok(nanos),
    }
}

/// So much of a wrong value is shown.
const LONGEST_SHOWN: usize = 80;

/// Like [`duration`], but zero is allowed.
pub(crate) fn duration_or_zero(
    argument: &'static str,
    value: &Bound<'_, PyAny>,
) -> PyResult<Nanos> {
    seconds_or_delta(argument, value, ZERO_OR_MORE)
}

/// [`duration`] of an optional argument.
pub(crate) fn optional_duration(
    argument: &'static str,
    value: Option<&Bound<'_, PyAny>>,
) -> PyResult<Option<Nanos>> {
    value.map(|value| duration(argument, value)).transpose()
}

fn seconds_or_delta(
    argument: &'static str,
    value: &Bound<'_, PyAny>,
    expected: &str,
) -> PyResult<Nanos> {
    let wrong = || not_a_duration(argument, value, expected);
    if let Ok(delta) = value.cast::<PyDelta>() {
        let micros = (i64::from(delta.get_days()) * 86_400 + i64::from(delta.get_seconds()))
            .saturating_mul(1_000_000)
            .saturating_add(i64::from(delta.get_microseconds()));
        return u64::try_from(micros)
            .map(|micros| micros.saturating_mul(1_000).min(LONGEST))
            .map_err(|_| wrong());
    }
    let is_number = (value.is_instance_of::<PyFloat>() || value.is_instance_of::<PyInt>())
        && !value.is_instance_of::<PyBool>();
    if !is_number {
        return Err(PyTypeError::new_err(format!(
            "{argument}: expected seconds as a number or a timedelta, got {}",
            type_name(value)
        )));
    }
    let seconds: f64 = match value.extract() {
        Ok(seconds) => seconds,
        // An int that no float can hold.
        Err(_) if value.gt(0)? => f64::INFINITY,
        Err(_) => return Err(wrong()),
    };
    if seconds.is_nan() || seconds < 0.0 {
        return Err(wrong());
    }
    let nanos = nanos_from_secs(seconds);
    // A positive duration below half a nanosecond must not become "none at all".
    Ok(if nanos == 0 && seconds > 0.0 { 1 } else { nanos.min(LONGEST) })
}

fn not_a_duration(argument: &str, value: &Bound<'_, PyAny>, expected: &str) -> PyErr {
    // Python writes thousands of digits of an int, and then refuses.
    let mut shown = value.repr().map_or_else(|_| "a number without end".into(), |r| r.to_string());
    if shown.chars().count() > LONGEST_SHOWN {
        shown = shown.chars().take(LONGEST_SHOWN).chain(['…']).collect();
    }
    PyValueError::new_err(format!("{argument}: expected a duration {expected}, got {shown}"))
}

/// A clock argument: `None` is the machine's.
pub(crate) fn clock(value: Option<&Bound<'_, PyAny>>) -> PyResult<Clock> {
    let Some(value) = value else { return Ok(Clock::System) };
    if let Ok(manual) = value.cast::<PyManualClock>() {
        return Ok(Clock::Manual(manual.get().0.clone()));
    }
    Err(PyTypeError::new_err(format!(
        "clock: expected a ferrogate.testing.ManualClock or None, got {}",
        type_name(value)
    )))
}

/// Whether `FERROGATE_DISABLED` switches every component off (read at construction).
pub(crate) fn globally_disabled() -> bool {
    std::env::var("FERROGATE_DISABLED")
        .map(|value| value.trim().to_lowercase())
        .is_ok_and(|value| !matches!(&*value, "" | "0" | "false" | "no" | "off"))
}

/// A clock that only moves when it is told to; the native half of
/// ``ferrogate.testing.ManualClock``.
#[pyclass(frozen, subclass, name = "ManualClock", module = "ferrogate._core")]
pub(crate) struct PyManualClock(pub(crate) ManualClock);

#[pymethods]
impl PyManualClock {
    #[new]
    #[pyo3(signature = (start = None), text_signature = "(start=0.0)")]
    fn new(start: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        edge("ManualClock", || {
            let Some(value) = start else { return Ok(Self(ManualClock::starting_at(0))) };
            let start = duration_or_zero("start", value)?;
            if start == LONGEST {
                return Err(PyValueError::new_err(format!(
                    "start: expected finite seconds of at least 0, got {}",
                    value.repr()?
                )));
            }
            Ok(Self(ManualClock::starting_at(start)))
        })
    }

    /// The time it stands at, in seconds.
    fn now(&self) -> f64 {
        secs_from_nanos(self.0.now())
    }

    /// The time it stands at, in whole nanoseconds.
    fn now_ns(&self) -> u64 {
        self.0.now()
    }

    /// Moves forward by seconds or a timedelta, without waking anybody.
    fn _advance(&self, by: &Bound<'_, PyAny>) -> PyResult<()> {
        edge("ManualClock._advance", || {
            self.0.advance(duration_or_zero("by", by)?);
            Ok(())
        })
    }

    /// Moves forward by whole nanoseconds, without waking anybody.
    fn _advance_ns(&self, by: u64) -> PyResult<()> {
        edge("ManualClock._advance_ns", || {
            self.0.advance(by);
            Ok(())
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        edge("ManualClock.__repr__", || {
            let now = self.0.now();
            Ok(format!("ManualClock({}.{:09})", now / SECOND, now % SECOND))
        })
    }
}
