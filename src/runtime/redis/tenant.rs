//! What becomes of a tier when its process forks, and when it ends.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::shared::{Shared, Stage, new_sender};
use crate::runtime::lifecycle::Tenant;
use crate::runtime::tier::TierError;

/// A fork, which holds the GIL, waits so long for requests that are on their way.
const FORK_PATIENCE: Duration = Duration::from_millis(50);

impl Tenant for Shared {
    fn quiesce(&self) {
        // Who ends the tasks just now does so without the GIL, for some milliseconds.
        while self.inside.load(Ordering::Acquire) > 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
        let ran = self.running.load(Ordering::Acquire);
        self.interrupted.fetch_or(ran, Ordering::AcqRel);
        if !self.stop(Stage::Pause, FORK_PATIENCE) {
            // They end with the runtime, which is stopped next.
            drop(self.run.lock().take());
            if let Some(nodes) = &self.nodes {
                nodes.clear();
            }
            self.running.store(false, Ordering::Release);
            self.hang_up();
        }
        self.suspect.store(true, Ordering::Release);
    }

    fn resume(&self) {
        if (self.interrupted.swap(false, Ordering::AcqRel) || self.waiting() > 0)
            && !self.closed.load(Ordering::Acquire)
            && let Some(me) = self.me.upgrade()
        {
            me.ensure_running();
        }
    }

    /// In the child nobody waits, nothing is leased, and nobody has listened.
    fn forget(&self) {
        for job in self.queue.lock().late(u64::MAX) {
            job.done.forget();
        }
        // Only there if nobody told us before the fork: its tasks cannot even be dropped.
        std::mem::forget(self.run.lock().take());
        if let Some(nodes) = &self.nodes {
            nodes.forget();
        }
        self.running.store(false, Ordering::Release);
        self.interrupted.store(false, Ordering::Release);
        self.inside.store(0, Ordering::Release);
        self.waits.forget();
        self.forget_line();
        self.leases.lock().clear();
        self.orphans.forget();
        self.listening.store(false, Ordering::Release);
        self.listened.store(false, Ordering::Release);
        self.generations.trust(false);
        self.near.flush();
        *self.sender.lock() = new_sender();
    }

    fn close(&self, patience: Duration) {
        if !self.closing(patience) {
            // Its requests are answered as lost when the tasks are dropped.
            if let Some(run) = self.run.lock().take() {
                run.tasks.iter().for_each(JoinHandle::abort);
            }
            self.running.store(false, Ordering::Release);
        }
        self.expire(u64::MAX, &TierError::Ended);
    }
}
