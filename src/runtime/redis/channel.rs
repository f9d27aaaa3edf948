//! Hears of other processes' changes, and knows when it does not.
//!
//! Every change is published with who made it. A connection of its own subscribes,
//! and sends itself a beat: as long as beats come back, so does everything else,
//! and their way is how late changes are heard of.
//!
//! Nothing that was read without an ear is served for longer than [`OLDEST`] while
//! Redis answers, and nothing at all once there is an ear again. While Redis does
//! not answer, the near cache goes on with what it has; while this process is
//! stopped, it does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::{PushInfo, PushKind, Value, cmd};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::shared::{Ask, Shared, Stage, TRUST};
use crate::core::clock::{Nanos, nanos_from_duration};
use crate::runtime::near::Cut;
use crate::runtime::tier::{Done, Request};

/// Between two beats.
const BEAT: Duration = Duration::from_millis(500);

/// Without a beat for so long, the channel counts as lost.
const SILENCE: Duration = Duration::from_millis(1500);

/// Between two attempts to get an ear.
const RETRY: Duration = Duration::from_millis(200);

/// What is served without an ear is never older; with the silence before, less than five seconds.
const OLDEST: Duration = Duration::from_secs(2);

/// Longest wait for an ear, before the first request and later.
const CONNECT: Duration = Duration::from_millis(500);

struct Ear {
    shared: Arc<Shared>,
    sender: Arc<str>,
    beat: String,
    last_beat: AtomicU64,
    lost: Notify,
}

/// Runs until it is told to stop.
pub(super) async fn listen(shared: Arc<Shared>, mut stage: watch::Receiver<Stage>) {
    for turn in 0_usize.. {
        if *stage.borrow() != Stage::Run {
            return;
        }
        shared.age();
        let sender = shared.sender();
        let ear = Arc::new(Ear {
            shared: Arc::clone(&shared),
            beat: shared.names.beat(&sender),
            sender,
            last_beat: AtomicU64::new(shared.now()),
            lost: Notify::new(),
        });
        tokio::select! {
            () = hear(&ear, turn) => {}
            _ = stage.changed() => {}
        }
        if shared.listening.swap(false, Ordering::AcqRel) {
            shared.generations.trust(false);
            shared.figures.losses.fetch_add(1, Ordering::Relaxed);
            *shared.deaf.lock() = Deaf::since(shared.now());
        }
        shared.suspect.store(true, Ordering::Release);
        if !shared.listened.swap(true, Ordering::AcqRel) {
            shared.gate.notify_one();
            *shared.deaf.lock() = Deaf::since(shared.now());
        }
        if *stage.borrow() == Stage::Run {
            shared.age();
            sleep(RETRY).await;
        }
    }
}

/// For how long nobody has listened.
#[derive(Debug, Default)]
pub(super) struct Deaf {
    since: Nanos,
    flushed: Nanos,
    /// Whether the log says so; not after a fork, which ends the channel for a moment.
    said: bool,
}

impl Deaf {
    fn since(since: Nanos) -> Self {
        Self { since, flushed: 0, said: false }
    }
}

impl Shared {
    /// Nobody listens: drops what is too old, if Redis could be asked instead. It is remembered
    /// over forks, so that who forks all the time does not begin anew each time.
    fn age(&self) {
        if !self.listened.load(Ordering::Acquire) {
            return;
        }
        let (now, replied) = (self.now(), self.last_reply.load(Ordering::Acquire));
        let mut deaf = self.deaf.lock();
        // What it answers in the moment after may have been on its way before.
        let answers = replied > deaf.since.saturating_add(nanos_from_duration(RETRY));
        let oldest = nanos_from_duration(OLDEST);
        if answers && now.saturating_sub(deaf.flushed) >= oldest {
            self.flush();
            deaf.flushed = now;
        }
        let say = answers && !deaf.said && now.saturating_sub(deaf.since) >= oldest;
        deaf.said |= say;
        drop(deaf);
        self.trust_near(now);
        if say {
            let sentence = "cannot hear of other processes' changes: the near cache forgets";
            self.notices.add(format!("{sentence} what is older than {} s", OLDEST.as_secs()));
        }
        if now.saturating_sub(replied) > nanos_from_duration(RETRY) {
            self.enqueue(Ask::Request(Request::Ping), Done::new(drop));
        }
    }
}

