//! What is owed is told as it would have been told in time.
//!
//! What others have written since a change came to be owed is not what was to be forgotten. The two
//! are told apart by the server's clock, which every value has its birth from. The moment at which
//! something came to be owed is that clock's time when it is told, less its age; a server that has
//! taken over meanwhile may have another time, and clocks may be set: so this process also goes by
//! what the clock showed before, and takes the later of the two if they do not agree. In doubt,
//! what stands there is forgotten.
//!
//! What this process itself has written is told apart by its number. A request that it took for
//! failed may have been carried out late, and so have a late birth; its number is an early one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{Value, cmd};

use super::names::Names;
use super::plan::{Plan, done};
use super::scripts;
use super::shared::{Ask, Shared};
use crate::core::clock::{Clock, Nanos, SECOND, unix_millis};
use crate::core::sync::Mutex;
use crate::runtime::near::Cut;
use crate::runtime::owed::{Debt, Moment, Noted};
use crate::runtime::tier::{Done, Reply, Request, TierError};

/// The server's clock is looked at so often.
const LOOK: Nanos = 5 * SECOND;

/// An answer that took longer than this is only taken for want of a better one.
const PROMPT: Duration = Duration::from_millis(20);

/// A look that is older than this is replaced by any.
const OLD: Nanos = 30 * SECOND;

/// Clocks go wrong by less than one part in so many.
const DRIFT: u64 = 2_000;

/// What the nodes of a Cluster may differ by, in microseconds: generations and values have their
/// times from different ones.
const NODES_DIFFER: u64 = 1_000_000;

/// What is refused for so long is not a slip in somebody's rules.
const LASTING: Nanos = 5 * SECOND;

/// Since when the user is refused what is owed.
#[derive(Debug, Default)]
struct Forbidden {
    first: Nanos,
    last: Nanos,
    said: bool,
}

impl Forbidden {
    /// It was refused now; whether that lasts.
    fn last(&mut self, now: Nanos) -> bool {
        if self.first == 0 || now.saturating_sub(self.last) > LASTING {
            *self = Self { first: now, last: now, said: false };
        }
        self.last = now;
        now.saturating_sub(self.first) > LASTING
    }
}

/// What the server's clock once showed.
#[derive(Clone, Copy, Debug)]
struct Sight {
    /// Microseconds since the epoch.
    theirs: u64,
    /// Not before that, by both clocks of this machine.
    steady: Nanos,
    wall: i64,
    /// It took so many microseconds to be answered.
    took: u64,
}

impl Sight {
    /// What it shows now at the latest, and how much earlier it may be, in microseconds.
    fn now(&self, steady: Nanos, wall: i64) -> (u64, u64) {
        let by_steady = steady.saturating_sub(self.steady) / 1_000;
        // One of them stands still while the machine sleeps, the other one may be set.
        let by_wall = wall.saturating_sub(self.wall).max(0).unsigned_abs().saturating_mul(1_000);
        let elapsed = by_steady.max(by_wall);
        let drift = elapsed / DRIFT;
        (self.theirs.saturating_add(elapsed + drift), self.took + 2_000 + 2 * drift)
    }
}

/// What a tier keeps for it.
#[derive(Debug, Default)]
pub(super) struct Dues {
    sight: Mutex<Option<Sight>>,
    forbidden: Mutex<Forbidden>,
    /// Whether the log says that others are not told of changes.
    untold: AtomicBool,
}

impl Shared {
    /// Now, for what is owed from now on.
    pub(super) fn moment(&self) -> Moment {
        let (steady, wall) = (self.now(), unix_millis(&Clock::System));
        let sight = *self.dues.sight.lock();
        let (theirs, slack) = sight.map_or((0, 0), |sight| sight.now(steady, wall));
        Moment { count: self.next(), steady, wall, theirs, slack }
    }

    /// Tells Redis what it was to forget, also if nobody asks for anything.
    pub(super) fn pay(&self) {
        if !self.owed.is_empty() {
            self.owed.pay(|debt, done| self.owe(debt, done));
        }
    }

    /// Tells it for the last time.
    pub(super) fn pay_all(&self) {
        if !self.owed.is_empty() {
            self.owed.pay_all(|debt, done| self.owe(debt, done));
        }
    }

    /// Tells Redis what is owed. What it keeps refusing to the user is given up.
    pub(super) fn owe(&self, debt: Debt, done: Done) {
        let me = self.me.clone();
        let done = Done::new(move |outcome| {
            let given_up = match &outcome {
                Err(TierError::Away(why)) if why.starts_with("NOPERM") => {
                    me.upgrade().is_some_and(|shared| shared.gives_up(why))
                }
                _ => false,
            };
            done.end(if given_up { Ok(Reply::Done) } else { outcome });
        });
        self.enqueue(Ask::Debt(debt), done);
    }

    fn gives_up(&self, why: &str) -> bool {
        let mut forbidden = self.dues.forbidden.lock();
        let lasts = forbidden.last(self.now());
        let say = lasts && !std::mem::replace(&mut forbidden.said, true);
        drop(forbidden);
        if say {
            self.notices.add(format!(
                "the store refuses to forget what was changed while it was away, and may serve \
                 what is outdated: {why}"
            ));
        }
        lasts
    }

    /// Takes note of what a script says about those whom it was to tell.
    pub(super) fn heed(&self, told: Option<&Value>) {
        if matches!(told, Some(Value::Int(2))) && !self.dues.untold.swap(true, Ordering::AcqRel) {
            self.notices.add(format!(
                "other processes are not told of changes, and serve what they have near until it \
                 expires: the user may not publish to {}",
                self.names.channel()
            ));
        }
    }

