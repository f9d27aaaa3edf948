//! The tier in Redis: one server, a master with Sentinels, or a Cluster.
//!
//! Requests are queued from any thread; one task sends them in batches and hands
//! the replies on. Another one hears of other processes' changes, and a third keeps
//! the leases of this one. What stands where is told in `names`, why it is right in
//! `scripts`.

mod breakers;
mod channel;
mod debts;
mod driver;
mod generations;
mod judge;
mod limits;
mod line;
mod names;
mod nodes;
mod orphans;
mod phone;
mod plan;
mod queue;
mod scripts;
mod shared;
mod slots;
mod stamp;
mod tenant;
mod upkeep;
mod values;
mod waits;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use breakers::{Figures as BreakerFigures, SharedBreaker, Switch};
pub use limits::{Books, Config as LimitsConfig, Figures as LimitsFigures, SharedLimits};
use shared::{Ask, Shared};
pub use wire::{Mode, Servers, Tls};

use super::lifecycle::{Ended, Tenant, admit};
use super::near::Near;
use super::notices::Notices;
use super::outage::Outages;
use super::owed::{Debt, Moment, Owed};
use super::tier::{Done, Part, Request, Tier, TierError};
use super::watch::Watch;
use crate::core::clock::Clock;

/// What a tier is opened with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it is.
    pub servers: Servers,
    /// What all its keys begin with.
    pub prefix: String,
    /// Connections at most, the one that listens included; on a Cluster, one to each node.
    pub max_connections: usize,
    /// So long a process that died keeps the others from loading instead.
    pub lease: Duration,
}

/// A tier in Redis.
pub struct RedisTier(Arc<Shared>);

impl RedisTier {
    /// A tier that connects when it is first needed.
    ///
    /// # Errors
    /// [`Ended`] after the shutdown.
    pub fn new(
        config: Config,
        near: &Arc<Near>,
        clock: &Clock,
        notices: &Arc<Notices>,
        owed: &Arc<Owed>,
        outages: &Arc<Outages>,
    ) -> Result<Self, Ended> {
        let (near, notices, owed) = (Arc::clone(near), Arc::clone(notices), Arc::clone(owed));
        let shared = Shared::new(config, near, clock, notices, owed, Arc::clone(outages));
        let tenant: Arc<dyn Tenant> = shared.clone();
        admit(Arc::downgrade(&tenant))?;
        Ok(Self(shared))
    }
}

impl Drop for RedisTier {
    /// Its tasks finish what is queued and end by themselves.
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl Tenant for RedisTier {
    fn quiesce(&self) {
        self.0.quiesce();
    }

    fn resume(&self) {
        self.0.resume();
    }

    fn forget(&self) {
        self.0.forget();
    }

    fn close(&self, patience: Duration) {
        self.0.close(patience);
    }
}

impl Tier for RedisTier {
    fn submit(&self, request: Request, done: Done) {
        if let Request::Release(_, lease) = &request {
            // Not renewed from now on, whether Redis is told or not.
            self.0.leases.lock().remove(&lease.token);
        }
        if self.0.closed.load(Ordering::Acquire) {
            return done.end(Err(TierError::Ended));
        }
        self.0.enqueue(Ask::Request(request), done);
        self.0.ensure_running();
    }

    fn submit_watched(&self, request: Request, done: Done, watch: &Arc<Watch>) {
        match self.0.take_line(&request) {
            Some(number) => self.0.ask_alone(number, request, done, Some(watch)),
            None => self.submit(request, done),
        }
    }

    fn enter(&self, request: &Request) -> Option<Part> {
        (self.0.is_alone(request) && self.0.enter()).then_some(Part::Help)
    }

    fn enter_again(&self) -> bool {
        self.0.wants_help() && self.0.enter()
    }

    fn submit_helped(&self, request: Request, done: Done) -> bool {
        let line = self.0.take_line(&request);
        match line {
            Some(number) => self.0.ask_alone(number, request, done, None),
            None => self.submit(request, done),
        }
        line.is_some()
    }

    fn help(&self) {
        self.0.help();
    }

    fn moment(&self) -> Moment {
        self.0.moment()
    }

    fn settle(&self, debt: Debt, done: Done) {
        if self.0.closed.load(Ordering::Acquire) {
            return done.end(Err(TierError::Ended));
        }
        self.0.owe(debt, done);
        self.0.ensure_running();
    }

    fn enter_to_close(&self) -> bool {
        self.0.enter()
    }

    fn leave(&self) {
        self.0.inside.fetch_sub(1, Ordering::AcqRel);
    }

    fn closing(&self, patience: Duration) -> bool {
        self.0.closing(patience)
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        let figures = &self.0.figures;
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        vec![
            ("connections", read(&figures.connections) + u64::from(self.0.line_is_open())),
            ("connects", read(&figures.connects)),
            ("batches", read(&figures.batches)),
            ("direct_requests", read(&figures.direct)),
            ("tier_outdated", read(&figures.outdated)),
            ("listening", u64::from(self.0.listening.load(Ordering::Relaxed))),
            ("invalidations_heard", read(&figures.heard)),
            ("invalidation_lag_microseconds", read(&figures.lag_micros)),
            ("channel_losses", read(&figures.losses)),
            ("near_flushes", read(&figures.flushes)),
            ("leases", self.0.leases.lock().len() as u64),
            ("generations", self.0.generations.len() as u64),
            ("queued", self.0.waiting() as u64),
        ]
    }
}
