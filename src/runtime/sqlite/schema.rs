//! The file: how it is opened, what stands in it, and what becomes of one that is broken.
//!
//! | table | what |
//! |---|---|
//! | `entries` | values; the row number is 63 bits of the place's BLAKE3, so that one tree is enough |
//! | `cuts` | by which number of change a namespace (`n…`) or a tag (`t…`) was outdated |
//! | `leases` | who loads what |
//! | `changes` | what the last commits changed, for the other processes' near caches; the last one's
//! | | number is that of the last change, its entries and bytes are those of the file, exact; its |
//! | | `leases` is 0 if there are none |
//! | `state` | up to which number of change the log has been dropped |
//!
//! A set writes two pages, its value's and the log's: what it takes is mostly pages. So a value that is
//! overwritten keeps its place in the index of what expires, `due`, which is no later than its
//! `deadline`; when it is due it is looked at again.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::FlockOperation;

use crate::core::clock::{Clock, Nanos, nanos_from_duration};

/// What kind of file of ours it is.
#[derive(Debug)]
pub(in crate::runtime) struct Format {
    /// Stands in the file's header.
    pub(in crate::runtime) application: i32,
    /// Changes with every change of the tables.
    pub(in crate::runtime) version: i32,
    /// Makes the tables.
    pub(in crate::runtime) tables: &'static str,
}

/// "FgC1": a cache.
pub(super) const CACHE: Format = Format { application: 0x4667_4331, version: 2, tables: TABLES };

const TABLES: &str = "
CREATE TABLE entries(
    id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, deadline INTEGER, due INTEGER,
    used INTEGER NOT NULL, size INTEGER NOT NULL, ns TEXT NOT NULL, key TEXT NOT NULL, tags TEXT,
    value BLOB NOT NULL);
CREATE INDEX expiry ON entries(due) WHERE due IS NOT NULL;
CREATE TABLE cuts(name TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE leases(id INTEGER PRIMARY KEY, token INTEGER NOT NULL, seq INTEGER NOT NULL,
    deadline INTEGER NOT NULL, term INTEGER NOT NULL, tags TEXT);
CREATE TABLE changes(seq INTEGER PRIMARY KEY, owner INTEGER NOT NULL, at INTEGER NOT NULL,
    entries INTEGER NOT NULL, bytes INTEGER NOT NULL, leases INTEGER NOT NULL,
    what BLOB NOT NULL);
CREATE TABLE state(id INTEGER PRIMARY KEY CHECK (id = 1), dropped INTEGER NOT NULL);
INSERT INTO changes VALUES (0, 0, 0, 0, 0, 0, x'');
INSERT INTO state VALUES (1, 0);
";

/// Bytes of a page.
const PAGE: u64 = 4096;

/// File systems whose locks or shared memory do not reach the other machines' processes, by
/// `statfs`: NFS, SMB, CIFS, SMB2, AFS, Ceph, Lustre, Coda, GPFS, 9P.
const REMOTE: [u32; 10] = [
    0x6969,
    0x517B,
    0xFF53_4D42,
    0xFE53_4D42,
    0x5346_414F,
    0x00C3_6400,
    0x0BD0_0BD0,
    0x7375_7245,
    0x4750_4653,
    0x0102_1997,
];

/// How long the directory's lock is waited for, 2 s, and in which steps: whoever holds it has a
/// few tables to make or a file to rename.
const LOCKINGS: u32 = 400;
const LOCKING: Duration = Duration::from_millis(5);

/// Tries without sleeping: a commit takes half as long as the shortest sleep. Sets of 4 processes,
/// one after the other, went from 0.60 to 0.49 of diskcache's time.
const YIELDS: i32 = 10;

/// Tries before those that are a millisecond apart; until then it is a tenth.
const SHORT_STEPS: i32 = 50;

/// Why a file cannot be used.
#[derive(Debug)]
pub enum OpenError {
    /// It is not ours, or of another version, or on a network: nothing was touched.
    Unfit(String),
    /// It is broken and has to be moved aside.
    Broken(String),
    /// It does not begin as a database does: broken, or never one.
    NoDatabase(String),
    /// Others had it locked for longer than there was patience.
    Busy(String),
    /// It could not be opened or read just now.
    Io(String),
}

impl OpenError {
    /// The sentence.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Unfit(text)
            | Self::Broken(text)
            | Self::NoDatabase(text)
            | Self::Busy(text)
            | Self::Io(text) => text,
        }
    }

    /// What is wrong with the file itself.
    #[must_use]
    pub(super) fn breakage(&self) -> Option<&str> {
        match self {
            Self::Broken(why) | Self::NoDatabase(why) => Some(why),
            _ => None,
        }
    }
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt) => Self::Broken(text),
            Some(ErrorCode::NotADatabase) => Self::NoDatabase(text),
            Some(ErrorCode::DatabaseBusy) => Self::Busy(text),
            _ => Self::Io(text),
        }
    }
}

