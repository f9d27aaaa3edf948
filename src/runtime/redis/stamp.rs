//! The generations that a value carries.

/// The generations of a namespace and of tags.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stamp<'a> {
    pub(super) ns: &'a str,
    pub(super) tags: Vec<(&'a str, &'a str)>,
}

impl<'a> Stamp<'a> {
    /// Reads what [`write`] and the script of a set write.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = std::str::from_utf8(bytes).ok()?;
        let ns = part(&mut rest)?;
        let mut tags = Vec::new();
        while !rest.is_empty() {
            let tag = part(&mut rest)?;
            tags.push((tag, part(&mut rest)?));
        }
        Some(Self { ns, tags })
    }
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
        let stamp = Stamp::read(written.as_bytes()).unwrap();
        assert_eq!(stamp, Stamp { ns: "c1", tags: vec![("a:b", "i2:x"), ("", "c3")] });
    }

    #[test]
    fn garbage_is_none() {
        for garbage in
            [&b""[..], b"x", b"3:ab", b"-1:a", b"1:a1:b", b"9999999999999999999:a", b"1:\xff"]
        {
            assert_eq!(Stamp::read(garbage), None);
        }
    }
}
