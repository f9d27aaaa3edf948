//! A breaker's state that processes share through Redis: one task that talks to it.
//!
//! The task tells what the breaker has to tell and hands back what the store has made of it
//! ([`lua`]). It listens on the same connection for news of others, and asks every [`BEAT`] in any
//! case: what was published while nobody listened is known by then.

pub(super) mod lua;
mod talk;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::limits::{Config, new_member};
use super::nodes::Nodes;
use super::wire::Mode;
use crate::core::breaker::{Answer, Report};
use crate::core::clock::Nanos;
use crate::core::sync::Mutex;
use crate::runtime::lifecycle::{Ended, Tenant, admit, runtime};
use crate::runtime::notices::Notices;

/// A fork, which holds the GIL, waits so long for a round trip; so does the end.
const STOP_PATIENCE: Duration = Duration::from_millis(300);

/// The breaker whose state is shared. Called by a thread that never attaches to the interpreter.
pub trait Switch: Send + Sync {
    /// What to tell.
    fn report(&self) -> Report;
    /// When there is more to tell.
    fn next_report(&self) -> Nanos;
    /// It was told, at that time, and this is what came of it.
    fn answered(&self, report: &Report, sent: Nanos, answer: &Answer);
    /// Nobody answers. Told again and again.
    fn alone(&self);
    /// The last to tell.
    fn last_report(&self) -> Report;
    /// A probe may take so long.
    fn probe_timeout(&self) -> Nanos;
}

/// What the task is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Run,
    /// End; what the store knows stays as it is.
    Pause,
    /// Give back what is held, and end.
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
    /// The hash in Redis, and the channel.
    hash: String,
    news: String,
    nodes: Option<Arc<Nodes>>,
    switch: Arc<dyn Switch>,
    /// Who this process is to the others, also after its task was stopped for a fork.
    member: Mutex<String>,
    wake: Arc<Notify>,
    running: AtomicBool,
    interrupted: AtomicBool,
    closed: AtomicBool,
    run: Mutex<Option<Run>>,
    figures: Figures,
    notices: Arc<Notices>,
}

/// Counts for the statistics.
#[derive(Debug, Default)]
pub struct Figures {
    /// Round trips, answered or not.
    pub asks: AtomicU64,
    /// Those that failed.
    pub failures: AtomicU64,
    /// How often the store was lost.
    pub losses: AtomicU64,
    /// Whether it is lost now.
    pub lost: AtomicBool,
}

/// A breaker's way to Redis; its state is shared for as long as it lives.
pub struct SharedBreaker(Arc<Shared>);

impl SharedBreaker {
    /// One that connects when it is first needed.
    ///
    /// # Errors
    /// [`Ended`] after the shutdown.
    pub fn new(config: Config, switch: Arc<dyn Switch>) -> Result<Self, Ended> {
        let notices = Arc::<Notices>::default();
        let nodes = (config.servers.mode == Mode::Cluster)
            .then(|| Arc::new(Nodes::new(config.servers.clone(), Arc::clone(&notices))));
        let hash = super::limits::tagged(&config.prefix, "breaker", &config.name);
        let shared = Arc::new_cyclic(|me| Shared {
            me: me.clone(),
            news: format!("{hash}:news"),
            hash,
            config,
            nodes,
            switch,
            member: Mutex::new(new_member()),
            wake: Arc::default(),
            running: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            run: Mutex::default(),
            figures: Figures::default(),
            notices,
        });
        let tenant: Arc<dyn Tenant> = shared.clone();
        admit(Arc::downgrade(&tenant))?;
        Ok(Self(shared))
    }

    /// Starts to talk, if it does not yet. Called attached.
    #[inline]
    pub fn ensure_running(&self) {
        if !self.0.running.load(Ordering::Relaxed) {
            self.0.ensure_running();
        }
    }

    /// There is something to tell. Called attached.
    pub fn poke(&self) {
        self.0.wake.notify_one();
        self.0.ensure_running();
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

impl Drop for SharedBreaker {
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
    #[cold]
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

    /// The child is another process.
    fn forget(&self) {
        std::mem::forget(self.run.lock().take());
        *self.member.lock() = new_member();
        if let Some(nodes) = &self.nodes {
            nodes.forget();
        }
        self.running.store(false, Ordering::Release);
        self.interrupted.store(false, Ordering::Release);
    }

    fn close(&self, patience: Duration) {
        self.closed.store(true, Ordering::Release);
        self.stop(Stage::Leave, patience.min(STOP_PATIENCE));
    }
}
