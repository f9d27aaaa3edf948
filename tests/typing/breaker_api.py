"""Type-checked, never run: what a user's checker sees of the circuit breaker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, assert_type

from ferrogate import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerOpenError,
    Guard,
    Outcome,
)
from ferrogate.breaker import SharedBreakerStats
from ferrogate.testing import ManualClock

breaker = CircuitBreaker(
    "llm",
    CircuitBreakerConfig(0.5, 30.0, 3, window=timedelta(minutes=1), ramp_up_seconds=10),
    clock=ManualClock(),
    classify=lambda result, error: Outcome.NEUTRAL if error else None,
)
assert_type(breaker.is_open(), bool)
assert_type(breaker.record_waste(usd=0.1, tokens=5), None)
assert_type(breaker.get_stats()["error_rate"], float)
assert_type(breaker.get_stats()["shared"], SharedBreakerStats | None)
CircuitBreaker("llm", CircuitBreakerConfig(), store="redis://localhost:6379/0")
assert_type(breaker.config, CircuitBreakerConfig)
guard = Guard("llm", breaker=breaker)


@breaker.on_open
def alarm(opened: CircuitBreaker) -> None:
    assert_type(opened.name, str)


async def coroutine(a: int, *, b: str = "") -> str:
    return b * a


def plain(a: int) -> float:
    return float(a)


@breaker
async def decorated(a: int) -> str:
    return str(a)


@breaker
async def stream(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


async def use() -> None:
    assert_type(await breaker.call(coroutine, 1, b="x"), str)
    assert_type(breaker.call_sync(plain, 1), float)
    assert_type(await decorated(1), str)
    async for item in stream(1):
        assert_type(item, int)
    async with breaker as same:
        assert_type(same, CircuitBreaker)
    with breaker as same:
        assert_type(same, CircuitBreaker)


def refused(error: CircuitBreakerOpenError) -> tuple[Any, ...]:
    assert_type(error.retry_after, float)
    return error.name, error.state
