"""Where a guard once did something else than the call alone, or than it says."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from guarding import on_virtual_time

from ferrogate import (
    CircuitBreaker,
    CircuitBreakerConfig,
    Guard,
    GuardTimeout,
    Hedge,
    LLMLimiter,
    RetryBudget,
    RetryPolicy,
)
from ferrogate.testing import ManualClock


class Upstream(Exception):
    def __init__(self, status_code: int = 500) -> None:
        super().__init__(status_code)
        self.status_code = status_code


@pytest.mark.parametrize("owner", [Guard("g"), CircuitBreaker("b"), RetryPolicy(1)])
def test_a_stop_iteration_is_no_result(owner: Any) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="raised StopIteration") as raised:
            await owner.call(next, iter([]))
        assert isinstance(raised.value.__cause__, StopIteration)
        task = asyncio.ensure_future(owner.call(next, iter([])))
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            await asyncio.wait_for(task, 30)

    asyncio.run(main())


def test_a_fallback_may_raise_what_it_was_given() -> None:
    def raises_it(error: Exception) -> None:
        raise error

    def raises_another(error: Exception) -> None:
        try:
            raise KeyError("looking for plan b")  # noqa: TRY301
        except KeyError:
            raise LookupError("no plan b")  # noqa: B904 -- its context is what is tested

    async def fails() -> None:
        raise Upstream

    async def main() -> None:
        with pytest.raises(Upstream) as raised:
            await Guard("g", fallback=raises_it).call(fails)
        assert raised.value.__context__ is None
        guard = Guard("g", fallback=raises_another)
        with pytest.raises(LookupError, match="no plan b") as other:
            await guard.call(fails)
        assert isinstance(other.value.__context__, KeyError)
        assert isinstance(other.value.__context__.__context__, Upstream)
        assert guard.get_stats()["fallbacks"] == 0

    asyncio.run(main())


def test_a_clock_that_is_moved_by_the_call_itself() -> None:
    async def main() -> None:
        clock = ManualClock()

        async def moves() -> int:
            await asyncio.sleep(0)
            clock.advance(10)
            return 1

        assert await Guard("g", attempt_timeout=5, clock=clock).call(moves) == 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(main())


def test_closing_a_stream_takes_the_time_it_takes() -> None:
    async def main(clock: ManualClock) -> None:
        cleaned = []

        @Guard("g", timeout=1, clock=clock)
        async def items() -> AsyncIterator[int]:
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(1)
                cleaned.append(clock.now())

        stream: Any = items()
        await anext(stream)
        await asyncio.sleep(2)
        await stream.aclose()
        assert cleaned == [3]
        stream = items()
        await anext(stream)
        await asyncio.sleep(2)
        with pytest.raises(KeyError):
            await stream.athrow(KeyError("the reader's"))

    on_virtual_time(main)


def test_the_error_names_the_limit_that_was_the_shorter_one() -> None:
    async def main() -> None:
        with pytest.raises(GuardTimeout) as late:
            await Guard("g", timeout=0.02, attempt_timeout=10).call(asyncio.sleep, 60)
        assert (late.value.timed_out, late.value.limit) == ("total", 0.02)
        with pytest.raises(GuardTimeout) as late:
            await Guard("g", timeout=10, attempt_timeout=0.02).call(asyncio.sleep, 60)
        assert (late.value.timed_out, late.value.limit) == ("attempt", 0.02)

    asyncio.run(main())


def test_mistakes_of_the_caller_are_not_the_providers() -> None:
    async def work() -> None: ...

    async def stream() -> AsyncIterator[int]:
        yield 1

    async def main() -> None:
        breaker = CircuitBreaker("b", CircuitBreakerConfig(minimum_calls=1))
        guard: Any = Guard("g", breaker=breaker)
        coroutine = work()
        with pytest.raises(TypeError, match=r"expected a callable and its arguments"):
            guard.call(coroutine)
        coroutine.close()
        for _ in range(3):
            with pytest.raises(TypeError, match="async generator function"):
                await guard.call(stream)
            with pytest.raises(TypeError, match="returned something to be awaited"):
                guard.call_sync(work)
        assert not breaker.is_open()
        assert breaker.get_stats()["failures"] == 0

    asyncio.run(main())


def test_what_a_coroutine_refuses() -> None:
    async def work() -> None:
        await asyncio.sleep(0)

    call: Any = Guard("g").call(work)
    with pytest.raises(TypeError, match="must be classes or instances deriving from BaseException"):
        call.throw(5)
    with pytest.raises(TypeError, match="non-None value to a just-started"):
        call.send(5)
    call.send(None)
    call.close()


def hedged(clock: ManualClock, **options: Any) -> Guard:
    hedge = Hedge(delay=1, budget=RetryBudget(1.0, clock=clock))
    return Guard("hedged", hedge=hedge, clock=clock, **options)


def test_a_429_of_the_first_call_is_learned_all_the_same() -> None:
    class Refused(Upstream):
        retry_after = 30.0

    async def main(clock: ManualClock) -> None:
        limiter = LLMLimiter(requests_per_minute=100, clock=clock)
        begun = []

        async def work() -> str:
            begun.append(clock.now())
            first = len(begun) == 1
            await asyncio.sleep(2 if first else 5)
            if first:
                raise Refused(429)
            return "answer"

        assert await hedged(clock, limiter=limiter).call(work) == "answer"
        assert limiter.get_stats()["paused_seconds"] == pytest.approx(26, abs=0.01)

    on_virtual_time(main)


def test_the_classifier_says_who_has_won() -> None:
    async def main(clock: ManualClock) -> None:
        answers = iter([(3, "good"), (1, "bad")])

        async def work() -> str:
            takes, answer = next(answers)
            await asyncio.sleep(takes)
            return answer

        def classify(result: Any, _: Any) -> str | None:
            return "failure" if result == "bad" else None

        guard = hedged(clock, classify=classify)
        assert await guard.call(work) == "good"
        answers = iter([(2, "bad"), (5, "good")])
        assert await guard.call(work) == "good"
        answers = iter([(2, "bad"), (5, "bad")])
        assert await guard.call(work) == "bad"
        stats = guard.get_stats()
        assert (stats["calls"], stats["successes"], stats["failures"]) == (3, 2, 1)

    on_virtual_time(main)


def test_failures_do_not_shorten_the_delay() -> None:
    async def main(clock: ManualClock) -> None:
        hedge = Hedge()
        guard = Guard("g", hedge=hedge, clock=clock)
        for _ in range(20):
            await guard.call(asyncio.sleep, 1)

        async def fails() -> None:
            await asyncio.sleep(0)
            raise Upstream

        for _ in range(500):
            with pytest.raises(Upstream):
                await guard.call(fails)
        assert hedge.get_stats()["delay"] == pytest.approx(1, rel=0.07)

    on_virtual_time(main)


def test_closing_a_call_takes_its_second_one_along() -> None:
    async def main(clock: ManualClock) -> None:
        begun = []
        cancelled = []

        async def work() -> None:
            begun.append(clock.now())
            first = len(begun) == 1
            try:
                await asyncio.sleep(2 if first else 50)
            except asyncio.CancelledError:
                cancelled.append(clock.now())
                raise
            raise Upstream

        task = asyncio.ensure_future(hedged(clock).call(work))
        await asyncio.sleep(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert cancelled == [5]

    on_virtual_time(main)


def test_money_that_two_calls_wasted() -> None:
    async def main(clock: ManualClock) -> None:
        breaker = CircuitBreaker("b", clock=clock)
        guard = hedged(
            clock,
            breaker=breaker,
            limiter=LLMLimiter(usd_per_minute=100.0, clock=clock),
            estimate=lambda: {"cost_usd": 1.0},
        )

        async def work() -> None:
            await asyncio.sleep(2)
            raise Upstream

        with pytest.raises(Upstream):
            await guard.call(work)
        # The first one's; what the second wasted nobody tells the breaker.
        assert breaker.get_stats()["wasted_usd"] == pytest.approx(1.0)

    on_virtual_time(main)


def test_a_stream_of_dicts_says_what_it_took() -> None:
    async def main() -> None:
        limiter = LLMLimiter(input_tokens_per_minute=10_000, output_tokens_per_minute=10_000)
        guard = Guard("g", limiter=limiter)

        @guard
        async def chunks(prompt: str) -> AsyncIterator[dict[str, Any]]:
            yield {"text": "hello"}
            yield {"usage": {"input_tokens": 7, "output_tokens": 9}}

        async for _ in chunks("hello"):
            pass
        used = {name: row["used"] for name, row in limiter.get_stats()["dimensions"].items()}
        assert used == {"input_tokens": 7, "output_tokens": 9}

    asyncio.run(main())


def test_a_call_that_is_never_awaited_is_warned_of() -> None:
    guard, breaker = Guard("unawaited"), CircuitBreaker("unawaited")

    @guard
    async def ask(x: int) -> int:
        return x

    @guard
    async def stream() -> AsyncIterator[int]:
        yield 1

    for forget in (
        lambda: ask(1),
        lambda: guard.call(ask, 1),
        lambda: breaker.call(ask, 1),
    ):
        with pytest.warns(RuntimeWarning, match=r"coroutine '.*ask' was never awaited"):
            forget()

    async def told_otherwise() -> None:
        ask(1).close()  # type: ignore[attr-defined]
        cancelled = asyncio.create_task(ask(1))
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        # Making a stream, or one step of it, is no call.
        stream()
        stream().__anext__()  # type: ignore[attr-defined]
        assert await ask(2) == 2

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(told_otherwise())
        # What a filter makes an error reaches nobody, least of all an error that passes.
        told: list[Any] = []
        hook, sys.unraisablehook = sys.unraisablehook, told.append
        try:
            with pytest.raises(ZeroDivisionError):
                asyncio.gather(ask(1), 1 // 0)  # type: ignore[call-overload]
        finally:
            sys.unraisablehook = hook
        assert [type(one.exc_value) for one in told] == [RuntimeWarning]
    assert guard.get_stats()["calls"] == 1
