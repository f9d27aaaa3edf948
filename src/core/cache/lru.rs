//! Doubly linked lists through the slots of a slab, by index.

/// No slot.
pub(super) const NIL: u32 = u32::MAX;

/// The links of one slot in one list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    older: u32,
    newer: u32,
}

impl Links {
    pub(super) const UNLINKED: Self = Self { older: NIL, newer: NIL };
}

/// Gives a list access to its links in the slots.
pub(super) trait Slots {
    fn links(&mut self, slot: u32) -> &mut Links;
}

/// A list from its oldest to its newest slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    oldest: u32,
    newest: u32,
}

impl List {
    pub(super) const EMPTY: Self = Self { oldest: NIL, newest: NIL };

    #[inline]
    pub(super) fn oldest(self) -> Option<u32> {
        (self.oldest != NIL).then_some(self.oldest)
    }

    #[inline]
    pub(super) fn push_newest(&mut self, slots: &mut impl Slots, slot: u32) {
        *slots.links(slot) = Links { older: self.newest, newer: NIL };
        if self.newest == NIL {
            self.oldest = slot;
        } else {
            slots.links(self.newest).newer = slot;
        }
        self.newest = slot;
    }

    #[inline]
    pub(super) fn remove(&mut self, slots: &mut impl Slots, slot: u32) {
        let Links { older, newer } = *slots.links(slot);
        if older == NIL {
            self.oldest = newer;
        } else {
            slots.links(older).newer = newer;
        }
        if newer == NIL {
            self.newest = older;
        } else {
            slots.links(newer).older = older;
        }
        *slots.links(slot) = Links::UNLINKED;
    }

    /// Moves a slot that is in the list to its newest end.
    #[inline]
    pub(super) fn make_newest(&mut self, slots: &mut impl Slots, slot: u32) {
        if self.newest != slot {
            self.remove(slots, slot);
            self.push_newest(slots, slot);
        }
    }

    /// The slot that is one step newer.
    pub(super) fn newer(slots: &mut impl Slots, slot: u32) -> Option<u32> {
        let newer = slots.links(slot).newer;
        (newer != NIL).then_some(newer)
    }
}
