//! What the threads of a tier share, and how they start and end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::commit::fresh_token;
use super::figures::Figures;
use super::file::{FIRST_EPOCH, Reader};
use super::read::{find, row_of};
use super::schema::{OpenError, Patience, is_broken};
use super::writer::{self, Writer};
use super::{Config, watcher};
use crate::core::clock::{Clock, Nanos, SECOND, unix_millis};
use crate::core::sync::Mutex;
use crate::runtime::lifecycle::{Tenant, may_run};
use crate::runtime::near::Near;
use crate::runtime::notices::Notices;
use crate::runtime::owed::Owed;
use crate::runtime::queue::{Bounds, Queue, Taken};
use crate::runtime::tier::{Done, Outcome, Reply, Request, TierError};

/// Requests that may wait for each kind of thread; values are counted before compression.
const QUEUED: Bounds = Bounds { items: 100_000, bytes: 256 << 20 };

/// Requests that one look into a queue takes, and one commit writes: the others wait as long.
pub(super) const BATCH: Bounds = Bounds { items: 512, bytes: 16 << 20 };

/// All of them.
pub(super) const EVERYTHING: Bounds = Bounds { items: usize::MAX, bytes: usize::MAX };

/// An entry's last use is noted when the note is older, in milliseconds: eviction is
/// approximate anyway, and reading stays reading.
const USE_NOTED: i64 = 30_000;

/// Uses that wait to be noted.
const MAX_TOUCHED: usize = 1024;

/// How long an idle reader sleeps before it looks whether it is still wanted.
const IDLE: Duration = Duration::from_mins(1);

/// So long values are served after the last look for what others changed: two seconds.
pub(super) const TRUST: Nanos = 2 * SECOND;

/// Connections that are kept for threads that read in place: each may hold 8 MB of pages.
const SPARE: usize = 8;

/// So long who reads or opens the file waits for others while a fork waits.
const GRACE: Duration = Duration::from_millis(250);

/// Between two looks whether the threads have ended.
const JOINING: Duration = Duration::from_micros(200);

/// Before a thread that has failed is begun again.
const RELAPSE: Duration = Duration::from_millis(100);

/// A request and where its answer goes.
pub(super) type Ask = (Request, Done);

fn weight((request, _): &Ask) -> usize {
    match request {
        Request::Set { parcel, .. } => parcel.body.bytes().len(),
        _ => 0,
    }
}

/// What the threads share.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) near: Arc<Near>,
    pub(super) clock: Clock,
    pub(super) notices: Arc<Notices>,
    /// What the file is to be told before anything else is written.
    pub(super) owed: Arc<Owed>,
    /// Tells this process's changes from others'.
    pub(super) owner: AtomicI64,
    pub(super) reads: Queue<Ask>,
    pub(super) writes: Queue<Ask>,
    pub(super) awaits: Queue<Ask>,
    pub(super) closed: AtomicBool,
    /// Whether the threads finish what is queued before they end.
    pub(super) finishing: AtomicBool,
    /// Threads that read in place just now.
    pub(super) inside: AtomicU32,
    /// Counts the files: connections to an earlier one are of no use.
    pub(super) epoch: AtomicU64,
    /// The last change that the near cache knows of.
    pub(super) seen: AtomicI64,
    /// The file that `epoch` stands for.
    pub(super) opened: Mutex<Option<(u64, u64)>>,
    pub(super) figures: Figures,
    touched: Mutex<Vec<i64>>,
    pub(super) spare: Mutex<Vec<Reader>>,
    /// Whoever has it commits what is queued.
    pub(super) writer: Mutex<Writer>,
    /// Of readers, and of who writes.
    pub(super) patience: Arc<Patience>,
    writing: Arc<Patience>,
    crew: Mutex<Vec<JoinHandle<()>>>,
    running: AtomicBool,
    /// Whether the threads ran when a fork stopped them.
    interrupted: AtomicBool,
    /// Whether the near cache, empty at first, was trusted before anybody had looked.
    trusted: AtomicBool,
    me: Weak<Self>,
}

