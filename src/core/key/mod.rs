//! Keys: one canonical byte string for equal values.
//!
//! A key is the exact encoding up to [`Key::INLINE`] bytes and its BLAKE3
//! digest above, so that no tenant can construct two requests with one key.
//! What equals what is decided by [`encode`]; hashable objects that have no
//! canonical form take part through [`intern`].

pub mod encode;
pub mod intern;

use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::LazyLock;

pub use encode::Encoder;

/// A canonical key; equal bytes mean equal keys.
#[derive(Clone, Copy)]
pub struct Key {
    hash: u64,
    /// Length of the encoding, or [`DIGEST`].
    len: u8,
    bytes: [u8; Key::INLINE],
}

/// Hashes an encoding in two parts, so that a text needs no copy behind its two bytes of
/// tag and length: reading such a copy right after it was written stalls the processor.
#[inline]
fn hash_of(head: u16, rest: &[u8]) -> u64 {
    let mut hasher = HASHER.build_hasher();
    hasher.write_u16(head);
    hasher.write(rest);
    hasher.finish()
}

/// Marks a key whose bytes are the digest of its encoding.
const DIGEST: u8 = u8::MAX;

/// Seeded per process, so that nobody can aim at one bucket of the table.
static HASHER: LazyLock<foldhash::fast::RandomState> =
    LazyLock::new(foldhash::fast::RandomState::default);

impl Key {
    /// The longest encoding that is kept as it is.
    pub const INLINE: usize = 64;

    /// The key of a canonical encoding.
    #[inline]
    #[must_use]
    pub fn new(encoding: &[u8]) -> Self {
        let mut bytes = [0; Self::INLINE];
        if encoding.len() <= Self::INLINE {
            bytes[..encoding.len()].copy_from_slice(encoding);
            let (head, rest) = encoding.split_at(encoding.len().min(2));
            let head = u16::from_le_bytes([0, 1].map(|at| head.get(at).copied().unwrap_or(0)));
            Self { hash: hash_of(head, rest), len: encoding.len() as u8, bytes }
        } else {
            Self::digest(encoding)
        }
    }

    #[inline(never)]
    fn digest(encoding: &[u8]) -> Self {
        let mut bytes = [0; Self::INLINE];
        let digest = blake3::hash(encoding);
        bytes[..blake3::OUT_LEN].copy_from_slice(digest.as_bytes());
        Self { hash: hash_of(u16::from(DIGEST), digest.as_bytes()), len: DIGEST, bytes }
    }

    /// The hash that the tables use; differs between processes.
    #[inline]
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// What it is in every process and on every machine, and whether that is a digest.
    #[must_use]
    pub fn canonical(&self) -> (&[u8], bool) {
        (self.content(), self.len == DIGEST)
    }

    /// The encoding, or the digest of one that is longer.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        if self.len == DIGEST {
            &self.bytes[..blake3::OUT_LEN]
        } else {
            &self.bytes[..usize::from(self.len)]
        }
    }
}

/// What a table can look for: a key, or what would become one.
pub trait Probe {
    /// The hash of the key.
    fn hash(&self) -> u64;
    /// Whether `key` is the one.
    fn is(&self, key: &Key) -> bool;
    /// The key itself.
    fn to_key(&self) -> Key;
}

impl Probe for Key {
    #[inline]
    fn hash(&self) -> u64 {
        self.hash
    }

    #[inline]
    fn is(&self, key: &Key) -> bool {
        self == key
    }

    #[inline]
    fn to_key(&self) -> Key {
        *self
    }
}

/// The key of a short text, exactly as [`Encoder::str`] would give it, without making it
/// (a third of the time that finding a value by such a key takes).
#[derive(Clone, Copy, Debug)]
pub struct ShortText<'a> {
    hash: u64,
    text: &'a [u8],
}

impl<'a> ShortText<'a> {
    /// `None` if the text is too long to be kept inline.
    #[inline]
    #[must_use]
    pub fn new(text: &'a [u8]) -> Option<Self> {
        if text.len() > Key::INLINE - 2 {
            return None;
        }
        let head = u16::from_le_bytes([encode::tag::STR, text.len() as u8]);
        Some(Self { hash: hash_of(head, text), text })
    }
}

