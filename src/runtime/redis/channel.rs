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

use redis::{Cmd, PushInfo, PushKind, Value, cmd};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::shared::{Ask, Shared, Stage, TRUST};
use super::slots::Address;
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
    beaten: Notify,
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
            beaten: Notify::new(),
            lost: Notify::new(),
        });
        tokio::select! {
            () = hear(&ear, turn) => {}
            _ = stage.changed() => {}
        }
        if *stage.borrow() == Stage::Run {
            shared.hang_up();
        }
        if shared.listening.swap(false, Ordering::AcqRel) {
            shared.generations.trust(false);
            shared.figures.losses.fetch_add(1, Ordering::Relaxed);
            *shared.deaf.lock() = Deaf::since(shared.now());
        }
        shared.suspect.store(true, Ordering::Release);
        shared.open_gate();
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
    /// Listening was tried: requests may be sent.
    fn open_gate(&self) {
        if !self.listened.swap(true, Ordering::AcqRel) {
            *self.deaf.lock() = Deaf::since(self.now());
            self.gate.notify_one();
        }
    }

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
    let opening = async {
        let node = match &shared.nodes {
            Some(nodes) => Some(nodes.ear(turn).await.ok()?),
            None => None,
        };
        let servers = &shared.config.servers;
        Some((servers.listen(turn, node.as_ref(), &channels, push).await.ok()?, node))
    };
    let Ok(Some((mut connection, node))) = timeout(CONNECT, opening).await else { return };
    if let Some(node) = &node {
        // A node that has left the Cluster takes subscriptions, too: it is believed once something
        // has come by another one. Requests need not wait for that.
        shared.suspect.store(true, Ordering::Release);
        shared.open_gate();
        ear.beat_at(node).await;
        if timeout(CONNECT, ear.beaten.notified()).await.is_err() {
            return;
        }
    }
    // It answers: what the near cache is about to lose can be read again.
    if let Some(said) = shared.outages.heard() {
        shared.notices.add(said);
    }
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
        if let Some(node) = &node {
            // That this fails says nothing of the ear; that nothing comes does.
            ear.beat_at(node).await;
        } else {
            let sent = timeout(SILENCE, connection.send_packed_command(&ear.next_beat())).await;
            if !matches!(sent, Ok(Ok(Value::Int(_)))) {
                return;
            }
        }
        let begun = shared.now();
        tokio::select! {
            () = ear.lost.notified() => return,
            () = shared.unfit.notified() => return,
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
    fn next_beat(&self) -> Cmd {
        cmd("PUBLISH").arg(&self.beat).arg(self.shared.now()).take()
    }

    /// Has another node of the Cluster send a beat to the ear's.
    async fn beat_at(&self, node: &Address) {
        if let Some(nodes) = &self.shared.nodes {
            let _ = timeout(BEAT, nodes.publish(node, &self.next_beat())).await;
        }
    }

    /// Takes what came; called by the connection's own task, so it must not wait.
    fn push(&self, info: PushInfo) {
        match info.kind {
            PushKind::Disconnection => self.lost.notify_one(),
            PushKind::Message => {
                if let [Value::BulkString(channel), Value::BulkString(message)] = &info.data[..]
                    && let Ok(message) = std::str::from_utf8(message)
                {
                    if *channel == self.beat.as_bytes() {
                        self.beat_came(message);
                    } else {
                        self.changed(message);
                    }
                }
            }
            _ => {}
        }
    }

    fn beat_came(&self, message: &str) {
        let (now, sent) = (self.shared.now(), message.parse::<Nanos>().unwrap_or(0));
        let lag = now.saturating_sub(sent) / 1_000;
        self.shared.figures.lag_micros.store(lag, Ordering::Relaxed);
        self.last_beat.store(now, Ordering::Release);
        self.beaten.notify_one();
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
