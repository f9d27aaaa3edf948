//! What [`lua`](super::super::lua) does, for one limit.

use std::collections::{BTreeMap, HashMap};

use super::{Id, PERIOD, VALIDITY};
use crate::core::clock::{Nanos, SECOND};
use crate::core::limiter::shared::Ask;
use crate::runtime::redis::limits::link::{GONE, HEARD, SILENT};

/// More than there can be: whoever comes says how many.
const NOBODY_KNOWS: u64 = 1_000_000;

/// What `lua` keeps.
#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    pub(super) epoch: Option<u64>,
    pub(super) run: u64,
    pub(super) born: Nanos,
    pub(super) last: Nanos,
    pub(super) expect: Option<(u64, Nanos)>,
    pub(super) came: u64,
    pub(super) members: BTreeMap<Id, Nanos>,
    pub(super) among: HashMap<Id, u64>,
    /// Permits by when they leave the window.
    pub(super) ends: BTreeMap<Nanos, u64>,
}

#[derive(Clone, Debug)]
pub(super) enum Request {
    Connect,
    Beat {
        join: bool,
        known: Option<u64>,
        peers: u64,
        last_beat: Nanos,
        not_after: Nanos,
        heard: Nanos,
    },
    Lease {
        epoch: Option<u64>,
        not_after: Nanos,
        ask: Ask<u8>,
    },
    Tell {
        epoch: Option<u64>,
        not_after: Nanos,
        used: Vec<(Nanos, u64)>,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Reply {
    Connected,
    Beat { epoch: u64, time: Nanos, joined: bool, members: u64 },
    Lease { time: Nanos, granted: u32, slice: Nanos, left: u64 },
    Told { time: Nanos },
    Late { time: Nanos },
    OtherEpoch { time: Nanos },
}

impl Store {
    pub(super) fn carry_out(
        &mut self,
        now: Nanos,
        run: u64,
        limit: u64,
        who: Id,
        request: &Request,
    ) -> Reply {
        match request {
            Request::Connect => Reply::Connected,
            Request::Beat { join, known, peers, last_beat, not_after, heard } => {
                let join = *join && (*not_after == 0 || now <= *not_after);
                self.beat(now, run, who, join, *known, *peers, *last_beat, *heard)
            }
            Request::Lease { epoch, not_after, .. } | Request::Tell { epoch, not_after, .. }
                if *epoch != self.epoch || *not_after > 0 && now > *not_after =>
            {
                let other = *epoch != self.epoch;
                if other { Reply::OtherEpoch { time: now } } else { Reply::Late { time: now } }
            }
            Request::Lease { ask, .. } => self.lease(now, limit, who, ask),
            Request::Tell { used, .. } => {
                for (age, used) in used {
                    *self.ends.entry(now - age + PERIOD).or_default() += used;
                }
                Reply::Told { time: now }
            }
        }
    }

    fn lease(&mut self, now: Nanos, limit: u64, who: Id, ask: &Ask<u8>) -> Reply {
        let mut shut = false;
        if let Some((expect, until)) = self.expect {
            shut = now < until && self.came < expect;
            if !shut {
                self.expect = None;
            }
        }
        self.ends = self.ends.split_off(&(now + 1));
        for (slice, permits) in &ask.back {
            if let Some(held) = self.ends.get_mut(&(slice + PERIOD)) {
                *held -= u64::from(*permits).min(*held);
            }
        }
        let quiet = self
            .members
            .iter()
            .filter(|(id, heard)| **id != who && **heard < now - SILENT && **heard >= now - GONE);
        let kept: u64 = quiet.map(|(id, _)| limit / self.among.get(id).copied().unwrap_or(1)).sum();
        let left = limit.saturating_sub(self.ends.values().sum::<u64>() + kept);
        let most = u32::try_from(left).unwrap().min(ask.want);
        let granted = if most >= ask.least && !shut { most } else { 0 };
        let slice = now + VALIDITY;
        *self.ends.entry(slice + PERIOD).or_default() += u64::from(granted);
        Reply::Lease { time: now, granted, slice, left: left - u64::from(granted) }
    }

    #[expect(clippy::too_many_arguments, reason = "as many as the script has")]
    fn beat(
        &mut self,
        now: Nanos,
        run: u64,
        who: Id,
        join: bool,
        known: Option<u64>,
        peers: u64,
        last_beat: Nanos,
        heard: Nanos,
    ) -> Reply {
        let mut waits = peers.max(self.members.len() as u64);
        let set_back = self.last > now + SECOND || self.epoch == known && self.last < last_beat;
        if self.run != run || set_back {
            self.epoch = None;
        }
        if let Some(epoch) = self.epoch {
            let before = self.expect.map_or(0, |one| one.0);
            let before = if before == NOBODY_KNOWS { 0 } else { before };
            if Some(epoch) != known && peers > 0 && now < self.born + GONE {
                self.expect = Some((peers.max(before), self.born + GONE));
            }
            waits = waits.max(before);
            if self.last < now - SILENT && waits > 0 {
                self.members.clear();
                (self.expect, self.came) = (Some((waits, now + GONE)), 0);
            }
        } else {
            // What was of the last epoch is under another name.
            *self = Self { epoch: Some(now), run, born: now, ..Self::default() };
            let unknown = (NOBODY_KNOWS, now + HEARD);
            self.expect = Some(if waits > 0 { (waits, now + GONE) } else { unknown });
        }
        self.last = now;
        self.members.retain(|_, heard| *heard > now - GONE);
        let joined = join && (self.epoch == known || peers == 0);
        if joined {
            let heard = if peers > 0 { now.min(heard.max(now - SILENT - 1)) } else { now };
            if self.members.insert(who, heard).is_none() && peers > 0 {
                self.came += 1;
            }
            let all = self.members.len() as u64;
            self.among.insert(who, if peers > 0 { all.min(peers) } else { all });
        }
        let (epoch, members) = (self.epoch.unwrap_or_default(), self.members.len() as u64);
        Reply::Beat { epoch, time: now, joined, members }
    }
}
