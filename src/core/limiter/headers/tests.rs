use proptest::prelude::*;

use super::moments::{http_date, moment, rfc3339};
use super::*;

const MS: Nanos = SECOND / 1000;
/// 2026-01-02T03:04:05Z, by Python's `datetime`.
const WALL: UnixNanos = 1_767_323_045 * SECOND as i128;

fn read(headers: &[(&str, &str)]) -> Observed {
    let mut reader = Reader::new(WALL);
    for (name, value) in headers {
        reader.header(name.as_bytes(), value.as_bytes());
    }
    reader.finish()
}

fn dimension(limit: u64, remaining: u64, reset_in: Nanos) -> Dimension {
    Dimension { limit: Some(limit), remaining: Some(remaining), reset_in: Some(reset_in) }
}

#[test]
fn openai_says_requests_and_tokens() {
    let observed = read(&[
        ("X-RateLimit-Limit-Requests", "60"),
        ("x-ratelimit-limit-tokens", "150000"),
        ("x-ratelimit-remaining-requests", "59"),
        ("x-ratelimit-remaining-tokens", "149984"),
        ("x-ratelimit-reset-requests", "1s"),
        ("x-ratelimit-reset-tokens", "6m0s"),
        ("x-request-id", "req_1"),
    ]);
    let expected = Observed {
        requests: dimension(60, 59, SECOND),
        tokens: dimension(150_000, 149_984, 360 * SECOND),
        ..Observed::default()
    };
    assert_eq!(observed, expected);
}

#[test]
fn anthropic_says_instants_which_are_taken_against_the_date_of_the_answer() {
    let headers = [
        ("anthropic-ratelimit-requests-limit", "50"),
        ("anthropic-ratelimit-requests-remaining", "49"),
        ("anthropic-ratelimit-requests-reset", "2026-01-02T03:04:07Z"),
        ("anthropic-ratelimit-input-tokens-limit", "40000"),
        ("anthropic-ratelimit-input-tokens-remaining", "39000"),
        ("anthropic-ratelimit-input-tokens-reset", "2026-01-02T03:05:05Z"),
        ("anthropic-ratelimit-output-tokens-limit", "8000"),
        ("anthropic-ratelimit-output-tokens-remaining", "0"),
        ("anthropic-ratelimit-output-tokens-reset", "2026-01-02T04:04:06+01:00"),
        ("anthropic-ratelimit-tokens-reset", "2026-01-02T03:04:05.25Z"),
    ];
    let observed = read(&headers);
    assert_eq!(observed.requests, dimension(50, 49, 2 * SECOND));
    assert_eq!(observed.input_tokens, dimension(40_000, 39_000, 60 * SECOND));
    assert_eq!(observed.output_tokens, dimension(8_000, 0, SECOND));
    assert_eq!(observed.tokens.reset_in, Some(250 * MS));
    assert_eq!((observed.ignored, observed.clamped), (0, 0));
    // The clock here is an hour behind; the answer's date comes last.
    let mut skewed = Reader::new(WALL - 3_600 * i128::from(SECOND));
    for (name, value) in headers {
        skewed.header(name.as_bytes(), value.as_bytes());
    }
    skewed.header(b"Date", b"Fri, 02 Jan 2026 03:04:05 GMT");
    assert_eq!(skewed.finish(), observed);
}

#[test]
fn generic_headers_speak_of_requests_if_nobody_else_does() {
    for reset in ["30", "1767323075", "1767323075000", "30s", "Fri, 02 Jan 2026 03:04:35 GMT"] {
        let generic = [
            ("RateLimit-Limit", "100, 100;w=60"),
            ("RateLimit-Remaining", "7"),
            ("RateLimit-Reset", reset),
        ];
        assert_eq!(read(&generic).requests, dimension(100, 7, 30 * SECOND), "{reset}");
        assert_eq!(read(&generic).ignored, 0);
        let mut both = generic.to_vec();
        both.push(("x-ratelimit-limit-requests", "5"));
        assert_eq!(read(&both).requests.limit, Some(5));
        assert_eq!(read(&both).requests.remaining, None);
    }
    assert_eq!(read(&[("X-RateLimit-Limit", "9")]).requests.limit, Some(9));
}

