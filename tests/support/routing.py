"""What the tests of targets share: upstreams that are scripted, and guards of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from ferrogate import CircuitBreaker, CircuitBreakerConfig, Guard, RateLimiter, RetryPolicy, Target
from ferrogate.testing import ManualClock


class Refused(Exception):
    """As a provider's SDK raises it."""

    def __init__(self, status_code: int, retry_after: float | None = None) -> None:
        super().__init__(status_code)
        self.status_code = status_code
        if retry_after is not None:
            self.retry_after = retry_after


class Upstream:
    """Answers after ``takes`` seconds with its name, or with what is next in ``script``."""

    def __init__(self, name: str, takes: float = 0.0, script: Sequence[Any] = ()) -> None:
        self.name = name
        self.takes = takes
        self.script = list(script)
        self.calls: list[Any] = []
        self.down: BaseException | None = None

    async def chat(self, prompt: Any = None) -> str:
        self.calls.append(prompt)
        answer = self.script.pop(0) if self.script else self.down
        if self.takes:
            await asyncio.sleep(self.takes)
        if isinstance(answer, BaseException):
            raise answer
        return self.name

    def chat_sync(self, prompt: Any = None) -> str:
        self.calls.append(prompt)
        answer = self.script.pop(0) if self.script else self.down
        if isinstance(answer, BaseException):
            raise answer
        return self.name


async def ask(prompt: Any = None, *, target: Target[Upstream]) -> str:
    return await target.value.chat(prompt)


def ask_sync(prompt: Any = None, *, target: Target[Upstream]) -> str:
    return target.value.chat_sync(prompt)


def breaker(name: str, clock: ManualClock | None, seconds: float = 30) -> CircuitBreaker:
    """One that opens at the second failure of two, and closes after one success."""
    config = CircuitBreakerConfig(
        window=2, minimum_calls=2, timeout_seconds=seconds, success_threshold=1
    )
    return CircuitBreaker(name, config, clock=clock)


def tripped(name: str, clock: ManualClock | None, seconds: float) -> CircuitBreaker:
    """One that has just opened."""
    known = breaker(name, clock, seconds)
    for _ in range(2):
        with contextlib.suppress(ConnectionError):
            known.call_sync(_fail)
    assert known.is_open()
    return known


def _fail() -> None:
    raise ConnectionError


def is_at_rest(guard: Guard) -> bool:
    """Whether nothing of any target is in use or waited for."""
    return not any(in_use(guard).values())


def in_use(guard: Guard) -> dict[str, int]:
    used: dict[str, int] = {}
    for target in guard.targets:
        used[f"{target.name} under way"] = guard.get_stats()["targets"][target.name]["under_way"]
        if target.breaker is not None:
            used[f"{target.name} probes"] = target.breaker.get_stats()["probes"]
        for part in (target.limiter, target.bulkhead):
            if isinstance(part, RateLimiter):
                stats = part.get_stats()
                used[f"{target.name} slots"] = stats["concurrent_requests"]
                used[f"{target.name} waiting"] = stats["waiting"]
            elif part is not None:
                used[f"{target.name} open"] = part.get_stats()["open"]
                used[f"{target.name} waiting"] = part.get_stats()["waiting"]
    return used


def guard_of(
    clock: ManualClock | None, *targets: Target[Any], attempts: int = 4, **options: Any
) -> Guard:
    retry = RetryPolicy(attempts, base=1, jitter="none", clock=clock)
    return Guard("chat", targets=list(targets), retry=retry, clock=clock, **options)
