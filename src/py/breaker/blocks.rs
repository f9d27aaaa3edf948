//! The `with` blocks that are open, and the permit of each.
//!
//! One breaker serves all threads and tasks, and an `__exit__` does not say which `__enter__` it
//! belongs to. But the interpreter calls both from the frame that the block stands in, whatever
//! task or thread resumes it, and within one frame blocks nest. Only where somebody stands between
//! (an `ExitStack`) frames differ: then the thread's newest block ends, as those nest too.

use std::collections::BTreeMap;

use pyo3::prelude::*;

use crate::core::breaker::Permit;
use crate::core::sync::Mutex;

/// So many blocks are remembered. Those that were entered by hand and never left would pile up.
const MOST: usize = 65_536;

/// Which block: its frame's address, never looked into, and its number.
type Place = (usize, u64);

#[derive(Default)]
pub(super) struct Blocks(Mutex<Open>);

#[derive(Default)]
struct Open {
    blocks: BTreeMap<Place, (usize, Permit)>,
    next: u64,
}

/// The frame that is running.
fn frame(_: Python<'_>) -> usize {
    // SAFETY: attached; the borrowed frame is only told from others.
    unsafe { pyo3::ffi::PyEval_GetFrame() as usize }
}

/// Something that only this thread has as long as it lives.
fn thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here) as usize)
}

impl Blocks {
    /// A block begins; its number, and the oldest one's permit if there were too many.
    pub(super) fn enter(&self, py: Python<'_>, permit: Permit) -> (u64, Option<Permit>) {
        // Before the lock: it may make an object.
        let (frame, thread) = (frame(py), thread());
        let mut open = self.0.lock();
        let number = open.next;
        open.next += 1;
        let forgotten = if open.blocks.len() >= MOST {
            let oldest = open.blocks.keys().copied().min_by_key(|&(_, number)| number);
            oldest.and_then(|place| open.blocks.remove(&place))
        } else {
            None
        };
        open.blocks.insert((frame, number), (thread, permit));
        (number, forgotten.map(|(_, permit)| permit))
    }

    /// A block ends: its permit, if it is not one that was forgotten.
    pub(super) fn leave(&self, py: Python<'_>) -> Option<Permit> {
        let frame = frame(py);
        let mut open = self.0.lock();
        let of_frame = open.blocks.range((frame, 0)..=(frame, u64::MAX)).next_back();
        let place = match of_frame {
            Some((place, _)) => *place,
            None => open.newest_of(thread())?,
        };
        open.blocks.remove(&place).map(|(_, permit)| permit)
    }

    /// A block that never began after all.
    pub(super) fn take(&self, wanted: u64) -> Option<Permit> {
        let mut open = self.0.lock();
        let place = open.blocks.keys().copied().find(|&(_, number)| number == wanted)?;
        open.blocks.remove(&place).map(|(_, permit)| permit)
    }

    /// In the child of a fork only this thread lives, and only its blocks end.
    pub(super) fn after_fork(&self) {
        let here = thread();
        self.0.lock().blocks.retain(|_, (thread, _)| *thread == here);
    }
}

impl Open {
    fn newest_of(&self, here: usize) -> Option<Place> {
        self.blocks
            .iter()
            .map(|(&place, &(thread, _))| (thread == here, place.1, place))
            .max()
            .map(|(.., place)| place)
    }
}
