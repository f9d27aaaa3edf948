//! What the tasks of one tier share, and how they start and stop.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::{Cmd, cmd};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::channel::Deaf;
use super::debts::Dues;
use super::generations::Generations;
use super::line::{self, Line};
use super::names::Names;
use super::nodes::Nodes;
use super::orphans::Orphans;
use super::queue::Queue;
use super::scripts::Lua;
use super::waits::Waits;
use super::wire::Mode;
use super::{Config, channel, driver, upkeep};
use crate::core::clock::{Clock, Nanos, SECOND, nanos_from_duration, unix_millis};
use crate::core::sync::Mutex;
use crate::runtime::lifecycle::{StartError, may_run, runtime};
use crate::runtime::near::Near;
use crate::runtime::notices::Notices;
use crate::runtime::outage::Outages;
use crate::runtime::owed::{Debt, Owed};
use crate::runtime::queue::Bounds;
use crate::runtime::tier::{Done, Lease, Request, TierError};

/// A paused server may give a lease so much later; more, and it has to run out.
const ORPHANED: Duration = Duration::from_mins(1);

/// Beyond the patience for requests, tasks get so long to end.
const STOP_PATIENCE: Duration = Duration::from_millis(250);

/// So long values are served after the last beat: longer than it takes to know that the channel is
/// lost, so that an outage does not count as one of this process.
pub(super) const TRUST: Nanos = 3 * SECOND;

/// What the tasks are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Run,
    /// End, and leave in the queue what is there.
    Pause,
    /// End once the queue is empty.
    Drain,
}

/// What somebody waits for.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) ask: Ask,
    pub(super) done: Done,
    pub(super) deadline: Nanos,
    /// It was tried before.
    pub(super) again: bool,
}

#[derive(Debug)]
pub(super) enum Ask {
    Request(Request),
    /// Keeps a lease: its token, its key.
    Renew(u64, String),
    /// Ends a lease that nobody here knows to have been given: its token, its key.
    Disown(u64, String),
    /// Has forgotten what was to be forgotten earlier.
    Debt(Debt),
    /// Asks for the server's time.
    Time,
    /// Removes a value that is outdated: its key, its generations.
    Discard(String, Vec<u8>),
    /// Has a generation count as used.
    Touch(String),
}

/// The tasks while they run.
pub(super) struct Run {
    stage: watch::Sender<Stage>,
    pub(super) tasks: Vec<JoinHandle<()>>,
    handle: Handle,
}

/// Figures for the statistics.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) connections: AtomicU64,
    pub(super) connects: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) direct: AtomicU64,
    pub(super) outdated: AtomicU64,
    pub(super) heard: AtomicU64,
    pub(super) lag_micros: AtomicU64,
    pub(super) losses: AtomicU64,
    pub(super) flushes: AtomicU64,
}

