//! How long what a load brings is served, as `@cached` and `get_or_set` are told.

use pyo3::exceptions::{PyException, PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyType};

use crate::core::cache::{Aging, Lifetime, Wish};
use crate::core::clock::{Nanos, secs_from_nanos};
use crate::core::random::Random;
use crate::py::convert::{duration, type_name};
use crate::py::edge::edge;

/// The terms of one cached function or of one call of ``get_or_set``, checked.
#[pyclass(frozen, module = "ferrogate._core")]
pub(crate) struct Freshness {
    ttl: Option<Nanos>,
    stale_while_revalidate: Nanos,
    stale_if_error: Nanos,
    jitter: f64,
    early: f64,
    /// Failures of which class are remembered for how long.
    negative: Vec<(Py<PyType>, Nanos)>,
    skip_if: Option<Py<PyAny>>,
}

type Argument<'a, 'py> = Option<&'a Bound<'py, PyAny>>;

fn duration_or_none(name: &'static str, value: Argument<'_, '_>) -> PyResult<Nanos> {
    value.map_or(Ok(0), |value| duration(name, value))
}

/// A finite number of at least 0, and at most `most`.
fn number(name: &str, value: Argument<'_, '_>, most: f64, expected: &str) -> PyResult<f64> {
    let Some(value) = value else { return Ok(0.0) };
    let is_number = (value.is_instance_of::<PyFloat>() || value.is_instance_of::<PyInt>())
        && !value.is_instance_of::<PyBool>();
    if !is_number {
        let got = type_name(value);
        return Err(PyTypeError::new_err(format!("{name}: expected {expected}, got {got}")));
    }
    match value.extract::<f64>() {
        Ok(number) if number.is_finite() && (0.0..=most).contains(&number) => Ok(number),
        _ => {
            let shown = value.repr()?;
            Err(PyValueError::new_err(format!("{name}: expected {expected}, got {shown}")))
        }
    }
}

fn negative_ttl(given: Argument<'_, '_>) -> PyResult<Vec<(Py<PyType>, Nanos)>> {
    const EXPECTED: &str =
        "negative_ttl: expected a dict from exception classes to seconds, such as {LookupError: 5}";
    let Some(given) = given else { return Ok(Vec::new()) };
    let py = given.py();
    let wrong = |got: &Bound<'_, PyAny>| {
        PyTypeError::new_err(format!("{EXPECTED}, got {}", type_name(got)))
    };
    let pairs = PyDict::new(py);
    pairs.call_method1("update", (given,)).map_err(|_| wrong(given))?;
    let mut found = Vec::new();
    for (class, seconds) in pairs.iter() {
        let class = class.cast_into::<PyType>().map_err(|error| wrong(&error.into_inner()))?;
        if !class.is_subclass_of::<PyException>()? {
            return Err(PyTypeError::new_err(format!(
                "negative_ttl: expected subclasses of Exception, got {}; what ends a task or the \
                 program is never kept",
                class.name()?
            )));
        }
        found.push((class.unbind(), duration("negative_ttl", &seconds)?));
    }
    Ok(found)
}

#[pymethods]
impl Freshness {
    #[new]
    #[pyo3(signature = (*, ttl=None, stale_while_revalidate=None, stale_if_error=None, negative_ttl=None, skip_if=None, ttl_jitter=None, early_refresh=None))]
    #[allow(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn new(
        ttl: Argument<'_, '_>,
        stale_while_revalidate: Argument<'_, '_>,
        stale_if_error: Argument<'_, '_>,
        negative_ttl: Argument<'_, '_>,
        skip_if: Argument<'_, '_>,
        ttl_jitter: Argument<'_, '_>,
        early_refresh: Argument<'_, '_>,
    ) -> PyResult<Self> {
        edge("Freshness", || {
            if let Some(skip_if) = skip_if
                && !skip_if.is_callable()
            {
                let got = type_name(skip_if);
                return Err(PyTypeError::new_err(format!(
                    "skip_if: expected a callable that gets the result, got {got}"
                )));
            }
            Ok(Self {
                ttl: ttl.map(|ttl| duration("ttl", ttl)).transpose()?,
                stale_while_revalidate: duration_or_none(
                    "stale_while_revalidate",
                    stale_while_revalidate,
                )?,
                stale_if_error: duration_or_none("stale_if_error", stale_if_error)?,
                jitter: number("ttl_jitter", ttl_jitter, 1.0, "a ratio of 0..1")?,
                early: number(
                    "early_refresh",
                    early_refresh,
                    f64::MAX,
                    "a factor of at least 0, 1.0 being the usual one",
                )?,
                negative: self::negative_ttl(negative_ttl)?,
                skip_if: skip_if.map(|skip_if| skip_if.clone().unbind()),
            })
        })
    }

    /// Seconds that a failure like ``error`` is remembered: those of the first class of its MRO
    /// that was given any; ``None`` if none was.
    fn negative_ttl(&self, error: &Bound<'_, PyAny>) -> PyResult<Option<f64>> {
        edge("Freshness.negative_ttl", || {
            if self.negative.is_empty() {
                return Ok(None);
            }
            for class in error.get_type().mro() {
                let known = self.negative.iter().find(|(known, _)| known.is(&class));
                if let Some((_, ttl)) = known {
                    return Ok(Some(secs_from_nanos(*ttl)));
                }
            }
            Ok(None)
        })
    }

    /// Whether ``result`` is not to be stored.
    fn skips(&self, result: &Bound<'_, PyAny>) -> PyResult<bool> {
        edge("Freshness.skips", || match &self.skip_if {
            Some(skip_if) => skip_if.bind(result.py()).call1((result,))?.is_truthy(),
            None => Ok(false),
        })
    }

    /// Whether it says anything that takes a time to live.
    #[getter]
    fn needs_ttl(&self) -> bool {
        self.ttl.is_none() && (self.grace() > 0 || self.jitter > 0.0 || self.early > 0.0)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        for (class, _) in &self.negative {
            visit.call(class)?;
        }
        visit.call(&self.skip_if)
    }
}

impl Freshness {
    fn grace(&self) -> Nanos {
        self.stale_while_revalidate.max(self.stale_if_error)
    }

    /// How long the stale value is served to those whose load failed.
    pub(super) fn stale_if_error(&self) -> Nanos {
        self.stale_if_error
    }

    /// What a lookup by these terms may be served.
    pub(super) fn wish(&self) -> Wish {
        let early = if self.early > 0.0 { -Random::shared().draw().ln() } else { 0.0 };
        Wish { stale: self.stale_while_revalidate, early }
    }

    /// How long a value lives that took `took` to load, in a cache with the time to live `usual`.
    pub(super) fn dates(
        &self,
        usual: Option<Nanos>,
        took: Nanos,
    ) -> (Lifetime, Option<Box<Aging>>) {
        let lifetime = match self.ttl.or(usual) {
            Some(ttl) if self.jitter > 0.0 => {
                let kept = 1.0 - self.jitter * Random::shared().draw();
                Lifetime::For(((ttl as f64 * kept) as Nanos).max(1))
            }
            _ => self.ttl.map_or(Lifetime::Usual, Lifetime::For),
        };
        let ages = self.grace() > 0 || self.early > 0.0;
        (lifetime, ages.then(|| Box::new(Aging::of_value(self.grace(), self.early, took))))
    }
}

/// Begins the random numbers of this process again; see ``ferrogate.testing.seed``.
#[pyfunction]
#[pyo3(name = "_seed")]
pub(crate) fn seed(number: u64) -> PyResult<()> {
    edge("_seed", || {
        Random::shared().seed(number);
        Ok(())
    })
}
