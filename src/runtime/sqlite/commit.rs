//! One commit: many requests of this process in one transaction.

use rusqlite::{Connection, OptionalExtension, Result, params};

use super::log::Change;
use super::read::{BETWEEN, cut_of_namespace, cut_of_tag, find, is_cut, row_of, tags_of};
use super::upkeep;
use crate::runtime::owed::Debt;
use crate::runtime::place::Place;
use crate::runtime::tier::{Lease, Payload, Reply, Request, TierError};

/// What an entry is counted with beside its bytes: the row, the index, the trees' own pages.
const OVERHEAD: i64 = 96;

/// How many commits the log of changes keeps; who was away for longer starts with an empty
/// near cache.
const LOGGED: i64 = 4096;

/// Changes between two looks for what has expired.
const LOOKING: i64 = 8;

/// Changes between two looks for logged ones that can go.
const FORGETTING: i64 = 64;

/// By so much the machine's clock may be corrected without ending leases, in milliseconds.
const UNSTEADY: i64 = 1_000;

/// No lease is longer, in milliseconds: a day.
pub(super) const MAX_LEASE: i64 = 86_400_000;

/// The bounds and times that a commit needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) max_bytes: i64,
    pub(super) max_entries: i64,
    /// Milliseconds.
    pub(super) lease: i64,
    /// Milliseconds since the epoch.
    pub(super) now: i64,
    /// Tells this process's changes from others'.
    pub(super) owner: i64,
}

/// The number of the last change, and what is in the file, as they change within a commit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) seq: i64,
    pub(super) entries: i64,
    pub(super) bytes: i64,
    /// Whether somebody may load.
    leases: bool,
}

/// A transaction that writes. It is begun and ended in each commit, so that is compiled once.
pub(in crate::runtime) struct Turn<'a>(&'a Connection);

impl<'a> Turn<'a> {
    pub(in crate::runtime) fn begin(on: &'a Connection) -> Result<Self> {
        on.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Self(on))
    }

    pub(in crate::runtime) fn commit(self) -> Result<()> {
        self.0.prepare_cached("COMMIT")?.execute([]).map(drop)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.0.is_autocommit() {
            // It fails if SQLite has done so by itself.
            let _ = self.0.execute_batch("ROLLBACK");
        }
    }
}

/// A request as it goes into a commit: its payload was packed before.
pub(super) struct Job<'a> {
    pub(super) request: &'a Request,
    pub(super) payload: Option<Payload>,
}

/// What a commit did beside answering.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) entries: i64,
    pub(super) bytes: i64,
    pub(super) evicted: u64,
    pub(super) expired: u64,
    /// Whether a namespace or tag was outdated, whose values are to be swept out.
    pub(super) cut: bool,
}

/// A step of upkeep in a transaction of its own; what `step` returns.
pub(super) fn upkeep<T>(
    connection: &mut Connection,
    terms: impl FnOnce() -> Terms,
    step: impl FnOnce(&Connection, &mut State, Terms) -> Result<T>,
) -> Result<(T, Done)> {
    let turn = Turn::begin(connection)?;
    let mut writer = Writer::begin(connection, terms())?;
    writer.looks = true;
    let result = step(connection, &mut writer.state, writer.terms)?;
    let done = writer.end()?;
    turn.commit()?;
    Ok((result, done))
}

