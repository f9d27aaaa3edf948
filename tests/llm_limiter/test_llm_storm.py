"""A thousand callers who use more and less than they say, and leave when they like.

At every instant, exactly: what is reserved and spent is within the budget and the debt; all
that the books admit is admitted; what is really spent exceeds the budget by no more than the
over-use in flight, and by nothing where reservations are upper bounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from child import SEED, patience, times
from llm_books import DIMENSIONS, NS, Amounts, Books, Call, amounts

from ferrogate import LLMLimiter
from ferrogate.testing import ManualClock, VirtualTimeLoop

CALLERS = 1000
LIMITS = {
    "requests_per_minute": 400,
    "input_tokens_per_minute": 150_000,
    "output_tokens_per_minute": 60_000,
    "tokens_per_minute": 200_000,
    "usd_per_minute": 4.0,
}
BUDGET = (400, 150_000, 60_000, 200_000, 4 * NS)
ROUNDS = times(1, 20)


class Storm:
    """The limiter and the books side by side; whatever happens to one happens to the other."""

    def __init__(self, *, seed: int, upper_bounds: bool, concurrency: int | None) -> None:
        self.random = random.Random(seed)
        self.upper_bounds = upper_bounds
        self.clock = ManualClock(5)
        self.limiter = LLMLimiter(
            "storm",
            **LIMITS,  # type: ignore[arg-type]
            concurrency=concurrency,
            clock=self.clock,
        )
        self.books = Books(BUDGET, slots=concurrency)
        self.checks = self.over = 0
        self.clock._on_advance(self.moved)

    def moved(self) -> None:
        """The clock says it to both, in either order."""
        self.limiter._clock_moved()
        self.check()

    def check(self) -> None:
        """What holds at every instant."""
        now = self.clock.now_ns()
        granted = self.books.pump(now)
        used = self.books.used(now)
        stats = self.limiter.get_stats()
        assert stats["waiting"] == len(self.books.line)
        assert stats["open"] == stats["concurrent_requests"] == self.books.in_use
        over, flying = self.books.overused(now), self.books.in_flight()
        spent = self.books.spent(now)
        for d, name in enumerate(DIMENSIONS):
            shown = stats["dimensions"][name]["used"]
            assert round(shown * NS if name == "usd" else shown) == used[d]
            assert used[d] <= BUDGET[d] + over[d]
            assert spent[d] <= BUDGET[d] + over[d] + flying[d]
            if granted:
                assert used[d] <= BUDGET[d]
                assert spent[d] <= BUDGET[d] + flying[d]
            if self.upper_bounds:
                assert used[d] <= BUDGET[d]
                assert spent[d] <= BUDGET[d]
        self.checks += 1
        self.over += any(over)

    def call(self) -> Call:
        """What somebody asks for, and what it will take."""
        draw = self.random
        reserved = (draw.randrange(2_000), draw.randrange(1_500), draw.randrange(NS // 20))
        factor = draw.random() if self.upper_bounds else draw.choice([0, 0.3, 0.9, 1, 1.2, 3])
        factors = [factor if draw.random() < 0.8 else min(factor, 0.5) for _ in reserved]
        actual = [round(part * share) for part, share in zip(reserved, factors, strict=True)]
        return Call(amounts(1, *reserved), amounts(1, *actual))

    async def caller(self) -> None:
        """Asks, works, and ends in one of the ways that calls end."""
        draw = self.random
        await asyncio.sleep(draw.random() * 100)
        call = self.call()
        _, input_tokens, output_tokens, _, nano = call.reserved
        asked = self.limiter.reserve(
            input_tokens=input_tokens, output_tokens=output_tokens, cost_usd=nano / NS
        )
        self.books.line.append(call)
        self.check()
        end = draw.choice(["settle"] * 6 + ["release", "sent", "drop", "raise", "cancel", "block"])
        try:
            reservation: Any = await asked
        except asyncio.CancelledError:
            self.left(call)
            raise
        finally:
            del asked
        assert call.open
        try:
            await asyncio.sleep(draw.random() * 90)
        except asyncio.CancelledError:
            del reservation
            self.books.release(call, sent=False)
            self.check()
            raise
        self.end(end, reservation, call)
        if end == "drop":
            del reservation
            self.books.release(call, sent=False)
        self.check()

    def left(self, call: Call) -> None:
        """Its caller was cancelled in the line, or just when it was granted."""
        if call.open:
            self.books.release(call, sent=False)
        else:
            self.books.line.remove(call)
        self.check()

    def end(self, how: str, reservation: Any, call: Call) -> None:
        """Everything but being dropped."""
        if how == "settle":
            _, input_tokens, output_tokens, _, nano = call.actual
            usage: dict[str, Any] = {"input_tokens": input_tokens, "output_tokens": output_tokens}
            assert reservation.settle(**usage, cost_usd=nano / NS)
            assert not reservation.settle(**usage)
            self.books.settle(self.clock.now_ns(), call)
        elif how == "block":
            with reservation:
                pass
            call.actual = call.reserved
            self.books.settle(self.clock.now_ns(), call)
        elif how == "raise":
            with contextlib.suppress(KeyError), reservation:
                raise KeyError
            self.books.release(call, sent=False)
        elif how in {"release", "sent", "cancel"}:
            if how == "sent":
                reservation.mark_sent()
            assert reservation.release()
            assert not reservation.release()
            self.books.release(call, sent=how == "sent")

    async def main(self) -> None:
        """All of them, some of whom are cancelled somewhere on their way."""
        tasks = [asyncio.create_task(self.caller()) for _ in range(CALLERS)]
        for task in self.random.sample(tasks, CALLERS // 5):
            await asyncio.sleep(self.random.random())
            task.cancel()
        done, _ = await asyncio.wait(tasks)
        for task in done:
            if not task.cancelled():
                task.result()

    def rest(self) -> None:
        """Afterwards everything is as before."""
        stats = self.limiter.get_stats()
        assert (stats["open"], stats["waiting"], stats["concurrent_requests"]) == (0, 0, 0)
        self.clock.advance(60)
        for known in self.limiter.get_stats()["dimensions"].values():
            assert (known["used"], known["debt"]) == (0, 0)
            assert known["remaining"] == known["limit"]
        assert not self.books.line


@pytest.mark.soak
@pytest.mark.timeout(patience(30, ROUNDS))
@pytest.mark.parametrize(
    ("upper_bounds", "concurrency"), [(True, None), (False, None), (False, 50)]
)
def test_a_thousand_callers(upper_bounds: bool, concurrency: int | None) -> None:
    for round_ in range(ROUNDS):
        storm = Storm(seed=SEED + round_, upper_bounds=upper_bounds, concurrency=concurrency)
        with asyncio.Runner(loop_factory=lambda storm=storm: VirtualTimeLoop(storm.clock)) as run:
            run.run(storm.main())
        storm.rest()
        assert storm.checks > 2 * CALLERS
        assert (storm.over > 100) != upper_bounds


def test_the_books_are_right() -> None:
    asked: Amounts = amounts(1, 10, 5, 0)
    books = Books((1, None, None, None, None))
    books.line = [Call(asked, asked), Call(asked, asked)]
    (first,) = books.pump(0)
    assert books.used(0) == [1, 10, 5, 15, 0]
    books.settle(1, first)
    assert not books.pump(59 * NS)
    assert len(books.pump(60 * NS)) == 1
