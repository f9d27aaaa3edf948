"""The transports of httpx and httpx2, for clients that are awaited and for those that block."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from http_sides import EVENTS, JSON, URL, Side

from ferrogate import (
    CircuitBreaker,
    CircuitBreakerOpenError,
    Guard,
    LLMLimiter,
    RateLimiter,
    RateLimitExceeded,
    RetryBudget,
    RetryPolicy,
    testing,
)
from ferrogate.testing import ManualClock

pytest.importorskip("httpx")
pytest.importorskip("httpx2")

KINDS = [
    pytest.param(name, blocks, id=f"{name}-{'sync' if blocks else 'async'}")
    for name in ("httpx", "httpx2")
    for blocks in (False, True)
]


@pytest.fixture(params=[kind.values for kind in KINDS], ids=[kind.id for kind in KINDS])
def side(request: pytest.FixtureRequest) -> Side:
    return Side(*request.param)


def guarded(attempts: int = 3, **parts: Any) -> Guard:
    """On a clock that stands still: what failed does so until the test says otherwise."""
    clock = parts.pop("clock", None) or ManualClock()
    policy = RetryPolicy(attempts=attempts, base=0, clock=clock)
    return Guard("provider", retry=policy, clock=clock, **parts)


def test_an_answer_passes_as_it_is(side: Side) -> None:
    client = side.client([(200, JSON | {"x-request-id": "7"}, [b'{"a":', b"1}"])], guarded())
    response = client.ask()
    assert (response.status_code, response.json()) == (200, {"a": 1})
    assert response.headers["x-request-id"] == "7"
    assert "x-should-retry" not in response.headers
    assert client.transport.guard.get_stats()["successes"] == 1
    assert side.closed == 1


@pytest.mark.parametrize(
    ("status", "outcome", "sent"),
    [
        (429, "throttled", 3),
        (408, "failures", 3),
        (500, "failures", 3),
        (529, "failures", 3),
        (400, "neutral", 1),
        (404, "neutral", 1),
        (301, "successes", 1),
    ],
)
def test_an_answer_counts_by_its_status(side: Side, status: int, outcome: str, sent: int) -> None:
    said = b'{"error": {"message": "so it is"}}'
    client = side.client([(status, JSON, [said])] * 3, guarded())
    response = client.ask()
    assert (response.status_code, response.read() if side.blocks else response.content) == (
        status,
        said,
    )
    assert client.transport.guard.get_stats()[outcome] == sent
    assert len(side.requests) == sent
    assert side.closed == sent
    assert (response.headers.get("x-should-retry") == "false") is (sent == 3)


def test_an_error_of_the_connection_is_a_failure_and_is_raised_as_it_is(side: Side) -> None:
    client = side.client([side.http.ConnectError("no route")] * 3, guarded())
    for _ in range(2):
        with pytest.raises(side.http.ConnectError, match="no route") as caught:
            client.ask()
        assert caught.value.request.url == URL
    assert client.transport.guard.get_stats()["failures"] == 3
    assert client.transport.get_stats()["answered_again"] == 1


def test_what_fails_once_is_tried_again(side: Side) -> None:
    client = side.client([side.http.ReadError(""), 503, 429, 200], guarded(attempts=4))
    assert client.ask().status_code == 200
    assert client.transport.get_stats()["sent"] == 4


def test_a_body_that_breaks_is_asked_for_again(side: Side) -> None:
    broken = (200, JSON, [b'{"a"', side.http.ReadError("gone")])
    client = side.client([broken, (200, JSON, [b"{}"])], guarded())
    assert client.ask().json() == {}
    assert client.transport.guard.get_stats()["failures"] == 1


def test_a_request_that_is_read_once_is_sent_once(side: Side) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"one"

    async def pieces_async() -> AsyncIterator[bytes]:
        yield b"one"

    client = side.client([503, 503], guarded())
    for sent in (1, 2):
        content = pieces() if side.blocks else pieces_async()
        assert client.ask(json=None, content=content).status_code == 503
        assert client.transport.get_stats()["sent"] == sent


def test_the_wait_that_is_asked_for_is_waited(side: Side) -> None:
    clock = ManualClock()
    policy = RetryPolicy(attempts=2, base=0, max_retry_after=5, clock=clock)
    guard = Guard("provider", retry=policy, clock=clock)
    slow = (429, JSON | {"retry-after": "6"}, [b"{}"])
    client = side.client([slow, slow], guard)
    assert client.ask().status_code == 429
    assert policy.get_stats()["given_up"]["retry_after_too_long"] == 1
    again = client.ask()
    assert (again.status_code, again.headers["retry-after"]) == (429, "6")
    assert len(side.requests) == 1
    clock.advance(6)
    assert client.ask().status_code == 429
    assert len(side.requests) == 2


def test_others_credentials_and_questions_are_others_calls(side: Side) -> None:
    client = side.client([500] * 3, guarded())
    assert client.ask().status_code == 500
    assert client.ask(headers={"authorization": "Bearer other"}).status_code == 200
    assert client.ask(json={"model": "other"}).status_code == 200
    # What differs from attempt to attempt does not make it another.
    for volatile in ("x-request-id", "traceparent", "x-stainless-retry-count", "Idempotency-Key"):
        assert client.ask(headers={volatile: "1"}).status_code == 500
    assert len(side.requests) == 5


def test_a_pause_that_is_too_long_is_refused(side: Side) -> None:
    clock = ManualClock()
    guard = Guard("provider", retry=RetryPolicy(attempts=1, clock=clock), clock=clock)
    slow = (429, JSON | {"retry-after": "120"}, [b"{}"])
    client = side.client([slow], guard, max_wait=60)
    assert client.ask().status_code == 429
    refused = client.ask(json={"other": 1})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "120")
    assert isinstance(refused.extensions["ferrogate"], RateLimitExceeded)
    assert refused.headers["x-should-retry"] == "false"
    assert client.ask(headers={"authorization": "Bearer other"}).status_code == 200
    clock.advance(120)
    assert client.ask(json={"other": 1}).status_code == 200


def test_refusals_become_answers(side: Side) -> None:
    breaker = CircuitBreaker("provider")
    breaker.force_open()
    client = side.client([], Guard("provider", breaker=breaker))
    response = client.ask()
    assert response.status_code == 503
    assert isinstance(response.extensions["ferrogate"], CircuitBreakerOpenError)
    assert "forced open" in response.json()["error"]["message"]
    assert response.headers["x-should-retry"] == "false"
    limiter = RateLimiter("1/hour")
    client = side.client([], Guard("provider", limiter=limiter, timeout=0.01))
    assert client.ask().status_code == 200
    response = client.ask()
    assert response.status_code == 429
    assert isinstance(response.extensions["ferrogate"], RateLimitExceeded)
    assert len(side.requests) == 1


def test_a_streamed_answer_is_an_attempt_until_its_end(side: Side) -> None:
    breaker = CircuitBreaker("provider")
    events = [b"data: 1\n\n", b"data: 2\n\n"]
    broken = [b"data: 1\n\n", side.http.ReadError("gone")]
    finished = [b"data: 1\n\n", b"data: [DONE]\n\n", b""]
    replies = [(200, EVENTS, pieces) for pieces in (events, broken, events, finished)]
    client = side.client(replies, Guard("provider", breaker=breaker))

    def counts() -> tuple[int, int, int]:
        stats = breaker.get_stats()
        return stats["successes"], stats["failures"], stats["neutral"]

    assert client.stream() == b"".join(events)
    assert counts() == (1, 0, 0)
    with pytest.raises(side.http.ReadError):
        client.stream()
    assert counts() == (1, 1, 0)
    assert client.stream(most=1) == b"data: 1\n\n"
    assert counts() == (1, 1, 1)
    assert client.stream(most=2) == b"".join(finished)
    assert counts() == (2, 1, 1)
    assert side.closed == 4


def test_a_stream_holds_its_slot_until_it_is_closed(side: Side) -> None:
    bulkhead = RateLimiter(burst=1)
    client = side.client(
        [(200, EVENTS, [b"data: 1\n\n"] * 2)], Guard("provider", bulkhead=bulkhead)
    )
    seen = []

    def look(_: object) -> None:
        seen.append(bulkhead.get_stats()["concurrent_requests"])

    if side.blocks:
        with client.http.stream("POST", URL, json={}) as response:
            look(response)
    else:

        async def main() -> None:
            async with client.http.stream("POST", URL, json={}) as response:
                look(response)

        asyncio.run(main())
    look(None)
    assert seen == [1, 0]


OPENAI_STREAM = [
    {"choices": [{"delta": {"content": '"usage"'}}], "usage": None},
    {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7}},
]
RESPONSES_STREAM = [
    {"type": "response.output_text.delta", "delta": "x"},
    {"type": "response.completed", "response": {"usage": {"input_tokens": 11, "output_tokens": 7}}},
]
ANTHROPIC_STREAM = [
    {
        "type": "message_start",
        "message": {
            "usage": {"input_tokens": 8, "cache_creation_input_tokens": 3, "output_tokens": 1}
        },
    },
    {"type": "message_delta", "usage": {"output_tokens": 4}},
    {"type": "message_delta", "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
]


def events_of(events: list[Any]) -> bytes:
    return b"".join(b"event: x\r\ndata: %b\r\n\r\n" % json.dumps(e).encode() for e in events)


@pytest.mark.parametrize("events", [OPENAI_STREAM, RESPONSES_STREAM, ANTHROPIC_STREAM])
@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_the_usage_of_streams_is_counted(
    side: Side, events: list[Any], coded: bool, size: int
) -> None:
    text = events_of(events)
    sent = gzip.compress(text) if coded else text
    pieces = [sent[at : at + size] for at in range(0, len(sent), size)]
    headers = EVENTS | ({"content-encoding": "gzip"} if coded else {})
    client = side.client([(200, headers, pieces)], guarded())
    assert client.stream() == sent
    stats = client.transport.get_stats()
    assert (stats["input_tokens"], stats["output_tokens"]) == (11, 7)


def test_the_usage_of_whole_answers_is_counted(side: Side) -> None:
    body = json.dumps({"usage": {"prompt_tokens": 11, "completion_tokens": 7}}).encode()
    coded = JSON | {"content-encoding": "gzip"}
    client = side.client([(200, JSON, [body]), (200, coded, [gzip.compress(body)])], guarded())
    assert client.ask().json() == client.ask().json()
    stats = client.transport.get_stats()
    assert (stats["input_tokens"], stats["output_tokens"]) == (22, 14)


@pytest.mark.parametrize(
    "garbage",
    [
        b'data: {"usage": \n\n',
        b'data: {"usage": [1]}\n\n',
        b'data: {"usage": {"prompt_tokens": "many", "completion_tokens": -1}}\n\n',
        b'data: [{"usage": 1}]\n\n',
        b"data: " + b"[" * 100_000 + b'"usage"\n\n',
        b"\xff\xfe\n" * 10,
        b'data: {"usage": {"prompt_tokens": true, "completion_tokens": 1e99}}\n\n',
    ],
)
def test_garbage_says_nothing(side: Side, garbage: bytes) -> None:
    client = side.client([(200, EVENTS, [garbage])], guarded())
    assert client.stream() == garbage
    stats = client.transport.get_stats()
    assert (stats["input_tokens"], stats["output_tokens"]) == (0, 0)


def test_long_bodies_are_given_on_as_they_come(side: Side) -> None:
    piece = bytes(1 << 18)
    plain = {"content-type": "application/octet-stream"}
    told = plain | {"content-length": str(len(piece) * 8)}
    client = side.client([(200, plain, [piece] * 8), (200, told, [piece] * 8)], guarded())
    assert client.stream() == piece * 8
    assert client.stream() == piece * 8
    assert client.transport.guard.get_stats()["successes"] == 2


def test_a_limiter_is_asked_for_each_attempt_and_told_what_it_took(side: Side) -> None:
    clock = ManualClock()
    limiter = LLMLimiter(requests_per_minute=10, tokens_per_minute=10_000, clock=clock)
    usage = {"usage": {"prompt_tokens": 11, "completion_tokens": 7}}
    asked: list[Any] = []

    def estimate(request: Any, **fields: Any) -> dict[str, Any]:
        asked.append((request.url, fields))
        return {"input_tokens": 100, "max_output_tokens": fields["max_tokens"]}

    guard = guarded(clock=clock, limiter=limiter, estimate=estimate)
    replies = [429, (200, JSON, [json.dumps(usage).encode()]), (200, EVENTS, [events_of([usage])])]
    client = side.client(replies, guard)
    assert client.ask().usage == {"input_tokens": 11, "output_tokens": 7}
    assert asked == [(URL, {"model": "m", "max_tokens": 50})] * 2
    stats = limiter.get_stats()
    assert stats["dimensions"]["requests"]["used"] == 2
    assert stats["dimensions"]["tokens"]["used"] == 18
    assert (stats["granted"], stats["open"]) == (2, 0)
    client.stream(json={"max_tokens": 50})
    assert limiter.get_stats()["dimensions"]["tokens"]["used"] == 36


def test_a_limiter_hears_what_the_provider_says(side: Side) -> None:
    clock = ManualClock()
    limiter = LLMLimiter(requests_per_minute=10, clock=clock)
    guard = guarded(attempts=1, clock=clock, limiter=limiter)
    told = JSON | {"x-ratelimit-limit-requests": "5", "x-ratelimit-remaining-requests": "4"}
    slow = (429, JSON | {"retry-after": "20"}, [b"{}"])
    client = side.client([(200, told, [b"{}"]), slow], guard)
    assert client.ask().status_code == 200
    assert limiter.get_stats()["dimensions"]["requests"]["limit"] == 5
    assert client.ask().status_code == 429
    assert limiter.get_stats()["paused_seconds"] == pytest.approx(20)


def test_more_than_a_limiter_ever_grants_is_refused_at_once(side: Side) -> None:
    limiter = LLMLimiter(input_tokens_per_minute=1)
    breaker = CircuitBreaker("provider")
    client = side.client([], Guard("provider", breaker=breaker, limiter=limiter))
    for _ in range(2):
        with pytest.raises(ValueError, match="input_tokens"):
            client.ask(json={"messages": "a long question"})
    assert client.transport.get_stats()["answered_again"] == 0
    assert breaker.get_stats()["failures"] == 0


def test_what_is_disabled_or_bypassed_is_not_there(side: Side) -> None:
    client = side.client([500, 500, 200], guarded(enabled=False))
    assert [client.ask().status_code for _ in range(3)] == [500, 500, 200]
    client = side.client([500, 500, 200], guarded())
    with testing.bypass():
        assert [client.ask().status_code for _ in range(3)] == [500, 500, 200]
    assert client.transport.get_stats()["requests"] == 0


def test_a_reset_forgets_failures(side: Side) -> None:
    client = side.client([500, 500], guarded(attempts=1))
    assert client.ask().status_code == 500
    testing.reset_all()
    assert client.ask().status_code == 500
    assert len(side.requests) == 2


def test_failures_are_remembered_up_to_a_number(side: Side) -> None:
    client = side.client([500] * 20, guarded(attempts=1), max_remembered=4)
    for number in range(10):
        assert client.ask(json={"n": number}).status_code == 500
    assert len(client.transport._exchanges._episodes) == 4
    assert client.ask(json={"n": 9}).status_code == 500
    assert len(side.requests) == 10
    assert client.ask(json={"n": 0}).status_code == 500
    assert len(side.requests) == 11


def test_a_fallback_answers_with_a_response(side: Side) -> None:
    errors = []

    def fallback(error: Exception) -> Any:
        errors.append(error)
        return side.http.Response(200, json={"answer": "later"})

    client = side.client([500], Guard("provider", fallback=fallback))
    assert client.ask().json() == {"answer": "later"}
    assert errors[0].status_code == 500
    client = side.client([500], Guard("provider", fallback=lambda _: "later"))
    with pytest.raises(TypeError, match=r"fallback to return an httpx2?\.Response, got str"):
        client.ask()


WRONG: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda cls: cls(None), TypeError, "guard: expected a ferrogate.Guard"),
    (lambda cls: cls(guarded(), 1), TypeError, "transport: expected an httpx"),
    (lambda cls: cls(guarded(), budget=1), TypeError, "budget: expected"),
    (lambda cls: cls(guarded(), max_wait=-1), ValueError, "max_wait: expected"),
    (lambda cls: cls(guarded(), max_wait=float("nan")), ValueError, "max_wait: expected"),
    (lambda cls: cls(guarded(), max_remembered=0), ValueError, "max_remembered: expected"),
    (lambda cls: cls(guarded(), max_remembered=1.5), TypeError, "max_remembered: expected"),
]


@pytest.mark.parametrize(("make", "kind", "message"), WRONG)
def test_wrong_arguments_are_named(
    side: Side, make: Callable[[Any], Any], kind: type[Exception], message: str
) -> None:
    cls = side.ours.SyncGuardedTransport if side.blocks else side.ours.GuardedTransport
    with pytest.raises(kind, match=message):
        make(cls)


def test_it_says_what_it_did(side: Side) -> None:
    client = side.client([], guarded(), budget=RetryBudget())
    assert "'provider': nothing yet" in repr(client.transport)
    client.ask()
    assert "1 requests, 1 sent" in repr(client.transport)