impl Shared {
    pub(super) fn new(
        config: Config,
        near: Arc<Near>,
        clock: Clock,
        notices: Arc<Notices>,
        owed: Arc<Owed>,
    ) -> Arc<Self> {
        let patience = Patience::of(config.busy, GRACE);
        // What is to be written is put back over a fork.
        let writing = Patience::of(config.busy, Duration::ZERO);
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            config,
            near,
            clock,
            notices,
            owed,
            owner: AtomicI64::new(fresh_token()),
            reads: Queue::new(QUEUED, weight),
            writes: Queue::new(QUEUED, weight),
            awaits: Queue::new(QUEUED, weight),
            closed: AtomicBool::new(false),
            finishing: AtomicBool::new(false),
            inside: AtomicU32::new(0),
            epoch: AtomicU64::new(FIRST_EPOCH),
            seen: AtomicI64::new(0),
            opened: Mutex::new(None),
            figures: Figures::default(),
            touched: Mutex::default(),
            spare: Mutex::default(),
            writer: Mutex::new(Writer::new(Arc::clone(&writing))),
            patience,
            writing,
            crew: Mutex::default(),
            running: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            trusted: AtomicBool::new(false),
        })
    }

    /// Milliseconds since the epoch.
    pub(super) fn now(&self) -> i64 {
        unix_millis(&self.clock)
    }

    /// Starts the threads if there are none and there may be.
    pub(super) fn ensure_running(self: &Arc<Self>) {
        if self.running.load(Ordering::Acquire) {
            return;
        }
        match may_run() {
            Ok(true) => {}
            // In the middle of a fork: `resume` comes.
            Ok(false) => return,
            Err(_) => return self.refuse_all(),
        }
        if let Err(why) = self.start() {
            let error = TierError::Away(format!("no thread could be started: {why}"));
            for queue in [&self.reads, &self.writes, &self.awaits] {
                for (_, done) in queue.drain() {
                    done.end(Err(error.clone()));
                }
            }
        }
    }

    /// Starts all threads, or none.
    fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let mut crew = self.crew.lock();
        if self.running.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        crew.retain(|thread| !thread.is_finished());
        if self.closed.load(Ordering::Acquire) {
            self.running.store(false, Ordering::Release);
            drop(crew);
            self.refuse_all();
            return Ok(());
        }
        for queue in [&self.reads, &self.writes, &self.awaits] {
            queue.stop(false);
        }
        // Once: a process that forks all the time would begin to trust its values again with each
        // start, and never have looked.
        if !self.trusted.swap(true, Ordering::AcqRel) {
            self.has_looked(self.clock.now());
        }
        let spawn = |name: &str, body: fn(&Arc<Self>)| {
            let shared = Arc::clone(self);
            thread::Builder::new().name(name.into()).spawn(move || unfailing(&shared, body))
        };
        let first = [spawn("ferrogate-watch", watcher::run), spawn("ferrogate-write", writer::run)];
        let readers = (0..self.config.readers).map(|_| spawn("ferrogate-read", run_reader));
        for thread in first.into_iter().chain(readers) {
            match thread {
                Ok(thread) => crew.push(thread),
                Err(error) => {
                    self.stop(false);
                    for thread in crew.drain(..) {
                        let _ = thread.join();
                    }
                    self.running.store(false, Ordering::Release);
                    return Err(error);
                }
            }
        }
        if self.closed.load(Ordering::Acquire) {
            // Ended in the meantime: whoever did waits for these threads, which are to end.
            self.stop(true);
        }
        Ok(())
    }

    /// All that others changed until `then` is known.
    pub(super) fn has_looked(&self, then: Nanos) {
        // A manual clock may be advanced by more than that at once.
        if !self.clock.is_manual() {
            self.near.watched_until(then.saturating_add(TRUST));
        }
    }

    fn stop(&self, finishing: bool) {
        self.finishing.store(finishing, Ordering::Release);
        for queue in [&self.reads, &self.writes, &self.awaits] {
            queue.stop(true);
        }
    }

    /// Answers everything that is queued: there is nobody to do it.
    fn refuse_all(&self) {
        for queue in [&self.reads, &self.writes, &self.awaits] {
            for (_, done) in queue.drain() {
                done.end(Err(TierError::Ended));
            }
        }
    }

    /// The service is gone: the threads finish what is queued, and end.
    pub(super) fn abandon(&self) {
        self.closed.store(true, Ordering::Release);
        self.stop(true);
    }

    /// A read in the calling thread.
    pub(super) fn read_here(&self, request: &Request) -> Outcome {
        let spare = self.spare.lock().pop();
        let mut reader = spare.filter(|spare| spare.epoch == self.epoch.load(Ordering::Acquire));
        let outcome = self.read(&mut reader, request);
        if let Some(reader) = reader {
            let mut spare = self.spare.lock();
            if spare.len() < SPARE {
                spare.push(reader);
            }
        }
        outcome
    }

    pub(super) fn enter(self: &Arc<Self>) -> bool {
        if self.closed.load(Ordering::Acquire) || may_run() != Ok(true) {
            return false;
        }
        // Also who only reads in place needs to be told of changes.
        self.ensure_running();
        self.inside.fetch_add(1, Ordering::AcqRel);
        true
    }

    pub(super) fn enter_to_close(&self) -> bool {
        let may = may_run() == Ok(true);
        if may {
            self.inside.fetch_add(1, Ordering::AcqRel);
        }
        may
    }

    /// Answers a [`Request::Get`] or [`Request::Exists`].
    pub(super) fn read(&self, reader: &mut Option<Reader>, request: &Request) -> Outcome {
        let (Request::Get(place) | Request::Exists(place)) = request else {
            return Ok(Reply::Missing);
        };
        let epoch = self.epoch.load(Ordering::Acquire);
        if reader.as_ref().is_none_or(|reader| reader.epoch != epoch) {
            *reader = None;
            *reader = Some(self.connect().map_err(|error| self.suspect(&error, epoch))?);
        }
        let Some(open) = reader else { return Err(TierError::Lost) };
        let now = self.now();
        let living = match find(&open.connection, place, now) {
            Ok(living) => living,
            Err(error) => {
                *reader = None;
                return Err(self.suspect(&error.into(), epoch));
            }
        };
        if let Some(living) = &living
            && now - living.used > USE_NOTED
        {
            let mut touched = self.touched.lock();
            if touched.len() < MAX_TOUCHED {
                touched.push(row_of(place));
            }
        }
        Ok(match (request, living) {
            (Request::Exists(_), living) => Reply::Was(living.is_some()),
            (_, Some(living)) => Reply::Value(living.found),
            (_, None) => Reply::Missing,
        })
    }

    /// Closes the connections that nobody uses just now.
    pub(super) fn close_spare(&self) {
        let spare = std::mem::take(&mut *self.spare.lock());
        drop(spare);
    }

    /// The uses that are to be noted.
    pub(super) fn touched(&self) -> Vec<i64> {
        std::mem::take(&mut *self.touched.lock())
    }

    /// Waits for the threads, at most for so long; true if none is left. Who is not done stays in
    /// the crew, so that a fork in the meantime waits for it as well.
    fn join(&self, patience: Option<Duration>) -> bool {
        let mut left = patience;
        loop {
            {
                let mut crew = self.crew.lock();
                for finished in crew.extract_if(.., |thread| thread.is_finished()) {
                    let _ = finished.join();
                }
                if crew.is_empty() {
                    self.running.store(false, Ordering::Release);
                    return true;
                }
            }
            if left == Some(Duration::ZERO) {
                return false;
            }
            thread::sleep(JOINING);
            left = left.map(|left| left.saturating_sub(JOINING));
        }
    }

    /// Has the threads finish what is queued, and waits for them; true once they are gone.
    pub(super) fn closing(&self, patience: Duration) -> bool {
        self.closed.store(true, Ordering::Release);
        self.stop(true);
        self.join(Some(patience))
    }
}

