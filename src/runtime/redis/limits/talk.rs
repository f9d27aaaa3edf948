//! The task: one round trip after the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{Cmd, Value, cmd};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::link::{BEAT, GONE, HEARD, Link, SILENT};
use super::names::Names;
use super::{Books, Shared, Stage, new_member};
use crate::core::clock::{Clock, NEVER, Nanos, SECOND, nanos_from_duration};
use crate::core::key::Key;
use crate::core::limiter::shared::{Ask, Charge, Leases};
use crate::runtime::outage::why_of;
use crate::runtime::redis::driver::{refused, why};
use crate::runtime::redis::scripts::{LIMIT_BEAT, LIMIT_LEASE, Lua};
use crate::runtime::redis::values::{number, text};
use crate::runtime::redis::wire::{Mode, Wire};
use crate::runtime::tier::TierError;

/// After a failure, the next attempt.
const PAUSE: Nanos = SECOND / 10;

/// Questions in one round trip.
const BATCH: usize = 256;

/// Who has done nothing for so long leaves the others.
const IDLE: Nanos = 10 * SECOND;

/// A timer's longest sleep.
const LONGEST: Duration = Duration::from_hours(1);

fn now() -> Nanos {
    Clock::System.now()
}

/// Runs until it is told to stop, or the limiter is gone.
pub(super) async fn talk(shared: Arc<Shared>, mut stage: watch::Receiver<Stage>) {
    let kept = shared.link.lock().take();
    let mut link = kept.unwrap_or_else(|| Link::new(new_member(), now()));
    let mut wire = None;
    let mut idle_since = None;
    if let Some(books) = shared.books.upgrade() {
        books.interrupted();
    }
    loop {
        let told = *stage.borrow_and_update();
        let books = if told == Stage::Pause { None } else { shared.books.upgrade() };
        let talk = Talk { shared: &shared, books: books.as_deref() };
        if told != Stage::Run || books.is_none() {
            if told == Stage::Leave {
                talk.leave(&mut link, &mut wire).await;
            }
            break;
        }
        let next = tokio::select! {
            biased;
            _ = stage.changed() => None,
            next = talk.round(&mut link, &mut wire, &mut idle_since) => Some(next),
        };
        drop(books);
        let Some(next) = next else {
            // The answers to what was sent would be taken for those to what comes next.
            wire = None;
            continue;
        };
        let pause = Duration::from_nanos(next.saturating_sub(now())).min(LONGEST);
        tokio::select! {
            () = sleep(pause) => {}
            () = shared.wake.notified() => {
                // What is poked for while nobody answers waits for the next attempt.
                if link.failures > 0 {
                    sleep(pause.min(Duration::from_nanos(PAUSE))).await;
                }
            }
            _ = stage.changed() => {}
        }
    }
    *shared.link.lock() = Some(link);
}

struct Talk<'a> {
    shared: &'a Shared,
    books: Option<&'a dyn Books>,
}

