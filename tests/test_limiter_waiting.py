"""Waiting on a rate limiter: order, timeouts, cancellation, slots, closed loops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
import weakref
from datetime import timedelta
from typing import Any

import pytest
from child import SEED, patience, times

from ferrogate import Limit, RateLimiter, RateLimitExceeded, rate_limited
from ferrogate.testing import ManualClock, VirtualTimeLoop


def run_virtual(main: Any, clock: ManualClock) -> Any:
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        return runner.run(main)


async def until(condition: Any) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("did not happen")


def test_a_large_waiter_is_served_before_later_small_ones() -> None:
    clock = ManualClock()
    limiter = RateLimiter("100/minute", clock=clock)
    order: list[int] = []

    async def ask(number: int, cost: int) -> None:
        await limiter.acquire(cost)
        order.append(number)

    async def main() -> None:
        limiter.try_acquire()
        async with asyncio.TaskGroup() as group:
            group.create_task(ask(0, 100))
            for number in range(1, 21):
                group.create_task(ask(number, 1))
            await asyncio.sleep(0)
            assert limiter.try_acquire().reason == "queued"
            assert limiter.get_stats()["waiting"] == 21

    run_virtual(main(), clock)
    assert order == list(range(21))
    assert 120 <= clock.now() < 120.001


def test_timeouts() -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/minute", clock=clock)

    async def main() -> None:
        await limiter.acquire(timeout=0)
        # Refused at once: nobody stands before it and a minute is not five seconds.
        with pytest.raises(RateLimitExceeded):
            await limiter.acquire(timeout=timedelta(seconds=5))
        assert clock.now() == 0
        # Behind another, it waits as long as it was told.
        first = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        with pytest.raises(RateLimitExceeded) as caught:
            await limiter.acquire(timeout=50)
        assert clock.now() == pytest.approx(50)
        assert caught.value.retry_after == pytest.approx(70)
        await first
        assert clock.now() == pytest.approx(60)
        await limiter.acquire(timeout=61)
        assert clock.now() == pytest.approx(120)

    run_virtual(main(), clock)
    assert limiter.get_stats()["waiting"] == 0
    assert limiter.get_stats()["rejected"] == 2


def test_a_manual_clock_wakes_waiters_on_an_ordinary_loop() -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/minute", clock=clock)
    limiter.try_acquire()

    async def main() -> None:
        waiting = [asyncio.create_task(limiter.acquire()) for _ in range(3)]
        impatient = asyncio.create_task(limiter.acquire(timeout=30))
        await asyncio.sleep(0)
        clock.advance(30)
        with pytest.raises(RateLimitExceeded):
            await impatient
        for done in range(1, 4):
            clock.advance(60)
            await until(lambda done=done: sum(task.done() for task in waiting) == done)

    asyncio.run(main())


def test_in_real_time() -> None:
    limiter = RateLimiter("2/0.2s")

    async def main() -> list[float]:
        times = []
        for _ in range(7):
            await limiter.acquire(timeout=5)
            times.append(time.monotonic())
        return times

    times = asyncio.run(main())
    assert all(later - earlier >= 0.199 for earlier, later in zip(times, times[2:], strict=False))
    assert times[-1] - times[0] < 2


def test_slots_of_with_and_async_with() -> None:
    limiter = RateLimiter("1000/s", burst=2)
    most = 0

    async def use() -> None:
        nonlocal most
        async with limiter as same:
            assert same is limiter
            most = max(most, limiter.get_stats()["concurrent_requests"])
            await asyncio.sleep(0.001)

    async def main() -> None:
        await asyncio.gather(*(use() for _ in range(20)))

    asyncio.run(main())
    assert most == 2
    with limiter as same, limiter:
        assert same is limiter
        assert limiter.get_stats()["concurrent_requests"] == 2
    with contextlib.suppress(ZeroDivisionError), limiter:
        _ = 1 / 0
    stats = limiter.get_stats()
    assert (stats["concurrent_requests"], stats["waiting"], stats["acquired"]) == (0, 0, 23)


def test_the_holder_of_the_last_slot_gets_its_further_permits() -> None:
    """Regression: it stood behind somebody who waited for that slot, and both slept for ever."""
    clock = ManualClock()
    limiter = RateLimiter("1/minute", burst=1, clock=clock)
    order: list[str] = []

    async def outside() -> None:
        async with limiter:
            order.append("outside")

    async def main() -> None:
        async with limiter:
            other = asyncio.create_task(outside())
            await asyncio.sleep(0)
            await limiter.acquire()
            order.append("inside")
        await other

    run_virtual(asyncio.wait_for(main(), 1000), clock)
    assert order == ["inside", "outside"]
    assert clock.now() == pytest.approx(120)


def test_an_update_that_makes_a_waiter_impossible_tells_it() -> None:
    limiter = RateLimiter("2/minute", clock=ManualClock())
    limiter.try_acquire(2)

    async def main() -> None:
        waiting = asyncio.create_task(limiter.acquire(2))
        await asyncio.sleep(0)
        limiter.update("1/minute")
        with pytest.raises(ValueError, match='"1/minute" allows at all, got 2'):
            await waiting

    asyncio.run(main())
    assert limiter.get_stats()["waiting"] == 0


def test_a_granted_acquire_is_a_coroutine_to_asyncio() -> None:
    limiter = RateLimiter("100/s")

    async def main() -> None:
        assert asyncio.iscoroutine(limiter.acquire())
        await asyncio.create_task(limiter.acquire())
        await asyncio.wait_for(limiter.acquire(), 1)
        await asyncio.gather(limiter.acquire(), limiter.acquire())
        assert await limiter.acquire() is None

    asyncio.run(main())
    # The first was never awaited, so it came back.
    assert limiter.get_stats()["acquired"] == 5


@pytest.mark.parametrize("slot", [False, True])
def test_cancelled_at_every_await_point(slot: bool) -> None:
    """Drives the coroutine by hand and throws at each suspension."""
    clock = ManualClock()

    async def main() -> None:
        entered: list[int] = []
        for step in range(4):
            limiter = RateLimiter("1/minute", "9/day", burst=1, clock=clock)
            limiter.try_acquire()

            async def enter(limiter: RateLimiter = limiter, step: int = step) -> None:
                if slot:
                    async with limiter:
                        entered.append(step)
                        await asyncio.sleep(0)
                else:
                    await limiter.acquire()
                    entered.append(step)
                    await asyncio.sleep(0)

            task = asyncio.create_task(enter())
            for n in range(step):
                await asyncio.sleep(0)
                if n == 1:
                    clock.advance(60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            stats = limiter.get_stats()
            assert (stats["waiting"], stats["concurrent_requests"]) == (0, 0)
            # A permit is spent by who came in, and by nobody else.
            assert stats["windows"]["9/day"] == 1 + (step in entered)
            clock.advance(60)
            assert limiter.try_acquire()
        assert entered == [3]

    asyncio.run(main())


@pytest.mark.soak
@pytest.mark.timeout(patience(0.01, times(2_000, 100_000)))
def test_cancel_and_grant_in_the_same_tick(caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(SEED)
    clock = ManualClock()
    # The second window forgets nothing, so that it shows every permit that was ever spent.
    limiter = RateLimiter("1/s", Limit(10**9, 10**9), burst=1, clock=clock)
    problems: list[dict[str, Any]] = []
    spent = 0

    async def hold() -> None:
        nonlocal spent
        async with limiter:
            spent += 1
            await asyncio.sleep(0)

    async def take() -> None:
        nonlocal spent
        await limiter.acquire()
        spent += 1

    async def main() -> None:
        nonlocal spent
        asyncio.get_running_loop().set_exception_handler(lambda _, info: problems.append(info))
        for _ in range(times(2_000, 100_000)):
            spent += bool(limiter.try_acquire())
            tasks = [
                asyncio.create_task(hold() if rng.random() < 0.5 else take())
                for _ in range(rng.randrange(1, 4))
            ]
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            acts = [lambda: clock.advance(1), rng.choice(tasks).cancel, lambda: None]
            rng.shuffle(acts)
            for act in acts:
                act()
            if rng.random() < 0.3:
                await asyncio.sleep(0)
            if rng.random() < 0.5:
                rng.choice(tasks).cancel()
            # Whoever is left is served, one a second.
            for _ in range(200):
                await asyncio.sleep(0)
                clock.advance(1)
                if all(task.done() for task in tasks):
                    break
            assert all(task.done() for task in tasks)
            await asyncio.gather(*tasks, return_exceptions=True)
            stats = limiter.get_stats()
            assert (stats["waiting"], stats["concurrent_requests"]) == (0, 0)
            # Granted to one that was cancelled is given back, or the next one's.
            assert max(stats["windows"].values()) == spent
            clock.advance(1)

    asyncio.run(main())
    assert not problems
    assert not caplog.records
    assert limiter.try_acquire()


def test_a_permit_granted_to_a_cancelled_waiter_goes_to_the_next() -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/minute", clock=clock)

    async def main() -> None:
        limiter.try_acquire()
        first, second = (asyncio.create_task(limiter.acquire()) for _ in range(2))
        await asyncio.sleep(0)
        clock.advance(60)  # grants the first, which does not know yet
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await second
        assert clock.now() == 60

    asyncio.run(main())
    assert limiter.get_stats()["windows"] == {"1/minute": 1}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_closed_with_waiters_gives_their_places_back() -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/minute", burst=1, clock=clock)
    limiter.try_acquire()
    problems: list[dict[str, Any]] = []

    async def wait() -> None:
        async with limiter:
            pass

    loop = asyncio.new_event_loop()
    # asyncio itself reports a pending task that goes; nothing else may be heard.
    loop.set_exception_handler(lambda _, info: problems.append(info))
    tasks = [loop.create_task(wait()) for _ in range(3)]
    loop.run_until_complete(asyncio.sleep(0))
    assert limiter.get_stats()["waiting"] == 3
    loop.close()
    # The tasks are still referenced: the first wake finds the loop closed and passes the place on.
    for _ in tasks:
        clock.advance(60)
    assert limiter.get_stats()["waiting"] == 0
    del tasks
    gc.collect()
    assert {info["message"] for info in problems} <= {"Task was destroyed but it is pending!"}
    clock.advance(60)
    with limiter:
        pass
    assert limiter.get_stats()["concurrent_requests"] == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("slot", [False, True])
def test_a_closed_loop_at_the_head_stops_nobody_behind_it(slot: bool) -> None:
    """In real time and without traffic: whoever is behind must find out by itself."""
    limiter = RateLimiter("10/s", burst=1)
    limiter.try_acquire(10)

    async def wait() -> None:
        if slot:
            async with limiter:
                pass
        else:
            await limiter.acquire(timeout=30)

    dead = asyncio.new_event_loop()
    dead.set_exception_handler(lambda *_: None)
    tasks = [dead.create_task(wait()) for _ in range(2)]
    dead.run_until_complete(asyncio.sleep(0))

    async def main() -> None:
        behind = asyncio.create_task(wait())
        await asyncio.sleep(0)
        dead.close()
        later = asyncio.create_task(wait())
        await asyncio.gather(behind, later)

    start = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - start < 5
    stats = limiter.get_stats()
    assert (stats["waiting"], stats["concurrent_requests"]) == (0, 0)
    assert len(tasks) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_line_keeps_no_dead_loop_alive() -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/minute", clock=clock)
    limiter.try_acquire()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    task = loop.create_task(limiter.acquire())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    gone = weakref.ref(task)
    del task, loop
    gc.collect()
    assert gone() is None
    assert limiter.get_stats()["waiting"] == 0


def test_limiters_are_collected() -> None:
    class Sub(RateLimiter):
        me: Any

    limiter = Sub("1/s")
    limiter.me = limiter
    gone = weakref.ref(limiter)
    del limiter
    gc.collect()
    assert gone() is None


def test_no_free_slot_is_never_worth_an_immediate_retry() -> None:
    limiter = RateLimiter(burst=1)
    with limiter:
        decorated = rate_limited(limiter=limiter, timeout=0.01)
        with pytest.raises(RateLimitExceeded, match="no free slot") as caught:
            decorated(lambda: None)()
        assert caught.value.retry_after == 0.001

        async def ask() -> None:
            return None

        with pytest.raises(RateLimitExceeded, match="no free slot") as caught:
            asyncio.run(decorated(ask)())
        assert caught.value.retry_after == 0.001
