"""Time limits of attempts and of whole calls, on virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from guarding import on_virtual_time

from ferrogate import Guard, GuardTimeout, RateLimiter, RateLimitExceeded, RetryPolicy
from ferrogate.testing import ManualClock


class Upstream(Exception):
    pass


async def failing() -> None:
    raise Upstream


async def waits(_: object = None) -> str:
    await asyncio.sleep(1)
    return "answer"


def test_an_attempt_that_takes_too_long() -> None:
    async def main(clock: ManualClock) -> None:
        cancelled = []

        async def hangs() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                cancelled.append(clock.now())

        retry = RetryPolicy(attempts=2, base=1, jitter="none", clock=clock)
        guard = Guard("slow", attempt_timeout=5, retry=retry, clock=clock)
        with pytest.raises(GuardTimeout) as late:
            await guard.call(hangs)
        assert (late.value.timed_out, late.value.limit, late.value.name) == ("attempt", 5, "slow")
        assert isinstance(late.value.__cause__, asyncio.CancelledError)
        assert cancelled == [5, 11]
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    on_virtual_time(main)


def test_the_deadline_bounds_everything() -> None:
    async def main(clock: ManualClock) -> None:
        async def hangs() -> None:
            await asyncio.sleep(1000)

        guard = Guard("late", timeout=5, clock=clock)
        with pytest.raises(GuardTimeout) as late:
            await guard.call(hangs)
        assert (late.value.timed_out, clock.now()) == ("total", 5)

        # No pause ends after it.
        retry = RetryPolicy(attempts=9, base=4, jitter="none", clock=clock)
        guard = Guard("late", timeout=5, retry=retry, clock=clock)
        with pytest.raises(Upstream) as gave_up:
            await guard.call(failing)
        assert gave_up.value.__notes__[0].endswith("(deadline)")
        assert clock.now() == 9

    on_virtual_time(main)


def test_a_cancellation_from_outside_stays_one() -> None:
    async def main(clock: ManualClock) -> None:
        async def stubborn() -> str:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                await asyncio.sleep(10)
                raise
            return "answer"

        guard = Guard("both", attempt_timeout=5, clock=clock)
        task = asyncio.ensure_future(guard.call(stubborn))
        await asyncio.sleep(6)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        # One that puts up with the cancellation has its answer.
        async def finishes() -> str:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                return "in spite of it"
            return "answer"

        assert await guard.call(finishes) == "in spite of it"
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    on_virtual_time(main)


def test_asyncio_timeouts_around_and_within() -> None:
    async def main(clock: ManualClock) -> None:
        guard = Guard("nested", attempt_timeout=5, clock=clock)

        async def hangs() -> None:
            await asyncio.sleep(1000)

        with pytest.raises(TimeoutError) as outer:
            async with asyncio.timeout(3):
                await guard.call(hangs)
        assert not isinstance(outer.value, GuardTimeout)

        async def inner() -> str:
            try:
                async with asyncio.timeout(2):
                    await hangs()
            except TimeoutError:
                return "inner"
            return "none"

        assert await guard.call(inner) == "inner"
        nested = Guard("outer", timeout=4, clock=clock)
        with pytest.raises(GuardTimeout) as late:
            await nested.call(guard.call, hangs)
        assert late.value.name == "outer"

    on_virtual_time(main)


def test_time_limits_on_the_loops_own_clock() -> None:
    """Without `clock=` a loop's calls share one of its timers."""

    async def main(_: ManualClock) -> None:
        loop = asyncio.get_running_loop()

        async def hangs(seconds: float) -> float:
            begun = loop.time()
            try:
                await Guard("shared", attempt_timeout=seconds).call(asyncio.sleep, 1000)
            except GuardTimeout:
                return loop.time() - begun
            return -1

        limits = [5.0, 3.0, 9.0, 3.0, 1.0, 7.0]
        took = await asyncio.gather(*map(hangs, limits))
        assert took == pytest.approx(limits, abs=1e-5)
        begun = loop.time()
        assert await Guard("quick", attempt_timeout=500).call(waits) == "answer"
        await asyncio.sleep(0)
        assert loop.time() - begun == pytest.approx(1, abs=1e-5)

    on_virtual_time(main)


