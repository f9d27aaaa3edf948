//! Work for threads of ours: taken in batches, kept when they stop.

use std::collections::VecDeque;
use std::thread::{self, Thread};
use std::time::Duration;

use crate::core::sync::Mutex;

/// A queue bounded in items and bytes, whose takers take all there is.
#[derive(Debug)]
pub struct Queue<T> {
    inner: Mutex<Inner<T>>,
    bounds: Bounds,
    weigh: fn(&T) -> usize,
}

/// What may wait, or go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Items.
    pub items: usize,
    /// Bytes; a single item may have more.
    pub bytes: usize,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<T>,
    bytes: usize,
    sleepers: Vec<Thread>,
    stopping: bool,
}

/// What [`Queue::take`] brings.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken<T> {
    /// Work, at least one piece.
    Work(Vec<T>),
    /// Nothing came in time.
    Nothing,
    /// The taker is to end.
    Stop,
}

impl<T> Queue<T> {
    /// An empty queue; `weigh` says how many bytes an item holds.
    #[must_use]
    pub fn new(bounds: Bounds, weigh: fn(&T) -> usize) -> Self {
        let (items, sleepers) = (VecDeque::new(), Vec::new());
        let inner = Inner { items, bytes: 0, sleepers, stopping: false };
        Self { inner: Mutex::new(inner), bounds, weigh }
    }

    /// Adds an item and wakes a taker.
    ///
    /// # Errors
    /// The item, if the queue is full.
    pub fn push(&self, item: T) -> Result<(), T> {
        self.push_quietly(item)?;
        self.nudge();
        Ok(())
    }

    /// Adds an item however full the queue is, and wakes a taker: for what gives something back.
    pub fn push_over(&self, item: T) {
        {
            let mut inner = self.inner.lock();
            inner.bytes += (self.weigh)(&item);
            inner.items.push_back(item);
        }
        self.nudge();
    }

    /// Adds an item and wakes nobody: whoever adds it will take it out.
    ///
    /// # Errors
    /// The item, if the queue is full.
    pub fn push_quietly(&self, item: T) -> Result<(), T> {
        let weight = (self.weigh)(&item);
        let mut inner = self.inner.lock();
        let heavy = !inner.items.is_empty() && inner.bytes + weight > self.bounds.bytes;
        if inner.items.len() >= self.bounds.items || heavy {
            return Err(item);
        }
        inner.bytes += weight;
        inner.items.push_back(item);
        Ok(())
    }

    /// Puts items back where they were taken from.
    pub fn put_back(&self, items: Vec<T>) {
        let mut inner = self.inner.lock();
        for item in items.into_iter().rev() {
            inner.bytes += (self.weigh)(&item);
            inner.items.push_front(item);
        }
    }

    /// Waits about `longest` at most until there is something to take; it is not taken.
    #[must_use]
    pub fn wait(&self, longest: Duration) -> Taken<T> {
        self.take(Bounds { items: 0, bytes: 0 }, longest)
    }

    /// Takes up to `most`, without waiting; if there is anything, at least one item.
    #[must_use]
    pub fn take_now(&self, most: Bounds) -> Vec<T> {
        self.inner.lock().take(most, self.weigh)
    }

    /// Takes up to `most`, waiting about `longest` for the first; stopping comes first,
    /// so that what is queued stays queued.
    #[must_use]
    pub fn take(&self, most: Bounds, longest: Duration) -> Taken<T> {
        let mut slept = false;
        loop {
            {
                let mut inner = self.inner.lock();
                if inner.stopping {
                    return Taken::Stop;
                }
                let me = thread::current();
                if slept {
                    // Whoever was woken by the clock is still in the list, and not to be chosen.
                    inner.sleepers.retain(|sleeper| sleeper.id() != me.id());
                }
                if !inner.items.is_empty() {
                    return Taken::Work(inner.take(most, self.weigh));
                }
                if slept {
                    return Taken::Nothing;
                }
                inner.sleepers.push(me);
            }
            thread::park_timeout(longest);
            slept = true;
        }
    }

    /// Takes all that is left, for whoever finishes it or answers it.
    #[must_use]
    pub fn drain(&self) -> Vec<T> {
        self.inner.lock().take(Bounds { items: usize::MAX, bytes: usize::MAX }, self.weigh)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().items.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Has a taker look again.
    pub fn nudge(&self) {
        let sleeper = self.inner.lock().sleepers.pop();
        if let Some(sleeper) = sleeper {
            sleeper.unpark();
        }
    }

    /// Ends all takers, or lets new ones begin.
    pub fn stop(&self, stopping: bool) {
        let sleepers = {
            let mut inner = self.inner.lock();
            inner.stopping = stopping;
            std::mem::take(&mut inner.sleepers)
        };
        for sleeper in sleepers {
            sleeper.unpark();
        }
    }
}

impl<T> Inner<T> {
    fn take(&mut self, most: Bounds, weigh: fn(&T) -> usize) -> Vec<T> {
        let (mut count, mut bytes) = (0, 0_usize);
        for item in self.items.iter().take(most.items) {
            let with = bytes.saturating_add(weigh(item));
            if count > 0 && with > most.bytes {
                break;
            }
            (count, bytes) = (count + 1, with);
        }
        self.bytes = self.bytes.saturating_sub(bytes);
        self.items.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn bounds(items: usize, bytes: usize) -> Bounds {
        Bounds { items, bytes }
    }

    #[test]
    fn bytes_are_bounded_but_for_a_single_item() {
        let queue = Queue::new(bounds(10, 100), |item: &usize| *item);
        queue.push(500).unwrap();
        assert_eq!(queue.push(1), Err(1));
        queue.push_over(7);
        assert_eq!(queue.take_now(bounds(9, 100)), [500]);
        queue.push(90).unwrap();
        assert_eq!(queue.push(4), Err(4));
        queue.push(3).unwrap();
        assert_eq!(queue.take_now(bounds(9, 98)), [7, 90]);
        queue.put_back(vec![7, 90]);
        assert_eq!(queue.push(1), Err(1));
        assert_eq!(queue.drain(), [7, 90, 3]);
        queue.push(100).unwrap();
    }

    #[test]
    fn what_is_queued_survives_its_takers() {
        let queue = Arc::new(Queue::new(bounds(3, 3), |_| 1));
        let taker = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let mut all = Vec::new();
                loop {
                    match queue.take(bounds(2, 9), Duration::from_mins(1)) {
                        Taken::Work(work) => all.extend(work),
                        Taken::Nothing => {}
                        Taken::Stop => return all,
                    }
                }
            })
        };
        for number in 0..100 {
            let mut item = number;
            while let Err(again) = queue.push(item) {
                item = again;
                thread::yield_now();
            }
        }
        while !queue.is_empty() {
            thread::yield_now();
        }
        queue.stop(true);
        assert_eq!(taker.join().unwrap(), (0..100).collect::<Vec<_>>());
        queue.push(7).unwrap();
        assert_eq!(queue.take(bounds(9, 9), Duration::ZERO), Taken::Stop);
        queue.stop(false);
        assert_eq!(queue.take(bounds(9, 9), Duration::ZERO), Taken::Work(vec![7]));
        assert_eq!(queue.take(bounds(9, 9), Duration::ZERO), Taken::Nothing);
        assert!(queue.inner.lock().sleepers.is_empty());
    }
}