#[test]
fn retry_after_has_many_forms() {
    for (header, value, nanos) in [
        ("retry-after", "20", 20 * SECOND),
        ("retry-after", "0", 0),
        ("retry-after", "0.25", 250 * MS),
        ("retry-after", " 1.5 ", 1_500 * MS),
        ("Retry-After", "Fri, 02 Jan 2026 03:05:05 GMT", 60 * SECOND),
        ("Retry-After", "Friday, 02-Jan-26 03:05:05 GMT", 60 * SECOND),
        ("Retry-After", "Fri Jan  2 03:05:05 2026", 60 * SECOND),
        ("Retry-After", "Fri, 02 Jan 2026 03:04:04 GMT", 0),
        ("retry-after-ms", "1250", 1_250 * MS),
        ("retry-after-ms", "0.5", MS / 2),
        ("x-ms-retry-after-ms", "7", 7 * MS),
    ] {
        let observed = read(&[(header, value)]);
        assert_eq!((observed.retry_after, observed.ignored), (Some(nanos), 0), "{value}");
    }
    // The finer one, in whatever order.
    let both = [("retry-after", "2"), ("retry-after-ms", "1250")];
    assert_eq!(read(&both).retry_after, Some(1_250 * MS));
}

#[test]
fn durations_as_go_writes_them() {
    for (value, nanos) in [
        ("6m0s", 360 * SECOND),
        ("12ms", 12 * MS),
        ("1h2m3.5s", 3_723_500 * MS),
        ("2m59.56s", 179_560 * MS),
        ("7.66s", 7_660 * MS),
        ("0s", 0),
        ("1m", 60 * SECOND),
        ("1d", 86_400 * SECOND),
        ("250us", 250_000),
        ("100ns", 100),
        ("250µs", 250_000),
        ("+1.5h", 5_400 * SECOND),
    ] {
        let observed = read(&[("x-ratelimit-reset-tokens", value)]);
        assert_eq!(observed.tokens.reset_in, Some(nanos), "{value}");
    }
    for value in ["", "s", "1", "1x", "1m1", ".", "1.2.3s", "1 s", "m1", "--1s", "1e3s", "1ß"] {
        let observed = read(&[("x-ratelimit-reset-tokens", value)]);
        let number = value == "1";
        assert_eq!(observed.tokens.reset_in.is_some(), number, "{value}");
        assert_eq!(observed.ignored, u32::from(!number), "{value}");
    }
}

#[test]
fn absurd_values_are_bounded_and_counted() {
    for (value, nanos) in [
        ("-5", 0),
        ("-1s", 0),
        ("1e30", LONGEST_RESET),
        ("9999999h", LONGEST_RESET),
        ("999999999", LONGEST_RESET),
        ("1e999", LONGEST_RESET),
        ("99999999999999999999999999999999", LONGEST_RESET),
        ("9999-12-31T23:59:59Z", LONGEST_RESET),
    ] {
        let observed = read(&[("x-ratelimit-reset-requests", value)]);
        assert_eq!(observed.requests.reset_in, Some(nanos), "{value}");
        assert_eq!((observed.ignored, observed.clamped), (0, 1), "{value}");
    }
    for value in ["nan", "NaN", "inf", "-inf", "soon", "", "0x10", "1_000", "٣", "\u{0}"] {
        for header in ["x-ratelimit-reset-requests", "retry-after", "retry-after-ms", "date"] {
            let observed = read(&[(header, value)]);
            assert_eq!(observed, Observed { ignored: 1, ..Observed::default() }, "{value:?}");
        }
    }
    let counts = |limit: &str, remaining: &str| {
        read(&[("x-ratelimit-limit-tokens", limit), ("x-ratelimit-remaining-tokens", remaining)])
    };
    assert_eq!(counts("1e30", "-7").tokens.limit, Some(MOST_COUNT));
    assert_eq!((counts("1e30", "-7").tokens.remaining, counts("1e30", "-7").clamped), (Some(0), 2));
    assert_eq!((counts("10", "11").tokens.remaining, counts("10", "11").clamped), (Some(10), 1));
    // Nothing that could be kept to.
    let nothing = counts("0", "-1");
    assert_eq!((nothing.tokens, nothing.ignored), (Dimension::default(), 2));
    assert_eq!(read(&[("retry-after", "1e6")]).retry_after, Some(LONGEST_RETRY_AFTER));
    let long = "1".repeat(65);
    assert_eq!(read(&[("retry-after", &long)]).ignored, 1);
}

#[test]
fn a_refusal_waits_for_what_is_spent() {
    let mut observed = read(&[
        ("x-ratelimit-remaining-requests", "3"),
        ("x-ratelimit-reset-requests", "9s"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "2s"),
    ]);
    assert_eq!(observed.pause(429), Some(2 * SECOND));
    assert_eq!(observed.pause(503), None);
    assert_eq!(observed.pause(200), None);
    observed.retry_after = Some(SECOND);
    assert_eq!(observed.pause(429), Some(SECOND));
    assert_eq!(observed.pause(503), Some(SECOND));
    assert_eq!(observed.pause(200), None);
}

