//! The grant log: when how many permits were granted, oldest first.
//!
//! Exact sliding windows need every grant's time. A million grants a day stay
//! affordable because a grant is 4 bytes: a block starts with a `u64` time and
//! goes on with the `u32` nanoseconds from each grant to the next; the costs
//! get a column (4 more bytes) only in blocks where one differs from 1. Blocks
//! carry their sum and their last time, so expiry and `retry_after` step over
//! whole blocks.
//!
//! A distance reaches 4.29 s. Beyond it a new block starts: 72 bytes without a
//! heap of its own, 1.5 MB for a whole day of such gaps, whatever the limit.

use std::collections::VecDeque;

use crate::core::clock::Nanos;

/// Grants per block. 4 KiB of offsets: long enough to make the block's own 72
/// bytes vanish, short enough that a step inside one stays under a microsecond.
pub(super) const BLOCK: usize = 1024;
/// Retired blocks freed per push, so that no single call pays for a million grants.
const FREED_PER_PUSH: usize = 2;

/// Some consecutive grants.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// The time of the first grant.
    base: Nanos,
    /// The time of the last one.
    newest: Nanos,
    /// From each grant to the next.
    gaps: Vec<u32>,
    /// One cost per grant, or empty while all are 1.
    costs: Vec<u32>,
    /// All costs together.
    pub(super) sum: u64,
}

impl Block {
    fn start(&mut self, at: Nanos, cost: u32) {
        self.base = at;
        self.newest = at;
        self.gaps.clear();
        self.costs.clear();
        if cost != 1 {
            self.costs.push(cost);
        }
        self.sum = u64::from(cost);
    }

    pub(super) fn len(&self) -> usize {
        self.gaps.len() + 1
    }

    pub(super) fn base(&self) -> Nanos {
        self.base
    }

    #[inline]
    pub(super) fn newest(&self) -> Nanos {
        self.newest
    }

    /// From grant `index` to the next one, which must exist.
    #[inline]
    pub(super) fn gap_after(&self, index: usize) -> Nanos {
        u64::from(self.gaps[index])
    }

    /// Adds up to `index` gaps; a walk of at most a block.
    pub(super) fn time(&self, index: usize) -> Nanos {
        self.base + self.gaps[..index].iter().map(|&gap| u64::from(gap)).sum::<u64>()
    }

    #[inline]
    pub(super) fn cost(&self, index: usize) -> u64 {
        if self.costs.is_empty() { 1 } else { u64::from(self.costs[index]) }
    }

    #[inline]
    fn append(&mut self, at: Nanos, cost: u32) -> bool {
        if self.len() == BLOCK {
            return false;
        }
        let Ok(gap) = u32::try_from(at - self.newest) else { return false };
        if cost != 1 && self.costs.is_empty() {
            self.costs.resize(self.len(), 1);
        }
        if !self.costs.is_empty() {
            self.costs.push(cost);
        }
        self.gaps.push(gap);
        self.newest = at;
        self.sum += u64::from(cost);
        true
    }

    /// The time at which the costs from the block's start reach `wanted` (at most `sum`).
    pub(super) fn reach(&self, wanted: u64) -> Nanos {
        if self.costs.is_empty() {
            return self.time(wanted as usize - 1);
        }
        let mut total = 0;
        let reached = self.costs.iter().position(|&cost| {
            total += u64::from(cost);
            total >= wanted
        });
        self.time(reached.unwrap_or(self.gaps.len()))
    }

    /// The last grant of `cost` at `at`.
    fn find(&self, at: Nanos, cost: u32) -> Option<usize> {
        let mut time = self.base;
        let mut found = None;
        for index in 0..self.len() {
            if time == at && self.cost(index) == u64::from(cost) {
                found = Some(index);
            }
            if time > at {
                break;
            }
            time += self.gaps.get(index).map_or(0, |&gap| u64::from(gap));
        }
        found
    }

    /// Takes one grant out; the block must hold more than one. False: it stays
    /// with a cost of zero, because its neighbours are too far apart. That
    /// happens at most once in 2 s of grants, so it cannot pile up.
    fn remove(&mut self, index: usize) -> bool {
        self.sum -= self.cost(index);
        if index == 0 {
            self.base += u64::from(self.gaps.remove(0));
        } else if index == self.gaps.len() {
            self.newest -= self.gaps.pop().map_or(0, u64::from);
        } else if let Some(gap) = self.gaps[index - 1].checked_add(self.gaps[index]) {
            self.gaps.remove(index);
            self.gaps[index - 1] = gap;
        } else {
            if self.costs.is_empty() {
                self.costs.resize(self.len(), 1);
            }
            self.costs[index] = 0;
            return false;
        }
        if !self.costs.is_empty() {
            self.costs.remove(index);
        }
        true
    }
}

