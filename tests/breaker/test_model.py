"""The table of transitions: a breaker against a model in plain Python that recounts everything.

The model keeps every call that was ever begun and computes the state from lists; it shares no
idea with the native one but the words of the documentation.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import pytest
from child import patience, times
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ferrogate import CircuitBreaker, CircuitBreakerConfig, CircuitBreakerOpenError, Outcome
from ferrogate.testing import ManualClock

REST, PROBE, SPAN, SLOW = 30, 45, 60, 3


@dataclass
class Call:
    began: int
    stretch: int
    probe: bool
    ended: int | None = None
    failed: bool = False
    slow: bool = False


@dataclass
class Model:
    config: CircuitBreakerConfig
    now: int = 0
    state: str = "closed"
    stretch: int = 0
    opened_at: int = 0
    relapses: int = 0
    calls: list[Call] = field(default_factory=list)
    #: Those that count, in the order of their ends.
    ended: list[Call] = field(default_factory=list)
    steps: list[tuple[str, str]] = field(default_factory=list)

    def go(self, state: str) -> None:
        was_open = self.state in ("open", "forced_open")
        if state in ("open", "forced_open"):
            if not was_open:
                self.steps.append(("on_open", state))
        elif state == "half_open":
            self.steps.append(("on_half_open", state))
        elif state == "closed" and (was_open or self.state == "half_open"):
            self.steps.append(("on_close", state))
        self.state = state
        self.stretch += 1

    def rest(self) -> float:
        if self.config.max_timeout_seconds is None:
            return REST
        longest = self.config.max_timeout_seconds
        assert isinstance(longest, int)
        return min(REST * 2 ** (self.relapses - 1), longest)

    def rested(self) -> bool:
        return self.state == "open" and self.now >= self.opened_at + self.rest()

    def shown(self) -> str:
        return "half_open" if self.rested() else self.state

    def holding(self) -> list[Call]:
        """Probes that have a place: under way, and not too long."""
        mine = [c for c in self.calls if c.probe and c.stretch == self.stretch]
        return [c for c in mine if c.ended is None and self.now - c.began < PROBE]

    def admits(self) -> bool:
        if self.rested():
            self.go("half_open")
        if self.state == "half_open":
            return len(self.holding()) < self.config.half_open_max_calls
        return self.state not in ("open", "forced_open")

    def begin(self) -> Call:
        call = Call(self.now, self.stretch, self.state == "half_open")
        self.calls.append(call)
        return call

    def end(self, call: Call, outcome: Outcome) -> None:
        call.ended = self.now
        counted = {Outcome.SUCCESS, Outcome.FAILURE}
        if self.config.count_throttled:
            counted.add(Outcome.THROTTLED)
        if call.stretch != self.stretch or outcome not in counted:
            return
        self.ended.append(call)
        call.failed = outcome is not Outcome.SUCCESS
        call.slow = self.now - call.began >= SLOW
        if self.state == "closed":
            calls, failed, slow = self.window()
            assert self.config.minimum_calls is not None
            if calls >= self.config.minimum_calls and (2 * failed > calls or 4 * slow > 3 * calls):
                self.open()
        elif self.state == "half_open":
            good = [c for c in self.ended if c.stretch == self.stretch]
            if call.failed or call.slow:
                self.open()
            elif len(good) >= self.config.success_threshold:
                self.relapses = 0
                self.go("closed")

    def open(self) -> None:
        self.opened_at = self.now
        self.relapses += 1
        self.go("open")

    def window(self) -> tuple[int, int, int]:
        ended = [c for c in self.ended if c.stretch == self.stretch]
        if isinstance(self.config.window, float):
            ended = [c for c in ended if self.now - (c.ended or 0) < SPAN]
        else:
            ended = ended[-8:]
        return len(ended), sum(c.failed for c in ended), sum(c.slow for c in ended)


class Raised(Exception):
    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


class BreakerModel(RuleBasedStateMachine):
    @initialize(
        window=st.sampled_from([8, float(SPAN)]),
        probes=st.integers(1, 3),
        successes=st.integers(1, 3),
        throttled=st.booleans(),
        longest=st.sampled_from([None, 100]),
    )
    def make(self, window: Any, probes: int, successes: int, throttled: bool, longest: Any) -> None:
        config = CircuitBreakerConfig(
            timeout_seconds=REST,
            success_threshold=successes,
            window=window,
            minimum_calls=3,
            half_open_max_calls=probes,
            slow_call_seconds=SLOW,
            slow_call_threshold=0.75,
            count_throttled=throttled,
            max_timeout_seconds=longest,
            probe_timeout_seconds=PROBE,
        )
        # A whole number of parts of the window, so that the model needs to know none.
        self.clock = ManualClock(6000)
        self.model = Model(config)
        self.seen: list[tuple[str, str]] = []
        self.breaker = CircuitBreaker(
            "modelled", config, clock=self.clock, classify=lambda _, error: vars(error)["outcome"]
        )
        for event in ("on_open", "on_close", "on_half_open"):
            getattr(self.breaker, event)(lambda b, event=event: self.seen.append((event, b.state)))
        self.under_way: list[tuple[Call, Any]] = []
        self.rejected = 0

    @rule(seconds=st.one_of(st.integers(0, 5), st.integers(20, 70), st.just(365 * 86_400)))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.model.now += seconds

    def block(self) -> Any:
        """A `with` block that ends when it is told how."""
        with contextlib.suppress(Raised), self.breaker:
            outcome = yield
            if outcome is not Outcome.SUCCESS:
                raise Raised(outcome)

    @rule()
    def begin(self) -> None:
        expected = self.model.admits()
        block = self.block()
        try:
            next(block)
        except CircuitBreakerOpenError as error:
            assert not expected
            self.rejected += 1
            self.refused(error)
        else:
            assert expected
            self.under_way.append((self.model.begin(), block))

    def refused(self, error: CircuitBreakerOpenError) -> None:
        model = self.model
        assert (error.name, error.state) == ("modelled", model.state)
        if model.state == "open":
            assert error.retry_after == model.opened_at + model.rest() - model.now
        elif model.state == "half_open":
            assert error.retry_after == min(c.began for c in model.holding()) + PROBE - model.now
        else:
            assert error.retry_after == float("inf")

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 30), outcome=st.sampled_from(Outcome))
    def end(self, which: int, outcome: Outcome) -> None:
        call, block = self.under_way.pop(which % len(self.under_way))
        self.model.end(call, outcome)
        with pytest.raises(StopIteration):
            block.send(outcome)

    @rule(outcome=st.sampled_from([Outcome.FAILURE, Outcome.SUCCESS]), count=st.integers(2, 6))
    def a_series(self, outcome: Outcome, count: int) -> None:
        for _ in range(count):
            before = len(self.under_way)
            self.begin()
            if len(self.under_way) > before:
                self.end(before, outcome)

    @rule(chance=st.integers(0, 3), state=st.sampled_from(["forced_open", "closed"]))
    def force(self, chance: int, state: str) -> None:
        assume(chance == 0)
        if state == "closed":
            self.breaker.reset()
        else:
            self.breaker.force_open()
        self.model.relapses = 0
        if state == "closed" or self.model.state != state:
            self.model.go(state)

    @invariant()
    def shows_the_same(self) -> None:
        if not hasattr(self, "model"):
            return
        stats = self.breaker.get_stats()
        assert stats["state"] == self.breaker.state == self.model.shown()
        assert self.breaker.is_open() == (self.model.shown() in ("open", "forced_open"))
        assert self.seen == self.model.steps
        assert stats["rejected"] == self.rejected
        if self.model.state in ("closed", "half_open"):
            calls, failed, slow = self.model.window()
            assert stats["calls"] == calls
            assert stats["error_rate"] == (failed / calls if calls else 0)
            assert stats["slow_rate"] == (slow / calls if calls else 0)
        if self.model.state == "half_open":
            fresh = len(self.model.holding())
            # Places that are overdue are taken when somebody asks for one.
            assert fresh <= stats["probes"] <= self.model.config.half_open_max_calls


EXAMPLES = times(60, 5_000)
BreakerModel.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=50, deadline=None
)
pytestmark = [pytest.mark.soak, pytest.mark.timeout(patience(0.3, EXAMPLES))]
TestBreaker = BreakerModel.TestCase
