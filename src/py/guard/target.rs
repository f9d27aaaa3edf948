//! What is called, and may be called again.

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use crate::py::awaitable::Visiting;
use crate::py::convert::type_name;

/// A function with its arguments.
pub(crate) struct Target {
    function: Py<PyAny>,
    /// Positional arguments, then one value for each keyword.
    args: Vec<Py<PyAny>>,
    /// Names of the keywords, a tuple of str.
    names: Option<Py<PyTuple>>,
}

impl Target {
    /// From what a vectorcall function is called with.
    ///
    /// # Safety
    /// Attached; `args` holds `positional` objects and one for each name.
    pub(super) unsafe fn from_raw(
        py: Python<'_>,
        function: Py<PyAny>,
        args: *const *mut ffi::PyObject,
        positional: usize,
        names: *mut ffi::PyObject,
    ) -> Self {
        // SAFETY: as above; the tuple's type is the interpreter's promise.
        unsafe {
            let names = Bound::from_borrowed_ptr_or_opt(py, names)
                .map(|names| names.cast_into_unchecked::<PyTuple>());
            let total = positional + names.as_ref().map_or(0, PyTupleMethods::len);
            let args =
                (0..total).map(|index| Bound::from_borrowed_ptr(py, *args.add(index)).unbind());
            Self { function, args: args.collect(), names: names.map(Bound::unbind) }
        }
    }

    /// From a tuple and a dict, as `call` and `call_sync` get them.
    pub(crate) fn of(
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        if !function.is_callable() {
            return Err(PyTypeError::new_err(format!(
                "function: expected a callable and its arguments, as in call(ask, \"hello\"), got {}",
                type_name(function)
            )));
        }
        Self::new(function.clone().unbind(), args, kwargs)
    }

    /// From a tuple and a dict.
    pub(super) fn new(
        function: Py<PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let mut all: Vec<Py<PyAny>> = args.iter().map(Bound::unbind).collect();
        let Some(kwargs) = kwargs.filter(|kwargs| !kwargs.is_empty()) else {
            return Ok(Self { function, args: all, names: None });
        };
        let (names, values): (Vec<_>, Vec<_>) = kwargs.iter().unzip();
        all.extend(values.into_iter().map(Bound::unbind));
        Ok(Self { function, args: all, names: Some(PyTuple::new(args.py(), names)?.unbind()) })
    }

    /// The same call, of another function if there is one.
    pub(super) fn clone_ref(&self, py: Python<'_>, function: Option<&Py<PyAny>>) -> Self {
        Self {
            function: function.unwrap_or(&self.function).clone_ref(py),
            args: self.args.iter().map(|held| held.clone_ref(py)).collect(),
            names: self.names.as_ref().map(|names| names.clone_ref(py)),
        }
    }

    /// The function.
    pub(crate) fn function(&self) -> &Py<PyAny> {
        &self.function
    }

    /// Calls it; any number of times.
    #[inline]
    pub(super) fn call<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.call_other(py, &self.function)
    }

    /// Calls another function with its arguments.
    #[inline]
    pub(super) fn call_other<'py>(
        &self,
        py: Python<'py>,
        function: &Py<PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let names = self.names.as_ref();
        let positional = self.args.len() - names.map_or(0, |names| names.bind(py).len());
        // SAFETY: attached; `Py` is a pointer to a live object, so the vector is an array of them.
        unsafe {
            let result = ffi::PyObject_Vectorcall(
                function.as_ptr(),
                self.args.as_ptr().cast(),
                positional,
                names.map_or(std::ptr::null_mut(), Py::as_ptr),
            );
            Bound::from_owned_ptr_or_err(py, result)
        }
    }

    /// Refuses a keyword that the guard fills in: before there is an attempt that would be
    /// judged by the caller's mistake.
    #[cold]
    pub(super) fn leaves_out(&self, name: &Bound<'_, PyString>) -> PyResult<()> {
        let known = self.names.as_ref().map(|names| names.bind(name.py()).iter());
        for other in known.into_iter().flatten() {
            if other.eq(name)? {
                return Err(PyTypeError::new_err(format!(
                    "{name}: filled in by the guard for each attempt; leave it out"
                )));
            }
        }
        Ok(())
    }

    /// Calls it with one more keyword, which it leaves out.
    #[cold]
    pub(super) fn call_with<'py>(
        &self,
        name: &Bound<'py, PyString>,
        value: &Py<PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = name.py();
        let known = self.names.as_ref().map(|names| names.bind(py).iter());
        let mut names: Vec<_> = known.into_iter().flatten().collect();
        names.push(name.clone().into_any());
        let mut args: Vec<_> = self.args.iter().map(|held| held.clone_ref(py)).collect();
        args.push(value.clone_ref(py));
        let names = Some(PyTuple::new(py, names)?.unbind());
        Self { function: self.function.clone_ref(py), args, names }.call(py)
    }

    /// Forgets the arguments: it is not called any more.
    pub(super) fn let_go(&mut self) -> Vec<Py<PyAny>> {
        self.names = None;
        std::mem::take(&mut self.args)
    }

    pub(super) fn traverse<E>(&self, visit: &Visiting<'_, E>) -> Result<(), E> {
        visit(&self.function)?;
        self.args.iter().try_for_each(visit)?;
        self.names.as_ref().map_or(Ok(()), |names| visit(names.as_any()))
    }
}
