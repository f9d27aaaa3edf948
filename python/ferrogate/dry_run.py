"""What other thresholds would have made of calls that were recorded."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ferrogate._again import Again
from ferrogate.exceptions import FerrogateError
from ferrogate.llm_limiter import LLMLimiter
from ferrogate.recording import AttemptRecord, Recording

if TYPE_CHECKING:
    from ferrogate.breaker import CircuitBreaker
    from ferrogate.guard import Guard
    from ferrogate.testing import ManualClock

__all__ = ["DryRun", "Totals"]

_STATUSES = {"throttled": 429, "neutral": 400, "failure": 500}


@dataclass
class Totals:
    """What a number of calls came to."""

    calls: int = 0
    answered: int = 0
    """Calls whose last attempt succeeded."""
    failed: int = 0
    """Calls whose last attempt did not succeed, time limits included."""
    refused: int = 0
    """Calls that a part of the guard ended: an open breaker, a limiter, a full line."""
    attempts: int = 0
    """Requests to the other side."""
    failures: int = 0
    """Attempts that failed."""
    throttled: int = 0
    """Attempts that met HTTP 429."""
    seconds: float = 0.0
    """That attempts took, in sum."""
    waited_seconds: float = 0.0
    """That attempts waited for permits and slots, in sum."""
    longest_wait_seconds: float = 0.0
    """The longest that an attempt waited."""
    tokens: int = 0
    """Of attempts that the other side began, both kinds."""
    cost_usd: float = 0.0


@dataclass
class DryRun:
    """What :meth:`Guard.dry_run` found; ``print`` it for both beside each other."""

    recorded: Totals
    """The recording itself."""
    replayed: Totals
    """The same calls against the other thresholds."""
    latency_p50_seconds: float
    """From a call's arrival to its end, replayed; the median."""
    latency_p99_seconds: float
    times_opened: int
    """How often the breaker opened."""
    open_seconds: float
    """How long it was open or half-open."""
    timed_out: int
    """Attempts and calls that a time limit ended."""
    fallbacks: int
    """Calls that a fallback would have answered, refused and failed ones among them."""
    assumed: int
    """Attempts that the recording does not have, taken to end as the nearest one in time."""

    def __str__(self) -> str:
        rows = [("", "recorded", "replayed")]
        for name, before in vars(self.recorded).items():
            after = getattr(self.replayed, name)
            rows.append((name.replace("_", " "), _shown(before), _shown(after)))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        table = [
            f"{name:<{widths[0]}}  {before:>{widths[1]}}  {after:>{widths[2]}}"
            for name, before, after in rows
        ]
        return "\n".join(
            [
                *table,
                f"latency: median {self.latency_p50_seconds:,.3f} s, "
                f"p99 {self.latency_p99_seconds:,.3f} s",
                f"breaker: opened {self.times_opened:,} times, "
                f"not closed for {self.open_seconds:,.1f} s",
                f"time limits: {self.timed_out:,}; fallbacks: {self.fallbacks:,}; "
                f"assumed attempts: {self.assumed:,}",
            ]
        )


def _shown(value: float) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"


class _Replayed(Exception):
    """An attempt that did not succeed, as the HTTP status that its outcome is read from."""

    def __init__(self, outcome: str) -> None:
        super().__init__(f"recorded as {outcome}")
        self.status_code = _STATUSES[outcome]


@dataclass
class _Call:
    arrival: float
    attempts: list[AttemptRecord]
    made: int = 0


def dry_run(guard: Guard, records: Iterable[AttemptRecord], changes: dict[str, Any]) -> DryRun:
    """Runs the recorded calls through ``guard`` once more, on a clock of their own."""
    if guard.targets or changes.get("targets"):
        raise ValueError(
            "dry_run: expected a guard without targets; a recording does not say where an attempt "
            "went, so replay it against a guard with the breaker and limiter of one of them"
        )
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError(
            "dry_run: an event loop is running in this thread; "
            "write `await asyncio.to_thread(guard.dry_run, recording)`"
        )
    if not isinstance(records, Iterable) or isinstance(records, str | bytes):
        got = type(records).__name__
        raise TypeError(
            f"recording: expected a Recording, got {got}; Recording.load(path) reads one"
        )
    known = list(records)
    for record in known:
        if not isinstance(record, AttemptRecord):
            got = type(record).__name__
            raise TypeError(f"recording: expected AttemptRecord objects, got {got}")
    for name in ("cache", "hedge", "recording"):
        if name in changes:
            raise TypeError(f"{name}: takes no part in a dry run")
    from ferrogate.testing import ManualClock, VirtualTimeLoop

    clock = ManualClock()
    replay = _Replay(guard, known, changes, clock)
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        runner.run(replay.run())
    return replay.report()


