"""A grant that nobody ever awaited comes back."""

from __future__ import annotations

import asyncio
import gc

import pytest

from ferrogate import RateLimiter


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
