//! The decorated function as Python sees it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};

use super::call::{self, vectorcall};
use super::instances::{Instances, Owners};
use super::method::CachedMethod;
use super::params::{Arguments, Params};
use crate::py::cache::{Cache, Freshness};
use crate::py::edge::edge;
use crate::py::lookalike;

/// A function whose results are cached; made by ``ferrogate.cached``.
///
/// Everything that tools read from a function (name, signature, code flags,
/// globals) is answered from the wrapped one.
#[pyclass(frozen, weakref, module = "ferrogate._core")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four facts that have nothing to do with each other"
)]
pub(crate) struct CachedFunction {
    /// Read by the interpreter through the type's vectorcall offset.
    pub(crate) vectorcall: ffi::vectorcallfunc,
    /// One argument and no options that change the key: the short way applies to text.
    pub(crate) short_way: bool,
    pub(crate) is_async: bool,
    /// Whether it looks anything up at all.
    pub(crate) enabled: bool,
    pub(crate) cache: Py<Cache>,
    pub(crate) function: Py<PyAny>,
    pub(crate) options: Options,
    pub(crate) params: Option<Params>,
    /// Written as a method, so that the first argument is an instance even where nobody
    /// binds it: a property calls it so, and so does another decorator.
    pub(crate) is_method: bool,
    /// The classes that have it as an attribute.
    pub(crate) owners: Owners,
    pub(crate) instances: Instances,
    /// Only for a shared cache, whose own counters are everybody's.
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    attributes: Py<PyDict>,
}

/// What `ferrogate.cached` hands over.
pub(crate) struct Options {
    pub(crate) key: Option<Py<PyAny>>,
    pub(crate) typed: bool,
    pub(crate) freshness: Option<Py<Freshness>>,
    /// Says of which arguments nothing is looked up or stored.
    pub(crate) bypass_if: Option<Py<PyAny>>,
    /// A tuple of str, or a callable that gets the arguments and returns one.
    pub(crate) tags: Option<Py<PyAny>>,
    /// Set when the cache is shared: marks this function's keys and entries.
    pub(crate) shared_as: Option<String>,
    /// ``load(cache, lookup, function, args, kwargs, freshness, tags)`` for a miss.
    pub(crate) load: Py<PyAny>,
    /// The same, to load whatever there is.
    pub(crate) load_anew: Py<PyAny>,
    /// The same, but begun in the background; returns ``(value,)`` if it had to be awaited.
    pub(crate) refresh: Py<PyAny>,
    /// ``fail(failure)`` raises a remembered failure, or returns what does when awaited.
    pub(crate) fail: Py<PyAny>,
    /// ``read(value)`` makes of what is kept what the caller gets: a generator of its own.
    pub(crate) read: Option<Py<PyAny>>,
    info: Py<PyAny>,
    parameters: Py<PyDict>,
}

impl CachedFunction {
    /// The tag of this function's entries in a shared cache.
    pub(crate) fn function_tag(&self) -> Option<String> {
        self.options.shared_as.as_ref().map(|name| format!("\0function:{name}"))
    }
}

/// Whether a function stands in the body of a class.
fn is_written_in_a_class(function: &Bound<'_, PyAny>) -> bool {
    let name = function.getattr("__qualname__").and_then(|name| name.extract::<String>());
    name.is_ok_and(|name| {
        name.rsplit_once('.').is_some_and(|(parent, _)| !parent.ends_with("<locals>"))
    })
}

/// Whether the type knows its vectorcall offset.
static INSTALLED: AtomicBool = AtomicBool::new(false);