/// Listens for as long as it goes well.
async fn hear(ear: &Arc<Ear>, turn: usize) {
    let (shared, of) = (&ear.shared, Arc::clone(ear));
    let channels = [shared.names.channel(), ear.beat.as_str()];
    let push = move |info: PushInfo| {
        of.push(info);
        Ok::<(), ()>(())
    };
    let opened = timeout(CONNECT, shared.config.servers.listen(turn, &channels, push)).await;
    let Ok(Ok(mut connection)) = opened else { return };
    if shared.suspect.swap(false, Ordering::AcqRel) {
        shared.flush();
    }
    shared.listening.store(true, Ordering::Release);
    shared.generations.trust(true);
    shared.trust_near(shared.now());
    shared.listened.store(true, Ordering::Release);
    shared.gate.notify_one();
    shared.waits.ring_all();
    loop {
        let mut beat = cmd("PUBLISH");
        beat.arg(&ear.beat).arg(shared.now());
        match timeout(SILENCE, connection.send_packed_command(&beat)).await {
            Ok(Ok(Value::Int(_))) => {}
            _ => return,
        }
        let begun = shared.now();
        tokio::select! {
            () = ear.lost.notified() => return,
            () = sleep(BEAT) => {}
        }
        if shared.now().saturating_sub(begun) > TRUST {
            // It is this process that was stopped: Redis may have dropped what it did not take.
            return shared.flush();
        }
        let last = ear.last_beat.load(Ordering::Acquire);
        if shared.now().saturating_sub(last) > nanos_from_duration(SILENCE) {
            return;
        }
    }
}

impl Ear {
    /// Takes what came; called by the connection's own task, so it must not wait.
    fn push(&self, info: PushInfo) {
        match info.kind {
            PushKind::Disconnection => self.lost.notify_one(),
            PushKind::Message => {
                if let [Value::BulkString(channel), Value::BulkString(message)] = &info.data[..]
                    && let Ok(message) = std::str::from_utf8(message)
                {
                    if *channel == self.beat.as_bytes() {
                        self.beaten(message);
                    } else {
                        self.changed(message);
                    }
                }
            }
            _ => {}
        }
    }

    fn beaten(&self, message: &str) {
        let (now, sent) = (self.shared.now(), message.parse::<Nanos>().unwrap_or(0));
        let lag = now.saturating_sub(sent) / 1_000;
        self.shared.figures.lag_micros.store(lag, Ordering::Relaxed);
        self.last_beat.store(now, Ordering::Release);
        // What was published before it has come before it.
        self.shared.trust_near(sent);
    }

    fn changed(&self, message: &str) {
        let shared = &self.shared;
        let Some((sender, rest)) = message.split_at_checked(self.sender.len()) else { return };
        let Some((kind, name)) = rest.split_at_checked(1) else { return };
        let others = sender != &*self.sender;
        if others {
            shared.figures.heard.fetch_add(1, Ordering::Relaxed);
        }
        match kind {
            "v" | "r" => {
                let Some(id) = shared.names.id(name) else { return };
                if others && kind == "v" {
                    shared.near.remove(&id);
                }
                shared.waits.ring(&id);
            }
            "n" | "t" => {
                let (key, what) = match kind {
                    "n" => (shared.names.namespace(name), Cut::Namespace),
                    _ => (shared.names.tag(name), Cut::Tag),
                };
                shared.generations.forget(&key);
                if others {
                    shared.near.cut(what, name);
                }
            }
            _ => {}
        }
    }
}
