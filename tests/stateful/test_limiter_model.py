"""`RateLimiter` against a list of timestamps, by a hypothesis state machine."""

from __future__ import annotations

import pytest
from child import patience, times
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ferrogate import Limit, RateLimiter
from ferrogate.testing import ManualClock

NS = 1_000_000_000
KEYS = st.sampled_from([None, "a", "b"])
LIMITS = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 30_000_000_000)), min_size=1, max_size=3
)


class LimiterModel(RuleBasedStateMachine):
    @initialize(limits=LIMITS, start=st.integers(0, 10**9))
    def start(self, limits: list[tuple[int, int]], start: int) -> None:
        # Whole microseconds, so that the way over float seconds is exact.
        self.limits = [(count, max(1, period // 1000) * 1000) for count, period in limits]
        self.clock = ManualClock()
        self.clock._advance_ns(start)
        self.limiter = RateLimiter(*self.texts(), clock=self.clock)
        self.grants: dict[str | None, list[tuple[int, int]]] = {None: [], "a": [], "b": []}

    def texts(self) -> list[Limit]:
        return [Limit(count, period / NS) for count, period in self.limits]

    def used(self, key: str | None, period: int, at: int) -> int:
        return sum(cost for when, cost in self.grants[key] if when > at - period)

    def admits(self, key: str | None, cost: int, at: int) -> bool:
        return all(self.used(key, period, at) + cost <= count for count, period in self.limits)

    @rule(seconds=st.one_of(st.integers(0, 5), st.integers(0, 40 * NS), st.just(365 * 86400 * NS)))
    def advance(self, seconds: int) -> None:
        self.clock._advance_ns(seconds)

    @rule(cost=st.one_of(st.just(1), st.integers(1, 14)), key=KEYS)
    def take(self, cost: int, key: str | None) -> None:
        now = self.clock.now_ns()
        expected = self.admits(key, cost, now)
        decision = self.limiter.try_acquire(cost, key=key)
        assert decision.granted == expected
        if expected:
            self.grants[key].append((now, cost))
            return
        if any(cost > count for count, _ in self.limits):
            assert decision.retry_after == float("inf")
            return
        # Exactly then, and not a nanosecond earlier.
        wait = round(decision.retry_after * NS)
        assert self.admits(key, cost, now + wait)
        assert not self.admits(key, cost, now + wait - 1)
        assert round(self.limiter.eta(cost, key=key) * NS) == wait

    @rule(counts=st.lists(st.integers(1, 12), min_size=3, max_size=3))
    def update(self, counts: list[int]) -> None:
        self.limits = [
            (count, period) for count, (_, period) in zip(counts, self.limits, strict=False)
        ]
        self.limiter.update(*self.texts())

    @invariant()
    def shows_what_is_used(self) -> None:
        if not hasattr(self, "limiter"):
            return
        now = self.clock.now_ns()
        shown = sorted(self.limiter.get_stats()["windows"].items())
        expected = {
            str(limit): self.used(None, period, now)
            for limit, (_, period) in zip(self.texts(), self.limits, strict=True)
        }
        assert shown == sorted(expected.items())


EXAMPLES = times(60, 5_000)
LimiterModel.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, deadline=None
)
pytestmark = [pytest.mark.soak, pytest.mark.timeout(patience(0.1, EXAMPLES))]
TestLimiter = LimiterModel.TestCase
