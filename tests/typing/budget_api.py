"""Type-checked, never run: what a user's checker sees of budgets."""

from __future__ import annotations

from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import assert_type

from ferrogate import Budget, BudgetAlert, BudgetExceededError, LLMLimiter
from ferrogate.budget import BudgetReservation, BudgetUsage, Denial
from ferrogate.testing import ManualClock

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


def alarm(alert: BudgetAlert) -> None:
    assert_type(alert.budget, Budget)
    assert_type(alert.resets_at, datetime)


budget = Budget(
    "50 USD/day",
    "500 USD/month",
    key=tenant.get,
    store=Path("money.db"),
    name="llm",
    timezone="Europe/Berlin",
    hard=False,
    on_exceeded=alarm,
    on_threshold=print,
    threshold=0.9,
    max_keys=1_000,
    clock=ManualClock(),
    enabled=True,
)
assert_type(budget.try_reserve(0.5), BudgetReservation | Denial)
assert_type(budget.reserve(0.5, key="acme"), BudgetReservation)
assert_type(budget.spend(0.5), None)
assert_type(budget.spent("acme", period="month"), float)
assert_type(budget.remaining(), float)
assert_type(budget.resets_at, datetime)
assert_type(budget.usage(), dict[str, BudgetUsage])
assert_type(budget.reset(all_keys=True), bool)
assert_type(budget.get_stats()["limits"], dict[str, float])
assert_type(LLMLimiter(budget=budget).budget, Budget | None)

answer = budget.try_reserve(0.5)
if answer:
    assert_type(answer.settle(0.25), bool)
else:
    assert_type(answer.retry_after, float)


def told(error: BudgetExceededError) -> None:
    assert_type(error.limit, str | None)
    assert_type(error.resets_at, datetime | None)


async def use() -> None:
    async with budget.reserve(0.5) as money:
        assert_type(money, BudgetReservation)
    with budget.reserve(0.5) as money:
        assert_type(money.release(), bool)
