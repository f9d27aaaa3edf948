//! Keys: one canonical byte string for equal values.
//!
//! A key is the exact encoding up to [`Key::INLINE`] bytes and its BLAKE3
//! digest above, so that no tenant can construct two requests with one key.
//! What equals what is decided by [`encode`]; hashable objects that have no
//! canonical form take part through [`intern`].

pub mod encode;
pub mod intern;

use std::fmt;
use std::hash::BuildHasher;
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
            Self { hash: HASHER.hash_one(encoding), len: encoding.len() as u8, bytes }
        } else {
            Self::digest(encoding)
        }
    }

    /// The key of a short text, exactly as [`Encoder::str`] would give it, or
    /// `None` if it is too long to be kept inline.
    #[inline]
    #[must_use]
    pub fn short_text(text: &[u8]) -> Option<Self> {
        let len = text.len() + 2;
        if len > Self::INLINE {
            return None;
        }
        let mut bytes = [0; Self::INLINE];
        bytes[0] = encode::tag::STR;
        bytes[1] = text.len() as u8;
        bytes[2..len].copy_from_slice(text);
        Some(Self { hash: HASHER.hash_one(&bytes[..len]), len: len as u8, bytes })
    }

    #[inline(never)]
    fn digest(encoding: &[u8]) -> Self {
        let mut bytes = [0; Self::INLINE];
        let digest = blake3::hash(encoding);
        bytes[..blake3::OUT_LEN].copy_from_slice(digest.as_bytes());
        Self { hash: HASHER.hash_one(digest.as_bytes()), len: DIGEST, bytes }
    }

    /// The hash that the tables use; differs between processes.
    #[inline]
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    fn content(&self) -> &[u8] {
        if self.len == DIGEST {
            &self.bytes[..blake3::OUT_LEN]
        } else {
            &self.bytes[..usize::from(self.len)]
        }
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
            match Key::short_text(text.as_bytes()) {
                Some(key) => assert_eq!(key, Key::new(encoder.as_bytes())),
                None => assert!(len > 62),
            }
        }
    }

    #[test]
    fn trailing_zeros_count() {
        assert_ne!(Key::new(&[1]), Key::new(&[1, 0]));
    }
}
