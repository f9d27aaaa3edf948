"""A guard with a cache in front."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ferrogate import (
    Cache,
    CacheService,
    Guard,
    RateLimiter,
    RateLimitExceeded,
    RetryPolicy,
    cached,
)
from ferrogate.testing import ManualClock


async def excuses_of_stream(error: Exception) -> AsyncIterator[str]:
    yield "sorry"
    yield str(error)


async def looked_up(n: int) -> int:
    return n


def test_a_hit_goes_past_everything() -> None:
    async def main() -> None:
        clock = ManualClock()
        limiter = RateLimiter("1/minute", clock=clock)
        guard = Guard("c", cache=cached(ttl=60, clock=clock), limiter=limiter, timeout=1)
        asked = []

        @guard
        async def ask(prompt: str, *, loud: bool = False) -> str:
            """Asks."""
            asked.append(prompt)
            return prompt.upper() if loud else prompt

        assert inspect.iscoroutinefunction(ask)
        assert ask.__doc__ == "Asks."
        assert await ask("a", loud=True) == "A"
        assert await ask("a", loud=True) == await ask(prompt="a", loud=True) == "A"
        assert asked == ["a"]
        with pytest.raises(RateLimitExceeded):
            await ask("b")
        clock.advance(60)
        assert await ask("a", loud=True) == "A"
        assert asked == ["a", "a"]
        assert guard.get_stats()["calls"] == 3
        assert guard.get_stats()["rejected"] == 1
        info: Any = ask
        assert info.cache_info().hits == 2

    asyncio.run(main())


def test_one_call_for_all_who_want_the_same() -> None:
    async def main() -> None:
        tries = iter([ConnectionError("reset"), None])
        guard = Guard("c", cache=Cache(10), retry=RetryPolicy(attempts=2, base=0), bulkhead=1)
        calls = 0

        @guard
        async def ask(prompt: str) -> str:
            nonlocal calls
            calls += 1
            await asyncio.sleep(0)
            if error := next(tries):
                raise error
            return prompt

        first = asyncio.create_task(ask("a"))
        rest = [asyncio.create_task(ask("a")) for _ in range(50)]
        await asyncio.sleep(0)
        # Whoever began it is cancelled, and the others get their answer.
        first.cancel()
        assert await asyncio.gather(*rest) == ["a"] * 50
        with pytest.raises(asyncio.CancelledError):
            await first
        assert calls == 2
        stats = guard.get_stats()
        assert (stats["calls"], stats["retries"], stats["successes"]) == (1, 1, 1)

    asyncio.run(main())


def test_a_cache_that_guards_share_keeps_their_functions_apart() -> None:
    cache: Cache[Any, Any] = Cache(10)
    one, two = Guard("one", cache=cache), Guard("two", cache=cache)

    @one
    def left(x: int) -> str:
        return f"left {x}"

    @two
    def right(x: int) -> str:
        return f"right {x}"

    assert [left(1), right(1), left(1), right(1)] == ["left 1", "right 1"] * 2
    assert cache.get_stats()["hits"] == 2
    # Neither knows what makes two of these the same.
    assert one.call_sync(lambda: 1) == 1
    assert one.call_sync(lambda: 2) == 2


def test_streams_methods_and_a_service() -> None:
    async def main() -> None:
        guard = Guard("c", cache=cached(max_size=10))
        told = 0

        class Agent:
            @guard
            async def tokens(self, n: int) -> AsyncIterator[int]:
                nonlocal told
                told += 1
                for index in range(n):
                    yield index

            @guard
            async def ask(self, n: int) -> int:
                nonlocal told
                told += 1
                return n

        agent, other = Agent(), Agent()
        for _ in range(2):
            assert [item async for item in agent.tokens(3)] == [0, 1, 2]
            assert await agent.ask(5) == 5
        assert told == 2
        assert await other.ask(5) == 5
        assert told == 3

        service = CacheService("memory://")
        view = service.namespace("answers", ttl=60, key=("n",))
        shared = Guard("s", cache=view.cached)
        assert [await shared(looked_up)(7) for _ in range(2)] == [7, 7]
        assert shared.get_stats()["calls"] == 1
        await service.close()

    asyncio.run(main())


def test_what_a_fallback_answers_is_not_kept() -> None:
    async def main() -> None:
        clock = ManualClock()
        down = True
        excuses = []

        def excuse(error: Exception) -> str:
            excuses.append(error)
            return f"sorry: {error}"

        cache = cached(ttl=60, stale_if_error=600, clock=clock)
        guard = Guard("c", cache=cache, fallback=excuse, bulkhead=3)
        streams = Guard("s", cache=cached(), fallback=excuses_of_stream)

        class Agent:
            @guard
            async def ask(self, prompt: str) -> str:
                await asyncio.sleep(0)
                if down:
                    raise ConnectionError("down")
                return prompt

            @guard
            def ask_sync(self, prompt: str) -> str:
                if down:
                    raise ConnectionError("down")
                return prompt

            @streams
            async def stream(self) -> AsyncIterator[str]:
                if down:
                    raise ConnectionError("down")
                yield "item"

        agent = Agent()
        assert await agent.ask("a") == agent.ask_sync("a") == "sorry: down"
        assert await asyncio.gather(*[agent.ask("b") for _ in range(5)]) == ["sorry: down"] * 5
        assert [item async for item in agent.stream()] == ["sorry", "down"]
        # All who shared the call have an answer of their own.
        assert len(excuses) == 7
        stats = guard.get_stats()
        assert (stats["calls"], stats["failures"], stats["fallbacks"]) == (3, 3, 7)
        down = False
        assert await agent.ask("a") == agent.ask_sync("a") == "a"
        assert [item async for item in agent.stream()] == ["item"]
        assert len(excuses) == 7
        down = True
        assert await agent.ask("a") == agent.ask_sync("a") == "a"
        assert [item async for item in agent.stream()] == ["item"]
        # Better an old answer than an excuse.
        clock.advance(61)
        assert await agent.ask("a") == agent.ask_sync("a") == "a"
        assert len(excuses) == 7
        # Results belong to their instance, and are reached by what the cache offers.
        assert await Agent().ask("a") == "sorry: down"
        method: Any = agent.ask
        assert method.cache_invalidate("a")
        assert await agent.ask("a") == "sorry: down"
        assert "guarded async function" in repr(Agent.ask)
        assert Agent.ask.__name__ == "ask"
        assert inspect.iscoroutinefunction(agent.ask)

    asyncio.run(main())


def test_what_is_no_cache() -> None:
    for wrong in (5, "memory://", dict, Cache, object()):
        with pytest.raises(TypeError, match="cache: expected a ferrogate"):
            Guard("c", cache=wrong)  # type: ignore[arg-type]
