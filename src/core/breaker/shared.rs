//! A state that processes share: every process has a breaker of its own, and tells the others of
//! its steps through a store.
//!
//! This is the half of a process, and pure. It says what it knows and wants ([`Breaker::report`])
//! and is told what the store has made of it ([`Breaker::answered`]). What is known has a
//! generation, which only grows: the larger one is the newer one. A step that was made here is told
//! with how long ago it was, and with the generation that it was made from; the store judges
//! whether something newer is known.
//!
//! Who is to probe has a lease, one process at a time: it may begin probes for [`SPAN`] from the
//! question on, and nobody else gets the lease before those have had their time. Without a store
//! that answers ([`TRUST`]) a breaker is as if it shared nothing.

use super::machine::{Breaker, Inner};
use super::settings::Settings;
use super::{State, Transition};
use crate::core::clock::{Clock, NEVER, Nanos, SECOND};
use crate::core::error::InvalidArgument;
use crate::core::sync::atomic::Ordering;

/// So long after a question that was answered the store counts as there.
pub const TRUST: Nanos = 3 * SECOND;
/// So long after a question that was granted the lease probes may be begun.
pub const SPAN: Nanos = 3 * SECOND;
/// An open state that is over for longer, and that nobody probes, is history.
const RECENT: i64 = 5 * SECOND as i64;
/// Who was refused for want of the lease wants it for so long.
const DEMAND: Nanos = 3 * SECOND;
/// Between two questions for the lease.
const MOMENT: Nanos = SECOND / 20;
/// A lease that is not used goes to others that want it after so long; each time after twice as
/// long, so that calls that are rarer than this get it, too.
const UNUSED: Nanos = SECOND;

/// What is known of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It lets calls through.
    Closed,
    /// The same, by hand.
    Reset,
    /// It rests.
    Open {
        /// For so long still; below zero, it is over for so long.
        left: i64,
        /// How often it had opened without having closed in between.
        relapses: u32,
    },
    /// By hand.
    ForcedOpen,
    /// By hand.
    Disabled,
}

/// A step that the store may not know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// It is told from all others of this breaker by it.
    pub number: u64,
    /// So long ago.
    pub age: Nanos,
    /// Made by hand, or while the store was away: if something else is known by now, the later one
    /// of the two holds.
    pub firm: bool,
}

/// What is wanted of the probes' lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing.
    Nothing,
    /// To have it.
    Ask,
    /// To have it for longer.
    Keep,
    /// To give it back.
    Back,
}

/// What the store is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// What is known has this generation; 0: nothing is.
    pub basis: u64,
    /// The state as it is here; `None`: it is of no concern to others.
    pub word: Option<Word>,
    /// It is a step from what has that generation.
    pub change: Option<Change>,
    /// The lease.
    pub lease: Want,
}

/// What the store has made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "four questions, each with its answer")]
pub struct Answer {
    /// The generation of what is known; 0: nothing is.
    pub generation: u64,
    /// What that is.
    pub word: Option<Word>,
    /// The change that was told holds.
    pub taken: bool,
    /// The lease was granted.
    pub lease: bool,
    /// Somebody has it.
    pub probed: bool,
    /// Somebody else wants it.
    pub wanted: bool,
}

/// What a breaker knows of those that share its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// Whether the store answers.
    pub joined: bool,
    /// Whether this process has the lease.
    pub probing: bool,
    /// How often it opened because it had elsewhere.
    pub opened_elsewhere: u64,
    /// How often it closed because it had elsewhere.
    pub closed_elsewhere: u64,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    number: u64,
    at: Nanos,
    firm: bool,
    reset: bool,
}

/// What a breaker that shares its state knows besides.
#[derive(Debug)]
pub(super) struct Shared {
    generation: u64,
    pending: Option<Pending>,
    changes: u64,
    trusted_until: Nanos,
    /// Probes may be begun until then.
    lease_until: Nanos,
    used_at: Nanos,
    unused: Nanos,
    wanted: bool,
    /// When a call was last refused for want of the lease.
    refused_at: Option<Nanos>,
    ask_at: Nanos,
    ended: bool,
    opened: u64,
    closed: u64,
}

impl Shared {
    fn new() -> Self {
        Self {
            generation: 0,
            pending: None,
            changes: 0,
            trusted_until: 0,
            lease_until: 0,
            used_at: 0,
            unused: UNUSED,
            wanted: false,
            refused_at: None,
            ask_at: 0,
            ended: false,
            opened: 0,
            closed: 0,
        }
    }

    fn wants(&self, now: Nanos) -> bool {
        self.refused_at.is_some_and(|at| now.saturating_sub(at) < DEMAND)
    }

    fn lets_go(&mut self) {
        self.lease_until = 0;
        self.wanted = false;
    }

    /// A probe was begun.
    pub(super) fn used(&mut self, now: Nanos) {
        self.used_at = now;
    }

