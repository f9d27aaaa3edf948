"""Fair between tenants: a flood of 1000:1, weights, and big requests among small ones."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import pytest
from child import SEED, patience

from ferrogate import LLMLimiter
from ferrogate.testing import ManualClock

RunVirtual = Callable[[Any], Any]
MINUTES = 4


def jain(shares: list[float]) -> float:
    """1 when all are alike, 1/n when one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def max_min(demands: dict[str, float], capacity: float) -> dict[str, float]:
    """Everybody's fair share: what the modest leave goes to the others."""
    shares: dict[str, float] = {}
    for number, (tenant, demand) in enumerate(sorted(demands.items(), key=lambda item: item[1])):
        shares[tenant] = min(demand, (capacity - sum(shares.values())) / (len(demands) - number))
    return shares


async def traffic(
    limiter: LLMLimiter, arrivals: list[tuple[float, str, int]], horizon: float
) -> Counter[str]:
    """Who was granted how many tokens until ``horizon``."""
    received: Counter[str] = Counter()

    async def call(at: float, tenant: str, tokens: int) -> None:
        await asyncio.sleep(at)
        reserved = await limiter.reserve(input_tokens=tokens, output_tokens=0, tenant=tenant)
        received[tenant] += tokens
        reserved.settle()

    tasks = [asyncio.create_task(call(*arrival)) for arrival in arrivals]
    await asyncio.sleep(horizon)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return received


def flooded(run: RunVirtual, clock: ManualClock, fairness: Literal["fifo", "weighted"]) -> float:
    """Jain's index over received ÷ fair share: nine tenants, and one who sends 1000 times more."""
    limiter = LLMLimiter(
        input_tokens_per_minute=10_000,
        requests_per_minute=1_000,
        fairness=fairness,
        clock=clock,
    )
    draw = random.Random(SEED)
    arrivals = [
        (draw.random() * 60 * MINUTES, f"tenant {n}", 100) for n in range(9) for _ in range(20)
    ]
    arrivals += [(draw.random() * 60 * MINUTES, "flood", 100) for _ in range(20_000)]
    demands: dict[str, float] = dict(Counter(tenant for _, tenant, _ in arrivals))
    demands = {tenant: 100 * demand for tenant, demand in demands.items()}
    # What arrives last is served in the next window.
    horizon = 60 * (MINUTES + 1) + 1.0
    received = run(traffic(limiter, sorted(arrivals), horizon))
    assert limiter.get_stats()["waiting"] == limiter.get_stats()["open"] == 0
    granted = sum(received.values())
    # The first window only fills as they arrive.
    assert 10_000 * (MINUTES + 1) < granted <= 10_000 * (MINUTES + 2)
    fair = max_min(demands, granted)
    return jain([received[tenant] / share for tenant, share in fair.items()])


@pytest.mark.timeout(patience(30))
def test_a_flood_of_a_thousand_to_one(run_virtual: RunVirtual, clock: ManualClock) -> None:
    assert flooded(run_virtual, clock, "weighted") >= 0.95


@pytest.mark.timeout(patience(30))
def test_in_order_of_arrival_a_flood_takes_everything(
    run_virtual: RunVirtual, clock: ManualClock
) -> None:
    assert flooded(run_virtual, clock, "fifo") < 0.5


def test_weights_and_sizes(run_virtual: RunVirtual, clock: ManualClock) -> None:
    limiter = LLMLimiter(
        input_tokens_per_minute=10_000,
        fairness="weighted",
        weights={"double": 2.0, "half": 0.5},
        clock=clock,
    )
    # Until somebody waits, there is nothing to be fair about.
    limiter.reserve_sync(input_tokens=10_000, tenant="nobody").settle()
    arrivals = [(0.0, "double", 100) for _ in range(1_000)]
    arrivals += [(0.0, "big", 1_000) for _ in range(100)]
    arrivals += [(0.0, "half", 10) for _ in range(5_000)]
    received = run_virtual(traffic(limiter, arrivals, 60 * 10 + 1.0))
    assert sum(received.values()) == pytest.approx(100_000, abs=1_000)
    total = sum(received.values()) / 3.5
    assert received["double"] / total == pytest.approx(2, rel=0.06)
    assert received["big"] / total == pytest.approx(1, rel=0.06)
    assert received["half"] / total == pytest.approx(0.5, rel=0.06)


def test_first_come_first_served_whatever_the_size(
    run_virtual: RunVirtual, clock: ManualClock
) -> None:
    limiter = LLMLimiter(input_tokens_per_minute=100, clock=clock)
    order: list[int] = []

    async def call(number: int, tokens: int) -> None:
        reserved = await limiter.reserve(input_tokens=tokens)
        order.append(number)
        reserved.settle()

    async def main() -> None:
        limiter.reserve_sync(input_tokens=1).settle()
        async with asyncio.TaskGroup() as group:
            group.create_task(call(0, 100))
            for number in range(1, 21):
                group.create_task(call(number, 1))
            await asyncio.sleep(0)
            denied = limiter.try_reserve(input_tokens=1)
            assert not denied
            assert denied.reason == "queued"

    run_virtual(main())
    assert order == list(range(21))
    assert 120 <= clock.now() < 120.001


def test_a_full_table_of_tenants_denies_and_says_so(
    run_virtual: RunVirtual, clock: ManualClock
) -> None:
    limiter = LLMLimiter(
        requests_per_minute=1, fairness="weighted", max_tenants=2, max_waiters=3, clock=clock
    )

    async def main() -> None:
        limiter.reserve_sync(tenant="a").settle()
        waiting = [asyncio.create_task(limiter.reserve(tenant=tenant)) for tenant in "ab"]
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError, match="tenant table full"):
            await limiter.reserve(tenant="c")
        waiting.append(asyncio.create_task(limiter.reserve(tenant="b")))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError, match="queue full"):
            await limiter.reserve(tenant="b")
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert limiter.get_stats()["waiting"] == 0

    run_virtual(main())
