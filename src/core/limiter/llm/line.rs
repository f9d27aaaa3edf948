//! The line of those who wait: in order of arrival, or fair between tenants.
//!
//! Fair is start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996): a
//! tenant's next request starts, in virtual time, where its last one ended, or
//! now if that is past; whoever starts first goes first. A request lasts as
//! long as the largest share of a limit that it takes (the dominant share of
//! Ghodsi et al., NSDI 2011), divided by its tenant's weight.
//!
//! Nobody starves. Who has become the head stays it until served, however
//! large, and whoever comes later waits behind; the first of a tenant's line
//! goes first when it has stood there for [`PATIENCE`], whatever its weight and
//! whoever else comes.

use std::collections::BTreeMap;
use std::hash::Hash;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::amounts::{DIMENSIONS, Totals, add, subtract};
use super::decision::{Grant, Verdict, Wanted};
use crate::core::clock::{NEVER, Nanos, SECOND};
use crate::core::limiter::lane::{Lane, Leaving, Ticket, Waiter};

/// So long the first of a tenant's line stands behind others at most.
pub(super) const PATIENCE: Nanos = 120 * SECOND;
/// One whole limit in virtual time, for a tenant of weight 1.
pub(super) const WHOLE: u128 = 1 << 40;
/// A weight of 1.
pub const WEIGHT_ONE: u32 = 1000;

/// What somebody in the line wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want<K> {
    pub(super) wanted: Wanted<K>,
    /// How long it lasts in virtual time at weight 1.
    pub(super) share: u128,
    /// When the waiter gives up; it must be woken then on clocks that nobody else watches.
    pub(super) deadline: Nanos,
}

/// A ticket that left the line and was not yet picked up.
#[derive(Debug)]
pub(super) enum Done<K> {
    Granted(Grant<K>),
    Never(Verdict),
}

#[derive(Debug)]
struct Tenant<K, W> {
    lane: Lane<Want<K>, W>,
    /// Where its next request starts in virtual time.
    start: u128,
    weight: u32,
    /// What is sure to be used by those in its lane.
    firm: Totals,
    /// Its first waiter has been the first since.
    since: Nanos,
    /// How it stands in the two orders; `None` without waiters.
    ranked: Option<(u128, Nanos, Ticket)>,
}

/// All who wait.
#[derive(Debug)]
pub(super) struct Line<K, W> {
    /// Between tenants, or else all are one.
    fair: bool,
    weights: HashMap<K, u32, FixedState>,
    max_tenants: usize,
    tenants: HashMap<Option<K>, Tenant<K, W>, FixedState>,
    /// Those with waiters: by their start, and by how long the first of them stands there.
    by_start: BTreeMap<(u128, Ticket), Option<K>>,
    by_age: BTreeMap<(Nanos, Ticket), Option<K>>,
    /// The start of the latest to be served.
    virtual_now: u128,
    /// Chosen, and not to be overtaken.
    chosen: Option<(Option<K>, Ticket)>,
    waiting: usize,
    done: HashMap<Ticket, Done<K>, FixedState>,
    /// No deadline in the line is earlier.
    earliest_deadline: Nanos,
}

impl<K: Eq + Hash + Copy, W: Clone> Line<K, W> {
    pub(super) fn new(
        fair: bool,
        weights: HashMap<K, u32, FixedState>,
        max_tenants: usize,
    ) -> Self {
        Self {
            fair,
            weights,
            max_tenants,
            tenants: HashMap::with_hasher(FixedState::default()),
            by_start: BTreeMap::new(),
            by_age: BTreeMap::new(),
            virtual_now: 0,
            chosen: None,
            waiting: 0,
            done: HashMap::with_hasher(FixedState::default()),
            earliest_deadline: NEVER,
        }
    }

    /// Whether tenants are told apart.
    pub(super) fn is_fair(&self) -> bool {
        self.fair
    }

    /// Those who stand in it.
    #[inline]
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Those who have something to pick up.
    pub(super) fn finished(&self) -> usize {
        self.done.len()
    }

    /// Tenants that it remembers.
    pub(super) fn tenants(&self) -> usize {
        if self.fair { self.tenants.len() } else { 0 }
    }

    fn key(&self, tenant: Option<K>) -> Option<K> {
        if self.fair { tenant } else { None }
    }

