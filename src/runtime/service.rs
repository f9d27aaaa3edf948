//! A near cache in front of a tier, and what happens when the tier is away.

use std::sync::Arc;
use std::time::Duration;

use super::counts::Counts;
use super::entered::Entered;
use super::frame::{Body, Codec, unpack};
use super::granted::Granted;
use super::near::{Cut, Held, Near};
use super::notices::Notices;
use super::outage::{Kind, Outages};
use super::owed::{Noted, Owed};
use super::place::{Id, Place};
use super::tier::{Done, Lease, Outcome, Parcel, Part, Reply, Request, Tier, TierError};
use super::watch::Watch;
use crate::core::clock::{Clock, NEVER, Nanos, nanos_from_duration, unix_millis};

/// What does not change over a service's life.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How values become bytes.
    pub codec: Codec,
    /// The longest value, in bytes before compression.
    pub max_value_bytes: usize,
    /// From how many bytes on values are compressed.
    pub threshold: Option<usize>,
    /// Whether anything is stored at all.
    pub enabled: bool,
}

/// What a request came to.
#[derive(Debug)]
pub enum Answer {
    /// A value.
    Value(Body),
    /// Nothing there.
    Missing,
    /// Whether it was there, or was done.
    Did(bool),
    /// The caller is the one process that loads.
    Leased(Granted),
    /// Another process loads; its lease ends then, unless it is renewed.
    Busy(Duration),
    /// There is a value, but none of this service's codec.
    Unreadable,
    /// The tier is away. Counted; callers see it only if they asked for it.
    Failed(TierError),
}

