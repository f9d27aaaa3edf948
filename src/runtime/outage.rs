//! When a store is left alone for a while: after failures in a row, and by what it refuses.

use std::sync::atomic::{AtomicBool, Ordering};

use super::tier::{Request, TierError};
use crate::core::clock::Nanos;
use crate::core::sync::Mutex;

/// So many failures in a row, and the tier is left alone for a while.
const FAILURES: u32 = 3;
/// How long at first, and at most: back within a second of its recovery.
const FIRST_PAUSE: Nanos = 100_000_000;
const LONGEST_PAUSE: Nanos = 1_000_000_000;

/// What a store may refuse while it does the other: one that is full, or locked, can still be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It answers from what it has.
    Read,
    /// It is to change.
    Write,
}

impl Kind {
    /// What a request does.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        if request.reads() || matches!(request, Request::Await(..)) {
            Self::Read
        } else {
            Self::Write
        }
    }
}

#[derive(Debug, Default)]
struct Outage {
    failures: u32,
    pause: Nanos,
    until: Nanos,
    /// When a request last was not answered in time, if none has been answered since.
    late: Option<Nanos>,
}

/// The outages of one store.
#[derive(Debug, Default)]
pub struct Outages {
    kinds: [Mutex<Outage>; 2],
    /// It has no room for values; it still answers, and can forget some.
    full: AtomicBool,
    /// Why the last request failed.
    reason: Mutex<Option<String>>,
}

/// For people.
pub(super) fn why_of(error: &TierError) -> &str {
    match error {
        TierError::Away(why) => why,
        _ => "no answer in time",
    }
}

impl Outages {
    /// Whether a request may be sent now.
    ///
    /// # Errors
    /// The store is left alone; one request in a while is let through to see whether it is back.
    pub fn may_ask(&self, kind: Kind, now: Nanos) -> Result<(), TierError> {
        let mut outage = self.kinds[kind as usize].lock();
        if outage.failures >= FAILURES {
            if now < outage.until {
                let why = self.reason().unwrap_or_default();
                return Err(TierError::Away(format!("left alone after repeated failures: {why}")));
            }
            // This one is the probe; the others wait for what becomes of it.
            outage.until = now.saturating_add(outage.pause);
        }
        Ok(())
    }

    /// Whether somebody has just waited for an answer in vain: whoever did has had their time.
    #[must_use]
    pub fn was_late(&self, kind: Kind, now: Nanos) -> bool {
        let late = self.kinds[kind as usize].lock().late;
        late.is_some_and(|late| now.saturating_sub(late) < FIRST_PAUSE)
    }

    /// A request has failed; what is to be logged of that.
    #[must_use]
    pub fn failed(&self, kind: Kind, error: &TierError, now: Nanos) -> Option<String> {
        use TierError::{Ended, Full, Lost, Part};
        if matches!(error, Lost | Ended | Full(_) | Part(_)) {
            return None;
        }
        let mut outage = self.kinds[kind as usize].lock();
        outage.late = matches!(error, TierError::Late).then_some(now);
        outage.failures = outage.failures.saturating_add(1);
        *self.reason.lock() = Some(why_of(error).to_owned());
        if outage.failures < FAILURES {
            return None;
        }
        let first = outage.failures == FAILURES;
        outage.pause = if first { FIRST_PAUSE } else { (outage.pause * 2).min(LONGEST_PAUSE) };
        outage.until = now.saturating_add(outage.pause);
        drop(outage);
        let why = why_of(error);
        first.then(|| match kind {
            Kind::Read => format!("the store cannot be read, near cache only: {why}"),
            Kind::Write => format!("the store cannot be written to: {why}"),
        })
    }

