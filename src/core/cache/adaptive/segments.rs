//! Window, probation and protected: three lists that one set of entries lies in.
//!
//! W-TinyLFU (the paper of [`sketch`](super::sketch), §4): what is new comes into
//! the window; what falls out of the window has to be used more often than what
//! would have to go for it; what is hit in the main part is protected from that
//! for a while. With [`Shape::recency`] all of it is one LRU list.

use super::super::lru::{Links, List, Slots};
use super::sketch::Frequency;

/// Entries that change lists per operation at most, when a shape has changed.
const STEPS: u32 = 2;

/// With a margin, one in how many newcomers that were used once takes the place of an entry
/// whose uses are forgotten. All of them: a loop of more than a period goes through the cache
/// without a hit. None of them: what an earlier time left behind stays for ever. (Bimodal
/// insertion, as Qureshi et al., "Adaptive Insertion Policies for High Performance Caching",
/// ISCA 2007, have it.)
const STRANGERS: u32 = 128;

/// In which list an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    None,
    Window,
    Probation,
    Protected,
}

/// An entry's place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) links: Links,
    pub(super) segment: Segment,
    /// Used since it came to its place in the list.
    pub(super) used: bool,
}

impl Node {
    pub(super) const ABSENT: Self =
        Self { links: Links::UNLINKED, segment: Segment::None, used: false };
}

/// Where the places are kept.
pub(super) trait Nodes {
    fn node(&mut self, slot: u32) -> &mut Node;
    /// How often the entry's key was used.
    fn frequency(&self, slot: u32) -> Frequency;
}

/// The links of some nodes.
struct Linked<'a, N>(&'a mut N);

impl<N: Nodes> Slots for Linked<'_, N> {
    #[inline]
    fn links(&mut self, slot: u32) -> &mut Links {
        &mut self.0.node(slot).links
    }
}

/// How a policy divides a cache.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shape {
    /// Entries in the window.
    window: u32,
    /// Entries that may be protected.
    protected: u32,
    /// By how many uses a newcomer must be ahead of what would go for it.
    margin: u32,
    /// Nothing but recency counts.
    pub(super) recency: bool,
}

impl Shape {
    /// Of a cache of `capacity` entries. A window of 100 percent is pure LRU.
    pub(super) fn new(capacity: u32, window_percent: u32, margin: u32) -> Self {
        let window = u64::from(capacity) * u64::from(window_percent) / 100;
        // What was just set can be read, whatever its frequency.
        let window = (window as u32).max(1);
        let protected = capacity.saturating_sub(window) / 2;
        Self { window, protected, margin, recency: window_percent == 100 }
    }
}

/// The three lists.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segments {
    window: List,
    probation: List,
    protected: List,
    windowed: u32,
    shielded: u32,
    len: u32,
    turned_away: u32,
}

impl Segments {
    pub(super) const EMPTY: Self = Self {
        window: List::EMPTY,
        probation: List::EMPTY,
        protected: List::EMPTY,
        windowed: 0,
        shielded: 0,
        len: 0,
        turned_away: 0,
    };

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    fn link(&mut self, nodes: &mut impl Nodes, slot: u32, segment: Segment) {
        let node = nodes.node(slot);
        (node.segment, node.used) = (segment, false);
        let list = match segment {
            Segment::None => return,
            Segment::Window => {
                self.windowed += 1;
                &mut self.window
            }
            Segment::Probation => &mut self.probation,
            Segment::Protected => {
                self.shielded += 1;
                &mut self.protected
            }
        };
        list.push_newest(&mut Linked(nodes), slot);
    }

    fn unlink(&mut self, nodes: &mut impl Nodes, slot: u32) {
        let list = match nodes.node(slot).segment {
            Segment::None => return,
            Segment::Window => {
                self.windowed -= 1;
                &mut self.window
            }
            Segment::Probation => &mut self.probation,
            Segment::Protected => {
                self.shielded -= 1;
                &mut self.protected
            }
        };
        list.remove(&mut Linked(nodes), slot);
    }

