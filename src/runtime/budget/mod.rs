//! What has been spent, in one `SQLite` file that the processes of one machine share.
//!
//! Each reservation and each settlement is one transaction of the thread that asks for it: what
//! was granted is committed before it is spent. A commit is in the kernel's hands, so a killed
//! process forgets nothing. A thread has the disk write what was committed, once a second: a
//! loss of power forgets the last second, and no event loop waits for a disk.
//!
//! One connection for each budget of a process; it is closed before a fork, and opened again on
//! both sides by whoever next needs it.

mod owed;
mod rows;
mod syncing;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, Error};

use self::owed::Owed;
use self::syncing::Syncing;
use super::lifecycle::{Ended, Tenant, admit, may_run};
use super::sqlite::OpenError;
use super::sqlite::commit::Turn;
use super::sqlite::schema::{Format, Patience, identity, is_busy, open};
use crate::core::budget::{Account, Entry, Millis, Terms};
use crate::core::clock::{Clock, Nanos, nanos_from_duration};
use crate::core::key::Key;
use crate::core::sync::Mutex;

/// "FgB1": a file of budgets.
const FORMAT: Format = Format { application: 0x4667_4231, version: 1, tables: rows::TABLES };

/// When a file that cannot be asked is worth asking again. One that others keep locked is asked
/// no sooner: each request would wait for it, one after the other.
pub const AGAIN: Duration = Duration::from_secs(1);

/// Between two looks whether all are out.
const LEAVING: Duration = Duration::from_micros(50);

/// What a file is opened with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file, absolute.
    pub path: PathBuf,
    /// So long a request waits for other processes' commits.
    pub busy: Duration,
    /// Which of the file's budgets.
    pub budget: String,
    /// By whose calendar it resets: all who share it have the same.
    pub timezone: String,
    /// Accounts that may have spent something at one time.
    pub max_keys: u64,
}

/// Whose account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    id: [u8; 32],
    /// For people who read the file.
    label: Box<str>,
}

impl Holder {
    /// The account of `key` in `budget`; the same in every process.
    #[must_use]
    pub fn new(budget: &str, key: Option<&Key>, label: &str) -> Self {
        let (content, digested) = key.map_or((&[][..], false), Key::canonical);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(budget.len() as u64).to_le_bytes());
        hasher.update(budget.as_bytes());
        hasher.update(&[u8::from(key.is_some()), u8::from(digested)]);
        hasher.update(content);
        Self { id: *hasher.finalize().as_bytes(), label: label.into() }
    }
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Away {
    /// The budget has all the accounts that it may have, until then at least.
    Full(Millis),
    /// The wall clock stands before what the file has seen: ask again with this time.
    Behind(Millis),
    /// The file could not be read or written.
    Failed(String),
    /// Other processes keep the file locked, or did so less than [`AGAIN`] ago.
    Locked,
    /// The interpreter has shut down.
    Ended,
}

/// What somebody wants of the file: a lock that keeps writers out leaves readers alone.
#[derive(Clone, Copy)]
enum Aim {
    Read,
    Write,
}

impl From<Error> for Away {
    fn from(error: Error) -> Self {
        if is_busy(&error) {
            return Self::Locked;
        }
        Self::Failed(error.to_string())
    }
}

/// The file's accounts of one budget.
pub struct BudgetFile {
    config: Config,
    slot: Mutex<Slot>,
    owed: Mutex<Owed>,
    syncing: Syncing,
    patience: Arc<Patience>,
    /// Threads that are at it just now.
    inside: AtomicU32,
    closed: AtomicBool,
    failures: AtomicU64,
}

/// What only one thread at a time has.
#[derive(Default)]
struct Slot {
    connection: Option<Connection>,
    /// The budget's row.
    budget: i64,
    /// The file that was there at first.
    opened: Option<(u64, u64)>,
    /// What held at last.
    terms: Option<Terms>,
    /// Until then it is taken for locked, by [`Aim`].
    locked_until: [Nanos; 2],
}

