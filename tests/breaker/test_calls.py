"""Calls through a breaker: ``call``, ``call_sync``, the decorator, and a guard that has one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from ferrogate import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerOpenError,
    Guard,
    Outcome,
    RateLimiter,
)
from ferrogate.testing import ManualClock


class Provider:
    """The other side."""

    def __init__(self) -> None:
        self.calls = 0
        self.well = True
        self.gate = asyncio.Event()

    def answer(self, prompt: str = "") -> str:
        self.calls += 1
        if not self.well:
            raise ConnectionError(prompt)
        return prompt.upper()

    async def ask(self, prompt: str = "") -> str:
        await asyncio.sleep(0)
        return self.answer(prompt)

    async def hang(self) -> str:
        self.calls += 1
        await self.gate.wait()
        return "late"


def half_open(**config: Any) -> tuple[CircuitBreaker, ManualClock, Provider]:
    clock, provider = ManualClock(), Provider()
    breaker = CircuitBreaker("api", CircuitBreakerConfig(**config), clock=clock)
    provider.well = False
    for _ in range(5):
        with contextlib.suppress(ConnectionError):
            breaker.call_sync(provider.answer)
    assert breaker.is_open()
    clock.advance(30)
    provider.well, provider.calls = True, 0
    return breaker, clock, provider


def probes(breaker: CircuitBreaker) -> int:
    return breaker.get_stats()["probes"]


def test_the_way_of_their_users(run: Callable[..., Any]) -> None:
    clock, provider = ManualClock(), Provider()
    alerts: list[str] = []
    breaker = CircuitBreaker(
        name="llm",
        config=CircuitBreakerConfig(
            failure_threshold=0.5, timeout_seconds=30.0, success_threshold=3
        ),
        clock=clock,
    )
    breaker.on_open(lambda b: alerts.append(f"{b.name} opened"))
    breaker.on_close(lambda b: alerts.append(f"{b.name} closed"))

    async def main() -> None:
        assert await breaker.call(provider.ask, prompt="hello") == "HELLO"
        provider.well = False
        for _ in range(4):
            with pytest.raises(ConnectionError):
                await breaker.call(provider.ask, prompt="hello")
        # 4 of 5 failed, which is strictly above a half.
        assert breaker.is_open()
        calls = provider.calls
        with pytest.raises(CircuitBreakerOpenError):
            await breaker.call(provider.ask, prompt="hello")
        assert provider.calls == calls
        clock.advance(30)
        provider.well = True
        for _ in range(3):
            await breaker.call(provider.ask, prompt="hello")
        assert not breaker.is_open()

    run(main())
    stats = breaker.get_stats()
    assert (stats["state"], stats["times_opened"]) == ("closed", 1)
    assert (stats["successes"], stats["failures"], stats["rejected"]) == (4, 4, 1)
    assert alerts == ["llm opened", "llm closed"]


def test_the_decorator(run: Callable[..., Any]) -> None:
    breaker = CircuitBreaker("api")
    provider = Provider()

    @breaker
    async def ask(prompt: str) -> str:
        """Asks."""
        return await provider.ask(prompt)

    @breaker
    def answer(prompt: str) -> str:
        return provider.answer(prompt)

    class Agent:
        @breaker
        async def ask(self, prompt: str) -> str:
            return await provider.ask(prompt)

    async def main() -> None:
        assert await ask("a") == "A"
        assert await Agent().ask("b") == "B"

    run(main())
    assert answer("c") == "C"
    assert (ask.__doc__, inspect.iscoroutinefunction(ask)) == ("Asks.", True)
    assert breaker.get_stats()["successes"] == 3
    assert repr(ask).endswith(f"behind {breaker!r}>")
    provider.well = False
    for _ in range(4):
        with pytest.raises(ConnectionError):
            answer("x")
    # 4 of 7.
    with pytest.raises(CircuitBreakerOpenError):
        answer("x")


def test_a_herd_at_a_half_open_breaker(run: Callable[..., Any]) -> None:
    breaker, _, provider = half_open(half_open_max_calls=2)

    async def main() -> None:
        calls = [asyncio.create_task(breaker.call(provider.hang)) for _ in range(1000)]
        await asyncio.sleep(0)
        assert (provider.calls, probes(breaker)) == (2, 2)
        provider.gate.set()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert ended.count("late") == 2
        assert sum(isinstance(error, CircuitBreakerOpenError) for error in ended) == 998

    run(main())
    assert (provider.calls, probes(breaker)) == (2, 0)


def test_a_probe_that_is_cancelled_or_abandoned(run: Callable[..., Any]) -> None:
    breaker, _, provider = half_open()

    async def main() -> None:
        for turns in range(4):
            task = asyncio.create_task(breaker.call(provider.hang))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert probes(breaker) == 0
        never_awaited = breaker.call(provider.hang)
        assert probes(breaker) == 0
        never_awaited.close()
        begun = breaker.call(provider.hang)
        begun.send(None)
        assert probes(breaker) == 1
        del begun
        assert probes(breaker) == 0

    run(main())
    stats = breaker.get_stats()
    assert (stats["state"], stats["successes"], stats["failures"]) == ("half_open", 0, 5)


def test_ones_own_classifier_sees_results(run: Callable[..., Any]) -> None:
    def classify(result: object, error: Exception | None) -> Outcome | None:
        assert (result is None) != (error is None)
        return Outcome.FAILURE if result == "" else None

    breaker = CircuitBreaker("api", classify=classify)
    for prompt in ("a", "", "", "", ""):
        breaker.call_sync(Provider().answer, prompt)
    assert breaker.state == "open"
    breaker = CircuitBreaker("api", classify=classify)
    provider = Provider()
    guard = Guard("api", breaker=breaker)
    for prompt in ("a", "", "", "", ""):
        run(guard_call(guard, provider.ask, prompt))
    assert (breaker.state, guard.get_stats()["failures"]) == ("open", 4)


async def guard_call(guard: Guard, *call: Any) -> Any:
    return await guard.call(*call)


def test_a_classifier_that_fails(run: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    breaker = CircuitBreaker("api", classify=lambda *_: 1 / 0)  # type: ignore[arg-type, return-value]
    provider = Provider()

    async def main() -> None:
        for _ in range(3):
            assert await breaker.call(provider.ask, "a") == "A"
            assert breaker.call_sync(provider.answer, "a") == "A"

    run(main())
    stats = breaker.get_stats()
    assert (stats["callback_errors"], stats["successes"]) == (6, 6)
    assert len(caplog.records) == 1


def test_a_guard_refuses_before_anything_is_waited_for(run: Callable[..., Any]) -> None:
    clock, provider = ManualClock(), Provider()
    breaker = CircuitBreaker("api", clock=clock)
    limiter = RateLimiter("3/hour", clock=clock)
    guard = Guard("api", breaker=breaker, limiter=limiter, clock=clock)
    breaker.force_open()

    async def main() -> None:
        for _ in range(5):
            with pytest.raises(CircuitBreakerOpenError):
                await guard.call(provider.ask)
            with pytest.raises(CircuitBreakerOpenError):
                guard.call_sync(provider.answer)

    run(main())
    assert (provider.calls, limiter.get_stats()["acquired"]) == (0, 0)
    assert guard.get_stats()["rejected"] == breaker.get_stats()["rejected"] == 10
    fallback = Guard("api", breaker=breaker, fallback=lambda error: type(error).__name__)
    assert fallback.call_sync(provider.answer) == "CircuitBreakerOpenError"
    switched_off = Guard("api", breaker=breaker, enabled=False)
    assert switched_off.call_sync(provider.answer, "a") == "A"


def test_a_guard_takes_a_probe_when_the_permit_is_there(run: Callable[..., Any]) -> None:
    breaker, _, provider = half_open()
    limiter = RateLimiter(burst=1)
    guard = Guard("api", breaker=breaker, limiter=limiter)

    async def main() -> None:
        async with limiter:
            waiting = asyncio.create_task(guard.call(provider.hang))
            await asyncio.sleep(0)
            assert (limiter.get_stats()["waiting"], probes(breaker)) == (1, 0)
            # Others need not wait for somebody who only waits.
            assert await breaker.call(provider.ask, "a") == "A"
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert probes(breaker) == 1
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert (probes(breaker), limiter.get_stats()["concurrent_requests"]) == (0, 0)

    run(main())


def test_streams(run: Callable[..., Any]) -> None:
    """HOSTILE 20: failed half-way is a failure; closed, left or cancelled says nothing."""
    breaker, _, _ = half_open(half_open_max_calls=2, success_threshold=99)

    @breaker
    async def numbers(last: int, error: Exception | None = None) -> AsyncIterator[int]:
        for number in range(last):
            yield number
        if error is not None:
            raise error
        if last == 2:
            await asyncio.Event().wait()

    async def consume(stream: AsyncIterator[int]) -> None:
        async for _ in stream:
            pass

    async def main() -> None:
        assert [number async for number in numbers(5)] == [0, 1, 2, 3, 4]
        assert (probes(breaker), breaker.get_stats()["successes"]) == (0, 1)
        chunks: Any = numbers(9)
        assert await anext(chunks) == 0
        assert probes(breaker) == 1
        await chunks.aclose()
        assert probes(breaker) == 0
        waiting = asyncio.create_task(consume(numbers(2)))
        for _ in range(3):
            await asyncio.sleep(0)
        assert probes(breaker) == 1
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert probes(breaker) == 0
        stats = breaker.get_stats()
        assert (stats["successes"], stats["failures"], stats["neutral"]) == (1, 5, 2)
        breaker.reset()
        for _ in range(5):
            with pytest.raises(ConnectionError):
                await consume(numbers(3, ConnectionError()))
        assert breaker.state == "open"
        with pytest.raises(CircuitBreakerOpenError):
            await consume(numbers(3))

    run(main())


def test_a_callback_runs_when_nothing_is_held_any_more(run: Callable[..., Any]) -> None:
    breaker = CircuitBreaker("api", CircuitBreakerConfig(window=1))
    limiter, seen = RateLimiter(burst=1), []
    guard = Guard("api", breaker=breaker, limiter=limiter, bulkhead=1)

    @breaker.on_open
    def alarm(_: CircuitBreaker) -> None:
        seen.append(limiter.get_stats()["concurrent_requests"])

    provider = Provider()
    provider.well = False

    async def main() -> None:
        with pytest.raises(ConnectionError):
            await guard.call(provider.ask)

    run(main())
    assert seen == [0]


def test_a_late_attempt_is_a_failure(run: Callable[..., Any]) -> None:
    breaker = CircuitBreaker("api", CircuitBreakerConfig(window=1))
    guard = Guard("api", breaker=breaker, attempt_timeout=0.001)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await guard.call(asyncio.Event().wait)

    run(main())
    assert breaker.state == "open"


def test_wrong_breakers_are_named() -> None:
    wrong: Any = "breaker"
    with pytest.raises(TypeError, match=r"^breaker: expected a ferrogate\.CircuitBreaker"):
        Guard("api", breaker=wrong)
    breaker: Any = CircuitBreaker("api")
    with pytest.raises(TypeError, match=r"^breaker: expected a function"):
        breaker("api")


@pytest.mark.memcheck
def test_functions_behind_a_breaker_are_collected() -> None:
    def tie() -> tuple[Any, ...]:
        breaker = CircuitBreaker("api")

        @breaker
        async def ask() -> object:
            return ask, breaker

        breaker.on_open(lambda _: ask)
        breaker.__dict__["guard"] = Guard("api", breaker=breaker)
        assert asyncio.run(ask())
        return weakref.ref(breaker), weakref.ref(ask)

    watched = tie()
    gc.collect()
    assert [ref() for ref in watched] == [None, None]
