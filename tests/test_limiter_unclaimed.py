"""A grant that nobody ever awaited comes back."""

from __future__ import annotations

import asyncio
import gc

import pytest

from ferrogate import RateLimiter
from ferrogate.testing import ManualClock


def rest(limiter: RateLimiter) -> tuple[int, int]:
    stats = limiter.get_stats()
    return stats["windows"]["1/hour"], stats["concurrent_requests"]


def test_dropped() -> None:
    limiter = RateLimiter("1/hour", burst=1)
    limiter.acquire()
    limiter.__aenter__()
    assert rest(limiter) == (0, 0)
    assert limiter.try_acquire()


def test_closed_and_thrown_into() -> None:
    limiter = RateLimiter("1/hour", burst=1)
    limiter.__aenter__().close()
    assert rest(limiter) == (0, 0)
    with pytest.raises(KeyError, match="thrown"):
        limiter.__aenter__().throw(KeyError("thrown"))
    assert rest(limiter) == (0, 0)


@pytest.mark.parametrize("algorithm", ["sliding_window", "gcra", "token_bucket"])
def test_a_task_cancelled_before_its_first_step(algorithm: str) -> None:
    limiter = RateLimiter("1/hour", burst=1, algorithm=algorithm)  # type: ignore[arg-type]

    async def main() -> None:
        for enter in (limiter.acquire, limiter.__aenter__):
            task = asyncio.create_task(enter())
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert rest(limiter) == (0, 0)
        async with limiter:
            assert rest(limiter) == (1, 1)
        assert rest(limiter) == (1, 0)

    asyncio.run(main())


@pytest.mark.parametrize("algorithm", ["sliding_window", "gcra", "token_bucket"])
def test_what_comes_back_late_is_no_second_burst(algorithm: str) -> None:
    """Regression: gcra and token_bucket took back what they had long regenerated."""
    clock = ManualClock()
    limiter = RateLimiter("10/minute", algorithm=algorithm, clock=clock)  # type: ignore[arg-type]
    unclaimed = [limiter.acquire() for _ in range(10)]
    clock.advance(120)
    assert sum(bool(limiter.try_acquire()) for _ in range(30)) == 10
    unclaimed.clear()
    assert not limiter.try_acquire()


@pytest.mark.parametrize("algorithm", ["sliding_window", "gcra", "token_bucket"])
def test_a_grant_that_is_cancelled_late_is_no_second_burst(algorithm: str) -> None:
    clock = ManualClock()
    limiter = RateLimiter("10/minute", algorithm=algorithm, clock=clock)  # type: ignore[arg-type]

    async def main() -> None:
        limiter.try_acquire(10)
        waiting = [asyncio.create_task(limiter.acquire(5)) for _ in range(2)]
        await asyncio.sleep(0)
        # Granted while the loop does not turn.
        clock.advance(60)
        clock.advance(60)
        assert sum(bool(limiter.try_acquire()) for _ in range(30)) == 10
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert not limiter.try_acquire()

    asyncio.run(main())


def test_a_waiter_gets_what_came_back() -> None:
    limiter = RateLimiter("1/hour")

    async def main() -> None:
        unclaimed = limiter.acquire()
        waiter = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        del unclaimed
        await asyncio.wait_for(waiter, 5)

    asyncio.run(main())


def test_an_awaited_grant_stays_spent() -> None:
    limiter = RateLimiter("1/hour")

    async def main() -> None:
        grant = limiter.acquire()
        await grant
        del grant
        gc.collect()

    asyncio.run(main())
    assert rest(limiter) == (1, 0)
