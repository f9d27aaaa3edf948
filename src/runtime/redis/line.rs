//! A connection that whoever asks writes to and reads from, for a request that comes alone.
//!
//! Through the driver a request and its reply are handed over between threads, and
//! each of them has to be woken: on an idle machine that took longer than Redis did.
//! Here the event loop watches the socket itself, a blocked thread waits for it, and a
//! task of ours only looks whether the time is up. Whatever goes wrong, the request
//! goes through the driver instead: so only what changes nothing goes this way.

use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use redis::Value;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::driver::{answered, refused, tame};
use super::phone::{Call, Heard, Phone, Reader, connect};
use super::plan::{Next, Plan, plan};
use super::shared::{Ask, Job, Shared, Stage};
use super::wire::Mode;
use crate::core::clock::{Nanos, SECOND};
use crate::core::sync::Mutex;
use crate::runtime::tier::{Done, Request, TierError};
use crate::runtime::watch::{Source, Watch};

/// With fewer connections there is none for it.
const LEAST_CONNECTIONS: usize = 3;

/// A blocked thread waits so long before it looks for signals.
const SLICE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Whoever was to read may be gone (a signal, a loop that was closed): so often the task looks.
const LOOK: Nanos = SECOND / 4;

/// After a failed attempt to connect, the next one may take so long to begin.
const PAUSE: Duration = Duration::from_secs(1);

/// The connection, if there is one, and who looks after it.
#[derive(Default)]
pub(super) struct Line {
    state: Mutex<State>,
    told: Notify,
}

#[derive(Default)]
struct State {
    phone: Option<Phone>,
    /// Somebody could have used it.
    wanted: bool,
    /// How often it was hung up.
    hung_up: u64,
    /// The task knows that there may be a call.
    guarded: bool,
}

impl Line {
    /// What this thread is to read from, as nobody else does.
    fn unwatched(&self) -> Option<Arc<TcpStream>> {
        let state = self.state.lock();
        let phone = state.phone.as_ref()?;
        let ours = phone.call.as_ref()?.by == thread::current().id();
        (ours && phone.watch.strong_count() == 0).then(|| Arc::clone(&phone.socket))
    }

    fn wake_guard(&self, guarded: bool) {
        if !guarded {
            self.told.notify_one();
        }
    }
}

impl Shared {
    /// Whether there can be a line.
    pub(super) fn has_line(&self) -> bool {
        let servers = &self.config.servers;
        let plain = servers.mode != Mode::Cluster && servers.tls.is_none();
        plain && self.config.max_connections >= LEAST_CONNECTIONS
    }

    pub(super) fn line_is_open(&self) -> bool {
        self.line.state.lock().phone.is_some()
    }

    /// Whether nothing is under way.
    fn is_quiet(&self) -> bool {
        self.running.load(Ordering::Acquire)
            && self.listened.load(Ordering::Acquire)
            && self.idle.load(Ordering::Acquire)
            && !self.closed.load(Ordering::Acquire)
            && self.waiting() == 0
    }

    /// Whether a request would be the only one under way, so that the line is the shortest way.
    pub(super) fn is_alone(&self, request: &Request) -> bool {
        request.reads() && self.is_quiet() && {
            let mut state = self.line.state.lock();
            let there = state.phone.as_ref().map(|phone| !phone.taken);
            if there.is_none() && !std::mem::replace(&mut state.wanted, true) {
                self.line.told.notify_one();
            }
            there == Some(true)
        }
    }

    /// Reserves the line for a request, if that would be alone; its number.
    pub(super) fn take_line(&self, request: &Request) -> Option<u64> {
        if !self.is_alone(request) {
            return None;
        }
        let mut state = self.line.state.lock();
        let phone = state.phone.as_mut().filter(|phone| !phone.taken)?;
        phone.taken = true;
        Some(phone.number)
    }

    /// Asks over the line that was taken for it. A thread without a `watch` is to
    /// [`Shared::help`].
    pub(super) fn ask_alone(
        &self,
        number: u64,
        request: Request,
        done: Done,
        watch: Option<&Arc<Watch>>,
    ) {
        self.figures.direct.fetch_add(1, Ordering::Relaxed);
        let plan = plan(self, &request);
        let job = self.job(Ask::Request(request), done);
        self.say(number, job, plan, &watch.map_or(Reader::Thread, Reader::Loop));
    }

    /// Writes a plan's commands to the phone that was taken; if that is not there any more, they go
    /// through the driver.
    fn say(&self, number: u64, job: Job, plan: Plan, reader: &Reader<'_>) {
        let mut bytes = Vec::with_capacity(256);
        plan.commands.iter().for_each(|command| command.write_packed_command(&mut bytes));
        let source: Weak<dyn Source> = self.me.clone();
        let mut state = self.line.state.lock();
        let Some(phone) = state.phone.as_mut().filter(|phone| phone.number == number) else {
            drop(state);
            return self.by_the_driver(job);
        };
        if !phone.watched_by(reader, &source) || !phone.write(&bytes) {
            let broken = state.phone.take();
            drop(state);
            drop(broken);
            return self.by_the_driver(job);
        }
        let (replies, by) = (plan.commands.len(), thread::current().id());
        phone.call = Some(Call { job, replies, by, then: plan.then });
        let guarded = std::mem::replace(&mut state.guarded, true);
        drop(state);
        self.line.wake_guard(guarded);
    }

