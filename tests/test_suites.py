"""Resetting and bypassing every component at once."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from collections.abc import AsyncIterator

import pytest

from ferrogate import (
    Cache,
    CacheService,
    CircuitBreaker,
    CircuitBreakerConfig,
    Guard,
    LLMLimiter,
    ProductionOptimizer,
    RateLimiter,
    RetryBudget,
    RetryPolicy,
    _suites,
)
from ferrogate.testing import ManualClock, bypass, reset_all


@pytest.mark.parametrize("algorithm", ["sliding_window", "token_bucket"])
def test_a_limiter_has_all_its_permits_again(algorithm: str) -> None:
    limiter = RateLimiter("5/minute", "20/hour", burst=2, algorithm=algorithm, max_keys=8)
    for key in (None, "a", "b"):
        assert limiter.try_acquire(5, key=key)
        assert not limiter.try_acquire(key=key)
    reset_all()
    for key in (None, "a", "b"):
        assert limiter.try_acquire(5, key=key), key
        assert not limiter.try_acquire(key=key)
    assert [str(limit) for limit in limiter.limits] == ["5/minute", "20/hour"]


def test_a_slot_in_use_stays_in_use() -> None:
    limiter = RateLimiter("2/minute", burst=2)
    with limiter:
        assert limiter.try_acquire()
        reset_all()
        assert limiter.get_stats()["concurrent_requests"] == 1
        assert limiter.try_acquire(2)
    assert limiter.get_stats()["concurrent_requests"] == 0


def test_on_a_clock_and_with_those_who_wait() -> None:
    clock = ManualClock()
    limiters = [
        RateLimiter("1/minute", algorithm=algorithm, clock=clock)  # type: ignore[arg-type]
        for algorithm in ("sliding_window", "gcra", "token_bucket")
    ]

    async def main() -> None:
        clock.advance(3600)
        for limiter in limiters:
            assert limiter.try_acquire()
            assert limiter.try_acquire(key="tenant")
            waiting = asyncio.create_task(limiter.acquire())
            await asyncio.sleep(0)
            # At this very moment of the clock, and whoever waits is let go.
            reset_all()
            await waiting
            assert not limiter.try_acquire()
            assert limiter.try_acquire(key="tenant")
            reset_all()
            assert limiter.try_acquire()
            # What was granted before counts nowhere any more.
            assert not limiter.try_acquire()
            assert limiter.get_stats()["acquired"] == 5

    asyncio.run(main())


def test_a_model_s_limits_are_as_new() -> None:
    clock = ManualClock()
    limiter = LLMLimiter(
        requests_per_minute=2, output_tokens_per_minute=1000, concurrency=1, clock=clock
    )

    async def main() -> None:
        for _ in range(10):
            with limiter.try_reserve(output_tokens=1) as spent:
                spent.settle(output_tokens=1)
            clock.advance(60)
        held = limiter.try_reserve(output_tokens=900)
        limiter.pause(30)
        waiting = asyncio.create_task(limiter.reserve(output_tokens=900))
        await asyncio.sleep(0)
        reset_all()
        granted = await waiting
        # What was held before comes back to nobody.
        assert held.settle(output_tokens=5)
        stats = limiter.get_stats()
        assert (stats["open"], stats["concurrent_requests"], stats["models"]) == (1, 1, 0)
        assert stats["dimensions"]["output_tokens"]["used"] == 900
        assert granted.release()
        # Nor does anybody know what answers take.
        reserved = limiter.try_reserve()
        assert reserved.output_tokens > 1
        assert limiter.get_stats()["granted"] == 13

    asyncio.run(main())


def test_a_budget_is_as_new() -> None:
    clock = ManualClock()
    budget = RetryBudget(0.1, min_per_second=0.1, window=10, usd_per_minute=1, clock=clock)
    new = budget.get_stats()
    clock.advance(5)
    assert budget._withdraw()
    assert not budget._withdraw()
    reset_all()
    assert {**budget.get_stats(), "retries": 0, "refused": 0} == new
    assert budget._withdraw()
    assert budget.get_stats()["retries"] == 2


def test_caches_and_generations_start_again() -> None:
    told: list[str] = []
    cache: Cache[str, int] = Cache(9, on_evict=lambda _key, _value, cause: told.append(cause))
    optimizer = ProductionOptimizer()
    cache["a"] = optimizer.cache["b"] = 1
    assert cache["a"] == 1
    optimizer.record_generation(success=True, time_seconds=1, tokens=1, retries=0, cost_usd=0.1)
    reset_all()
    assert (len(cache), len(optimizer.cache), cache.get_stats()["hits"]) == (0, 0, 0)
    assert optimizer.metrics.get_stats()["total_generations"] == 0
    assert len(told) == 1


def test_breakers_close_again() -> None:
    breaker = CircuitBreaker("b", CircuitBreakerConfig(minimum_calls=1))
    forced = CircuitBreaker("f")
    forced.force_open()
    with pytest.raises(OSError, match="down"):
        breaker.call_sync(fail)
    assert breaker.is_open()
    reset_all()
    assert (breaker.state, forced.state) == ("closed", "closed")
    assert breaker.get_stats()["calls"] == 0


def fail() -> None:
    raise OSError("down")


def test_a_bypass_calls_through_what_guards_calls() -> None:
    breaker = CircuitBreaker("b", CircuitBreakerConfig(minimum_calls=1))
    policy = RetryPolicy(attempts=3, base=0.0)
    guard = Guard("g", breaker=breaker, retry=policy, limiter=RateLimiter("1/hour"))
    calls: list[int] = []

    def broken() -> None:
        calls.append(1)
        raise OSError("down")

    async def fine(number: int) -> int:
        return number

    async def stream(number: int) -> AsyncIterator[int]:
        yield number

    decorated = [(owner(fine), owner(stream), owner(broken)) for owner in (breaker, policy, guard)]

    async def main() -> None:
        for owner in (breaker, policy, guard):
            assert await owner.call(fine, 7) == 7
            assert await owner.call(int, "8") == 8
        for function, items, _ in decorated:
            assert await function(7) == 7
            assert [item async for item in items(7)] == [7]
        async with breaker:
            pass

    with bypass():
        breaker.force_open()
        for _, _, function in decorated:
            with pytest.raises(OSError, match="down"):
                function()
        calls.clear()
        for owner in (breaker, policy, guard):
            with pytest.raises(OSError, match="down"):
                owner.call_sync(broken)
        asyncio.run(main())
        with breaker:
            pass
    assert len(calls) == 3
    assert policy.get_stats()["calls"] == breaker.get_stats()["rejected"] == 0
    breaker.reset()
    with pytest.raises(OSError, match="down"):
        policy.call_sync(broken)
    assert len(calls) == 6


def test_components_are_held_weakly() -> None:
    before = len(_suites._living)
    cache: Cache[int, int] = Cache(1)
    seen = weakref.ref(cache)
    assert len(_suites._living) == before + 1
    del cache
    gc.collect()
    assert seen() is None
    assert len(_suites._living) <= before


def test_one_that_fails_does_not_keep_the_others() -> None:
    broken = True

    class Broken:
        def _reset(self) -> None:
            if broken:
                raise OSError("no")

    first, cache, last = Broken(), Cache[int, int](1), Broken()
    _suites.register(first)
    cache[1] = 1
    _suites.register(last)
    with pytest.raises(ExceptionGroup) as caught:
        reset_all()
    broken = False
    assert len(caught.value.exceptions) == 2
    assert len(cache) == 0


def test_bypass_nests_and_ends_however_the_block_does() -> None:
    heard: list[bool] = []
    _suites.tell(heard.append)
    cache: Cache[int, int] = Cache(2)
    before = os.environ.get("FERROGATE_DISABLED")
    with pytest.raises(ZeroDivisionError), bypass():  # noqa: PT012
        with bypass():
            cache[1] = 1
        assert not Cache(1).enabled
        cache[1] = 1
        assert len(cache) == 0
        _ = 1 / 0
    _suites._listeners.remove(heard.append)
    assert heard == [True, False]
    assert os.environ.get("FERROGATE_DISABLED") == before
    cache[1] = 1
    assert cache == {1: 1}
    assert "set" not in vars(Cache)


def test_a_bypassed_service_loads_and_keeps_nothing() -> None:
    with CacheService("memory://") as service:
        service.set_sync("n", "key", "kept")
        calls: list[int] = []

        def load() -> str:
            calls.append(1)
            return "loaded"

        with bypass():
            assert [service.get_or_set_sync("n", "key", load) for _ in range(2)] == ["loaded"] * 2
            assert service.set_sync("n", "other", 1) is False
            assert service.get_sync("n", "other", "missed") == "missed"
            assert not service.exists_sync("n", "key")
            assert not service.delete_sync("n", "key")
        assert len(calls) == 2
        assert service.get_sync("n", "key") == "kept"
