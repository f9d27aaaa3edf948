//! Which file it is: connections to it, and what becomes of them when it breaks or is replaced.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rusqlite::Connection;

use super::commit::LAST_CHANGE;
use super::schema::{CACHE, OpenError, Patience, identity, may_be_ours, move_aside, open};
use super::shared::Shared;
use crate::runtime::tier::TierError;

/// The epoch of the file that was there at first.
pub(super) const FIRST_EPOCH: u64 = 1;

/// How often a file is opened anew that was replaced while it was opened.
const OPENINGS: usize = 3;

/// A connection to the file of an epoch.
pub(super) struct Reader {
    pub(super) connection: Connection,
    pub(super) epoch: u64,
}

impl Shared {
    /// A connection, and the last change: its number, and the file's entries and bytes then.
    fn first_read(&self) -> Result<(Reader, (i64, i64, i64)), OpenError> {
        let reader = self.connect()?;
        let state = reader
            .connection
            .query_row(LAST_CHANGE, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok((reader, state))
    }

    /// Opens the file once, so that whoever named it hears what is wrong with it.
    pub(super) fn first_look(&self) -> Result<(), OpenError> {
        let (reader, (seen, entries, bytes)) = match self.first_read() {
            Err(OpenError::NoDatabase(why)) if !may_be_ours(&self.config.path) => {
                return Err(OpenError::Unfit(format!(
                    "{} is no file of ours ({why}) and was left alone; use another path, or delete it",
                    self.config.path.display()
                )));
            }
            Err(error) => {
                let Some(why) = error.breakage() else { return Err(error) };
                // No connection is open any more: the file may be moved.
                self.replace(why, self.epoch.load(Ordering::Acquire))?;
                self.first_read()?
            }
            Ok(read) => read,
        };
        self.seen.store(seen, Ordering::Release);
        self.figures.entries.store(entries, Ordering::Relaxed);
        self.figures.bytes.store(bytes, Ordering::Relaxed);
        self.spare.lock().push(reader);
        Ok(())
    }

    /// A connection to the present file.
    pub(super) fn connect(&self) -> Result<Reader, OpenError> {
        self.connect_with(&self.patience)
    }

    /// The same, with a patience of its own.
    pub(super) fn connect_with(&self, patience: &Arc<Patience>) -> Result<Reader, OpenError> {
        let path = &self.config.path;
        for _ in 0..OPENINGS {
            let before = identity(path);
            let connection = open(path, patience, &CACHE)?;
            let now = identity(path);
            if before.is_some() && before != now {
                continue;
            }
            let mut opened = self.opened.lock();
            if opened.is_some() && *opened != now {
                // Another file than the other connections have: they are to come after.
                self.begin_epoch();
            }
            *opened = now;
            return Ok(Reader { connection, epoch: self.epoch.load(Ordering::Acquire) });
        }
        Err(OpenError::Io(format!("{} is being replaced again and again", path.display())))
    }

    /// Moves the file of `epoch`, which is broken, aside, so that the next connection makes a
    /// fresh one.
    fn replace(&self, why: &str, epoch: u64) -> Result<(), OpenError> {
        let path = &self.config.path;
        // Held throughout: the other threads meet the same breakage.
        let mut opened = self.opened.lock();
        if self.epoch.load(Ordering::Acquire) != epoch {
            return Ok(());
        }
        let moved = move_aside(path, *opened, self.now())
            .map_err(|error| OpenError::Io(format!("{}: {error}", path.display())))?;
        *opened = None;
        self.begin_epoch();
        if let Some(aside) = moved {
            self.figures.recoveries.fetch_add(1, Ordering::Relaxed);
            self.notices.add(format!(
                "{} is broken ({why}); moved to {}, beginning a fresh one",
                path.display(),
                aside.display()
            ));
        }
        Ok(())
    }

    /// Has everybody connect anew, and forget what the file before had.
    pub(super) fn begin_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.flush();
    }

    /// Outdates the near cache.
    pub(super) fn flush(&self) {
        self.figures.flushes.fetch_add(1, Ordering::Relaxed);
        self.near.flush();
    }

    /// Whether the path leads to another file than the one that was opened.
    pub(super) fn was_replaced(&self) -> bool {
        let opened = *self.opened.lock();
        opened.is_some() && identity(&self.config.path) != opened
    }

    /// What a failure means of a connection of `epoch`; a broken file is replaced.
    pub(super) fn suspect(&self, error: &OpenError, epoch: u64) -> TierError {
        if let Some(why) = error.breakage()
            && let Err(worse) = self.replace(why, epoch)
        {
            return TierError::Away(worse.text().to_owned());
        }
        TierError::Away(error.text().to_owned())
    }
}