    /// Whether the server's clock is to be looked at.
    pub(super) fn wants_the_time(&self) -> bool {
        let sight = *self.dues.sight.lock();
        !self.is_cluster()
            && sight.is_none_or(|sight| self.now().saturating_sub(sight.steady) > LOOK)
    }
}

/// Looks at the server's clock.
pub(super) fn look_at_the_clock(shared: &Shared) -> Plan {
    let (steady, wall) = (shared.now(), unix_millis(&Clock::System));
    Plan::new(vec![cmd("TIME")], move |shared, values| {
        if let Some(theirs) = values.first().and_then(micros) {
            let took = shared.now().saturating_sub(steady);
            let mut last = shared.dues.sight.lock();
            let old = last.is_none_or(|last| steady.saturating_sub(last.steady) > OLD);
            if old || u128::from(took) <= PROMPT.as_nanos() {
                *last = Some(Sight { theirs, steady, wall, took: took / 1_000 });
            }
        }
        done(Reply::Done)
    })
}

fn micros(reply: &Value) -> Option<u64> {
    let Value::Array(both) = reply else { return None };
    let number = |part: &Value| match part {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
        _ => None,
    };
    let (seconds, micros) = (number(both.first()?)?, number(both.get(1)?)?);
    Some(seconds.saturating_mul(1_000_000).saturating_add(micros))
}

/// How long ago something came to be owed in microseconds, at the least.
fn age(moment: &Moment, steady: Nanos, wall: i64) -> u64 {
    let by_wall = wall.saturating_sub(moment.wall).max(0).unsigned_abs().saturating_mul(1_000);
    let age = (steady.saturating_sub(moment.steady) / 1_000).min(by_wall);
    age - age / DRIFT
}

/// Has Redis forget what it was to forget.
pub(super) fn settle(shared: &Shared, debt: &Debt) -> Plan {
    let Some(Noted { moment, .. }) = debt.noted else {
        return super::plan::plan(shared, &debt.request);
    };
    let age = age(&moment, shared.now(), unix_millis(&Clock::System));
    let times = match (shared.is_cluster(), age.checked_sub(NODES_DIFFER)) {
        (false, _) => [age, moment.theirs, moment.slack],
        (true, Some(age)) => [age, 0, 0],
        // What is written next might seem to be older: all is outdated, that excepted.
        (true, None) => return super::plan::plan(shared, &debt.request),
    };
    match &debt.request {
        Request::Delete(place) => {
            let name = shared.names.value(place);
            let mut command = shared.call(&scripts::FORGET, &[&name, &Names::lease(&name)]);
            command.arg(shared.names.channel()).arg(shared.message('v', &name));
            command.arg(&*shared.sender()).arg(moment.count).arg(&times);
            Plan::new(vec![command], |shared, values| {
                shared.heed(values.first());
                done(Reply::Done)
            })
        }
        Request::InvalidateNamespace(ns) => cut(shared, Cut::Namespace, ns, times),
        Request::InvalidateTag(tag) => cut(shared, Cut::Tag, tag, times),
        other => super::plan::plan(shared, other),
    }
}

fn cut(shared: &Shared, what: Cut, name: &str, times: [u64; 3]) -> Plan {
    let (key, kind) = match what {
        Cut::Namespace => (shared.names.namespace(name), 'n'),
        Cut::Tag => (shared.names.tag(name), 't'),
    };
    shared.generations.forget(&key);
    let mut command = shared.call(&scripts::CUT, &[&key]);
    command.arg(shared.names.channel()).arg(shared.message(kind, name)).arg(&times);
    Plan::new(vec![command], move |shared, values| {
        shared.heed(values.first());
        shared.generations.forget(&key);
        done(Reply::Done)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_err_to_the_late_side_whatever_clock_is_wrong() {
        let sight = Sight { theirs: 1_000_000, steady: SECOND, wall: 5_000, took: 300 };
        // 2 s later; as if this machine had slept, its clock been set back, been set forward.
        for (steady, wall) in
            [(3 * SECOND, 7_000), (SECOND, 7_000), (3 * SECOND, 4_000), (2 * SECOND, 7_000)]
        {
            let (latest, slack) = sight.now(steady, wall);
            assert!(latest >= 3_000_000 && latest - slack < 3_000_000 - 300, "{latest} {slack}");
        }
        let moment = Moment { steady: SECOND, wall: 5_000, ..Moment::default() };
        for (steady, wall) in [(3 * SECOND, 7_000), (3 * SECOND, 9_000), (9 * SECOND, 7_000)] {
            let age = age(&moment, steady, wall);
            assert!((1_990_000..=2_000_000).contains(&age), "{age}");
        }
        assert_eq!(age(&moment, 3 * SECOND, 4_000), 0);
        assert_eq!(age(&moment, 0, 9_000), 0);
    }

    #[test]
    fn what_is_refused_for_a_while_is_given_up() {
        let mut forbidden = Forbidden::default();
        assert!(!forbidden.last(SECOND) && !forbidden.last(6 * SECOND));
        assert!(forbidden.last(7 * SECOND) && forbidden.last(12 * SECOND));
        assert!(!forbidden.last(18 * SECOND), "it was not refused in between");
    }

    #[test]
    fn the_time_is_read() {
        let part = |digits: &str| Value::BulkString(digits.into());
        let time = Value::Array(vec![part("17"), part("000042")]);
        assert_eq!(micros(&time), Some(17_000_042));
        for other in [Value::Nil, Value::Array(vec![part("17")]), Value::Array(vec![part("x")])] {
            assert_eq!(micros(&other), None);
        }
    }
}
