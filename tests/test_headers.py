"""`RateLimitHeaders.parse`: beside the standard library's dates, and whatever may come."""

from __future__ import annotations

import datetime
import email.message
import email.utils
import re
from collections.abc import Iterator
from typing import Any

import httpx
import multidict
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrogate import RateLimitDimension, RateLimitHeaders

UTC = datetime.UTC
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LONGEST = 31 * 86_400.0


def reset_in(value: object, now: datetime.datetime = NOW) -> float | None:
    """What a reset is read as."""
    headers = {"anthropic-ratelimit-requests-reset": value}
    return RateLimitHeaders.parse(headers, now=now.timestamp()).requests.reset_in


OPENAI = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-remaining-tokens": "0",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-reset-tokens": "6m0s",
    "retry-after-ms": "1500",
}


def client_headers() -> Iterator[Any]:
    message = email.message.Message()  # urllib's
    for name, value in OPENAI.items():
        message[name] = value
    yield pytest.param(message, id="urllib")
    yield pytest.param(list(OPENAI.items()), id="pairs")
    yield pytest.param(((n.upper().encode(), v.encode()) for n, v in OPENAI.items()), id="bytes")
    yield pytest.param({**OPENAI, "x-ratelimit-limit-requests": 60, 7: "seven"}, id="numbers")
    yield pytest.param(httpx.Headers(OPENAI), id="httpx")
    yield pytest.param(multidict.CIMultiDictProxy(multidict.CIMultiDict(OPENAI)), id="aiohttp")


@pytest.mark.parametrize("headers", list(client_headers()))
def test_every_clients_headers_are_read(headers: Any) -> None:
    assert RateLimitHeaders.parse(headers, 429) == RateLimitHeaders(
        requests=RateLimitDimension(60, 59, 1.0),
        tokens=RateLimitDimension(150_000, 0, 360.0),
        input_tokens=RateLimitDimension(),
        output_tokens=RateLimitDimension(),
        retry_after=1.5,
        pause=1.5,
        ignored=0,
        clamped=0,
    )


def test_the_first_of_a_name_counts() -> None:
    read = RateLimitHeaders.parse(
        [("Retry-After", "soon"), ("retry-after", "3"), ("RETRY-AFTER", "9")]
    )
    assert (read.retry_after, read.ignored) == (3.0, 1)


@pytest.mark.parametrize("headers", [None, 3, "retry-after: 3", b"", [1], [("a",)], ["ab", "abc"]])
def test_what_is_no_headers_is_a_type_error(headers: Any) -> None:
    with pytest.raises(TypeError, match="headers: expected a mapping or pairs"):
        RateLimitHeaders.parse(headers)


def test_a_status_is_one_of_http() -> None:
    for status in (0, 600, -1, 10**30):
        with pytest.raises(ValueError, match="status: expected an HTTP status"):
            RateLimitHeaders.parse({}, status)
    for status in ("429", True, 4.29):
        with pytest.raises(TypeError, match="status: expected an HTTP status"):
            RateLimitHeaders.parse({}, status)  # type: ignore[arg-type]


def test_a_pause_is_for_refusals() -> None:
    spent = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2s"}
    assert RateLimitHeaders.parse(spent, 429).pause == 2.0
    assert RateLimitHeaders.parse(spent, 200).pause is None
    assert RateLimitHeaders.parse(spent | {"retry-after": "1"}, 503).pause == 1.0
    assert RateLimitHeaders.parse(spent | {"retry-after": "1"}, 200).pause is None
    assert RateLimitHeaders.parse(spent | {"retry-after": "1"}).pause == 1.0


def test_what_iterating_raises_reaches_the_caller() -> None:
    class Broken:
        def items(self) -> Iterator[tuple[str, str]]:
            yield "retry-after", "3"
            raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        RateLimitHeaders.parse(Broken())


def test_headers_without_end_are_read_to_an_end() -> None:
    def endless() -> Iterator[tuple[str, str]]:
        while True:
            yield "retry-after", "3"

    assert RateLimitHeaders.parse(endless()).retry_after == 3.0


def test_values_that_are_no_text_are_counted() -> None:
    values = [None, [], object(), "\ud800", b"\xff", True, 10**400, 1e300, float("nan")]
    read = RateLimitHeaders.parse([("retry-after", value) for value in values])
    assert (read.retry_after, read.ignored) == (None, len(values))


INSTANTS = st.datetimes(
    min_value=datetime.datetime(1, 1, 2),
    max_value=datetime.datetime(9999, 12, 30),
    timezones=st.sampled_from(
        [
            UTC,
            *(datetime.timezone(datetime.timedelta(minutes=m)) for m in (-719, -330, 1, 345, 840)),
        ]
    ),
)
NEAR = st.timedeltas(datetime.timedelta(0), datetime.timedelta(days=31))


