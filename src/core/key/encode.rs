//! The canonical encoding: tagged, length-prefixed, and therefore prefix-free.
//!
//! Numbers follow Python's `==` (`1 = 1.0 = True`, `-0.0 = 0.0`) unless typed;
//! the one departure is NaN, which equals itself here: a call repeated with NaN
//! is the same call.

/// The first byte of every encoded value.
pub mod tag {
    #![allow(missing_docs)]
    pub const NONE: u8 = b'N';
    pub const BOOL: u8 = b'b';
    pub const INT: u8 = b'i';
    pub const BIG_INT: u8 = b'I';
    pub const FLOAT: u8 = b'f';
    pub const STR: u8 = b's';
    /// A string with lone surrogates, in the generalised UTF-8 of Python's `surrogatepass`.
    pub const SURROGATES: u8 = b'u';
    pub const BYTES: u8 = b'y';
    pub const TUPLE: u8 = b'(';
    pub const LIST: u8 = b'[';
    pub const DICT: u8 = b'{';
    pub const SET: u8 = b'<';
    pub const ENUM: u8 = b'E';
    pub const DECIMAL: u8 = b'd';
    pub const DATE: u8 = b'D';
    pub const TIME: u8 = b't';
    pub const DATETIME: u8 = b'T';
    pub const AWARE: u8 = b'A';
    pub const TIMEDELTA: u8 = b'L';
    pub const UUID: u8 = b'U';
    pub const PATH: u8 = b'p';
    pub const FIELDS: u8 = b'O';
    pub const CUSTOM: u8 = b'K';
    /// The class of a number before its value, where types are kept apart.
    pub const KIND: u8 = b'k';
    /// The number of an interned object; never part of a key that leaves the process.
    pub const INTERNED: u8 = b'#';
    /// The name of a function, before its arguments in a cache that others use too.
    pub const FUNCTION: u8 = b'F';
    /// The wall clock of a time that a change of the clocks skips.
    pub const SKIPPED: u8 = b'S';
    /// An argument that was left out of the key.
    pub const IGNORED: u8 = b'_';
}

/// Writes one canonical encoding.
#[derive(Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
    scratch: Vec<u8>,
    /// Where the parts of the unordered collections that are being written start.
    parts: Vec<usize>,
    /// Whether `1`, `1.0` and `True` stay apart.
    pub typed: bool,
}

impl Encoder {
    /// An empty encoder.
    #[must_use]
    pub fn new(typed: bool) -> Self {
        Self { typed, ..Self::default() }
    }

    /// Forgets what was written and keeps the memory.
    pub fn reset(&mut self, typed: bool) {
        self.bytes.clear();
        self.parts.clear();
        self.typed = typed;
    }

