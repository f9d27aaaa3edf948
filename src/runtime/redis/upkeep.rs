//! Keeps the leases of this process for as long as it loads, and pays what is owed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::shared::{Ask, Shared, Stage};
use crate::runtime::tier::Done;

/// Shortest time between two rounds.
const SHORTEST: Duration = Duration::from_millis(20);
/// Longest one.
const LONGEST: Duration = Duration::from_secs(30);

/// At most so long after Redis is back it is told what it was to forget.
const PAY: Duration = Duration::from_secs(1);

/// Runs until it is told to stop.
pub(super) async fn keep(shared: Arc<Shared>, mut stage: watch::Receiver<Stage>) {
    let every = (shared.config.lease / 3).clamp(SHORTEST, LONGEST);
    let mut slept = Duration::ZERO;
    if shared.wants_the_time() {
        shared.enqueue(Ask::Time, Done::new(drop));
    }
    while *stage.borrow() == Stage::Run {
        let pause = every.saturating_sub(slept).min(PAY);
        tokio::select! {
            () = sleep(pause) => slept += pause,
            _ = stage.changed() => return,
        }
        shared.pay();
        if shared.wants_the_time() {
            shared.enqueue(Ask::Time, Done::new(drop));
        }
        if slept < every {
            continue;
        }
        slept = Duration::ZERO;
        let leases: Vec<(u64, String)> =
            shared.leases.lock().iter().map(|(token, name)| (*token, name.clone())).collect();
        for (token, name) in leases {
            shared.enqueue(Ask::Renew(token, name), Done::new(drop));
        }
        shared.end_orphans();
        shared.waits.sweep();
    }
}
