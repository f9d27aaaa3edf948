//! How deep, how large and how long a walk may become.

use pyo3::prelude::*;

use super::failure::{Failure, Kind};
use super::standard::prepare;
use super::walk::{Walk, Walker};
use crate::py::stack::is_short;

/// Deeper structures are refused; Python's own recursion limit is of this order.
pub(super) const MAX_DEPTH: usize = 128;

/// Those who nest less are not asked how much stack they have left.
pub(super) const SHALLOW: usize = 12;

/// What must be left of the thread's stack for one more level, and the Python code in it.
const STACK_BYTES: usize = 32 << 10;

/// A larger encoding is refused: a list that holds another one twice, and so on for thirty
/// levels, has a few hundred bytes of objects and gigabytes of encoding.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// How much is written between two looks at Ctrl-C and [`MAX_BYTES`].
pub(super) const CHECK_BYTES: usize = 256 << 10;

/// Text and the like from here on is refused before it is copied, not after.
pub(super) const LONG_BYTES: usize = 64 << 10;

impl Walker<'_> {
    #[cold]
    #[inline(never)]
    pub(super) fn may_go_deeper(&self, value: &Bound<'_, PyAny>) -> Walk {
        let limit = self.open.len();
        if limit == SHALLOW {
            // While there is room: an import takes more stack than anything else here.
            prepare(value.py())?;
        }
        if limit >= MAX_DEPTH || is_short(STACK_BYTES) {
            // A subclass of a container is on top already, as what it is.
            let address = value.as_ptr() as usize;
            let below = self.open.len() - usize::from(self.open.last() == Some(&address));
            let cycle = self.open[..below].contains(&address);
            return Err(Failure::of(Kind::TooDeep { cycle, limit }));
        }
        Ok(())
    }

    /// Looks now and then whether the encoding is too large, or the user has pressed Ctrl-C.
    /// May run Python code: the handlers of signals.
    #[inline]
    pub(super) fn check(&mut self, py: Python<'_>) -> Walk {
        if self.encoder.position() < self.unchecked { Ok(()) } else { self.checkpoint(py) }
    }

    #[cold]
    #[inline(never)]
    fn checkpoint(&mut self, py: Python<'_>) -> Walk {
        self.room_for(0)?;
        self.unchecked = self.encoder.position() + CHECK_BYTES;
        Ok(py.check_signals()?)
    }

    /// Refuses what would make the encoding too large.
    #[inline]
    pub(super) fn room_for(&self, len: usize) -> Walk {
        if self.encoder.position() + len > MAX_BYTES {
            return Err(Failure::of(Kind::TooLarge));
        }
        Ok(())
    }
}
