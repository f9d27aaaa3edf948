//! A guarded function as Python sees it.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit};

use super::blocking;
use super::call::call;
use super::plan::Plan;
use super::stream::GuardedStream;
use super::target::Target;
use crate::py::edge::edge;
use crate::py::lookalike;
use crate::py::names;

unsafe extern "C" {
    // Part of CPython's public API, which the bindings' crate does not name.
    fn PyMethod_New(
        function: *mut ffi::PyObject,
        instance: *mut ffi::PyObject,
    ) -> *mut ffi::PyObject;
}

/// A function whose calls go through a guard, a breaker or a retry policy.
///
/// Everything that tools read from a function (name, signature, code flags,
/// globals) is answered from the wrapped one.
#[pyclass(frozen, weakref, module = "ferrogate._core")]
pub(crate) struct GuardedFunction {
    /// Read by the interpreter through the type's vectorcall offset.
    vectorcall: ffi::vectorcallfunc,
    kind: Kind,
    plan: Plan,
    function: Py<PyAny>,
    attributes: Py<PyDict>,
}

/// A test suite wants functions called as if nobody guarded them.
static BYPASSED: AtomicBool = AtomicBool::new(false);

/// For ``ferrogate.testing.bypass``: whether decorated functions are called past their guards.
#[pyfunction]
#[pyo3(name = "_set_bypass")]
pub(super) fn set_bypass(on: bool) {
    BYPASSED.store(on, Ordering::Relaxed);
}

/// How a function is called.
#[derive(Clone, Copy)]
enum Kind {
    /// `async def`.
    Coroutine,
    /// `async def` with `yield`.
    Stream,
    /// `def`.
    Plain,
}

impl Kind {
    fn named(name: &str) -> PyResult<Self> {
        match name {
            "coroutine" => Ok(Self::Coroutine),
            "stream" => Ok(Self::Stream),
            "plain" => Ok(Self::Plain),
            _ => Err(PyValueError::new_err(format!("kind: unknown {name:?}"))),
        }
    }
}

/// The interpreter calls this for `f(...)`.
unsafe extern "C" fn vectorcall(
    callable: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    nargsf: usize,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter, with a `GuardedFunction`; unchecked, for the checked way
    // panics while the interpreter finalises, when finalisers may still call us.
    unsafe {
        Python::attach_unchecked(|py| {
            let this =
                Borrowed::<PyAny>::from_ptr(py, callable).cast_unchecked::<GuardedFunction>();
            let this = this.get();
            let positional = ffi::PyVectorcall_NARGS(nargsf) as usize;
            let result = edge("GuardedFunction.__call__", || {
                let function = this.function.clone_ref(py);
                let target = Target::from_raw(py, function, args, positional, names);
                this.begin(py, target)
            });
            match result {
                Ok(value) => value.into_ptr(),
                Err(error) => {
                    error.restore(py);
                    std::ptr::null_mut()
                }
            }
        })
    }
}

impl GuardedFunction {
    /// In front of a method of the cache's: results belong to their instance, which a plain method
    /// of ours would not tell.
    #[cold]
    fn before_cache_of<'py>(
        &self,
        slf: &Bound<'py, Self>,
        instance: Option<Bound<'py, PyAny>>,
        owner: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let is_bound = instance.is_some();
        let function = self.function.bind(py);
        let found = function.call_method1(names::dunder_get(py), (instance, owner))?;
        if !is_bound {
            return Ok(slf.clone().into_any());
        }
        let attributes = PyDict::new(py).unbind();
        let plan = self.plan.clone_ref(py);
        let this = Self { vectorcall, kind: self.kind, plan, function: found.unbind(), attributes };
        Ok(Bound::new(py, this)?.into_any())
    }

    #[inline]
    fn begin(&self, py: Python<'_>, target: Target) -> PyResult<Py<PyAny>> {
        if BYPASSED.load(Ordering::Relaxed) {
            return self.plan.call_past(py, &target);
        }
        self.plan.check(py, &target)?;
        let plan = self.plan.clone_ref(py);
        match self.kind {
            Kind::Coroutine => call(py, plan, target).map(Bound::unbind),
            Kind::Stream => Ok(Py::new(py, GuardedStream::new(plan, target))?.into_any()),
            Kind::Plain => blocking::call(py, plan, &target),
        }
    }
}

