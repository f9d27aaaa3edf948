"""How to call whatever a budget exports, for the tests that inject panics and watch memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ferrogate import Budget, _core
from ferrogate.testing import ManualClock

Recipe = Callable[[], Callable[[], object]]


def of_budget(call: Callable[[Budget], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        budget = Budget("1000 USD/day", "10000 USD/month", clock=ManualClock())
        return lambda: call(budget)

    return recipe


def of_reservation(call: Callable[[_core.BudgetReservation], object]) -> Recipe:
    return of_budget(lambda budget: call(budget.reserve(0.01)))


def finished(awaitable: Any) -> object:
    async def main() -> object:
        return await awaitable

    return asyncio.run(main())


def not_copied(budget: Budget) -> None:
    try:
        budget.__reduce__()
    except TypeError:
        return
    raise AssertionError


RECIPES: dict[str, Recipe] = {
    "Budget": lambda: lambda: Budget("1 USD/day"),
    "Budget.__reduce__": of_budget(not_copied),
    "Budget._after_fork": of_budget(lambda b: b._after_fork()),
    "Budget._forget": of_budget(lambda b: b.reset("key")),
    "Budget._stats": of_budget(lambda b: b.get_stats()),
    "Budget._update": of_budget(lambda b: b.update("2000 USD/day")),
    "Budget._usage": of_budget(lambda b: b.usage()),
    "Budget.remaining": of_budget(lambda b: b.remaining()),
    "Budget.reserve": of_budget(lambda b: b.reserve(0.01, "key")),
    "Budget.spend": of_budget(lambda b: b.spend(0.01)),
    "Budget.try_reserve": of_budget(lambda b: b.try_reserve(0.01)),
    "BudgetReservation.__aenter__": of_reservation(lambda r: finished(r.__aenter__())),
    "BudgetReservation.__aexit__": of_reservation(
        lambda r: finished(r.__aexit__(None, None, None))
    ),
    "BudgetReservation.__exit__": of_reservation(lambda r: r.__exit__(None, None, None)),
    "BudgetReservation.__repr__": of_reservation(repr),
    "BudgetReservation.release": of_reservation(lambda r: r.release()),
    "BudgetReservation.settle": of_reservation(lambda r: r.settle(0.001)),
}

READS = "reads a field"

EXCUSED = {
    "Budget._now": "reads the clock",
    "Budget.enabled": READS,
    "Budget.hard": READS,
    "Budget.name": READS,
    "BudgetReservation.__enter__": READS,
    "BudgetReservation.cost_usd": READS,
    "BudgetReservation.granted": READS,
    "BudgetReservation.state": READS,
    "LLMLimiter.budget": READS,
    "_bypass_budgets": "stores one bit",
}

#: For the test of growth.
STEPS = {
    "money reserved, settled, dropped and denied, in memory and in a file": (
        """
import atexit, shutil, tempfile
from ferrogate import Budget
from ferrogate.testing import ManualClock
clock = ManualClock()
told = dict(on_exceeded=lambda alert: None, on_threshold=lambda alert: None)
folder = tempfile.mkdtemp()
atexit.register(shutil.rmtree, folder)
file = f"sqlite://{folder}/money.db"
budgets = [
    Budget("1 USD/hour", "9 USD/day", max_keys=50, clock=clock, **told),
    Budget("1 USD/hour", "9 USD/day", max_keys=50, clock=clock, store=file, **told),
]
def step(i):
    for budget in budgets[: 2 if i % 20 == 0 else 1]:
        for usd in (0.3, 0.6):
            if reserved := budget.try_reserve(usd, f"t {i % 70}"):
                if i % 3 == 0: reserved.settle(0.7)
                elif i % 3 == 1: reserved.release()
            else:
                reserved.retry_after
        if i % 300 == 0: clock.advance(3000); budget.get_stats(); budget.usage("t 1"); repr(budget)
""",
        0.25,
    ),
}
