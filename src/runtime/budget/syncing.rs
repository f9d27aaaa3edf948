//! Has the disk write what was committed, in a thread of its own.
//!
//! `SQLite` could do so with each commit, under its lock: 4 ms on the development machine, where a
//! commit takes 15 µs. Its log (`-wal`) is an ordinary file to the disk, and it takes no locks on
//! it, so another descriptor may come and go.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::core::clock::{Clock, nanos_from_duration};
use crate::core::sync::Mutex;

/// From one writing to the next, at least. Who commits meanwhile waits for it: at 20 a second one
/// commit in ten took 170 µs and more.
const PAUSE: Duration = Duration::from_secs(1);

/// The thread, which starts when there is something to write.
pub(super) struct Syncing {
    work: Arc<Work>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Work {
    log: PathBuf,
    /// Something was committed that the disk may not have.
    dirty: AtomicBool,
    stop: AtomicBool,
    /// Whether the thread writes what there is before it ends.
    finishing: AtomicBool,
}

impl Syncing {
    pub(super) fn of(path: &Path) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let work = Arc::new(Work {
            log: log.into(),
            dirty: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            finishing: AtomicBool::new(false),
        });
        Self { work, thread: Mutex::new(None) }
    }

    /// Something was committed.
    pub(super) fn ask(&self) {
        if !self.work.dirty.swap(true, Ordering::AcqRel) {
            self.go_on();
        }
    }

    /// Wakes the thread if there is something to write; starts it if there is none.
    pub(super) fn go_on(&self) {
        if !self.work.dirty.load(Ordering::Acquire) {
            return;
        }
        let mut thread = self.thread.lock();
        if let Some(thread) = thread.as_ref().filter(|thread| !thread.is_finished()) {
            return thread.thread().unpark();
        }
        self.work.stop.store(false, Ordering::Release);
        let work = Arc::clone(&self.work);
        match thread::Builder::new().name("ferrogate-budget".into()).spawn(move || work.run()) {
            Ok(started) => *thread = Some(started),
            // The next commit tries again.
            Err(_) => self.work.dirty.store(false, Ordering::Release),
        }
    }

    /// Ends the thread and waits for it; what is not written is, if `finishing`.
    pub(super) fn stop(&self, finishing: bool) {
        self.work.stop.store(true, Ordering::Release);
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            thread.thread().unpark();
            let _ = thread.join();
        }
        if finishing {
            self.work.write();
        }
    }

    /// The thread ends by itself, once it has written what there is.
    pub(super) fn abandon(&self) {
        self.work.finishing.store(true, Ordering::Release);
        self.work.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().take() {
            thread.thread().unpark();
        }
    }

    /// In a forked child: the thread is the parent's.
    pub(super) fn forget(&self) {
        std::mem::forget(self.thread.lock().take());
        self.work.dirty.store(false, Ordering::Release);
    }
}

impl Work {
    fn run(&self) {
        while !self.stop.load(Ordering::Acquire) {
            if self.write() {
                self.rest();
            } else {
                thread::park();
            }
        }
        if self.finishing.load(Ordering::Acquire) {
            self.write();
        }
    }

    /// Writes what there is; false if there was nothing.
    fn write(&self) -> bool {
        let dirty = self.dirty.swap(false, Ordering::AcqRel);
        if dirty && self.sync().is_err() {
            // What the disk does not take now it may take later.
            self.dirty.store(true, Ordering::Release);
        }
        dirty
    }

    fn sync(&self) -> io::Result<()> {
        match File::open(&self.log) {
            Ok(log) => log.sync_data(),
            // It has gone into the file, which SQLite has had written.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// So that a disk is not kept busy with one commit after the other.
    fn rest(&self) {
        let until = Clock::System.now() + nanos_from_duration(PAUSE);
        while !self.stop.load(Ordering::Acquire) {
            let left = until.saturating_sub(Clock::System.now());
            if left == 0 {
                return;
            }
            thread::park_timeout(Duration::from_nanos(left));
        }
    }
}
