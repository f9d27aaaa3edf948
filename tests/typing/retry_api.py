"""Type-checked, never run: what a user's checker sees of retries."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from ferrogate import Guard, RetryBudget, RetryPolicy, retry
from ferrogate.testing import ManualClock

budget = RetryBudget(0.2, usd_per_minute=1, window=timedelta(seconds=10), clock=ManualClock())
policy = RetryPolicy(5, base=0.1, jitter="equal", budget=budget, on=OSError)
RetryPolicy(on=(OSError, ValueError), total_timeout=timedelta(minutes=1))
RetryPolicy(on=lambda error: "again" in str(error))
RetryPolicy(on={OSError: 5, ValueError: False, KeyError: policy})
assert_type(policy.attempts_for(OSError()), int)
assert_type(policy.get_stats()["given_up"], dict[str, int])
assert_type(budget.get_stats()["saved"], float)


@retry()
def plain(a: int, *, b: str = "") -> float:
    return float(a) + len(b)


@retry(attempts=5, on=(OSError, TimeoutError))
async def coroutine(a: int) -> str:
    return str(a)


@policy
async def same(a: int) -> str:
    return str(a)


async def call() -> None:
    assert_type(plain(1, b="x"), float)
    assert_type(await coroutine(1), str)
    assert_type(await same(1), str)
    assert_type(policy.call_sync(plain, 1), float)
    plain("x")  # type: ignore[arg-type]
    Guard("openai", retry=policy)


RetryPolicy(jitter="some")  # type: ignore[arg-type]
RetryPolicy(on=KeyboardInterrupt)  # type: ignore[arg-type]
RetryPolicy(budget=0.2)  # type: ignore[arg-type]
