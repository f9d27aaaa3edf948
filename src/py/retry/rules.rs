//! Which errors are retried, and on what terms: `on=` of a policy.

use pyo3::exceptions::{
    PyAssertionError, PyAttributeError, PyException, PyImportError, PyMemoryError, PyNameError,
    PyNotImplementedError, PyRecursionError, PySyntaxError, PyTypeError, PyValueError,
};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyTuple, PyType};

use super::arguments::attempts;
use super::policy::PyRetryPolicy;
use crate::core::retry::{Policy, Settings};
use crate::py::convert::type_name;
use crate::py::names;

const EXPECTED: &str = "on: expected an exception class, a tuple of them, a function from an \
                        exception to True or False, or a dict from classes to attempts, \
                        RetryPolicy, True or False";

/// What `on=` says.
pub(crate) enum On {
    /// Nothing: whatever counts as a failure, but for mistakes in the program.
    Failures,
    /// These classes and no others.
    Classes(Vec<Py<PyType>>),
    /// Whatever this function says.
    Predicate(Py<PyAny>),
    /// These classes on terms of their own, all others as if nothing was said.
    Table(Vec<(Py<PyType>, Rule)>),
}

/// What is said of one class.
pub(crate) enum Rule {
    Never,
    Terms(Policy, On),
}

/// What a policy says of one error.
#[derive(Clone, Copy)]
pub(crate) enum Terms<'a> {
    /// It is not retried.
    Never,
    /// It is retried if it counts as a failure.
    Usual,
    /// It is retried by this policy, whatever it counts as.
    By(&'a Policy),
}

fn class(value: &Bound<'_, PyAny>) -> PyResult<Py<PyType>> {
    let class = value
        .cast::<PyType>()
        .map_err(|_| PyTypeError::new_err(format!("{EXPECTED}, got {}", type_name(value))))?;
    if !class.is_subclass_of::<PyException>()? {
        return Err(PyTypeError::new_err(format!(
            "on: expected subclasses of Exception, got {}; what ends a task or the program is \
             never retried",
            class.name()?
        )));
    }
    Ok(class.clone().unbind())
}

impl On {
    /// As the user wrote it; `own` is the policy that it is for.
    pub(super) fn new(given: Option<&Bound<'_, PyAny>>, own: &Policy) -> PyResult<Self> {
        let Some(given) = given else { return Ok(Self::Failures) };
        let empty = || PyValueError::new_err("on: expected at least one class, got none");
        if let Ok(classes) = given.cast::<PyTuple>() {
            if classes.is_empty() {
                return Err(empty());
            }
            return Ok(Self::Classes(
                classes.iter().map(|one| class(&one)).collect::<PyResult<_>>()?,
            ));
        }
        if let Ok(table) = given.cast::<PyDict>() {
            if table.is_empty() {
                return Err(empty());
            }
            return Ok(Self::Table(
                table
                    .iter()
                    .map(|(known, rule)| Ok((class(&known)?, Rule::new(&rule, own)?)))
                    .collect::<PyResult<_>>()?,
            ));
        }
        if given.is_instance_of::<PyType>() {
            return Ok(Self::Classes(vec![class(given)?]));
        }
        if given.is_callable() {
            return Ok(Self::Predicate(given.clone().unbind()));
        }
        Err(PyTypeError::new_err(format!("{EXPECTED}, got {}", type_name(given))))
    }

