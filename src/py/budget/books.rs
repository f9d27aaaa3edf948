//! Where a budget's accounts are, and what holds for them now.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::core::budget::{Account, Entry, Full, Millis, PERIODS, Span, Table, Terms};
use crate::core::clock::{Clock, unix_millis};
use crate::core::key::Key;
use crate::core::sync::Mutex;
use crate::py::service::after_forks;
use crate::runtime::budget::{Away, BudgetFile, Holder, Inside};

/// Whose account.
pub(crate) struct Who {
    /// `None`: the one of all who name no key.
    pub(super) key: Option<Key>,
    /// As the caller wrote it, for errors and callbacks.
    pub(super) object: Option<Py<PyAny>>,
    /// In a file.
    pub(super) holder: Option<Holder>,
}

/// Why an account could not be asked.
pub(super) enum Stop {
    /// No room for another key until then, at least.
    Full(Millis),
    /// The store could not be read or written.
    Away(String),
}

/// The accounts.
pub(super) enum Books {
    Memory(Mutex<Table<Option<Key>>>),
    File(Arc<BudgetFile>),
}

/// What is known of time: the running periods, as they were computed last.
pub(super) struct Calendar {
    clock: Clock,
    /// From milliseconds to the four periods around them; Python's.
    pub(super) spans: Py<PyAny>,
    known: Mutex<Option<[Span; PERIODS]>>,
    /// The wall clock at its latest: one that goes back reopens nothing.
    seen: AtomicI64,
}

impl Calendar {
    pub(super) fn new(clock: Clock, spans: Py<PyAny>) -> Self {
        Self { clock, spans, known: Mutex::new(None), seen: AtomicI64::new(Millis::MIN) }
    }

    /// The time.
    pub(super) fn now(&self) -> Millis {
        let wall = unix_millis(&self.clock);
        self.seen.fetch_max(wall, Ordering::Relaxed).max(wall)
    }

    /// Somebody has seen a later one.
    fn has_seen(&self, later: Millis) {
        self.seen.fetch_max(later, Ordering::Relaxed);
    }

    /// As if nothing had been seen.
    pub(super) fn forget(&self) {
        self.seen.store(Millis::MIN, Ordering::Relaxed);
    }

    /// The periods that run then. Runs Python code once an hour, with no lock held.
    pub(super) fn at(&self, py: Python<'_>, now: Millis) -> PyResult<[Span; PERIODS]> {
        if let Some(spans) = *self.known.lock()
            && spans.iter().all(|span| (span.start..span.end).contains(&now))
        {
            return Ok(spans);
        }
        let told: [(Millis, Millis); PERIODS] = self.spans.bind(py).call1((now,))?.extract()?;
        let spans = told.map(|(start, end)| Span { start, end });
        *self.known.lock() = Some(spans);
        Ok(spans)
    }
}

impl Books {
    /// Does something with an account, under the terms that `terms` has for the time.
    ///
    /// # Errors
    /// A file cannot be asked any more, or the calendar raised; then nothing was done, as with
    /// a [`Stop`].
    pub(super) fn with<T: Send>(
        &self,
        py: Python<'_>,
        who: &Who,
        calendar: &Calendar,
        terms: impl Fn([Span; PERIODS]) -> Terms,
        act: impl Fn(&mut Account, &Terms) -> T + Send + Sync,
    ) -> PyResult<Result<T, Stop>> {
        loop {
            let now = calendar.now();
            let terms = terms(calendar.at(py, now)?);
            let act = |account: &mut Account| act(account, &terms);
            let file = match (self, &who.holder) {
                (Self::Memory(table), _) => {
                    let done = table.lock().with(&who.key, now, act);
                    return Ok(done.map_err(|Full { until }| Stop::Full(until)));
                }
                (Self::File(_), None) => return Ok(Err(Stop::Away("no account".into()))),
                (Self::File(file), Some(holder)) => (file, holder),
            };
            let (file, holder) = file;
            return Ok(match in_file(py, file, |inside| inside.with(holder, now, &terms, act))? {
                Ok(done) => Ok(done),
                Err(Away::Behind(later)) if later > now => {
                    calendar.has_seen(later);
                    continue;
                }
                Err(away) => Err(stopped(away)?),
            });
        }
    }

