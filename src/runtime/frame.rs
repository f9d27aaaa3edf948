//! The bytes of a value in a store: which codec made them, and whether they are compressed.
//!
//! Plain JSON stands as it is, so that other programs can read and write it.
//! Everything else starts with a byte that no JSON text (and no UTF-8 text at
//! all) can start with, then the codec and what was done to the payload.

use std::io::Read as _;

use super::tier::Payload;

const MARK: u8 = 0xF5;
const HEADER: usize = 3;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

/// So many bytes are made room for at once.
const BELIEVED: usize = 1 << 20;

/// zstd's default level 3 gains a tenth in size over level 1 on chat responses for twice the time.
const LEVEL: i32 = 1;

/// How a value becomes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// JSON as RFC 8259 has it.
    Json,
    /// `MessagePack`.
    Msgpack,
    /// Bytes as they are.
    Bytes,
    /// Python's pickle behind an HMAC.
    Pickle,
}

impl Codec {
    /// The codec of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "json" => Self::Json,
            "msgpack" => Self::Msgpack,
            "bytes" => Self::Bytes,
            "pickle" => Self::Pickle,
            _ => return None,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Msgpack => "msgpack",
            Self::Bytes => "bytes",
            Self::Pickle => "pickle",
        }
    }

    fn tag(self) -> u8 {
        match self {
            Self::Json => b'j',
            Self::Msgpack => b'm',
            Self::Bytes => b'b',
            Self::Pickle => b'p',
        }
    }
}

/// What stands in the store for `body`; compressed from `threshold` bytes on if that is shorter.
#[must_use]
pub fn pack(codec: Codec, body: &[u8], threshold: Option<usize>) -> Payload {
    if threshold.is_some_and(|threshold| body.len() >= threshold)
        && let Ok(shorter) = zstd::bulk::compress(body, LEVEL)
        && shorter.len() + HEADER < body.len()
    {
        return framed(codec, ZSTD, &shorter);
    }
    if codec == Codec::Json { body.into() } else { framed(codec, PLAIN, body) }
}

fn framed(codec: Codec, how: u8, body: &[u8]) -> Payload {
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.extend_from_slice(&[MARK, codec.tag(), how]);
    frame.extend_from_slice(body);
    frame.into()
}

/// The body of what stands in the store; `None` for another codec, garbage, or more than
/// `longest` bytes.
#[must_use]
pub fn unpack(codec: Codec, payload: &Payload, longest: usize) -> Option<Body> {
    if payload.first() != Some(&MARK) {
        let readable = codec == Codec::Json && payload.len() <= longest;
        return readable.then(|| Body { payload: payload.clone(), from: 0 });
    }
    let [_, tag, how, ref rest @ ..] = payload[..] else { return None };
    if tag != codec.tag() {
        return None;
    }
    match how {
        PLAIN if rest.len() <= longest => Some(Body { payload: payload.clone(), from: HEADER }),
        ZSTD => Some(Body { payload: decompress(rest, longest)?.into(), from: 0 }),
        _ => None,
    }
}

/// Grows as it goes: the size that a frame claims, and `longest`, are only somebody's word.
fn decompress(frame: &[u8], longest: usize) -> Option<Vec<u8>> {
    let claimed = zstd::zstd_safe::get_frame_content_size(frame).ok()??;
    let claimed = usize::try_from(claimed).ok().filter(|claimed| *claimed <= longest)?;
    let mut body = Vec::with_capacity(claimed.min(BELIEVED));
    let decoder = zstd::stream::read::Decoder::with_buffer(frame).ok()?.single_frame();
    decoder.take(longest as u64 + 1).read_to_end(&mut body).ok()?;
    (body.len() == claimed).then_some(body)
}

/// A body, in whatever it came in.
#[derive(Clone, Debug)]
pub struct Body {
    payload: Payload,
    from: usize,
}

