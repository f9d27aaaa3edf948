//! The thread that writes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rusqlite::{Connection, Result};

use super::commit::{Done as Committed, Job, MAX_LEASE, Terms, commit, forget, upkeep};
use super::file::Reader;
use super::read::row_of;
use super::schema::{OpenError, Patience, is_busy};
use super::shared::{Ask, BATCH, Shared, breaks};
use super::upkeep::{Sweep, has_due, shrink};
use crate::core::clock::{Clock, nanos_from_duration};
use crate::runtime::place::Place;
use crate::runtime::queue::Taken;
use crate::runtime::tier::{Lease, Outcome, Reply, Request, TierError};

/// Between two looks after expired entries and leases when nothing is written.
const TICK: Duration = Duration::from_secs(1);
/// Between two steps of a sweep, or of shrinking: others get their turn.
const STEP: Duration = Duration::from_millis(5);

/// So long a thread that commits in place waits for other processes' commits; then the writing
/// thread does it, and the other one hears signals again.
const HASTE: Duration = Duration::from_millis(5);

/// So much of what is owed goes together.
const PART: usize = 1_000;

/// So many commits a thread makes that only waits for one.
const HELPINGS: usize = 2;

/// What it takes to write. Whoever holds the lock around it commits what is queued: the writing
/// thread, or a thread that would only wait for it.
pub(super) struct Writer {
    open: Option<Reader>,
    patience: Arc<Patience>,
    /// The leases that loads of this process hold, by row.
    held: HashMap<i64, (u64, Place)>,
    renewed: i64,
    sweep: Option<Sweep>,
    swept_at_start: bool,
    shrinking: bool,
}

/// Writes until it is told to stop.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut ticked = Clock::System.now();
    loop {
        let pause = shared.writer.lock().pause(shared);
        let taken = shared.writes.wait(pause);
        if matches!(taken, Taken::Stop) && !shared.finishing.load(Ordering::Acquire) {
            break;
        }
        commit_all(shared, &mut shared.writer.lock());
        if matches!(taken, Taken::Stop) {
            break;
        }
        // Not after each commit: a thread that would commit its next set in place found the lock
        // taken, and left that one to this thread, too.
        let now = Clock::System.now();
        if now.saturating_sub(ticked) >= nanos_from_duration(pause) {
            shared.writer.lock().tick(shared);
            ticked = Clock::System.now();
        }
    }
    let mut writer = shared.writer.lock();
    writer.note_uses(shared);
    if shared.closed.load(Ordering::Acquire) {
        writer.pay_rest(shared);
        writer.end_leases(shared);
    }
    writer.disconnect();
    if shared.closed.load(Ordering::Acquire) {
        // Here and not with the last reference, which nobody who forks could wait for.
        shared.close_spare();
    }
}

fn commit_all(shared: &Arc<Shared>, writer: &mut Writer) {
    writer.patience.set(shared.config.busy);
    loop {
        let asks = shared.writes.take_now(BATCH);
        if asks.is_empty() {
            return;
        }
        if !writer.work(shared, asks, false) {
            return;
        }
    }
}

/// Commits what is queued in the calling thread, if nobody else does.
pub(super) fn help(shared: &Arc<Shared>) {
    for _ in 0..HELPINGS {
        let Some(mut writer) = shared.writer.try_lock() else { break };
        writer.patience.set(HASTE);
        let asks = shared.writes.take_now(BATCH);
        if asks.is_empty() {
            return;
        }
        let done = writer.work(shared, asks, true);
        // Leases are to be renewed, and cuts to be swept, before the next tick.
        let wanted = !writer.held.is_empty() || !writer.swept_at_start;
        drop(writer);
        if !done || wanted {
            shared.writes.nudge();
        }
        if !done {
            return;
        }
        // What came while the lock was held was left to its holder.
        if shared.writes.is_empty() {
            return;
        }
    }
    // Somebody else commits, or others ask for more all the time.
    shared.writes.nudge();
}

/// Tells the file what it was to forget while it was away: before anything is written that is
/// newer, so that nothing acknowledged goes with it. True if there is something to sweep out now.
fn pay(connection: &mut Connection, shared: &Shared, terms: impl Fn() -> Terms) -> Result<bool> {
    let mut cut = false;
    loop {
        let part = shared.owed.next_part(PART);
        if part.is_empty() {
            return Ok(cut);
        }
        let paid = forget(connection, &terms, &part);
        if paid.is_ok() {
            for debt in &part {
                shared.owed.paid(debt);
            }
        }
        shared.owed.part_done();
        cut |= paid?;
    }
}

