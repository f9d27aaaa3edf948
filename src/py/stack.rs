//! How much of the thread's stack is left.

use std::cell::Cell;

/// Whether less than `bytes` of this thread's stack are left; false where nobody knows.
pub(crate) fn is_short(bytes: usize) -> bool {
    thread_local! {
        static END: Cell<Option<usize>> = const { Cell::new(None) };
    }
    let end = END.get().unwrap_or_else(|| {
        let end = end();
        END.set(Some(end));
        end
    });
    let here = 0_u8;
    // A coroutine library may have moved us to a stack of its own: then this says nothing.
    (&raw const here as usize).checked_sub(end).is_some_and(|left| left < bytes)
}

/// The lowest address that this thread's stack may grow to; zero if unknown.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn end() -> usize {
    let mut attributes = std::mem::MaybeUninit::uninit();
    let (mut lowest, mut size, mut guard) = (std::ptr::null_mut(), 0, 0);
    // SAFETY: the attributes are read after they were written, and destroyed once.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return 0;
        }
        let mut attributes = attributes.assume_init();
        let failed =
            libc::pthread_attr_getstack(&raw const attributes, &raw mut lowest, &raw mut size)
                | libc::pthread_attr_getguardsize(&raw const attributes, &raw mut guard);
        libc::pthread_attr_destroy(&raw mut attributes);
        if failed != 0 {
            return 0;
        }
    }
    // The guard page lies within what glibc calls the stack.
    lowest as usize + guard
}

/// The lowest address that this thread's stack may grow to.
#[cfg(target_vendor = "apple")]
fn end() -> usize {
    // SAFETY: both only read what belongs to this thread.
    unsafe {
        let thread = libc::pthread_self();
        libc::pthread_get_stackaddr_np(thread) as usize - libc::pthread_get_stacksize_np(thread)
    }
}

/// Unknown.
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn end() -> usize {
    0
}
