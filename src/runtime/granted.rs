//! A lease in the hands of this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::generation;
use super::place::Place;
use super::service::Service;
use super::tier::{Lease, Request};

/// A lease on its way to whoever loads, or with it. When it goes unused (whoever asked was
/// cancelled, its loop was closed, the load failed), it is given back.
pub struct Granted {
    service: Arc<Service>,
    place: Place,
    lease: Lease,
    /// In a forked child it is the parent's.
    born: u64,
    used: AtomicBool,
}

impl Granted {
    /// A lease that `service` was given.
    #[must_use]
    pub fn new(service: Arc<Service>, place: Place, lease: Lease) -> Self {
        service.near().begin_load(place.id());
        Self { service, place, lease, born: generation(), used: AtomicBool::new(false) }
    }

    /// A lease that only this process knows of: what changes here from now on outdates the load.
    #[must_use]
    pub fn here(service: Arc<Service>, place: Place) -> Self {
        let mut granted = Self::new(service, place, Lease { token: Lease::HERE, since: 0 });
        // Once the changes of the place are noted.
        granted.lease.since = granted.service.near().present();
        granted
    }

    /// The lease itself.
    #[must_use]
    pub fn lease(&self) -> Lease {
        self.lease
    }

    /// A request that ends it is on its way.
    pub fn used_up(&self) {
        self.used.store(true, Ordering::Release);
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.service.near().end_load(self.place.id());
        if !*self.used.get_mut() && self.born == generation() && !self.lease.is_here() {
            self.service.send(Request::Release(self.place.clone(), self.lease), drop);
        }
    }
}

impl std::fmt::Debug for Granted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Granted").field("place", &self.place).finish_non_exhaustive()
    }
}