/// Where a grant stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    /// The block, counted from the log's beginning of time.
    pub(super) block: u64,
    /// The grant within it.
    pub(super) index: usize,
}

/// All grants that some window may still need.
#[derive(Debug, Default)]
pub(super) struct GrantLog {
    blocks: VecDeque<Block>,
    /// The number of `blocks[0]`.
    first: u64,
    newest: Nanos,
    /// Expired blocks that wait to be freed or used again.
    retired: VecDeque<Block>,
}

impl GrantLog {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The newest grant's time; meaningless when empty.
    #[inline]
    pub(super) fn newest(&self) -> Nanos {
        self.newest
    }

    #[inline]
    pub(super) fn block(&self, number: u64) -> &Block {
        &self.blocks[(number - self.first) as usize]
    }

    /// Appends a grant that is not older than the newest. Returns its position
    /// and the costs before it in its block.
    #[inline]
    pub(super) fn push(&mut self, at: Nanos, cost: u32) -> (Position, u64) {
        self.newest = at;
        if !self.retired.is_empty() {
            self.free_some();
        }
        let appended = self.blocks.back_mut().is_some_and(|block| block.append(at, cost));
        if !appended {
            let mut block = self.retired.pop_front().unwrap_or_default();
            block.start(at, cost);
            self.blocks.push_back(block);
        }
        let number = self.first + self.blocks.len() as u64 - 1;
        let block = self.block(number);
        (Position { block: number, index: block.len() - 1 }, block.sum - u64::from(cost))
    }

    fn free_some(&mut self) {
        for _ in 0..FREED_PER_PUSH {
            // One block stays for the next push that needs one.
            if self.retired.len() > 1 {
                self.retired.pop_back();
            }
        }
        if self.retired.len() <= 1 && self.retired.capacity() > 16 {
            self.retired.shrink_to(4);
        }
    }

    /// Shows all grants, oldest first.
    pub(super) fn each(&self, mut show: impl FnMut(Nanos, u64)) {
        for block in &self.blocks {
            let mut at = block.base;
            for index in 0..block.len() {
                show(at, block.cost(index));
                at += block.gaps.get(index).map_or(0, |&gap| u64::from(gap));
            }
        }
    }

    /// Forgets everything; O(1) unless an earlier clearing is still being freed.
    pub(super) fn clear(&mut self) {
        self.first += self.blocks.len() as u64;
        if self.retired.is_empty() {
            std::mem::swap(&mut self.retired, &mut self.blocks);
        } else {
            self.retired.append(&mut self.blocks);
        }
    }

    /// Retires all blocks before `position`.
    pub(super) fn retire_before(&mut self, position: Position) {
        while self.first < position.block {
            let Some(block) = self.blocks.pop_front() else { return };
            self.retired.push_back(block);
            self.first += 1;
        }
    }

    /// Takes the newest grant of `cost` at `at` out again; `None` if there is none.
    pub(super) fn remove(&mut self, at: Nanos, cost: u32) -> Option<Removed> {
        for slot in (0..self.blocks.len()).rev() {
            let block = &self.blocks[slot];
            if block.newest < at {
                return None;
            }
            if block.base <= at
                && let Some(index) = block.find(at, cost)
            {
                return Some(self.take(slot, index));
            }
        }
        None
    }

    fn take(&mut self, slot: usize, index: usize) -> Removed {
        let position = Position { block: self.first + slot as u64, index };
        let how = if self.blocks[slot].len() == 1 {
            self.blocks.remove(slot);
            How::WithBlock
        } else if self.blocks[slot].remove(index) {
            How::Alone
        } else {
            How::Blanked
        };
        self.newest = self.blocks.back().map_or(0, Block::newest);
        Removed { position, how }
    }

    /// Bytes held, for the memory promise.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let blocks = self.blocks.capacity() + self.retired.capacity();
        let columns = self.blocks.iter().chain(&self.retired);
        blocks * size_of::<Block>()
            + columns.map(|b| 4 * (b.gaps.capacity() + b.costs.capacity())).sum::<usize>()
    }
}

/// What [`GrantLog::remove`] took out: the cursors follow it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removed {
    /// Where it stood.
    pub(super) position: Position,
    /// What else moved.
    pub(super) how: How,
}

/// How a grant left the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Later grants of its block moved one down.
    Alone,
    /// Later blocks moved one down.
    WithBlock,
    /// Nothing moved; it costs nothing now.
    Blanked,
}
