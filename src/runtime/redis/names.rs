//! What stands where in Redis.
//!
//! | key | holds |
//! |---|---|
//! | `{prefix}{ns:key}` | a hash: `v` the value, `g` its birth and the generations it was written in |
//! | `{prefix}{ns:key}:lease` | the token of the process that loads it |
//! | `{prefix}ns:{ns}`, `{prefix}tag:{tag}` | the generation of a namespace, of a tag |
//! | `{prefix}changes` | a channel with everybody's changes |
//!
//! The braces (of which the first column's are literal) are what a Cluster hashes: a
//! value and its lease share a slot, and the values of a namespace spread over all nodes.

use crate::runtime::place::{Id, Place, id_of};

/// What the key of a lease has behind that of its value.
pub(super) const LEASE: &str = ":lease";

/// The names of one service's keys.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
    channel: String,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into(), channel: format!("{prefix}changes") }
    }

    /// The key of a value.
    pub(super) fn value(&self, place: &Place) -> String {
        let mut name =
            String::with_capacity(self.prefix.len() + place.ns.len() + place.key.len() + 3);
        name.push_str(&self.prefix);
        name.push('{');
        // What stands before the first colon, and nothing else, is the namespace.
        for letter in place.ns.chars() {
            match letter {
                '%' => name.push_str("%25"),
                ':' => name.push_str("%3A"),
                '{' => name.push_str("%7B"),
                '}' => name.push_str("%7D"),
                other => name.push(other),
            }
        }
        name.push(':');
        name.push_str(&place.key);
        name.push('}');
        name
    }

    /// The key of the lease on the value at `value`.
    pub(super) fn lease(value: &str) -> String {
        format!("{value}{LEASE}")
    }

    /// The key of a namespace's generation.
    pub(super) fn namespace(&self, ns: &str) -> String {
        format!("{}ns:{ns}", self.prefix)
    }

    /// The key of a tag's generation.
    pub(super) fn tag(&self, tag: &str) -> String {
        format!("{}tag:{tag}", self.prefix)
    }

    /// The channel of all changes.
    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    /// The channel by which one process measures how late the other one's messages come.
    pub(super) fn beat(&self, sender: &str) -> String {
        format!("{}beat:{sender}", self.prefix)
    }

    /// A key that a health check writes.
    pub(super) fn probe(&self) -> String {
        format!("{}probe", self.prefix)
    }

    /// The number of the place whose value is at `name`.
    pub(super) fn id(&self, name: &str) -> Option<Id> {
        let inside = name.strip_prefix(&self.prefix)?.strip_prefix('{')?.strip_suffix('}')?;
        let (ns, key) = inside.split_once(':')?;
        let ns = ns.replace("%3A", ":").replace("%7B", "{").replace("%7D", "}");
        Some(id_of(&ns.replace("%25", "%"), key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_place() {
        let names = Names::new("ferrogate:");
        for (ns, key) in
            [("", ""), ("a", "b:c"), ("a:b{}%3A", "}{x"), ("%253A", "k"), ("}", "}:lease")]
        {
            let place = Place::new(ns.into(), key);
            let name = names.value(&place);
            assert_eq!(names.id(&name).as_ref(), Some(place.id()), "{name}");
            assert_eq!(names.id(&Names::lease(&name)), None);
        }
        assert_eq!(names.id(&names.namespace("x")), None);
        assert_eq!(names.value(&Place::new("ns".into(), "k")), "ferrogate:{ns:k}");
    }
}