/// The state of one tier.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) names: Names,
    pub(super) near: Arc<Near>,
    /// Whether the near cache has a manual clock, which may be advanced by any time at once.
    timeless: bool,
    pub(super) notices: Arc<Notices>,
    /// What Redis was to forget while it was away.
    pub(super) owed: Arc<Owed>,
    /// When it is left alone.
    pub(super) outages: Arc<Outages>,
    /// Of a Cluster.
    pub(super) nodes: Option<Arc<Nodes>>,
    pub(super) generations: Generations,
    pub(super) waits: Waits,
    /// Leases that this process holds: their tokens and keys.
    pub(super) leases: Mutex<HashMap<u64, String>>,
    /// Leases that Redis may have given to this process after it had given up asking.
    pub(super) orphans: Orphans,
    pub(super) figures: Figures,
    pub(super) closed: AtomicBool,
    pub(super) dues: Dues,
    /// Whether changes by others are heard of.
    pub(super) listening: AtomicBool,
    /// Whether listening was tried; nothing is read before.
    pub(super) listened: AtomicBool,
    /// Whether the near cache may hold what changed while nobody listened.
    pub(super) suspect: AtomicBool,
    /// When Redis last replied to a request.
    pub(super) last_reply: AtomicU64,
    /// For how long nobody has listened.
    pub(super) deaf: Mutex<Deaf>,
    /// Threads that end the tasks just now.
    pub(super) inside: AtomicU32,
    pub(super) wake: Notify,
    /// Whether the driver has no request under way.
    pub(super) idle: AtomicBool,
    pub(super) line: Line,
    /// How often the server was no longer the one to talk to, and what the channel is told of it by.
    pub(super) servers: AtomicU64,
    pub(super) unfit: Notify,
    /// Rings when `listened` becomes true.
    pub(super) gate: Notify,
    /// Whether what is on its way is to be given up, for a fork; rings when it is.
    pub(super) cutting: AtomicBool,
    pub(super) cut: Notify,
    pub(super) queue: Mutex<Queue>,
    pub(super) sender: Mutex<Arc<str>>,
    counter: AtomicU64,
    pub(super) running: AtomicBool,
    pub(super) run: Mutex<Option<Run>>,
    /// Whether the tasks ran when a fork stopped them.
    pub(super) interrupted: AtomicBool,
    pub(super) me: Weak<Self>,
}

