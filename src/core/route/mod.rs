//! Which of several targets an attempt goes to.
//!
//! Whoever asks says of each target whether the call has failed there before and when it could
//! take the attempt; what stands in the way is not known here. Of those that can take it now the
//! ones that have not failed come first, and among them the [`Kind`] of route decides.
//!
//! Weights are kept as nginx does: smooth weighted round-robin, which spreads a target's turns
//! over the round instead of giving them one after the other (its
//! `ngx_http_upstream_round_robin.c` since "Upstream: smooth weighted round-robin balancing", 2012).

mod latency;

#[cfg(test)]
#[cfg(not(ferrogate_loom))]
mod tests;

use std::cmp::Ordering;

use self::latency::{ENOUGH, Latency};
use super::clock::{NEVER, Nanos};
use super::error::InvalidArgument;

/// Every so many choices by speed, the target that has waited longest for one gets it: so one
/// that has become fast again is found.
const EXPLORE: u64 = 20;

/// By what the target is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first.
    Ordered,
    /// Each as often as its weight says.
    Weighted,
    /// The one where the call costs least.
    Cheapest,
    /// The one that answers soonest.
    Fastest,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ordered, Self::Weighted, Self::Cheapest, Self::Fastest];

    /// # Errors
    /// When there is none of that name.
    pub fn parse(name: &str) -> Result<Self, InvalidArgument> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            InvalidArgument::new("route", format!("expected one of {names:?}, got {name:?}"))
        })
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::Weighted => "weighted",
            Self::Cheapest => "cheapest",
            Self::Fastest => "fastest",
        }
    }
}

/// What one attempt knows of one target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// The call has failed there before.
    pub failed_before: bool,
    /// How long it is until it could take the attempt: 0 is now, [`NEVER`] that it will not.
    pub available_in: Nanos,
    /// What the attempt would cost there, in any unit; asked for by [`Kind::Cheapest`] alone.
    pub cost: u64,
}

/// How an attempt has ended, as far as its target's speed goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer, after so long.
    Answered(Nanos),
    /// Without one.
    Failed,
    /// By somebody else's doing: an answer would have taken longer than this.
    Left(Nanos),
}

/// What is known of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Attempts that it was chosen for.
    pub chosen: u64,
    /// Those of them that are under way.
    pub under_way: u64,
    /// What its answers take: the median of the latest.
    pub latency: Option<Nanos>,
}

#[derive(Debug)]
struct Slot {
    weight: u32,
    /// What its turns are short of what its weight is due, in turns times the sum of weights.
    credit: i64,
    chosen: u64,
    /// When it was chosen last, counted in choices.
    turn: u64,
    under_way: u64,
    /// Those of them that nothing has been heard of.
    awaited: u64,
    /// When something was heard of the awaited, or when they began to be.
    heard: Nanos,
    /// Attempts that were left while little was known.
    left: usize,
    /// Attempts that stand in its line.
    standing: u64,
    latency: Latency,
}

impl Slot {
    /// What an answer is expected to take, if enough is known: as long at least as the awaited
    /// have been silent.
    fn expected(&self, now: Nanos) -> Option<Nanos> {
        let silent = if self.awaited > 0 { now.saturating_sub(self.heard) } else { 0 };
        self.latency.expected().map(|expected| expected.max(silent))
    }

    /// Whether too little is known, and too little is on its way to be.
    fn is_to_be_tried(&self) -> bool {
        let tried = self.latency.known() as u64 + self.left as u64 + self.under_way;
        self.latency.expected().is_none() && tried < ENOUGH as u64
    }
}

/// Targets, and what they have been asked and have answered.
#[derive(Debug)]
pub struct Route {
    kind: Kind,
    slots: Vec<Slot>,
    /// Choices made.
    turns: u64,
}

impl Route {
    /// Of targets with these weights.
    #[must_use]
    pub fn new(kind: Kind, weights: &[u32]) -> Self {
        let slot = |&weight: &u32| Slot {
            weight: weight.max(1),
            credit: 0,
            chosen: 0,
            turn: 0,
            under_way: 0,
            awaited: 0,
            heard: 0,
            left: 0,
            standing: 0,
            latency: Latency::default(),
        };
        Self { kind, slots: weights.iter().map(slot).collect(), turns: 0 }
    }

