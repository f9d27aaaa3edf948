//! One call of a cached function: key, lookup, and on a miss the loader.

use std::sync::atomic::Ordering;

use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyTupleMethods, PyType};

use super::CachedFunction;
use super::instances::{Part, Token};
use super::params::Arguments;
use crate::core::key::encode::tag;
use crate::core::key::{Key, Probe, hex_digest};
use crate::py::awaitable::{ready, ready_raw};
use crate::py::cache::{Found, Lookup};
use crate::py::convert::type_name;
use crate::py::edge::edge;
use crate::py::key::{Encoded, Failure, Opaque, Walker, text_probe, with_encoder};
use crate::py::names;

/// The key of a call, and whose method it was.
pub(crate) struct CallKey {
    pub(crate) encoded: Encoded,
    instance: Option<Token>,
}

/// The interpreter calls this for `f(...)`.
///
/// # Safety
/// As for every vectorcall function: attached, `callable` is a `CachedFunction`,
/// `args` holds the positional and then the keyword arguments.
pub(crate) unsafe extern "C" fn vectorcall(
    callable: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    nargsf: usize,
    kwnames: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: borrowed from the interpreter for the duration of the call; the type is known.
    let this =
        unsafe { Borrowed::<PyAny>::from_ptr(py, callable).cast_unchecked::<CachedFunction>() };
    // SAFETY: a plain mask.
    let positional = unsafe { ffi::PyVectorcall_NARGS(nargsf) } as usize;
    let result = edge("CachedFunction.__call__", || {
        if positional == 1 && kwnames.is_null() && this.get().short_way {
            // SAFETY: one argument was passed.
            let argument = unsafe { Borrowed::<PyAny>::from_ptr(py, *args) };
            if let Some(text) = text_probe(&argument) {
                let function = this.get();
                if let Some(value) = function.cache.get().store.hit(py, &text) {
                    // SAFETY: the value is owned and given up.
                    return Ok(unsafe { answer_raw(function, value.into_ptr()) });
                }
                return attached(|| {
                    let encoded = Encoded { key: text.to_key(), held: Vec::new() };
                    let argument = [argument.to_owned()];
                    let arguments = Arguments { positional: &argument, names: None, values: &[] };
                    look(&this, &arguments, CallKey { encoded, instance: None })
                        .map(Bound::into_ptr)
                });
            }
        }
        attached(|| {
            let mut all: Vec<Bound<'_, PyAny>> = Vec::with_capacity(positional + 4);
            // SAFETY: `args` holds the positional arguments and one value per keyword name.
            let (names, total) = unsafe {
                let names = Bound::from_borrowed_ptr_or_opt(py, kwnames);
                let names = names.map(|names| names.cast_into_unchecked::<PyTuple>());
                let total = positional + names.as_ref().map_or(0, PyTupleMethods::len);
                (names, total)
            };
            for index in 0..total {
                // SAFETY: within the arguments.
                all.push(unsafe { Bound::from_borrowed_ptr(py, *args.add(index)) });
            }
            let (positional, values) = all.split_at(positional);
            call(&this, &Arguments { positional, names: names.as_ref(), values }, false)
                .map(Bound::into_ptr)
        })
    });
    result.unwrap_or_else(|error| {
        attached(|| error.restore(py));
        std::ptr::null_mut()
    })
}

/// Runs `body` attached for `PyO3` too, so that references are dropped at once.
/// Unchecked, for the checked way panics while the interpreter finalises, when
/// finalisers may still call us.
#[inline]
fn attached<R>(body: impl FnOnce() -> R) -> R {
    // SAFETY: the interpreter called us, so this thread is attached.
    unsafe { Python::attach_unchecked(|_| body()) }
}

/// A hit as the caller gets it.
unsafe fn answer_raw(function: &CachedFunction, value: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: `value` is an owned reference, and the caller is attached.
    if function.is_async { unsafe { ready_raw(value) } } else { value }
}