impl Shared {
    pub(super) fn new(
        config: Config,
        near: Arc<Near>,
        clock: &Clock,
        notices: Arc<Notices>,
        owed: Arc<Owed>,
        outages: Arc<Outages>,
    ) -> Arc<Self> {
        let timeless = clock.is_manual();
        let nodes = (config.servers.mode == Mode::Cluster)
            .then(|| Arc::new(Nodes::new(config.servers.clone(), Arc::clone(&notices))));
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            names: Names::new(&config.prefix),
            nodes,
            config,
            near,
            timeless,
            notices,
            owed,
            outages,
            generations: Generations::default(),
            waits: Waits::default(),
            leases: Mutex::default(),
            orphans: Orphans::default(),
            figures: Figures::default(),
            closed: AtomicBool::new(false),
            dues: Dues::default(),
            listening: AtomicBool::new(false),
            listened: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
            last_reply: AtomicU64::new(0),
            deaf: Mutex::default(),
            inside: AtomicU32::new(0),
            wake: Notify::new(),
            idle: AtomicBool::new(false),
            line: Line::default(),
            servers: AtomicU64::new(0),
            unfit: Notify::new(),
            gate: Notify::new(),
            cutting: AtomicBool::new(false),
            cut: Notify::new(),
            queue: Mutex::default(),
            sender: Mutex::new(new_sender()),
            // Never zero, which is no lease of a store's.
            counter: AtomicU64::new(Lease::HERE + 1),
            running: AtomicBool::new(false),
            run: Mutex::default(),
            interrupted: AtomicBool::new(false),
        })
    }

    /// The time by the machine's clock: a manual one is for what callers see, not for sockets.
    #[expect(clippy::unused_self, reason = "where it is asked for")]
    pub(super) fn now(&self) -> Nanos {
        Clock::System.now()
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.nodes.is_some()
    }

    /// A failure, which is one of the whole Cluster only if none of its nodes answers.
    pub(super) fn partly(&self, error: &TierError) -> TierError {
        self.nodes.as_ref().map_or_else(|| error.clone(), |nodes| nodes.partly(error))
    }

    /// A number that this process does not use twice.
    pub(super) fn count(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells this service in this process from all others.
    pub(super) fn sender(&self) -> Arc<str> {
        Arc::clone(&self.sender.lock())
    }

    /// What a lease begins with in Redis; the generations follow that hold while it loads.
    pub(super) fn token(&self, number: u64) -> String {
        format!("{}@", self.number(number))
    }

    /// What nobody has used for a generation.
    pub(super) fn fresh(&self) -> String {
        self.number(self.count())
    }

    /// A number of this service, as no other one has it.
    pub(super) fn number(&self, number: u64) -> String {
        format!("{}-{number:x}", self.sender())
    }

    /// The number that comes next.
    pub(super) fn next(&self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }

    /// What others are told.
    pub(super) fn message(&self, kind: char, name: &str) -> String {
        format!("{}{kind}{name}", self.sender())
    }

    /// The call of a script. On a Cluster with its source, as every node would have to learn it.
    pub(super) fn call(&self, script: &Lua, keys: &[&str]) -> Cmd {
        let mut command = if self.is_cluster() {
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

    /// A request that begins now.
    pub(super) fn job(&self, ask: Ask, done: Done) -> Job {
        let deadline = self.now().saturating_add(nanos_from_duration(self.config.servers.timeout));
        Job { ask, done, deadline, again: false }
    }

    /// Talks to whoever is there now: all connections, also those that would not notice, as they only
    /// read or listen.
    pub(super) fn leave_server(&self) {
        if !self.is_cluster() {
            self.servers.fetch_add(1, Ordering::AcqRel);
            self.unfit.notify_one();
            self.hang_up();
        }
    }

    /// Queues a request.
    pub(super) fn enqueue(&self, ask: Ask, done: Done) {
        let refused = self.queue.lock().push(self.job(ask, done));
        match refused {
            None => self.wake.notify_one(),
            Some(job) => self.fail(job, &TierError::Away("too many requests wait for it".into())),
        }
    }

    /// Puts jobs back to where they came from.
    pub(super) fn put_back(&self, jobs: Vec<Job>) {
        self.queue.lock().put_back(jobs);
    }

    /// Takes up to so many jobs.
    pub(super) fn take(&self, most: Bounds) -> Vec<Job> {
        self.queue.lock().take(most)
    }

    pub(super) fn waiting(&self) -> usize {
        self.queue.lock().len()
    }

    /// When the first of those that wait gives up.
    pub(super) fn first_deadline(&self) -> Option<Nanos> {
        self.queue.lock().first_deadline()
    }

    /// Ends those whose time is up, or all.
    pub(super) fn expire(&self, until: Nanos, error: &TierError) {
        let late = self.queue.lock().late(until);
        for job in late {
            self.fail(job, error);
        }
    }

    /// Ends a job without a reply.
    pub(super) fn fail(&self, job: Job, error: &TierError) {
        match job.ask {
            Ask::Request(Request::Release(place, lease)) => {
                self.disown(lease.token, Names::lease(&self.names.value(&place)));
            }
            Ask::Disown(token, name) => self.disown(token, name),
            _ => {}
        }
        job.done.end(Err(error.clone()));
    }

    /// A lease is to be ended as soon as Redis answers, if it was given at all.
    pub(super) fn disown(&self, token: u64, name: String) {
        let until = self.now().saturating_add(nanos_from_duration(self.config.lease.max(ORPHANED)));
        self.orphans.add(token, name, until);
    }

    /// Asks for the end of leases that nobody here has.
    pub(super) fn end_orphans(&self) {
        for (token, name) in self.orphans.living(self.now()) {
            self.enqueue(Ask::Disown(token, name), Done::new(drop));
        }
    }

    /// Starts the tasks, if need be. Called attached.
    pub(super) fn ensure_running(self: &Arc<Self>) {
        if self.running.load(Ordering::Acquire) {
            return;
        }
        let mut run = self.run.lock();
        if self.closed.load(Ordering::Acquire) {
            drop(run);
            return self.expire(u64::MAX, &TierError::Ended);
        }
        if run.is_some() {
            return;
        }
        let handle = match runtime() {
            Ok(Some(handle)) => handle,
            // In the middle of a fork: it goes on after it.
            Ok(None) => return,
            Err(StartError::Ended) => {
                drop(run);
                return self.expire(u64::MAX, &TierError::Ended);
            }
            Err(StartError::Io(error)) => {
                drop(run);
                return self.expire(u64::MAX, &TierError::Away(format!("no threads: {error}")));
            }
        };
        let (stage, watched) = watch::channel(Stage::Run);
        let mut tasks = vec![
            handle.spawn(driver::drive(Arc::clone(self), watched.clone())),
            handle.spawn(channel::listen(Arc::clone(self), watched.clone())),
            handle.spawn(upkeep::keep(Arc::clone(self), watched.clone())),
        ];
        if self.has_line() {
            tasks.push(handle.spawn(line::keep(Arc::clone(self), watched)));
        }
        *run = Some(Run { stage, tasks, handle });
        self.running.store(true, Ordering::Release);
    }

    /// Has the tasks end, and waits for it, at most for so long; true once they are gone.
    pub(super) fn stop(&self, stage: Stage, patience: Duration) -> bool {
        self.waits.ring_all();
        let run = self.run.lock().take();
        if let Some(mut run) = run {
            let _ = run.stage.send(stage);
            let all = async {
                while let Some(task) = run.tasks.last_mut() {
                    let _ = task.await;
                    run.tasks.pop();
                }
            };
            // The timer needs the runtime from within.
            let ended = run.handle.block_on(async {
                let mut all = pin!(all);
                let ended = timeout(patience, &mut all).await;
                if ended.is_ok() || stage != Stage::Pause {
                    return ended;
                }
                self.cutting.store(true, Ordering::Release);
                self.cut.notify_waiters();
                timeout(STOP_PATIENCE, all).await
            });
            self.cutting.store(false, Ordering::Release);
            if ended.is_err() {
                *self.run.lock() = Some(run);
                return false;
            }
        }
        if let Some(nodes) = &self.nodes {
            nodes.clear();
        }
        self.running.store(false, Ordering::Release);
        self.listening.store(false, Ordering::Release);
        self.generations.trust(false);
        true
    }

    /// Keeps forks out until the thread has left; called attached.
    pub(super) fn enter(&self) -> bool {
        let may = may_run() == Ok(true);
        if may {
            self.inside.fetch_add(1, Ordering::AcqRel);
        }
        may
    }

    /// Has the tasks finish what is queued, and waits for them; true once they are gone.
    pub(super) fn closing(&self, patience: Duration) -> bool {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.pay_all();
            // What is still loading is not stored any more: others need not wait for it.
            let leases = std::mem::take(&mut *self.leases.lock());
            for (token, name) in leases {
                self.enqueue(Ask::Disown(token, name), Done::new(drop));
            }
        }
        let ended = self.stop(Stage::Drain, patience);
        if ended && let Some(said) = self.owed.give_up() {
            let why = self.outages.reason().map(|why| format!(" ({why})")).unwrap_or_default();
            self.notices.add(said + &why);
        }
        ended
    }

    /// Nobody has the service any more.
    pub(super) fn abandon(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.pay_all();
        }
        self.waits.ring_all();
        // It stays, so that a fork waits for it.
        if let Some(run) = &*self.run.lock() {
            let _ = run.stage.send(Stage::Drain);
        }
    }

    /// The near cache knows of all changes until `then`, or is to go on without.
    pub(super) fn trust_near(&self, then: Nanos) {
        if !self.timeless {
            self.near.watched_until(then.saturating_add(TRUST));
        }
    }

    /// Empties the near cache.
    pub(super) fn flush(&self) {
        self.near.flush();
        self.figures.flushes.fetch_add(1, Ordering::Relaxed);
    }
}

/// 24 characters that no other service uses.
pub(super) fn new_sender() -> Arc<str> {
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_i64(unix_millis(&Clock::System));
    hasher.write_u64(Clock::System.now());
    format!("{:016x}{:08x}", hasher.finish(), std::process::id()).into()
}