/// A near cache and, behind it, perhaps a tier.
pub struct Service {
    settings: Settings,
    near: Arc<Near>,
    tier: Option<Arc<dyn Tier>>,
    clock: Clock,
    counts: Counts,
    outages: Arc<Outages>,
    owed: Arc<Owed>,
    notices: Arc<Notices>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Service {
    /// A service; without a tier the near cache is the store. `owed` is the tier's as well, if that
    /// [pays](Tier::pays).
    #[must_use]
    pub fn new(
        settings: Settings,
        near: Arc<Near>,
        tier: Option<Arc<dyn Tier>>,
        clock: Clock,
        notices: Arc<Notices>,
        owed: Arc<Owed>,
        outages: Arc<Outages>,
    ) -> Arc<Self> {
        let counts = Counts::default();
        Arc::new(Self { settings, near, tier, clock, counts, outages, owed, notices })
    }

    /// What it was made with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its counters.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Its near cache.
    #[must_use]
    pub fn near(&self) -> &Near {
        &self.near
    }

    /// Its tier.
    #[must_use]
    pub fn tier(&self) -> Option<&Arc<dyn Tier>> {
        self.tier.as_ref()
    }

    /// The value at a place, if the near cache has it; counts a hit.
    #[must_use]
    pub fn find(&self, id: &Id) -> Option<Arc<Held>> {
        let held = self.near.find(id)?;
        Counts::add(&self.counts.near_hits);
        Some(held)
    }

    /// Takes a value into the near cache as it is written: to be seen at once in this process.
    pub fn put(
        &self,
        place: &Place,
        body: Body,
        ttl: Option<Duration>,
        tags: Arc<[Box<str>]>,
    ) -> Option<u64> {
        Counts::add(&self.counts.sets);
        let kept = self.near.put(place, body, self.deadline(ttl), tags);
        if kept.is_none() && self.tier.is_none() {
            Counts::add(&self.counts.rejections);
        }
        kept
    }

    /// The same for what was loaded `since` then under a lease that only this process knows of: it
    /// is only taken in if nothing that concerns it has changed.
    pub fn keep(
        &self,
        since: Option<u64>,
        place: &Place,
        body: Body,
        ttl: Option<Duration>,
        tags: Arc<[Box<str>]>,
    ) -> bool {
        let Some(since) = since else { return self.put(place, body, ttl, tags).is_some() };
        Counts::add(&self.counts.sets);
        let kept = self.near.offer_loaded(since, place, body, self.deadline(ttl), tags);
        if !kept {
            Counts::add(&self.counts.outdated);
        }
        kept
    }

    fn deadline(&self, ttl: Option<Duration>) -> Nanos {
        ttl.map_or(NEVER, |ttl| self.clock.now().saturating_add(nanos_from_duration(ttl)))
    }

    /// Sends a request to the tier; `then` gets the answer in whatever thread it comes.
    pub fn send(self: &Arc<Self>, request: Request, then: impl FnOnce(Answer) + Send + 'static) {
        self.submit(request, then, &Sender::Anybody);
    }

    /// The same by the thread of an event loop that looks at `watch`.
    pub fn send_watched(
        self: &Arc<Self>,
        request: Request,
        then: impl FnOnce(Answer) + Send + 'static,
        watch: &Arc<Watch>,
    ) {
        self.submit(request, then, &Sender::Loop(watch));
    }

    pub(super) fn submit(
        self: &Arc<Self>,
        request: Request,
        then: impl FnOnce(Answer) + Send + 'static,
        sender: &Sender<'_>,
    ) -> bool {
        let service = Arc::clone(self);
        let (digest, kind) = (self.digest(&request), Kind::of(&request));
        let way = match (&request, &self.tier) {
            // Its tier is to stop renewing it in any case.
            (Request::Release(..), Some(tier)) => Ok(tier),
            // A load begins with a get, whose wait was enough.
            (Request::Lease { .. }, _) if self.outages.was_late(Kind::Read, self.clock.now()) => {
                Err(TierError::Late)
            }
            _ => self.way(kind),
        };
        match way {
            Ok(tier) => {
                if kind == Kind::Write && !self.owed.is_empty() {
                    // Before it, so that nothing newer goes with what is to be forgotten.
                    self.pay();
                }
                let done = Done::new(move |outcome| then(service.answer(kind, digest, outcome)));
                match sender {
                    Sender::Helper => return tier.submit_helped(request, done),
                    Sender::Loop(watch) => tier.submit_watched(request, done, watch),
                    Sender::Anybody => tier.submit(request, done),
                }
            }
            Err(error) => {
                Counts::add(&self.counts.skipped);
                then(self.answer_failed(digest, error));
            }
        }
        false
    }

    pub(super) fn ask_here(self: &Arc<Self>, request: &Request) -> Answer {
        let (digest, kind) = (self.digest(request), Kind::of(request));
        match self.way(kind) {
            Ok(tier) => self.answer(kind, digest, tier.answer_here(request)),
            Err(error) => {
                Counts::add(&self.counts.skipped);
                self.answer_failed(digest, error)
            }
        }
    }

    fn way(&self, kind: Kind) -> Result<&Arc<dyn Tier>, TierError> {
        let Some(tier) = &self.tier else { return Err(TierError::Lost) };
        self.outages.may_ask(kind, self.clock.now())?;
        Ok(tier)
    }

    fn digest(&self, request: &Request) -> Digest {
        let read = self.near.present();
        match request {
            Request::Get(place) | Request::Lease { place, .. } => Digest::Read(read, place.clone()),
            Request::Set { place, parcel, ttl, tags, lease: Some(lease) } => Digest::Loaded {
                read,
                place: place.clone(),
                body: parcel.body.clone(),
                ttl: *ttl,
                tags: tags.clone(),
                lease: *lease,
            },
            Request::Set { place, parcel, lease: None, .. } => {
                Digest::Written(place.clone(), parcel.near)
            }
            Request::Exists(place) => Digest::Asked(place.clone()),
            Request::Delete(_) | Request::InvalidateNamespace(_) | Request::InvalidateTag(_) => {
                Digest::Outdated(request.clone())
            }
            _ => Digest::Other,
        }
    }

    fn answer_failed(&self, digest: Digest, error: TierError) -> Answer {
        let lives = !matches!(error, TierError::Ended);
        match digest {
            Digest::Read(..) => Counts::add(&self.counts.misses),
            Digest::Loaded { place, lease, .. } if lives => {
                // Not renewed from now on, and ended in the store as soon as that answers.
                if let Some(tier) = &self.tier {
                    tier.submit(Request::Release(place.clone(), lease), Done::new(drop));
                }
                self.owe(Request::Delete(place));
            }
            Digest::Written(place, _) if lives => self.owe(Request::Delete(place)),
            Digest::Outdated(request) if lives => self.owe(request),
            _ => {}
        }
        Answer::Failed(error)
    }

    /// What the store still has is not to be served any more.
    fn owe(&self, request: Request) {
        let moment = self.tier.as_ref().map(|tier| tier.moment()).unwrap_or_default();
        if !self.owed.note(request, Noted { since: unix_millis(&self.clock), moment }) {
            self.notices.add(
                "too much was invalidated while the store was away; it may serve what is outdated"
                    .into(),
            );
        }
    }

    /// Tells a store that answers again what it was to forget.
    fn pay(self: &Arc<Self>) {
        let Some(tier) = self.tier.as_ref().filter(|tier| !tier.pays()) else { return };
        self.owed.pay(|debt, done| tier.settle(debt, done));
    }

    /// What a tier's outcome means; runs in the tier's thread.
    fn answer(self: &Arc<Self>, kind: Kind, digest: Digest, outcome: Outcome) -> Answer {
        // Whoever read the store while this was on its way may have brought home what was there
        // before; the watcher of a tier leaves out what this process changes.
        match &digest {
            Digest::Written(place, near) => self.near.confirm(place, *near),
            Digest::Outdated(Request::Delete(place)) => {
                self.near.remove(place.id());
            }
            Digest::Outdated(Request::InvalidateNamespace(ns)) => {
                self.near.cut(Cut::Namespace, ns);
            }
            Digest::Outdated(Request::InvalidateTag(tag)) => self.near.cut(Cut::Tag, tag),
            _ => {}
        }
        let reply = match outcome {
            Ok(reply) => reply,
            Err(error) => {
                Counts::add(&self.counts.errors);
                if let TierError::Full(why) = &error {
                    if let Some(said) = self.outages.filled(why) {
                        self.notices.add(said);
                    }
                    let answer = self.answer_failed(digest, error);
                    // It answers, and can forget what it could not replace.
                    self.recovered(kind);
                    return answer;
                }
                self.failed(kind, &error);
                return self.answer_failed(digest, error);
            }
        };
        let newer = match &digest {
            Digest::Written(place, _) => Some((place, u64::MAX)),
            // What was deleted during a load is not settled by it.
            Digest::Loaded { place, lease, .. } => Some((place, lease.token)),
            _ => None,
        };
        if let Some((place, count)) = newer {
            self.owed.settle(place, count);
            if matches!(reply, Reply::Done)
                && let Some(said) = self.outages.stored()
            {
                self.notices.add(said);
            }
        }
        self.recovered(kind);
        match (reply, digest) {
            (Reply::Value(found), Digest::Read(read, place)) => {
                let Settings { codec, max_value_bytes, .. } = self.settings;
                let Some(body) = unpack(codec, &found.payload, max_value_bytes) else {
                    Counts::add(&self.counts.unreadable);
                    Counts::add(&self.counts.misses);
                    return Answer::Unreadable;
                };
                if self.owed.covers(&place, &found.tags) {
                    Counts::add(&self.counts.misses);
                    return Answer::Missing;
                }
                Counts::add(&self.counts.tier_hits);
                let deadline = self.deadline(found.remaining);
                self.near.offer(read, &place, body.clone(), deadline, found.tags);
                Answer::Value(body)
            }
            (Reply::Value(found), _) => Answer::Value(Body::of(found.payload)),
            (Reply::Missing, _) => {
                Counts::add(&self.counts.misses);
                Answer::Missing
            }
            (Reply::Done, Digest::Loaded { read, place, body, ttl, tags, .. }) => {
                self.near.offer(read, &place, body, self.deadline(ttl), tags);
                Answer::Did(true)
            }
            (Reply::Done, _) => Answer::Did(true),
            (Reply::Was(was), Digest::Asked(place)) => {
                Answer::Did(was && !self.owed.covers(&place, &[]))
            }
            (Reply::Was(was), _) => Answer::Did(was),
            (Reply::Refused, digest) => {
                let loaded = matches!(digest, Digest::Loaded { .. });
                let Counts { outdated, rejections, .. } = &self.counts;
                Counts::add(if loaded { outdated } else { rejections });
                Answer::Did(false)
            }
            (Reply::Leased(lease), Digest::Read(_, place)) => {
                // Given back when nobody uses it.
                Answer::Leased(Granted::new(Arc::clone(self), place, lease))
            }
            (Reply::Leased(_), _) => Answer::Did(false),
            (Reply::Busy(remaining), _) => Answer::Busy(remaining),
        }
    }

    fn failed(&self, kind: Kind, error: &TierError) {
        if let Some(said) = self.outages.failed(kind, error, self.clock.now()) {
            self.notices.add(said);
        }
    }

    fn recovered(self: &Arc<Self>, kind: Kind) {
        if let Some(said) = self.outages.recovered(kind) {
            self.notices.add(said);
        }
        if !self.owed.is_empty() {
            self.pay();
        }
    }

    /// Leave to load where no store gives it: there is none, or it is away.
    #[must_use]
    pub fn granted_here(self: &Arc<Self>, place: Place) -> Granted {
        Granted::here(Arc::clone(self), place)
    }

    /// How many changes the store could not be told yet.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.owed.len()
    }