    /// A step was made.
    pub(super) fn stepped(&mut self, to: State) {
        if to != State::HalfOpen {
            self.lets_go();
            self.unused = UNUSED;
        }
    }
}

impl Inner {
    /// Whether it has rested, or probes.
    fn has_rested(&self, now: Nanos) -> bool {
        self.shown(now) == State::HalfOpen
    }

    /// A step that others are to know of. They are when nobody said otherwise by hand.
    pub(super) fn changed(&mut self, now: Nanos, by_hand: bool) {
        let state = self.state;
        let Some(shared) = &mut self.shared else { return };
        if state == State::MetricsOnly {
            shared.pending = None;
            return;
        }
        shared.changes += 1;
        shared.pending = Some(Pending {
            number: shared.changes,
            at: now,
            firm: by_hand || now >= shared.trusted_until,
            reset: by_hand && state == State::Closed,
        });
    }

    /// Whether a probe may be begun here, if it has rested; for those that may not, when to ask
    /// again. With it, whether the store is to be asked.
    #[inline]
    pub(super) fn leave(&mut self, now: Nanos) -> (Result<(), Nanos>, bool) {
        let (state, rested) = (self.state, self.has_rested(now));
        let Some(shared) = &mut self.shared else { return (Ok(()), false) };
        if !rested {
            if state == State::Open {
                shared.refused_at = Some(now);
            }
            return (Ok(()), false);
        }
        // Without the store it is as if there were no others.
        if now >= shared.trusted_until || now < shared.lease_until {
            return (Ok(()), false);
        }
        let first = shared.refused_at.is_none_or(|at| now.saturating_sub(at) >= MOMENT);
        shared.refused_at = Some(now);
        (Err(MOMENT), first)
    }

    fn word(&self, now: Nanos) -> Option<Word> {
        let reset = self.shared.as_ref().and_then(|shared| shared.pending).is_some_and(|p| p.reset);
        match self.state {
            State::Closed if reset => Some(Word::Reset),
            State::Closed => Some(Word::Closed),
            State::Open | State::HalfOpen => {
                Some(Word::Open { left: difference(self.until, now), relapses: self.relapses })
            }
            State::ForcedOpen => Some(Word::ForcedOpen),
            State::Disabled => Some(Word::Disabled),
            State::MetricsOnly => None,
        }
    }

    /// What the lease is wanted for.
    fn want(&mut self, settings: &Settings, now: Nanos) -> Want {
        let rested = self.has_rested(now);
        let busy = self.probes.any_since(now, settings.probe_timeout);
        let Some(shared) = &mut self.shared else { return Want::Nothing };
        if !rested {
            return Want::Nothing;
        }
        if now < shared.lease_until {
            let unused = now.saturating_sub(shared.used_at) >= shared.unused;
            if !(shared.wanted && unused) || busy {
                return Want::Keep;
            }
            shared.lets_go();
            shared.unused = shared.unused.saturating_mul(2);
            // They begin anew; and whoever calls here next asks for it again.
            shared.refused_at = None;
            self.good = 0;
            return Want::Back;
        }
        if shared.wants(now) { Want::Ask } else { Want::Nothing }
    }
}

fn difference(left: Nanos, right: Nanos) -> i64 {
    let apart = i64::try_from(left.abs_diff(right)).unwrap_or(i64::MAX);
    if left < right { -apart } else { apart }
}

impl Breaker {
    /// A breaker whose state is shared, if it is enabled.
    ///
    /// # Errors
    /// A setting that makes no sense.
    pub fn sharing(settings: Settings, clock: Clock) -> Result<Self, InvalidArgument> {
        let breaker = Self::new(settings, clock)?;
        if breaker.settings.enabled {
            breaker.inner.lock().shared = Some(Box::new(Shared::new()));
        }
        Ok(breaker)
    }

    /// Whether something is to be told since this was last called.
    #[inline]
    pub fn calls(&self) -> bool {
        self.calls.load(Ordering::Relaxed) && self.calls.swap(false, Ordering::AcqRel)
    }

    /// Something is to be told.
    pub(super) fn call(&self) {
        self.calls.store(true, Ordering::Release);
    }

    /// What to tell the store now.
    pub fn report(&self) -> Report {
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        let lease = inner.want(&self.settings, now);
        let word = inner.word(now);
        let Some(shared) = &inner.shared else {
            return Report { basis: 0, word: None, change: None, lease: Want::Nothing };
        };
        let change = shared.pending.filter(|_| word.is_some()).map(|pending| Change {
            number: pending.number,
            age: now.saturating_sub(pending.at),
            firm: pending.firm,
        });
        Report { basis: shared.generation, word, change, lease }
    }

