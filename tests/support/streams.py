"""Upstreams for cached async generators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any


class Upstream:
    """Counts what it is asked; ``fail_at`` and ``gates`` say what becomes of it."""

    def __init__(self, chunks: int = 10, fail_at: int | None = None) -> None:
        self.chunks, self.fail_at = chunks, fail_at
        self.calls = self.closed = 0
        self.gates: dict[int, asyncio.Event] = {}

    async def stream(self, prompt: str = "q") -> AsyncGenerator[str, None]:
        self.calls += 1
        try:
            for number in range(1, self.chunks + 1):
                if number in self.gates:
                    await self.gates[number].wait()
                if number == self.fail_at:
                    raise ConnectionError(f"at chunk {number}")
                await asyncio.sleep(0)
                yield f"{prompt}{number}"
        finally:
            self.closed += 1


async def collect(stream: AsyncGenerator[Any, None]) -> list[Any]:
    return [chunk async for chunk in stream]


def everything(count: int = 10) -> list[str]:
    return [f"q{number}" for number in range(1, count + 1)]
