//! The task: one round trip after the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, PushInfo, PushKind, Value, cmd};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{Shared, Stage, Switch, lua};
use crate::core::breaker::{Answer, Report, SPAN, Want, Word};
use crate::core::clock::{Clock, Nanos, SECOND, nanos_from_duration};
use crate::runtime::outage::why_of;
use crate::runtime::redis::driver::{refused, why};
use crate::runtime::redis::values::{number, text};
use crate::runtime::redis::wire::Wire;
use crate::runtime::tier::TierError;

/// Asked so often, if nothing happens.
const BEAT: Nanos = SECOND;
/// The same for those who are not told of news.
const DEAF: Nanos = SECOND / 10;
/// After a failure, the next attempt.
const PAUSE: Nanos = SECOND / 10;
/// Silent for so long, the store is lost.
const SILENT: Nanos = 2 * SECOND;
/// What is known is kept for so long after the last process has gone, and the rest is over.
const KEPT: Nanos = 24 * 3600 * SECOND;

fn now() -> Nanos {
    Clock::System.now()
}

/// Runs until it is told to stop.
pub(super) async fn talk(shared: Arc<Shared>, mut stage: watch::Receiver<Stage>) {
    let mut talk = Talk {
        member: shared.member.lock().clone(),
        shared: &shared,
        line: None,
        heard_at: now(),
        seen: None,
        turn: 0,
    };
    loop {
        let told = *stage.borrow_and_update();
        let switch = &*shared.switch;
        match told {
            Stage::Run => {}
            Stage::Pause => return,
            Stage::Leave => return talk.leave(switch).await,
        }
        let next = tokio::select! {
            biased;
            _ = stage.changed() => None,
            next = talk.round(switch) => Some(next),
        };
        let Some((next, answered)) = next else {
            // The answer to what was sent would be taken for that to what comes next.
            talk.line = None;
            continue;
        };
        let pause = Duration::from_nanos(next.saturating_sub(now()));
        tokio::select! {
            () = sleep(pause) => {}
            // While nobody answers, what is poked for waits for the next attempt.
            () = shared.wake.notified(), if answered => {}
            _ = stage.changed() => {}
        }
    }
}

/// A connection, on which news come as well.
struct Line {
    wire: Wire,
    /// The ear, where it is another one; it hears for as long as it lives.
    _ear: Option<MultiplexedConnection>,
    hears: bool,
}

struct Talk<'a> {
    member: String,
    shared: &'a Arc<Shared>,
    line: Option<Line>,
    heard_at: Nanos,
    /// The last answer: when its question was sent, and what the server's clock showed.
    seen: Option<(Nanos, u64)>,
    turn: usize,
}