/// Does all jobs in one transaction; the answers in their order. The terms are asked for once it
/// is this connection's turn: a time from before would be earlier than that of who came first.
pub(super) fn commit(
    connection: &mut Connection,
    terms: impl FnOnce() -> Terms,
    jobs: &[Job<'_>],
    touched: &[i64],
) -> Result<(Vec<std::result::Result<Reply, TierError>>, Done)> {
    let turn = Turn::begin(connection)?;
    let terms = terms();
    let mut writer = Writer::begin(connection, terms)?;
    let mut replies = Vec::with_capacity(jobs.len());
    for job in jobs {
        replies.push(Ok(writer.apply(job)?));
    }
    for row in touched {
        connection
            .prepare_cached("UPDATE entries SET used = ?2 WHERE id = ?1")?
            .execute((row, terms.now))?;
    }
    let done = writer.end()?;
    turn.commit()?;
    Ok((replies, done))
}

/// Does in one transaction what the file was to be told earlier. A value that has been written
/// since then is not what was to be deleted. True if there is something to sweep out now.
pub(super) fn forget(
    connection: &mut Connection,
    terms: impl FnOnce() -> Terms,
    debts: &[Debt],
) -> Result<bool> {
    let turn = Turn::begin(connection)?;
    let mut writer = Writer::begin(connection, terms())?;
    for Debt { request, noted } in debts {
        let since = noted.map_or(i64::MAX, |noted| noted.since);
        if let Request::Delete(place) = request
            && writer.is_younger(place, since)?
        {
            continue;
        }
        writer.apply(&Job { request, payload: None })?;
    }
    let done = writer.end()?;
    turn.commit()?;
    Ok(done.cut)
}

const WRITE: &str = "
INSERT INTO entries(id, seq, deadline, due, used, size, ns, key, tags, value)
VALUES (?1, ?2, ?3, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
ON CONFLICT(id) DO UPDATE SET seq = ?2, deadline = ?3, due = ?3, used = ?4, size = ?5, ns = ?6,
    key = ?7, tags = ?8, value = ?9";

const OVERWRITE: &str = "
UPDATE entries SET seq = ?2, deadline = ?3, used = ?4, size = ?5, ns = ?6, key = ?7, tags = ?8,
    value = ?9
WHERE id = ?1";

/// The last change, and what the file held then.
pub(super) const LAST_CHANGE: &str =
    "SELECT seq, entries, bytes, leases FROM changes ORDER BY seq DESC LIMIT 1";

struct Writer<'a> {
    on: &'a Connection,
    terms: Terms,
    state: State,
    /// Whether it looks for what has expired however little is written.
    looks: bool,
    log: Vec<u8>,
    /// What was so before.
    begin: State,
    done: Done,
}

impl<'a> Writer<'a> {
    fn begin(on: &'a Connection, terms: Terms) -> Result<Self> {
        let state = on.prepare_cached(LAST_CHANGE)?.query_row([], |row| {
            let (seq, entries, bytes) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(State { seq, entries, bytes, leases: row.get(3)? })
        })?;
        let (begin, mut now, log) = (state, state, Vec::new());
        if state.leases {
            now.leases = on.prepare_cached("SELECT 1 FROM leases LIMIT 1")?.exists([])?;
        }
        Ok(Self { on, terms, state: now, looks: false, log, begin, done: Done::default() })
    }

    fn end(mut self) -> Result<Done> {
        let looks = self.looks || self.state.seq / LOOKING != self.begin.seq / LOOKING;
        let (evicted, expired) = upkeep::make_room(self.on, self.terms, &mut self.state, looks)?;
        self.done.evicted = evicted;
        self.done.expired = expired;
        if self.state != self.begin {
            if self.state.seq == self.begin.seq {
                self.next();
            }
            let State { seq, entries, bytes, leases } = self.state;
            let Terms { owner, now, .. } = self.terms;
            self.on
                .prepare_cached(
                    "INSERT INTO changes(seq, owner, at, entries, bytes, leases, what)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute((seq, owner, now, entries, bytes, leases, &self.log))?;
            if seq / FORGETTING != self.begin.seq / FORGETTING {
                self.forget_old_changes()?;
            }
        }
        self.done.entries = self.state.entries;
        self.done.bytes = self.state.bytes;
        Ok(self.done)
    }

    fn forget_old_changes(&self) -> Result<()> {
        let last: Option<i64> = self
            .on
            .prepare_cached("SELECT seq FROM changes ORDER BY seq DESC LIMIT 1 OFFSET ?1")?
            .query_row([LOGGED], |row| row.get(0))
            .optional()?;
        if let Some(last) = last {
            self.on.prepare_cached("DELETE FROM changes WHERE seq <= ?1")?.execute([last])?;
            self.on
                .prepare_cached("UPDATE state SET dropped = ?1 WHERE id = 1")?
                .execute([last])?;
        }
        Ok(())
    }

    fn apply(&mut self, job: &Job<'_>) -> Result<Reply> {
        match job.request {
            Request::Set { place, ttl, tags, lease, .. } => {
                let Some(payload) = &job.payload else { return Ok(Reply::Missing) };
                let ttl = ttl.map(|ttl| i64::try_from(ttl.as_millis().max(1)).unwrap_or(i64::MAX));
                self.set(place, payload, ttl, tags, *lease)
            }
            Request::Delete(place) => self.delete(place),
            Request::InvalidateNamespace(ns) => {
                Change::Namespace(ns).write(&mut self.log);
                self.cut(&cut_of_namespace(ns))
            }
            Request::InvalidateTag(tag) => {
                Change::Tag(tag).write(&mut self.log);
                self.cut(&cut_of_tag(tag))
            }
            Request::Lease { place, tags, anew } => self.lease(place, tags, *anew),
            Request::Release(place, lease) => {
                self.end_lease(place, Some(*lease))?;
                Ok(Reply::Done)
            }
            Request::Get(_) | Request::Exists(_) | Request::Await(..) | Request::Ping => {
                Ok(Reply::Done)
            }
        }
    }

    fn next(&mut self) -> i64 {
        self.state.seq += 1;
        self.state.seq
    }

    fn set(
        &mut self,
        place: &Place,
        payload: &Payload,
        ttl: Option<i64>,
        tags: &[Box<str>],
        lease: Option<Lease>,
    ) -> Result<Reply> {
        let size = (payload.len() + place.ns.len() + place.key.len()) as i64 + OVERHEAD;
        if size > self.terms.max_bytes {
            if lease.is_some() {
                self.end_lease(place, lease)?;
            } else {
                // What it was to replace is outdated all the same.
                self.delete(place)?;
            }
            return Ok(Reply::Refused);
        }
        if let Some(lease) = lease {
            let held = self.end_lease(place, Some(lease))?;
            if !held || self.outdated_since(place, tags, lease.since as i64)? {
                return Ok(Reply::Refused);
            }
        } else {
            // What is loading now was read before this.
            self.end_lease(place, None)?;
        }
        let row = row_of(place);
        let before: Option<(i64, Option<i64>)> = self
            .on
            .prepare_cached("SELECT size, due FROM entries WHERE id = ?1")?
            .query_row([row], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let seq = self.next();
        let deadline = ttl.map(|ttl| self.terms.now.saturating_add(ttl));
        // Where it stands in the index does for it as well.
        let early =
            before.and_then(|(_, due)| due).is_some_and(|due| deadline.is_none_or(|d| due <= d));
        self.on.prepare_cached(if early { OVERWRITE } else { WRITE })?.execute(params![
            row,
            seq,
            deadline,
            self.terms.now,
            size,
            &*place.ns,
            &*place.key,
            joined(tags),
            &**payload
        ])?;
        self.state.entries += i64::from(before.is_none());
        self.state.bytes += size - before.map_or(0, |(size, _)| size);
        Change::Key(*place.id()).write(&mut self.log);
        Ok(Reply::Done)
    }

    fn outdated_since(&self, place: &Place, tags: &[Box<str>], since: i64) -> Result<bool> {
        if is_cut(self.on, &cut_of_namespace(&place.ns), since + 1)? {
            return Ok(true);
        }
        for tag in tags {
            if is_cut(self.on, &cut_of_tag(tag), since + 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn delete(&mut self, place: &Place) -> Result<Reply> {
        let alive = find(self.on, place, self.terms.now)?.is_some();
        let size: Option<i64> = self
            .on
            .prepare_cached(
                "DELETE FROM entries WHERE id = ?1 AND ns = ?2 AND key = ?3 RETURNING size",
            )?
            .query_row((row_of(place), &*place.ns, &*place.key), |row| row.get(0))
            .optional()?;
        if let Some(size) = size {
            self.state.entries -= 1;
            self.state.bytes -= size;
        }
        self.end_lease(place, None)?;
        self.next();
        Change::Key(*place.id()).write(&mut self.log);
        Ok(Reply::Was(alive))
    }

    /// Whether the value at a place was committed after `since`; no, if that is from before the log of
    /// changes.
    fn is_younger(&self, place: &Place, since: i64) -> Result<bool> {
        let committed: Option<i64> = self
            .on
            .prepare_cached(
                "SELECT changes.at FROM entries JOIN changes ON changes.seq >= entries.seq
                 WHERE entries.id = ?1 AND entries.ns = ?2 AND entries.key = ?3
                     AND entries.seq > (SELECT dropped FROM state)
                 ORDER BY changes.seq LIMIT 1",
            )?
            .query_row((row_of(place), &*place.ns, &*place.key), |row| row.get(0))
            .optional()?;
        Ok(committed.is_some_and(|at| at > since))
    }

    fn cut(&mut self, name: &str) -> Result<Reply> {
        let seq = self.next();
        self.on
            .prepare_cached(
                "INSERT INTO cuts(name, seq) VALUES (?1, ?2)
                 ON CONFLICT(name) DO UPDATE SET seq = ?2",
            )?
            .execute((name, seq))?;
        self.done.cut = true;
        Ok(Reply::Done)
    }

    fn lease(&mut self, place: &Place, tags: &[Box<str>], anew: bool) -> Result<Reply> {
        let now = self.terms.now;
        if !anew && let Some(living) = find(self.on, place, now)? {
            return Ok(Reply::Value(living.found));
        }
        let row = row_of(place);
        let held: Option<(i64, i64, i64, Option<String>)> = self
            .on
            .prepare_cached("SELECT deadline, term, seq, tags FROM leases WHERE id = ?1")?
            .query_row([row], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .optional()?;
        if let Some((until, term, since, theirs)) = held {
            // With more left than it was given for, the clock was set back since.
            let left = until - now;
            if (1..=term + UNSTEADY).contains(&left)
                && !self.outdated_since(place, &tags_of(theirs), since)?
            {
                return Ok(Reply::Busy(std::time::Duration::from_millis(left as u64)));
            }
        }
        let token = fresh_token();
        let seq = self.next();
        self.on
            .prepare_cached(
                "INSERT OR REPLACE INTO leases(id, token, seq, deadline, term, tags)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute((row, token, seq, now + self.terms.lease, self.terms.lease, joined(tags)))?;
        self.state.leases = true;
        Ok(Reply::Leased(Lease { token: token as u64, since: seq as u64 }))
    }

    /// Ends the lease on a place, of this holder or of whomever; true if there was one.
    fn end_lease(&mut self, place: &Place, lease: Option<Lease>) -> Result<bool> {
        if !self.state.leases {
            return Ok(false);
        }
        let row = row_of(place);
        let ended = match lease {
            Some(lease) => self
                .on
                .prepare_cached("DELETE FROM leases WHERE id = ?1 AND token = ?2")?
                .execute((row, lease.token as i64))?,
            None => self.on.prepare_cached("DELETE FROM leases WHERE id = ?1")?.execute([row])?,
        };
        if ended > 0 {
            self.next();
            Change::Lease(row).write(&mut self.log);
        }
        Ok(ended > 0)
    }
}

/// Tags as they stand in a row.
fn joined(tags: &[Box<str>]) -> Option<String> {
    (!tags.is_empty()).then(|| tags.join(BETWEEN.encode_utf8(&mut [0; 4])))
}

/// A number that nobody else has drawn: not a thread of a process that was forked from the same
/// parent either, whose generators all stand where the parent's stood.
pub(in crate::runtime) fn fresh_token() -> i64 {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::atomic::{AtomicU64, Ordering};
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    let here = (std::process::id(), DRAWN.fetch_add(1, Ordering::Relaxed));
    // Never zero, which is no lease of a store's.
    (RandomState::new().hash_one(here) & i64::MAX as u64).max(1) as i64
}