    /// What is to be done about `error` under `own`.
    ///
    /// # Errors
    /// Whatever a predicate raises, with `error` as what was being handled.
    pub(super) fn terms<'a>(
        &'a self,
        error: &Bound<'_, PyAny>,
        own: &'a Policy,
    ) -> PyResult<Terms<'a>> {
        if !error.is_instance_of::<PyException>() {
            return Ok(Terms::Never);
        }
        match self {
            Self::Failures => Ok(if is_a_mistake(error) { Terms::Never } else { Terms::Usual }),
            Self::Classes(classes) => {
                for class in classes {
                    if error.is_instance(class.bind(error.py()))? {
                        return Ok(Terms::By(own));
                    }
                }
                Ok(Terms::Never)
            }
            Self::Predicate(predicate) => {
                let retried = asked(predicate.bind(error.py()), error).inspect_err(|raised| {
                    // As if it had been asked in an `except` block.
                    let _ = raised.value(error.py()).setattr(names::context(error.py()), error);
                })?;
                Ok(if retried { Terms::By(own) } else { Terms::Never })
            }
            Self::Table(rules) => {
                for class in error.get_type().mro() {
                    let Some((_, rule)) = rules.iter().find(|(known, _)| known.is(&class)) else {
                        continue;
                    };
                    return match rule {
                        Rule::Never => Ok(Terms::Never),
                        Rule::Terms(policy, Self::Failures) => Ok(Terms::By(policy)),
                        Rule::Terms(policy, on) => on.terms(error, policy),
                    };
                }
                Self::Failures.terms(error, own)
            }
        }
    }

    /// The same for another policy, whose table names the one that this is of.
    fn for_other(&self, py: Python<'_>, own: &Policy) -> PyResult<Self> {
        Ok(match self {
            Self::Failures => Self::Failures,
            Self::Classes(classes) => {
                Self::Classes(classes.iter().map(|class| class.clone_ref(py)).collect())
            }
            Self::Predicate(predicate) => Self::Predicate(predicate.clone_ref(py)),
            Self::Table(rules) => {
                let copy = |(class, rule): &(Py<PyType>, Rule)| {
                    Ok((class.clone_ref(py), rule.for_other(py, own)?))
                };
                Self::Table(rules.iter().map(copy).collect::<PyResult<_>>()?)
            }
        })
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Self::Failures => Ok(()),
            Self::Classes(classes) => classes.iter().try_for_each(|class| visit.call(class)),
            Self::Predicate(predicate) => visit.call(predicate),
            Self::Table(rules) => rules.iter().try_for_each(|(class, rule)| {
                visit.call(class)?;
                match rule {
                    Rule::Never => Ok(()),
                    Rule::Terms(_, on) => on.traverse(visit),
                }
            }),
        }
    }
}

impl Rule {
    fn new(given: &Bound<'_, PyAny>, own: &Policy) -> PyResult<Self> {
        if let Ok(wanted) = given.cast::<PyBool>() {
            let usual = || Self::Terms(own.clone(), On::Failures);
            return Ok(if wanted.is_true() { usual() } else { Self::Never });
        }
        if let Ok(other) = given.cast::<PyRetryPolicy>() {
            let other = other.get();
            if other.policy().settings().total_timeout.is_some() {
                return Err(PyValueError::new_err(
                    "on: expected a RetryPolicy without total_timeout: time runs from the first \
                     call, which is before its error; give it to the policy around",
                ));
            }
            let policy = own.with(*other.policy().settings(), other.policy().budget().cloned())?;
            let on = other.on().for_other(given.py(), &policy)?;
            return Ok(Self::Terms(policy, on));
        }
        let attempts = attempts("on", given)?;
        let settings = Settings { attempts, ..*own.settings() };
        Ok(Self::Terms(own.with(settings, None)?, On::Failures))
    }

    fn for_other(&self, py: Python<'_>, own: &Policy) -> PyResult<Self> {
        Ok(match self {
            Self::Never => Self::Never,
            Self::Terms(policy, on) => {
                let policy = own.with(*policy.settings(), policy.budget().cloned())?;
                let on = on.for_other(py, &policy)?;
                Self::Terms(policy, on)
            }
        })
    }
}

/// Whether the same call would fail in the same way: a mistake in the program, not in the world.
fn is_a_mistake(error: &Bound<'_, PyAny>) -> bool {
    error.is_instance_of::<PyTypeError>()
        || error.is_instance_of::<PyAttributeError>()
        || error.is_instance_of::<PyNameError>()
        || error.is_instance_of::<PyImportError>()
        || error.is_instance_of::<PyNotImplementedError>()
        || error.is_instance_of::<PyAssertionError>()
        || error.is_instance_of::<PySyntaxError>()
        || error.is_instance_of::<PyRecursionError>()
        || error.is_instance_of::<PyMemoryError>()
}

/// A coroutine, say, would be true.
fn asked(predicate: &Bound<'_, PyAny>, error: &Bound<'_, PyAny>) -> PyResult<bool> {
    let answer = predicate.call1((error,))?;
    answer.cast::<PyBool>().map(PyBoolMethods::is_true).map_err(|_| {
        let got = type_name(&answer);
        PyTypeError::new_err(format!(
            "on: expected a function that answers True or False, got {got}"
        ))
    })
}
