//! The headers of an answer: whatever came, what is read of it is within bounds.

use ferrogate::core::limiter::headers::{
    Dimension, LONGEST_RESET, LONGEST_RETRY_AFTER, MOST_COUNT, Observed, Reader, UnixNanos,
};

/// Lines of `name: value`, after eight bytes of the wall clock in seconds.
pub(crate) fn read(input: &[u8]) {
    let Some((wall, lines)) = input.split_first_chunk() else { return };
    let wall = UnixNanos::from(i64::from_le_bytes(*wall)) * 1_000_000_000;
    let headers = || {
        lines.split(|byte| *byte == b'\n').filter_map(|line| {
            let at = line.iter().position(|byte| *byte == b':')?;
            Some((&line[..at], &line[at + 1..]))
        })
    };
    let observed = all(wall, headers());
    let dimensions =
        [observed.requests, observed.tokens, observed.input_tokens, observed.output_tokens];
    for Dimension { limit, remaining, reset_in } in dimensions {
        assert!(limit.is_none_or(|limit| (1..=MOST_COUNT).contains(&limit)));
        assert!(remaining <= limit.or(Some(MOST_COUNT)));
        assert!(reset_in <= Some(LONGEST_RESET));
    }
    assert!(observed.retry_after <= Some(LONGEST_RETRY_AFTER));
    for status in [200, 429, 503] {
        assert!(observed.pause(status) <= Some(LONGEST_RESET));
    }
    // Other names say nothing, and the case of a name neither.
    let upper = headers().filter(|(name, _)| Reader::knows(name));
    let upper = upper.map(|(name, value)| (name.to_ascii_uppercase(), value)).collect::<Vec<_>>();
    let again = all(wall, upper.iter().map(|(name, value)| (name.as_slice(), *value)));
    assert_eq!(again, observed);
}

fn all<'a>(wall: UnixNanos, headers: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Observed {
    let mut reader = Reader::new(wall);
    for (name, value) in headers {
        reader.header(name, value);
    }
    reader.finish()
}