impl Talk<'_> {
    /// One round; when to begin the next one at the latest.
    async fn round(
        &self,
        link: &mut Link,
        wire: &mut Option<Wire>,
        idle_since: &mut Option<Nanos>,
    ) -> Nanos {
        let Some(books) = self.books else { return NEVER };
        if !link.joined && !link.has_past() && books.is_idle() {
            return NEVER;
        }
        let error = match self.try_round(books, link, wire, idle_since).await {
            Ok(next) => {
                if link.joined {
                    self.answered(books);
                }
                return next;
            }
            Err(error) => error,
        };
        *wire = None;
        link.failed();
        self.shared.figures.failures.fetch_add(1, Ordering::Relaxed);
        let now = now();
        *self.shared.figures.failed.lock() = Some(why_of(&error).to_string());
        books.next_attempt(now + PAUSE);
        // Who has never been heard does not know how many share, nor do those know of it.
        if link.is_lost(now) {
            let alone = link.has_past() && link.is_known();
            self.lost(&error, alone);
            link.joined = false;
            if alone {
                link.untold.get_or_insert(now);
                books.lost();
            }
        }
        now + PAUSE
    }

    /// Says so once.
    fn lost(&self, error: &TierError, alone: bool) {
        let figures = &self.shared.figures;
        figures.joined.store(false, Ordering::Relaxed);
        if figures.lost.swap(true, Ordering::Relaxed) {
            return;
        }
        figures.losses.fetch_add(1, Ordering::Relaxed);
        let goes_on = if alone {
            "this process goes on with its share of the limits"
        } else {
            "nothing is granted until it does"
        };
        if figures.told.swap(true, Ordering::Relaxed) && !alone {
            return;
        }
        let why = why_of(error);
        self.shared.notices.add(format!("the store does not answer, {goes_on}: {why}"));
    }

    fn answered(&self, books: &dyn Books) {
        books.next_attempt(NEVER);
        let figures = &self.shared.figures;
        figures.lost.store(false, Ordering::Relaxed);
        *figures.failed.lock() = None;
        if figures.told.swap(false, Ordering::Relaxed) {
            self.shared.notices.add("the store answers again, the limits are shared".into());
        }
    }

    async fn try_round(
        &self,
        books: &dyn Books,
        link: &mut Link,
        wire: &mut Option<Wire>,
        idle_since: &mut Option<Nanos>,
    ) -> Result<Nanos, TierError> {
        if wire.is_none() {
            *wire = Some(self.connect().await?);
            // Perhaps to another server than before, or to one that was started again.
            link.beat_at = 0;
        }
        let Some(wire) = wire else { return Ok(NEVER) };
        if !link.joined {
            self.join(books, link, wire).await?;
            if !link.joined {
                return Ok(now() + PAUSE);
            }
        }
        let begun = now();
        if begun >= link.beat_at + BEAT {
            self.beat(link, wire, "join", true).await?;
            if !link.joined {
                return Ok(now());
            }
            if books.is_idle() {
                let since = *idle_since.get_or_insert(begun);
                if begun.saturating_sub(since) >= IDLE {
                    self.beat(link, wire, "leave", false).await?;
                    link.left();
                    *idle_since = None;
                    return Ok(NEVER);
                }
            } else {
                *idle_since = None;
            }
        }
        let wanted = books.due();
        if wanted.asks.is_empty() {
            return Ok(wanted.next.min(link.beat_at + BEAT));
        }
        self.ask(books, link, wire, &wanted.asks).await?;
        Ok(now())
    }

    async fn connect(&self) -> Result<Wire, TierError> {
        let servers = &self.shared.config.servers;
        let turn = self.shared.figures.failures.load(Ordering::Relaxed) as usize;
        let opening = async {
            match &self.shared.nodes {
                Some(nodes) => nodes.ready().await.map(|()| Wire::Cluster(Arc::clone(nodes))),
                None => servers.open(turn).await.map_err(|error| why(&error)),
            }
        };
        timeout(servers.timeout, opening).await.unwrap_or(Err(TierError::Late))
    }

    async fn send(&self, wire: &mut Wire, commands: Vec<Cmd>) -> Result<Vec<Value>, TierError> {
        let sent = timeout(self.shared.config.servers.timeout, wire.send(commands)).await;
        let replies = sent.unwrap_or(Err(TierError::Late))?;
        match refused(&replies) {
            None => Ok(replies),
            Some(_) => Err(TierError::Away("it refuses".into())),
        }
    }

    fn call(&self, script: &Lua, keys: &[&str]) -> Cmd {
        let mut command = if self.shared.config.servers.mode == Mode::Cluster {
            cmd("EVAL").arg(script.source).take()
        } else {
            cmd("EVALSHA").arg(&script.hash).take()
        };
        command.arg(keys.len());
        for key in keys {
            command.arg(*key);
        }
        command
    }

    /// Tells what was used that the store does not know of, and becomes one of those that share.
    async fn join(
        &self,
        books: &dyn Books,
        link: &mut Link,
        wire: &mut Wire,
    ) -> Result<(), TierError> {
        if link.has_past() {
            self.beat(link, wire, "look", true).await?;
            // From here on nothing is used that the store would not know of.
            books.found();
            if let Some(since) = link.untold {
                let charges = books.charges(since);
                for some in charges.chunks(BATCH) {
                    self.tell(books, link, wire, some).await?;
                }
            }
        }
        self.beat(link, wire, "join", true).await?;
        if link.joined {
            link.untold = None;
            self.answered(books);
            books.found();
        }
        Ok(())
    }

    /// Tells that we are there, or `how` else we are.
    async fn beat(
        &self,
        link: &mut Link,
        wire: &mut Wire,
        how: &str,
        counts: bool,
    ) -> Result<(), TierError> {
        let names = &self.shared.names;
        let longest = self.books.map_or(0, longest);
        let mut command = self.call(&LIMIT_BEAT, &[names.epoch(), &names.members()]);
        command.arg(&link.member).arg(link.epoch.as_deref().unwrap_or_default());
        command.arg(new_member()).arg(link.peers()).arg(link.last_beat).arg(how);
        command.arg(SILENT / 1000).arg(GONE / 1000);
        let sent = now();
        command.arg((longest + 60 * SECOND) / 1_000_000).arg(self.not_after(link, sent));
        command.arg(link.last_heard()).arg(HEARD / 1000);
        let replies = self.send(wire, vec![command]).await?;
        let Some(Value::Array(reply)) = replies.into_iter().next() else {
            return Err(TierError::Away("it answers something else".into()));
        };
        let (epoch, time, joined, members) = (
            reply.first().and_then(text),
            number(reply.get(1)),
            number(reply.get(2)),
            number(reply.get(3)),
        );
        let now = now();
        link.heard(sent, now, time);
        link.joined = joined > 0;
        self.shared.figures.joined.store(link.joined, Ordering::Relaxed);
        if !counts {
            return Ok(());
        }
        link.beat_at = now;
        if epoch != link.epoch || link.joined {
            link.last_beat = time;
        }
        if link.has_past() && epoch != link.epoch {
            // It has forgotten all of it.
            link.untold = Some(0);
        }
        link.epoch = epoch;
        if link.joined {
            let members = link.shared_by(members, now);
            if let Some(books) = self.books {
                books.shared_by(members);
            }
        }
        Ok(())
    }

    async fn ask(
        &self,
        books: &dyn Books,
        link: &mut Link,
        wire: &mut Wire,
        asks: &[Ask<Key>],
    ) -> Result<(), TierError> {
        for (done, some) in asks.chunks(BATCH).enumerate() {
            if let Err(error) = self.ask_some(books, link, wire, some).await {
                let again = now() + PAUSE;
                for ask in &asks[done * BATCH..] {
                    books.failed(ask.key.as_ref(), again);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    async fn ask_some(
        &self,
        books: &dyn Books,
        link: &mut Link,
        wire: &mut Wire,
        asks: &[Ask<Key>],
    ) -> Result<(), TierError> {
        let sent = now();
        let validity = link.validity(books.validity());
        let commands = asks
            .iter()
            .map(|ask| {
                let mut command = self.lease(books, link, sent, validity, ask.key.as_ref());
                command.0.arg(ask.want).arg(ask.least);
                self.finish(books, command, &ask.back, &[])
            })
            .collect();
        self.shared.figures.asks.fetch_add(asks.len() as u64, Ordering::Relaxed);
        let replies = self.send(wire, commands).await?;
        let now = now();
        for (ask, reply) in asks.iter().zip(replies) {
            let Value::Array(reply) = reply else { continue };
            link.heard(sent, now, number(reply.get(1)));
            match reply.first().and_then(text).as_deref() {
                Some("ok") => {
                    let leases = Leases {
                        want: ask.want,
                        granted: u32::try_from(number(reply.get(2))).unwrap_or(0),
                        until: sent + validity,
                        slice: number(reply.get(3)),
                        again: now + number(reply.get(4)) * 1000,
                        left: number(reply.get(5)),
                    };
                    books.arrived(ask.key.as_ref(), &leases);
                }
                Some("late") => books.failed(ask.key.as_ref(), now),
                _ => {
                    // Another epoch has begun.
                    link.joined = false;
                    books.failed(ask.key.as_ref(), now);
                }
            }
        }
        Ok(())
    }

    async fn tell(
        &self,
        books: &dyn Books,
        link: &mut Link,
        wire: &mut Wire,
        charges: &[Charge<Key>],
    ) -> Result<(), TierError> {
        let sent = now();
        let commands = charges
            .iter()
            .map(|charge| {
                let mut command = self.lease(books, link, sent, 0, charge.key.as_ref());
                command.0.arg(0).arg(0);
                let used: Vec<(Nanos, u64)> = charge
                    .used
                    .iter()
                    .map(|(at, used)| (sent.saturating_sub(*at) / 1000, *used))
                    .collect();
                self.finish(books, command, &[], &used)
            })
            .collect();
        let replies = self.send(wire, commands).await?;
        let now = now();
        for reply in replies {
            let Value::Array(reply) = reply else { continue };
            link.heard(sent, now, number(reply.get(1)));
            if reply.first().and_then(text).as_deref() != Some("ok") {
                return Err(TierError::Away("it has changed meanwhile".into()));
            }
        }
        Ok(())
    }

    /// The server's time after which nobody waits for the answer any more; 0 if nobody knows.
    fn not_after(&self, link: &Link, sent: Nanos) -> u64 {
        let patience = nanos_from_duration(self.shared.config.servers.timeout);
        match link.latest(sent) {
            0 => 0,
            latest => latest + patience / 1000,
        }
    }

    /// The beginning of a question.
    fn lease(
        &self,
        _books: &dyn Books,
        link: &Link,
        sent: Nanos,
        validity: Nanos,
        key: Option<&Key>,
    ) -> (Cmd, u64) {
        let names = &self.shared.names;
        let epoch = link.epoch.as_deref().unwrap_or_default();
        let state = names.state(epoch, key);
        let keys = [names.epoch(), &names.members(), &state, &Names::line(&state)];
        let mut command = self.call(&LIMIT_LEASE, &keys);
        command.arg(&link.member).arg(epoch).arg(self.not_after(link, sent));
        (command, validity / 1000)
    }

    /// The rest of it, behind how much is wanted.
    #[expect(clippy::unused_self, reason = "stands beside its first half")]
    fn finish(
        &self,
        books: &dyn Books,
        (mut command, validity): (Cmd, u64),
        back: &[(u64, u32)],
        used: &[(Nanos, u64)],
    ) -> Cmd {
        command.arg(validity).arg(SILENT / 1000).arg(GONE / 1000);
        let limits = books.limits();
        command.arg(limits.len());
        for limit in limits {
            command.arg(limit.count()).arg(limit.period().div_ceil(1000));
        }
        command.arg(back.len());
        for (slice, permits) in back {
            command.arg(*slice).arg(*permits);
        }
        for (age, used) in used {
            command.arg(*age).arg(*used);
        }
        command
    }

    /// Gives everything back.
    async fn leave(&self, link: &mut Link, wire: &mut Option<Wire>) {
        if !link.joined {
            return;
        }
        if wire.is_none() {
            *wire = self.connect().await.ok();
        }
        let Some(wire) = wire else { return };
        if let Some(books) = self.books {
            books.closing();
            let mut asks = books.due().asks;
            for ask in &mut asks {
                (ask.want, ask.least) = (0, 0);
            }
            let _ = self.ask(books, link, wire, &asks).await;
        }
        let _ = self.beat(link, wire, "leave", false).await;
    }
}

fn longest(books: &dyn Books) -> Nanos {
    books.limits().iter().map(|limit| limit.period()).max().unwrap_or(0)
}