def test_a_guard_within_a_guard_has_no_more_time_than_that() -> None:
    async def main(clock: ManualClock) -> None:
        retry = RetryPolicy(attempts=9, base=4, jitter="none", clock=clock)
        inner = Guard("inner", retry=retry, clock=clock)
        outer = Guard("outer", timeout=5, clock=clock)
        began = []

        @inner
        async def tool() -> None:
            began.append(clock.now())
            raise Upstream

        # No pause that would end after the outer guard's deadline is begun.
        with pytest.raises(Upstream) as gave_up:
            await outer.call(tool)
        assert gave_up.value.__notes__[0].endswith("(deadline)")
        assert (began, clock.now()) == ([0, 4], 4)

        # The same in tasks that are made of guarded calls.
        async def both() -> list[object]:
            return await asyncio.gather(tool(), tool(), return_exceptions=True)

        began.clear()
        assert all(isinstance(error, Upstream) for error in await outer.call(both))
        assert (began, clock.now()) == ([4, 4, 8, 8], 8)

        # A permit that would come too late is refused at once.
        slow = RateLimiter("1/minute", clock=clock)
        slow.try_acquire()
        limited = Guard("limited", limiter=slow, clock=clock)
        with pytest.raises(RateLimitExceeded):
            await outer.call(limited.call, waits)
        assert clock.now() == 8

        # It ends with the call: whoever calls the tool alone has all the time.
        began.clear()
        with pytest.raises(Upstream):
            await tool()
        assert len(began) == 9

    on_virtual_time(main)


def test_no_time_is_left_of_the_call_around() -> None:
    async def main(clock: ManualClock) -> None:
        inner = Guard("inner", clock=clock)
        outer = Guard("outer", timeout=5, clock=clock)
        told = []

        async def stubborn() -> str:
            late = inner.call(waits)
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                with pytest.raises(GuardTimeout) as error:
                    await late
                told.append((error.value.timed_out, error.value.name, error.value.limit))
                # A guard that has more time takes it from nobody.
                other = Guard("other", timeout=50, clock=ManualClock())
                return await other.call(waits)
            return "?"

        assert await outer.call(stubborn) == "answer"
        assert told == [("outer", "inner", 0)]

    on_virtual_time(main)


def test_deadlines_around_streams_and_guards_in_a_row() -> None:
    async def main(clock: ManualClock) -> None:
        retry = RetryPolicy(attempts=9, base=4, jitter="none", clock=clock)
        inner = Guard("inner", retry=retry, clock=clock)
        outer = Guard("outer", timeout=5, clock=clock)
        middle = Guard("middle", timeout=50, clock=clock)
        began = []

        @inner
        async def tool() -> None:
            began.append(clock.now())
            raise Upstream

        @outer
        async def stream() -> AsyncIterator[str]:
            yield "first"
            try:
                # Through a guard that has none of its own, in a task.
                await asyncio.create_task(middle.call(tool))
            except Upstream:
                yield "second"

        assert [item async for item in stream()] == ["first", "second"]
        assert began == [0, 4]

    on_virtual_time(main)


def test_a_plain_function_that_is_left_in_its_middle_leaves_no_deadline_behind() -> None:
    """As SQLAlchemy's `run_sync` and gevent do: two stacks of one thread, by turns."""
    greenlet = pytest.importorskip("greenlet", reason="needs greenlet")
    outer, free = Guard("outer", timeout=0.001), Guard("free")
    main = greenlet.getcurrent()

    def work() -> None:
        outer.call_sync(main.switch)

    stacks = [greenlet.greenlet(work) for _ in range(2)]
    for stack in stacks:
        stack.switch()
    time.sleep(0.01)
    for stack in stacks:
        stack.switch()
    assert free.call_sync(int) == 0