#[test]
fn dates_that_there_are_not() {
    for text in [
        "2026-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-01-00T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:60:00Z",
        "2026-01-01T00:00:61Z",
        "2026-01-01T00:00:00+24:00",
        "2026-01-01T00:00:00+1:00",
        "2026-01-01T00:00:00.Z",
        "2026-1-01T00:00:00Z",
        "2026-01-01",
        "Fri, 31 Feb 2026 00:00:00 GMT",
        "Fri, 02 Jan 2026 03:04:05 PST",
        "Fri, 2 Jan 2026 03:04:05 GMT",
        "Fri, 02 Jan 2026 03:04:05",
        "Fri, 02 Jan 2026 03:04:05 GMT x",
        "Feb, 02 Jan 2026 03:04:05 GMT",
    ] {
        assert_eq!(moment(text, WALL), None, "{text}");
    }
    assert_eq!(rfc3339("2024-02-29 00:00:00z"), rfc3339("2024-02-29T00:00:00+00:00"));
    assert_eq!(rfc3339("2026-01-02T03:04:05"), Some(WALL));
    assert_eq!(rfc3339("1970-01-01T00:00:60Z"), Some(60_000_000_000));
    assert_eq!(rfc3339("1969-12-31T23:59:59.1234567891Z"), Some(-876_543_211));
}

#[test]
fn two_digits_of_a_year_are_the_nearest_that_is_not_far_ahead() {
    for (year, meant) in [("26", 2026), ("76", 2076), ("77", 1977), ("00", 2000), ("94", 1994)] {
        let short = http_date(&format!("Sunday, 06-Nov-{year} 08:49:37 GMT"), WALL);
        let long = http_date(&format!("Sun, 06 Nov {meant} 08:49:37 GMT"), WALL);
        assert!(long.is_some());
        assert_eq!(short, long, "{year}");
    }
}

fn any_header() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let name = prop_oneof![
        "(anthropic|x)?-?ratelimit-(limit|remaining|reset|requests|tokens|input-tokens)(-(limit|remaining|reset|requests|tokens|output-tokens))?",
        "(x-ms-)?retry-after(-ms)?|[dD]ate",
    ]
    .prop_map(String::into_bytes);
    let value = prop_oneof![
        "[-+]?[0-9]{0,20}(\\.[0-9]{0,12})?([eE][-+]?[0-9]{0,4})?",
        "[-+]?([0-9]{0,8}(\\.[0-9]{0,4})?(d|h|m|s|ms|us|ns|x)){0,4}",
        "[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{0,12})?(Z|[-+][0-9]{2}:[0-9]{2})?",
        "(Mon|Sunday),? [0-9]{1,2}[ -](Jan|Feb|Foo)[ -][0-9]{2,4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT",
        "(Mon|Sun) (Dec|Jun)  ?[0-9]{1,2} [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9]{4}",
        "\\PC{0,80}",
    ]
    .prop_map(String::into_bytes);
    let garbage = proptest::collection::vec(any::<u8>(), 0..70);
    (prop_oneof![8 => name, 1 => garbage.clone()], prop_oneof![8 => value, 1 => garbage])
}

proptest! {
    #![proptest_config(crate::core::cases(500, 200_000))]

    #[test]
    fn whatever_comes_is_read_within_bounds(
        headers in proptest::collection::vec(any_header(), 0..12),
        wall in prop_oneof![Just(WALL), any::<i64>().prop_map(i128::from), any::<i128>()],
        status in 0_u16..1000,
    ) {
        let mut reader = Reader::new(wall);
        for (name, value) in &headers {
            reader.header(name, value);
        }
        let observed = reader.clone().finish();
        let dimensions =
            [observed.requests, observed.tokens, observed.input_tokens, observed.output_tokens];
        for Dimension { limit, remaining, reset_in } in dimensions {
            prop_assert!(limit.is_none_or(|limit| (1..=MOST_COUNT).contains(&limit)));
            prop_assert!(remaining <= limit.or(Some(MOST_COUNT)));
            prop_assert!(reset_in <= Some(LONGEST_RESET));
        }
        prop_assert!(observed.retry_after <= Some(LONGEST_RETRY_AFTER));
        prop_assert!(observed.ignored as usize <= headers.len());
        prop_assert!(observed.pause(status) <= Some(LONGEST_RESET));
        // Those that nobody knows are as if they were not there.
        let mut again = Reader::new(wall);
        for (name, value) in headers.iter().filter(|(name, _)| Reader::knows(name)) {
            again.header(name, value);
        }
        prop_assert_eq!(again.finish(), observed);
    }
}
