//! Which argument goes to which parameter, so that `f(1)` and `f(x=1)` are one key.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple, PyTupleMethods};

use crate::core::key::encode::tag;
use crate::py::key::{Failure, Walker};

const VARARGS: u32 = 0x04;
const VARKEYWORDS: u32 = 0x08;

struct Param {
    name: Py<PyString>,
    ignored: bool,
}

/// The parameters of a Python function; their defaults are read at each call,
/// because a program may change them.
pub(crate) struct Params {
    named: Vec<Param>,
    positional_only: usize,
    positional: usize,
    varargs: Option<Param>,
    varkw: Option<Param>,
    /// One positional parameter and nothing else: the argument is the key.
    pub(crate) single: bool,
}

/// The arguments of one call as the interpreter passes them.
pub(crate) struct Arguments<'a, 'py> {
    pub(crate) positional: &'a [Bound<'py, PyAny>],
    pub(crate) names: Option<&'a Bound<'py, PyTuple>>,
    pub(crate) values: &'a [Bound<'py, PyAny>],
}

/// The arguments do not fit the parameters; calling the function says why.
pub(crate) struct Misfit;

/// Whether calling it passes an instance that the caller does not see.
fn is_bound(function: &Bound<'_, PyAny>) -> bool {
    function.getattr("__self__").is_ok_and(|instance| !instance.is_none())
}

