"""Arrival is the call of ``acquire()``, whenever it is awaited."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from ferrogate import RateLimiter, RateLimitExceeded
from ferrogate.testing import ManualClock

ALGORITHMS = pytest.mark.parametrize("algorithm", ["sliding_window", "gcra", "token_bucket"])


async def turns(loops: int = 4) -> None:
    for _ in range(loops):
        await asyncio.sleep(0)


@ALGORITHMS
@pytest.mark.parametrize("how", ["create_task", "gather", "task of a coroutine"])
def test_a_large_call_is_served_before_later_small_ones(algorithm: Any, how: str) -> None:
    """Regression: a refused call joined the line only when its coroutine first ran, so that
    twenty later ones for which there was room overtook it."""
    clock = ManualClock()
    limiter = RateLimiter("100/second", algorithm=algorithm, clock=clock)
    order: list[int] = []

    async def await_it(number: int, acquiring: Any) -> None:
        await acquiring
        order.append(number)

    async def main() -> None:
        assert limiter.try_acquire(50)
        calls = [limiter.acquire(100 if number == 0 else 1) for number in range(21)]
        if how == "gather":
            tasks = [asyncio.ensure_future(asyncio.gather(*calls))]
        elif how == "create_task":
            tasks = [asyncio.create_task(call) for call in calls]
            for number, task in enumerate(tasks):
                task.add_done_callback(lambda _, number=number: order.append(number))
        else:
            # Whoever is awaited first has not come first.
            tasks = [asyncio.create_task(await_it(*each)) for each in enumerate(calls)][::-1]
        await turns()
        assert order == []
        assert limiter.get_stats()["waiting"] == 21
        for _ in range(300):
            clock.advance(0.01)
            await turns()
        assert all(task.done() for task in tasks)

    asyncio.run(main())
    assert order == ([] if how == "gather" else list(range(21)))


@ALGORITHMS
def test_slots_are_given_in_the_order_of_the_calls(algorithm: Any) -> None:
    limiter = RateLimiter("100/second", burst=1, algorithm=algorithm)
    order: list[int] = []

    async def use(number: int, entering: Any) -> None:
        assert await entering is limiter
        order.append(number)
        await limiter.__aexit__(None, None, None)

    async def main() -> None:
        async with limiter:
            calls = [(n, limiter.__aenter__()) for n in range(5)]
            tasks = [asyncio.create_task(use(*call)) for call in reversed(calls)]
            await turns()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert order == list(range(5))


def test_the_deadline_counts_from_the_call() -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/minute", clock=clock)

    async def main() -> None:
        limiter.try_acquire()
        acquiring = limiter.acquire(timeout=30)
        clock.advance(31)
        with pytest.raises(RateLimitExceeded):
            await acquiring

    asyncio.run(main())
    assert limiter.get_stats()["waiting"] == 0


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_place_in_line_that_nobody_awaits_is_given_up() -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/minute", burst=1, clock=clock)

    async def main() -> None:
        limiter.try_acquire()
        places = [limiter.acquire(), limiter.__aenter__()]
        behind = asyncio.create_task(limiter.acquire())
        cancelled = asyncio.create_task(limiter.acquire())
        await turns()
        never_started = asyncio.create_task(limiter.acquire())
        never_started.cancel()
        cancelled.cancel()
        # Both still live, and so do their tracebacks.
        await asyncio.wait([never_started, cancelled])
        assert limiter.get_stats()["waiting"] == 3
        # One is dropped in the line, the other with a permit that it never picked up.
        places.pop().close()
        clock.advance(60)
        assert limiter.get_stats()["windows"] == {"1/minute": 1}
        del places
        gc.collect()
        await asyncio.wait_for(behind, 5)

    asyncio.run(main())
    stats = limiter.get_stats()
    assert (stats["waiting"], stats["concurrent_requests"]) == (0, 0)
    assert stats["windows"] == {"1/minute": 1}


def test_a_full_line_is_told_where_it_is_awaited() -> None:
    limiter = RateLimiter("1/hour", max_waiters=1)

    async def main() -> None:
        limiter.try_acquire()
        first = asyncio.create_task(limiter.acquire())
        refused = limiter.acquire()
        with pytest.raises(RateLimitExceeded, match="queue full"):
            await refused
        first.cancel()

    asyncio.run(main())
    assert limiter.get_stats()["rejected"] == 1
