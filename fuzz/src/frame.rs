//! What stands in a store, whoever wrote it.

use ferrogate::runtime::frame::{Body, Codec, pack, unpack as unpacked};
use ferrogate::runtime::tier::Payload;

const ALL: [Codec; 4] = [Codec::Json, Codec::Msgpack, Codec::Bytes, Codec::Pickle];
/// What every frame starts with, and no UTF-8 text.
const MARK: u8 = 0xF5;

/// The first bytes choose the codec, how long a body may be, the threshold, and one byte to
/// damage; the rest is a payload as it is, or a body to be packed first (zstd's checksums and
/// lengths are hard to guess).
///
/// Memory is bounded too: libFuzzer ends the process where it grows (`-rss_limit_mb`).
pub(crate) fn unpack(input: &[u8]) {
    let Some(([how, longest, threshold, at, flip], rest)) = input.split_first_chunk::<5>() else {
        return;
    };
    let longest = 1_usize << (longest % 25);
    let threshold = Some(usize::from(*threshold));
    let written = ALL[usize::from(how & 3)];
    if how & 4 == 0 {
        check(&rest.into(), longest, threshold);
        return;
    }
    // Repeated, or it would never be shorter when compressed.
    let body = rest.repeat(1 + usize::from(how >> 3) * 16);
    let payload = pack(written, &body, threshold);
    if written != Codec::Json || body.first() != Some(&MARK) {
        let found = check(&payload, longest, threshold);
        let found = found[usize::from(how & 3)].as_ref();
        assert_eq!(found.map(Body::bytes), (body.len() <= longest).then_some(&body[..]));
    }
    if let Some(last) = payload.len().checked_sub(1) {
        let mut damaged = payload.to_vec();
        damaged[usize::from(*at).min(last)] ^= flip;
        check(&damaged.into(), longest, threshold);
    }
}

/// At most one codec reads it, never too long; and what was read is read again once packed.
fn check(payload: &Payload, longest: usize, threshold: Option<usize>) -> [Option<Body>; 4] {
    let readers = ALL.map(|codec| unpacked(codec, payload, longest));
    assert!(readers.iter().flatten().count() <= 1, "of two codecs at once");
    for (codec, body) in ALL.into_iter().zip(&readers) {
        let Some(body) = body.as_ref().map(Body::bytes) else { continue };
        assert!(body.len() <= longest);
        if codec == Codec::Json && body.first() == Some(&MARK) {
            // Out of a frame of somebody's: no JSON, and so nothing that was ever packed.
            continue;
        }
        let again = pack(codec, body, threshold);
        let twice = unpacked(codec, &again, longest).expect("packed, and no longer than before");
        assert_eq!(twice.bytes(), body);
    }
    readers
}