    /// When there is more to tell, if nothing happens; [`NEVER`]: nothing.
    pub fn next_report(&self) -> Nanos {
        let now = self.clock.now();
        let inner = self.inner.lock();
        let Some(shared) = &inner.shared else { return NEVER };
        if shared.pending.is_some() && inner.state != State::MetricsOnly {
            return now;
        }
        let asks = matches!(inner.state, State::Open | State::HalfOpen)
            && now >= shared.lease_until
            // Those that are refused while it rests are there when it has.
            && (shared.wants(now) || shared.wants(inner.until));
        if asks { inner.until.max(shared.ask_at) } else { NEVER }
    }

    /// What the store has made of a report that was sent then; the step that this has brought
    /// about here.
    pub fn answered(&self, report: &Report, sent: Nanos, answer: &Answer) -> Option<Transition> {
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        let shared = inner.shared.as_mut()?;
        if shared.ended {
            return None;
        }
        shared.trusted_until = sent.saturating_add(TRUST);
        let told = report.change.map(|change| change.number);
        let pending = shared.pending.map(|pending| pending.number);
        if answer.taken {
            shared.generation = shared.generation.max(answer.generation);
        }
        if told != pending {
            // Something has happened meanwhile; the store is to judge that first.
            return None;
        }
        shared.pending = None;
        let news = answer.generation > shared.generation;
        shared.generation = shared.generation.max(answer.generation);
        let step = match answer.word {
            Some(word) if news && inner.state != State::MetricsOnly => {
                self.apply(&mut inner, word, answer.probed, now)
            }
            _ => None,
        };
        let rested = inner.has_rested(now);
        let mut lost = false;
        if let Some(shared) = &mut inner.shared {
            let current = rested && answer.generation == shared.generation;
            shared.wanted = answer.wanted;
            match report.lease {
                Want::Ask if current && answer.lease => {
                    shared.lease_until = sent.saturating_add(SPAN);
                    shared.used_at = now;
                }
                Want::Keep if current && answer.lease => {
                    shared.lease_until = sent.saturating_add(SPAN);
                }
                Want::Keep => {
                    shared.lets_go();
                    lost = true;
                }
                Want::Ask => shared.ask_at = now.saturating_add(MOMENT),
                Want::Nothing | Want::Back => {}
            }
        }
        if lost {
            inner.good = 0;
        }
        step
    }

    /// Takes over what another process has done.
    #[cold]
    fn apply(&self, inner: &mut Inner, word: Word, probed: bool, now: Nanos) -> Option<Transition> {
        let from = inner.state;
        match word {
            Word::Open { left, .. } if from == State::Closed && left <= -RECENT && !probed => None,
            Word::Open { left, relapses } => {
                let left = Nanos::try_from(left).unwrap_or(0);
                inner.until = now.saturating_add(left);
                inner.relapses = relapses;
                if from == State::Open {
                    return None;
                }
                inner.shared.as_mut()?.opened += 1;
                Some(inner.go(State::Open, now))
            }
            Word::Closed if from == State::Closed => None,
            Word::Closed | Word::Reset => {
                let recovers = word == Word::Closed && self.settings.ramp_up > 0;
                let step = inner.go(State::Closed, now);
                inner.relapses = 0;
                inner.share = recovers.then_some(1.0);
                if from == State::Closed {
                    return None;
                }
                inner.shared.as_mut()?.closed += 1;
                Some(step)
            }
            Word::ForcedOpen | Word::Disabled => {
                let (to, opens) = match word {
                    Word::ForcedOpen => (State::ForcedOpen, 1),
                    _ => (State::Disabled, 0),
                };
                if from == to {
                    return None;
                }
                inner.relapses = 0;
                inner.shared.as_mut()?.opened += opens;
                Some(inner.go(to, now))
            }
        }
    }

    /// The store does not answer: from now on it goes by itself, until it is
    /// [`answered`](Self::answered) again.
    pub fn alone(&self) {
        if let Some(shared) = &mut self.inner.lock().shared {
            shared.trusted_until = 0;
            shared.lets_go();
        }
    }

    /// The last that the store is told: it goes by itself from now on.
    pub fn last_report(&self) -> Report {
        let mut report = self.report();
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        let busy = inner.probes.any_since(now, self.settings.probe_timeout);
        if let Some(shared) = &mut inner.shared {
            shared.ended = true;
            shared.trusted_until = 0;
            shared.lets_go();
        }
        report.lease = match report.lease {
            Want::Keep | Want::Back if !busy => Want::Back,
            _ => Want::Nothing,
        };
        report
    }
}

impl Inner {
    /// In the child of a fork: it is another process. A step that the parent has not told either
    /// is told by both, and holds once.
    pub(super) fn forget_others(&mut self) {
        if let Some(shared) = &mut self.shared {
            shared.trusted_until = 0;
            shared.refused_at = None;
            shared.lets_go();
        }
    }

    pub(super) fn sharing(&self, now: Nanos) -> Option<Sharing> {
        self.shared.as_ref().map(|shared| Sharing {
            joined: now < shared.trusted_until,
            probing: now < shared.lease_until && self.has_rested(now),
            opened_elsewhere: shared.opened,
            closed_elsewhere: shared.closed,
        })
    }
}
