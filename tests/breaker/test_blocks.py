"""``with`` and ``async with``: whose permit a block gives back, and how its end counts."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ferrogate import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerOpenError,
    Outcome,
    RateLimiter,
    RateLimitExceeded,
)
from ferrogate.testing import ManualClock


def half_open(**config: Any) -> tuple[CircuitBreaker, ManualClock]:
    clock = ManualClock()
    breaker = CircuitBreaker("api", CircuitBreakerConfig(**config), clock=clock)
    for _ in range(5):
        with contextlib.suppress(ValueError), breaker:
            raise ValueError
    clock.advance(30)
    assert breaker.state == "half_open"
    return breaker, clock


def counts(breaker: CircuitBreaker) -> tuple[int, int, int, int]:
    stats = breaker.get_stats()
    return stats["successes"], stats["failures"], stats["throttled"], stats["neutral"]


def probes(breaker: CircuitBreaker) -> int:
    return breaker.get_stats()["probes"]


class Status(Exception):
    def __init__(self, **attributes: object) -> None:
        super().__init__(attributes)
        self.__dict__.update(attributes)


class Sly(Exception):
    @property
    def status_code(self) -> int:
        raise RuntimeError("not now")


def denial() -> BaseException:
    limiter = RateLimiter("1/hour", clock=ManualClock())
    limiter.acquire_sync()
    with pytest.raises(RateLimitExceeded) as refused:
        limiter.acquire_sync(timeout=0)
    return refused.value


SUCCESS, FAILURE, THROTTLED, NEUTRAL = (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError(), FAILURE),
        (TimeoutError(), FAILURE),
        (ConnectionError(), FAILURE),
        (Status(status_code=500), FAILURE),
        (Status(status_code=404), NEUTRAL),
        (Status(status_code=429), THROTTLED),
        (Status(status=429), THROTTLED),
        (Status(response=SimpleNamespace(status_code=429)), THROTTLED),
        (Status(response=None, status_code="429"), FAILURE),
        (Status(status_code=2**70), FAILURE),
        (Sly(), FAILURE),
        (asyncio.CancelledError(), NEUTRAL),
        (KeyboardInterrupt(), NEUTRAL),
        (GeneratorExit(), NEUTRAL),
        (SystemExit(), NEUTRAL),
        (denial(), NEUTRAL),
        (CircuitBreakerOpenError("another one"), NEUTRAL),
    ],
    ids=repr,
)
def test_how_an_end_counts(error: BaseException, expected: tuple[int, int, int, int]) -> None:
    breaker = CircuitBreaker("api")
    with pytest.raises(type(error)) as raised, breaker:
        raise error
    assert raised.value is error
    assert counts(breaker) == expected

    async def main() -> None:
        async with CircuitBreaker("api") as own:
            pass
        assert counts(own) == SUCCESS
        other = CircuitBreaker("api")
        # What it would do to asyncio is asyncio's.
        aexit = other.__aexit__
        await other.__aenter__()
        await aexit(type(error), error, None)
        assert counts(other) == expected

    asyncio.run(main())


def test_throttling_opens_only_on_request() -> None:
    for count_throttled, state in [(False, "closed"), (True, "open")]:
        config = CircuitBreakerConfig(count_throttled=count_throttled)
        breaker = CircuitBreaker("api", config)
        for _ in range(5):
            with contextlib.suppress(Status), breaker:
                raise Status(status_code=429)
        assert breaker.state == state
        assert breaker.get_stats()["throttled"] == 5


def test_ones_own_classifier() -> None:
    said: dict[type[Exception], Any] = {
        ValueError: Outcome.NEUTRAL,
        KeyError: "throttled",
        TypeError: "success",
        OSError: None,
    }
    breaker = CircuitBreaker("api", classify=lambda _, error: said[type(error)])
    for kind in said:
        with contextlib.suppress(kind), breaker:
            raise kind
    assert counts(breaker) == (1, 1, 1, 1)
    with pytest.raises(KeyboardInterrupt), breaker:
        raise KeyboardInterrupt  # which is none of its business
    assert breaker.get_stats()["callback_errors"] == 0


def test_a_classifier_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    breaker = CircuitBreaker("api", classify=lambda *_: 1 / 0)  # type: ignore[arg-type, return-value]
    for _ in range(3):
        with contextlib.suppress(Status), breaker:
            raise Status(status_code=429)
    assert counts(breaker) == (0, 0, 3, 0)
    assert breaker.get_stats()["callback_errors"] == 3
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [
        ZeroDivisionError
    ]
    answers: list[Any] = ["sucess", 7, Outcome]
    breaker = CircuitBreaker("api", classify=lambda *_: answers.pop())
    for _ in range(3):
        with contextlib.suppress(ValueError), breaker:
            raise ValueError
    assert counts(breaker) == (0, 3, 0, 0)
    assert breaker.get_stats()["callback_errors"] == 3


@pytest.mark.parametrize("most", [1, 3])
def test_a_herd_at_a_half_open_breaker(run: Callable[..., Any], most: int) -> None:
    breaker, _ = half_open(half_open_max_calls=most)
    through: list[int] = []

    async def call(number: int, gate: asyncio.Event) -> None:
        async with breaker:
            through.append(number)
            await gate.wait()

    async def main() -> None:
        gate = asyncio.Event()
        tasks = [asyncio.create_task(call(number, gate)) for number in range(1000)]
        await asyncio.sleep(0)
        assert len(through) == most == probes(breaker)
        gate.set()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [error for error in ended if isinstance(error, CircuitBreakerOpenError)]
        assert len(refused) == 1000 - most
        assert {error.state for error in refused} == {"half_open"}
        assert {error.retry_after for error in refused} == {60.0}

    run(main())
    assert (len(through), probes(breaker)) == (most, 0)
    assert breaker.get_stats()["rejected"] == 1000 - most


def test_a_herd_of_threads() -> None:
    breaker, _ = half_open(half_open_max_calls=2)
    barrier, gate = threading.Barrier(17), threading.Event()
    through: list[bool] = []

    def call() -> None:
        barrier.wait()
        for _ in range(50):
            try:
                with breaker:
                    through.append(True)
                    gate.wait()
            except CircuitBreakerOpenError:
                pass
            else:
                return
        through.append(False)

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    barrier.wait()
    while len(through) < 16:
        pass
    gate.set()
    for thread in threads:
        thread.join()
    assert sorted(through) == [False] * 14 + [True] * 2
    assert probes(breaker) == 0


def test_a_cancelled_probe_gives_its_place_back(run: Callable[..., Any]) -> None:
    breaker, _ = half_open()

    async def hang() -> None:
        async with breaker:
            await asyncio.Event().wait()

    async def main() -> None:
        for turns in range(5):
            task = asyncio.create_task(hang())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert probes(breaker) == 0
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(hang(), 0.001)
            assert probes(breaker) == 0

    # `wait_for` cancels what it waits for: neutral, though it raises TimeoutError outside.
    run(main())
    assert breaker.state == "half_open"
    assert counts(breaker)[:3] == (0, 5, 0)


def test_an_abandoned_stream_gives_its_place_back(run: Callable[..., Any]) -> None:
    breaker, _ = half_open()

    async def stream() -> AsyncIterator[int]:
        async with breaker:
            for number in range(10):
                yield number

    async def main() -> None:
        chunks: Any = stream()
        assert await anext(chunks) == 0
        assert probes(breaker) == 1
        await chunks.aclose()
        assert probes(breaker) == 0
        # In another task than the one that began it.
        chunks = stream()
        assert await asyncio.create_task(anext(chunks)) == 0
        await asyncio.create_task(chunks.aclose())
        assert probes(breaker) == 0

    run(main())
    assert counts(breaker) == (0, 5, 0, 2)

    def lines() -> Iterator[int]:
        with breaker:
            yield 1

    abandoned = lines()
    assert next(abandoned) == 1
    assert probes(breaker) == 1
    del abandoned
    assert probes(breaker) == 0
    assert breaker.state == "half_open"


def test_a_probe_that_never_ends() -> None:
    breaker, clock = half_open(probe_timeout_seconds=600)
    hanging = breaker.__enter__()
    with pytest.raises(CircuitBreakerOpenError) as refused, breaker:
        pass
    assert refused.value.retry_after == 600
    clock.advance(600)
    for _ in range(3):
        with breaker:
            pass
    assert (breaker.state, hanging) == ("closed", breaker)


def test_one_that_is_entered_and_never_awaited() -> None:
    breaker, _ = half_open()
    for _ in range(3):
        entered: Any = breaker.__aenter__()
        assert probes(breaker) == 1
        del entered
        assert probes(breaker) == 0
    assert counts(breaker) == (0, 5, 0, 3)


def test_blocks_that_do_not_nest() -> None:
    """Each gives back its own permit: of the first stretch, or of the second."""
    clock = ManualClock()
    breaker = CircuitBreaker("api", clock=clock)

    def call(error: Exception | None = None) -> Iterator[None]:
        with contextlib.suppress(ValueError), breaker:
            yield
            if error is not None:
                raise error

    early, late = call(ValueError()), call(ValueError())
    next(early)
    next(late)
    for _ in range(5):
        with contextlib.suppress(ValueError), breaker:
            raise ValueError
    clock.advance(30)
    probe = call()
    next(probe)
    # Begun before it opened: how they end says nothing about now.
    for other in (early, late):
        assert next(other, None) is None
        assert (breaker.state, probes(breaker)) == ("half_open", 1)
    assert next(probe, None) is None
    assert (probes(breaker), counts(breaker)[:2]) == (0, (1, 7))


def test_blocks_within_blocks_and_exit_stacks(run: Callable[..., Any]) -> None:
    breaker = CircuitBreaker("api")

    def deep(levels: int) -> None:
        with breaker, breaker:
            if levels:
                deep(levels - 1)

    deep(50)
    assert counts(breaker) == (102, 0, 0, 0)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(breaker)
        with breaker:
            pass
    assert counts(breaker) == (108, 0, 0, 0)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack, breaker:
            for _ in range(5):
                await stack.enter_async_context(breaker)

    run(main())
    assert counts(breaker) == (114, 0, 0, 0)


def test_leaving_what_nobody_entered_is_nothing() -> None:
    breaker, _ = half_open()
    before = breaker.get_stats()
    breaker.__exit__(None, None, None)
    breaker.__exit__(ValueError, ValueError(), None)
    assert breaker.get_stats() == before


def test_blocks_that_are_never_left_do_not_pile_up() -> None:
    breaker = CircuitBreaker("api")
    for _ in range(65_536 + 100):
        breaker.__enter__()
    assert counts(breaker) == (0, 0, 0, 100)
    breaker.__exit__(None, None, None)
    assert counts(breaker) == (1, 0, 0, 100)


def test_many_tasks_at_once_each_count_once(run: Callable[..., Any]) -> None:
    breaker = CircuitBreaker("api", CircuitBreakerConfig(failure_threshold=1.0))

    async def call(number: int) -> None:
        async with breaker:
            for _ in range(number % 7):
                await asyncio.sleep(0)
            if number % 3 == 0:
                raise ValueError(number)

    async def main() -> None:
        calls = (call(number) for number in range(3000))
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(error, ValueError) for error in ended) == 1000

    run(main())
    assert counts(breaker) == (2000, 1000, 0, 0)
