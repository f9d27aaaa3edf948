"""Times statements against each other: interleaved rounds, medians, the loop's own cost off.

One row is one kind of work. In every round each contender runs once, A B C A B C …,
so that a slow second of the machine falls on all of them. The collector is off while
a contender runs, as in `timeit`.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Namespace = dict[str, Any]

LOOP = """
{kind} loop(rounds, keys, clock, {names}):
    begin = clock()
    for _ in range(rounds):
        for key in keys:
            {statement}
    return clock() - begin
"""


@dataclass(frozen=True)
class Contender:
    """Somebody who does the row's work.

    `setup` gives the names that `statement` uses. Two names are ours: `verify` is
    called after the timing and raises AssertionError if the work was not done as the
    row says; `close` gives back threads and the like.
    """

    name: str
    statement: str
    setup: Callable[[], Namespace]
    package: str = ""
    note: str = ""


@dataclass(frozen=True)
class Target:
    """What ferrogate promises: `at_most` times the base, `nanoseconds`, or so many `over` it."""

    at_most: float | None = None
    nanoseconds: float | None = None
    over: float | None = None
    says: str = ""

    def met(self, nanoseconds: float, ratio: float) -> bool:
        """Whether a measurement keeps the promise."""
        if self.nanoseconds is not None:
            return nanoseconds <= self.nanoseconds
        if self.over is not None:
            return nanoseconds - nanoseconds / ratio <= self.over
        return self.at_most is not None and ratio <= self.at_most


@dataclass(frozen=True)
class Row:
    """One kind of work, and who does it; the first of `contenders` is the base."""

    name: str
    target: Target
    contenders: Sequence[Contender]
    keys: Sequence[Any] = tuple(range(100))
    # With state that fills up (a window's log) every timing begins with a new one.
    fresh: bool = False
    # Repetitions of all keys in one timing; None: as many as the budget allows.
    rounds: int | None = None
    # Calls that one execution of the statement makes.
    calls: int = 1


@dataclass
class Timing:
    """One contender's result."""

    contender: Contender
    nanoseconds: float = 0.0
    samples: list[float] = field(default_factory=list)
    problem: str = ""


class Prepared:
    """A contender with its loop compiled and its state made."""

    def __init__(self, contender: Contender, row: Row, runner: asyncio.Runner) -> None:
        self.contender = contender
        self.row = row
        self.runner = runner
        self.space = self.make()
        names = ", ".join(n for n in self.space if n not in ("verify", "close")) or "_none=None"
        self.awaits = "await " in contender.statement
        source = LOOP.format(
            kind="async def" if self.awaits else "def", names=names, statement=contender.statement
        )
        scope: Namespace = {}
        exec(compile(source, f"<{contender.name}>", "exec"), scope)
        self.loop = scope["loop"]

    def make(self) -> Namespace:
        """New state; inside the event loop, for those that ask which one is running."""

        async def inside() -> Namespace:
            return self.contender.setup()

        return self.runner.run(inside())

    def run(self, rounds: int) -> float:
        """Nanoseconds for each execution of the statement."""
        if self.row.fresh:
            self.close()
            self.space = self.make()
        arguments = {n: v for n, v in self.space.items() if n not in ("verify", "close")}
        gc.collect()
        gc.disable()
        try:
            took = self.loop(rounds, self.row.keys, time.perf_counter_ns, **arguments)
            if self.awaits:
                took = self.runner.run(took)
        finally:
            gc.enable()
        if verify := self.space.get("verify"):
            verify()
        return float(took) / (rounds * len(self.row.keys) * self.row.calls)

    def close(self) -> None:
        """Gives back what the state holds."""
        if close := self.space.get("close"):
            close()


NOTHING = Contender("the empty loop", "pass", dict)


def measure(row: Row, *, samples: int, budget: float, runner: asyncio.Runner) -> list[Timing]:
    """Times every contender `samples` times for about `budget` seconds each."""
    timings = [Timing(c) for c in row.contenders]
    ready: dict[int, tuple[Prepared, int]] = {}
    for index, timing in enumerate(timings):
        try:
            prepared = Prepared(timing.contender, row, runner)
            ready[index] = (prepared, row.rounds or calibrate(prepared, budget))
        except Exception as error:  # whatever a rival raises is reported
            timing.problem = f"{type(error).__name__}: {error}"
    empty = Prepared(NOTHING, row, runner)
    empty_rounds = row.rounds or calibrate(empty, budget)
    loop_cost = []
    for _ in range(samples):
        loop_cost.append(empty.run(empty_rounds))
        for index, (prepared, rounds) in ready.items():
            timing = timings[index]
            if timing.problem:
                continue
            try:
                timing.samples.append(prepared.run(rounds))
            except Exception as error:
                timing.problem = f"{type(error).__name__}: {error}"
    for prepared, _ in ready.values():
        prepared.close()
    overhead = statistics.median(loop_cost)
    for timing in timings:
        if timing.samples:
            timing.nanoseconds = max(statistics.median(timing.samples) - overhead, 0.1)
    return timings


def calibrate(prepared: Prepared, budget: float) -> int:
    """How many rounds fill the budget, once warm."""
    prepared.run(2)
    rounds = 1
    while True:
        calls = rounds * len(prepared.row.keys) * prepared.row.calls
        seconds = prepared.run(rounds) * calls / 1e9
        if seconds >= budget / 4:
            return max(1, round(rounds * budget / seconds))
        rounds *= 4
