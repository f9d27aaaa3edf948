"""HOSTILE 19: what waits, what is ready and what calls back, on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from ferrogate import (
    Cache,
    CircuitBreaker,
    CircuitBreakerConfig,
    Guard,
    GuardTimeout,
    HealthMonitor,
    Hedge,
    LLMLimiter,
    RateLimiter,
    RateLimitExceeded,
    RetryBudget,
    RetryPolicy,
    cached,
    rate_limited,
)
from ferrogate.testing import ManualClock

Run = Callable[..., Any]
user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


def test_a_line_of_waiters(run: Run) -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/second", burst=1, clock=clock)
    order: list[int] = []

    async def ask(number: int) -> None:
        async with limiter:
            order.append(number)
            await asyncio.sleep(0)

    async def main() -> None:
        assert limiter.try_acquire()
        tasks = [asyncio.create_task(ask(number)) for number in range(5)]
        await asyncio.sleep(0)
        assert limiter.get_stats()["waiting"] == 5
        tasks[1].cancel()
        with pytest.raises(RateLimitExceeded):
            await limiter.acquire(timeout=0)
        while not all(task.done() for task in tasks):
            clock.advance(1)
            await asyncio.sleep(0)
        assert [task.cancelled() for task in tasks] == [False, True, False, False, False]

    run(main())
    stats = limiter.get_stats()
    assert order == [0, 2, 3, 4]
    assert (stats["waiting"], stats["concurrent_requests"], stats["acquired"]) == (0, 0, 5)


def test_the_loop_sleeps_until_a_permit_is_due(run: Run) -> None:
    limiter = RateLimiter("1/0.02s")

    async def main() -> float:
        loop = asyncio.get_running_loop()
        await limiter.acquire()
        begin = loop.time()
        for _ in range(3):
            await limiter.acquire(timeout=30)
        return loop.time() - begin

    # uvloop's clock counts whole milliseconds.
    assert run(main()) >= 0.06 - 0.002


def test_another_thread_lets_a_waiter_go(run: Run) -> None:
    limiter = RateLimiter("1000/second", burst=1)

    async def main() -> None:
        limiter.__enter__()
        waiting = asyncio.create_task(limiter.__aenter__())
        await asyncio.sleep(0)
        assert limiter.get_stats()["waiting"] == 1
        thread = threading.Thread(target=limiter.__exit__, args=(None, None, None))
        thread.start()
        await asyncio.wait_for(waiting, 30)
        thread.join()
        await limiter.__aexit__(None, None, None)

    run(main())
    assert limiter.get_stats()["concurrent_requests"] == 0


def test_what_is_ready_is_a_coroutine_to_all(run: Run) -> None:
    @cached
    async def load(x: int) -> int:
        await asyncio.sleep(0)
        return x

    @rate_limited("1000/second")
    async def limited(x: int) -> int:
        return x

    limiter = RateLimiter("1000/second")
    cache: Cache[int, int] = Cache(4)
    cache[1] = 1

    async def main() -> None:
        assert await load(1) == 1
        for ready in (load, limited):
            assert inspect.iscoroutinefunction(ready)
            assert await asyncio.create_task(ready(1)) == 1
            assert await asyncio.wait_for(ready(1), 30) == 1
            assert await asyncio.gather(ready(1), ready(1)) == [1, 1]
            async with asyncio.TaskGroup() as group:
                task = group.create_task(ready(1))
            assert task.result() == 1
        assert await asyncio.gather(limiter.acquire(), limiter.acquire()) == [None, None]
        assert await asyncio.wait_for(cache.get_or_set(1, lambda: asyncio.sleep(0, 2)), 30) == 1

    run(main())


def test_guards(run: Run) -> None:
    budget = RetryBudget(1.0, min_per_second=100)
    guard = Guard(
        "both",
        breaker=CircuitBreaker("both", CircuitBreakerConfig(failure_threshold=1.0)),
        retry=RetryPolicy(attempts=3, base=0.001, budget=budget),
        limiter=LLMLimiter(requests_per_minute=10_000, concurrency=2),
        bulkhead=1,
        attempt_timeout=0.05,
        timeout=30,
        hedge=Hedge(delay=0.02, budget=budget),
    )
    tries: list[str] = []

    async def ask(name: str) -> str:
        user.set(f"within {name}")
        tries.append(name)
        count = tries.count(name)
        if name == "fails once" and count == 1:
            raise ConnectionError
        if name == "hangs":
            await asyncio.Event().wait()
        if name == "hangs once" and count == 1:
            await asyncio.sleep(3600)
        await asyncio.sleep(0)
        return name

    @guard
    async def stream(name: str) -> AsyncIterator[str]:
        for _ in range(2):
            yield await ask(name)

    async def main() -> None:
        for name in ("at once", "fails once"):
            assert await guard.call(ask, name) == name
            # In the caller's own context, as if it had been awaited.
            assert user.get() == f"within {name}"
        with pytest.raises(GuardTimeout):
            await guard.call(ask, "hangs")
        assert [item async for item in stream("stream")] == ["stream", "stream"]
        waiting = [asyncio.create_task(guard.call(ask, f"{number}")) for number in range(20)]
        await asyncio.sleep(0)
        waiting[3].cancel()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(end, asyncio.CancelledError) for end in done].count(True) == 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await guard.call(ask, "hangs")

    run(main())
    run(main(), debug=True)
    stats: Any = guard._made_with[1]["limiter"].get_stats()
    assert (stats["open"], stats["waiting"]) == (0, 0)

    single = Guard("single", hedge=Hedge(delay=0.01), timeout=30)
    assert run(single.call(ask, "hangs once")) == "hangs once"
    assert tries.count("hangs once") == 2


def test_health_checks(run: Run, no_leaked_threads: None) -> None:
    monitor = HealthMonitor(timeout=0.05, interval=0.01)
    loops: set[object] = set()
    rounds = threading.Semaphore(0)

    async def fine() -> bool:
        loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0)
        rounds.release()
        return True

    async def slow() -> None:
        await asyncio.Event().wait()

    monitor.register("fine", fine)
    monitor.register("slow", slow)
    monitor.register("sync", lambda: True)

    async def main() -> None:
        monitor.start()
        assert await asyncio.to_thread(rounds.acquire, timeout=30)
        report = await monitor.check()
        monitor.stop()
        healthy = {name: report.components[name].healthy for name in ("fine", "slow", "sync")}
        assert healthy == {"fine": True, "slow": False, "sync": True}
        # Started in a loop, the checks run there and nowhere else.
        assert loops == {asyncio.get_running_loop()}

    run(main())


def test_callbacks_see_their_callers_context_and_change_nobody_elses(run: Run) -> None:
    seen: dict[str, set[str]] = {}

    def look(callback: str) -> None:
        seen.setdefault(callback, set()).add(user.get())

    cache: Cache[Any, int] = Cache(
        1,
        max_bytes=10,
        weigher=lambda key, value: look("weigher") or 1,
        on_evict=lambda key, value, cause: look("listener"),
    )

    @cached(cache=cache, key=lambda x: look("key") or x)
    async def load(x: int) -> int:
        look("loader")
        user.set("the loader's")
        await asyncio.sleep(0)
        return x

    @rate_limited("1000/second", burst=1)
    async def limited(x: int) -> None:
        look("limited")
        user.set("the function's")
        await asyncio.sleep(0)

    monitor = HealthMonitor()

    async def check() -> None:
        look("check")
        user.set("the check's")

    monitor.register("check", check)

    async def one(name: str, number: int) -> None:
        user.set(name)
        cache[name] = number
        cache["other", name] = number
        assert user.get() == name
        await load(number)
        assert user.get() == name
        await monitor.check()
        assert user.get() == name

    async def waiting(name: str) -> None:
        user.set(name)
        await limited(1)

    async def main() -> None:
        for number, name in enumerate(("ada", "bob")):
            await asyncio.create_task(one(name, number))
        await asyncio.gather(*(asyncio.create_task(waiting(name)) for name in ("ada", "bob")))
        assert user.get() == "nobody"

    run(main())
    callbacks = ("weigher", "listener", "key", "loader", "limited", "check")
    # A load has a context of its own, a copy of its caller's, so what it stores is weighed there.
    seen["weigher"] -= {"the loader's"}
    seen["listener"] -= {"the loader's"}
    assert seen == {callback: {"ada", "bob"} for callback in callbacks}
