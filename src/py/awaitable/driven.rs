//! `Driven`: a coroutine whose body is a state machine in Rust.
//!
//! To `asyncio` it is a coroutine like any other: `send`, `throw` and `close`, run by whoever
//! awaits it, in the caller's task and context. Its [`Body`] answers each step with what the
//! caller is to wait for, the result, or an error. As for [`super::ready`], the slots are the
//! interpreter's own: an exception per await would cost more than the rest.

use std::ffi::{CString, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::exceptions::{
    PyGeneratorExit, PyRuntimeError, PyStopIteration, PyTypeError, PyValueError,
};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::thrown::thrown;
use super::{getter, make_type, method, raise_new, slot};
use crate::py::edge::{edge, unraisable};

/// What a step came to.
pub(crate) enum Step {
    /// To be handed to the event loop; the body goes on when it is resumed.
    Yield(Py<PyAny>),
    /// The end.
    Return(Py<PyAny>),
}

/// What a body is resumed with.
pub(crate) enum Sent<'py> {
    /// The value of the `await` it stands at; `None` at first.
    Value(Borrowed<'py, 'py, PyAny>),
    /// Raised at the `await` it stands at.
    Error(PyErr),
}

/// Visits one reference for the collector.
pub(crate) type Visiting<'a, E> = dyn Fn(&Py<PyAny>) -> Result<(), E> + 'a;
/// [`Visiting`] as the slots of [`Driven`] do it.
pub(crate) type Visit<'a> = &'a Visiting<'a, Stop>;

/// What ends a visit: the collector's answer, not 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop(c_int);

