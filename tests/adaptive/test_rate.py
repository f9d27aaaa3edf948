"""`adaptive_rate`: what a provider allows that refuses and does not say what it allows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from batching import on, stop

from ferrogate import Guard, LLMLimiter
from ferrogate.testing import ManualClock


class Refused(Exception):
    """HTTP 429 without headers."""

    status_code = 429


class SilentProvider:
    """A bucket of so many tokens a minute, as providers have them; answers 429 and no more."""

    def __init__(self, clock: ManualClock, per_minute: int) -> None:
        self.clock = clock
        self.per_minute = per_minute
        self.left = float(per_minute)
        self.seen = clock.now()
        self.served = self.refused = self.tokens = 0

    async def call(self, tokens: int) -> None:
        now = self.clock.now()
        grown = self.left + (now - self.seen) * self.per_minute / 60
        self.left, self.seen = min(float(self.per_minute), grown), now
        if self.left < tokens:
            self.refused += 1
            await asyncio.sleep(0.1)
            raise Refused
        self.left -= tokens
        self.served += 1
        self.tokens += tokens
        await asyncio.sleep(1)


@pytest.mark.parametrize("given", [5_000, 900, None])
@pytest.mark.parametrize("guarded", [False, True])
def test_it_finds_what_a_silent_provider_allows(given: int | None, guarded: bool) -> None:
    clock = ManualClock()
    provider = SilentProvider(clock, 600)
    limiter = LLMLimiter(requests_per_minute=given, adaptive_rate=True, clock=clock)
    guard = Guard("model", limiter=limiter, estimate=lambda _: {}, clock=clock)

    async def client() -> None:
        while True:
            try:
                if guarded:
                    await guard.call(provider.call, 1)
                else:
                    async with await limiter.reserve():
                        await provider.call(1)
            except Refused:
                pass

    async def main() -> None:
        tasks = [asyncio.create_task(client()) for _ in range(100)]
        await asyncio.sleep(600)
        served, refused = provider.served, provider.refused
        await asyncio.sleep(3_600)
        served, refused = provider.served - served, provider.refused - refused
        assert served >= 0.9 * 600 * 60
        assert refused <= 0.03 * served
        await stop(tasks)

    on(clock, main)
    found = limiter.get_stats()["adaptive_rate"]
    assert found is not None
    assert found["cuts"] > 0
    assert not found["told"]
    stats = limiter.get_stats()
    assert (stats["open"], stats["waiting"]) == (0, 0)


def test_it_finds_tokens_a_minute_too_and_follows() -> None:
    clock = ManualClock()
    provider = SilentProvider(clock, 60_000)
    limiter = LLMLimiter(tokens_per_minute=200_000, adaptive_rate=True, clock=clock)

    async def client(tokens: int) -> None:
        while True:
            try:
                async with await limiter.reserve(input_tokens=tokens, output_tokens=0):
                    await provider.call(tokens)
            except Refused:
                pass

    async def main() -> None:
        tasks = [asyncio.create_task(client(50 * (n % 7 + 1))) for n in range(50)]
        for allowed in (60_000, 120_000, 30_000):
            provider.per_minute = allowed
            await asyncio.sleep(1_800)
            tokens, served, refused = provider.tokens, provider.served, provider.refused
            await asyncio.sleep(3_600)
            assert provider.tokens - tokens >= 0.9 * 60 * allowed
            assert provider.refused - refused <= 0.03 * (provider.served - served)
        await stop(tasks)

    on(clock, main)


def test_without_it_refusals_change_nothing_and_with_headers_they_count() -> None:
    clock = ManualClock()
    plain = LLMLimiter(requests_per_minute=100, clock=clock)
    plain.observe({}, 429)
    assert plain.get_stats()["adaptive_rate"] is None
    assert plain.get_stats()["dimensions"]["requests"]["limit"] == 100

    limiter = LLMLimiter(requests_per_minute=100, adaptive_rate=True, clock=clock)
    clock.advance(10)
    limiter.observe({}, 429)
    limiter.observe({}, 503)
    assert limiter.get_stats()["dimensions"]["requests"]["limit"] == 45
    assert limiter.get_stats()["adaptive_rate"] == {"share": 0.45, "cuts": 1, "told": False}
    assert "rate cut to 0.45" in repr(limiter)
    limiter.observe({"x-ratelimit-limit-requests": "80"}, 200)
    assert limiter.get_stats()["dimensions"]["requests"]["limit"] == 80
    assert limiter.get_stats()["adaptive_rate"] == {"share": 1.0, "cuts": 1, "told": True}


def test_a_limiter_of_nothing_but_what_it_finds() -> None:
    limiter = LLMLimiter(adaptive_rate=True)
    assert limiter.get_stats()["dimensions"] == {}
    limiter.reserve_sync(input_tokens=10**9).settle()
    with pytest.raises(ValueError, match="at least one limit"):
        LLMLimiter()
    wrong: Any = 1
    with pytest.raises(TypeError, match="adaptive_rate"):
        LLMLimiter(adaptive_rate=wrong)
