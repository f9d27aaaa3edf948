"""Attempts that last longer than the call that began them, as those of transports do."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from ferrogate import CircuitBreaker, CircuitBreakerConfig, Guard, RateLimiter, RetryPolicy, _core
from ferrogate.testing import ManualClock

Open = Callable[..., Any]


def opens_sync(guard: Guard, once: bool, function: Any, *args: Any) -> tuple[Any, Any]:
    attempt = _core._OpenAttempt()
    return attempt, guard._open_sync(attempt, once, function, *args)


def opens(guard: Guard, once: bool, function: Any, *args: Any) -> tuple[Any, Any]:
    attempt = _core._OpenAttempt()

    async def later(*args: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args)

    async def main() -> Any:
        return await guard._open(attempt, once, later, *args)

    return attempt, asyncio.run(main())


@pytest.fixture(params=[opens, opens_sync])
def open_(request: pytest.FixtureRequest) -> Open:
    return request.param  # type: ignore[no-any-return]


def parts() -> tuple[Guard, CircuitBreaker, RateLimiter]:
    breaker, bulkhead = CircuitBreaker("open"), RateLimiter(burst=2)
    return Guard("open", breaker=breaker, bulkhead=bulkhead), breaker, bulkhead


@pytest.mark.parametrize("way", ["end", "fail", "cancel", "abandon", "drop"])
def test_what_it_holds_goes_back_when_it_is_told_how_it_ended(open_: Open, way: str) -> None:
    guard, breaker, bulkhead = parts()
    attempt, result = open_(guard, False, abs, -1)
    assert result == 1
    assert bulkhead.get_stats()["concurrent_requests"] == 1
    assert sum(count for name, count in guard._counts() if name != "calls") == 0
    if way == "end":
        attempt.end(result)
        attempt.end(None, ValueError())
    elif way == "fail":
        attempt.end(None, ValueError())
    elif way == "cancel":
        attempt.end(None, asyncio.CancelledError())
    elif way == "abandon":
        attempt.abandon()
        attempt.end(result)
    else:
        del attempt
        gc.collect()
    assert bulkhead.get_stats()["concurrent_requests"] == 0
    stats = breaker.get_stats()
    told = {"end": (1, 0, 0), "fail": (0, 1, 0)}.get(way, (0, 0, 1))
    assert (stats["successes"], stats["failures"], stats["neutral"]) == told
    counted = guard.get_stats()
    assert (counted["successes"], counted["failures"], counted["neutral"]) == told


def test_one_that_raises_has_ended_and_is_retried(open_: Open) -> None:
    policy = RetryPolicy(attempts=3, base=0)
    guard = Guard("open", retry=policy)
    for once, made in ((False, 3), (True, 1)):
        calls: list[int] = []

        def fail(calls: list[int] = calls) -> None:
            calls.append(1)
            raise ValueError("failed")

        attempt = None
        with pytest.raises(ValueError, match="failed"):
            attempt, _ = open_(guard, once, fail)
        assert attempt is None
        assert len(calls) == made
    assert policy.get_stats()["calls"] == 1
    assert guard.get_stats()["failures"] == 4


def test_a_probe_is_held_until_the_end(open_: Open) -> None:
    clock = ManualClock()
    config = CircuitBreakerConfig(timeout_seconds=10, success_threshold=1, minimum_calls=1)
    breaker = CircuitBreaker("open", config, clock=clock)
    guard = Guard("open", breaker=breaker)
    attempt, _ = open_(guard, False, abs, 1)
    attempt.end(None, ValueError())
    assert breaker.state == "open"
    clock.advance(10)
    attempt, _ = open_(guard, False, abs, 1)
    assert (breaker.state, breaker.get_stats()["probes"]) == ("half_open", 1)
    attempt.abandon()
    assert (breaker.state, breaker.get_stats()["probes"]) == ("half_open", 0)
    attempt, _ = open_(guard, False, abs, 1)
    attempt.end(1)
    assert breaker.state == "closed"


def test_what_classifies_sees_the_result(open_: Open) -> None:
    seen: list[Any] = []

    def classify(result: Any, error: Exception | None) -> str:
        seen.append((result, error))
        return "throttled"

    guard = Guard("open", classify=classify)
    attempt, _ = open_(guard, False, abs, -7)
    assert seen == []
    attempt.end("the response")
    assert seen == [("the response", None)]
    assert guard.get_stats()["throttled"] == 1


def test_one_object_for_two_attempts_lets_the_first_go(open_: Open) -> None:
    guard, _, bulkhead = parts()
    attempt = _core._OpenAttempt()
    guard._open_sync(attempt, False, abs, 1)
    guard._open_sync(attempt, False, abs, 1)
    assert bulkhead.get_stats()["concurrent_requests"] == 1
    attempt.end(1)
    assert bulkhead.get_stats()["concurrent_requests"] == 0


def test_a_cycle_with_its_guard_is_collected() -> None:
    died = []

    class Noted(Guard):
        def __del__(self) -> None:
            died.append(1)

    guard = Noted("cycle", fallback=lambda _: None)
    attempt = _core._OpenAttempt()
    guard._open_sync(attempt, False, abs, 1)
    guard.attempt = attempt  # type: ignore[attr-defined]
    del guard, attempt
    gc.collect()
    assert died == [1]
