"""Type-checked, never run: several targets behind one guard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import assert_type

from ferrogate import CircuitBreaker, Guard, RateLimiter, RetryPolicy, Target, TargetsUnavailable


class Client:
    async def chat(self, prompt: str) -> str:
        return prompt


east = Target("east", Client(), breaker=CircuitBreaker("east"), weight=3, price=(0.5, 1.5))
west = Target("west", Client(), limiter=RateLimiter("60/minute"), bulkhead=5, price=0.01)
guard = Guard("chat", targets=[east, west], route="cheapest", retry=RetryPolicy(4), timeout=30)


@guard
async def ask(prompt: str, *, target: Target[Client] = Target.chosen) -> str:
    return await target.value.chat(prompt)


@guard
async def stream(prompt: str, *, target: Target[Client] = Target.chosen) -> AsyncIterator[str]:
    yield await target.value.chat(prompt)


async def main() -> None:
    assert_type(await ask("hi"), str)
    assert_type(await guard.call(ask, "hi"), str)
    assert_type(guard.targets[0].name, str)
    assert_type(east.value, Client)
    try:
        async for item in stream("hi"):
            assert_type(item, str)
    except TargetsUnavailable as error:
        assert_type(error.reasons, dict[str, str])
        assert_type(error.retry_after, float)
    for row in guard.get_stats().get("targets", {}).values():
        assert_type(row["share"], float)