/// What runs in a [`Driven`].
pub(crate) trait Body: Send + Sync {
    /// Goes on to the next `await`, the end, or an error.
    fn resume(&mut self, py: Python<'_>, sent: Sent<'_>) -> PyResult<Step>;
    /// It goes away, before its end if nothing has brought it there.
    fn abandon(&mut self, py: Python<'_>);
    /// The function it runs for, for `__name__` and `__qualname__`.
    fn function(&self) -> &Py<PyAny>;
    /// Whether it does nothing at all if nobody awaits it, which is a mistake to be warned of.
    fn is_call(&self) -> bool;
    /// What it waits for now.
    fn awaits(&self) -> Option<&Py<PyAny>>;
    /// Visits every reference it holds.
    fn traverse(&self, visit: Visit<'_>) -> Result<(), Stop>;
}

/// Where it stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Fresh,
    Running,
    Suspended,
    Ended,
}

#[repr(C)]
struct Driven {
    ob_base: ffi::PyObject,
    /// Taken out while it runs: a collector that comes by then visits nothing, which keeps
    /// everything alive, and nobody else can touch it.
    body: Option<Box<dyn Body>>,
    stage: Stage,
    /// Whether the shared `StopIteration` may still hold our value.
    lent: bool,
}

/// Written once at import; never freed.
static TYPE: AtomicPtr<ffi::PyTypeObject> = AtomicPtr::new(ptr::null_mut());

/// A coroutine that runs `body`.
pub(crate) fn driven(py: Python<'_>, body: Box<dyn Body>) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: attached; TYPE was set at import, and the object is fully initialised before it is
    // tracked. `PyObject_GC_New` takes the reference to the heap type.
    unsafe {
        let class = TYPE.load(Ordering::Relaxed);
        let object: *mut Driven = ffi::PyObject_GC_New(class);
        if object.is_null() {
            return Err(PyErr::fetch(py));
        }
        (&raw mut (*object).body).write(Some(body));
        (&raw mut (*object).stage).write(Stage::Fresh);
        (&raw mut (*object).lent).write(false);
        ffi::PyObject_GC_Track(object.cast());
        Ok(Bound::from_owned_ptr(py, object.cast()))
    }
}

/// Runs one step.
///
/// # Safety
/// Attached; `object` is a `Driven` that the caller holds a reference to.
#[inline]
unsafe fn resume(py: Python<'_>, object: *mut ffi::PyObject, sent: Sent<'_>) -> PyResult<Step> {
    // SAFETY: as above; no reference into the object lives while the body runs.
    unsafe {
        let this = object.cast::<Driven>();
        if let (Stage::Fresh, Sent::Value(value)) = ((*this).stage, &sent)
            && !value.is_none()
        {
            return Err(PyTypeError::new_err(
                "can't send non-None value to a just-started coroutine",
            ));
        }
        let Some(mut body) = (*this).body.take() else {
            return Err(match (*this).stage {
                Stage::Running => PyValueError::new_err("coroutine already executing"),
                _ => PyRuntimeError::new_err("cannot reuse already awaited coroutine"),
            });
        };
        (*this).stage = Stage::Running;
        let result = edge("Driven.send", || body.resume(py, sent));
        if matches!(result, Ok(Step::Yield(_))) {
            (*this).body = Some(body);
            (*this).stage = Stage::Suspended;
        } else {
            (*this).stage = Stage::Ended;
            finish(py, body, "Driven.end");
        }
        result.map_err(|error| not_an_end(py, error))
    }
}

/// A `StopIteration` that leaves a coroutine would be taken for its end (PEP 479).
fn not_an_end(py: Python<'_>, error: PyErr) -> PyErr {
    if !error.is_instance_of::<PyStopIteration>(py) {
        return error;
    }
    let raised = PyRuntimeError::new_err("coroutine raised StopIteration");
    raised.set_context(py, Some(error.clone_ref(py)));
    raised.set_cause(py, Some(error));
    raised
}

/// Lets go of a body that runs no more. A body that panicked may hold something.
fn finish(py: Python<'_>, mut body: Box<dyn Body>, name: &'static str) {
    let ended = edge(name, || {
        body.abandon(py);
        Ok(())
    });
    if let Err(error) = ended {
        unraisable(error, body.function().bind(py));
    }
}

/// Calls a slot's body; a panic there or an error becomes the interpreter's error.
///
/// # Safety
/// Called by the interpreter, so attached.
#[inline]
unsafe fn called<R>(failed: R, body: impl FnOnce(Python<'_>) -> PyResult<R>) -> R {
    // SAFETY: called by the interpreter; unchecked, for the checked way panics while it finalises.
    unsafe {
        Python::attach_unchecked(|py| {
            body(py).unwrap_or_else(|error| {
                error.restore(py);
                failed
            })
        })
    }
}

unsafe extern "C" fn iternext(object: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter with a `Driven`; the value's reference is given up.
    unsafe {
        called(ptr::null_mut(), |py| {
            let none = Borrowed::from_ptr(py, ffi::Py_None());
            match resume(py, object, Sent::Value(none))? {
                Step::Yield(value) => Ok(value.into_ptr()),
                Step::Return(value) => {
                    return_by_exception(object, value);
                    Ok(ptr::null_mut())
                }
            }
        })
    }
}

/// Ends with `StopIteration(value)`, for those who ask by `tp_iternext`.
unsafe fn return_by_exception(object: *mut ffi::PyObject, value: Py<PyAny>) {
    let value = value.into_ptr();
    // SAFETY: attached; `value` is owned and given up.
    unsafe {
        // Null without an exception is `StopIteration(None)` to the interpreter.
        if value == ffi::Py_None() {
            ffi::Py_DECREF(value);
            return;
        }
        #[cfg(all(Py_3_12, not(Py_GIL_DISABLED)))]
        {
            (*object.cast::<Driven>()).lent = super::stop::raise(value);
        }
        #[cfg(not(all(Py_3_12, not(Py_GIL_DISABLED))))]
        {
            let _ = object;
            raise_new(value);
        }
    }
}

unsafe extern "C" fn am_send(
    object: *mut ffi::PyObject,
    sent: *mut ffi::PyObject,
    result: *mut *mut ffi::PyObject,
) -> ffi::PySendResult {
    // SAFETY: called by the interpreter with a `Driven`, a value and a place for the result.
    unsafe {
        *result = ptr::null_mut();
        called(ffi::PySendResult::PYGEN_ERROR, |py| {
            let (value, kind) = match resume(py, object, Sent::Value(Borrowed::from_ptr(py, sent)))?
            {
                Step::Yield(value) => (value, ffi::PySendResult::PYGEN_NEXT),
                Step::Return(value) => (value, ffi::PySendResult::PYGEN_RETURN),
            };
            *result = value.into_ptr();
            Ok(kind)
        })
    }
}

/// A step's result as a method returns it.
unsafe fn as_method(step: Step) -> *mut ffi::PyObject {
    match step {
        Step::Yield(value) => value.into_ptr(),
        Step::Return(value) => {
            // SAFETY: attached, no exception set, the reference is given up.
            unsafe { raise_new(value.into_ptr()) };
            ptr::null_mut()
        }
    }
}

unsafe extern "C" fn send(
    object: *mut ffi::PyObject,
    sent: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter with a `Driven`.
    unsafe {
        called(ptr::null_mut(), |py| {
            let sent = Sent::Value(Borrowed::from_ptr(py, sent));
            Ok(as_method(resume(py, object, sent)?))
        })
    }
}

unsafe extern "C" fn throw(
    object: *mut ffi::PyObject,
    args: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter with a `Driven` and the tuple of arguments.
    unsafe {
        called(ptr::null_mut(), |py| {
            let args = Bound::from_borrowed_ptr(py, args).cast_into::<PyTuple>()?;
            let error = edge("Driven.throw", || thrown(py, &args))?;
            if (*object.cast::<Driven>()).stage == Stage::Fresh {
                // It has no frame yet that could catch it.
                end_unstarted(py, object);
                return Err(error);
            }
            Ok(as_method(resume(py, object, Sent::Error(error))?))
        })
    }
}

/// Ends what was never begun.
unsafe fn end_unstarted(py: Python<'_>, object: *mut ffi::PyObject) {
    // SAFETY: `object` is a `Driven`; the body leaves it before it is dropped.
    unsafe {
        let this = object.cast::<Driven>();
        (*this).stage = Stage::Ended;
        let body = (*this).body.take();
        if let Some(body) = body {
            finish(py, body, "Driven.end");
        }
    }
}

unsafe extern "C" fn close(
    object: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter with a `Driven`.
    unsafe {
        called(ptr::null_mut(), |py| {
            match (*object.cast::<Driven>()).stage {
                Stage::Fresh => end_unstarted(py, object),
                Stage::Ended => {}
                Stage::Running => {
                    return Err(PyValueError::new_err("coroutine already executing"));
                }
                Stage::Suspended => {
                    let exit = PyGeneratorExit::new_err(());
                    match resume(py, object, Sent::Error(exit)) {
                        Ok(Step::Yield(_)) => {
                            return Err(PyRuntimeError::new_err("coroutine ignored GeneratorExit"));
                        }
                        Ok(Step::Return(_)) => {}
                        Err(error)
                            if error.is_instance_of::<PyGeneratorExit>(py)
                                || error.is_instance_of::<PyStopIteration>(py) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Ok(py.None().into_ptr())
        })
    }
}

unsafe extern "C" fn traverse(
    object: *mut ffi::PyObject,
    visit: ffi::visitproc,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: called by the collector with a `Driven`; only visits.
    unsafe {
        let class = ffi::Py_TYPE(object).cast::<ffi::PyObject>();
        let answer = visit(class, arg);
        if answer != 0 {
            return answer;
        }
        let visit = |held: &Py<PyAny>| match visit(held.as_ptr(), arg) {
            0 => Ok(()),
            answer => Err(Stop(answer)),
        };
        match &(*object.cast::<Driven>()).body {
            Some(body) => body.traverse(&visit).map_or_else(|Stop(answer)| answer, |()| 0),
            None => 0,
        }
    }
}

unsafe extern "C" fn clear(object: *mut ffi::PyObject) -> c_int {
    // SAFETY: called by the collector with a `Driven` that nobody else can reach.
    unsafe { Python::attach_unchecked(|py| end_unstarted(py, object)) }
    0
}

unsafe extern "C" fn dealloc(object: *mut ffi::PyObject) {
    // SAFETY: called by the interpreter when the count reached zero. What is let go may run
    // Python code, which must not see our exception, and cannot see the object.
    unsafe {
        ffi::PyObject_GC_UnTrack(object.cast());
        let this = object.cast::<Driven>();
        if (*this).body.is_some() {
            Python::attach_unchecked(|py| {
                let passing = PyErr::take(py);
                if (*this).stage == Stage::Fresh
                    && let Some(body) = (*this).body.as_deref().filter(|body| body.is_call())
                {
                    warn_of_unawaited(py, body.function().bind(py));
                }
                end_unstarted(py, object);
                if let Some(passing) = passing {
                    passing.restore(py);
                }
            });
        }
        #[cfg(all(Py_3_12, not(Py_GIL_DISABLED)))]
        if (*this).lent {
            super::stop::forget();
        }
        let class = ffi::Py_TYPE(object);
        ptr::drop_in_place(&raw mut (*this).body);
        ffi::PyObject_GC_Del(object.cast());
        ffi::Py_DECREF(class.cast());
    }
}

/// As the interpreter does of its own coroutines.
#[cold]
fn warn_of_unawaited(py: Python<'_>, function: &Bound<'_, PyAny>) {
    let name = function.getattr("__qualname__").and_then(|name| name.extract::<String>());
    let name = name.unwrap_or_else(|_| function.get_type().to_string());
    let Ok(text) = CString::new(format!("coroutine '{name}' was never awaited")) else { return };
    // SAFETY: attached; the text lives.
    let warned = unsafe { ffi::PyErr_WarnEx(ffi::PyExc_RuntimeWarning, text.as_ptr(), 1) };
    if warned != 0 {
        // A filter made it an error, which nobody could catch.
        unraisable(PyErr::fetch(py), function);
    }
}

/// Reads an attribute of the function that it runs for; the type's own name once it has ended.
unsafe fn of_function(object: *mut ffi::PyObject, name: &str) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter with a `Driven`; the function is held before it is asked.
    unsafe {
        called(ptr::null_mut(), |py| {
            let function = (*object.cast::<Driven>())
                .body
                .as_ref()
                .map(|body| body.function().clone_ref(py).into_bound(py));
            let found = function.and_then(|function| function.getattr(name).ok());
            Ok(match found {
                Some(found) => found.into_ptr(),
                None => pyo3::types::PyString::new(py, "Driven").into_any().into_ptr(),
            })
        })
    }
}

unsafe extern "C" fn get_name(object: *mut ffi::PyObject, _: *mut c_void) -> *mut ffi::PyObject {
    // SAFETY: as `of_function` wants it.
    unsafe { of_function(object, "__name__") }
}

unsafe extern "C" fn get_qualname(
    object: *mut ffi::PyObject,
    _: *mut c_void,
) -> *mut ffi::PyObject {
    // SAFETY: as `of_function` wants it.
    unsafe { of_function(object, "__qualname__") }
}

unsafe extern "C" fn get_await(object: *mut ffi::PyObject, _: *mut c_void) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter with a `Driven`.
    unsafe {
        called(ptr::null_mut(), |py| {
            let body = (*object.cast::<Driven>()).body.as_ref();
            let awaits = body.and_then(|body| body.awaits()).map(|held| held.clone_ref(py));
            Ok(awaits.unwrap_or_else(|| py.None()).into_ptr())
        })
    }
}

unsafe extern "C" fn get_running(object: *mut ffi::PyObject, _: *mut c_void) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter with a `Driven`.
    unsafe { ffi::PyBool_FromLong(((*object.cast::<Driven>()).stage == Stage::Running).into()) }
}

unsafe extern "C" fn get_suspended(
    object: *mut ffi::PyObject,
    _: *mut c_void,
) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter with a `Driven`.
    unsafe { ffi::PyBool_FromLong(((*object.cast::<Driven>()).stage == Stage::Suspended).into()) }
}

/// Makes the type; called once at import.
pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    let methods = vec![
        method(c"send", send, ffi::METH_O, c"Goes on to the next await."),
        method(c"throw", throw, ffi::METH_VARARGS, c"Raises an exception at the present await."),
        method(c"close", close, ffi::METH_NOARGS, c"Ends it at the present await."),
    ];
    let getters = vec![
        getter(c"__name__", get_name),
        getter(c"__qualname__", get_qualname),
        getter(c"cr_await", get_await),
        getter(c"cr_frame", super::none),
        getter(c"cr_running", get_running),
        getter(c"cr_suspended", get_suspended),
    ];
    let slots = vec![
        slot(ffi::Py_tp_dealloc, dealloc as *mut c_void),
        slot(ffi::Py_tp_traverse, traverse as *mut c_void),
        slot(ffi::Py_tp_clear, clear as *mut c_void),
        slot(ffi::Py_tp_iternext, iternext as *mut c_void),
        slot(ffi::Py_am_send, am_send as *mut c_void),
    ];
    let name = c"ferrogate._core.Driven";
    let class = make_type(m.py(), name, size_of::<Driven>(), methods, getters, slots)?;
    m.add("Driven", &class)?;
    TYPE.store(class.into_ptr().cast(), Ordering::Relaxed);
    Ok(())
}
