//! The tier in one `SQLite` file, which the processes of one machine share.
//!
//! One thread writes: it takes all writes that wait and commits them together.
//! Readers have connections of their own, as WAL lets them read beside the
//! writer; a thread that waits anyway reads in place. A third kind of thread
//! watches for other processes' commits and removes from the near cache what
//! they changed, every 20 ms.
//!
//! Every process may write: `SQLite`'s lock decides whose turn it is.

pub(in crate::runtime) mod commit;
mod figures;
mod file;
pub(crate) mod log;
mod read;
pub(in crate::runtime) mod schema;
mod shared;
#[cfg(test)]
mod tests;
mod upkeep;
mod watcher;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use schema::OpenError;
use shared::Shared;

use super::lifecycle::{Ended, Tenant, admit};
use super::near::Near;
use super::notices::Notices;
use super::owed::Owed;
use super::tier::{Done, Outcome, Part, Request, Tier, TierError};
use crate::core::clock::Clock;

/// What a file is opened with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file, absolute.
    pub path: PathBuf,
    /// Bytes of all values at most.
    pub max_bytes: u64,
    /// Values at most.
    pub max_entries: u64,
    /// So long a process that died keeps the others from loading instead.
    pub lease: Duration,
    /// So long a commit waits for other processes' commits.
    pub busy: Duration,
    /// Connections that read for event loops.
    pub readers: usize,
}

/// A tier in a `SQLite` file.
pub struct SqliteTier(Arc<Shared>);

impl SqliteTier {
    /// A tier that is told about forks from now on, and that opens its file next. To be called
    /// attached.
    ///
    /// # Errors
    /// The runtime has ended.
    pub fn new(
        config: Config,
        near: Arc<Near>,
        clock: Clock,
        notices: Arc<Notices>,
        owed: Arc<Owed>,
    ) -> Result<Self, Ended> {
        let shared = Shared::new(config, near, clock, notices, owed);
        let tenant: Arc<dyn Tenant> = shared.clone();
        admit(Arc::downgrade(&tenant))?;
        // Until `open` is through.
        shared.inside.fetch_add(1, Ordering::AcqRel);
        Ok(Self(shared))
    }

    /// Opens the file, once; its threads start when they are first needed. Not attached: it may
    /// wait for other processes.
    ///
    /// # Errors
    /// It is not ours, of another version, on a network, or cannot be opened. One that is broken
    /// is moved aside, and a fresh one opened.
    pub fn open(&self) -> Result<(), OpenError> {
        let opened = self.0.first_look();
        self.leave();
        opened
    }
}

impl Drop for SqliteTier {
    /// Its threads finish what is queued and end by themselves; they know the rest.
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl Tenant for SqliteTier {
    fn quiesce(&self) {
        self.0.quiesce();
    }

    fn resume(&self) {
        self.0.resume();
    }

    fn forget(&self) {
        self.0.forget();
    }

    fn close(&self, patience: Duration) {
        self.0.close(patience);
    }
}

impl Tier for SqliteTier {
    fn submit(&self, request: Request, done: Done) {
        let shared = &self.0;
        if shared.closed.load(Ordering::Acquire) {
            return done.end(Err(TierError::Ended));
        }
        let queue = match &request {
            Request::Get(_) | Request::Exists(_) => &shared.reads,
            Request::Await(..) => &shared.awaits,
            Request::Release(..) => {
                shared.writes.push_over((request, done));
                return shared.ensure_running();
            }
            _ => &shared.writes,
        };
        if let Err((_, done)) = queue.push((request, done)) {
            return done.end(Err(TierError::Away("too many requests wait for it".into())));
        }
        shared.ensure_running();
    }

    fn enter(&self, request: &Request) -> Option<Part> {
        let part = if request.reads() { Part::Answer } else { Part::Help };
        (!matches!(request, Request::Await(..)) && self.0.enter()).then_some(part)
    }

    fn enter_to_close(&self) -> bool {
        self.0.enter_to_close()
    }

    fn submit_helped(&self, request: Request, done: Done) -> bool {
        match self.0.writes.push_quietly((request, done)) {
            Ok(()) => self.0.ensure_running(),
            Err((_, done)) => {
                done.end(Err(TierError::Away("too many requests wait for it".into())));
            }
        }
        false
    }

    fn help(&self) {
        writer::help(&self.0);
    }

    fn answer_here(&self, request: &Request) -> Outcome {
        self.0.read_here(request)
    }

    fn leave(&self) {
        self.0.inside.fetch_sub(1, Ordering::AcqRel);
    }

    fn pays(&self) -> bool {
        true
    }

    fn closing(&self, patience: Duration) -> bool {
        self.0.closing(patience)
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        self.0.figures.all()
    }
}
