"""A cached coroutine function whose load a test holds and ends."""

from __future__ import annotations

import asyncio
from typing import Any

from ferrogate import cached


class Loader:
    """A cached function with a gate before its end, and its history."""

    def __init__(self, result: Any = "value", **options: Any) -> None:
        self.calls = 0
        self.cancelled = 0
        self.cleaned = 0
        self.result = result
        self.gate = asyncio.Event()
        self.started = asyncio.Event()

        @cached(**options)
        async def load(x: int = 0) -> Any:
            self.calls += 1
            self.started.set()
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                self.cleaned += 1
                raise
            if isinstance(self.result, BaseException):
                raise self.result
            return self.result

        self.load = load

    async def tasks(self, count: int) -> list[asyncio.Task[Any]]:
        tasks = [asyncio.create_task(self.load(0)) for _ in range(count)]
        await self.started.wait()
        await asyncio.sleep(0)
        return tasks


class LoadError(Exception):
    pass
