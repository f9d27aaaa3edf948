"""A guard's parts together: their order, what each attempt takes, and that all of it comes back."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from guarding import Parts, on_virtual_time

from ferrogate import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerOpenError,
    Guard,
    Outcome,
    RateLimiter,
    RateLimitExceeded,
    RetryPolicy,
)
from ferrogate.testing import ManualClock


class Upstream(Exception):
    def __init__(self, status_code: int = 500) -> None:
        super().__init__(status_code)
        self.status_code = status_code


async def waits(_: object = None) -> str:
    await asyncio.sleep(1)
    return "answer"


async def cancelled_at(parts: Parts, function: Any, after: float) -> bool:
    """Cancels a call of the guard after so many seconds; whether it was under way."""
    task = asyncio.ensure_future(parts.guard.call(function))
    await asyncio.sleep(after)
    under_way = not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return under_way


@pytest.mark.parametrize("busy", ["free", "bulkhead taken", "limiter taken"])
def test_cancelled_at_every_await(busy: str) -> None:
    """HOSTILE 14: whatever it waits for, everything it held is back at once."""

    async def main(clock: ManualClock) -> int:
        parts = Parts(clock)
        fails = itertools.count()

        async def fails_first() -> str:
            await asyncio.sleep(0.5)
            if next(fails) % 3 == 0:
                raise Upstream
            return "answer"

        for turn in range(100):
            holders = []
            if busy == "bulkhead taken":
                holders.append(parts.slots)
            if busy == "limiter taken":
                holders += [parts.limiter, parts.limiter]
            for holder in holders:
                await holder.__aenter__()
            if holders:
                asyncio.get_running_loop().call_later(
                    0.25, lambda held=holders: [h.__exit__(None, None, None) for h in held]
                )
            under_way = await cancelled_at(parts, fails_first, turn / 10)
            await asyncio.sleep(1)
            assert parts.is_at_rest(), (turn, parts.in_use())
            parts.breaker.reset()
            if not under_way:
                return turn
        raise AssertionError

    assert on_virtual_time(main) > 2


def test_a_stream_cancelled_or_left_at_every_item() -> None:
    async def main(clock: ManualClock) -> None:
        parts = Parts(clock)

        @parts.guard
        async def items() -> AsyncIterator[int]:
            for number in range(4):
                await asyncio.sleep(0)
                yield number

        for left_after in range(5):
            stream = items()
            async for number in stream:
                assert parts.in_use()["limiter"] == 1
                if number == left_after:
                    break
            del stream
            assert parts.is_at_rest(), left_after
        stats = parts.breaker.get_stats()
        assert (stats["successes"], stats["failures"], stats["neutral"]) == (1, 0, 4)

        async def read() -> None:
            async for _ in items():
                pass

        for turn in range(8):
            task = asyncio.ensure_future(read())
            for _ in range(turn):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert parts.is_at_rest(), turn

    on_virtual_time(main)


def test_a_stream_that_fails_halfway_is_a_failure() -> None:
    """HOSTILE 20: one of interlock-cb's failing streams counted as a success."""

    async def main(clock: ManualClock) -> None:
        parts = Parts(clock)
        tried = []

        @parts.guard
        async def items() -> AsyncIterator[int]:
            tried.append(1)
            yield 1
            raise Upstream

        for _ in range(2):
            stream = items()
            assert await anext(stream) == 1
            with pytest.raises(Upstream):
                await anext(stream)
        assert len(tried) == 2  # Not once more after the first item.
        assert parts.breaker.get_stats()["failures"] == 2
        assert parts.is_at_rest()

    on_virtual_time(main)


def test_a_stream_is_tried_again_until_its_first_item() -> None:
    async def main(clock: ManualClock) -> None:
        tried = []

        @RetryPolicy(attempts=3, base=1, jitter="none", clock=clock)
        async def items() -> AsyncIterator[int]:
            tried.append(clock.now())
            if len(tried) < 3:
                raise Upstream
            yield len(tried)

        assert [item async for item in items()] == [3]
        assert tried == [0, 1, 3]

    on_virtual_time(main)