/// Runs `body` with arguments that came as a tuple and a dict.
pub(crate) fn with_arguments<'py, R>(
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
    body: impl FnOnce(&Arguments<'_, 'py>) -> PyResult<R>,
) -> PyResult<R> {
    let positional: Vec<_> = args.iter().collect();
    let Some(kwargs) = kwargs.filter(|kwargs| !kwargs.is_empty()) else {
        return body(&Arguments { positional: &positional, names: None, values: &[] });
    };
    let (names, values): (Vec<_>, Vec<_>) = kwargs.iter().unzip();
    let names = PyTuple::new(args.py(), names)?;
    body(&Arguments { positional: &positional, names: Some(&names), values: &values })
}

/// The arguments as a tuple and, if there are keywords, a dict.
fn packed<'py>(
    py: Python<'py>,
    arguments: &Arguments<'_, 'py>,
) -> PyResult<(Bound<'py, PyTuple>, Option<Bound<'py, PyDict>>)> {
    let args = PyTuple::new(py, arguments.positional)?;
    let Some(names) = arguments.names else { return Ok((args, None)) };
    let kwargs = PyDict::new(py);
    for (name, value) in names.iter().zip(arguments.values) {
        kwargs.set_item(name, value)?;
    }
    Ok((args, Some(kwargs)))
}

/// One call; `bound` if the first argument is the instance that it was looked up on.
pub(crate) fn call<'py>(
    slf: &Bound<'py, CachedFunction>,
    arguments: &Arguments<'_, 'py>,
    bound: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let py = slf.py();
    let this = slf.get();
    let store = &this.cache.get().store;
    if !this.enabled {
        store.count_miss();
        if this.options.shared_as.is_some() {
            this.misses.fetch_add(1, Ordering::Relaxed);
        }
        return straight(slf, arguments);
    }
    if bypasses(this, py, arguments)? {
        return straight(slf, arguments);
    }
    match key(slf, arguments, bound)? {
        Some(key) => look(slf, arguments, key),
        None => straight(slf, arguments),
    }
}

/// What is served under `key`, or what loading it brings.
fn look<'py>(
    slf: &Bound<'py, CachedFunction>,
    arguments: &Arguments<'_, 'py>,
    key: CallKey,
) -> PyResult<Bound<'py, PyAny>> {
    let py = slf.py();
    let this = slf.get();
    let freshness = this.options.freshness.as_ref().map(Py::get);
    let found = this.cache.get().store.look(py, &key.encoded.key, freshness);
    if this.options.shared_as.is_some() {
        let counter = if matches!(found, Found::Absent) { &this.misses } else { &this.hits };
        counter.fetch_add(1, Ordering::Relaxed);
    }
    let value = match found {
        Found::Value(value, false) => value,
        Found::Value(value, true) => refresh(slf, arguments, key)?.unwrap_or(value),
        Found::Failure(failure) => return this.options.fail.bind(py).call1((failure,)),
        Found::Absent => return load(slf, &this.options.load, arguments, key),
    };
    if let Some(read) = &this.options.read {
        return read.bind(py).call1((value,));
    }
    if this.is_async { ready(py, value) } else { Ok(value) }
}

/// Begins to load in the background; the new value if there was no room to do so.
#[cold]
fn refresh<'py>(
    slf: &Bound<'py, CachedFunction>,
    arguments: &Arguments<'_, 'py>,
    key: CallKey,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = slf.py();
    let this = slf.get();
    match load(slf, &this.options.refresh, arguments, key) {
        Ok(begun) if begun.is_none() => Ok(None),
        Ok(loaded) => loaded.get_item(0).map(Some),
        // It could not even begin (`tags` raised): there is still something to serve.
        Err(error) if error.is_instance_of::<PyException>(py) => {
            this.cache.get().store.count_refresh_failure();
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Loads anew, whatever there is.
pub(crate) fn load_anew<'py>(
    slf: &Bound<'py, CachedFunction>,
    arguments: &Arguments<'_, 'py>,
    bound: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let this = slf.get();
    if !this.enabled || bypasses(this, slf.py(), arguments)? {
        return straight(slf, arguments);
    }
    match key(slf, arguments, bound)? {
        Some(key) => load(slf, &this.options.load_anew, arguments, key),
        None => straight(slf, arguments),
    }
}

/// Whether the user wants nothing looked up or stored for these arguments.
fn bypasses<'py>(
    this: &CachedFunction,
    py: Python<'py>,
    arguments: &Arguments<'_, 'py>,
) -> PyResult<bool> {
    let Some(bypass_if) = &this.options.bypass_if else { return Ok(false) };
    let (args, kwargs) = packed(py, arguments)?;
    bypass_if.bind(py).call(args, kwargs.as_ref())?.is_truthy()
}

