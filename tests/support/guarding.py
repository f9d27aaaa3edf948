"""What the tests of guards share: calls that are driven by hand, and what a guard holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ferrogate import CircuitBreaker, CircuitBreakerConfig, Guard, RateLimiter, RetryPolicy
from ferrogate.testing import ManualClock, VirtualTimeLoop

T = TypeVar("T")


def on_virtual_time(main: Callable[[ManualClock], Coroutine[Any, Any, T]]) -> T:
    """Runs ``main(clock)`` where waiting takes no time."""
    clock = ManualClock()
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        return runner.run(main(clock))


class Parts:
    """A guard of everything, and what of it is in use."""

    def __init__(
        self, clock: ManualClock | None = None, *, attempts: int = 3, **options: Any
    ) -> None:
        config = CircuitBreakerConfig(window=4, minimum_calls=2, timeout_seconds=10)
        self.breaker = CircuitBreaker("upstream", config, clock=clock)
        self.limiter = RateLimiter("1000000/minute", burst=2, clock=clock)
        self.slots = RateLimiter(burst=1, clock=clock)
        self.retry = RetryPolicy(attempts, base=1, jitter="none", clock=clock)
        options = {"timeout": 1000, "attempt_timeout": 100, **options}
        self.guard = Guard(
            "upstream",
            breaker=self.breaker,
            limiter=self.limiter,
            bulkhead=self.slots,
            retry=self.retry,
            clock=clock,
            **options,
        )

    def in_use(self) -> dict[str, int]:
        """Slots, waiters and probes."""
        return {
            "limiter": self.limiter.get_stats()["concurrent_requests"],
            "limiter waiting": self.limiter.get_stats()["waiting"],
            "bulkhead": self.slots.get_stats()["concurrent_requests"],
            "bulkhead waiting": self.slots.get_stats()["waiting"],
            "probes": self.breaker.get_stats()["probes"],
        }

    def is_at_rest(self) -> bool:
        return not any(self.in_use().values())
