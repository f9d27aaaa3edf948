//! What a budget does for whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::books::{Books, Stop, Who};
use super::class::{Argument, BYPASSED, Budget, Limits};
use super::hold::Hold;
use super::refused::Refused;
use crate::core::budget::{Account, MOST, Millis, News, PERIODS, Span, Terms};
use crate::py::limiter::key_from;
use crate::runtime::budget::Holder;

pub(super) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

fn sub(counter: &AtomicU64, amount: u64) {
    let less = |now: u64| Some(now.saturating_sub(amount));
    let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

/// What other native parts ask of it.
impl Budget {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether tenants have accounts of their own.
    pub(crate) fn is_keyed(&self) -> bool {
        self.key.is_some()
    }

    /// The most that one request can ever be granted.
    pub(crate) fn most(&self) -> u64 {
        let Limits { limits, .. } = *self.limits.lock();
        if self.hard { limits.into_iter().flatten().min().unwrap_or(MOST) } else { MOST }
    }

    /// Reserves so much, or says why not.
    ///
    /// # Errors
    /// A wrong key, or whatever the function that tells it raises.
    pub(crate) fn take(
        slf: &Bound<'_, Self>,
        amount: u64,
        key: Argument<'_, '_>,
    ) -> PyResult<Result<Hold, Refused>> {
        let (py, this) = (slf.py(), slf.get());
        let amount = amount.min(MOST);
        let who = this.who(py, key)?;
        if this.is_off() {
            this.count_grant(amount);
            return Ok(Ok(Hold::of_none(slf.clone().unbind(), who, amount, false)));
        }
        let asked =
            this.with(py, &who, |account, terms, news| account.reserve(terms, amount, news))?;
        let granted = match asked {
            Ok((granted, news)) => {
                if !news.is_empty() {
                    Self::announce(slf, &who, &news);
                }
                granted
                    .map(Some)
                    .map_err(|short| Refused::of_limit(short, amount, this.calendar.now()))
            }
            // Told when it is known what was spent: what is owed cannot be taken back.
            Err(Stop::Away(_)) if !this.hard => Ok(None),
            Err(stop) => Err(Refused::of_stop(&stop, amount, this.calendar.now())),
        };
        Ok(match granted {
            Ok(entry) => {
                this.count_grant(amount);
                let budget = slf.clone().unbind();
                Ok(match entry {
                    Some(entry) => Hold::of_account(budget, who, entry),
                    None => Hold::of_none(budget, who, amount, true),
                })
            }
            Err(refused) => {
                add(&this.counts.rejected, 1);
                Err(refused.with_key(who.object))
            }
        })
    }

    /// Ends what was reserved; `None`: it was not spent.
    pub(super) fn correct(slf: &Bound<'_, Self>, hold: &Hold, actual: Option<u64>) {
        let (py, this) = (slf.py(), slf.get());
        sub(&this.counts.open, 1);
        sub(&this.counts.reserved, hold.amount);
        add(if actual.is_some() { &this.counts.settled } else { &this.counts.released }, 1);
        let actual = actual.unwrap_or(0).min(MOST);
        if !hold.counted || actual == hold.entry.amount || this.is_off() {
            return;
        }
        let settled = this.with(py, &hold.who, |account, terms, news| {
            account.settle(terms, &hold.entry, actual, news);
        });
        match settled {
            Ok(Ok(((), news))) => {
                if !news.is_empty() {
                    Self::announce(slf, &hold.who, &news);
                }
            }
            // After the interpreter's shutdown it stays as reserved; a calendar does not fail
            // that has not failed before.
            Ok(Err(_)) => drop(this.books.owe(py, &hold.who, &hold.entry, actual)),
            Err(_) => {}
        }
    }

    fn count_grant(&self, amount: u64) {
        add(&self.counts.granted, 1);
        add(&self.counts.open, 1);
        add(&self.counts.reserved, amount);
    }

    pub(super) fn is_off(&self) -> bool {
        !self.enabled || BYPASSED.load(Ordering::Relaxed)
    }

    /// Does something with an account; also what is to be told then, with no lock held.
    pub(super) fn with<T: Send>(
        &self,
        py: Python<'_>,
        who: &Who,
        act: impl Fn(&mut Account, &Terms, &mut Vec<News>) -> T + Send + Sync,
    ) -> PyResult<Result<(T, Vec<News>), Stop>> {
        let terms = |spans| self.terms(spans);
        let done = self.books.with(py, who, &self.calendar, terms, |account, terms| {
            let mut news = Vec::new();
            (act(account, terms, &mut news), news)
        })?;
        self.note_store(py, &done);
        Ok(done)
    }

    /// Logs the first failure of the store since it was last well.
    pub(super) fn note_store<T>(&self, py: Python<'_>, done: &Result<T, Stop>) {
        let Err(Stop::Away(why)) = done else {
            if self.away.load(Ordering::Relaxed) {
                self.away.store(false, Ordering::Relaxed);
            }
            return;
        };
        add(&self.counts.store_failures, 1);
        if !self.away.swap(true, Ordering::Relaxed) {
            self.report(py, &format!("its store cannot be asked: {why}"), None);
        }
    }

    fn terms(&self, spans: [Span; PERIODS]) -> Terms {
        let Limits { limits, thresholds } = *self.limits.lock();
        Terms { limits, spans, thresholds, hard: self.hard }
    }

    /// The account of `key`, or of whom the budget is for.
    pub(super) fn who(&self, py: Python<'_>, key: Argument<'_, '_>) -> PyResult<Who> {
        let told;
        let object = match (key, &self.key) {
            (Some(key), _) => Some(key),
            (None, None) => None,
            (None, Some(own)) if self.asks_for_key => {
                told = own.bind(py).call0()?;
                Some(&told)
            }
            (None, Some(own)) => Some(own.bind(py)),
        };
        let object = object.filter(|object| !object.is_none());
        let key = object.map(|object| key_from("key", object)).transpose()?;
        let holder = match &self.books {
            Books::Memory(_) => None,
            Books::File(_) => {
                let label = object.map(label).transpose()?.unwrap_or_default();
                Some(Holder::new(&self.name, key.as_ref(), &label))
            }
        };
        Ok(Who { key, object: object.map(|object| object.clone().unbind()), holder })
    }

    /// An account as it stands now, and the time.
    pub(super) fn look(
        &self,
        py: Python<'_>,
        key: Argument<'_, '_>,
    ) -> PyResult<(Account, Terms, Millis)> {
        let who = self.who(py, key)?;
        let now = self.calendar.now();
        let terms = self.terms(self.calendar.at(py, now)?);
        if !self.enabled {
            return Ok((Account::default().seen(&terms), terms, now));
        }
        let seen = self.books.look(py, &who, &terms)?;
        self.note_store(py, &seen);
        match seen {
            Ok(account) => Ok((account, terms, now)),
            Err(Stop::Away(why)) => Err(self.store_error(&why)),
            Err(Stop::Full(_)) => Ok((Account::default().seen(&terms), terms, now)),
        }
    }

    pub(super) fn store_error(&self, why: &str) -> PyErr {
        PyOSError::new_err(format!(
            "the store of the budget {:?} cannot be asked: {why}",
            self.name
        ))
    }
}

/// What people see of a key in a file.
fn label(key: &Bound<'_, PyAny>) -> PyResult<String> {
    const LONGEST: usize = 200;
    let text = if let Ok(text) = key.cast::<PyString>() {
        text.to_string_lossy().into_owned()
    } else {
        key.repr()?.to_string_lossy().into_owned()
    };
    Ok(text.chars().take(LONGEST).collect())
}
