"""Loops that are closed, and interpreters at their limit, with waiters in the line."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from waiting import eventually

from ferrogate import RateLimiter
from ferrogate.testing import ManualClock

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@contextmanager
def dead_loop(waiters: int, enter: Any) -> Iterator[None]:
    """A closed loop whose tasks wait and are still referenced."""
    loop = asyncio.new_event_loop()
    # asyncio itself reports pending tasks that go.
    loop.set_exception_handler(lambda *_: None)
    tasks = [loop.create_task(enter()) for _ in range(waiters)]
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    yield
    assert len(tasks) == waiters


def test_six_hundred_dead_waiters_keep_no_slot() -> None:
    """Regression: each dead waiter woke the next from inside its own wake, and at the recursion
    limit one of them was left with the slot."""
    limiter = RateLimiter("1000000/second", burst=1)

    async def use() -> None:
        async with limiter:
            pass

    limiter.__enter__()
    with dead_loop(600, use):
        assert limiter.get_stats()["waiting"] == 600
        limiter.__exit__(None, None, None)
        stats = limiter.get_stats()
        assert (stats["waiting"], stats["concurrent_requests"]) == (0, 0)
        assert limiter.try_acquire()
        with limiter:
            pass


@pytest.mark.parametrize("algorithm", ["sliding_window", "gcra", "token_bucket"])
def test_five_thousand_dead_waiters_keep_no_permit(algorithm: Any) -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/second", algorithm=algorithm, clock=clock)
    limiter.try_acquire()
    with dead_loop(5000, limiter.acquire):
        clock.advance(1)
        assert limiter.get_stats()["waiting"] == 0
        assert limiter.try_acquire()


def test_a_wake_at_the_recursion_limit_throws_nobody_out() -> None:
    """Regression: every RuntimeError of a wake, RecursionError too, passed for a closed loop."""
    for left in range(1, 12):
        limiter = RateLimiter(burst=1)
        answers: list[str] = []

        async def enter(limiter: RateLimiter = limiter, answers: list[str] = answers) -> None:
            await asyncio.wait_for(limiter.__aenter__(), 5)
            answers.append("entered")

        limiter.__enter__()
        thread = threading.Thread(target=lambda enter=enter: asyncio.run(enter()))
        thread.start()
        eventually(lambda limiter=limiter: limiter.get_stats()["waiting"] == 1)
        deep(sys.getrecursionlimit() - depth() - left, limiter)
        thread.join(6)
        assert answers == ["entered"], left
        assert limiter.get_stats()["concurrent_requests"] == 1


def test_a_dead_waiter_that_could_not_be_asked_keeps_nothing() -> None:
    for left in range(1, 12):
        limiter = RateLimiter(burst=1)

        async def use(limiter: RateLimiter = limiter) -> None:
            async with limiter:
                pass

        limiter.__enter__()
        with dead_loop(3, use):
            deep(sys.getrecursionlimit() - depth() - left, limiter)
            with limiter:
                pass
            assert limiter.get_stats()["waiting"] == 0


def depth() -> int:
    frame: Any = sys._getframe(1)
    count = 0
    while frame is not None:
        frame, count = frame.f_back, count + 1
    return count


def deep(levels: int, limiter: RateLimiter) -> None:
    """Releases the slot so many calls deep, or where it first can."""
    if levels > 0:
        try:
            deep(levels - 1, limiter)
        except RecursionError:
            pass
        else:
            return
    limiter.__exit__(None, None, None)