    /// Makes room for a tenant; false if the table is full of others that cannot be forgotten.
    pub(super) fn admit(&mut self, now: Nanos, tenant: Option<K>) -> bool {
        let key = self.key(tenant);
        if self.tenants.contains_key(&key) {
            return true;
        }
        if self.fair && self.tenants.len() >= self.max_tenants {
            self.forget_idle();
            if self.tenants.len() >= self.max_tenants {
                return false;
            }
        }
        let weight = key.and_then(|key| self.weights.get(&key)).copied().unwrap_or(WEIGHT_ONE);
        let new = Tenant {
            lane: Lane::new(),
            start: self.virtual_now,
            weight,
            firm: [0; DIMENSIONS],
            since: now,
            ranked: None,
        };
        self.tenants.insert(key, new);
        true
    }

    /// Forgets tenants who would start now like a new one. While nobody waits there is
    /// nothing to be fair about, and all can go.
    fn forget_idle(&mut self) {
        let virtual_now = self.virtual_now;
        let quiet = self.waiting == 0;
        self.tenants
            .retain(|_, tenant| !tenant.lane.is_empty() || !quiet && tenant.start > virtual_now);
    }

    /// A tenant of [`Line::admit`] was served; `share` at weight 1.
    #[inline]
    pub(super) fn serve(&mut self, tenant: Option<K>, share: u128) {
        if self.fair {
            self.serve_fair(tenant, share);
        }
    }

    fn serve_fair(&mut self, key: Option<K>, share: u128) {
        let Some(tenant) = self.tenants.get_mut(&key) else { return };
        let start = tenant.start.max(self.virtual_now);
        self.virtual_now = start;
        tenant.start = start.saturating_add(scaled(share, tenant.weight));
    }

    /// A tenant took more or less than it was served.
    pub(super) fn correct(&mut self, now: Nanos, tenant: Option<K>, served: u128, taken: u128) {
        if !self.fair || served == taken {
            return;
        }
        if let Some(found) = self.tenants.get_mut(&tenant) {
            let more = scaled(taken.saturating_sub(served), found.weight);
            let less = scaled(served.saturating_sub(taken), found.weight);
            found.start = found.start.saturating_add(more).saturating_sub(less);
            self.rank(now, tenant);
        }
    }

    /// Brings the two orders up to date with a tenant's lane.
    fn rank(&mut self, now: Nanos, key: Option<K>) {
        let Some(tenant) = self.tenants.get_mut(&key) else { return };
        let before = tenant.ranked.take();
        if let Some((start, since, ticket)) = before {
            self.by_start.remove(&(start, ticket));
            self.by_age.remove(&(since, ticket));
        }
        let Some(first) = tenant.lane.front() else { return };
        let ticket = first.ticket;
        if before.is_none_or(|(.., known)| known != ticket) {
            tenant.since = now;
        }
        tenant.ranked = Some((tenant.start, tenant.since, ticket));
        self.by_start.insert((tenant.start, ticket), key);
        self.by_age.insert((tenant.since, ticket), key);
    }

    /// Joins the line; the tenant has been admitted.
    pub(super) fn push(&mut self, now: Nanos, ticket: Ticket, want: Want<K>, waker: W) {
        self.earliest_deadline = self.earliest_deadline.min(want.deadline);
        let key = self.key(want.wanted.tenant);
        let Some(tenant) = self.tenants.get_mut(&key) else { return };
        let first = tenant.lane.is_empty();
        if first {
            tenant.start = tenant.start.max(self.virtual_now);
        }
        add(&mut tenant.firm, &want.wanted.amounts.firm());
        tenant.lane.push(ticket, want, waker);
        self.waiting += 1;
        if first {
            self.rank(now, key);
        }
    }

    /// Whose turn it is. Once chosen, nobody goes before it.
    pub(super) fn head(&mut self, now: Nanos) -> Option<(Ticket, Want<K>)> {
        if let Some(head) = self.chosen_front() {
            return Some(head);
        }
        let aged = self.by_age.first_key_value().filter(|((since, _), _)| now - since >= PATIENCE);
        let (&(_, ticket), &key) = match aged {
            Some(aged) => (&(0, aged.0.1), aged.1),
            None => self.by_start.first_key_value()?,
        };
        self.chosen = Some((key, ticket));
        if let Some(tenant) = self.tenants.get(&key) {
            self.virtual_now = self.virtual_now.max(tenant.start);
        }
        self.chosen_front()
    }

    fn chosen_front(&self) -> Option<(Ticket, Want<K>)> {
        let (key, ticket) = self.chosen?;
        let first = self.tenants.get(&key)?.lane.front()?;
        (first.ticket == ticket).then_some((ticket, first.want))
    }

