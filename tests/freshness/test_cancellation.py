"""Whoever is cancelled at whatever point, every state of an entry stays whole (HOSTILE 14, 15)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from child import SEED, patience, times
from sources import Source

from ferrogate import cached

Run = Callable[..., Any]
ROUNDS = times(300, 20_000)
OPTIONS: dict[str, Any] = {
    "ttl": 10,
    "stale_while_revalidate": 10,
    "stale_if_error": 30,
    "negative_ttl": {LookupError: 3},
    "early_refresh": 1.0,
    "ttl_jitter": 0.5,
}


@pytest.mark.soak
@pytest.mark.timeout(patience(0.02, ROUNDS))
@pytest.mark.parametrize("single_flight", [True, False])
def test_cancellation_sweep(run: Run, source: Source, single_flight: bool) -> None:
    turn = random.Random(SEED)

    @cached(clock=source.clock, single_flight=single_flight, **OPTIONS)
    async def f(x: int) -> int:
        for _ in range(turn.randrange(4)):
            source.clock.advance(turn.random())
            await asyncio.sleep(0)
        kind = turn.randrange(6)
        if kind == 0:
            raise LookupError(x)
        if kind == 1:
            raise ValueError(x)
        return x

    async def main() -> None:
        for _ in range(ROUNDS):
            source.clock.advance(turn.choice((0, 1, 1, 4, 11, 25, 60)))
            tasks = [
                asyncio.create_task(turn.choice((f, f, f, f.cache_refresh))(turn.randrange(2)))
                for _ in range(turn.randrange(1, 6))
            ]
            for _ in range(turn.randrange(6)):
                await asyncio.sleep(0)
                turn.choice(tasks).cancel()
                if turn.randrange(8) == 0:
                    f.cache_invalidate(0)
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(result, int | LookupError | ValueError | asyncio.CancelledError)
        # Refreshes that nobody waits for end by themselves.
        for _ in range(10):
            await asyncio.sleep(0)
        assert f.cache.get_stats()["loading"] == 0
        counted = f.cache.get_stats()
        for counter in ("stale_hits", "negative_hits", "refreshes", "stale_on_error"):
            assert counted[counter] > 0, (counter, counted)  # type: ignore[literal-required]

    run(main())


def test_completion_and_cancellation_in_the_same_tick(run: Run, source: Source) -> None:
    f = source.acached(**OPTIONS | {"early_refresh": None})

    async def main() -> None:
        await f()
        for n in range(500):
            source.clock.advance(15 if n % 2 else 35)
            source.error = LookupError() if n % 3 == 0 else None
            task = asyncio.create_task(f())
            for _ in range(n % 4):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert f.cache.get_stats()["loading"] == 0

    run(main())
