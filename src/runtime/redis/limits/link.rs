//! What this process knows of the store, and how it becomes one of those that share.

use crate::core::clock::{Nanos, SECOND};

/// Heard of so often.
pub(super) const BEAT: Nanos = SECOND / 4;
/// Of those that get answers one is heard within so long.
pub(super) const HEARD: Nanos = 2 * BEAT;
/// Not heard for so long, a process may be on its own, and is taken for it.
pub(super) const SILENT: Nanos = SECOND;
/// Not heard for so long, it has gone.
pub(super) const GONE: Nanos = 5 * SECOND;
/// All that are heard have been told of a new one after so long.
pub(super) const KNOWN: Nanos = SILENT + SECOND;
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
    /// Since when fewer are told of.
    fewer_since: Option<Nanos>,
    /// Since when the others may know of this one.
    known_since: Option<Nanos>,
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
            fewer_since: None,
            known_since: None,
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
        if now.saturating_sub(self.heard_at) > GONE {
            // The others may have taken this one for gone.
            self.known_since = None;
        }
        self.heard_at = now;
        self.failures = 0;
    }

    /// The server's time of the last answer; 0: there was none.
    pub(super) fn last_heard(&self) -> u64 {
        self.seen.map_or(0, |seen| seen.time)
    }

    /// Nobody answers.
    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.fewer_since = None;
    }

    /// Whether all others count this one in by now. If not, no share is left for it.
    pub(super) fn is_known(&self) -> bool {
        self.known_since.is_some_and(|since| self.heard_at.saturating_sub(since) >= KNOWN)
    }

    /// It is none of those that share any more.
    pub(super) fn left(&mut self) {
        self.epoch = None;
        self.last_beat = 0;
        self.known_since = None;
    }

    /// So many share now, of which this is one. Fewer are believed once those that are missing must
    /// have come back: the first one that finds a store anew is alone there for a moment.
    pub(super) fn shared_by(&mut self, members: u64, now: Nanos) -> u32 {
        self.known_since.get_or_insert(now);
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        let since = *self.fewer_since.get_or_insert(now);
        if members >= self.members || now.saturating_sub(since) > GONE + SECOND {
            self.members = members;
            self.fewer_since = None;
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
