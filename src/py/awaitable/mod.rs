//! `Ready`: an awaitable that already has its value.
//!
//! Awaiting a cache hit or a granted permit must cost about as much as awaiting
//! an empty coroutine. A `#[pyclass]` whose `__next__` returns
//! `Err(StopIteration)` cost 490 ns per await in a prototype; this type speaks
//! to the interpreter's own slots:
//!
//! * `am_send` (CPython 3.11's `SEND`, every `asyncio.Task`): hands the value
//!   over without any exception;
//! * `tp_iternext` (`await` on CPython 3.12 and 3.13): raises `StopIteration`,
//!   reusing one exception object as long as nobody else holds it.
//!
//! It has `send`, `throw` and `close`, so `collections.abc.Coroutine` and with
//! it `asyncio.create_task`, `gather`, `wait_for` and `TaskGroup` accept it.

mod driven;
mod pool;
#[cfg(all(Py_3_12, not(Py_GIL_DISABLED)))]
mod stop;
mod thrown;

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

pub(crate) use self::driven::{Body, Sent, Step, Stop, Visit, Visiting, driven};

use crate::core::clock::Nanos;
use crate::core::key::Key;

#[repr(C)]
struct Ready {
    ob_base: ffi::PyObject,
    /// Owned; null once handed out.
    value: *mut ffi::PyObject,
    /// Whether the shared `StopIteration` may still hold our value.
    lent: bool,
    /// To whom to give back what the value stands for; owned, or null.
    owner: *mut ffi::PyObject,
    unclaimed: MaybeUninit<Unclaimed>,
}

/// A value that stands for something spent: permits, perhaps a slot. If the
/// awaitable goes without having been awaited, they come back. Kept in place:
/// a box per grant cost half of the await.
pub(crate) struct Unclaimed {
    /// Gives it back; attached, with no exception set.
    pub(crate) give_back: fn(&Bound<'_, PyAny>, &Self),
    /// When it was granted.
    pub(crate) at: Nanos,
    /// How many permits.
    pub(crate) cost: u32,
    /// Whether a slot went with them.
    pub(crate) slot: bool,
    /// Whose they are.
    pub(crate) key: Option<Box<Key>>,
}

/// Written once at import, before any `Ready` can exist; never freed.
static TYPE: AtomicPtr<ffi::PyTypeObject> = AtomicPtr::new(ptr::null_mut());

/// An awaitable that yields `value` at once.
#[inline]
pub(crate) fn ready<'py>(py: Python<'py>, value: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: attached; `ready_raw` consumes the reference and returns a new one or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, ready_raw(value.into_ptr())) }
}

/// [`ready`] for a value that must not get lost unawaited.
pub(crate) fn ready_or_back<'py>(
    py: Python<'py>,
    value: Bound<'py, PyAny>,
    owner: Bound<'py, PyAny>,
    unclaimed: Unclaimed,
) -> PyResult<Bound<'py, PyAny>> {
    let ready = ready(py, value)?;
    // SAFETY: a `Ready` that nobody else has seen yet, and that has no owner.
    unsafe {
        let object = ready.as_ptr().cast::<Ready>();
        (*object).unclaimed.write(unclaimed);
        (*object).owner = owner.into_ptr();
    }
    Ok(ready)
}

/// [`ready`] for callers that hold raw pointers. Steals `value`.
///
/// # Safety
/// Attached to the interpreter; `value` is an owned, non-null reference.
#[inline]
pub(crate) unsafe fn ready_raw(value: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: TYPE was set at import; the object is fully initialised before it is tracked.
    unsafe {
        let object = pool::take(TYPE.load(Ordering::Relaxed)).cast::<Ready>();
        if object.is_null() {
            ffi::Py_DECREF(value);
            return ptr::null_mut();
        }
        (*object).value = value;
        (*object).lent = false;
        (*object).owner = ptr::null_mut();
        ffi::PyObject_GC_Track(object.cast());
        object.cast()
    }
}