impl Probe for ShortText<'_> {
    #[inline]
    fn hash(&self) -> u64 {
        self.hash
    }

    #[inline]
    fn is(&self, key: &Key) -> bool {
        let len = self.text.len() + 2;
        self.hash == key.hash
            && len == usize::from(key.len)
            && key.bytes[0] == encode::tag::STR
            && key.bytes[1] == self.text.len() as u8
            && key.bytes[2..len] == *self.text
    }

    #[inline]
    fn to_key(&self) -> Key {
        let mut bytes = [0; Key::INLINE];
        let len = self.text.len() + 2;
        bytes[0] = encode::tag::STR;
        bytes[1] = self.text.len() as u8;
        bytes[2..len].copy_from_slice(self.text);
        Key { hash: self.hash, len: len as u8, bytes }
    }
}

impl PartialEq for Key {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.len == other.len && same(&self.bytes, &other.bytes)
    }
}

impl Eq for Key {}

/// Unused bytes are zero, so the whole array may be compared: no loop that depends on
/// the length, and no call of `memcmp` as `==` would make (5 ns of an 80 ns lookup).
#[inline]
fn same(ours: &[u8; Key::INLINE], theirs: &[u8; Key::INLINE]) -> bool {
    let (ours, _) = ours.as_chunks::<8>();
    let (theirs, _) = theirs.as_chunks::<8>();
    let pairs = ours.iter().zip(theirs);
    pairs.fold(0, |rest, (a, b)| rest | (u64::from_ne_bytes(*a) ^ u64::from_ne_bytes(*b))) == 0
}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.len == DIGEST { "Key(digest " } else { "Key(" })?;
        for byte in self.content() {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

/// The digest of a canonical encoding as 64 hexadecimal digits: the same in
/// every process, version and machine.
#[must_use]
pub fn hex_digest(encoding: &[u8]) -> String {
    blake3::hash(encoding).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_keys_are_exact_and_long_ones_digests() {
        let short = Key::new(&[7; 64]);
        let long = Key::new(&[7; 65]);
        assert_eq!(short, Key::new(&[7; 64]));
        assert_eq!(long, Key::new(&[7; 65]));
        assert_ne!(short, long);
        assert_ne!(Key::new(&[7; 63]), short);
    }

    #[test]
    fn a_digest_is_no_short_key() {
        // The 32 bytes of a digest, offered as an encoding, must not be the long key.
        let encoding = [1; 100];
        let digest = blake3::hash(&encoding);
        assert_ne!(Key::new(&encoding), Key::new(digest.as_bytes()));
    }

    #[test]
    fn the_short_way_to_a_text_key_ends_at_the_same_key() {
        for len in 0..80 {
            let text = "x".repeat(len);
            let mut encoder = Encoder::new(false);
            encoder.str(&text);
            let key = Key::new(encoder.as_bytes());
            match ShortText::new(text.as_bytes()) {
                Some(probe) => {
                    assert_eq!(probe.to_key(), key);
                    assert_eq!(Probe::hash(&probe), key.hash());
                    assert!(probe.is(&key));
                }
                None => assert!(len > 62),
            }
        }
    }

    #[test]
    fn a_short_text_is_no_other_key() {
        let probe = ShortText::new(b"ab").unwrap();
        let mut key = Key::new(b"s\x02ab");
        assert!(probe.is(&key));
        for other in [&b"y\x02ab"[..], b"s\x03ab", b"s\x02ac", b"s\x02ab\0", b"s\x02a", b"s"] {
            // Even where the hash is the same.
            key = Key { hash: key.hash, ..Key::new(other) };
            assert!(!probe.is(&key), "{other:?}");
        }
    }

    #[test]
    fn trailing_zeros_count() {
        assert_ne!(Key::new(&[1]), Key::new(&[1, 0]));
    }
}