/// Whether the file itself is broken.
#[must_use]
pub(super) fn is_broken(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Whether another process was committing all the time.
#[must_use]
pub(in crate::runtime) fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

/// Whether a file that does not begin as a database does may be what is left of one of ours: it
/// has whole pages. To look inside would mean to open it, and to close it again would drop
/// `SQLite`'s locks on it.
#[must_use]
pub(super) fn may_be_ours(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|facts| facts.is_file() && facts.len().is_multiple_of(PAGE))
}

/// Which file it is: its device and number.
#[must_use]
pub(in crate::runtime) fn identity(path: &Path) -> Option<(u64, u64)> {
    // `stat` only: opening and closing the file here would drop SQLite's locks on it.
    fs::metadata(path).ok().map(|facts| (facts.dev(), facts.ino()))
}

/// A connection to the file, made ready; creates the file and its tables if there are none.
///
/// # Errors
/// See [`OpenError`].
pub(in crate::runtime) fn open(
    path: &Path,
    patience: &Arc<Patience>,
    format: &Format,
) -> Result<Connection, OpenError> {
    refuse_remote(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    wait_while_busy(&mut connection, patience)?;
    let application: i32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if application == format.application {
        check_version(&connection, path, format)?;
    } else {
        create(&mut connection, path, format)?;
    }
    // NORMAL: a commit survives the process, and the file a loss of power. Who moves the log into
    // the file waits for the disk, so it is done for 16 MB at a time.
    connection.execute_batch(
        "PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -8192;
         PRAGMA journal_size_limit = 67108864; PRAGMA wal_autocheckpoint = 4000;",
    )?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

fn wait_while_busy(connection: &mut Connection, patience: &Arc<Patience>) -> Result<(), OpenError> {
    // Without it a SQLite that has STAT4 compiles a statement again for every new value that is
    // bound to it: 10 of the 15 microseconds that a `get_sync` from the file took.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    // Short steps at first: SQLite's own handler soon sleeps 100 ms at a time, and by then
    // the lock has changed hands a thousand times.
    let (short, long) = (Duration::from_micros(100), Duration::from_millis(1));
    let patience = Arc::clone(patience);
    let mut begun = 0;
    connection.busy_handler(Some(move |tries: i32| {
        let now = Clock::System.now();
        if tries == 0 {
            begun = now;
        }
        match tries {
            ..YIELDS => std::thread::yield_now(),
            YIELDS..SHORT_STEPS => std::thread::sleep(short),
            _ => std::thread::sleep(long),
        }
        now - begun < patience.longest()
    }))?;
    Ok(())
}

/// For how long a connection tries again while another one commits, recovers or closes the file.
#[derive(Debug)]
pub(in crate::runtime) struct Patience {
    nanos: AtomicU64,
    /// For so long also when a fork waits. Threads of this process still open and close the file
    /// then, and whoever reads can neither be put back nor wait for the fork.
    grace: Nanos,
    /// A fork waits: nobody waits for other processes any more.
    over: AtomicBool,
}

impl Patience {
    /// For so long; or, while a fork waits, for `grace`.
    pub(in crate::runtime) fn of(busy: Duration, grace: Duration) -> Arc<Self> {
        let (nanos, grace) = (AtomicU64::new(0), nanos_from_duration(grace));
        let patience = Self { nanos, grace, over: AtomicBool::new(false) };
        patience.set(busy);
        Arc::new(patience)
    }

    /// From now on for so long.
    pub(super) fn set(&self, busy: Duration) {
        self.nanos.store(nanos_from_duration(busy), Ordering::Relaxed);
    }

    fn longest(&self) -> Nanos {
        let nanos = self.nanos.load(Ordering::Relaxed);
        if self.is_over() { nanos.min(self.grace) } else { nanos }
    }

    /// Ends all waiting, or allows it again.
    pub(in crate::runtime) fn end(&self, over: bool) {
        self.over.store(over, Ordering::Release);
    }

    /// Whether it was ended.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

fn check_version(connection: &Connection, path: &Path, format: &Format) -> Result<(), OpenError> {
    let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = format.version;
    if version == known {
        return Ok(());
    }
    Err(OpenError::Unfit(format!(
        "{} was written by another ferrogate: its version is {version}, this one knows {known}; \
         use another path, or delete the file",
        path.display()
    )))
}

fn create(connection: &mut Connection, path: &Path, format: &Format) -> Result<(), OpenError> {
    let tables = |connection: &Connection| {
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
    };
    let _one = lock_directory(path).map_err(|error| OpenError::Io(error.to_string()))?;
    if tables(connection)? == 0 {
        // Before the first table; both stay in the file.
        connection.pragma_update(None, "page_size", PAGE as i64)?;
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if mode != "wal" {
            return Err(OpenError::Unfit(format!(
                "{} is on a file system without shared memory, which SQLite's WAL needs",
                path.display()
            )));
        }
        let transaction =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        // Another process may have been first.
        if tables(&transaction)? == 0 {
            transaction.execute_batch(format.tables)?;
            transaction.pragma_update(None, "user_version", format.version)?;
            transaction.pragma_update(None, "application_id", format.application)?;
            transaction.commit()?;
            return Ok(());
        }
    }
    let application: i32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if application != format.application {
        return Err(OpenError::Unfit(format!(
            "{} is a database of somebody else; use another path",
            path.display()
        )));
    }
    check_version(connection, path, format)
}

fn refuse_remote(path: &Path) -> Result<(), OpenError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let facts = rustix::fs::statfs(directory)
        .map_err(|error| OpenError::Io(format!("{}: {error}", directory.display())))?;
    if REMOTE.contains(&(facts.f_type as u32)) {
        return Err(OpenError::Unfit(format!(
            "{} is on a network file system, where SQLite's locks are not safe; use a local path, \
             or redis:// to share between machines",
            path.display()
        )));
    }
    Ok(())
}

/// One process at a time, as long as this is held. `SQLite`'s own locks are not enough where a
/// file becomes a database, or another file.
fn lock_directory(path: &Path) -> io::Result<fs::File> {
    let directory = fs::File::open(path.parent().unwrap_or(Path::new("/")))?;
    for _ in 0..LOCKINGS {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => std::thread::sleep(LOCKING),
            other => return other.map(|()| directory).map_err(Into::into),
        }
    }
    Err(io::Error::other("another process keeps its directory locked"))
}

/// Moves a broken file aside, unless another process has done so since it was `opened`;
/// says where to.
///
/// # Errors
/// It cannot be renamed.
pub(super) fn move_aside(
    path: &Path,
    opened: Option<(u64, u64)>,
    stamp: i64,
) -> io::Result<Option<PathBuf>> {
    // Of several processes that meet the same breakage, one moves.
    let _one = lock_directory(path)?;
    if opened.is_some() && identity(path) != opened {
        return Ok(None);
    }
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = beside(&format!(".corrupt-{stamp}"));
    fs::rename(path, &aside)?;
    for suffix in ["-wal", "-shm"] {
        // A write-ahead log that stayed would be played into the fresh file.
        if let Err(error) = fs::remove_file(beside(suffix))
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
    }
    Ok(Some(aside))
}