/// Removes the result of a call; true if there was one.
pub(crate) fn invalidate<'py>(
    slf: &Bound<'py, CachedFunction>,
    arguments: &Arguments<'_, 'py>,
    bound: bool,
) -> PyResult<bool> {
    let key = key(slf, arguments, bound)?.ok_or_else(|| misfit(slf))?;
    let store = &slf.get().cache.get().store;
    Ok(store.remove(slf.py(), &key.encoded.key, |_, _| ()).is_some())
}

/// Past the cache: disabled, or arguments that do not fit, which the function itself explains best.
fn straight<'py>(
    slf: &Bound<'py, CachedFunction>,
    arguments: &Arguments<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = slf.py();
    let (args, kwargs) = packed(py, arguments)?;
    slf.get().function.bind(py).call(args, kwargs.as_ref())
}

fn load<'py>(
    slf: &Bound<'py, CachedFunction>,
    load: &Py<PyAny>,
    arguments: &Arguments<'_, 'py>,
    key: CallKey,
) -> PyResult<Bound<'py, PyAny>> {
    let py = slf.py();
    let this = slf.get();
    let (args, kwargs) = packed(py, arguments)?;
    let tags = tags(this, &key, &args, kwargs.as_ref())?;
    let lookup = Bound::new(py, Lookup::new(key.encoded, None))?;
    load.bind(py).call1((
        &this.cache,
        lookup,
        &this.function,
        args,
        kwargs,
        &this.options.freshness,
        tags,
    ))
}

fn tags<'py>(
    this: &CachedFunction,
    key: &CallKey,
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = args.py();
    let own = match &this.options.tags {
        Some(tags) if tags.bind(py).is_callable() => Some(tags.bind(py).call(args, kwargs)?),
        tags => tags.as_ref().map(|tags| tags.bind(py).clone()),
    };
    let internal: Vec<String> =
        key.instance.iter().map(Token::tag).chain(this.function_tag()).collect();
    if internal.is_empty() {
        return Ok(own);
    }
    let all = internal.into_pyobject(py)?;
    if let Some(own) = own {
        // Through the same check as elsewhere: a str here would tag with its letters.
        let own: Vec<String> =
            crate::py::cache::tags(Some(&own))?.iter().map(ToString::to_string).collect();
        all.call_method1("extend", (own,))?;
    }
    Ok(Some(all))
}

/// The key of a call; `None` if the arguments do not fit the function.
fn key(
    slf: &Bound<'_, CachedFunction>,
    arguments: &Arguments<'_, '_>,
    bound: bool,
) -> PyResult<Option<CallKey>> {
    let this = slf.get();
    let (mut instance, mut below) = (None, Vec::new());
    let (number, encoding);
    let first: Option<&[u8]> = match instance_part(slf, arguments, bound)? {
        Some(Part::Token(token)) => {
            number = token.encoding();
            instance = Some(token);
            Some(&number)
        }
        Some(Part::Value(own, held)) => {
            encoding = own;
            below = held;
            Some(&encoding)
        }
        None => None,
    };
    let interner = &this.cache.get().store.interner;
    with_encoder(this.options.typed, |encoder| {
        let mut walker = Walker::new(encoder, Opaque::Intern(interner));
        if let Some(name) = &this.options.shared_as {
            // Without the tag a function without parameters would have a mere text as its key.
            walker.encoder().tag(tag::FUNCTION);
            walker.encoder().str(name);
        }
        if !write(slf, arguments, first, &mut walker)? {
            return Ok(None);
        }
        let mut held = walker.finish();
        if !below.is_empty() {
            held.append(&mut below);
        }
        let encoded = Encoded { key: Key::new(encoder.as_bytes()), held };
        Ok(Some(CallKey { encoded, instance }))
    })
}

