//! A limiter in its plainest form: lists, and a search through all of them for every answer.

use std::collections::BTreeMap;

use super::amounts::{Amounts, DIMENSIONS};
use super::line::{PATIENCE, WHOLE};
use crate::core::clock::{Nanos, SECOND};
use crate::core::limiter::Ticket;

pub(super) const PERIOD: Nanos = 60 * SECOND;

/// One request in the simulation.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) at: Nanos,
    pub(super) amounts: Amounts,
    /// What of it nobody had reserved.
    pub(super) over: Amounts,
}

#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) ticket: Ticket,
    pub(super) tenant: u32,
    pub(super) amounts: Amounts,
    pub(super) share: u128,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Tenant {
    pub(super) start: u128,
    pub(super) first: Option<Ticket>,
    pub(super) since: Nanos,
}

/// What anybody can check: lists, and a search through all of them for every answer.
pub(super) struct Naive {
    pub(super) limits: [Option<u64>; DIMENSIONS],
    pub(super) slots: Option<u32>,
    pub(super) fair: bool,
    pub(super) weights: BTreeMap<u32, u32>,
    pub(super) entries: Vec<Entry>,
    pub(super) open: u32,
    pub(super) line: Vec<Waiting>,
    pub(super) tenants: BTreeMap<u32, Tenant>,
    pub(super) virtual_now: u128,
    pub(super) chosen: Option<Ticket>,
    pub(super) paused_until: Nanos,
}

impl Naive {
    pub(super) fn used(&self, now: Nanos, d: usize) -> u128 {
        let counted = self.entries.iter().filter(|entry| now - entry.at < PERIOD);
        counted.map(|entry| u128::from(entry.amounts.0[d])).sum()
    }

    pub(super) fn over(&self, now: Nanos, d: usize) -> u128 {
        let counted = self.entries.iter().filter(|entry| now - entry.at < PERIOD);
        counted.map(|entry| u128::from(entry.over.0[d])).sum()
    }

    pub(super) fn fits(&self, now: Nanos, ask: &Amounts) -> bool {
        now >= self.paused_until
            && (0..DIMENSIONS).all(|d| {
                self.limits[d].is_none_or(|limit| {
                    self.used(now, d) + u128::from(ask.0[d]) <= u128::from(limit)
                })
            })
    }

    /// The first instant at which it fits if nothing happens until then.
    pub(super) fn wait(&self, now: Nanos, ask: &Amounts) -> Nanos {
        let mut candidates = vec![now, self.paused_until.max(now)];
        candidates.extend(self.entries.iter().map(|entry| entry.at + PERIOD));
        candidates.retain(|&at| at >= now);
        candidates.sort_unstable();
        candidates.into_iter().find(|&at| self.fits(at, ask)).unwrap() - now
    }

    pub(super) fn share(&self, amounts: &Amounts) -> u128 {
        let share = |d: usize| {
            let unlimited = (d == 0).then_some(1 << 20);
            self.limits[d]
                .or(unlimited)
                .map(|limit| u128::from(amounts.0[d]) * WHOLE / u128::from(limit))
        };
        (0..DIMENSIONS).filter_map(share).max().unwrap().max(1)
    }

    pub(super) fn tenant(&self, tenant: u32) -> u32 {
        if self.fair { tenant } else { 0 }
    }

    pub(super) fn scaled(&self, tenant: u32, share: u128) -> u128 {
        share * 1000 / u128::from(*self.weights.get(&tenant).unwrap_or(&1000))
    }

    pub(super) fn grant(
        &mut self,
        now: Nanos,
        tenant: u32,
        amounts: Amounts,
        share: u128,
    ) -> usize {
        let lasts = self.scaled(tenant, share);
        let state = self.tenants.entry(self.tenant(tenant)).or_default();
        let start = state.start.max(self.virtual_now);
        self.virtual_now = start;
        state.start = start + lasts;
        self.entries.push(Entry { at: now, amounts, over: Amounts::NONE });
        self.open += 1;
        self.entries.len() - 1
    }

