//! Recycled instances: allocating and freeing a collectable object costs
//! more than the rest of the hit. The GIL protects the pool, so a
//! free-threaded build goes without.
use super::{Ready, ffi};

#[cfg(not(Py_GIL_DISABLED))]
mod free {
    use std::cell::UnsafeCell;

    pub(super) const CAPACITY: usize = 64;

    pub(super) struct Pool(pub(super) UnsafeCell<(usize, [*mut super::ffi::PyObject; CAPACITY])>);

    // SAFETY: only touched while attached; without a free-threaded build the GIL serialises that.
    unsafe impl Sync for Pool {}

    pub(super) static POOL: Pool = Pool(UnsafeCell::new((0, [std::ptr::null_mut(); CAPACITY])));
}

#[cfg(not(Py_GIL_DISABLED))]
unsafe extern "C" {
    // Part of every CPython's exported API (it is what `PyObject_Init` calls); resets the
    // reference count and keeps the debug build's and tracemalloc's books.
    fn _Py_NewReference(object: *mut ffi::PyObject);
}

/// An untracked instance with a reference count of one, or null with an error set.
///
/// # Safety
/// Attached; `class` is the `Ready` type.
#[inline]
pub(super) unsafe fn take(class: *mut ffi::PyTypeObject) -> *mut ffi::PyObject {
    #[cfg(not(Py_GIL_DISABLED))]
    {
        // SAFETY: the GIL is held, and nothing below runs Python code.
        unsafe {
            let (len, items) = &mut *free::POOL.0.get();
            if *len > 0 {
                *len -= 1;
                let object = items[*len];
                _Py_NewReference(object);
                return object;
            }
        }
    }
    // SAFETY: attached, and `class` is a collectable heap type; its instances own a reference to it.
    unsafe {
        let object: *mut Ready = ffi::PyObject_GC_New(class);
        if !object.is_null() {
            (*object).value = std::ptr::null_mut();
            (*object).owner = std::ptr::null_mut();
        }
        object.cast()
    }
}

/// Takes back an untracked instance whose fields are cleared.
///
/// # Safety
/// Attached; called from `tp_dealloc` with a reference count of zero.
#[inline]
pub(super) unsafe fn give_back(object: *mut ffi::PyObject) {
    #[cfg(not(Py_GIL_DISABLED))]
    {
        // SAFETY: as in `take`.
        unsafe {
            let (len, items) = &mut *free::POOL.0.get();
            if *len < free::CAPACITY {
                items[*len] = object;
                *len += 1;
                return;
            }
        }
    }
    // SAFETY: the object was made by `PyObject_GC_New`; heap instances own a reference to their type.
    unsafe {
        let class = ffi::Py_TYPE(object);
        ffi::PyObject_GC_Del(object.cast());
        ffi::Py_DECREF(class.cast());
    }
}