/// The key of a call as it means the same everywhere.
pub(crate) fn public_key(
    slf: &Bound<'_, CachedFunction>,
    arguments: &Arguments<'_, '_>,
) -> PyResult<String> {
    let module = slf.getattr("__module__")?;
    let name = name_of(slf)?;
    let digest = with_encoder(slf.get().options.typed, |encoder| {
        let mut walker = Walker::new(encoder, Opaque::Refuse);
        if write(slf, arguments, None, &mut walker)? {
            Ok(hex_digest(encoder.as_bytes()))
        } else {
            Err(misfit(slf))
        }
    })?;
    Ok(format!("{module}.{name}:{digest}"))
}

/// The function's qualified name; that of its class if it has none (partials and the like).
pub(crate) fn name_of(slf: &Bound<'_, CachedFunction>) -> PyResult<String> {
    match slf.get().function.bind(slf.py()).getattr("__qualname__") {
        Ok(_) => Ok(slf.getattr("__qualname__")?.to_string()),
        Err(_) => Ok(type_name(slf.get().function.bind(slf.py()))),
    }
}

fn misfit(slf: &Bound<'_, CachedFunction>) -> PyErr {
    let name = name_of(slf).unwrap_or_else(|_| "?".into());
    PyTypeError::new_err(format!("these arguments do not fit {name}()"))
}

/// Writes the key of a call; false if the arguments do not fit the function.
fn write<'py>(
    slf: &Bound<'py, CachedFunction>,
    arguments: &Arguments<'_, 'py>,
    first: Option<&[u8]>,
    walker: &mut Walker<'_>,
) -> PyResult<bool> {
    let py = slf.py();
    let this = slf.get();
    if let Some(make_key) = &this.options.key {
        let (args, kwargs) = packed(py, arguments)?;
        let key = make_key.bind(py).call(args, kwargs.as_ref())?;
        walker.value(&key).map_err(|failure| failure.within(|| "key()".to_owned()))?;
        return Ok(true);
    }
    if let Some(params) = &this.params {
        return Ok(params.encode(this.function.bind(py), arguments, first, walker)?.is_ok());
    }
    // A callable without a code object: keywords are kept apart from positions.
    walker.encoder().tag(tag::TUPLE);
    walker.encoder().len(arguments.positional.len());
    for (index, argument) in arguments.positional.iter().enumerate() {
        walker
            .value(argument)
            .map_err(|failure: Failure| failure.within(|| format!("args[{index}]")))?;
    }
    let (_, kwargs) = packed(py, &Arguments { positional: &[], ..*arguments })?;
    let kwargs = kwargs.unwrap_or_else(|| PyDict::new(py));
    walker.value(&kwargs).map_err(|failure| failure.within(|| "kwargs".to_owned()))?;
    Ok(true)
}

/// What stands for `self` in the key of a method call.
fn instance_part(
    slf: &Bound<'_, CachedFunction>,
    arguments: &Arguments<'_, '_>,
    bound: bool,
) -> PyResult<Option<Part>> {
    let this = slf.get();
    let Some(instance) = arguments.positional.first() else { return Ok(None) };
    let by_instance = (bound || this.is_method || this.owners.have(instance))
        && this.options.key.is_none()
        && this.params.as_ref().is_some_and(|params| !params.ignores_first());
    if !by_instance {
        return Ok(None);
    }
    let method = names::cache_key(slf.py());
    // SAFETY: attached; two live objects. `Bound::hasattr` makes and drops an AttributeError, which
    // was two thirds of what a hit on a method took.
    let has_key =
        unsafe { ffi::PyObject_HasAttr(instance.get_type_ptr().cast(), method.as_ptr()) } != 0;
    if has_key || instance.is_instance_of::<PyType>() {
        return Ok(None);
    }
    this.instances.part(instance, this.cache.bind(slf.py()), this.options.typed).map(Some)
}