def test_an_open_breaker_refuses_before_anybody_waits_for_a_permit() -> None:
    async def main(clock: ManualClock) -> None:
        parts = Parts(clock)
        parts.breaker.force_open()
        async with parts.slots:
            with pytest.raises(CircuitBreakerOpenError):
                await parts.guard.call(waits)
        assert clock.now() == 0
        assert parts.limiter.get_stats()["acquired"] == 0
        assert parts.is_at_rest()

    on_virtual_time(main)


def test_a_probe_slot_is_held_only_once_the_permit_is_there() -> None:
    async def main(clock: ManualClock) -> None:
        parts = Parts(clock, attempts=1)
        for _ in range(2):
            with pytest.raises(Upstream):
                await parts.guard.call(failing)
        assert parts.breaker.is_open()
        await asyncio.sleep(11)
        async with parts.slots:
            waiting = asyncio.ensure_future(parts.guard.call(waits))
            await asyncio.sleep(1)
            # Somebody else probes, while it still waits for its slot.
            assert parts.in_use()["probes"] == 0
            assert await parts.breaker.call(waits) == "answer"
        assert await waiting == "answer"
        assert parts.is_at_rest()

    on_virtual_time(main)


async def failing() -> None:
    raise Upstream


def test_every_attempt_takes_a_permit_and_pauses_hold_none() -> None:
    async def main(clock: ManualClock) -> None:
        limiter = RateLimiter("10/hour", burst=1, clock=clock)
        retry = RetryPolicy(attempts=3, base=4, jitter="none", clock=clock)
        guard = Guard("permits", limiter=limiter, retry=retry, clock=clock)
        task = asyncio.ensure_future(guard.call(failing))
        await asyncio.sleep(1)
        assert limiter.get_stats()["concurrent_requests"] == 0
        with pytest.raises(Upstream) as raised:
            await task
        assert raised.value.__notes__ == ["ferrogate: gave up after 3 attempts (attempts)"]
        assert limiter.get_stats()["acquired"] == 3
        assert clock.now() == 4 + 8

    on_virtual_time(main)


def test_what_a_part_refused_is_not_tried_again() -> None:
    async def main(clock: ManualClock) -> None:
        limiter = RateLimiter("1/hour", clock=clock)
        guard = Guard(
            "refused", limiter=limiter, retry=RetryPolicy(clock=clock), timeout=10, clock=clock
        )
        assert await guard.call(waits) == "answer"
        with pytest.raises(RateLimitExceeded):
            await guard.call(waits)
        assert clock.now() == 1  # At once: an hour is more than the guard has.
        stats = guard.get_stats()
        assert (stats["calls"], stats["successes"], stats["rejected"]) == (2, 1, 1)

    on_virtual_time(main)


def test_a_refused_retry_shows_what_it_was_for() -> None:
    async def main(clock: ManualClock) -> None:
        config = CircuitBreakerConfig(minimum_calls=1, window=1)
        guard = Guard(
            "cause",
            breaker=CircuitBreaker("b", config, clock=clock),
            retry=RetryPolicy(attempts=5, base=0, clock=clock),
        )
        with pytest.raises(CircuitBreakerOpenError) as refused:
            await guard.call(failing)
        assert isinstance(refused.value.__cause__, Upstream)

    on_virtual_time(main)


@pytest.mark.parametrize("kind", ["value", "plain", "coroutine"])
def test_a_fallback_answers(kind: str) -> None:
    async def main(clock: ManualClock) -> None:
        seen: list[Exception] = []

        def plain(error: Exception) -> str:
            seen.append(error)
            return "plan b"

        async def later(error: Exception) -> str:
            await asyncio.sleep(1)
            return plain(error)

        parts = Parts(clock, attempts=1, fallback=later if kind == "coroutine" else plain)
        assert await parts.guard.call(failing) == "plan b"
        parts.breaker.force_open()
        assert await parts.guard.call(waits) == "plan b"
        assert [type(error) for error in seen] == [Upstream, CircuitBreakerOpenError]
        assert parts.guard.get_stats()["fallbacks"] == 2
        task = asyncio.ensure_future(parts.guard.call(waits))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    on_virtual_time(main)