impl Tenant for Shared {
    fn quiesce(&self) {
        // First who works in place, and may be about to start threads; nobody else can come in,
        // as the GIL is held and a fork is known to be under way.
        for patience in [&self.patience, &self.writing] {
            patience.end(true);
        }
        while self.inside.load(Ordering::Acquire) > 0 {
            thread::sleep(Duration::from_micros(50));
        }
        let ran = self.running.load(Ordering::Acquire);
        self.interrupted.fetch_or(ran, Ordering::AcqRel);
        self.stop(false);
        self.join(None);
        for patience in [&self.patience, &self.writing] {
            patience.end(false);
        }
        // No connection may be open across a fork: closing it there would drop our locks.
        self.close_spare();
        self.writer.lock().disconnect();
    }

    fn resume(&self) {
        let queued =
            [&self.reads, &self.writes, &self.awaits].iter().any(|queue| !queue.is_empty());
        if (self.interrupted.swap(false, Ordering::AcqRel) || queued)
            && !self.closed.load(Ordering::Acquire)
            && let Some(me) = self.me.upgrade()
        {
            me.ensure_running();
        }
    }

    fn forget(&self) {
        for queue in [&self.reads, &self.writes, &self.awaits] {
            for (_, done) in queue.drain() {
                done.forget();
            }
        }
        // Only there if nobody told us before the fork: threads and connections of the parent.
        std::mem::forget(std::mem::take(&mut *self.crew.lock()));
        std::mem::forget(std::mem::take(&mut *self.spare.lock()));
        self.writer.lock().forget();
        self.running.store(false, Ordering::Release);
        self.interrupted.store(false, Ordering::Release);
        self.inside.store(0, Ordering::Release);
        // Nobody watches for it until something is asked for here.
        self.near.flush();
        self.trusted.store(false, Ordering::Release);
        self.owner.store(fresh_token(), Ordering::Release);
    }

