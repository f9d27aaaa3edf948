//! What left a table and still has to be dropped.

use super::Cause;

/// What an operation removed; drop it only after the lock is released.
///
/// Most operations remove one entry or none, so the first one lies inline: a
/// `malloc` and a `free` made up an eighth of replacing a value.
#[derive(Debug)]
#[must_use = "removed values must be dropped after the lock is released"]
pub struct Graveyard<V> {
    first: Option<(Cause, V)>,
    more: Vec<(Cause, V)>,
}

impl<V> Graveyard<V> {
    /// An empty one; does not allocate.
    #[inline]
    pub fn new() -> Self {
        Self { first: None, more: Vec::new() }
    }

    /// Whether nothing was removed.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// How many were removed.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    /// What was removed last.
    #[must_use]
    pub fn last(&self) -> Option<&(Cause, V)> {
        self.more.last().or(self.first.as_ref())
    }

    #[inline]
    pub(super) fn bury(&mut self, cause: Cause, value: V) {
        if self.first.is_none() {
            self.first = Some((cause, value));
        } else {
            self.more.push((cause, value));
        }
    }

    pub(super) fn reserve(&mut self, additional: usize) {
        self.more.reserve(additional);
    }
}

impl<V> Default for Graveyard<V> {
    fn default() -> Self {
        Self::new()
    }
}

/// In the order in which they were removed.
impl<V> IntoIterator for Graveyard<V> {
    type Item = (Cause, V);
    type IntoIter =
        std::iter::Chain<std::option::IntoIter<(Cause, V)>, std::vec::IntoIter<(Cause, V)>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.more)
    }
}
