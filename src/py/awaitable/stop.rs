//! One `StopIteration` for all awaits (creating one costs 120 ns). It is only touched while its
//! reference count shows that nobody else holds it, and is emptied again
//! when the `Ready` that used it goes (right after `await` took the
//! value), so it keeps no value alive.
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::ffi;

static SHARED: AtomicPtr<ffi::PyStopIterationObject> = AtomicPtr::new(ptr::null_mut());

/// Raises with `value` (stolen); true if the shared exception carries it.
///
/// # Safety
/// Attached, no exception set, `value` owned and non-null.
#[inline]
pub(super) unsafe fn raise(value: *mut ffi::PyObject) -> bool {
    // SAFETY: the exception is exclusively ours when its count is one; no Python code runs
    // between the last check and the hand-over.
    unsafe {
        let shared = usable();
        if shared.is_null() {
            super::raise_new(value);
            return false;
        }
        let none = std::mem::replace(&mut (*shared).value, value);
        ffi::Py_DECREF(none);
        ffi::Py_INCREF(shared.cast());
        ffi::PyErr_SetRaisedException(shared.cast());
        true
    }
}

/// The shared exception, empty and ours alone, or null while somebody holds it.
#[inline]
unsafe fn usable() -> *mut ffi::PyStopIterationObject {
    // SAFETY: attached; reads the fields of a live exception.
    unsafe {
        let shared = SHARED.load(Ordering::Relaxed);
        if !shared.is_null()
            && ffi::Py_REFCNT(shared.cast()) == 1
            && (*shared).value == ffi::Py_None()
            && (*shared).traceback.is_null()
            && (*shared).context.is_null()
        {
            return shared;
        }
        renew(shared)
    }
}

/// First use, or somebody caught the shared exception, kept it for a while and let go.
#[cold]
unsafe fn renew(seen: *mut ffi::PyStopIterationObject) -> *mut ffi::PyStopIterationObject {
    // SAFETY: attached; the old exception leaves the static before its drop can run anything.
    unsafe {
        if !seen.is_null() && ffi::Py_REFCNT(seen.cast()) > 1 {
            return ptr::null_mut();
        }
        SHARED.store(ptr::null_mut(), Ordering::Relaxed);
        ffi::Py_XDECREF(seen.cast());
        let fresh = ffi::PyObject_CallNoArgs(ffi::PyExc_StopIteration);
        if fresh.is_null() {
            ffi::PyErr_Clear();
            return ptr::null_mut();
        }
        // That drop or that allocation may have run code that awaited, and so renewed it too.
        let other = SHARED.swap(fresh.cast(), Ordering::Relaxed);
        ffi::Py_XDECREF(other.cast());
        fresh.cast()
    }
}

/// Empties the shared exception if it is ours again.
///
/// # Safety
/// Attached.
#[inline]
pub(super) unsafe fn forget() {
    // SAFETY: see `raise`.
    unsafe {
        let shared = SHARED.load(Ordering::Relaxed);
        if !shared.is_null() && ffi::Py_REFCNT(shared.cast()) == 1 {
            let none = ffi::Py_None();
            ffi::Py_INCREF(none);
            let old = std::mem::replace(&mut (*shared).value, none);
            ffi::Py_XDECREF(old);
        }
    }
}
