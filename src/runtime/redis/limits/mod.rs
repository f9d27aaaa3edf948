//! Limits that processes share through Redis: one task that talks to it.
//!
//! The task keeps this process among those that share ([`Link`]), asks for what the limiter wants,
//! and tells it what came of it. One round trip at a time: what is wanted meanwhile goes together
//! with the next. Nothing is sent twice, as a slice that came back twice would be one too many.

mod link;
pub(super) mod lua;
#[cfg(test)]
mod model_tests;
mod names;
mod talk;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::link::Link;
use self::names::Names;
pub(super) use self::names::tagged;
use super::nodes::Nodes;
use super::shared::new_sender;
use super::wire::{Mode, Servers};
use crate::core::clock::Nanos;
use crate::core::key::Key;
use crate::core::limiter::Limit;
use crate::core::limiter::shared::{Charge, Leases, Wanted};
use crate::core::sync::Mutex;
use crate::runtime::lifecycle::{Ended, Tenant, admit, runtime};
use crate::runtime::notices::Notices;

/// A fork, which holds the GIL, waits so long for a round trip; so does the end.
const STOP_PATIENCE: Duration = Duration::from_millis(300);

/// The limiter whose limits are shared. Called by a thread that never attaches to the interpreter.
pub trait Books: Send + Sync {
    /// The limits.
    fn limits(&self) -> Vec<Limit>;
    /// How long a slice is valid at least.
    fn validity(&self) -> Nanos;
    /// What to ask for.
    fn due(&self) -> Wanted<Key>;
    /// It was answered.
    fn arrived(&self, key: Option<&Key>, leases: &Leases);
    /// It was not; ask again at that time.
    fn failed(&self, key: Option<&Key>, again: Nanos);
    /// The last attempt failed, the next one is made at that time; `NEVER`: it was answered.
    fn next_attempt(&self, at: Nanos);
    /// Nobody answers. Told again and again.
    fn lost(&self);
    /// They do again.
    fn found(&self);
    /// So many processes share the limits.
    fn shared_by(&self, members: u32);
    /// What was used since.
    fn charges(&self, since: Nanos) -> Vec<Charge<Key>>;
    /// Whether nothing counts any more.
    fn is_idle(&self) -> bool;
    /// What was asked for before will not be answered.
    fn interrupted(&self);
    /// Nothing is spent any more: all goes back.
    fn closing(&self);
}

/// Where limits are shared.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it is.
    pub servers: Servers,
    /// What all keys begin with.
    pub prefix: String,
    /// What the limiter is called in all processes.
    pub name: String,
}

/// What the task is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Run,
    /// End; what was leased and used stays as it is.
    Pause,
    /// Give everything back, and end.
    Leave,
}

struct Run {
    stage: watch::Sender<Stage>,
    task: JoinHandle<()>,
    handle: Handle,
}

/// What a task and its owner share.
struct Shared {
    me: Weak<Self>,
    config: Config,
    names: Names,
    nodes: Option<Arc<Nodes>>,
    books: Weak<dyn Books>,
    wake: Notify,
    running: AtomicBool,
    interrupted: AtomicBool,
    closed: AtomicBool,
    run: Mutex<Option<Run>>,
    /// What is known of the store; a task takes it up where the last one ended.
    link: Mutex<Option<Link>>,
    figures: Figures,
    notices: Arc<Notices>,
}

/// Counts for the statistics.
#[derive(Debug, Default)]
pub struct Figures {
    /// Questions, answered or not.
    pub asks: AtomicU64,
    /// Round trips that failed.
    pub failures: AtomicU64,
    /// How often the store was lost.
    pub losses: AtomicU64,
    /// Whether this process is one of those that share.
    pub joined: AtomicBool,
    /// Whether it is lost now.
    lost: AtomicBool,
    /// Why the last attempt failed, until that is logged.
    failed: Mutex<Option<String>>,
    /// Whether it is logged that it fails.
    told: AtomicBool,
}

/// A limiter's way to Redis; the limits are shared for as long as it lives.
pub struct SharedLimits(Arc<Shared>);

