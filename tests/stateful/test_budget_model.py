"""`Budget` against plain Python, by a hypothesis state machine: in memory, and in a file."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from child import patience, times
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ferrogate import Budget
from ferrogate.budget import Denial
from ferrogate.testing import ManualClock

NANO = 1_000_000_000
START = datetime(2028, 2, 27, 21, tzinfo=UTC)  # before a leap day that ends a month
PERIODS = ("hour", "day", "week", "month")
KEYS = st.sampled_from(["a", "b", ("c", 1)])
AMOUNT = st.integers(0, 60)


def begin(period: str, now: datetime) -> datetime:
    """When the period around a moment began, in UTC."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0)
    return {
        "hour": hour,
        "day": day,
        "week": day - timedelta(days=day.weekday()),
        "month": day.replace(day=1),
    }[period]


class BudgetModel(RuleBasedStateMachine):
    in_file = False

    @initialize(
        limits=st.dictionaries(st.sampled_from(PERIODS), st.integers(1, 80), min_size=1),
        hard=st.sampled_from([True, True, True, False]),
    )
    def start(self, limits: dict[str, int], hard: bool) -> None:
        self.clock = ManualClock(START.timestamp())
        self.now = START
        self.hard = hard
        most = 0
        self.limits = {}
        for period in PERIODS:  # a longer period has at least as much
            if period in limits:
                most = self.limits[period] = max(limits[period], most)
        self.folder = tempfile.TemporaryDirectory() if self.in_file else None
        self.told: list[tuple[object, str, bool]] = []
        self.open()
        #: Key, period and its beginning: everything that was counted there.
        self.spent: dict[tuple[object, str, datetime], int] = {}
        self.held: list[tuple[Any, object, int, dict[str, datetime]]] = []

    def open(self) -> None:
        self.budget = Budget(
            *(f"{nano / NANO:.9f} USD/{period}" for period, nano in self.limits.items()),
            store=Path(self.folder.name) / "money.db" if self.folder else "memory",
            hard=self.hard,
            on_exceeded=self.tell,
            clock=self.clock,
        )

    def tell(self, alert: Any) -> None:
        start = begin(alert.limit.rpartition("/")[2], self.now)
        self.told.append((alert.key, alert.limit, start))  # type: ignore[arg-type]

    def teardown(self) -> None:
        if getattr(self, "folder", None):
            self.folder.cleanup()  # type: ignore[union-attr]

    def used(self, key: object, period: str) -> int:
        return self.spent.get((key, period, begin(period, self.now)), 0)

    def count(self, key: object, amount: int, starts: dict[str, datetime] | None = None) -> None:
        for period in self.limits:
            start = begin(period, self.now) if starts is None else starts[period]
            at = (key, period, start)
            self.spent[at] = self.spent.get(at, 0) + amount

    @rule(hours=st.floats(0, 30))
    def wait(self, hours: float) -> None:
        step = timedelta(milliseconds=round(hours * 3_600_000))
        self.clock.advance(step)
        self.now += step

    @rule(key=KEYS, amount=AMOUNT)
    def reserve(self, key: object, amount: int) -> None:
        left = {period: limit - self.used(key, period) for period, limit in self.limits.items()}
        fits = all(amount <= rest and rest > 0 for rest in left.values())
        answer = self.budget.try_reserve(amount / NANO, key)
        assert bool(answer) == (fits or not self.hard)
        if isinstance(answer, Denial):
            impossible = any(amount > limit for limit in self.limits.values())
            assert answer.reason == ("cost exceeds limit" if impossible else "budget exceeded")
            if not impossible:
                later = self.now + timedelta(seconds=answer.retry_after)
                assert answer.dimension is not None
                period = answer.dimension.partition("/")[2]
                assert begin(period, later) == later
                assert begin(period, later - timedelta(milliseconds=1)) == begin(period, self.now)
            return
        self.count(key, amount)
        starts = {period: begin(period, self.now) for period in self.limits}
        self.held.append((answer, key, amount, starts))

    @rule(key=KEYS, amount=AMOUNT)
    def spend(self, key: object, amount: int) -> None:
        self.budget.spend(amount / NANO, key)
        self.count(key, amount)

    @rule(which=st.integers(0, 9), actual=AMOUNT)
    def settle(self, which: int, actual: int) -> None:
        if which < len(self.held):
            reservation, key, amount, starts = self.held.pop(which)
            assert reservation.settle(actual / NANO)
            assert not reservation.release()
            self.count(key, actual - amount, starts if actual < amount else None)

    @rule(which=st.integers(0, 9), drops=st.booleans())
    def release(self, which: int, drops: bool) -> None:
        if which < len(self.held):
            reservation, key, amount, starts = self.held.pop(which)
            assert drops or reservation.release()
            del reservation
            self.count(key, -amount, starts)

    @rule()
    def restart(self) -> None:
        if self.folder:
            self.open()

    @invariant()
    def shows_what_was_spent(self) -> None:
        if not hasattr(self, "spent"):
            return
        for key in ("a", "b", ("c", 1)):
            for period, limit in self.limits.items():
                used = self.used(key, period)
                assert round(self.budget.spent(key, period=period) * NANO) == used
                if used > limit:
                    start = begin(period, self.now)
                    assert any(k == key and s == start for k, _, s in self.told)
            left = min(max(0, limit - self.used(key, p)) for p, limit in self.limits.items())
            assert round(self.budget.remaining(key) * NANO) == left
        assert len(self.told) == len(set(self.told))


class BudgetFileModel(BudgetModel):
    in_file = True


EXAMPLES = times(60, 5_000)
IN_FILES = times(15, 500)
BudgetModel.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, deadline=None
)
BudgetFileModel.TestCase.settings = settings(
    max_examples=IN_FILES, stateful_step_count=30, deadline=None
)
pytestmark = [pytest.mark.soak, pytest.mark.timeout(patience(0.3, EXAMPLES))]
TestBudget = BudgetModel.TestCase
TestBudgetFile = BudgetFileModel.TestCase