    fn close(&self, patience: Duration) {
        self.closing(patience);
        self.refuse_all();
        self.close_spare();
        // Who is committing for longer than that closes it with the process.
        if let Some(mut writer) = self.writer.try_lock() {
            writer.disconnect();
        }
    }
}

/// Runs a thread's body, and again if it panics: what it was at is answered with
/// [`TierError::Lost`], and the others' requests do not wait for ever.
pub(super) fn unfailing(shared: &Arc<Shared>, body: fn(&Arc<Shared>)) {
    while catch_unwind(AssertUnwindSafe(|| body(shared))).is_err() {
        shared.notices.add("a thread of the store has failed and was begun again".into());
        thread::sleep(RELAPSE);
    }
}

/// A thread that reads for event loops.
fn run_reader(shared: &Arc<Shared>) {
    let mut reader = None;
    loop {
        match shared.reads.take(BATCH, IDLE) {
            Taken::Work(asks) => {
                for (request, done) in asks {
                    done.end(shared.read(&mut reader, &request));
                }
            }
            Taken::Nothing => {}
            Taken::Stop => {
                if shared.finishing.load(Ordering::Acquire) {
                    for (request, done) in shared.reads.drain() {
                        done.end(shared.read(&mut reader, &request));
                    }
                }
                return;
            }
        }
    }
}

impl From<OpenError> for TierError {
    fn from(error: OpenError) -> Self {
        Self::Away(error.text().to_owned())
    }
}

/// Whether a failure is of the file itself.
pub(super) fn breaks(error: &rusqlite::Error) -> bool {
    is_broken(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_while_it_is_closed_starts_no_threads() {
        let path = std::env::temp_dir().join(format!("ferrogate-closed-{}.db", std::process::id()));
        let second = Duration::from_secs(1);
        let (max_bytes, max_entries) = (1 << 20, 100);
        let config =
            Config { path, max_bytes, max_entries, lease: second, busy: second, readers: 1 };
        let near = Arc::new(Near::new(1 << 20, Clock::System));
        let (notices, owed) = (Arc::default(), Arc::default());
        let shared = Shared::new(config, near, Clock::System, notices, owed);
        shared.close(second);
        // As who has looked whether it is closed just before it was.
        shared.ensure_running();
        assert!(shared.crew.lock().is_empty() && !shared.running.load(Ordering::Acquire));
    }
}
