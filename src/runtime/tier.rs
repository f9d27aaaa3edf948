//! What stands behind the near cache: a store that other processes share.
//!
//! A tier takes requests and answers each exactly once, from whatever thread.
//! It knows bytes, not codecs. It removes from the [`Near`](super::near::Near)
//! cache that it was given whatever other processes change, delete or
//! invalidate.

use std::sync::Arc;
use std::time::Duration;

use super::frame::{Body, Codec, pack};
use super::lifecycle::Tenant;
use super::owed::{Debt, Moment};
use super::place::Place;
use super::watch::Watch;

/// Bytes of a value as they stand in the store (see [`frame`](super::frame)).
pub type Payload = Arc<[u8]>;

/// What may stand between the tags of an entry in a store: no tag has it in it.
pub const BETWEEN: char = '\u{1F}';

/// What a tier can be asked for.
#[derive(Clone, Debug)]
pub enum Request {
    /// [`Reply::Value`] or [`Reply::Missing`].
    Get(Place),
    /// [`Reply::Done`], or [`Reply::Refused`] if `lease` is not held any more.
    Set {
        /// Where.
        place: Place,
        /// What; to be packed in a thread of the tier.
        parcel: Parcel,
        /// For how long; `None` for ever.
        ttl: Option<Duration>,
        /// To be invalidated by.
        tags: Arc<[Box<str>]>,
        /// The lease under which it was loaded, which ends with it: what was deleted or
        /// invalidated since is not stored.
        lease: Option<Lease>,
    },
    /// [`Reply::Was`]: whether it was there.
    Delete(Place),
    /// [`Reply::Was`].
    Exists(Place),
    /// Outdates all of a namespace; [`Reply::Done`].
    InvalidateNamespace(Arc<str>),
    /// Outdates all that carries a tag; [`Reply::Done`].
    InvalidateTag(Arc<str>),
    /// Asks to be the one process that loads. [`Reply::Value`] if somebody has, [`Reply::Leased`]
    /// if the caller is the one (the tier renews the lease until it is released), and
    /// [`Reply::Busy`] if another one is, unless what that one loads is outdated already.
    Lease {
        /// Where.
        place: Place,
        /// What the value will be tagged with.
        tags: Arc<[Box<str>]>,
        /// Whether the value that stands there is of no use to whoever asks, and to be replaced.
        anew: bool,
    },
    /// Gives a lease back without a value; [`Reply::Done`]. Whoever waits tries again.
    Release(Place, Lease),
    /// Waits until another process has ended its lease on it, at most for so long; [`Reply::Done`],
    /// or at once `Reply::Was(false)` if nobody can wait here now.
    Await(Place, Duration),
    /// [`Reply::Done`] if the store answers and can be written to.
    Ping,
}

impl Request {
    /// Whether it only asks, and changes nothing.
    #[must_use]
    pub fn reads(&self) -> bool {
        matches!(self, Self::Get(_) | Self::Exists(_))
    }
}

/// A value on its way to the store.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// What made its bytes.
    pub codec: Codec,
    /// Its bytes.
    pub body: Body,
    /// How long it is to be compressed.
    pub threshold: Option<usize>,
    /// Its number in this process's near cache, if it is there already; nothing to a tier.
    pub near: Option<u64>,
}

impl Parcel {
    /// What is to stand in the store. Compresses, so not to be called attached.
    #[must_use]
    pub fn pack(&self) -> Payload {
        pack(self.codec, self.body.bytes(), self.threshold)
    }
}

/// A tier's permission to load, for one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Tells it from every other lease; [`Lease::HERE`] is none of the store's.
    pub token: u64,
    /// When it was given, as the store has it: its count of changes, or its time. Of a lease that
    /// is none of the store's, the near cache's count.
    pub since: u64,
}

impl Lease {
    /// The token of a load that the store knows nothing of.
    pub const HERE: u64 = 0;

    /// Whether only this process knows of it: it has no store, or that is away.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.token == Self::HERE
    }
}

/// What a tier answers.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Nothing there.
    Missing,
    /// A value.
    Value(Found),
    /// It is done, and survives this process.
    Done,
    /// Whether there was something.
    Was(bool),
    /// Not stored: the lease was lost, or what was loaded is outdated.
    Refused,
    /// The caller is the one that loads.
    Leased(Lease),
    /// Another process loads; its lease ends then, unless it is renewed.
    Busy(Duration),
}