#[pymethods]
impl CachedFunction {
    #[new]
    #[pyo3(signature = (function, cache, *, is_async, enabled, load, load_anew, refresh, fail, info, parameters, key=None, typed=false, ignore=Vec::new(), freshness=None, bypass_if=None, tags=None, shared_as=None, read=None))]
    #[allow(clippy::too_many_arguments, reason = "called by ferrogate.cached alone, by keyword")]
    fn new<'py>(
        py: Python<'py>,
        function: Bound<'py, PyAny>,
        cache: Py<Cache>,
        is_async: bool,
        enabled: bool,
        load: Py<PyAny>,
        load_anew: Py<PyAny>,
        refresh: Py<PyAny>,
        fail: Py<PyAny>,
        info: Py<PyAny>,
        parameters: Py<PyDict>,
        key: Option<Py<PyAny>>,
        typed: bool,
        ignore: Vec<String>,
        freshness: Option<Py<Freshness>>,
        bypass_if: Option<Py<PyAny>>,
        tags: Option<Py<PyAny>>,
        shared_as: Option<String>,
        read: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, Self>> {
        edge("CachedFunction", || {
            let params = Params::of(&function, &ignore)?;
            if let Some(params) = &params {
                let names = params.names(py);
                if let Some(unknown) = ignore.iter().find(|name| !names.contains(name)) {
                    return Err(PyValueError::new_err(format!(
                        "ignore: {} has no parameter {unknown:?}; its parameters are {names:?}",
                        function.getattr("__qualname__")?
                    )));
                }
            } else if !ignore.is_empty() {
                return Err(PyTypeError::new_err(
                    "ignore: needs a Python function, whose parameters have names; use key= here",
                ));
            }
            let enabled = enabled && cache.get().store.enabled;
            let single = params.as_ref().is_some_and(|params| params.single);
            let is_method = params.as_ref().is_some_and(|params| params.starts_with_self(py))
                && is_written_in_a_class(&function);
            let short_way = enabled
                && single
                && key.is_none()
                && shared_as.is_none()
                && read.is_none()
                && bypass_if.is_none();
            let this = Bound::new(
                py,
                Self {
                    vectorcall,
                    short_way,
                    is_async,
                    enabled,
                    cache,
                    function: function.unbind(),
                    options: Options {
                        key,
                        typed,
                        freshness,
                        bypass_if,
                        tags,
                        shared_as,
                        load,
                        load_anew,
                        refresh,
                        fail,
                        read,
                        info,
                        parameters,
                    },
                    params,
                    is_method,
                    owners: Owners::default(),
                    instances: Instances::default(),
                    hits: AtomicU64::new(0),
                    misses: AtomicU64::new(0),
                    attributes: PyDict::new(py).unbind(),
                },
            )?;
            lookalike::install_vectorcall(&this, &raw const this.get().vectorcall, &INSTALLED);
            Ok(this)
        })
    }