    /// An account as it stands now.
    pub(super) fn look(
        &self,
        py: Python<'_>,
        who: &Who,
        terms: &Terms,
    ) -> PyResult<Result<Account, Stop>> {
        let file = match (self, &who.holder) {
            (Self::Memory(table), _) => return Ok(Ok(table.lock().look(&who.key, terms))),
            (Self::File(_), None) => return Ok(Ok(Account::default())),
            (Self::File(file), Some(holder)) => (file, holder),
        };
        let (file, holder) = file;
        match in_file(py, file, |inside| inside.look(holder, terms))? {
            Ok(account) => Ok(Ok(account)),
            Err(away) => stopped(away).map(Err),
        }
    }

    /// Forgets what one account, or all of them, has spent; whether there was any.
    pub(super) fn reset(&self, py: Python<'_>, who: Option<&Who>) -> PyResult<Result<bool, Stop>> {
        match self {
            Self::Memory(table) => Ok(Ok(if let Some(who) = who {
                table.lock().reset(&who.key)
            } else {
                let mut table = table.lock();
                let any = !table.is_empty();
                table.clear();
                any
            })),
            Self::File(file) => {
                let holder = who.and_then(|who| who.holder.as_ref());
                match in_file(py, file, |inside| inside.reset(holder))? {
                    Ok(gone) => Ok(Ok(gone)),
                    Err(away) => stopped(away).map(Err),
                }
            }
        }
    }

    /// How many accounts there are; none while that cannot be told.
    pub(super) fn keys(&self, py: Python<'_>) -> PyResult<u64> {
        match self {
            Self::Memory(table) => Ok(table.lock().len() as u64),
            Self::File(file) => {
                let keys = in_file(py, file, |inside: &Inside<'_>| Ok(inside.keys().unwrap_or(0)))?;
                Ok(keys.unwrap_or(0))
            }
        }
    }

    /// Keeps a correction that a file could not be told; none after the interpreter's shutdown.
    ///
    /// # Errors
    /// A signal's handler raised while a fork was waited for.
    pub(super) fn owe(
        &self,
        py: Python<'_>,
        who: &Who,
        entry: &Entry,
        actual: u64,
    ) -> PyResult<()> {
        let (Self::File(file), Some(holder)) = (self, &who.holder) else { return Ok(()) };
        let owe = |inside: &Inside<'_>| {
            inside.owe(holder, entry, actual);
            Ok(())
        };
        in_file(py, file, owe).map(drop)
    }

    /// How many corrections a file is yet to be told.
    pub(super) fn owed(&self, py: Python<'_>) -> PyResult<usize> {
        let Self::File(file) = self else { return Ok(0) };
        let owed = in_file(py, file, |inside: &Inside<'_>| Ok(inside.owed()))?;
        Ok(owed.unwrap_or(0))
    }
}

/// Calls `work` detached: it waits for the disk, and for other processes.
///
/// [`Inside`] goes with it. Who forks waits with the GIL for all who are inside: to be dropped
/// attached it would need what that thread has.
fn in_file<T: Send>(
    py: Python<'_>,
    file: &BudgetFile,
    work: impl FnOnce(&Inside<'_>) -> Result<T, Away> + Send,
) -> PyResult<Result<T, Away>> {
    // The hooks that other modules have before a fork let threads run.
    after_forks(py)?;
    Ok(match file.enter() {
        Ok(inside) => py.detach(move || work(&inside)),
        Err(away) => Err(away),
    })
}

/// What is no answer but an error is raised.
fn stopped(away: Away) -> PyResult<Stop> {
    match away {
        Away::Full(until) => Ok(Stop::Full(until)),
        Away::Failed(why) => Ok(Stop::Away(why)),
        Away::Locked => Ok(Stop::Away("other processes kept the file locked for too long".into())),
        Away::Behind(_) => Ok(Stop::Away("the file is ahead of the wall clock".into())),
        Away::Ended => Err(PyRuntimeError::new_err("ferrogate has shut down with the interpreter")),
    }
}