impl SharedLimits {
    /// One that connects when it is first needed.
    ///
    /// # Errors
    /// [`Ended`] after the shutdown.
    pub fn new(config: Config, books: Weak<dyn Books>) -> Result<Self, Ended> {
        let notices = Arc::<Notices>::default();
        let nodes = (config.servers.mode == Mode::Cluster)
            .then(|| Arc::new(Nodes::new(config.servers.clone(), Arc::clone(&notices))));
        let shared = Arc::new_cyclic(|me| Shared {
            me: me.clone(),
            names: Names::new(&config.prefix, &config.name),
            config,
            nodes,
            books,
            wake: Notify::new(),
            running: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            run: Mutex::default(),
            link: Mutex::default(),
            figures: Figures::default(),
            notices,
        });
        let tenant: Arc<dyn Tenant> = shared.clone();
        admit(Arc::downgrade(&tenant))?;
        Ok(Self(shared))
    }

    /// Something is wanted. Called attached.
    pub fn poke(&self) {
        self.0.wake.notify_one();
        self.0.ensure_running();
    }

    /// Whether anything can still be asked for.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// A caller is refused as nobody answers: that is logged, be it lost yet or not.
    pub fn refused(&self) {
        let Some(why) = self.0.figures.failed.lock().take() else { return };
        if !self.0.figures.told.swap(true, Ordering::Relaxed) {
            let notice = format!("the store does not answer, callers are refused: {why}");
            self.0.notices.add(notice);
        }
    }

    /// What is to be logged.
    #[must_use]
    pub fn notices(&self) -> &Notices {
        &self.0.notices
    }

    /// Counts.
    #[must_use]
    pub fn figures(&self) -> &Figures {
        &self.0.figures
    }
}

impl Drop for SharedLimits {
    /// The task gives back what there is and ends by itself.
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        if let Some(run) = &*self.0.run.lock() {
            let _ = run.stage.send(Stage::Leave);
        }
    }
}

impl Shared {
    /// Starts the task, if need be. Called attached.
    fn ensure_running(self: &Arc<Self>) {
        if self.running.load(Ordering::Acquire) || self.closed.load(Ordering::Acquire) {
            return;
        }
        let mut run = self.run.lock();
        if run.is_some() {
            return;
        }
        // In the middle of a fork it goes on after it.
        let Ok(Some(handle)) = runtime() else { return };
        let (stage, watched) = watch::channel(Stage::Run);
        let task = handle.spawn(talk::talk(Arc::clone(self), watched));
        *run = Some(Run { stage, task, handle });
        self.running.store(true, Ordering::Release);
    }

    fn stop(&self, stage: Stage, patience: Duration) {
        let Some(run) = self.run.lock().take() else { return };
        let _ = run.stage.send(stage);
        let Run { mut task, handle, .. } = run;
        // The timer needs the runtime from within.
        let ended = handle.block_on(async { timeout(patience, &mut task).await });
        if ended.is_err() {
            task.abort();
        }
        self.running.store(false, Ordering::Release);
    }
}

impl Tenant for Shared {
    fn quiesce(&self) {
        self.interrupted.store(self.running.load(Ordering::Acquire), Ordering::Release);
        self.stop(Stage::Pause, STOP_PATIENCE);
        if let Some(nodes) = &self.nodes {
            nodes.clear();
        }
    }

    fn resume(&self) {
        if self.interrupted.swap(false, Ordering::AcqRel)
            && let Some(me) = self.me.upgrade()
        {
            me.ensure_running();
        }
    }

    /// In the child nothing is leased, and it is another process.
    fn forget(&self) {
        std::mem::forget(self.run.lock().take());
        drop(self.link.lock().take());
        if let Some(nodes) = &self.nodes {
            nodes.forget();
        }
        self.running.store(false, Ordering::Release);
        self.interrupted.store(false, Ordering::Release);
        self.figures.joined.store(false, Ordering::Relaxed);
    }

    fn close(&self, patience: Duration) {
        self.closed.store(true, Ordering::Release);
        self.stop(Stage::Leave, patience.min(STOP_PATIENCE));
    }
}

/// What tells this process from all others.
pub(super) fn new_member() -> String {
    new_sender().to_string()
}
