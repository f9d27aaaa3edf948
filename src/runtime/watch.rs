//! What an event loop watches for us: one descriptor, behind it any number of them.
//!
//! A reply that the loop itself can read comes home without another thread: where
//! threads hand it over, each of them has to be woken first.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Weak;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::core::sync::Mutex;

/// Something that an event loop can read from.
pub trait Source: Send + Sync {
    /// Reads what is there. Called attached, with no lock held; it does not block.
    fn ready(&self);
}

/// One descriptor in place of many; it goes with its event loop.
pub struct Watch {
    epoll: OwnedFd,
    sources: Mutex<Vec<Weak<dyn Source>>>,
}

impl Watch {
    /// Watches nothing.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, sources: Mutex::default() })
    }

    /// What the loop is to watch for reading.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Wakes the loop when there is something to read.
    ///
    /// # Errors
    /// The system's.
    pub fn wake_by(&self, what: impl AsFd) -> io::Result<()> {
        epoll::add(&self.epoll, what, EventData::new_u64(0), EventFlags::IN)?;
        Ok(())
    }

    /// Has the loop read from `source` when there is something to read from `what`.
    ///
    /// # Errors
    /// The system's.
    pub fn add(&self, what: impl AsFd, source: &Weak<dyn Source>) -> io::Result<()> {
        self.wake_by(what)?;
        let mut sources = self.sources.lock();
        sources.retain(|known| known.strong_count() > 0 && !known.ptr_eq(source));
        sources.push(Weak::clone(source));
        Ok(())
    }

    /// Leaves it to others.
    pub fn remove(&self, what: impl AsFd, source: &Weak<dyn Source>) {
        // It is not there any more if it was closed.
        let _ = epoll::delete(&self.epoll, what);
        self.sources.lock().retain(|known| !known.ptr_eq(source));
    }

    /// Has all sources read. Called attached, by the loop that watches.
    pub fn look(&self) {
        let sources = self.sources.lock().clone();
        for source in sources.iter().filter_map(Weak::upgrade) {
            source.ready();
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