class _Replay:
    def __init__(
        self,
        guard: Guard,
        records: list[AttemptRecord],
        changes: dict[str, Any],
        clock: ManualClock,
    ) -> None:
        self._records = records
        self._calls = _calls_of(records)
        self._begin = self._calls[0].arrival if self._calls else 0.0
        self._ran = sorted(
            (record for record in records if record.outcome != "refused"), key=lambda r: r.at
        )
        self._times = [record.at for record in self._ran]
        self._clock = clock
        self._latencies: list[float] = []
        self._assumed = 0
        self._open_since: float | None = None
        self._open_seconds = 0.0
        again = Again(clock)
        changes = {name: again(part) for name, part in changes.items()}
        made_with = {**guard._made_with[1], **changes}
        if made_with.get("fallback") is not None:
            changes["fallback"] = _nothing
        if isinstance(made_with.get("limiter"), LLMLimiter):
            changes |= {"estimate": self._estimate, "usage": _usage, "price": None}
        # Room for the last attempt of each call, whatever the policy.
        self._replayed = Recording(max(1, 100 * len(records)))
        left_out = {"cache": None, "hedge": None, "recording": self._replayed}
        self._guard: Guard = again(guard, **changes, **left_out)
        self._breaker: CircuitBreaker | None = self._guard._made_with[1].get("breaker")
        if self._breaker is not None:
            self._breaker.on_open(self._opened)
            self._breaker.on_close(self._closed)

    def _opened(self, _: object) -> None:
        if self._open_since is None:
            self._open_since = self._clock.now()

    def _closed(self, _: object) -> None:
        if self._open_since is not None:
            self._open_seconds += self._clock.now() - self._open_since
            self._open_since = None

    async def run(self) -> None:
        """Every call when it came."""
        async with asyncio.TaskGroup() as tasks:
            for call in self._calls:
                ahead = call.arrival - self._begin - self._clock.now()
                if ahead > 0:
                    await asyncio.sleep(ahead)
                tasks.create_task(self._one(call))
        self._closed(None)

    async def _one(self, call: _Call) -> None:
        arrived = self._clock.now()
        # What is more than a limit can ever grant is a ValueError.
        with contextlib.suppress(FerrogateError, ValueError, _Replayed):
            await self._guard.call(self._attempt, call)
        self._latencies.append(self._clock.now() - arrived)

    async def _attempt(self, call: _Call) -> AttemptRecord:
        record = self._next(call)
        call.made += 1
        await asyncio.sleep(record.took)
        if record.outcome != "success":
            raise _Replayed(record.outcome)
        return record

    def _next(self, call: _Call) -> AttemptRecord:
        """The call's next attempt as recorded, or what the nearest one in time came to."""
        if call.made < len(call.attempts):
            return call.attempts[call.made]
        if not self._ran:
            return AttemptRecord(0, 1, 0.0, 0.0, 0.0, "success")
        self._assumed += 1
        now = self._begin + self._clock.now()
        after = bisect.bisect_left(self._times, now)
        around = self._ran[max(0, after - 1) : after + 1]
        return min(around, key=lambda record: abs(record.at - now))

    def _estimate(self, call: _Call) -> dict[str, Any]:
        record = (call.attempts or self._ran)[0]
        return {
            "input_tokens": record.input_tokens,
            "output_tokens": record.output_tokens,
            "cost_usd": record.cost_usd,
        }

    def report(self) -> DryRun:
        """What came of it."""
        stats = self._guard.get_stats()
        last = sorted(self._latencies) or [0.0]
        return DryRun(
            recorded=_totals_of(self._records),
            replayed=_totals_of(self._replayed),
            latency_p50_seconds=last[len(last) // 2],
            latency_p99_seconds=last[len(last) * 99 // 100],
            times_opened=self._breaker.get_stats()["times_opened"] if self._breaker else 0,
            open_seconds=self._open_seconds,
            timed_out=stats["timeouts"],
            fallbacks=stats["fallbacks"],
            assumed=self._assumed,
        )


def _nothing(_: Exception) -> None:
    """Stands in for the user's fallback."""


def _usage(record: AttemptRecord) -> dict[str, Any]:
    return {
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "cost_usd": record.cost_usd,
    }


def _calls_of(records: Iterable[AttemptRecord]) -> list[_Call]:
    """By their arrival; the attempts of each that ran, in their order."""
    by_call: dict[int, list[AttemptRecord]] = {}
    for record in records:
        by_call.setdefault(record.call, []).append(record)
    calls = []
    for attempts in by_call.values():
        attempts.sort(key=lambda record: record.attempt)
        ran = [record for record in attempts if record.outcome != "refused"]
        calls.append(_Call(attempts[0].at - attempts[0].waited, ran))
    return sorted(calls, key=lambda call: call.arrival)


def _totals_of(records: Iterable[AttemptRecord]) -> Totals:
    totals = Totals()
    ends: dict[int, AttemptRecord] = {}
    for record in records:
        last = ends.get(record.call)
        if last is None or last.attempt <= record.attempt:
            ends[record.call] = record
        totals.waited_seconds += record.waited
        totals.longest_wait_seconds = max(totals.longest_wait_seconds, record.waited)
        if record.outcome == "refused":
            continue
        totals.attempts += 1
        totals.seconds += record.took
        totals.failures += record.outcome == "failure"
        totals.throttled += record.outcome == "throttled"
        if record.outcome != "throttled":
            totals.tokens += record.input_tokens + record.output_tokens
            totals.cost_usd += record.cost_usd
    totals.calls = len(ends)
    totals.answered = sum(record.outcome == "success" for record in ends.values())
    totals.refused = sum(record.outcome == "refused" for record in ends.values())
    totals.failed = totals.calls - totals.answered - totals.refused
    return totals