def test_a_fallback_that_raises_shows_what_it_stood_in_for() -> None:
    def fails(_: Exception) -> None:
        raise KeyError("plan b")

    async def main() -> None:
        with pytest.raises(KeyError) as raised:
            await Guard("fallback", fallback=fails).call(failing)
        assert isinstance(raised.value.__context__, Upstream)

    asyncio.run(main())


def test_a_stream_falls_back_to_another() -> None:
    async def other(_: Exception) -> AsyncIterator[str]:
        yield "from b"

    @Guard("streams", fallback=other)
    async def items() -> AsyncIterator[str]:
        raise Upstream
        yield "from a"

    async def main() -> list[str]:
        return [item async for item in items()]

    assert asyncio.run(main()) == ["from b"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Upstream(500), "failures"),
        (Upstream(429), "throttled"),
        (Upstream(400), "neutral"),
        (Upstream(408), "failures"),
        (ValueError(), "failures"),
        (RateLimitExceeded("ours"), "neutral"),
    ],
)
def test_one_outcome_for_all_parts(error: Exception, outcome: str) -> None:
    async def raises() -> None:
        raise error

    async def main() -> None:
        breaker = CircuitBreaker("told")
        guard = Guard("told", breaker=breaker)
        with pytest.raises(type(error)):
            await guard.call(raises)
        told: Any = guard.get_stats()
        also: Any = breaker.get_stats()
        assert told[outcome] == also[outcome] == 1

    asyncio.run(main())


def test_a_classifier_decides_on_results_and_errors(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def answers(status: int) -> int:
        if status == 0:
            raise LookupError
        return status

    def classify(result: int | None, error: Exception | None) -> Outcome | str | None:
        if error is not None:
            return "neutral"
        if result == 13:
            raise KeyError("the classifier's own")
        return Outcome.THROTTLED if result == 429 else None

    async def main(clock: ManualClock) -> None:
        retry = RetryPolicy(attempts=2, base=1, jitter="none", clock=clock)
        guard = Guard("judged", classify=classify, retry=retry, clock=clock)
        assert await guard.call(answers, 429) == 429  # After a second attempt.
        with pytest.raises(LookupError):
            await guard.call(answers, 0)
        assert await guard.call(answers, 13) == 13
        assert await guard.call(answers, 13) == 13
        stats = guard.get_stats()
        assert (stats["throttled"], stats["neutral"], stats["successes"]) == (2, 1, 2)
        assert (stats["retries"], stats["classify_errors"]) == (1, 2)

    unraisable: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", unraisable.append)
        on_virtual_time(main)
    # Told once, counted each time.
    assert len(unraisable) == 1


def test_plain_functions() -> None:
    parts = Parts(timeout=None, attempt_timeout=None)
    calls = itertools.count()
    retry = RetryPolicy(attempts=3, base=0.001)
    guard = Guard("plain", limiter=parts.limiter, bulkhead=parts.slots, retry=retry)

    @guard
    def fails_twice(x: int) -> int:
        assert parts.in_use()["bulkhead"] == 1
        if next(calls) < 2:
            raise Upstream
        return x

    assert fails_twice(7) == 7
    assert guard.call_sync(max, 1, 2) == 2
    assert parts.is_at_rest()
    with pytest.raises(TypeError, match="to be awaited"):
        guard.call_sync(waits)
    assert parts.is_at_rest()


def test_plain_functions_pause_on_a_manual_clock() -> None:
    clock = ManualClock()
    tried: list[float] = []

    @RetryPolicy(attempts=3, base=60, max_delay=600, jitter="none", clock=clock)
    def fails() -> None:
        tried.append(clock.now())
        raise Upstream

    def run() -> None:
        with pytest.raises(Upstream):
            fails()

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        clock.advance(30)
    thread.join()
    assert len(tried) == 3


def test_disabled_it_only_counts() -> None:
    async def main() -> None:
        guard = Guard("off", limiter=RateLimiter("1/hour"), enabled=False)
        for _ in range(3):
            await guard.call(asyncio.sleep, 0)
        assert guard.get_stats()["calls"] == 3
        assert not guard.enabled

    asyncio.run(main())
