"""The middleware of aiohttp, on real connections to the scripted provider."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

aiohttp = pytest.importorskip("aiohttp")

from ferrogate import (  # noqa: E402
    CircuitBreaker,
    CircuitBreakerOpenError,
    Guard,
    GuardTimeout,
    LLMLimiter,
    RateLimiter,
    RateLimitExceeded,
    RetryPolicy,
    testing,
)
from ferrogate.integrations.aiohttp import GuardedMiddleware  # noqa: E402
from ferrogate.testing import ManualClock, ProviderReply, ScriptedProvider  # noqa: E402

QUESTION = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}
STREAMED = QUESTION | {"stream": True, "stream_options": {"include_usage": True}}

Use = Callable[[Any], Awaitable[Any]]


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as provider:
        yield provider


def used(provider: ScriptedProvider, middleware: GuardedMiddleware, use: Use) -> Any:
    async def main() -> Any:
        base = provider.url
        async with aiohttp.ClientSession(base, middlewares=[middleware]) as session:
            return await use(session)

    return asyncio.run(main())


async def ask(session: Any, question: Any = QUESTION, **options: Any) -> tuple[int, Any]:
    async with session.post("/v1/chat/completions", json=question, **options) as response:
        return response.status, await response.json()


def guarded(attempts: int = 3, **parts: Any) -> Guard:
    """On a clock that stands still: what failed does so until the test says otherwise."""
    clock = parts.pop("clock", None) or ManualClock()
    policy = RetryPolicy(attempts=attempts, base=0, clock=clock)
    return Guard("provider", retry=policy, clock=clock, **parts)


def test_an_answer_passes_as_it_is(provider: ScriptedProvider) -> None:
    provider.script([ProviderReply(text="hello", input_tokens=11, output_tokens=7)])
    middleware = GuardedMiddleware(guarded())
    status, said = used(provider, middleware, ask)
    assert (status, said["choices"][0]["message"]["content"]) == (200, "hello")
    assert middleware.guard.get_stats()["successes"] == 1
    stats = middleware.get_stats()
    assert (stats["sent"], stats["input_tokens"], stats["output_tokens"]) == (1, 11, 7)


@pytest.mark.parametrize(
    ("status", "outcome", "sent"),
    [(429, "throttled", 3), (500, "failures", 3), (400, "neutral", 1)],
)
def test_an_answer_counts_by_its_status(
    provider: ScriptedProvider, status: int, outcome: str, sent: int
) -> None:
    provider.script([status] * 3)
    middleware = GuardedMiddleware(guarded())
    got, said = used(provider, middleware, ask)
    assert (got, said["error"]["message"]) == (status, f"scripted {status}")
    assert middleware.guard.get_stats()[outcome] == sent  # type: ignore[literal-required]
    assert provider.count() == sent


def test_the_layers_above_are_told_and_answered_again(provider: ScriptedProvider) -> None:
    provider.script([429] * 100)
    middleware = GuardedMiddleware(guarded())

    async def use(session: Any) -> None:
        for _ in range(5):
            async with session.post("/v1/chat/completions", json=QUESTION) as response:
                assert response.status == 429
                assert response.headers["x-should-retry"] == "false"
                assert (await response.json())["error"]["message"] == "scripted 429"
                assert response.url.path == "/v1/chat/completions"
        assert "retry-after" in response.headers
        with pytest.raises(aiohttp.ClientResponseError) as caught:
            await ask(session, raise_for_status=True)
        assert caught.value.status == 429

    used(provider, middleware, use)
    assert provider.count() == 3
    assert middleware.get_stats()["answered_again"] == 5


def test_an_answer_that_is_too_long_to_keep(provider: ScriptedProvider) -> None:
    provider.script([ProviderReply(status=500, body={"error": "x" * 20_000})])
    middleware = GuardedMiddleware(guarded(attempts=1))

    async def use(session: Any) -> list[int]:
        sizes = []
        for _ in range(2):
            async with session.post("/v1/chat/completions", json=QUESTION) as response:
                assert response.status == 500
                sizes.append(len(await response.read()))
        return sizes

    assert used(provider, middleware, use) == [20_013, 0]


def test_an_error_of_the_connection_is_a_failure(provider: ScriptedProvider) -> None:
    provider.script([ConnectionError] * 2)
    middleware = GuardedMiddleware(guarded())
    assert used(provider, middleware, ask)[0] == 200
    assert middleware.guard.get_stats()["failures"] == 2
    provider.script([ConnectionError] * 5)

    async def use(session: Any) -> None:
        for _ in range(2):
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await ask(session, QUESTION | {"n": 1})

    used(provider, middleware, use)
    assert provider.count() == 3 + 3


def test_refusals_are_raised(provider: ScriptedProvider) -> None:
    breaker = CircuitBreaker("provider")
    breaker.force_open()
    middleware = GuardedMiddleware(Guard("provider", breaker=breaker))
    with pytest.raises(CircuitBreakerOpenError):
        used(provider, middleware, ask)
    assert middleware.get_stats()["refused"] == 1
    clock = ManualClock()
    guard = Guard("provider", retry=RetryPolicy(attempts=1, clock=clock), clock=clock)
    middleware = GuardedMiddleware(guard)
    provider.script([ProviderReply(status=429, headers={"retry-after": "120"})])

    async def use(session: Any) -> None:
        assert (await ask(session))[0] == 429
        with pytest.raises(RateLimitExceeded) as caught:
            await ask(session, QUESTION | {"n": 1})
        assert caught.value.retry_after == pytest.approx(120)

    used(provider, middleware, use)
    assert provider.count() == 1


def test_an_attempt_that_takes_too_long(provider: ScriptedProvider) -> None:
    provider.script([ScriptedProvider.timeout] * 2)
    policy = RetryPolicy(attempts=2, base=0)
    middleware = GuardedMiddleware(Guard("provider", retry=policy, attempt_timeout=0.05))

    async def use(session: Any) -> None:
        for _ in range(2):
            with pytest.raises(GuardTimeout):
                await ask(session)

    used(provider, middleware, use)
    # One may have been late before it was there.
    assert provider.count() <= middleware.get_stats()["sent"] == 2


WAYS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "read": lambda response: response.read(),
    "text": lambda response: response.text(),
    "content.read": lambda response: response.content.read(),
    "lines": lambda response: gathered(response.content),
    "any": lambda response: gathered(response.content.iter_any()),
    "chunked": lambda response: gathered(response.content.iter_chunked(5)),
    "chunks": lambda response: gathered(response.content.iter_chunks()),
}


async def gathered(pieces: AsyncIterator[Any]) -> list[Any]:
    return [piece async for piece in pieces]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("question", [QUESTION, STREAMED])
def test_whichever_way_it_is_read_it_is_counted(
    provider: ScriptedProvider, way: str, question: Any
) -> None:
    provider.script([ProviderReply(text="one two three", input_tokens=11, output_tokens=7)])
    bulkhead = RateLimiter(burst=1)
    middleware = GuardedMiddleware(guarded(bulkhead=bulkhead))

    async def use(session: Any) -> None:
        async with session.post("/v1/chat/completions", json=question) as response:
            assert await WAYS[way](response)

    used(provider, middleware, use)
    assert middleware.guard.get_stats()["successes"] == 1
    assert bulkhead.get_stats()["concurrent_requests"] == 0
    stats = middleware.get_stats()
    assert (stats["input_tokens"], stats["output_tokens"]) == (11, 7)


def test_a_stream_that_breaks_is_a_failure_and_one_that_is_left_neutral(
    provider: ScriptedProvider,
) -> None:
    middleware = GuardedMiddleware(guarded())
    provider.script([ProviderReply(text="one two three", breaks_after=2)])

    async def broken(session: Any) -> None:
        async with session.post("/v1/chat/completions", json=STREAMED) as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()

    used(provider, middleware, broken)
    assert middleware.guard.get_stats()["failures"] == 1
    provider.limit(seconds_per_output_token=0.05, ttft_base=0.01)

    async def left(session: Any) -> None:
        async with session.post("/v1/chat/completions", json=STREAMED) as response:
            assert response.status == 200

    async def dropped(session: Any) -> None:
        response = await session.post("/v1/chat/completions", json=STREAMED)
        response.close()

    for number, use in enumerate((left, dropped)):
        provider.script([ProviderReply(text="one " * 100_000)])
        used(provider, middleware, use)
        assert middleware.guard.get_stats()["neutral"] == number + 1


def test_an_empty_answer_has_been_read() -> None:
    from aiohttp import web

    async def empty(_: Any) -> Any:
        return web.Response(status=204)

    middleware = GuardedMiddleware(guarded())

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/", empty)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        async with (
            aiohttp.ClientSession(middlewares=[middleware]) as session,
            session.get(url) as response,
        ):
            assert response.status == 204
            assert middleware.guard.get_stats()["successes"] == 1
        await runner.cleanup()

    asyncio.run(main())


def test_a_request_that_is_read_once_is_sent_once(provider: ScriptedProvider) -> None:
    provider.script([500] * 2)
    middleware = GuardedMiddleware(guarded())
    question = json.dumps(QUESTION).encode()

    async def use(session: Any) -> None:
        for _ in range(2):
            async with session.post("/v1/chat/completions", data=io.BytesIO(question)) as response:
                assert response.status == 500

    used(provider, middleware, use)
    assert middleware.get_stats()["sent"] == 2


def test_a_limiter_is_told_what_a_call_took(provider: ScriptedProvider) -> None:
    limiter = LLMLimiter(tokens_per_minute=10_000)
    provider.script([ProviderReply(text="ok", input_tokens=11, output_tokens=7)])
    used(provider, GuardedMiddleware(guarded(limiter=limiter)), ask)
    assert limiter.get_stats()["dimensions"]["tokens"]["used"] == 18


def test_what_is_disabled_or_bypassed_is_not_there(provider: ScriptedProvider) -> None:
    provider.script([500] * 2)
    middleware = GuardedMiddleware(guarded(enabled=False))
    assert used(provider, middleware, ask)[0] == 500
    middleware = GuardedMiddleware(guarded())
    with testing.bypass():
        assert used(provider, middleware, ask)[0] == 500
    assert middleware.get_stats()["requests"] == 0


def test_it_says_what_it_did_and_what_is_wrong() -> None:
    assert repr(GuardedMiddleware(guarded())) == "<GuardedMiddleware 'provider': nothing yet>"
    with pytest.raises(TypeError, match=r"guard: expected a ferrogate\.Guard"):
        GuardedMiddleware(None)  # type: ignore[arg-type]