    /// Adds a new entry; the caller has made room.
    pub(super) fn add(&mut self, nodes: &mut impl Nodes, slot: u32, shape: Shape) {
        self.len += 1;
        if shape.recency {
            // The main list, so that a later change of shape finds it in order there.
            self.link(nodes, slot, Segment::Probation);
            return;
        }
        self.link(nodes, slot, Segment::Window);
        for _ in 0..STEPS {
            if self.windowed <= shape.window {
                break;
            }
            if let Some(oldest) = self.window.oldest() {
                self.unlink(nodes, oldest);
                self.link(nodes, oldest, Segment::Probation);
            }
        }
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, nodes: &mut impl Nodes, slot: u32) {
        self.unlink(nodes, slot);
        nodes.node(slot).segment = Segment::None;
        self.len -= 1;
    }

    /// An entry was used, but where it lies does not matter now: someone else has the order of
    /// use. It is made up for when it matters again.
    #[inline]
    pub(super) fn hit_unordered(&mut self, nodes: &mut impl Nodes, slot: u32, shape: Shape) {
        let node = nodes.node(slot);
        if node.segment == Segment::Probation {
            node.used = true;
        } else {
            self.hit(nodes, slot, shape);
        }
    }

    /// An entry was used.
    #[inline]
    pub(super) fn hit(&mut self, nodes: &mut impl Nodes, slot: u32, shape: Shape) {
        let segment = nodes.node(slot).segment;
        let wanted = match segment {
            _ if shape.recency => Segment::Probation,
            Segment::Window => Segment::Window,
            _ => Segment::Protected,
        };
        if segment == wanted {
            let list = match segment {
                Segment::Window => &mut self.window,
                Segment::Probation => &mut self.probation,
                _ => &mut self.protected,
            };
            list.make_newest(&mut Linked(nodes), slot);
            return;
        }
        self.unlink(nodes, slot);
        self.link(nodes, slot, wanted);
        for _ in 0..STEPS {
            if shape.recency || self.shielded <= shape.protected {
                break;
            }
            if let Some(oldest) = self.protected.oldest() {
                self.unlink(nodes, oldest);
                self.link(nodes, oldest, Segment::Probation);
            }
        }
    }

    /// Which entry has to go for a new one, by their frequencies where the shape
    /// asks for them. The entry is still to be [removed](Self::remove).
    pub(super) fn victim(
        &mut self,
        nodes: &mut impl Nodes,
        shape: Shape,
        period: u8,
    ) -> Option<u32> {
        for _ in 0..STEPS {
            let Some(oldest) = self.probation.oldest().filter(|slot| nodes.node(*slot).used) else {
                break;
            };
            nodes.node(oldest).used = false;
            self.probation.make_newest(&mut Linked(nodes), oldest);
        }
        let main = self.probation.oldest().or_else(|| self.protected.oldest());
        let newcomer = self.window.oldest();
        let (Some(main), Some(newcomer)) = (main, newcomer) else { return main.or(newcomer) };
        if shape.recency || self.windowed < shape.window {
            return Some(main);
        }
        let held = nodes.frequency(main).at(period);
        let used = nodes.frequency(newcomer).at(period);
        if used <= held + shape.margin && !(used > held && held == 0 && self.admits_a_stranger()) {
            return Some(newcomer);
        }
        self.unlink(nodes, newcomer);
        self.link(nodes, newcomer, Segment::Probation);
        Some(main)
    }

    /// Whether it is time to try one.
    fn admits_a_stranger(&mut self) -> bool {
        self.turned_away = (self.turned_away + 1) % STRANGERS;
        self.turned_away == 0
    }

    /// How many entries the lists hold, seen that their counts are right.
    #[cfg(test)]
    pub(super) fn check(&self, nodes: &mut impl Nodes) -> usize {
        let mut counts = [0; 3];
        let lists = [
            (self.window, Segment::Window),
            (self.probation, Segment::Probation),
            (self.protected, Segment::Protected),
        ];
        for (count, (list, segment)) in counts.iter_mut().zip(lists) {
            let mut next = list.oldest();
            while let Some(slot) = next {
                assert_eq!(nodes.node(slot).segment, segment);
                *count += 1;
                next = List::newer(&mut Linked(nodes), slot);
            }
        }
        let len = counts.iter().sum();
        assert_eq!((counts[0], counts[2], len), (self.windowed, self.shielded, self.len));
        len as usize
    }
}