    fn left(&mut self, now: Nanos, key: Option<K>, waiter: &Waiter<Want<K>, W>) {
        self.waiting -= 1;
        if let Some(tenant) = self.tenants.get_mut(&key) {
            subtract(&mut tenant.firm, &waiter.want.wanted.amounts.firm());
        }
        self.rank(now, key);
    }

    /// Moves the head out of the line; its owner learns by a wake.
    pub(super) fn finish_head(&mut self, now: Nanos, done: Done<K>, out: &mut Leaving<W>) {
        let Some((key, _)) = self.chosen.take() else { return };
        let Some(tenant) = self.tenants.get_mut(&key) else { return };
        let Some(first) = tenant.lane.pop_front() else { return };
        if matches!(done, Done::Granted(_)) {
            self.serve(key, first.want.share);
        }
        self.left(now, key, &first);
        self.done.insert(first.ticket, done);
        first.answered(out);
    }

    /// Sees to it that the head looks again at `at`.
    pub(super) fn wake_head_by(&mut self, at: Nanos, out: &mut Leaving<W>) {
        if let Some((key, _)) = self.chosen
            && let Some(tenant) = self.tenants.get_mut(&key)
        {
            tenant.lane.wake_first_by(at, out);
        }
    }

    fn lane(&mut self, tenant: Option<K>) -> Option<&mut Lane<Want<K>, W>> {
        let key = self.key(tenant);
        self.tenants.get_mut(&key).map(|tenant| &mut tenant.lane)
    }

    /// The waiter is awake and looking: no wake is due before it has seen the answer.
    pub(super) fn looking(&mut self, tenant: Option<K>, ticket: Ticket) {
        if let Some(lane) = self.lane(tenant) {
            lane.looking(ticket);
        }
    }

    /// What a waiter wants; `None` if it is not in the line.
    pub(super) fn want(&mut self, tenant: Option<K>, ticket: Ticket) -> Option<Want<K>> {
        self.lane(tenant)?.find(ticket).map(|waiter| waiter.want)
    }

    /// The waiter goes to sleep until `at` or a wake.
    pub(super) fn sleep_until(&mut self, tenant: Option<K>, ticket: Ticket, at: Nanos) {
        if let Some(lane) = self.lane(tenant) {
            lane.sleep_until(ticket, at);
        }
    }

    pub(super) fn pick_up(&mut self, ticket: Ticket) -> Option<Done<K>> {
        if self.done.is_empty() { None } else { self.done.remove(&ticket) }
    }

    /// Takes a waiter out of the line.
    pub(super) fn remove(
        &mut self,
        now: Nanos,
        tenant: Option<K>,
        ticket: Ticket,
        out: &mut Leaving<W>,
    ) -> bool {
        let Some(waiter) = self.lane(tenant).and_then(|lane| lane.remove(ticket)) else {
            return false;
        };
        let key = self.key(tenant);
        self.left(now, key, &waiter);
        waiter.buried(out);
        true
    }

    /// What is sure to be used by those who go before a newcomer of this tenant.
    pub(super) fn ahead(&self, tenant: Option<K>) -> Totals {
        let key = self.key(tenant);
        let mut ahead = self.tenants.get(&key).map_or([0; DIMENSIONS], |tenant| tenant.firm);
        if let Some((_, head)) = self.chosen_front()
            && self.key(head.wanted.tenant) != key
        {
            add(&mut ahead, &head.wanted.amounts.firm());
        }
        ahead
    }

    /// Wakes those whose deadline has passed; for clocks that jump.
    pub(super) fn wake_overdue(&mut self, now: Nanos, out: &mut Leaving<W>) {
        if now < self.earliest_deadline {
            return;
        }
        self.earliest_deadline = NEVER;
        for waiter in self.tenants.values_mut().flat_map(|tenant| tenant.lane.iter_mut()) {
            if waiter.want.deadline > now {
                self.earliest_deadline = self.earliest_deadline.min(waiter.want.deadline);
            } else {
                waiter.wake(out);
            }
        }
    }

    /// Hands everybody out.
    pub(super) fn clear(&mut self, out: &mut Leaving<W>) {
        for (_, tenant) in self.tenants.drain() {
            tenant.lane.clear(out);
        }
        self.by_start.clear();
        self.by_age.clear();
        self.done.clear();
        self.chosen = None;
        self.waiting = 0;
        self.virtual_now = 0;
        self.earliest_deadline = NEVER;
    }
}

fn scaled(share: u128, weight: u32) -> u128 {
    share.saturating_mul(u128::from(WEIGHT_ONE)) / u128::from(weight.max(1))
}
