"""`LLMLimiter` against books of lists, by a hypothesis state machine."""

from __future__ import annotations

from typing import Any

import pytest
from child import patience, times
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from llm_books import DIMENSIONS, NS, Books, Call, amounts

from ferrogate import LLMLimiter
from ferrogate.llm_limiter import Denial
from ferrogate.testing import ManualClock

LIMIT = st.one_of(st.none(), st.integers(1, 60))
TOKENS = st.integers(0, 40)


class LLMLimiterModel(RuleBasedStateMachine):
    @initialize(
        limits=st.tuples(st.integers(1, 8), LIMIT, LIMIT, st.integers(60, 90), LIMIT),
        slots=st.one_of(st.none(), st.integers(1, 4)),
    )
    def start(self, limits: tuple[int | None, ...], slots: int | None) -> None:
        requests, tokens_in, tokens_out, tokens, nano = limits
        self.clock = ManualClock(3)
        self.limiter = LLMLimiter(
            requests_per_minute=requests,
            input_tokens_per_minute=tokens_in,
            output_tokens_per_minute=tokens_out,
            tokens_per_minute=tokens,
            usd_per_minute=None if nano is None else nano / NS,
            concurrency=slots,
            clock=self.clock,
        )
        self.books = Books(limits, slots=slots)
        self.held: list[tuple[Call, Any]] = []

    @rule(gap=st.one_of(st.integers(0, 5), st.integers(0, 90 * NS)))
    def advance(self, gap: int) -> None:
        self.clock._advance_ns(gap)

    @rule(tokens=st.tuples(TOKENS, TOKENS, TOKENS))
    def reserve(self, tokens: tuple[int, int, int]) -> None:
        now = self.clock.now_ns()
        call = Call(amounts(1, *tokens), amounts(1, *tokens))
        answer = self.limiter.try_reserve(
            input_tokens=tokens[0], output_tokens=tokens[1], cost_usd=tokens[2] / NS
        )
        impossible = any(
            limit is not None and part > limit
            for limit, part in zip(self.books.limits, call.reserved, strict=True)
        )
        assert bool(answer) == (not impossible and self.books.fits(now, call.reserved))
        if not isinstance(answer, Denial):
            self.books.grant(now, call)
            self.held.append((call, answer))
            return
        assert (answer.reason == "cost exceeds limit") == impossible
        if answer.reason in {"limited", "paused"}:
            # Exactly then, and not a nanosecond earlier.
            wait = round(answer.retry_after * NS)
            assert self.books.fits(now + wait, call.reserved)
            assert not self.books.fits(now + wait - 1, call.reserved)

    @rule(which=st.integers(0, 9), taken=st.tuples(TOKENS, TOKENS, TOKENS))
    def settle(self, which: int, taken: tuple[int, int, int]) -> None:
        if which < len(self.held):
            call, reservation = self.held.pop(which)
            call.actual = amounts(1, *taken)
            tokens_in, tokens_out, nano = taken
            assert reservation.settle(
                input_tokens=tokens_in, output_tokens=tokens_out, cost_usd=nano / NS
            )
            assert not reservation.release()
            self.books.settle(self.clock.now_ns(), call)

    @rule(which=st.integers(0, 9), sent=st.booleans())
    def release(self, which: int, sent: bool) -> None:
        if which < len(self.held):
            call, reservation = self.held.pop(which)
            if sent:
                reservation.mark_sent()
            assert reservation.release()
            assert not reservation.settle()
            self.books.release(call, sent=sent)

    @rule(which=st.integers(0, 9))
    def drop(self, which: int) -> None:
        if which < len(self.held):
            call, _ = self.held.pop(which)
            self.books.release(call, sent=False)

    @rule(seconds=st.integers(0, 20))
    def pause(self, seconds: int) -> None:
        self.limiter.pause(seconds)
        until = self.clock.now_ns() + seconds * NS
        self.books.paused_until = max(self.books.paused_until, until)

    @invariant()
    def shows_what_is_used(self) -> None:
        if not hasattr(self, "limiter"):
            return
        now = self.clock.now_ns()
        used: list[int] = self.books.used(now)
        over = self.books.overused(now)
        stats = self.limiter.get_stats()
        assert stats["open"] == len(self.held) == self.books.in_use
        for d, (name, limit) in enumerate(zip(DIMENSIONS, self.books.limits, strict=True)):
            if limit is None:
                assert name not in stats["dimensions"]
                continue
            known = stats["dimensions"][name]
            unit = NS if name == "usd" else 1
            assert round(known["used"] * unit) == used[d] <= limit + over[d]
            assert round(known["debt"] * unit) == max(0, used[d] - limit)
            assert round(known["remaining"] * unit) == max(0, limit - used[d])


EXAMPLES = times(60, 5_000)
LLMLimiterModel.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, deadline=None
)
pytestmark = [pytest.mark.soak, pytest.mark.timeout(patience(0.1, EXAMPLES))]
TestLLMLimiter = LLMLimiterModel.TestCase