impl BudgetFile {
    /// One that is told about forks from now on, and that opens its file next.
    ///
    /// # Errors
    /// The runtime has ended.
    pub fn new(config: Config) -> Result<Arc<Self>, Ended> {
        // Who is at it when a fork comes is waited for: it ends in that time anyway.
        let patience = Patience::of(config.busy, config.busy);
        let syncing = Syncing::of(&config.path);
        let file = Arc::new(Self {
            config,
            syncing,
            slot: Mutex::default(),
            owed: Mutex::default(),
            patience,
            inside: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            failures: AtomicU64::new(0),
        });
        let tenant: Arc<dyn Tenant> = file.clone();
        admit(Arc::downgrade(&tenant))?;
        Ok(file)
    }

    /// Where it is.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How often it could not be read or written.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Announces that this thread will work with the file; to be called attached. Everything
    /// else is to be called detached, and [`Inside`] must be dropped so: who forks waits for it,
    /// and does so attached.
    ///
    /// # Errors
    /// The interpreter has shut down.
    pub fn enter(&self) -> Result<Inside<'_>, Away> {
        if self.closed.load(Ordering::Acquire) || may_run().is_err() {
            return Err(Away::Ended);
        }
        self.inside.fetch_add(1, Ordering::AcqRel);
        Ok(Inside(self))
    }
}

/// A thread that works with the file; a fork waits for it.
pub struct Inside<'a>(&'a BudgetFile);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Inside<'_> {
    /// Opens the file for the first time, so that whoever named it hears what is wrong with it.
    ///
    /// # Errors
    /// It is not ours, of another version, on a network, broken, or cannot be opened; or the
    /// budget is counted by another calendar there.
    pub fn open(&self) -> Result<(), OpenError> {
        let mut slot = self.0.slot.lock();
        let Config { path, .. } = &self.0.config;
        let mut connection = open(path, &self.0.patience, &FORMAT)?;
        rows::check(&connection)?;
        slot.budget = rows::register(&mut connection, &self.0.config)?;
        slot.opened = identity(path);
        slot.connection = Some(connection);
        Ok(())
    }

    /// Does something with an account, in one transaction.
    ///
    /// # Errors
    /// Nothing was done.
    pub fn with<T>(
        &self,
        holder: &Holder,
        now: Millis,
        terms: &Terms,
        act: impl FnOnce(&mut Account) -> T,
    ) -> Result<T, Away> {
        self.working(Aim::Write, |slot, connection| {
            let owed = &mut *self.0.owed.lock();
            slot.terms = Some(*terms);
            let max_keys = self.0.config.max_keys;
            let turn = Turn::begin(connection)?;
            let books = rows::Books { on: connection, budget: slot.budget, max_keys, now, terms };
            let paid = books.pay(owed)?;
            let (done, changed) = books.with(holder, act)?;
            if changed || paid.any() {
                turn.commit()?;
                owed.forget(paid);
                self.0.syncing.ask();
            }
            Ok(done)
        })
    }

    /// An account as it stands now.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn look(&self, holder: &Holder, terms: &Terms) -> Result<Account, Away> {
        self.working(Aim::Read, |_, connection| {
            let known = rows::find(connection, holder)?;
            Ok(known.map_or_else(Account::default, |(account, _)| account).seen(terms))
        })
    }

    /// How many accounts there are.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn keys(&self) -> Result<u64, Away> {
        self.working(Aim::Read, |slot, connection| Ok(rows::keys(connection, slot.budget)?))
    }

    /// Forgets what one account, or all of them, has spent; true if there was any.
    ///
    /// # Errors
    /// Nothing was done.
    pub fn reset(&self, holder: Option<&Holder>) -> Result<bool, Away> {
        self.working(Aim::Write, |slot, connection| {
            let turn = Turn::begin(connection)?;
            let gone = rows::reset(connection, slot.budget, holder)?;
            turn.commit()?;
            self.0.syncing.ask();
            self.0.owed.lock().reset(holder);
            Ok(gone)
        })
    }

    /// Keeps a correction that the file could not be told for later.
    pub fn owe(&self, holder: &Holder, entry: &Entry, actual: u64) {
        self.0.owed.lock().add(holder, entry, actual);
    }

    /// Settlements that the file is yet to be told.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.0.owed.lock().len()
    }

    /// Tells the file what it is owed, if it can be told: now or never.
    fn pay(&self) -> Result<(), Away> {
        let terms = {
            let mut slot = self.0.slot.lock();
            slot.locked_until = [0; 2];
            slot.terms
        };
        let Some(terms) = terms else { return Ok(()) };
        self.working(Aim::Write, |slot, connection| {
            let owed = &mut *self.0.owed.lock();
            let max_keys = self.0.config.max_keys;
            let turn = Turn::begin(connection)?;
            let now = Millis::MIN;
            let books =
                rows::Books { on: connection, budget: slot.budget, max_keys, now, terms: &terms };
            let paid = books.pay(owed)?;
            turn.commit()?;
            owed.forget(paid);
            Ok(())
        })
    }

    fn working<T>(
        &self,
        aim: Aim,
        work: impl FnOnce(&mut Slot, &Connection) -> Result<T, Away>,
    ) -> Result<T, Away> {
        let mut slot = self.0.slot.lock();
        // Here, not before the lock: whoever stood behind the one who waited does not wait too.
        if Clock::System.now() < slot.locked_until[aim as usize] {
            return Err(Away::Locked);
        }
        let done = self.connection(&mut slot).and_then(|connection| {
            let done = work(&mut slot, &connection);
            if !matches!(done, Err(Away::Failed(_) | Away::Locked)) {
                slot.connection = Some(connection);
            }
            done
        });
        if matches!(done, Err(Away::Failed(_) | Away::Locked)) {
            self.0.failures.fetch_add(1, Ordering::Relaxed);
        }
        if matches!(done, Err(Away::Locked)) {
            slot.locked_until[aim as usize] = Clock::System.now() + nanos_from_duration(AGAIN);
        }
        done
    }

    /// The connection, to be put back. One to the file that was there at first: of another one
    /// nobody knows what it has forgotten.
    fn connection(&self, slot: &mut Slot) -> Result<Connection, Away> {
        let path = &self.0.config.path;
        let now = identity(path);
        if slot.opened.is_none() || now != slot.opened {
            slot.connection = None;
            return Err(Away::Failed(format!(
                "{} was removed or replaced while it was in use; put it back, or make the budget \
                 anew",
                path.display()
            )));
        }
        if let Some(connection) = slot.connection.take() {
            return Ok(connection);
        }
        open(path, &self.0.patience, &FORMAT).map_err(|error| match error {
            OpenError::Busy(_) => Away::Locked,
            other => Away::Failed(other.text().to_owned()),
        })
    }
}

