//! What a commit changed, as the other processes are told.

use crate::runtime::place::Id;

const KEY: u8 = b'k';
const NAMESPACE: u8 = b'n';
const TAG: u8 = b't';
const LEASE: u8 = b'l';

/// One change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    /// The value at a place was written or deleted.
    Key(Id),
    /// A namespace was outdated.
    Namespace(&'a str),
    /// A tag was outdated.
    Tag(&'a str),
    /// The lease of this row has ended.
    Lease(i64),
}

impl Change<'_> {
    /// Writes it behind the others.
    pub(crate) fn write(&self, to: &mut Vec<u8>) {
        let (kind, bytes): (u8, &[u8]) = match self {
            Self::Key(id) => (KEY, id),
            Self::Namespace(ns) => (NAMESPACE, ns.as_bytes()),
            Self::Tag(tag) => (TAG, tag.as_bytes()),
            Self::Lease(row) => (LEASE, &row.to_le_bytes()),
        };
        to.push(kind);
        to.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        to.extend_from_slice(bytes);
    }
}

/// Reads changes one after the other; `None` at the end, an error where it makes no sense.
pub(crate) fn next<'a>(log: &mut &'a [u8]) -> Option<Result<Change<'a>, ()>> {
    if log.is_empty() {
        return None;
    }
    let change = read(log);
    if change.is_none() {
        *log = &[];
    }
    Some(change.ok_or(()))
}

fn read<'a>(log: &mut &'a [u8]) -> Option<Change<'a>> {
    let (kind, rest) = log.split_first()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *log = rest;
    Some(match *kind {
        KEY => Change::Key(bytes.try_into().ok()?),
        NAMESPACE => Change::Namespace(std::str::from_utf8(bytes).ok()?),
        TAG => Change::Tag(std::str::from_utf8(bytes).ok()?),
        LEASE => Change::Lease(i64::from_le_bytes(bytes.try_into().ok()?)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_back_in_order_and_garbage_ends_them() {
        let all =
            [Change::Key([7; 32]), Change::Namespace("n"), Change::Tag(""), Change::Lease(-5)];
        let mut log = Vec::new();
        for change in &all {
            change.write(&mut log);
        }
        let mut rest = &log[..];
        for change in &all {
            assert_eq!(next(&mut rest), Some(Ok(Change::clone(change))));
        }
        assert_eq!(next(&mut rest), None);
        for garbage in [&b"k\x01\0\0\0x"[..], b"?\0\0\0\0", b"n\xff\xff\xff\xffx", b"k"] {
            let mut rest = garbage;
            assert_eq!(next(&mut rest), Some(Err(())));
            assert_eq!(next(&mut rest), None);
        }
    }

    impl Change<'_> {
        fn clone<'a>(change: &Change<'a>) -> Change<'a> {
            match change {
                Change::Key(id) => Change::Key(*id),
                Change::Namespace(ns) => Change::Namespace(ns),
                Change::Tag(tag) => Change::Tag(tag),
                Change::Lease(row) => Change::Lease(*row),
            }
        }
    }
}
