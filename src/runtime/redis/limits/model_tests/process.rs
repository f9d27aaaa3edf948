//! What [`talk`](super::super::talk) does, step by step.

use super::store::{Reply, Request};
use super::{Doing, Event, Id, MS, PATIENCE, PAUSE, VALIDITY, World};
use crate::core::clock::Nanos;
use crate::core::limiter::Outbox;
use crate::core::limiter::shared::{Charge, Leases};
use crate::runtime::redis::limits::link::{BEAT, Link};

impl World {
    pub(super) fn send(&mut self, id: Id, request: Request) {
        let now = self.now();
        self.number += 1;
        let number = self.number;
        let there = self.any(2) * MS + if self.slow.1 > now { self.slow.0 } else { 0 };
        let mut back = Some(self.any(2) * MS + if self.slow.1 > now { self.slow.0 } else { 0 });
        let mut arrives = self.up;
        if let Some((until, both)) = self.cut.get(&id)
            && *until > now
        {
            back = None;
            arrives = arrives && !both;
        }
        match if self.lossy { self.any(200) } else { 200 } {
            0 => arrives = false,
            1 => back = None,
            2 => back = Some((100 + self.any(400)) * MS),
            _ => {}
        }
        if arrives {
            self.at(now + there, Event::Reaches(id, number, self.run, request.clone(), back));
        }
        // One that is not there refuses at once.
        let patience = if self.up { PATIENCE } else { 0 };
        self.at(now + patience, Event::GivesUp(id, number));
        self.processes[id].doing = Doing::Waits { number, sent: now, request: Box::new(request) };
    }

    fn not_after(link: &Link, sent: Nanos) -> Nanos {
        match link.latest(sent) {
            0 => 0,
            latest => latest * 1000 + PATIENCE,
        }
    }

    fn epoch(link: &Link) -> Option<u64> {
        link.epoch.as_ref().and_then(|one| one.parse().ok())
    }

    pub(super) fn beat(&mut self, id: Id, join: bool) {
        let now = self.now();
        let link = &self.processes[id].link;
        let request = Request::Beat {
            join,
            known: Self::epoch(link),
            peers: u64::from(link.peers()),
            last_beat: link.last_beat * 1000,
            not_after: Self::not_after(link, now),
            heard: link.last_heard() * 1000,
        };
        self.send(id, request);
    }

    /// As `Talk::try_round` goes on.
    pub(super) fn round(&mut self, id: Id) {
        let now = self.now();
        if !self.processes[id].connected {
            return self.send(id, Request::Connect);
        }
        let process = &mut self.processes[id];
        if !process.link.joined {
            let past = process.link.has_past();
            return match process.joining.as_mut().map(Vec::pop) {
                None if past => self.beat(id, false),
                Some(Some(told)) => self.send(id, told),
                _ => self.beat(id, true),
            };
        }
        if now >= process.link.beat_at + BEAT {
            return self.beat(id, true);
        }
        let wanted = process.limiter.due();
        let Some(ask) = wanted.asks.into_iter().next() else {
            let next = wanted.next.min(process.link.beat_at + BEAT);
            return self.round_at(next, id);
        };
        let (epoch, not_after) = (Self::epoch(&process.link), Self::not_after(&process.link, now));
        self.send(id, Request::Lease { epoch, not_after, ask });
    }

    pub(super) fn hears(&mut self, id: Id, sent: Nanos, request: Request, reply: Reply) {
        let now = self.now();
        let mut out = Outbox::new();
        let process = &mut self.processes[id];
        let (link, limiter) = (&mut process.link, &process.limiter);
        match reply {
            Reply::Connected => {
                process.connected = true;
                link.beat_at = 0;
            }
            Reply::Beat { epoch, time, joined, members } => {
                let Request::Beat { join, .. } = request else { unreachable!() };
                link.heard(sent, now, time / 1000);
                link.joined = joined;
                link.beat_at = now;
                let epoch = Some(epoch.to_string());
                if epoch != link.epoch || joined {
                    link.last_beat = time / 1000;
                }
                if link.has_past() && epoch != link.epoch {
                    link.untold = Some(0);
                }
                link.epoch = epoch;
                if joined {
                    limiter.shared_by(link.shared_by(members, now));
                    process.joining = None;
                    link.untold = None;
                    if limiter.lost_at().is_some() {
                        limiter.found(&mut out);
                    }
                } else {
                    process.joining = None;
                    if !join {
                        limiter.found(&mut out);
                        let charges = link.untold.map(|since| limiter.charges(since));
                        let tell = |charge: Charge<u8>| Request::Tell {
                            epoch: Self::epoch(link),
                            not_after: 0,
                            used: charge.used.iter().map(|(at, used)| (now - at, *used)).collect(),
                        };
                        let told = charges.unwrap_or_default().into_iter().map(tell).collect();
                        process.joining = Some(told);
                    } else if process.link.has_past() {
                        // It was too late, or another epoch has begun.
                        return self.round_at(now + MS, id);
                    }
                }
            }
            Reply::Lease { time, granted, slice, left } => {
                let Request::Lease { ask, .. } = request else { unreachable!() };
                link.heard(sent, now, time / 1000);
                let (want, until, again) = (ask.want, sent + VALIDITY, now + 2 * MS);
                let leases = Leases { want, granted, until, slice, again, left };
                limiter.arrived(None, &leases, &mut out);
            }
            Reply::Told { time } => link.heard(sent, now, time / 1000),
            Reply::Late { time } | Reply::OtherEpoch { time } => {
                link.heard(sent, now, time / 1000);
                if matches!(request, Request::Tell { .. }) {
                    return self.fails(id, &request);
                }
                link.joined = link.joined && matches!(reply, Reply::Late { .. });
                limiter.failed(None, now);
            }
        }
        self.round_at(now, id);
    }

    pub(super) fn fails(&mut self, id: Id, request: &Request) {
        let now = self.now();
        let process = &mut self.processes[id];
        if matches!(request, Request::Lease { .. }) {
            process.limiter.failed(None, now + PAUSE);
        }
        process.connected = false;
        process.joining = None;
        process.link.failed();
        if process.link.has_past() && process.link.is_lost(now) {
            process.link.joined = false;
            if process.link.is_known() {
                process.link.untold.get_or_insert(now);
                process.limiter.lost(&mut Outbox::new());
            }
        }
        self.round_at(now + PAUSE, id);
    }
}
