"""Servers on virtual time with a known knee, and clients that keep a limiter in use."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

from ferrogate import LLMLimiter
from ferrogate.testing import ManualClock, VirtualTimeLoop

PREFILL = 0.2
PER_TOKEN = 0.02


class BatchingServer:
    """Serves ``width`` streams at a time; whoever comes beyond that waits for a place.

    The first token takes ``PREFILL`` seconds, each further one ``PER_TOKEN``. Below the knee
    nothing shows the load, beyond it the wait for a place does, before the first token.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.running = 0
        self.most = 0
        self.tokens = 0
        self._line: list[asyncio.Future[None]] = []

    def widen(self, width: int) -> None:
        self.width = width
        self._admit()

    def _admit(self) -> None:
        while self._line and self.running < self.width:
            place = self._line.pop(0)
            if not place.done():
                self.running += 1
                place.set_result(None)

    async def _enter(self) -> None:
        place = asyncio.get_running_loop().create_future()
        self._line.append(place)
        self._admit()
        self.most = max(self.most, self.running + len(self._line))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave()
            raise

    async def stream(self, tokens: int) -> AsyncIterator[str]:
        await self._enter()
        try:
            await asyncio.sleep(PREFILL)
            yield "first"
            # All others in one step: nobody looks at them one by one.
            await asyncio.sleep(PER_TOKEN * (tokens - 1))
            self.tokens += tokens
            yield "last"
        finally:
            self._leave()

    def _leave(self) -> None:
        self.running -= 1
        self._admit()

    def capacity(self, tokens: float) -> float:
        """Tokens a second, with answers of so many."""
        return self.width * tokens / (PREFILL + PER_TOKEN * (tokens - 1))


class ComputingServer:
    """Takes everybody, and shares so much compute: beyond ``width`` streams each gets slower."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.running = 0

    async def stream(self, tokens: int) -> AsyncIterator[str]:
        self.running += 1
        try:
            await asyncio.sleep(PREFILL)
            yield "first"
            for _ in range(10):
                slowed = max(1.0, self.running / self.width)
                await asyncio.sleep(PER_TOKEN * (tokens - 1) / 10 * slowed)
            yield "last"
        finally:
            self.running -= 1


async def keep_busy(
    limiter: LLMLimiter,
    server: BatchingServer | ComputingServer,
    clients: int,
    tokens: Callable[[random.Random], int],
) -> list[asyncio.Task[None]]:
    """So many clients that always have one more request."""
    draws = random.Random(1)

    async def client() -> None:
        while True:
            length = tokens(draws)
            reserved = await limiter.reserve(input_tokens=10, output_tokens=length)
            async for item in server.stream(length):
                if item == "first":
                    reserved.first_token()
            reserved.settle(input_tokens=10, output_tokens=length)

    return [asyncio.create_task(client()) for _ in range(clients)]


async def stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def watched(seconds: int, limiter: LLMLimiter) -> list[int]:
    """The limit at each second's end, but while it is halved to find out what is usual."""
    seen = []
    for _ in range(seconds):
        await asyncio.sleep(1)
        found = limiter.get_stats()["adaptive_concurrency"]
        assert found is not None
        if not found["probing"]:
            seen.append(found["limit"])
    return seen


def short(draws: random.Random) -> int:
    """100 tokens on average."""
    return draws.randint(50, 150)


def long(draws: random.Random) -> int:
    """1,000 tokens on average."""
    return draws.randint(500, 1_500)


def on(clock: ManualClock, main: Callable[[], object]) -> None:
    """Runs the coroutine function ``main`` on the clock."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        runner.run(main())  # type: ignore[arg-type]
