//! The thread that watches what other processes commit.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use super::file::{FIRST_EPOCH, Reader};
use super::log::{Change, next};
use super::read::row_of;
use super::schema::OpenError;
use super::shared::{EVERYTHING, Shared};
use crate::core::clock::{Nanos, nanos_from_duration};
use crate::runtime::near::Cut;
use crate::runtime::queue::Taken;
use crate::runtime::tier::{Done, Reply, Request};

/// Between two looks: a fifth of what an invalidation may take. A look is one pragma, 3 µs.
const LOOK: Duration = Duration::from_millis(20);
/// The same while somebody waits for another process's load.
const CLOSE_LOOK: Duration = Duration::from_millis(4);
/// So many wait here at most: whoever was cancelled waits until the lease that it waited for ends.
const WAITING: usize = 100_000;
/// So many looks, and it asks whether the path still leads to the file.
const LOOKS_PER_STAT: u32 = 25;

#[derive(Default)]
struct Watcher {
    open: Option<Reader>,
    version: i64,
    epoch: u64,
    waiting: Waiting,
    looks: u32,
}

/// Who waits for the ends of other processes' leases, by the leases' rows.
#[derive(Default)]
struct Waiting {
    rows: HashMap<i64, Vec<(Nanos, Done)>>,
    count: usize,
}

impl Waiting {
    fn add(&mut self, row: i64, until: Nanos, done: Done) {
        if self.count >= WAITING {
            return done.end(Ok(Reply::Was(false)));
        }
        self.rows.entry(row).or_default().push((until, done));
        self.count += 1;
    }

    fn wake(&mut self, row: i64) {
        for (_, done) in self.rows.remove(&row).into_iter().flatten() {
            self.count -= 1;
            done.end(Ok(Reply::Done));
        }
    }

    fn wake_all(&mut self) {
        self.count = 0;
        for (_, done) in self.rows.drain().flat_map(|(_, all)| all) {
            done.end(Ok(Reply::Done));
        }
    }

    /// A lease that ran out is ended by nobody.
    fn wake_late(&mut self, now: Nanos) {
        let count = &mut self.count;
        self.rows.retain(|_, all| {
            for (_, done) in all.extract_if(.., |(until, _)| *until <= now) {
                *count -= 1;
                done.end(Ok(Reply::Done));
            }
            !all.is_empty()
        });
    }
}

/// Watches until it is told to stop.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut watcher = Watcher::default();
    // At once: what changed while no thread ran is not to wait for the first turn.
    look(shared, &mut watcher);
    loop {
        let pause = if watcher.waiting.count == 0 { LOOK } else { CLOSE_LOOK };
        match shared.awaits.take(EVERYTHING, pause) {
            Taken::Work(asks) => {
                for (request, done) in asks {
                    watcher.enroll(shared, &request, done);
                }
            }
            Taken::Nothing => {}
            Taken::Stop => {
                // Whoever waits asks again, now or after the fork.
                watcher.waiting.wake_all();
                return;
            }
        }
        look(shared, &mut watcher);
        watcher.waiting.wake_late(shared.clock.now());
    }
}

fn look(shared: &Shared, watcher: &mut Watcher) {
    let begun = shared.clock.now();
    match watcher.look(shared) {
        Ok(()) => shared.has_looked(begun),
        Err(error) => watcher.failed(shared, &error),
    }
}

impl Watcher {
    fn connect(&mut self, shared: &Shared) -> Result<(), OpenError> {
        let epoch = shared.epoch.load(Ordering::Acquire);
        if self.open.as_ref().is_some_and(|open| open.epoch == epoch) {
            return Ok(());
        }
        self.open = None;
        let reader = shared.connect()?;
        if reader.epoch != self.epoch {
            // Another file: what was read from the one before may be different here.
            if self.epoch != 0 || reader.epoch != FIRST_EPOCH {
                // In this order: what is read between the two is flushed, and not skipped.
                shared.seen.store(last_change(&reader.connection)?, Ordering::Release);
                shared.flush();
            }
            self.epoch = reader.epoch;
        }
        self.version = 0;
        self.open = Some(reader);
        Ok(())
    }

    fn look(&mut self, shared: &Shared) -> Result<(), OpenError> {
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(LOOKS_PER_STAT) && shared.was_replaced() {
            shared.begin_epoch();
        }
        self.connect(shared)?;
        let Some(Reader { connection, .. }) = &self.open else { return Ok(()) };
        let version: i64 =
            connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if version != self.version {
            self.version = version;
            self.read_changes(shared)?;
        }
        Ok(())
    }

