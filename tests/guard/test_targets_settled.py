"""What an attempt at a target is settled with, and how it is judged."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from guarding import on_virtual_time

from ferrogate import (
    CircuitBreaker,
    Guard,
    Hedge,
    LLMLimiter,
    Outcome,
    RetryBudget,
    RetryPolicy,
    Target,
)
from ferrogate.testing import ManualClock


def spent(limiter: LLMLimiter) -> float:
    return float(limiter.get_stats()["dimensions"]["usd"]["used"])


@pytest.mark.parametrize(
    ("price", "told", "cost"),
    [
        ((1.0, 2.0), {"input_tokens": 100_000, "output_tokens": 50_000}, 0.2),
        ((1.0, 2.0), {"input_tokens": 100_000, "output_tokens": 50_000, "cost_usd": 0.07}, 0.07),
        # As reserved, where nobody says: 10 tokens in, 20 out.
        ((1.0, 2.0), {"input_tokens": 100_000}, 0.00005),
        (0.25, {}, 0.25),
    ],
)
def test_money_is_settled_by_a_target_s_price(
    price: Any, told: dict[str, Any], cost: float
) -> None:
    async def main(clock: ManualClock) -> None:
        limiter = LLMLimiter(usd_per_minute=10.0, clock=clock)
        guard = Guard(
            "g",
            targets=[Target("a", 1, limiter=limiter, price=price)],
            estimate=lambda: {"input_tokens": 10, "output_tokens": 20},
            usage=lambda _: told,
            clock=clock,
        )

        async def ask(*, target: Target[int]) -> int:
            return target.value

        assert await guard.call(ask) == 1
        assert spent(limiter) == pytest.approx(cost)

    on_virtual_time(main)


def test_the_guard_s_own_price_counts_for_more() -> None:
    limiter = LLMLimiter(usd_per_minute=10.0)
    targets = [Target("a", 1, limiter=limiter, price=(1.0, 2.0))]
    guard = Guard("g", targets=targets, price=lambda _: 0.5, usage=lambda _: {"input_tokens": 9})
    assert guard.call_sync(lambda *, target: target.value) == 1
    assert spent(limiter) == pytest.approx(0.5)


def test_a_first_call_stays_judged_by_its_own_target_when_the_second_fails() -> None:
    async def main(clock: ManualClock) -> None:
        def judge(result: object, _: object) -> Outcome | None:
            return Outcome.FAILURE if result == "bad" else None

        made: list[str] = []

        async def ask(*, target: Target[int]) -> str:
            made.append(target.name)
            if len(made) == 2:
                await asyncio.sleep(10)
                raise ConnectionError
            await asyncio.sleep(5)
            return "bad" if len(made) < 4 else "good"

        breakers = [CircuitBreaker(name, clock=clock, classify=judge) for name in ("a", "b")]
        guard = Guard(
            "g",
            targets=[Target(one.name, 1, breaker=one) for one in breakers],
            hedge=Hedge(delay=2, budget=RetryBudget(1.0, clock=clock)),
            retry=RetryPolicy(3, base=0, clock=clock),
            clock=clock,
        )
        assert await guard.call(ask) == "good"
        stats = guard.get_stats()
        assert (stats["failures"], stats["retries"], stats["successes"]) == (1, 1, 1)
        assert made[:2] == ["a", "b"]

    on_virtual_time(main)