    /// What was written.
    #[inline]
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The memory that is kept for the next use.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity() + self.scratch.capacity() + self.parts.capacity() * size_of::<usize>()
    }

    /// A bare tag.
    #[inline]
    pub fn tag(&mut self, tag: u8) {
        self.bytes.push(tag);
    }

    /// A number of following parts, as LEB128.
    #[inline]
    pub fn len(&mut self, mut len: usize) {
        while len >= 0x80 {
            self.bytes.push(len as u8 | 0x80);
            len >>= 7;
        }
        self.bytes.push(len as u8);
    }

    /// A truth value: the integer 0 or 1 unless typed.
    pub fn boolean(&mut self, value: bool) {
        if self.typed {
            self.bytes.extend_from_slice(&[tag::BOOL, u8::from(value)]);
        } else {
            self.int(i64::from(value));
        }
    }

    /// An integer of up to 64 bits.
    #[inline]
    pub fn int(&mut self, value: i64) {
        self.tag(tag::INT);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// An integer outside `i64`: sign and magnitude, least significant byte first.
    pub fn big_int(&mut self, negative: bool, magnitude: &[u8]) {
        let used = magnitude.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        self.tag(tag::BIG_INT);
        self.bytes.push(u8::from(negative));
        self.len(used);
        self.bytes.extend_from_slice(&magnitude[..used]);
    }

    /// A float: as the integer that it equals, if there is one, unless typed.
    pub fn float(&mut self, value: f64) {
        if !self.typed && value.is_finite() && value.fract() == 0.0 {
            if (-(2.0_f64.powi(63))..2.0_f64.powi(63)).contains(&value) {
                self.int(value as i64);
            } else {
                self.integral_float(value);
            }
            return;
        }
        let value = match value {
            v if v.is_nan() => f64::NAN.abs(),
            // Both zeros.
            0.0 => 0.0,
            v => v,
        };
        self.tag(tag::FLOAT);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// A float of at least 2^63: mantissa shifted by the exponent, exactly.
    fn integral_float(&mut self, value: f64) {
        let bits = value.abs().to_bits();
        let mantissa = (bits & ((1 << 52) - 1)) | (1 << 52);
        let shift = (bits >> 52) as usize - 1075;
        let mut magnitude = vec![0_u8; shift / 8];
        magnitude.extend_from_slice(&(u128::from(mantissa) << (shift % 8)).to_le_bytes());
        self.big_int(value < 0.0, &magnitude);
    }

    /// Text.
    #[inline]
    pub fn str(&mut self, value: &str) {
        self.tagged(tag::STR, value.as_bytes());
    }

    /// Bytes.
    #[inline]
    pub fn bytes(&mut self, value: &[u8]) {
        self.tagged(tag::BYTES, value);
    }

    /// Length-prefixed bytes under a tag.
    #[inline]
    pub fn tagged(&mut self, tag: u8, value: &[u8]) {
        if value.len() < 0x80 {
            self.bytes.extend_from_slice(&[tag, value.len() as u8]);
        } else {
            self.tag(tag);
            self.len(value.len());
        }
        self.bytes.extend_from_slice(value);
    }

    /// Bytes of a fixed length under a tag.
    pub fn fixed<const N: usize>(&mut self, tag: u8, value: [u8; N]) {
        self.tag(tag);
        self.bytes.extend_from_slice(&value);
    }

    /// An encoding made before.
    #[inline]
    pub fn raw(&mut self, encoding: &[u8]) {
        self.bytes.extend_from_slice(encoding);
    }

    /// Where the next byte goes.
    #[inline]
    #[must_use]
    pub fn position(&self) -> usize {
        self.bytes.len()
    }

    /// What to call [`parts_since`](Self::parts_since) and [`sort_parts`](Self::sort_parts)
    /// with, to be asked before the first part of an unordered collection.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.parts.len()
    }

    /// The next part of the innermost unordered collection starts here.
    pub fn part(&mut self) {
        self.parts.push(self.bytes.len());
    }

    /// How many parts the innermost collection has by now.
    #[must_use]
    pub fn parts_since(&self, mark: usize) -> usize {
        self.parts.len() - mark
    }

    /// Ends the innermost unordered collection: brings its parts into the order of
    /// their bytes, so that the order of insertion does not count.
    pub fn sort_parts(&mut self, mark: usize) {
        self.sort(mark);
        self.parts.truncate(mark);
    }

    fn sort(&mut self, mark: usize) {
        let starts = &self.parts[mark..];
        let end = self.bytes.len();
        let part = |index: usize| starts[index]..starts.get(index + 1).copied().unwrap_or(end);
        let bytes = &self.bytes;
        if (1..starts.len()).all(|i| bytes[part(i - 1)] <= bytes[part(i)]) {
            return;
        }
        let first = starts[0];
        let mut order: Vec<std::ops::Range<usize>> = (0..starts.len()).map(part).collect();
        order.sort_unstable_by(|a, b| bytes[a.clone()].cmp(&bytes[b.clone()]));
        self.scratch.clear();
        for range in order {
            self.scratch.extend_from_slice(&self.bytes[range]);
        }
        self.bytes[first..].copy_from_slice(&self.scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(typed: bool, write: impl FnOnce(&mut Encoder)) -> Vec<u8> {
        let mut encoder = Encoder::new(typed);
        write(&mut encoder);
        encoder.as_bytes().to_vec()
    }

    #[test]
    fn numbers_compare_as_in_python() {
        let one = encoded(false, |e| e.int(1));
        assert_eq!(one, encoded(false, |e| e.float(1.0)));
        assert_eq!(one, encoded(false, |e| e.boolean(true)));
        assert_ne!(one, encoded(true, |e| e.float(1.0)));
        assert_ne!(one, encoded(true, |e| e.boolean(true)));
        assert_eq!(encoded(false, |e| e.float(-0.0)), encoded(false, |e| e.int(0)));
        assert_eq!(encoded(true, |e| e.float(-0.0)), encoded(true, |e| e.float(0.0)));
        assert_eq!(encoded(true, |e| e.float(f64::NAN)), encoded(true, |e| e.float(-f64::NAN)));
    }

    #[test]
    fn large_floats_are_the_integers_they_equal() {
        // 2^64 and -2^70, as Python's int.to_bytes would give them.
        let mut two_64 = vec![0; 8];
        two_64.push(1);
        let mut two_70 = vec![0; 8];
        two_70.push(64);
        assert_eq!(
            encoded(false, |e| e.float(2.0_f64.powi(64))),
            encoded(false, |e| e.big_int(false, &two_64))
        );
        assert_eq!(
            encoded(false, |e| e.float(-(2.0_f64.powi(70)))),
            encoded(false, |e| e.big_int(true, &two_70))
        );
        let edge = encoded(false, |e| e.float(-(2.0_f64.powi(63))));
        assert_eq!(edge, encoded(false, |e| e.int(i64::MIN)));
    }

    proptest! {
        #![proptest_config(crate::core::cases(256, 10_000))]

        #[test]
        fn the_order_of_parts_does_not_count(
            mut parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 1..12),
            seed in any::<u64>(),
        ) {
            let write = |parts: &[Vec<u8>]| encoded(false, |e| {
                e.tag(tag::SET);
                let mark = e.mark();
                for part in parts {
                    e.part();
                    e.bytes(part);
                }
                e.sort_parts(mark);
            });
            let before = write(&parts);
            let len = parts.len();
            for i in 0..len {
                parts.swap(i, (seed as usize).wrapping_mul(i + 7) % len);
            }
            prop_assert_eq!(before, write(&parts));
        }

        #[test]
        fn different_text_lists_have_different_encodings(
            a in proptest::collection::vec(".{0,4}", 0..5),
            b in proptest::collection::vec(".{0,4}", 0..5),
        ) {
            let write = |list: &[String]| encoded(false, |e| {
                e.tag(tag::LIST);
                e.len(list.len());
                for text in list { e.str(text); }
            });
            prop_assert_eq!(a == b, write(&a) == write(&b));
        }

        #[test]
        fn integral_floats_equal_their_integers(value in any::<i64>()) {
            let float = value as f64;
            if float as i128 == i128::from(value) {
                prop_assert_eq!(encoded(false, |e| e.float(float)), encoded(false, |e| e.int(value)));
            }
        }
    }
}