impl Writer {
    pub(super) fn new(patience: Arc<Patience>) -> Self {
        Self {
            open: None,
            patience,
            held: HashMap::new(),
            renewed: 0,
            sweep: None,
            swept_at_start: false,
            shrinking: false,
        }
    }

    /// Closes the file.
    pub(super) fn disconnect(&mut self) {
        self.open = None;
    }

    /// In a forked child: what is the parent's.
    pub(super) fn forget(&mut self) {
        std::mem::forget(self.open.take());
        self.held.clear();
        self.sweep = None;
    }

    fn pause(&self, shared: &Shared) -> Duration {
        if self.sweep.is_some() || self.shrinking || !self.swept_at_start {
            STEP
        } else if self.held.is_empty() {
            TICK
        } else {
            (shared.config.lease / 3).clamp(Duration::from_millis(1), TICK)
        }
    }

    fn terms(shared: &Shared) -> Terms {
        let config = &shared.config;
        Terms {
            max_bytes: i64::try_from(config.max_bytes).unwrap_or(i64::MAX),
            max_entries: i64::try_from(config.max_entries).unwrap_or(i64::MAX),
            lease: i64::try_from(config.lease.as_millis()).unwrap_or(i64::MAX).min(MAX_LEASE),
            now: shared.now(),
            owner: shared.owner.load(Ordering::Acquire),
        }
    }

    fn connection(&mut self, shared: &Shared) -> std::result::Result<&mut Connection, OpenError> {
        let epoch = shared.epoch.load(Ordering::Acquire);
        if self.open.as_ref().is_none_or(|open| open.epoch != epoch) {
            self.open = None;
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => shared.connect_with(&self.patience)?,
        };
        Ok(&mut self.open.insert(open).connection)
    }

    /// Commits together what was asked for together. In haste it puts it back instead of waiting
    /// for another process, and says so.
    fn work(&mut self, shared: &Shared, asks: Vec<Ask>, hasty: bool) -> bool {
        let touched = shared.touched();
        let jobs: Vec<Job<'_>> = asks
            .iter()
            .map(|(request, _)| Job {
                request,
                payload: match request {
                    Request::Set { parcel, .. } => Some(parcel.pack()),
                    _ => None,
                },
            })
            .collect();
        let answered = self.commit(shared, &jobs, &touched, hasty);
        drop(jobs);
        match answered {
            Err(None) => {
                shared.writes.put_back(asks);
                return false;
            }
            Ok(outcomes) => {
                for ((request, done), outcome) in asks.into_iter().zip(outcomes) {
                    self.remember(&request, &outcome);
                    done.end(outcome);
                }
            }
            Err(Some(error)) => {
                for (request, done) in asks {
                    self.remember(&request, &Err(error.clone()));
                    done.end(Err(error.clone()));
                }
            }
        }
        true
    }