/// Raises a new `StopIteration(value)`; steals `value`.
///
/// # Safety
/// Attached, no exception set, `value` owned and non-null.
unsafe fn raise_new(value: *mut ffi::PyObject) {
    // SAFETY: attached; called through the type so that a tuple or an exception as value stays one value.
    unsafe {
        let error = ffi::PyObject_CallOneArg(ffi::PyExc_StopIteration, value);
        ffi::Py_DECREF(value);
        if !error.is_null() {
            ffi::PyErr_SetObject(ffi::PyExc_StopIteration, error);
            ffi::Py_DECREF(error);
        }
    }
}

/// Takes the value out; null with `RuntimeError` set when it was awaited before.
unsafe fn take_value(object: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: `object` is a `Ready`.
    let value = unsafe { std::mem::replace(&mut (*object.cast::<Ready>()).value, ptr::null_mut()) };
    // SAFETY: as above; what the value stands for is the taker's now.
    unsafe {
        if let Some((owner, unclaimed)) = take_unclaimed(object) {
            drop(unclaimed);
            ffi::Py_DECREF(owner);
        }
    }
    if value.is_null() {
        // SAFETY: attached; a static C string.
        unsafe {
            ffi::PyErr_SetString(
                ffi::PyExc_RuntimeError,
                c"cannot reuse already awaited coroutine".as_ptr(),
            );
        }
    }
    value
}

unsafe extern "C" fn iternext(object: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter with a `Ready`.
    unsafe {
        let value = take_value(object);
        if value.is_null() {
            return ptr::null_mut();
        }
        // Null without an exception is `StopIteration(None)` to the interpreter.
        if value == ffi::Py_None() {
            ffi::Py_DECREF(value);
            return ptr::null_mut();
        }
        #[cfg(all(Py_3_12, not(Py_GIL_DISABLED)))]
        {
            (*object.cast::<Ready>()).lent = stop::raise(value);
        }
        #[cfg(not(all(Py_3_12, not(Py_GIL_DISABLED))))]
        raise_new(value);
        ptr::null_mut()
    }
}

unsafe extern "C" fn am_send(
    object: *mut ffi::PyObject,
    _sent: *mut ffi::PyObject,
    result: *mut *mut ffi::PyObject,
) -> ffi::PySendResult {
    // SAFETY: called by the interpreter with a `Ready` and a place for the result.
    unsafe {
        let value = take_value(object);
        *result = value;
        if value.is_null() {
            ffi::PySendResult::PYGEN_ERROR
        } else {
            ffi::PySendResult::PYGEN_RETURN
        }
    }
}

unsafe extern "C" fn itself(object: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: a borrowed, live object.
    unsafe {
        ffi::Py_INCREF(object);
    }
    object
}

unsafe extern "C" fn send(
    object: *mut ffi::PyObject,
    _sent: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter with a `Ready`.
    unsafe {
        let value = take_value(object);
        if !value.is_null() {
            raise_new(value);
        }
        ptr::null_mut()
    }
}

unsafe extern "C" fn throw(
    object: *mut ffi::PyObject,
    args: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // Whatever is thrown comes straight out: there is no frame here that could catch it. A
    // throw-away generator gives `throw` its exact argument handling.
    let body = |py: Python<'_>| -> PyResult<Py<PyAny>> {
        // SAFETY: `args` is the interpreter's argument tuple, `object` a `Ready`.
        let args = unsafe { Bound::from_borrowed_ptr(py, args) };
        // SAFETY: as above.
        unsafe { give_back(object) };
        // SAFETY: as above.
        drop(unsafe { Bound::from_owned_ptr_or_opt(py, clear_value(object)) });
        let code = c"(_ for _ in ())";
        let generator = py.eval(code, None, None)?;
        generator
            .call_method1("throw", args.cast_into::<pyo3::types::PyTuple>()?)
            .map(Bound::unbind)
    };
    // SAFETY: called by the interpreter, so attached.
    let py = unsafe { Python::assume_attached() };
    match crate::py::edge::edge("Ready.throw", || body(py)) {
        Ok(value) => value.into_ptr(),
        Err(error) => {
            error.restore(py);
            ptr::null_mut()
        }
    }
}