    fn read_changes(&mut self, shared: &Shared) -> Result<(), OpenError> {
        let Some(Reader { connection, .. }) = &self.open else { return Ok(()) };
        let owner = shared.owner.load(Ordering::Acquire);
        let now = shared.now();
        // One snapshot, so that nothing is dropped between the two questions.
        let snapshot = connection.unchecked_transaction()?;
        let dropped: i64 = snapshot
            .prepare_cached("SELECT dropped FROM state WHERE id = 1")?
            .query_row([], |row| row.get(0))?;
        let seen = shared.seen.load(Ordering::Acquire);
        if dropped > seen {
            shared.flush();
            self.waiting.wake_all();
        }
        let mut statement = snapshot.prepare_cached(
            "SELECT seq, owner, at, what FROM changes WHERE seq > ?1 ORDER BY seq",
        )?;
        let mut rows = statement.query([seen])?;
        while let Some(row) = rows.next()? {
            shared.seen.store(row.get(0)?, Ordering::Release);
            let is_own = row.get::<_, i64>(1)? == owner;
            if !is_own {
                let lag = (now - row.get::<_, i64>(2)?).max(0) as u64;
                shared.figures.lag.store(lag, Ordering::Relaxed);
                shared.figures.longest_lag.fetch_max(lag, Ordering::Relaxed);
            }
            let mut log = row.get_ref(3)?.as_blob().unwrap_or_default();
            while let Some(change) = next(&mut log) {
                shared.figures.foreign.fetch_add(u64::from(!is_own), Ordering::Relaxed);
                match change {
                    // The near cache knows of it.
                    Ok(Change::Key(_) | Change::Namespace(_) | Change::Tag(_)) if is_own => {}
                    Ok(Change::Key(id)) => drop(shared.near.remove(&id)),
                    Ok(Change::Namespace(ns)) => shared.near.cut(Cut::Namespace, ns),
                    Ok(Change::Tag(tag)) => shared.near.cut(Cut::Tag, tag),
                    Ok(Change::Lease(row)) => self.waiting.wake(row),
                    Err(()) => shared.flush(),
                }
            }
        }
        Ok(())
    }

    /// Somebody waits for the end of a lease, which may have come already.
    fn enroll(&mut self, shared: &Shared, request: &Request, done: Done) {
        let Request::Await(place, longest) = request else { return done.end(Ok(Reply::Done)) };
        let row = row_of(place);
        match self.lease_until(shared, row) {
            Ok(Some(deadline)) if deadline > shared.now() => {}
            Ok(_) => return done.end(Ok(Reply::Done)),
            Err(_) => return done.end(Ok(Reply::Was(false))),
        }
        let until = shared.clock.now().saturating_add(nanos_from_duration(*longest));
        self.waiting.add(row, until, done);
    }

    fn lease_until(&mut self, shared: &Shared, row: i64) -> Result<Option<i64>, OpenError> {
        self.connect(shared)?;
        let Some(Reader { connection, .. }) = &self.open else { return Ok(None) };
        let mut lease = connection.prepare_cached("SELECT deadline FROM leases WHERE id = ?1")?;
        Ok(lease.query_row([row], |row| row.get(0)).optional()?)
    }

    fn failed(&mut self, shared: &Shared, error: &OpenError) {
        let epoch =
            self.open.take().map_or(shared.epoch.load(Ordering::Acquire), |open| open.epoch);
        // Until a look succeeds the near cache's trust runs out: others may be able to write
        // what we cannot read.
        shared.suspect(error, epoch);
    }
}

fn last_change(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT max(seq) FROM changes", [], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn so_many_wait_and_no_more() {
        let mut waiting = Waiting::default();
        let (told, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let add = |waiting: &mut Waiting, row, until| {
            let (told, refused) = (Arc::clone(&told), Arc::clone(&refused));
            let done = Done::new(move |outcome| {
                let of = if matches!(outcome, Ok(Reply::Done)) { told } else { refused };
                of.fetch_add(1, Ordering::Relaxed);
            });
            waiting.add(row, until, done);
        };
        let counts = || (told.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
        for number in 0..WAITING + 10 {
            add(&mut waiting, number as i64 % 7, number as Nanos);
        }
        assert_eq!((waiting.count, counts()), (WAITING, (0, 10)));
        waiting.wake(0);
        let left = waiting.count;
        assert_eq!(counts(), (WAITING - left, 10));
        assert_eq!(left, waiting.rows.values().map(Vec::len).sum::<usize>());
        waiting.wake_late(6);
        assert_eq!((waiting.count, counts()), (left - 6, (WAITING - left + 6, 10)));
        add(&mut waiting, 1, 0);
        waiting.wake_all();
        assert_eq!((waiting.count, counts()), (0, (WAITING + 1, 10)));
        assert!(waiting.rows.is_empty());
    }
}