    /// ``CachedFunction[[int], str]``, for annotations.
    #[classmethod]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        parameters: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedFunction.__class_getitem__", || {
            class.py().import("types")?.getattr("GenericAlias")?.call1((class, parameters))
        })
    }

    #[pyo3(signature = (*args, **kwargs))]
    fn __call__<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedFunction.__call__", || {
            call::with_arguments(args, kwargs, |arguments| call::call(slf, arguments, false))
        })
    }

    fn __get__<'py>(
        slf: &Bound<'py, Self>,
        instance: Option<Bound<'py, PyAny>>,
        owner: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedFunction.__get__", || match instance {
            None => {
                // ``Class.method(instance)`` comes this way.
                if let Some(Ok(owner)) = owner.as_ref().map(|owner| owner.cast::<PyType>()) {
                    slf.get().owners.add(owner)?;
                }
                Ok(slf.clone().into_any())
            }
            Some(instance) => {
                let method = CachedMethod::new(slf.clone().unbind(), instance.unbind());
                Ok(Bound::new(slf.py(), method)?.into_any())
            }
        })
    }

    fn __set_name__(&self, owner: &Bound<'_, PyType>, _name: &str) -> PyResult<()> {
        edge("CachedFunction.__set_name__", || self.owners.add(owner))
    }

    /// Hits, misses, maxsize and currsize, as ``functools.lru_cache`` gives them.
    pub(crate) fn cache_info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedFunction.cache_info", || {
            let store = &self.cache.get().store;
            store.sweep(py);
            let (stats, size, _, bounds) = store.stats();
            let facts = match self.function_tag() {
                None => (stats.hits, stats.misses, bounds.max_size, size),
                Some(tag) => (
                    self.hits.load(Ordering::Relaxed),
                    self.misses.load(Ordering::Relaxed),
                    bounds.max_size,
                    store.lock().tagged(&tag),
                ),
            };
            self.options.info.bind(py).call1(facts)
        })
    }

    /// Removes all results of this function and sets its counters to zero.
    pub(crate) fn cache_clear(&self, py: Python<'_>) -> PyResult<()> {
        edge("CachedFunction.cache_clear", || {
            let store = &self.cache.get().store;
            if let Some(tag) = self.function_tag() {
                store.invalidate_tag(py, &tag);
                self.hits.store(0, Ordering::Relaxed);
                self.misses.store(0, Ordering::Relaxed);
            } else {
                store.clear(py);
                store.lock().reset_stats();
            }
            Ok(())
        })
    }

    /// Removes the result for these arguments; true if there was one.
    #[pyo3(signature = (*args, **kwargs))]
    fn cache_invalidate<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<bool> {
        edge("CachedFunction.cache_invalidate", || {
            call::with_arguments(args, kwargs, |arguments| call::invalidate(slf, arguments, false))
        })
    }

    /// Calls the function itself: nothing is looked up, shared or stored.
    #[pyo3(signature = (*args, **kwargs))]
    fn cache_bypass<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedFunction.cache_bypass", || self.function.bind(args.py()).call(args, kwargs))
    }

    /// Loads the result for these arguments anew and stores it, whatever there is.
    #[pyo3(signature = (*args, **kwargs))]
    fn cache_refresh<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedFunction.cache_refresh", || {
            call::with_arguments(args, kwargs, |arguments| call::load_anew(slf, arguments, false))
        })
    }

    /// The key of these arguments: the function's qualified name and 64
    /// hexadecimal digits, the same in every process.
    ///
    /// Raises:
    ///     TypeError: an argument has no canonical form outside this process.
    #[pyo3(signature = (*args, **kwargs))]
    fn cache_key<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<String> {
        edge("CachedFunction.cache_key", || {
            call::with_arguments(args, kwargs, |arguments: &Arguments<'_, '_>| {
                call::public_key(slf, arguments)
            })
        })
    }

    /// The options that the decorator was given.
    pub(crate) fn cache_parameters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        edge("CachedFunction.cache_parameters", || self.options.parameters.bind(py).copy())
    }

    /// The cache behind it.
    #[getter]
    fn cache(&self, py: Python<'_>) -> Py<Cache> {
        self.cache.clone_ref(py)
    }

    /// The function's docstring, for those who ask past `__getattribute__`.
    #[getter]
    fn _doc<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedFunction.__doc__", || {
            let this = slf.get();
            lookalike::doc(this.attributes.bind(slf.py()), this.function.bind(slf.py()))
        })
    }

    #[getter(__dict__)]
    fn dict(&self, py: Python<'_>) -> Py<PyDict> {
        self.attributes.clone_ref(py)
    }

    fn __getattribute__<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedFunction.__getattribute__", || {
            let (this, py) = (slf.get(), slf.py());
            let (attributes, function) = (this.attributes.bind(py), this.function.bind(py));
            lookalike::getattribute(slf.as_any(), attributes, function, name)
        })
    }

    fn __setattr__(&self, name: &Bound<'_, PyString>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        edge("CachedFunction.__setattr__", || self.attributes.bind(name.py()).set_item(name, value))
    }

    fn __delattr__(&self, name: &Bound<'_, PyString>) -> PyResult<()> {
        edge("CachedFunction.__delattr__", || {
            lookalike::delattr(self.attributes.bind(name.py()), name)
        })
    }

    /// Pickled and copied by qualified name, like any function.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedFunction.__reduce__", || slf.getattr("__qualname__"))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        edge("CachedFunction.__repr__", || {
            let store = &slf.get().cache.get().store;
            let (stats, size, _, bounds) = store.stats();
            let kind = if slf.get().is_async { "async " } else { "" };
            Ok(format!(
                "<cached {kind}function {} ({size} of {} entries, {} hits, {} misses)>",
                call::name_of(slf)?,
                bounds.max_size,
                stats.hits,
                stats.misses
            ))
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.cache)?;
        visit.call(&self.function)?;
        visit.call(&self.attributes)?;
        visit.call(&self.options.key)?;
        visit.call(&self.options.freshness)?;
        visit.call(&self.options.bypass_if)?;
        visit.call(&self.options.tags)?;
        visit.call(&self.options.load)?;
        visit.call(&self.options.load_anew)?;
        visit.call(&self.options.refresh)?;
        visit.call(&self.options.fail)?;
        visit.call(&self.options.read)?;
        visit.call(&self.options.info)?;
        visit.call(&self.options.parameters)?;
        self.owners.traverse(&visit)?;
        self.instances.traverse(&visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        self.attributes.bind(py).clear();
    }
}