    /// `Err(None)` if it is hasty and another process is committing.
    fn commit(
        &mut self,
        shared: &Shared,
        jobs: &[Job<'_>],
        touched: &[i64],
        hasty: bool,
    ) -> std::result::Result<Vec<Outcome>, Option<TierError>> {
        let patience = Arc::clone(&self.patience);
        for last_try in [false, true] {
            let epoch = shared.epoch.load(Ordering::Acquire);
            let connection = match self.connection(shared) {
                Ok(connection) => connection,
                Err(OpenError::Busy(_)) if hasty || patience.is_over() => return Err(None),
                Err(error) => {
                    let failure = shared.suspect(&error, epoch);
                    if last_try || error.breakage().is_none() {
                        return Err(Some(failure));
                    }
                    continue;
                }
            };
            let terms = || Self::terms(shared);
            let committed = pay(connection, shared, terms)
                .and_then(|cut| Ok((cut, commit(connection, terms, jobs, touched)?)));
            match committed {
                Ok((cut, (outcomes, mut done))) => {
                    done.cut |= cut;
                    self.count(shared, &done, jobs.len());
                    return Ok(outcomes);
                }
                // What is queued stays queued over a fork.
                Err(error) if is_busy(&error) && (hasty || patience.is_over()) => {
                    return Err(None);
                }
                Err(error) => {
                    let broken = breaks(&error);
                    self.open = None;
                    let failure = shared.suspect(&error.into(), epoch);
                    // Nothing of it was written; on a fresh file it may be.
                    if !broken || last_try {
                        return Err(Some(failure));
                    }
                }
            }
        }
        Err(Some(TierError::Lost))
    }

    fn count(&mut self, shared: &Shared, done: &Committed, jobs: usize) {
        let figures = &shared.figures;
        figures.entries.store(done.entries, Ordering::Relaxed);
        figures.bytes.store(done.bytes, Ordering::Relaxed);
        figures.evictions.fetch_add(done.evicted, Ordering::Relaxed);
        figures.expirations.fetch_add(done.expired, Ordering::Relaxed);
        figures.commits.fetch_add(1, Ordering::Relaxed);
        figures.committed.fetch_add(jobs as u64, Ordering::Relaxed);
        self.shrinking |= done.evicted + done.expired > 0;
        if done.cut {
            self.swept_at_start = false;
        }
    }

    /// Leases that were given or ended.
    fn remember(&mut self, request: &Request, outcome: &Outcome) {
        match (request, outcome) {
            (Request::Lease { place, .. }, Ok(Reply::Leased(lease))) => {
                self.held.insert(row_of(place), (lease.token, place.clone()));
            }
            (
                Request::Set { place, lease: Some(lease), .. } | Request::Release(place, lease),
                _,
            ) => {
                let row = row_of(place);
                if self.held.get(&row).is_some_and(|(token, _)| *token == lease.token) {
                    self.held.remove(&row);
                }
            }
            _ => {}
        }
    }

    /// Whatever is due; a failure waits for the next time.
    fn tick(&mut self, shared: &Shared) {
        self.patience.set(shared.config.busy);
        let now = shared.now();
        let lease = Self::terms(shared).lease;
        if !self.held.is_empty() && (now - self.renewed).abs() >= lease / 3 {
            // If it fails, the next tick tries again: two thirds of the lease are left.
            if self.renew(shared).is_ok() {
                self.renewed = now;
            }
        }
        if !shared.owed.is_empty() {
            let _ = self.commit(shared, &[], &[], false);
        }
        let _ = self.upkeep(shared, now);
    }

    /// Tells the file for the last time what is owed.
    fn pay_rest(&mut self, shared: &Shared) {
        if !shared.owed.is_empty() {
            let _ = self.commit(shared, &[], &[], false);
        }
        if let Some(said) = shared.owed.give_up() {
            shared.notices.add(said);
        }
    }

    /// What is still loading is not stored any more: others need not wait for it.
    fn end_leases(&mut self, shared: &Shared) {
        let held = std::mem::take(&mut self.held);
        let release = |(token, place)| Request::Release(place, Lease { token, since: 0 });
        let requests: Vec<Request> = held.into_values().map(release).collect();
        let jobs: Vec<Job<'_>> =
            requests.iter().map(|request| Job { request, payload: None }).collect();
        if !jobs.is_empty() {
            let _ = self.commit(shared, &jobs, &[], false);
        }
    }

    fn renew(&mut self, shared: &Shared) -> std::result::Result<(), OpenError> {
        let held: Vec<(i64, u64)> =
            self.held.iter().map(|(row, (token, _))| (*row, *token)).collect();
        upkeep(
            self.connection(shared)?,
            || Self::terms(shared),
            |on, _, terms| {
                for (row, token) in held {
                    on.prepare_cached(
                        "UPDATE leases SET deadline = ?3 WHERE id = ?1 AND token = ?2",
                    )?
                    .execute((row, token as i64, terms.now + terms.lease))?;
                }
                Ok(())
            },
        )?;
        Ok(())
    }

    fn note_uses(&mut self, shared: &Shared) {
        let touched = shared.touched();
        if !touched.is_empty() {
            let _ = self.commit(shared, &[], &touched, false);
        }
    }

    fn upkeep(&mut self, shared: &Shared, now: i64) -> std::result::Result<(), OpenError> {
        self.note_uses(shared);
        let terms = || Self::terms(shared);
        if !self.swept_at_start && self.sweep.is_none() {
            // Also what a process that is gone has left to sweep.
            self.sweep = Sweep::begin(self.connection(shared)?, now)?;
            self.swept_at_start = true;
        }
        // A copy: what is rolled back was not swept.
        if let Some(mut sweep) = self.sweep {
            let (through, done) =
                upkeep(self.connection(shared)?, terms, |on, state, _| sweep.step(on, state))?;
            self.count(shared, &done, 0);
            self.sweep = (!through).then_some(sweep);
            self.shrinking = true;
        } else if has_due(self.connection(shared)?, now)? {
            let ((), done) = upkeep(self.connection(shared)?, terms, |_, _, _| Ok(()))?;
            self.count(shared, &done, 0);
        }
        if self.shrinking {
            self.shrinking = shrink(self.connection(shared)?)?;
        }
        Ok(())
    }
}
