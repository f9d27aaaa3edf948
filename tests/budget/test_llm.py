"""`LLMLimiter(budget=)` and a guard over it: money is reserved with everything else."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from ferrogate import (
    Budget,
    BudgetExceededError,
    Guard,
    LLMLimiter,
    RateLimitExceeded,
    Recording,
)
from ferrogate.budget import Denial
from ferrogate.testing import ManualClock, VirtualTimeLoop

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC).timestamp()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON)


@pytest.fixture
def budget(clock: ManualClock) -> Budget:
    return Budget("1 USD/day", name="money", clock=clock)


@pytest.fixture
def limiter(clock: ManualClock, budget: Budget) -> LLMLimiter:
    return LLMLimiter("llm", requests_per_minute=2, budget=budget, clock=clock)


def test_money_is_reserved_and_settled_with_the_rest(limiter: LLMLimiter, budget: Budget) -> None:
    assert limiter.budget is budget
    reservation = limiter.reserve_sync(input_tokens=5, cost_usd=0.25)
    assert budget.spent() == 0.25
    reservation.settle(cost_usd=0.125)
    assert budget.spent() == 0.125
    limiter.reserve_sync(cost_usd=0.5).release()
    assert budget.spent() == 0.125
    stats = budget.get_stats()
    assert (stats["settled"], stats["released"], stats["open"]) == (1, 1, 0)


def test_what_is_not_told_was_as_reserved(limiter: LLMLimiter, budget: Budget) -> None:
    limiter.reserve_sync(cost_usd=0.25).settle(input_tokens=9)
    with limiter.reserve_sync(cost_usd=0.25):
        pass
    assert budget.spent() == 0.5


def test_without_money_nothing_is_reserved(limiter: LLMLimiter, budget: Budget) -> None:
    budget.spend(0.9)
    denial = limiter.try_reserve(cost_usd=0.2)
    assert isinstance(denial, Denial)
    assert (denial.reason, denial.dimension) == ("budget exceeded", "usd/day")
    assert denial.retry_after == 12 * 3600
    for _ in range(5):
        with pytest.raises(BudgetExceededError, match="money"):
            limiter.reserve_sync(cost_usd=0.2)
    stats = limiter.get_stats()
    assert (stats["granted"], stats["rejected"]) == (0, 6)
    assert stats["dimensions"]["requests"]["used"] == 0
    assert limiter.try_reserve(cost_usd=0.1)


def test_without_permits_no_money_is_taken(limiter: LLMLimiter, budget: Budget) -> None:
    for _ in range(2):
        limiter.reserve_sync(cost_usd=0.1).settle()
    assert limiter.try_reserve(cost_usd=0.1).reason == "limited"  # type: ignore[union-attr]
    with pytest.raises(RateLimitExceeded):
        limiter.reserve_sync(cost_usd=0.1, timeout=1)
    assert budget.spent() == 0.2
    assert budget.get_stats()["open"] == 0


def test_who_waits_has_the_money_already(
    clock: ManualClock, limiter: LLMLimiter, budget: Budget
) -> None:
    async def main() -> None:
        for _ in range(2):
            (await limiter.reserve(cost_usd=0.2)).settle()
        waiting = asyncio.create_task(limiter.reserve(cost_usd=0.5))
        leaving = asyncio.create_task(limiter.reserve(cost_usd=0.1))
        await asyncio.sleep(0)
        assert budget.spent() == 1
        with pytest.raises(BudgetExceededError):
            await limiter.reserve(cost_usd=0.01)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert budget.spent() == 0.9
        reservation = await waiting
        assert reservation.settle(cost_usd=0.3)
        assert budget.spent() == 0.7
        unawaited: Any = limiter.reserve(cost_usd=0.1)
        assert budget.spent() == 0.8
        unawaited.close()
        assert budget.spent() == 0.7

    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        runner.run(main())
    assert budget.get_stats()["open"] == 0


def test_tenants_have_accounts_if_the_budget_has_keys(clock: ManualClock) -> None:
    shared = Budget("1 USD/day", clock=clock)
    apart = Budget("1 USD/day", key="nobody", clock=clock)
    for budget in (shared, apart):
        limiter = LLMLimiter(budget=budget, clock=clock)
        limiter.reserve_sync(cost_usd=0.6, tenant="a").settle()
        limiter.reserve_sync(cost_usd=0.2).settle()
    assert (shared.spent(), shared.spent("a")) == (0.8, 0)
    assert (apart.spent(), apart.spent("a")) == (0.2, 0.6)
    with pytest.raises(BudgetExceededError) as raised:
        LLMLimiter(budget=apart, clock=clock).reserve_sync(cost_usd=0.6, tenant="a")
    assert raised.value.key == "a"


def test_the_cost_of_a_model_is_learned_without_a_limit_on_money(clock: ManualClock) -> None:
    budget = Budget("10 USD/day", clock=clock)
    limiter = LLMLimiter(budget=budget, clock=clock)
    for _ in range(20):
        limiter.reserve_sync(model="m").settle(cost_usd=0.1)
    assert limiter.reserve_sync(model="m").cost_usd == pytest.approx(0.1, rel=0.2)
    # An estimate is never what makes a call impossible.
    budget.update("0.05 USD/day")
    budget.reset()
    assert limiter.reserve_sync(model="m")
    with pytest.raises(ValueError, match=r"cost_usd: expected at most the 0\.05 USD/day"):
        limiter.reserve_sync(model="m", cost_usd=0.06)


def test_a_call_whose_cost_nobody_knows_stops_when_all_is_spent(
    limiter: LLMLimiter, budget: Budget
) -> None:
    limiter.reserve_sync(model="m").settle(cost_usd=1)
    with pytest.raises(BudgetExceededError):
        limiter.reserve_sync(model="new")
    assert budget.spent() == 1


def test_a_guard_pays_for_what_it_has_called(clock: ManualClock, budget: Budget) -> None:
    limiter = LLMLimiter(budget=budget, clock=clock)
    calls = 0

    def price(answer: Any) -> float:
        return float(answer.cost)

    guard = Guard("llm", limiter=limiter, price=price, fallback=None)

    @guard
    async def ask(prompt: str) -> Any:
        nonlocal calls
        calls += 1
        if prompt == "fail":
            raise ConnectionError
        return SimpleNamespace(cost=0.4)

    async def main() -> None:
        for _ in range(3):
            await ask("hello")
        with pytest.raises(BudgetExceededError):
            await ask("hello")

    asyncio.run(main())
    assert calls == 3
    assert budget.spent() == pytest.approx(1.2)


def test_a_retry_does_not_wait_for_tomorrow(clock: ManualClock, budget: Budget) -> None:
    from ferrogate import RetryPolicy

    budget.spend(1)
    guard = Guard(
        "llm",
        limiter=LLMLimiter(budget=budget, clock=clock),
        retry=RetryPolicy(attempts=5, base=20),
    )

    @guard
    async def ask() -> None:
        raise AssertionError

    with pytest.raises(BudgetExceededError):
        asyncio.run(ask())
    assert budget.get_stats()["rejected"] == 1


def test_a_dry_run_spends_nobodys_money(clock: ManualClock) -> None:
    told: list[object] = []
    budget = Budget("1 USD/day", key=lambda: "acme", on_exceeded=told.append, clock=clock)
    recording = Recording()
    guard = Guard(
        "llm",
        limiter=LLMLimiter(budget=budget, clock=clock),
        estimate=lambda: {"cost_usd": 0.2},
        price=lambda _: 0.2,
        recording=recording,
        clock=clock,
    )

    @guard
    def ask() -> str:
        return "hello"

    for _ in range(4):
        ask()
    same = guard.dry_run(recording)
    less = LLMLimiter(budget=Budget("0.5 USD/day", key="acme", on_exceeded=told.append))
    fewer = guard.dry_run(recording, limiter=less)
    assert (same.replayed.answered, fewer.replayed.answered, fewer.replayed.refused) == (4, 2, 2)
    assert (budget.spent(), less.budget.spent() if less.budget else None) == (0.8, 0)
    assert told == []


def test_a_disabled_limiter_leaves_the_budget_alone(clock: ManualClock, budget: Budget) -> None:
    limiter = LLMLimiter(budget=budget, clock=clock, enabled=False)
    limiter.reserve_sync(cost_usd=5).settle()
    assert budget.spent() == 0


def test_what_is_no_budget_is_refused() -> None:
    with pytest.raises(TypeError, match="budget: expected a Budget or None, got int"):
        LLMLimiter(budget=5)  # type: ignore[arg-type]