    /// Outdates a namespace or a tag in this process.
    pub fn cut(&self, what: Cut, name: &str) {
        Counts::add(&self.counts.invalidations);
        self.near.cut(what, name);
    }

    /// Removes a value from this process's memory; true if it was alive.
    pub fn remove(&self, place: &Place) -> bool {
        Counts::add(&self.counts.deletes);
        self.near.remove(place.id())
    }

    /// Whether the tier is away, for reading or for writing.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.outages.is_away()
    }

    /// What is to be logged.
    #[must_use]
    pub fn notices(&self) -> &Notices {
        &self.notices
    }

    /// Ready to have `request` answered in this thread, if the tier does that. To be called
    /// attached.
    #[must_use]
    pub fn enter(self: &Arc<Self>, request: &Request) -> Option<(Part, Entered)> {
        let part = self.tier.as_ref().and_then(|tier| tier.enter(request));
        part.map(|part| (part, Entered::new(Arc::clone(self))))
    }

    /// Ready to help once more. To be called attached.
    #[must_use]
    pub fn enter_again(self: &Arc<Self>) -> Option<Entered> {
        let entered = self.tier.as_ref().is_some_and(|tier| tier.enter_again());
        entered.then(|| Entered::new(Arc::clone(self)))
    }

    /// Ready to end the tier's threads, also once it takes no requests any more. To be called
    /// attached.
    #[must_use]
    pub fn enter_to_close(self: &Arc<Self>) -> Option<Entered> {
        let entered = self.tier.as_ref().is_some_and(|tier| tier.enter_to_close());
        entered.then(|| Entered::new(Arc::clone(self)))
    }
}

/// Who sends a request.
pub(super) enum Sender<'a> {
    /// Nobody that could do anything for it.
    Anybody,
    /// A blocked thread that has entered.
    Helper,
    /// The thread of an event loop, and what that watches.
    Loop(&'a Arc<Watch>),
}

/// What the answer to a request will need to know of it.
enum Digest {
    Read(u64, Place),
    Loaded {
        read: u64,
        place: Place,
        body: Body,
        ttl: Option<Duration>,
        tags: Arc<[Box<str>]>,
        lease: Lease,
    },
    /// With its number in the near cache.
    Written(Place, Option<u64>),
    Asked(Place),
    /// A delete or an invalidation.
    Outdated(Request),
    Other,
}

/// A parcel for this service, with the number that the near cache has given it.
#[must_use]
pub fn parcel(settings: &Settings, body: Body, near: Option<u64>) -> Parcel {
    Parcel { codec: settings.codec, body, threshold: settings.threshold, near }
}
