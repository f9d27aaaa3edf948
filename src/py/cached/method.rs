//! A cached function bound to an instance.

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::CachedFunction;
use super::call;
use crate::py::edge::edge;
use crate::py::lookalike;

/// What ``instance.method`` gives for a cached method.
#[pyclass(frozen, weakref, module = "ferrogate._core")]
pub(crate) struct CachedMethod {
    function: Py<CachedFunction>,
    instance: Py<PyAny>,
}

impl CachedMethod {
    pub(crate) fn new(function: Py<CachedFunction>, instance: Py<PyAny>) -> Self {
        Self { function, instance }
    }

    /// The arguments with the instance in front.
    fn with_self<'py>(&self, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyTuple>> {
        let py = args.py();
        let first = self.instance.bind(py).clone();
        PyTuple::new(py, std::iter::once(first).chain(args.iter()).collect::<Vec<_>>())
    }
}

#[pymethods]
impl CachedMethod {
    #[pyo3(signature = (*args, **kwargs))]
    fn __call__<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedMethod.__call__", || {
            let args = self.with_self(args)?;
            let function = self.function.bind(args.py());
            call::with_arguments(&args, kwargs, |arguments| call::call(function, arguments, true))
        })
    }

    /// Removes this instance's result for these arguments; true if there was one.
    #[pyo3(signature = (*args, **kwargs))]
    fn cache_invalidate<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<bool> {
        edge("CachedMethod.cache_invalidate", || {
            let args = self.with_self(args)?;
            let function = self.function.bind(args.py());
            call::with_arguments(&args, kwargs, |arguments| {
                call::invalidate(function, arguments, true)
            })
        })
    }

    /// Calls the method itself: nothing is looked up, shared or stored.
    #[pyo3(signature = (*args, **kwargs))]
    fn cache_bypass<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedMethod.cache_bypass", || {
            let function = self.function.get().function.bind(args.py());
            function.call(self.with_self(args)?, kwargs)
        })
    }

    /// Loads this instance's result for these arguments anew and stores it, whatever there is.
    #[pyo3(signature = (*args, **kwargs))]
    fn cache_refresh<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedMethod.cache_refresh", || {
            let args = self.with_self(args)?;
            let function = self.function.bind(args.py());
            call::with_arguments(&args, kwargs, |arguments| {
                call::load_anew(function, arguments, true)
            })
        })
    }

    /// The key of these arguments for this instance.
    #[pyo3(signature = (*args, **kwargs))]
    fn cache_key<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedMethod.cache_key", || {
            let function = self.function.bind(args.py());
            function.call_method("cache_key", self.with_self(args)?, kwargs)
        })
    }

    /// The function's counters, over all instances.
    fn cache_info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedMethod.cache_info", || self.function.get().cache_info(py))
    }

    /// Removes the results of all instances.
    fn cache_clear(&self, py: Python<'_>) -> PyResult<()> {
        edge("CachedMethod.cache_clear", || self.function.get().cache_clear(py))
    }

    /// The options that the decorator was given.
    fn cache_parameters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        edge("CachedMethod.cache_parameters", || self.function.get().cache_parameters(py))
    }

    /// The function's docstring, for those who ask past `__getattribute__`.
    #[getter]
    fn _doc<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedMethod.__doc__", || self.function.bind(py).getattr("__doc__"))
    }

    /// The instance.
    #[getter]
    fn __self__(&self, py: Python<'_>) -> Py<PyAny> {
        self.instance.clone_ref(py)
    }

    /// The cached function.
    #[getter]
    fn __func__(&self, py: Python<'_>) -> Py<CachedFunction> {
        self.function.clone_ref(py)
    }

    /// The wrapped function, bound to the instance.
    #[getter]
    fn __wrapped__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedMethod.__wrapped__", || {
            let function = self.function.get().function.bind(py);
            function.call_method1("__get__", (&self.instance,))
        })
    }

    fn __getattribute__<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedMethod.__getattribute__", || {
            let py = slf.py();
            let function = slf.get().function.bind(py);
            // These exist on the type too, where they describe the type.
            if matches!(name.to_str(), Ok("__doc__" | "__module__")) {
                return function.getattr(name);
            }
            lookalike::own_or(slf.as_any(), function.as_any(), name)
        })
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        // As bound methods compare: the same function of the same instance.
        other.cast::<Self>().is_ok_and(|other| {
            let other = other.get();
            self.function.is(&other.function) && self.instance.is(&other.instance)
        })
    }

    fn __hash__(&self) -> u64 {
        (self.function.as_ptr() as u64) ^ (self.instance.as_ptr() as u64).rotate_left(17)
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        edge("CachedMethod.__reduce__", || {
            let name = self.function.bind(py).getattr("__name__")?;
            let getattr = py.import("builtins")?.getattr("getattr")?;
            (getattr, (self.instance.clone_ref(py), name)).into_pyobject(py).map(Bound::into_any)
        })
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        edge("CachedMethod.__repr__", || {
            let name = self.function.bind(py).getattr("__qualname__")?;
            Ok(format!("<cached method {name} of {}>", self.instance.bind(py).repr()?))
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.function)?;
        visit.call(&self.instance)
    }
}
