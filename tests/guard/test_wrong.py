"""Arguments and functions that a guard refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import pytest

from ferrogate import Guard, RateLimiter


async def waits() -> None: ...


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limiter": 5}, "limiter: expected a RateLimiter or an LLMLimiter, got int"),
        ({"breaker": "b"}, "breaker: expected a ferrogate.CircuitBreaker, got str"),
        ({"retry": 3}, "retry: expected a ferrogate.RetryPolicy, got int"),
        ({"bulkhead": 0}, "bulkhead: expected at least 1, got 0"),
        ({"bulkhead": True}, "bulkhead: expected an int, .* or a RateLimiter, got bool"),
        (
            {"bulkhead": RateLimiter("1/minute", burst=3)},
            "bulkhead: expected a RateLimiter of slots alone .burst=., got one of 1/minute",
        ),
        ({"timeout": -1}, "timeout: expected a duration above 0 seconds"),
        ({"attempt_timeout": "1"}, "attempt_timeout: expected seconds"),
        ({"fallback": 1}, "fallback: expected a callable or None, got int"),
        ({"classify": 1}, "classify: expected a callable or None, got int"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Guard("wrong", **arguments)


def test_wrong_functions() -> None:
    guard: Any = Guard("wrong")

    def generator() -> Any:
        yield

    with pytest.raises(TypeError, match="generator function"):
        guard(generator)
    with pytest.raises(TypeError, match="above @guard"):
        guard(staticmethod(waits))
    with pytest.raises(TypeError, match="expected a function"):
        guard(5)