impl Talk<'_> {
    /// One round; when to begin the next one at the latest, and whether there was an answer.
    async fn round(&mut self, switch: &dyn Switch) -> (Nanos, bool) {
        let error = match self.try_round(switch).await {
            Ok(()) => {
                let now = now();
                self.heard_at = now;
                self.found();
                let beat = match &self.line {
                    Some(line) if line.hears => BEAT,
                    _ => DEAF,
                };
                return (switch.next_report().min(now + beat), true);
            }
            Err(error) => error,
        };
        self.line = None;
        self.turn = self.turn.wrapping_add(1);
        self.shared.figures.failures.fetch_add(1, Ordering::Relaxed);
        let now = now();
        if now.saturating_sub(self.heard_at) >= SILENT {
            self.lost(&error);
            switch.alone();
        }
        (now + PAUSE, false)
    }

    /// Says so once.
    fn lost(&self, error: &TierError) {
        let figures = &self.shared.figures;
        if figures.lost.swap(true, Ordering::Relaxed) {
            return;
        }
        figures.losses.fetch_add(1, Ordering::Relaxed);
        let why = why_of(error);
        let goes_on = "this process goes by the calls of its own";
        self.shared.notices.add(format!("the store does not answer, {goes_on}: {why}"));
    }

    fn found(&self) {
        if self.shared.figures.lost.swap(false, Ordering::Relaxed) {
            self.shared.notices.add("the store answers again, the state is shared".into());
        }
    }

    async fn try_round(&mut self, switch: &dyn Switch) -> Result<(), TierError> {
        let patience = self.shared.config.servers.timeout;
        if self.line.is_none() {
            let opening = timeout(patience, self.connect()).await;
            self.line = Some(opening.unwrap_or(Err(TierError::Late))?);
        }
        let report = switch.report();
        let sent = now();
        if let Some(answer) = self.tell(switch, &report, sent).await? {
            switch.answered(&report, sent, &answer);
        }
        Ok(())
    }

    /// One that hears news, or at least one that does not.
    async fn connect(&self) -> Result<Line, TierError> {
        let (servers, turn) = (&self.shared.config.servers, self.turn);
        let node = match &self.shared.nodes {
            Some(nodes) => {
                nodes.ready().await?;
                nodes.ear(turn).await.ok()
            }
            None => None,
        };
        let wake = Arc::clone(&self.shared.wake);
        let push = move |info: PushInfo| {
            if matches!(info.kind, PushKind::Message | PushKind::Disconnection) {
                wake.notify_one();
            }
            Ok::<(), ()>(())
        };
        let ear = servers.listen(turn, node.as_ref(), &[self.shared.news.as_str()], push).await;
        match (&self.shared.nodes, ear) {
            (Some(nodes), ear) => {
                let (wire, hears) = (Wire::Cluster(Arc::clone(nodes)), ear.is_ok());
                Ok(Line { wire, _ear: ear.ok(), hears })
            }
            (None, Ok(one)) => Ok(Line { wire: Wire::One(one), _ear: None, hears: true }),
            // A user may be allowed to ask, and not to listen.
            (None, Err(_)) => {
                let wire = servers.open(turn).await.map_err(|error| why(&error))?;
                Ok(Line { wire, _ear: None, hears: false })
            }
        }
    }

    /// What came of it; `None`: it was carried out too late to count.
    async fn tell(
        &mut self,
        switch: &dyn Switch,
        report: &Report,
        sent: Nanos,
    ) -> Result<Option<Answer>, TierError> {
        let command = self.command(switch, report, sent);
        let patience = self.shared.config.servers.timeout;
        let Some(line) = &mut self.line else { return Ok(None) };
        self.shared.figures.asks.fetch_add(1, Ordering::Relaxed);
        let told = timeout(patience, line.wire.send(vec![command])).await;
        let replies = told.unwrap_or(Err(TierError::Late))?;
        if refused(&replies).is_some() {
            return Err(TierError::Away("it refuses".into()));
        }
        let Some(Value::Array(reply)) = replies.into_iter().next() else {
            return Err(TierError::Away("it answers something else".into()));
        };
        self.seen = Some((sent, number(reply.get(1))));
        if reply.first().and_then(text).as_deref() != Some("ok") {
            return Ok(None);
        }
        Ok(Some(answer(&reply)))
    }

    fn command(&self, switch: &dyn Switch, report: &Report, sent: Nanos) -> Cmd {
        let Shared { config, hash, news, .. } = &**self.shared;
        let (kind, left, relapses) = match report.word {
            None => ("", 0, 0),
            Some(Word::Closed) => ("closed", 0, 0),
            Some(Word::Reset) => ("reset", 0, 0),
            Some(Word::Open { left, relapses }) => ("open", left, relapses),
            Some(Word::ForcedOpen) => ("forced_open", 0, 0),
            Some(Word::Disabled) => ("disabled", 0, 0),
        };
        let lease = match report.lease {
            Want::Nothing => "",
            Want::Ask => "ask",
            Want::Keep => "keep",
            Want::Back => "back",
        };
        let change = report.change.map(|change| change.number.to_string()).unwrap_or_default();
        let age = report.change.map_or(0, |change| change.age / 1000);
        let firm = report.change.is_some_and(|change| change.firm);
        // A rest may be as good as for ever, and Redis's clock has an end.
        let most = 1000 * KEPT;
        let rest = Nanos::try_from(left).unwrap_or(0).min(most);
        let left = left.min(i64::try_from(most).unwrap_or(i64::MAX));
        let probe = switch.probe_timeout().min(most);
        let late = match self.seen {
            None => 0,
            Some((at, time)) => {
                let patience = nanos_from_duration(config.servers.timeout);
                time + (sent.saturating_sub(at) + patience) / 1000
            }
        };
        let mut command = cmd("EVAL");
        command.arg(lua::REPORT).arg(1).arg(hash).arg(&self.member).arg(report.basis).arg(kind);
        command.arg(left / 1000).arg(relapses).arg(change).arg(age).arg(u8::from(firm));
        command.arg(lease).arg(SPAN / 1000).arg(probe / 1000).arg(news);
        command.arg((KEPT + rest + probe) / 1_000_000).arg(late);
        command
    }

    /// Tells what is left to tell, and gives the lease back.
    async fn leave(&mut self, switch: &dyn Switch) {
        let report = switch.last_report();
        if self.line.is_some() && (report.change.is_some() || report.lease == Want::Back) {
            let _ = self.tell(switch, &report, now()).await;
        }
    }
}

fn answer(reply: &[Value]) -> Answer {
    let signed = |at: usize| match reply.get(at) {
        Some(Value::Int(number)) => *number,
        _ => 0,
    };
    let word = match reply.get(3).and_then(text).as_deref() {
        Some("closed") => Some(Word::Closed),
        Some("reset") => Some(Word::Reset),
        Some("open") => Some(Word::Open {
            left: signed(4).saturating_mul(1000),
            relapses: u32::try_from(signed(5)).unwrap_or(0),
        }),
        Some("forced_open") => Some(Word::ForcedOpen),
        Some("disabled") => Some(Word::Disabled),
        _ => None,
    };
    Answer {
        generation: number(reply.get(2)),
        word,
        taken: signed(6) > 0,
        lease: signed(7) > 0,
        probed: signed(8) > 0,
        wanted: signed(9) > 0,
    }
}
