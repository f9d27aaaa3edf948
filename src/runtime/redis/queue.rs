//! What waits to be sent.

use std::collections::VecDeque;

use super::shared::{Ask, Job};
use crate::core::clock::Nanos;
use crate::runtime::queue::Bounds;
use crate::runtime::tier::Request;

/// What may wait; values are counted before compression.
const MOST: Bounds = Bounds { items: 100_000, bytes: 256 << 20 };

/// Jobs in the order in which they give up, but for those that are tried again.
#[derive(Debug, Default)]
pub(super) struct Queue {
    jobs: VecDeque<Job>,
    bytes: usize,
}

fn weight(job: &Job) -> usize {
    match &job.ask {
        Ask::Request(Request::Set { parcel, .. }) => parcel.body.bytes().len(),
        _ => 0,
    }
}

impl Queue {
    /// Adds a job; hands it back if too much waits.
    #[must_use]
    pub(super) fn push(&mut self, job: Job) -> Option<Job> {
        let weight = weight(&job);
        let heavy = weight > 0 && self.bytes > 0 && self.bytes + weight > MOST.bytes;
        if self.jobs.len() >= MOST.items || heavy {
            return Some(job);
        }
        self.bytes += weight;
        self.jobs.push_back(job);
        None
    }

    /// Puts jobs back to where they came from.
    pub(super) fn put_back(&mut self, jobs: Vec<Job>) {
        for job in jobs.into_iter().rev() {
            self.bytes += weight(&job);
            self.jobs.push_front(job);
        }
    }

    /// Takes up to `most`; if there is anything, at least one.
    pub(super) fn take(&mut self, most: Bounds) -> Vec<Job> {
        let (mut count, mut bytes) = (0, 0);
        for job in self.jobs.iter().take(most.items) {
            let with = bytes + weight(job);
            if count > 0 && with > most.bytes {
                break;
            }
            (count, bytes) = (count + 1, with);
        }
        self.bytes -= bytes;
        self.jobs.drain(..count).collect()
    }

    /// Takes those at the front whose time was up by `then`.
    pub(super) fn late(&mut self, then: Nanos) -> Vec<Job> {
        let items = self.jobs.iter().take_while(|job| job.deadline <= then).count();
        if items == 0 { Vec::new() } else { self.take(Bounds { items, bytes: usize::MAX }) }
    }

    /// When the first of them gives up.
    pub(super) fn first_deadline(&self) -> Option<Nanos> {
        self.jobs.front().map(|job| job.deadline)
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::runtime::frame::{Body, Codec};
    use crate::runtime::place::Place;
    use crate::runtime::tier::{Done, Parcel};

    fn job(bytes: usize, deadline: Nanos) -> Job {
        let body = Body::of(vec![0; bytes].into());
        let parcel = Parcel { codec: Codec::Bytes, body, threshold: None, near: None };
        let (place, tags) = (Place::new("ns".into(), "k"), Arc::from([]));
        let request = Request::Set { place, parcel, ttl: None, tags, lease: None };
        Job { ask: Ask::Request(request), done: Done::new(drop), deadline, again: false }
    }

    #[test]
    fn bytes_are_bounded_but_for_a_single_job() {
        let mut queue = Queue::default();
        assert!(queue.push(job(MOST.bytes + 1, 10)).is_none());
        assert!(queue.push(job(1, 20)).is_some());
        let ping = Job { ask: Ask::Request(Request::Ping), ..job(0, 20) };
        assert!(queue.push(ping).is_none());
        assert_eq!(queue.take(Bounds { items: 9, bytes: 100 }).len(), 1);
        assert!(queue.push(job(60, 30)).is_none());
        assert!(queue.push(job(60, 40)).is_none());
        assert_eq!((queue.len(), queue.bytes), (3, 120));
        let two = queue.take(Bounds { items: 9, bytes: 100 });
        assert_eq!((two.len(), queue.bytes), (2, 60));
        queue.put_back(two);
        assert_eq!((queue.len(), queue.bytes, queue.first_deadline()), (3, 120, Some(20)));
        assert!(queue.late(19).is_empty());
        assert_eq!((queue.late(30).len(), queue.bytes), (2, 60));
    }
}