/// A value that a tier found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its bytes.
    pub payload: Payload,
    /// How long it still lives; `None` for ever.
    pub remaining: Option<Duration>,
    /// What it can be invalidated by.
    pub tags: Arc<[Box<str>]>,
}

/// Why a tier could not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TierError {
    /// It cannot be reached, is full, or failed; a sentence for people.
    Away(String),
    /// It refused this write for lack of room, and answers otherwise; a sentence for people.
    Full(String),
    /// That part of it which has this cannot be reached; a sentence for people.
    Part(String),
    /// It did not answer in time.
    Late,
    /// The runtime has ended.
    Ended,
    /// The request went down with the process's threads (a fork).
    Lost,
}

/// How a request ended.
pub type Outcome = Result<Reply, TierError>;

/// Where the one answer goes; without one it is [`TierError::Lost`].
pub struct Done(Option<Box<dyn FnOnce(Outcome) + Send>>);

impl Done {
    /// Has `then` called with the answer, in a thread of the tier: it must neither block
    /// nor attach to the interpreter.
    #[must_use]
    pub fn new(then: impl FnOnce(Outcome) + Send + 'static) -> Self {
        Self(Some(Box::new(then)))
    }

    /// Answers.
    pub fn end(mut self, outcome: Outcome) {
        if let Some(then) = self.0.take() {
            then(outcome);
        }
    }

    /// Goes without answering: after a fork, in the child, nobody here waits for it.
    pub fn forget(mut self) {
        std::mem::forget(self.0.take());
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(then) = self.0.take() {
            then(Err(TierError::Lost));
        }
    }
}

impl std::fmt::Debug for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Done")
    }
}

/// What a thread does in a tier while it is blocked anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// [`Tier::answer_here`].
    Answer,
    /// [`Tier::submit_helped`], and then [`Tier::help`].
    Help,
}

/// A store that several processes share.
pub trait Tier: Tenant {
    /// Answers `request` by `done`, sooner or later, from any thread. Called attached to the
    /// interpreter or from a thread of ours; does not block.
    fn submit(&self, request: Request, done: Done);

    /// [`Tier::submit`] by the thread of an event loop, which may read the reply itself if it comes
    /// from a descriptor that `watch` watches.
    fn submit_watched(&self, request: Request, done: Done, _watch: &Arc<Watch>) {
        self.submit(request, done);
    }

    /// What a thread that is blocked until `request` is answered is to do for it. To be called
    /// attached, so that no fork comes in between; a part asks for a [`Tier::leave`].
    fn enter(&self, _request: &Request) -> Option<Part> {
        None
    }

    /// [`Tier::enter`] once more, by a thread whose help was not enough.
    fn enter_again(&self) -> bool {
        false
    }

    /// Keeps forks out while a thread ends the tier; true asks for a [`Tier::leave`].
    fn enter_to_close(&self) -> bool {
        false
    }

    /// [`Tier::submit`] by a thread that has entered and will [`Tier::help`]; true if it is to help
    /// until it has its answer.
    fn submit_helped(&self, request: Request, done: Done) -> bool {
        self.submit(request, done);
        false
    }

    /// Does what is to be done for it, for some milliseconds at most. Not attached.
    fn help(&self) {}

    /// Answers in the calling thread, which has entered, is blocked anyway and not attached.
    ///
    /// # Errors
    /// As for any outcome.
    fn answer_here(&self, _request: &Request) -> Outcome {
        Err(TierError::Lost)
    }

    /// Ends what [`Tier::enter`] began.
    fn leave(&self) {}

    /// Does for `patience` what [`Tenant::close`] begins with: finishes what is queued. True once
    /// there is nothing to wait for.
    fn closing(&self, patience: Duration) -> bool {
        self.close(patience);
        true
    }

    /// What time it is, for what is owed from now on.
    fn moment(&self) -> Moment {
        Moment::default()
    }

    /// Tells its store what it was to forget.
    fn settle(&self, debt: Debt, done: Done) {
        self.submit(debt.request, done);
    }

    /// Whether it tells its store by itself what it was to forget while it was away.
    fn pays(&self) -> bool {
        false
    }

    /// Figures for `get_stats()`, by their names there.
    fn figures(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
