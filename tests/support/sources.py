"""Something to cache that says how often it was read, and a clock beside it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ferrogate import _refresh, cached
from ferrogate.testing import ManualClock


class Source:
    """What a cached function reads: a version per call, and errors on request."""

    def __init__(self) -> None:
        self.clock = ManualClock(1000)
        self.calls = 0
        self.error: BaseException | None = None

    def read(self, x: object = None) -> int:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.calls

    async def aread(self, x: object = None) -> int:
        await asyncio.sleep(0)
        return self.read(x)

    def cached(self, **options: Any) -> Any:
        """`read`, cached for 10 s."""
        return cached(**{"ttl": 10, "clock": self.clock, **options})(lambda x=None: self.read(x))

    def acached(self, **options: Any) -> Any:
        """`aread`, cached for 10 s."""

        async def aread(x: object = None) -> int:
            return await self.aread(x)

        return cached(**{"ttl": 10, "clock": self.clock, **options})(aread)


def stats(function: Any) -> dict[str, int]:
    """The counters that are not zero, without those that every lookup moves."""
    counted = function.cache.get_stats()
    names = ("stale_hits", "negative_hits", "refreshes", "refresh_failures", "stale_on_error")
    return {name: counted[name] for name in names if counted[name]}


async def rested() -> None:
    """Waits until no refresh is under way in a thread, nor in a task of this loop."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        _, pending = await asyncio.wait(others, timeout=10)
        assert not pending
    settled()


def settled() -> None:
    """Waits until no refresh is under way in a thread."""
    threads, deadline = _refresh._threads, time.monotonic() + 10
    while len(threads._alive) > threads._waiting:
        assert time.monotonic() < deadline
        time.sleep(0.0005)