    /// Why the last request failed that did.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.reason.lock().clone()
    }

    /// The store was heard of by another way: it can be read again, and whether it can be written to
    /// may be tried at once; what is to be logged of that.
    #[must_use]
    pub fn heard(&self) -> Option<String> {
        self.kinds[Kind::Write as usize].lock().until = 0;
        self.recovered(Kind::Read)
    }

    /// A request was answered; what is to be logged of that.
    #[must_use]
    pub fn recovered(&self, kind: Kind) -> Option<String> {
        let mut outage = self.kinds[kind as usize].lock();
        let was_away = outage.failures >= FAILURES;
        outage.failures = 0;
        outage.late = None;
        drop(outage);
        was_away.then(|| match kind {
            Kind::Read => "the store can be read again".into(),
            Kind::Write => "the store can be written to again".into(),
        })
    }

    /// It had no room for a value; what is to be logged of that.
    #[must_use]
    pub fn filled(&self, why: &str) -> Option<String> {
        let first = !self.full.swap(true, Ordering::AcqRel);
        first.then(|| format!("the store cannot be written to, it is full: {why}"))
    }

    /// It took a value; what is to be logged of that.
    #[must_use]
    pub fn stored(&self) -> Option<String> {
        if !self.full.load(Ordering::Acquire) {
            return None;
        }
        let was_full = self.full.swap(false, Ordering::AcqRel);
        was_full.then(|| "the store takes values again".into())
    }

    /// Whether it is full, or left alone for reading or for writing.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.full.load(Ordering::Acquire)
            || self.kinds.iter().any(|outage| outage.lock().failures >= FAILURES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::SECOND;

    #[test]
    fn reads_go_on_where_writes_are_refused() {
        let outages = Outages::default();
        let away = TierError::Away("full".into());
        for turn in 0..5 {
            assert_eq!(outages.may_ask(Kind::Write, SECOND).is_ok(), turn < 3);
            let said = outages.failed(Kind::Write, &away, SECOND);
            assert_eq!(said.is_some(), turn == 2);
            assert_eq!(outages.recovered(Kind::Read), None);
        }
        assert!(outages.is_away());
        assert!(outages.may_ask(Kind::Read, SECOND).is_ok());
        // One probe for all.
        assert!(outages.may_ask(Kind::Write, 2 * SECOND).is_ok());
        assert!(outages.may_ask(Kind::Write, 2 * SECOND).is_err());
        assert!(outages.recovered(Kind::Write).is_some());
        assert!(!outages.is_away() && outages.may_ask(Kind::Write, SECOND).is_ok());
    }

    #[test]
    fn a_full_store_is_away_until_it_takes_a_value_and_asked_all_the_time() {
        let outages = Outages::default();
        assert_eq!(outages.stored(), None);
        assert!(outages.filled("OOM").is_some_and(|said| said.contains("full: OOM")));
        assert_eq!(outages.filled("OOM"), None);
        assert_eq!(outages.recovered(Kind::Write), None);
        assert!(outages.is_away() && outages.may_ask(Kind::Write, SECOND).is_ok());
        assert!(outages.stored().is_some() && !outages.is_away());
    }

    #[test]
    fn one_that_was_late_is_remembered_for_a_moment_or_until_it_answers() {
        let outages = Outages::default();
        assert!(!outages.was_late(Kind::Read, 0));
        let _ = outages.failed(Kind::Read, &TierError::Late, SECOND);
        assert!(outages.was_late(Kind::Read, SECOND + FIRST_PAUSE - 1));
        assert!(!outages.was_late(Kind::Read, SECOND + FIRST_PAUSE));
        assert!(!outages.was_late(Kind::Write, SECOND));
        let _ = outages.recovered(Kind::Read);
        assert!(!outages.was_late(Kind::Read, SECOND));
        let _ = outages.failed(Kind::Read, &TierError::Away("busy".into()), SECOND);
        assert!(!outages.was_late(Kind::Read, SECOND));
    }

    #[test]
    fn it_is_asked_again_within_a_second_however_long_it_was_away() {
        let outages = Outages::default();
        let mut now = 0;
        for _ in 0..100 {
            let _ = outages.failed(Kind::Read, &TierError::Late, now);
            now += LONGEST_PAUSE;
            assert!(outages.may_ask(Kind::Read, now).is_ok());
        }
        assert_eq!(outages.failed(Kind::Read, &TierError::Lost, now), None);
    }
}