    /// By what it chooses.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The best of those that can take the attempt now; nothing is counted until
    /// [`Route::choose`]. `None`: none can. The time matters to [`Kind::Fastest`] alone, in all
    /// that is told it.
    #[must_use]
    pub fn best(&self, candidates: &[Candidate], time: Nanos) -> Option<usize> {
        let now = |&at: &usize| candidates[at].available_in == 0;
        let fresh = |&at: &usize| !candidates[at].failed_before;
        let all = 0..self.slots.len().min(candidates.len());
        let any_fresh = all.clone().any(|at| now(&at) && fresh(&at));
        let group = all.filter(now).filter(|at| !any_fresh || fresh(at));
        let by_load = |a: usize, b: usize| self.by_load(a, b).then(a.cmp(&b));
        match self.kind {
            Kind::Ordered => group.min(),
            Kind::Weighted => group.min_by(|&a, &b| {
                let due = |at: usize| self.slots[at].credit + i64::from(self.slots[at].weight);
                due(b).cmp(&due(a)).then_with(|| by_load(a, b))
            }),
            Kind::Cheapest => group.min_by(|&a, &b| {
                candidates[a].cost.cmp(&candidates[b].cost).then_with(|| by_load(a, b))
            }),
            Kind::Fastest if (self.turns + 1).is_multiple_of(EXPLORE) => {
                group.min_by_key(|&at| (self.slots[at].turn, at))
            }
            // One of which too little is known is tried, but not by more than it takes to know:
            // nobody else would be asked while it hangs.
            Kind::Fastest => group.min_by(|&a, &b| {
                let key = |at: usize| {
                    let slot: &Slot = &self.slots[at];
                    (!slot.is_to_be_tried(), slot.expected(time).unwrap_or(NEVER))
                };
                key(a).cmp(&key(b)).then_with(|| by_load(a, b))
            }),
        }
    }

    /// The one that can take the attempt first, when none can now, and how long that is.
    /// `None`: none ever will.
    #[must_use]
    pub fn first_to_return(&self, candidates: &[Candidate]) -> Option<(usize, Nanos)> {
        let all = candidates.iter().enumerate().take(self.slots.len());
        all.filter(|(_, candidate)| candidate.available_in < NEVER)
            .min_by(|&(a, left), &(b, right)| {
                let key = |one: &Candidate| (one.available_in, one.failed_before);
                key(left).cmp(&key(right)).then_with(|| self.by_load(a, b)).then(a.cmp(&b))
            })
            .map(|(at, candidate)| (at, candidate.available_in))
    }

    /// An attempt goes to that target; the others it could have gone to come nearer to their
    /// turns.
    pub fn choose(&mut self, at: usize, candidates: &[Candidate], now: Nanos) {
        let Some(chosen) = candidates.get(at).copied() else { return };
        self.turns += 1;
        let mut total = 0_i64;
        for (index, (slot, candidate)) in self.slots.iter_mut().zip(candidates).enumerate() {
            let could =
                candidate.available_in == 0 && candidate.failed_before == chosen.failed_before;
            if could || index == at {
                slot.credit += i64::from(slot.weight);
                total += i64::from(slot.weight);
            }
        }
        let Some(slot) = self.slots.get_mut(at) else { return };
        slot.credit -= total;
        slot.chosen += 1;
        slot.turn = self.turns;
        slot.under_way += 1;
        if slot.awaited == 0 {
            slot.heard = now;
        }
        slot.awaited += 1;
    }

    /// An attempt that was to go there does not: it counts as never chosen, but for its turn.
    pub fn unchoose(&mut self, at: usize) {
        if let Some(slot) = self.slots.get_mut(at) {
            slot.chosen = slot.chosen.saturating_sub(1);
            slot.under_way = slot.under_way.saturating_sub(1);
            slot.awaited = slot.awaited.saturating_sub(1);
        }
    }

    /// An attempt that is under way there has begun to answer.
    pub fn hear(&mut self, at: usize, now: Nanos) {
        let Some(slot) = self.slots.get_mut(at) else { return };
        slot.awaited = slot.awaited.saturating_sub(1);
        slot.heard = now;
    }

    /// An attempt has ended there, which had or had not been [heard](Route::hear) of.
    pub fn end(&mut self, at: usize, ended: Ended, heard: bool, now: Nanos) {
        let Some(slot) = self.slots.get_mut(at) else { return };
        slot.under_way = slot.under_way.saturating_sub(1);
        if !heard {
            slot.awaited = slot.awaited.saturating_sub(1);
        }
        let took = match ended {
            Ended::Answered(took) => Some(took),
            Ended::Failed => None,
            Ended::Left(took) => {
                match slot.latency.expected() {
                    // No news, unless it has taken longer than it should.
                    Some(expected) if took > expected => slot.latency.observe(Some(took)),
                    Some(_) => {}
                    None => slot.left = slot.left.saturating_add(1),
                }
                return;
            }
        };
        slot.latency.observe(took);
        if !heard {
            slot.heard = now;
        }
    }

    /// Somebody has come to stand in that target's line, or has left it.
    pub fn stand(&mut self, at: usize, stands: bool) {
        if let Some(slot) = self.slots.get_mut(at) {
            slot.standing =
                if stands { slot.standing + 1 } else { slot.standing.saturating_sub(1) };
        }
    }

    /// What is known of each target.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        let seen = |slot: &Slot| Seen {
            chosen: slot.chosen,
            under_way: slot.under_way,
            latency: slot.latency.median(),
        };
        self.slots.iter().map(seen).collect()
    }

    /// Who has less to do for its weight.
    fn by_load(&self, a: usize, b: usize) -> Ordering {
        let (a, b) = (&self.slots[a], &self.slots[b]);
        let work = |one: &Slot, other: &Slot| {
            u128::from(one.under_way + one.standing) * u128::from(other.weight)
        };
        work(a, b).cmp(&work(b, a))
    }
}