unsafe extern "C" fn close(
    object: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter with a `Ready`; the value is dropped after it left the object.
    unsafe {
        give_back(object);
        ffi::Py_XDECREF(clear_value(object));
        ffi::Py_INCREF(ffi::Py_None());
        ffi::Py_None()
    }
}

/// The owner (an owned reference) and what to give back to it, at most once.
#[inline]
unsafe fn take_unclaimed(object: *mut ffi::PyObject) -> Option<(*mut ffi::PyObject, Unclaimed)> {
    // SAFETY: `object` is a `Ready`; with an owner `unclaimed` was written, and it is read once,
    // because the owner goes first.
    unsafe {
        let ready = object.cast::<Ready>();
        let owner = std::mem::replace(&mut (*ready).owner, ptr::null_mut());
        (!owner.is_null()).then(|| (owner, (*ready).unclaimed.assume_init_read()))
    }
}

/// Gives back what nobody will claim now. An exception that is set stays set.
unsafe fn give_back(object: *mut ffi::PyObject) {
    // SAFETY: `object` is a `Ready`, and the caller is attached.
    let Some((owner, unclaimed)) = (unsafe { take_unclaimed(object) }) else { return };
    // SAFETY: as above; the reference is owned.
    unsafe {
        Python::attach_unchecked(|py| {
            let owner = Bound::from_owned_ptr(py, owner);
            let pending = PyErr::take(py);
            let result = crate::py::edge::edge("Ready.close", || {
                (unclaimed.give_back)(&owner, &unclaimed);
                Ok(())
            });
            if let Err(error) = result {
                error.write_unraisable(py, None);
            }
            drop(owner);
            if let Some(pending) = pending {
                pending.restore(py);
            }
        });
    }
}

unsafe fn clear_value(object: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: `object` is a `Ready`.
    unsafe { std::mem::replace(&mut (*object.cast::<Ready>()).value, ptr::null_mut()) }
}

unsafe extern "C" fn traverse(
    object: *mut ffi::PyObject,
    visit: ffi::visitproc,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: called by the collector with a `Ready`; only visits.
    unsafe {
        let class = ffi::Py_TYPE(object).cast::<ffi::PyObject>();
        let answer = visit(class, arg);
        if answer != 0 {
            return answer;
        }
        let owner = (*object.cast::<Ready>()).owner;
        if !owner.is_null() {
            let answer = visit(owner, arg);
            if answer != 0 {
                return answer;
            }
        }
        let value = (*object.cast::<Ready>()).value;
        if value.is_null() { 0 } else { visit(value, arg) }
    }
}

unsafe extern "C" fn clear(object: *mut ffi::PyObject) -> c_int {
    // SAFETY: called by the collector with a `Ready`.
    unsafe {
        give_back(object);
        ffi::Py_XDECREF(clear_value(object));
    }
    0
}

unsafe extern "C" fn dealloc(object: *mut ffi::PyObject) {
    // SAFETY: called by the interpreter when the count reached zero.
    unsafe {
        ffi::PyObject_GC_UnTrack(object.cast());
        give_back(object);
        let value = clear_value(object);
        #[cfg(all(Py_3_12, not(Py_GIL_DISABLED)))]
        if (*object.cast::<Ready>()).lent {
            stop::forget();
        }
        pool::give_back(object);
        // Last, because a finaliser may run Python code that takes from the pool.
        ffi::Py_XDECREF(value);
    }
}

unsafe extern "C" fn none(_: *mut ffi::PyObject, _: *mut c_void) -> *mut ffi::PyObject {
    // SAFETY: attached; None is a new reference.
    unsafe {
        ffi::Py_INCREF(ffi::Py_None());
        ffi::Py_None()
    }
}

unsafe extern "C" fn running(_: *mut ffi::PyObject, _: *mut c_void) -> *mut ffi::PyObject {
    // SAFETY: attached; False is a new reference.
    unsafe {
        ffi::Py_INCREF(ffi::Py_False());
        ffi::Py_False()
    }
}

