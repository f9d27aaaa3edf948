//! Daemon threads at interpreter exit.
//!
//! Up to `CPython` 3.13 a thread that wants the GIL while the interpreter
//! finalises is ended by `pthread_exit`. On glibc that is a forced unwind of
//! its stack. It reaches us when one of our bodies called Python (a listener, a
//! weigher, a loader, a finaliser): `PyO3` declares those calls as unable to
//! unwind, so Rust's personality routine answers "fatal" and the process
//! aborts. Measured before this file: exit code 134 in every run in which a
//! daemon thread was inside an `on_evict` listener or a cached loader.
//!
//! What `CPython` 3.14 does is to let such a thread hang until the process is
//! gone, and what `PyO3` does where it takes the GIL itself. Here the same holds
//! for every Rust frame of this library: the personality routine is reached
//! through one pointer, and a routine of ours in front of it never returns from
//! a forced unwind. Panics go on to Rust's own.

#[cfg(all(
    target_os = "linux",
    target_env = "gnu",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(Py_3_14)
))]
pub(crate) use self::glibc::hang_instead;

/// Elsewhere `pthread_exit` does not unwind, or `CPython` hangs the thread itself.
#[cfg(not(all(
    target_os = "linux",
    target_env = "gnu",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(Py_3_14)
)))]
pub(crate) fn hang_instead() {}

#[cfg(all(
    target_os = "linux",
    target_env = "gnu",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(Py_3_14)
))]
mod glibc {
    use std::arch::asm;
    use std::ffi::{c_int, c_void};
    use std::sync::Once;
    use std::sync::atomic::{AtomicPtr, Ordering};
    use std::time::Duration;

    use rustix::mm::{MprotectFlags, mprotect};
    use rustix::param::page_size;

    /// `_UA_FORCE_UNWIND` of the Itanium C++ ABI.
    const FORCE_UNWIND: c_int = 8;

    type Personality = unsafe extern "C" fn(c_int, c_int, u64, *mut c_void, *mut c_void) -> c_int;

    /// Rust's own routine.
    static ORIGINAL: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

    /// From now on a thread whose forced unwind reaches a Rust frame hangs.
    pub(crate) fn hang_instead() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let slot: *mut AtomicPtr<c_void>;
            // SAFETY: takes an address. The compiler puts this hidden symbol beside the unwind
            // tables of every object that has some; all frames of this library refer to it.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                asm!(
                    "lea {}, [rip + DW.ref.rust_eh_personality]",
                    out(reg) slot,
                    options(nomem, nostack, pure, preserves_flags)
                );
            }
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            unsafe {
                asm!(
                    "adrp {0}, DW.ref.rust_eh_personality",
                    "add {0}, {0}, :lo12:DW.ref.rust_eh_personality",
                    out(reg) slot,
                    options(nomem, nostack, pure, preserves_flags)
                );
            }
            let page = slot.map_addr(|address| address & !(page_size() - 1));
            // It lies in `.data`; a linker that made it read-only after relocation is asked first.
            // SAFETY: one page of our own data, which stays readable throughout.
            let writable = unsafe {
                mprotect(page.cast(), page_size(), MprotectFlags::READ | MprotectFlags::WRITE)
            };
            if writable.is_err() {
                return;
            }
            // SAFETY: an aligned pointer that lives as long as the library; the original is stored
            // before ours can be called, and a reader sees one or the other.
            unsafe {
                ORIGINAL.store((*slot).load(Ordering::Acquire), Ordering::Release);
                (*slot).store(personality as *mut c_void, Ordering::Release);
            }
        });
    }

    /// In front of Rust's routine.
    ///
    /// # Safety
    /// Called by the unwinder.
    unsafe extern "C" fn personality(
        version: c_int,
        actions: c_int,
        class: u64,
        exception: *mut c_void,
        context: *mut c_void,
    ) -> c_int {
        if actions & FORCE_UNWIND != 0 {
            // Without the GIL and, by the lock law, without any lock of ours: nobody waits for us.
            loop {
                std::thread::sleep(Duration::from_hours(24));
            }
        }
        // SAFETY: stored before this routine was installed, and of this type.
        unsafe {
            let original: Personality = std::mem::transmute(ORIGINAL.load(Ordering::Acquire));
            original(version, actions, class, exception, context)
        }
    }
}
