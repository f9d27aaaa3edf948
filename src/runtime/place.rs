//! Where a value lives: a namespace and a key in it.

use std::fmt;
use std::sync::Arc;

/// The number of a place: 32 bytes of BLAKE3, so that no tenant can aim at another's.
pub type Id = [u8; 32];

/// The number of `key` in `ns`.
#[must_use]
pub fn id_of(ns: &str, key: &str) -> Id {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(ns.len() as u64).to_le_bytes());
    hasher.update(ns.as_bytes());
    hasher.update(key.as_bytes());
    *hasher.finalize().as_bytes()
}

/// A namespace and a key in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Place {
    /// The namespace.
    pub ns: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    id: Id,
}

impl Place {
    /// The place of `key` in `ns`; the same in every process and on every machine.
    #[must_use]
    pub fn new(ns: Arc<str>, key: &str) -> Self {
        let id = id_of(&ns, key);
        Self { ns, key: key.into(), id }
    }

    /// The place whose number is known already.
    #[must_use]
    pub fn numbered(id: Id, ns: &str, key: &str) -> Self {
        Self { ns: ns.into(), key: key.into(), id }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> &Id {
        &self.id
    }
}

impl std::hash::Hash for Place {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.ns, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_between_namespace_and_key_counts() {
        let (one, other) = (Place::new("a".into(), "bc"), Place::new("ab".into(), "c"));
        assert_ne!(one.id(), other.id());
        assert_eq!(one, Place::new("a".into(), "bc"));
    }
}