    fn by_the_driver(&self, job: Job) {
        self.put_back(vec![job]);
        self.wake.notify_one();
        // The service may have been closed in between: nobody else would end it then.
        if let Some(me) = self.me.upgrade() {
            me.ensure_running();
        }
    }

    /// Reads what there is, and goes on from there.
    fn read_line(&self) {
        let mut state = self.line.state.lock();
        let Some(phone) = &mut state.phone else { return };
        match phone.listen() {
            Heard::Part => {}
            Heard::All(values) => {
                let (call, number) = (phone.call.take(), phone.number);
                drop(state);
                if let Some(call) = call {
                    self.go_on(number, call, values);
                }
            }
            Heard::Over => {
                drop(state);
                self.hang_up();
            }
        }
    }

    fn go_on(&self, number: u64, call: Call, values: Vec<Value>) {
        let Call { job, then, .. } = call;
        if refused(&values).is_some() {
            // The driver knows what to do about it.
            self.hang_up();
            return self.by_the_driver(job);
        }
        answered(self);
        match then(self, tame(values)) {
            Next::Done(outcome) => {
                if let Some(phone) = &mut self.line.state.lock().phone
                    && phone.number == number
                {
                    phone.taken = false;
                }
                job.done.end(outcome);
            }
            Next::More(plan) => self.say(number, job, plan, &Reader::Same),
            Next::Park(..) => {
                self.hang_up();
                self.by_the_driver(job);
            }
        }
    }

    /// Closes the line; its request goes through the driver.
    pub(super) fn hang_up(&self) {
        let mut state = self.line.state.lock();
        state.hung_up += 1;
        let phone = state.phone.take();
        drop(state);
        if let Some(job) = phone.and_then(Phone::hang_up) {
            self.by_the_driver(job);
        }
    }

    /// Whether a blocked thread is to read from the line.
    pub(super) fn wants_help(&self) -> bool {
        self.line.unwatched().is_some()
    }

    /// Waits for a moment for what there is to read. Not attached.
    pub(super) fn help(&self) {
        if let Some(socket) = self.line.unwatched() {
            let mut polled = [PollFd::new(&*socket, PollFlags::IN)];
            if matches!(poll(&mut polled, Some(&SLICE)), Ok(1..)) {
                self.read_line();
            }
        }
    }

    /// In a forked child it is the parent's.
    pub(super) fn forget_line(&self) {
        std::mem::forget(std::mem::take(&mut *self.line.state.lock()));
    }

    /// The time is up for a request; its reply may have come without anybody having looked.
    fn expire_line(&self) {
        self.read_line();
        let late = |phone: &Phone| phone.call.as_ref().map(|call| call.job.deadline <= self.now());
        let mut state = self.line.state.lock();
        if state.phone.as_ref().and_then(late) != Some(true) {
            return;
        }
        let phone = state.phone.take();
        drop(state);
        if let Some(job) = phone.and_then(Phone::hang_up) {
            self.fail(job, &TierError::Late);
        }
    }
}

impl Source for Shared {
    fn ready(&self) {
        self.read_line();
    }
}

/// What the task is to do next.
enum Duty {
    Open,
    Guard(Nanos),
    Rest,
}

fn duty(shared: &Shared) -> Duty {
    let mut state = shared.line.state.lock();
    match &state.phone {
        None if state.wanted => Duty::Open,
        Some(Phone { call: Some(call), .. }) => {
            Duty::Guard(call.job.deadline.min(shared.now().saturating_add(LOOK)))
        }
        _ => {
            state.guarded = false;
            Duty::Rest
        }
    }
}

/// Opens the line when somebody can use it, and ends requests that are not answered. Runs until it
/// is told to stop.
pub(super) async fn keep(shared: Arc<Shared>, mut stage: watch::Receiver<Stage>) {
    loop {
        let now = *stage.borrow_and_update();
        let act = async {
            match duty(&shared) {
                Duty::Open => open(&shared).await,
                Duty::Guard(deadline) => {
                    let left = Duration::from_nanos(deadline.saturating_sub(shared.now()));
                    // Told in between only that a line is wanted.
                    let _ = timeout(left, shared.line.told.notified()).await;
                    shared.expire_line();
                }
                Duty::Rest => shared.line.told.notified().await,
            }
        };
        match now {
            Stage::Run => tokio::select! {
                _ = stage.changed() => {}
                () = act => {}
            },
            Stage::Drain if matches!(duty(&shared), Duty::Guard(_)) => {
                sleep(PAUSE / 100).await;
                shared.expire_line();
            }
            Stage::Drain | Stage::Pause => return shared.hang_up(),
        }
    }
}

async fn open(shared: &Shared) {
    let turn = shared.figures.connects.fetch_add(1, Ordering::Relaxed) as usize;
    let hung_up = shared.line.state.lock().hung_up;
    let opened =
        timeout(shared.config.servers.timeout, connect(&shared.config.servers, turn)).await;
    let phone = opened.ok().and_then(Result::ok).map(|socket| Phone::new(socket, shared.count()));
    if phone.is_none() {
        sleep(PAUSE).await;
    }
    let mut state = shared.line.state.lock();
    // What was left in the meantime may be the server that it is connected to.
    if state.hung_up == hung_up {
        state.phone = phone;
    }
    state.wanted = false;
}