const fn method(
    name: &'static std::ffi::CStr,
    function: ffi::PyCFunction,
    flags: c_int,
    doc: &'static std::ffi::CStr,
) -> ffi::PyMethodDef {
    ffi::PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer { PyCFunction: function },
        ml_flags: flags,
        ml_doc: doc.as_ptr(),
    }
}

const fn getter(name: &'static std::ffi::CStr, get: ffi::getter) -> ffi::PyGetSetDef {
    ffi::PyGetSetDef {
        name: name.as_ptr(),
        get: Some(get),
        set: None,
        doc: ptr::null(),
        closure: ptr::null_mut(),
    }
}

const fn slot(slot: c_int, pfunc: *mut c_void) -> ffi::PyType_Slot {
    ffi::PyType_Slot { slot, pfunc }
}

/// Makes a type that is awaited as a coroutine is, of objects of this size; never freed.
fn make_type<'py>(
    py: Python<'py>,
    name: &'static std::ffi::CStr,
    size: usize,
    methods: Vec<ffi::PyMethodDef>,
    getters: Vec<ffi::PyGetSetDef>,
    slots: Vec<ffi::PyType_Slot>,
) -> PyResult<Bound<'py, PyAny>> {
    // The definitions must outlive the type.
    let methods = methods.into_iter().chain([ffi::PyMethodDef::zeroed()]);
    let methods = Box::leak(methods.collect::<Box<[_]>>());
    let getters = getters.into_iter().chain([ffi::PyGetSetDef::default()]);
    let getters = Box::leak(getters.collect::<Box<[_]>>());
    let common = [
        slot(ffi::Py_tp_iter, itself as *mut c_void),
        slot(ffi::Py_am_await, itself as *mut c_void),
        slot(ffi::Py_tp_methods, methods.as_mut_ptr().cast()),
        slot(ffi::Py_tp_getset, getters.as_mut_ptr().cast()),
        slot(0, ptr::null_mut()),
    ];
    let slots = Box::leak(slots.into_iter().chain(common).collect::<Box<[_]>>());
    let mut spec = ffi::PyType_Spec {
        name: name.as_ptr(),
        basicsize: size as c_int,
        itemsize: 0,
        flags: (ffi::Py_TPFLAGS_DEFAULT
            | ffi::Py_TPFLAGS_HAVE_GC
            | ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION
            | ffi::Py_TPFLAGS_IMMUTABLETYPE) as u32,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: attached; the specification and all it points to live for ever.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyType_FromSpec(&raw mut spec)) }
}

/// Makes the types; called once at import.
pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    let methods = vec![
        method(c"send", send, ffi::METH_O, c"Hands the value over by raising StopIteration."),
        method(c"throw", throw, ffi::METH_VARARGS, c"Raises the given exception here."),
        method(c"close", close, ffi::METH_NOARGS, c"Drops the value."),
    ];
    let getters =
        vec![getter(c"cr_await", none), getter(c"cr_frame", none), getter(c"cr_running", running)];
    let slots = vec![
        slot(ffi::Py_tp_dealloc, dealloc as *mut c_void),
        slot(ffi::Py_tp_traverse, traverse as *mut c_void),
        slot(ffi::Py_tp_clear, clear as *mut c_void),
        slot(ffi::Py_tp_iternext, iternext as *mut c_void),
        slot(ffi::Py_am_send, am_send as *mut c_void),
    ];
    let name = c"ferrogate._core.Ready";
    let class = make_type(m.py(), name, size_of::<Ready>(), methods, getters, slots)?;
    if !TYPE.load(Ordering::Relaxed).is_null() {
        return Err(PyImportError::new_err(
            "ferrogate._core loads into one interpreter of a process, and another one has it",
        ));
    }
    m.add("Ready", &class)?;
    TYPE.store(class.into_ptr().cast(), Ordering::Relaxed);
    driven::register(m)
}