    pub(super) fn close(
        &mut self,
        now: Nanos,
        tenant: u32,
        index: usize,
        reserved: Amounts,
        actual: Amounts,
    ) {
        self.open -= 1;
        let mut over = Amounts(std::array::from_fn(|d| actual.0[d].saturating_sub(reserved.0[d])));
        let mut inside = Amounts(std::array::from_fn(|d| actual.0[d].min(reserved.0[d])));
        for d in 1..DIMENSIONS {
            if self.limits[d].is_none() {
                (inside.0[d], over.0[d]) = (actual.0[d], 0);
            }
        }
        self.entries[index].amounts = inside;
        if over != Amounts::NONE {
            self.entries.push(Entry { at: now, amounts: over, over });
        }
        if self.fair {
            let (before, after) = (self.share(&reserved), self.share(&actual));
            let more = self.scaled(tenant, after.saturating_sub(before));
            let less = self.scaled(tenant, before.saturating_sub(after));
            let start = &mut self.tenants.get_mut(&tenant).unwrap().start;
            *start = (*start + more).saturating_sub(less);
        }
    }

    pub(super) fn join(&mut self, now: Nanos, waiting: Waiting) {
        let key = self.tenant(waiting.tenant);
        let first = !self.line.iter().any(|other| self.tenant(other.tenant) == key);
        let virtual_now = self.virtual_now;
        let tenant = self.tenants.entry(key).or_default();
        if first {
            tenant.start = tenant.start.max(virtual_now);
        }
        self.line.push(waiting);
        self.note_firsts(now);
    }

    /// Since when the first waiter of each tenant is the first.
    pub(super) fn note_firsts(&mut self, now: Nanos) {
        let line = &self.line;
        let fair = self.fair;
        for (&key, tenant) in &mut self.tenants {
            let first = line.iter().find(|w| !fair || w.tenant == key).map(|w| w.ticket);
            if tenant.first != first {
                tenant.first = first;
                tenant.since = now;
            }
        }
    }

    pub(super) fn head(&mut self, now: Nanos) -> Option<Waiting> {
        let of =
            |ticket: Ticket, line: &[Waiting]| line.iter().find(|w| w.ticket == ticket).cloned();
        if let Some(chosen) = self.chosen.and_then(|ticket| of(ticket, &self.line)) {
            return Some(chosen);
        }
        let firsts = || self.tenants.values().filter_map(|t| t.first.map(|first| (t, first)));
        let aged = firsts().map(|(t, first)| (t.since, first)).min();
        let ticket = match aged.filter(|(since, _)| now - since >= PATIENCE) {
            Some((_, ticket)) => ticket,
            None => firsts().map(|(t, first)| (t.start, first)).min()?.1,
        };
        self.chosen = Some(ticket);
        let head = of(ticket, &self.line)?;
        let start = self.tenants[&self.tenant(head.tenant)].start;
        self.virtual_now = self.virtual_now.max(start);
        Some(head)
    }

    /// Grants from the head on; who got something.
    pub(super) fn pump(&mut self, now: Nanos) -> Vec<(Ticket, usize)> {
        let mut granted = Vec::new();
        while let Some(head) = self.head(now) {
            let impossible = (0..DIMENSIONS)
                .any(|d| self.limits[d].is_some_and(|limit| head.amounts.0[d] > limit));
            let slot = self.slots.is_none_or(|slots| self.open < slots);
            let fits = slot && self.fits(now, &head.amounts);
            if !impossible && !fits {
                break;
            }
            self.line.retain(|waiting| waiting.ticket != head.ticket);
            self.note_firsts(now);
            self.chosen = None;
            if !impossible {
                let index = self.grant(now, head.tenant, head.amounts, head.share);
                granted.push((head.ticket, index));
            }
        }
        granted
    }
}
