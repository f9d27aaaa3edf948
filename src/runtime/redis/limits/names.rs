//! What stands where in Redis; the table is in [`super::lua`].

use std::fmt::Write;

use crate::core::key::Key;

/// The names of one limiter's keys, all in one slot of a Cluster.
#[derive(Clone, Debug)]
pub(super) struct Names {
    tag: String,
}

/// What all keys of a thing of that name begin with: it says in which slot of a Cluster they are.
pub(in super::super) fn tagged(prefix: &str, kind: &str, name: &str) -> String {
    let mut tag = format!("{{{}{kind}:", prefix.replace(['{', '}'], ""));
    for letter in name.chars() {
        match letter {
            '%' => tag.push_str("%25"),
            '{' => tag.push_str("%7B"),
            '}' => tag.push_str("%7D"),
            other => tag.push(other),
        }
    }
    tag.push('}');
    tag
}

impl Names {
    pub(super) fn new(prefix: &str, name: &str) -> Self {
        Self { tag: tagged(prefix, "limit", name) }
    }

    pub(super) fn epoch(&self) -> &str {
        &self.tag
    }

    pub(super) fn members(&self) -> String {
        format!("{}:members", self.tag)
    }

    pub(super) fn state(&self, epoch: &str, key: Option<&Key>) -> String {
        let mut name = format!("{}:{epoch}:", self.tag);
        if let Some(key) = key {
            name.push('k');
            for byte in key.content() {
                let _ = write!(name, "{byte:02x}");
            }
        }
        name
    }

    pub(super) fn line(state: &str) -> String {
        format!("{state}:line")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_limiter_has_one_slot_and_no_two_share_a_name() {
        let names = Names::new("ferrogate:", "a{b}%");
        assert_eq!(names.epoch(), "{ferrogate:limit:a%7Bb%7D%25}");
        let of = |key: &[u8]| names.state("e", Some(&Key::new(key)));
        assert_ne!(of(b""), names.state("e", None));
        assert_ne!(of(b"a"), of(b"b"));
        assert_ne!(of(&[b'a'; 80]), of(&[b'a'; 81]));
        for name in [of(b"a"), names.members(), Names::line(&of(b"a"))] {
            assert!(name.starts_with(names.epoch()), "{name}");
        }
    }
}
