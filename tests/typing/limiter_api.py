"""Type-checked, never run: what a user's checker sees of the rate limiter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import assert_type

from ferrogate import (
    Decision,
    Limit,
    RateLimitConfig,
    RateLimiter,
    RateLimitHeaders,
    rate_limited,
)
from ferrogate.limiter import SharedStats
from ferrogate.testing import ManualClock

limiter = RateLimiter(
    "60/minute", Limit(5, timedelta(seconds=10)), RateLimitConfig(), clock=ManualClock()
)
assert_type(RateLimitHeaders.parse({"retry-after": "3"}, 429).tokens.limit, int | None)
assert_type(RateLimitHeaders.parse([(b"retry-after", b"3")]).pause, float | None)
assert_type(limiter.try_acquire(2, key=("tenant", 7)), Decision)
assert_type(limiter.try_acquire().limit, Limit | None)
assert_type(limiter.eta(), float)
assert_type(limiter.get_stats()["shared"], SharedStats | None)
assert_type(limiter.get_stats()["windows"], dict[str, int])


async def use() -> None:
    assert_type(await limiter.acquire(timeout=0.5), None)
    async with limiter as same:
        assert_type(same, RateLimiter)
    with limiter as same:
        assert_type(same, RateLimiter)


@rate_limited("60/minute", burst=10, timeout=timedelta(seconds=1))
def plain(a: int, *, b: str = "") -> float:
    return float(a) + len(b)


@rate_limited(limiter=limiter)
async def coroutine(a: int) -> str:
    return str(a)


@rate_limited(limiter=limiter)
def numbers(n: int) -> Iterator[int]:
    yield from range(n)


@rate_limited(limiter=limiter)
async def stream(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


class Agent:
    @rate_limited(limiter=limiter)
    async def ask(self, prompt: str) -> int:
        return len(prompt)


async def call(agent: Agent) -> None:
    assert_type(plain(1, b="x"), float)
    assert_type(await coroutine(1), str)
    assert_type(next(numbers(1)), int)
    async for item in stream(1):
        assert_type(item, int)
    assert_type(await agent.ask("x"), int)
    plain("x")  # type: ignore[arg-type]
    limiter.update(60)  # type: ignore[arg-type]
    RateLimiter("1/s", algorithm="leaky")  # type: ignore[arg-type]
