//! The generations that a value carries, and its birth.
//!
//! `{born}@{writer}|{generations}`: microseconds by the server's clock when it was written, or when
//! its load began; a service and the number of its change. A lease carries generations alone.

/// The generations of a namespace and of tags.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stamp<'a> {
    pub(super) born: u64,
    pub(super) ns: &'a str,
    pub(super) tags: Vec<(&'a str, &'a str)>,
}

impl<'a> Stamp<'a> {
    /// Reads what the script of a set writes.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (birth, generations) = std::str::from_utf8(bytes).ok()?.split_once('|')?;
        let born = birth.split_once('@')?.0.parse().ok()?;
        Some(Self { born, ..Self::of_lease(generations)? })
    }

    /// Reads what [`write`] writes.
    pub(super) fn of_lease(generations: &'a str) -> Option<Self> {
        let mut rest = generations;
        let ns = part(&mut rest)?;
        let mut tags = Vec::new();
        while !rest.is_empty() {
            let tag = part(&mut rest)?;
            tags.push((tag, part(&mut rest)?));
        }
        Some(Self { born: 0, ns, tags })
    }
}

/// Whether a value that was `born` then under generation `carried` is still good under `today`'s:
/// under the same one, unless only what was born later is (`…<{microseconds}`).
pub(super) fn holds(today: &str, carried: &str, born: u64) -> bool {
    let carried_name = carried.split_once('<').map_or(carried, |(name, _)| name);
    today == carried
        || today.split_once('<').is_some_and(|(name, before)| {
            name == carried_name && before.parse().is_ok_and(|before: u64| born > before)
        })
}

/// One part after the other, each with its length before it.
pub(super) fn write<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut stamp = String::new();
    for part in parts {
        stamp.push_str(&part.len().to_string());
        stamp.push(':');
        stamp.push_str(part);
    }
    stamp
}

fn part<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let (length, after) = rest.split_once(':')?;
    let (part, after) = after.split_at_checked(length.parse().ok()?)?;
    *rest = after;
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let written = write(["c1", "a:b", "i2:x", "", "c3"]);
        let tags = vec![("a:b", "i2:x"), ("", "c3")];
        let lease = Stamp::of_lease(&written).unwrap();
        assert_eq!(lease, Stamp { born: 0, ns: "c1", tags: tags.clone() });
        let value = format!("17@me-1f|{written}");
        let stamp = Stamp::read(value.as_bytes()).unwrap();
        assert_eq!(stamp, Stamp { born: 17, ns: "c1", tags });
    }

    #[test]
    fn garbage_is_none() {
        for garbage in
            [&b""[..], b"x", b"3:ab", b"-1:a", b"1:a1:b", b"9999999999999999999:a", b"1:\xff"]
        {
            assert_eq!(Stamp::read(garbage), None);
            assert_eq!(Stamp::read(&[b"1@me-1|", garbage].concat()), None);
        }
        for garbage in [&b"2:c1"[..], b"|2:c1", b"1|2:c1", b"x@|2:c1", b"-1@|2:c1"] {
            assert_eq!(Stamp::read(garbage), None);
        }
    }

    #[test]
    fn a_generation_may_be_outdated_up_to_a_moment() {
        assert!(holds("c1", "c1", 0) && holds("c1<50", "c1<50", 0));
        assert!(holds("c1<50", "c1", 51) && holds("c1<50", "c1<40", 51));
        assert!(!holds("c1<50", "c1", 50) && !holds("c1<50", "c1<40", 50));
        assert!(!holds("c1", "c1<50", 51) && !holds("c2<50", "c1", 51) && !holds("c1<x", "c1", 51));
    }
}