impl Params {
    /// Reads them from the function's code object; `None` if it has none.
    pub(crate) fn of(function: &Bound<'_, PyAny>, ignore: &[String]) -> PyResult<Option<Self>> {
        let Ok(code) = function.getattr("__code__") else { return Ok(None) };
        let count: usize = code.getattr("co_argcount")?.extract()?;
        let keyword_only: usize = code.getattr("co_kwonlyargcount")?.extract()?;
        let flags: u32 = code.getattr("co_flags")?.extract()?;
        let names: Vec<Bound<'_, PyString>> = code.getattr("co_varnames")?.extract()?;
        let param = |name: &Bound<'_, PyString>| -> PyResult<Param> {
            let ignored = ignore.iter().any(|other| name.to_str().is_ok_and(|name| name == other));
            Ok(Param { name: name.clone().unbind(), ignored })
        };
        // A bound method brings its first argument along.
        let given = usize::from(count > 0 && is_bound(function));
        let total = count + keyword_only;
        let named = names[given..total].iter().map(param).collect::<PyResult<Vec<_>>>()?;
        let mut rest = names[total..].iter();
        let mut var = |flag: u32| -> PyResult<Option<Param>> {
            if flags & flag == 0 { Ok(None) } else { rest.next().map(param).transpose() }
        };
        let varargs = var(VARARGS)?;
        let varkw = var(VARKEYWORDS)?;
        let count = count - given;
        let single = named.len() == 1
            && count == 1
            && varargs.is_none()
            && varkw.is_none()
            && !named[0].ignored;
        let positional_only: usize = code.getattr("co_posonlyargcount")?.extract()?;
        let positional_only = positional_only.saturating_sub(given);
        Ok(Some(Self { named, positional_only, positional: count, varargs, varkw, single }))
    }

    /// The names of all parameters.
    pub(crate) fn names(&self, py: Python<'_>) -> Vec<String> {
        self.named
            .iter()
            .chain(&self.varargs)
            .chain(&self.varkw)
            .map(|param| param.name.bind(py).to_string_lossy().into_owned())
            .collect()
    }

    /// Whether the first parameter (`self`) is left out of the key, or there is none.
    pub(crate) fn ignores_first(&self) -> bool {
        self.positional == 0 || self.named[0].ignored
    }

    /// Whether the first parameter is called `self`.
    pub(crate) fn starts_with_self(&self, py: Python<'_>) -> bool {
        self.positional > 0 && self.named[0].name.bind(py).to_str().is_ok_and(|name| name == "self")
    }

    fn index_of(&self, name: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
        let py = name.py();
        let same = |param: &Param| param.name.bind(py).is(name);
        if let Some(index) = self.named.iter().position(same) {
            return Ok(Some(index));
        }
        for (index, param) in self.named.iter().enumerate() {
            if name.eq(param.name.bind(py))? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Writes the arguments in the order of the parameters. `first` says what
    /// stands for the first parameter, if not its argument.
    pub(crate) fn encode(
        &self,
        function: &Bound<'_, PyAny>,
        arguments: &Arguments<'_, '_>,
        first: Option<&[u8]>,
        walker: &mut Walker<'_>,
    ) -> Result<Result<(), Misfit>, Failure> {
        let py = function.py();
        let mut bound: Vec<Option<Bound<'_, PyAny>>> = vec![None; self.named.len()];
        let direct = arguments.positional.len().min(self.positional);
        for (slot, argument) in bound.iter_mut().zip(&arguments.positional[..direct]) {
            *slot = Some(argument.clone());
        }
        let more = &arguments.positional[direct..];
        if !more.is_empty() && self.varargs.is_none() {
            return Ok(Err(Misfit));
        }
        let mut extra = None;
        if let Some(names) = arguments.names {
            for (name, value) in names.iter().zip(arguments.values) {
                match self.index_of(&name)?.filter(|index| *index >= self.positional_only) {
                    Some(index) if bound[index].is_some() => return Ok(Err(Misfit)),
                    Some(index) => bound[index] = Some(value.clone()),
                    None if self.varkw.is_some() => {
                        extra.get_or_insert_with(|| PyDict::new(py)).set_item(name, value)?;
                    }
                    None => return Ok(Err(Misfit)),
                }
            }
        }
        if bound.iter().any(Option::is_none) && !self.fill_defaults(function, &mut bound)? {
            return Ok(Err(Misfit));
        }
        for (index, (param, value)) in self.named.iter().zip(&bound).enumerate() {
            let Some(value) = value else { continue };
            match first.filter(|_| index == 0) {
                Some(token) => walker.encoder().raw(token),
                None if param.ignored => walker.encoder().tag(tag::IGNORED),
                None => walker
                    .value(value)
                    .map_err(|failure| failure.within(|| param.name.to_string()))?,
            }
        }
        if let Some(param) = &self.varargs {
            if param.ignored {
                walker.encoder().tag(tag::IGNORED);
            } else {
                let more = PyTuple::new(py, more)?;
                walker.value(&more).map_err(|failure| failure.within(|| param.name.to_string()))?;
            }
        }
        if let Some(param) = &self.varkw {
            if param.ignored {
                walker.encoder().tag(tag::IGNORED);
            } else {
                let extra = extra.unwrap_or_else(|| PyDict::new(py));
                walker
                    .value(&extra)
                    .map_err(|failure| failure.within(|| param.name.to_string()))?;
            }
        }
        Ok(Ok(()))
    }

    /// False if a parameter without a default was left out.
    fn fill_defaults<'py>(
        &self,
        function: &Bound<'py, PyAny>,
        bound: &mut [Option<Bound<'py, PyAny>>],
    ) -> PyResult<bool> {
        let defaults = function.getattr("__defaults__")?;
        let defaults = defaults.cast::<PyTuple>().ok();
        let keyword_defaults = function.getattr("__kwdefaults__")?;
        let keyword_defaults = keyword_defaults.cast::<PyDict>().ok();
        let with_default = defaults.map_or(0, PyTupleMethods::len);
        for (index, slot) in bound.iter_mut().enumerate() {
            if slot.is_some() {
                continue;
            }
            *slot = if index < self.positional {
                let from_end = self.positional - index;
                match defaults {
                    Some(defaults) if from_end <= with_default => {
                        Some(defaults.get_item(with_default - from_end)?)
                    }
                    _ => None,
                }
            } else {
                let name = self.named[index].name.bind(function.py());
                keyword_defaults.map(|defaults| defaults.get_item(name)).transpose()?.flatten()
            };
            if slot.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
