"""Type-checked, never run: what a user's checker sees of the limiter of LLM calls."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from ferrogate import AdaptiveConcurrency, Guard, LLMLimiter
from ferrogate.adaptive import AdaptiveConcurrencyStats, AdaptiveRateStats
from ferrogate.llm_limiter import Denial, LLMDimensionStats, Reservation
from ferrogate.testing import ManualClock

limiter = LLMLimiter(
    "openai",
    requests_per_minute=500,
    tokens_per_minute=200_000,
    usd_per_minute=1.5,
    fairness="weighted",
    weights={"gold": 2, ("free", 1): 0.5},
    window_margin=timedelta(milliseconds=200),
    clock=ManualClock(),
)
assert_type(limiter.try_reserve(input_tokens=5), Reservation | Denial)
assert_type(limiter.reserve_sync(output_tokens=5, model="m", timeout=1), Reservation)
assert_type(limiter.eta(cost_usd=0.5), float)
assert_type(limiter.get_stats()["dimensions"], dict[str, LLMDimensionStats])
assert_type(limiter.update(requests_per_minute=None, concurrency=5), None)

found = AdaptiveConcurrency(20, most=200, law="aimd", slow_after=timedelta(seconds=2))
assert_type(limiter.update(concurrency=found), None)
assert_type(LLMLimiter(concurrency=found, adaptive_rate=True).concurrency, int | None)
assert_type(limiter.get_stats()["adaptive_concurrency"], AdaptiveConcurrencyStats | None)
assert_type(limiter.get_stats()["adaptive_rate"], AdaptiveRateStats | None)
assert_type(Guard("api", bulkhead=found), Guard)

answer = limiter.try_reserve(input_tokens=5, tenant="gold")
if answer:
    assert_type(answer, Reservation)
    assert_type(answer.first_token(), bool)
    assert_type(answer.settle(output_tokens=7), bool)
else:
    assert_type(answer.retry_after, float)


async def use() -> None:
    reserved = await limiter.reserve(input_tokens=5, max_output_tokens=100, timeout=0.5)
    assert_type(reserved, Reservation)
    async with reserved as same:
        assert_type(same, Reservation)
    with reserved as same:
        assert_type(same.release(), bool)
    limiter.pause(timedelta(seconds=5))
    limiter.learn("requests", limit=500, remaining=3, reset=0.5, reservation=reserved)