def expected(instant: datetime.datetime, now: datetime.datetime) -> float:
    return min(max((instant - now).total_seconds(), 0.0), LONGEST)


@given(INSTANTS, INSTANTS, NEAR, st.booleans())
def test_instants_are_what_datetime_takes_them_for(
    now: datetime.datetime, instant: datetime.datetime, ahead: datetime.timedelta, near: bool
) -> None:
    if near:
        try:
            instant = (now + ahead).astimezone(instant.tzinfo)
        except OverflowError:
            return
    text = instant.isoformat()
    assert datetime.datetime.fromisoformat(text) == instant
    # Whole seconds, so that a float of long ago holds it.
    now = now.replace(microsecond=0)
    assert reset_in(text, now) == pytest.approx(expected(instant, now), abs=2e-6)
    assert reset_in(text.replace("+00:00", "Z"), now) == reset_in(text, now)


RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?", re.ASCII)


@given(
    st.from_regex(
        r"(19|20)\d\d-[01]\d-[0-3]\d[T ][0-2]\d:[0-6]\d:[0-6]\d"
        r"(\.\d{0,9})?(Z|[+-][0-2]\d:[0-6]\d)?",
        fullmatch=True,
        alphabet=st.characters(codec="ascii"),
    )
)
def test_what_datetime_refuses_is_refused(text: str) -> None:
    try:
        instant = datetime.datetime.fromisoformat(text)
    except ValueError:
        # Leap seconds are of RFC 3339, and none of Python's.
        assert reset_in(text) is None or ":60" in text
        return
    if RFC_3339.fullmatch(text) is None:
        return
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    assert reset_in(text) == pytest.approx(expected(instant, NOW), abs=2e-6)


@given(INSTANTS, NEAR)
def test_http_dates_are_what_email_takes_them_for(
    now: datetime.datetime, ahead: datetime.timedelta
) -> None:
    now = now.astimezone(UTC).replace(microsecond=0)
    try:
        then = (now + ahead).replace(microsecond=0)
    except OverflowError:
        return
    if then.year < 1000:
        return  # `email` writes three digits
    fixed = email.utils.format_datetime(then, usegmt=True)
    assert email.utils.parsedate_to_datetime(fixed) == then
    seconds = (then - now).total_seconds()
    assert reset_in(fixed, now) == seconds
    assert reset_in(then.strftime("%a %b %e %H:%M:%S %Y"), now) == seconds
    day, month = then.strftime("%A"), then.strftime("%b")
    short = f"{day}, {then.day:02}-{month}-{then.year % 100:02} {then:%H:%M:%S} GMT"
    assert reset_in(short, now) == seconds


@given(st.text(max_size=70) | st.from_regex(r"(Mon|Sun), \d\d (Jan|Feb) \d{4} \d\d:\d\d:\d\d GMT"))
def test_what_email_refuses_as_an_http_date_is_refused(text: str) -> None:
    found = reset_in(text)
    if found is None or "GMT" not in text:
        return
    then = email.utils.parsedate_to_datetime(text.replace(":60 ", ":59 "))
    assert abs(found - expected(then, NOW)) <= 1


NUMBERS = st.one_of(
    st.integers(-(10**40), 10**40), st.floats(), st.decimals(allow_nan=False, allow_infinity=False)
).map(str)
ANY = st.one_of(NUMBERS, st.text(), st.binary(), st.none(), st.integers(), st.floats())
NAMES = st.sampled_from([*OPENAI, "retry-after", "date", "anthropic-ratelimit-tokens-reset", ""])


@given(st.lists(st.tuples(NAMES | st.text() | st.binary(), ANY), max_size=12), st.floats())
def test_whatever_comes_is_within_bounds(headers: list[tuple[Any, Any]], now: float) -> None:
    read = RateLimitHeaders.parse(headers, 429, now=now)
    for one in (read.requests, read.tokens, read.input_tokens, read.output_tokens):
        assert one.limit is None or 1 <= one.limit <= 10**12
        assert one.remaining is None or 0 <= one.remaining <= (one.limit or 10**12)
        assert one.reset_in is None or 0 <= one.reset_in <= LONGEST
    assert read.retry_after is None or 0 <= read.retry_after <= 86_400
    assert read.pause is None or 0 <= read.pause <= LONGEST


def test_a_clock_that_is_wrong_does_no_harm() -> None:
    headers = {
        "date": "Fri, 02 Jan 2026 03:04:05 GMT",
        "retry-after": "Fri, 02 Jan 2026 03:04:25 GMT",
        "anthropic-ratelimit-requests-reset": "2026-01-02T03:04:35Z",
    }
    for wrong in (0.0, 1e9, NOW.timestamp() - 86_400, 4e9):
        read = RateLimitHeaders.parse(headers, now=wrong)
        assert (read.retry_after, read.requests.reset_in, read.clamped) == (20.0, 30.0, 0)