/// Whether the type knows its vectorcall offset.
static INSTALLED: AtomicBool = AtomicBool::new(false);

#[pymethods]
impl GuardedFunction {
    #[new]
    #[pyo3(signature = (function, guard, kind, layer = "all"))]
    fn new<'py>(
        py: Python<'py>,
        function: Py<PyAny>,
        guard: &Bound<'py, PyAny>,
        kind: &str,
        layer: &str,
    ) -> PyResult<Bound<'py, Self>> {
        edge("GuardedFunction", || {
            let plan = Plan::of(guard)?.layer(layer)?;
            let attributes = PyDict::new(py).unbind();
            let this = Self { vectorcall, kind: Kind::named(kind)?, plan, function, attributes };
            let this = Bound::new(py, this)?;
            lookalike::install_vectorcall(&this, &raw const this.get().vectorcall, &INSTALLED);
            Ok(this)
        })
    }

    #[pyo3(signature = (*args, **kwargs))]
    fn __call__<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        edge("GuardedFunction.__call__", || {
            let py = args.py();
            self.begin(py, Target::new(self.function.clone_ref(py), args, kwargs)?)
        })
    }

    /// As a function's: bound to the instance it is looked up on.
    fn __get__<'py>(
        slf: &Bound<'py, Self>,
        instance: Option<Bound<'py, PyAny>>,
        owner: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("GuardedFunction.__get__", || {
            if let Plan::BeforeCache(_) = slf.get().plan {
                return slf.get().before_cache_of(slf, instance, owner);
            }
            drop(owner);
            let Some(instance) = instance else { return Ok(slf.clone().into_any()) };
            // SAFETY: attached; both are live objects.
            unsafe {
                let method = PyMethod_New(slf.as_ptr(), instance.as_ptr());
                Bound::from_owned_ptr_or_err(slf.py(), method)
            }
        })
    }

    /// ``GuardedFunction[[int], str]``, for annotations.
    #[classmethod]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        parameters: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("GuardedFunction.__class_getitem__", || {
            class.py().import("types")?.getattr("GenericAlias")?.call1((class, parameters))
        })
    }

    /// The guard, breaker or policy that its calls go through.
    #[getter]
    fn guard(&self, py: Python<'_>) -> Py<PyAny> {
        self.plan.owner().clone_ref(py)
    }

    /// The function's docstring, for those who ask past `__getattribute__`.
    #[getter]
    fn _doc<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        edge("GuardedFunction.__doc__", || {
            lookalike::doc(self.attributes.bind(py), self.function.bind(py))
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
        edge("GuardedFunction.__getattribute__", || {
            let (this, py) = (slf.get(), slf.py());
            let (attributes, function) = (this.attributes.bind(py), this.function.bind(py));
            lookalike::getattribute(slf.as_any(), attributes, function, name)
        })
    }

    fn __setattr__(&self, name: &Bound<'_, PyString>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        edge("GuardedFunction.__setattr__", || {
            self.attributes.bind(name.py()).set_item(name, value)
        })
    }

    fn __delattr__(&self, name: &Bound<'_, PyString>) -> PyResult<()> {
        edge("GuardedFunction.__delattr__", || {
            lookalike::delattr(self.attributes.bind(name.py()), name)
        })
    }

    /// Pickled and copied by qualified name, like any function.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        edge("GuardedFunction.__reduce__", || slf.getattr("__qualname__"))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        edge("GuardedFunction.__repr__", || {
            let kind = match slf.get().kind {
                Kind::Coroutine => "async ",
                Kind::Stream => "streaming ",
                Kind::Plain => "",
            };
            let name = slf.getattr("__qualname__")?;
            let owner = slf.get().plan.owner().bind(slf.py()).repr()?;
            Ok(format!("<guarded {kind}function {name} behind {owner}>"))
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(self.plan.owner())?;
        visit.call(&self.function)?;
        visit.call(&self.attributes)
    }

    fn __clear__(&self, py: Python<'_>) {
        self.attributes.bind(py).clear();
    }
}
