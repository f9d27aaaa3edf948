//! What this process knows of the store, and how it becomes one of those that share.

use crate::core::clock::{Nanos, SECOND};

/// Heard of so often.
pub(super) const BEAT: Nanos = SECOND / 4;
/// Not heard for so long, a process may be on its own, and is taken for it.
pub(super) const SILENT: Nanos = SECOND;
/// Not heard for so long, it has gone.
pub(super) const GONE: Nanos = 5 * SECOND;
/// So many failures in a row at least, and the store is lost: one that was stopped itself finds
/// that out before.
pub(super) const FAILURES: u32 = 3;

/// The time, here and there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// When the question was sent.
    sent: Nanos,
    /// What the server's clock showed when it answered, in microseconds.
    time: u64,
}

/// What outlives a connection.
#[derive(Debug)]
pub(super) struct Link {
    /// Who we are.
    pub(super) member: String,
    /// What we had a part in last.
    pub(super) epoch: Option<String>,
    pub(super) joined: bool,
    members: u32,
    members_at: Nanos,
    seen: Option<Seen>,
    /// The server's time at the last beat.
    pub(super) last_beat: u64,
    pub(super) beat_at: Nanos,
    pub(super) failures: u32,
    pub(super) heard_at: Nanos,
    /// From when on the store does not know what was used here.
    pub(super) untold: Option<Nanos>,
    /// The longest of the last round trips.
    trip: Nanos,
}

impl Link {
    pub(super) fn new(member: String, now: Nanos) -> Self {
        Self {
            member,
            epoch: None,
            joined: false,
            members: 0,
            members_at: 0,
            seen: None,
            last_beat: 0,
            beat_at: 0,
            failures: 0,
            heard_at: now,
            untold: None,
            trip: 0,
        }
    }

    /// An answer to what was sent then.
    pub(super) fn heard(&mut self, sent: Nanos, now: Nanos, time: u64) {
        self.seen = Some(Seen { sent, time });
        let trip = now.saturating_sub(sent);
        self.trip = trip.max(self.trip - self.trip / 8);
        self.heard_at = now;
        self.failures = 0;
    }

    /// So many share now. Those that were there before count until they must have come back: the
    /// first one that finds a store anew is alone there for a moment.
    pub(super) fn shared_by(&mut self, members: u64, now: Nanos) -> u32 {
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        if members >= self.members || now.saturating_sub(self.members_at) > GONE + SECOND {
            self.members = members;
            self.members_at = now;
        }
        self.members
    }

    /// How many share, for all that is known.
    pub(super) fn peers(&self) -> u32 {
        if self.has_past() { self.members.max(1) } else { 0 }
    }

    /// What the server's clock shows at most at that time; 0 if nobody knows.
    pub(super) fn latest(&self, at: Nanos) -> u64 {
        self.seen.map_or(0, |seen| seen.time + at.saturating_sub(seen.sent) / 1000)
    }

    /// How long slices are to be valid: longer than it takes to get them.
    pub(super) fn validity(&self, least: Nanos) -> Nanos {
        least.max(3 * self.trip).min(SECOND)
    }

    /// Whether the store is lost.
    pub(super) fn is_lost(&self, now: Nanos) -> bool {
        self.failures >= FAILURES && now.saturating_sub(self.heard_at) >= SILENT
    }

    /// Whether there is anything to tell a store that has forgotten all.
    pub(super) fn has_past(&self) -> bool {
        self.epoch.is_some()
    }
}