impl Tenant for BudgetFile {
    fn quiesce(&self) {
        while self.inside.load(Ordering::Acquire) > 0 {
            std::thread::sleep(LEAVING);
        }
        self.syncing.stop(false);
        // No connection may be open across a fork: closing it there would drop our locks.
        self.slot.lock().connection = None;
    }

    fn resume(&self) {
        self.syncing.go_on();
    }

    fn forget(&self) {
        // Only there if nobody told us before the fork.
        std::mem::forget(self.slot.lock().connection.take());
        self.inside.store(0, Ordering::Release);
        self.syncing.forget();
        // The parent pays it.
        self.owed.lock().clear();
    }

    fn close(&self, patience: Duration) {
        self.closed.store(true, Ordering::Release);
        let mut left = patience;
        while self.inside.load(Ordering::Acquire) > 0 && left > Duration::ZERO {
            std::thread::sleep(LEAVING);
            left = left.saturating_sub(LEAVING);
        }
        if self.inside.load(Ordering::Acquire) > 0 {
            // It is closed with the process.
            return;
        }
        self.settle_up();
        self.syncing.stop(true);
        self.slot.lock().connection = None;
    }
}

impl BudgetFile {
    /// What the file was not told is told now or never.
    fn settle_up(&self) {
        self.inside.fetch_add(1, Ordering::AcqRel);
        let inside = Inside(self);
        if inside.owed() > 0 {
            let told = inside.pay();
            // It was counted when it failed first.
            drop(told);
        }
    }
}

impl Drop for BudgetFile {
    /// Its thread has the disk write what was committed, and ends by itself.
    fn drop(&mut self) {
        self.settle_up();
        self.syncing.abandon();
    }
}