impl Body {
    /// The body itself.
    #[must_use]
    pub fn of(payload: Payload) -> Self {
        Self { payload, from: 0 }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.payload[self.from..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Codec; 4] = [Codec::Json, Codec::Msgpack, Codec::Bytes, Codec::Pickle];
    const MAX: usize = 1 << 20;

    #[test]
    fn plain_json_is_json() {
        assert_eq!(&*pack(Codec::Json, b"{}", Some(100)), b"{}");
        assert_eq!(unpack(Codec::Json, &b"{}"[..].into(), MAX).unwrap().bytes(), b"{}");
    }

    #[test]
    fn every_codec_comes_back_and_is_no_other() {
        for codec in ALL {
            assert_eq!(Codec::named(codec.name()), Some(codec));
            for body in [&b""[..], b"\xF5b\0x", &[7; 10_000]] {
                for threshold in [None, Some(0), Some(5_000)] {
                    let payload = pack(codec, body, threshold);
                    if codec != Codec::Json || threshold.is_some() && body.len() > 1_000 {
                        assert_eq!(unpack(codec, &payload, MAX).unwrap().bytes(), body);
                        for other in ALL {
                            assert_eq!(unpack(other, &payload, MAX).is_some(), other == codec);
                        }
                    }
                }
            }
        }
        assert!(pack(Codec::Bytes, &[7; 10_000], Some(5_000)).len() < 100);
    }

    proptest! {
        #![proptest_config(crate::core::cases(256, 20_000))]

        /// Whatever stands in the store is what was packed, by the codec that packed it, or nothing.
        #[test]
        fn it_is_the_same_body_or_none(
            body in prop::collection::vec(any::<u8>(), 0..3000),
            codec in prop::sample::select(&ALL[..]),
            threshold in prop::option::of(0_usize..4000),
            longest in 0_usize..4000,
        ) {
            let payload = pack(codec, &body, threshold);
            // Plain JSON has no frame: what starts like one is no UTF-8, and so no JSON.
            prop_assume!(codec != Codec::Json || body.first() != Some(&MARK));
            for reader in ALL {
                let found = unpack(reader, &payload, longest);
                prop_assert_eq!(found.is_some(), reader == codec && body.len() <= longest
                    || reader == Codec::Json && payload.first() != Some(&MARK) && body.len() <= longest);
                if let Some(found) = found {
                    prop_assert_eq!(found.bytes(), &body[..]);
                }
            }
        }

        /// Bytes that nobody packed make no panic and nothing longer than what was asked for.
        #[test]
        fn garbage_is_bounded(
            mut payload in prop::collection::vec(any::<u8>(), 0..600),
            tag in prop::sample::select(&b"jmbp?"[..]),
            how in 0_u8..3,
            flip in any::<prop::sample::Index>(),
            longest in 0_usize..10_000,
        ) {
            payload.splice(0..0, [MARK, tag, how]);
            // Also a frame that was one.
            let mut broken = pack(Codec::Bytes, &payload.repeat(8), Some(0)).to_vec();
            let at = flip.index(broken.len());
            broken[at] ^= 1 << (how + 1);
            for bytes in [payload, broken] {
                for codec in ALL {
                    let found = unpack(codec, &bytes.clone().into(), longest);
                    prop_assert!(found.is_none_or(|body| body.bytes().len() <= longest));
                }
            }
        }
    }

    #[test]
    fn garbage_is_refused() {
        for garbage in [&b"\xF5"[..], b"\xF5b", b"\xF5b\x07x", b"\xF5b\x01not zstd", b"plain"] {
            assert!(unpack(Codec::Bytes, &garbage.into(), MAX).is_none());
        }
        // A small frame that claims to be large is not believed.
        let bomb = pack(Codec::Bytes, &vec![0; 1 << 20], Some(1));
        assert!(bomb.len() < 1_000 && unpack(Codec::Bytes, &bomb, 1_000).is_none());
        assert!(unpack(Codec::Json, &b"[1,2,3]"[..].into(), 3).is_none());
    }
}
