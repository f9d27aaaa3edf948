"""One load for all who ask, whoever is cancelled, fails, waits or goes away (HOSTILE 14-19)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import gc
import io
import os
import random
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from children import SOAK, child, child_output

from ferrogate import Cache, _flight, cached

try:
    import uvloop
except ImportError:  # pragma: no cover
    uvloop = None  # type: ignore[assignment]

Loops = Callable[[], asyncio.AbstractEventLoop]

LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio")]
if uvloop is not None:
    LOOPS.append(pytest.param(uvloop.new_event_loop, id="uvloop"))


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[Any]], Any]:
    """`asyncio.run` on either kind of loop, in debug mode as well."""

    def run(main: Any, *, debug: bool = False) -> Any:
        with asyncio.Runner(loop_factory=request.param, debug=debug) as runner:
            return runner.run(main)

    return run


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    yield
    assert _flight._loaders == {}
    assert _flight._waits == {}
    assert _flight._leading.get() == frozenset()


class Loader:
    """A cached function with a gate before its end, and its history."""

    def __init__(self, result: Any = "value", **options: Any) -> None:
        self.calls = 0
        self.cancelled = 0
        self.cleaned = 0
        self.result = result
        self.gate = asyncio.Event()
        self.started = asyncio.Event()

        @cached(**options)
        async def load(x: int = 0) -> Any:
            self.calls += 1
            self.started.set()
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                self.cleaned += 1
                raise
            if isinstance(self.result, BaseException):
                raise self.result
            return self.result

        self.load = load

    async def tasks(self, count: int) -> list[asyncio.Task[Any]]:
        tasks = [asyncio.create_task(self.load(0)) for _ in range(count)]
        await self.started.wait()
        await asyncio.sleep(0)
        return tasks


# One load.


def test_many_threads_and_loops_load_once(run: Any) -> None:
    calls: list[int] = []
    lock = threading.Lock()

    @cached
    async def load(x: int) -> object:
        with lock:
            calls.append(x)
        await asyncio.sleep(0.1)
        return object()

    @cached
    def load_sync(x: int) -> object:
        with lock:
            calls.append(100 + x)
        time.sleep(0.1)
        return object()

    start = threading.Barrier(8)

    def work() -> tuple[set[object], set[object]]:
        start.wait()

        async def main() -> set[object]:
            return set(await asyncio.gather(*(load(n % 3) for n in range(30))))

        got = run(main())
        return got, {load_sync(n % 3) for n in range(3)}

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = [job.result() for job in [pool.submit(work) for _ in range(8)]]
    assert sorted(calls) == [0, 1, 2, 100, 101, 102]
    assert len(set.union(*(got for got, _ in results))) == 3
    assert len(set.union(*(got for _, got in results))) == 3


def test_get_or_set_and_decorated_functions_follow_one_rule(run: Any) -> None:
    cache: Cache[str, Any] = Cache(10)
    calls: list[int] = []

    async def factory() -> object:
        calls.append(1)
        await asyncio.sleep(0.01)
        return object()

    async def main() -> None:
        got = await asyncio.gather(*(cache.get_or_set("k", factory) for _ in range(20)))
        assert len(set(got)) == 1
        assert await cache.get_or_set("k", factory) is got[0]
        sync = await asyncio.to_thread(cache.get_or_set_sync, "k", object)
        assert sync is got[0]

    run(main())
    assert len(calls) == 1
    assert cache.get_stats()["loading"] == 0


def test_without_single_flight_everybody_loads(run: Any) -> None:
    calls: list[int] = []

    @cached(single_flight=False)
    async def load() -> None:
        calls.append(1)
        await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(load(), load(), load())
        await load()

    run(main())
    assert len(calls) == 3


def test_a_thread_and_a_loop_wait_for_each_others_loads(run: Any) -> None:
    cache: Cache[str, str] = Cache(10)

    async def main() -> None:
        release = threading.Event()

        def slow() -> str:
            release.wait()
            return "from the thread"

        thread = asyncio.create_task(asyncio.to_thread(cache.get_or_set_sync, "t", slow))
        while cache.get_stats()["loading"] == 0:  # noqa: ASYNC110 - in another thread
            await asyncio.sleep(0.001)
        follower = asyncio.create_task(cache.get_or_set("t", asyncio.Event().wait))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        release.set()
        assert await follower == await thread == "from the thread"

        gate = asyncio.Event()

        async def gated() -> str:
            await gate.wait()
            return "from the loop"

        leader = asyncio.create_task(cache.get_or_set("l", gated))
        await asyncio.sleep(0)
        blocked = asyncio.create_task(asyncio.to_thread(cache.get_or_set_sync, "l", str))
        await asyncio.sleep(0.02)
        gate.set()
        assert await leader == await blocked == "from the loop"

    run(main())


# Cancellation.


def test_the_leader_is_cancelled_and_the_others_get_the_one_result(run: Any) -> None:
    async def main() -> None:
        loader = Loader()
        leader, *followers = await loader.tasks(5)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        loader.gate.set()
        assert await asyncio.gather(*followers) == ["value"] * 4
        assert (loader.calls, loader.cancelled) == (1, 0)
        assert await loader.load(0) == "value"

    run(main())


def test_followers_are_cancelled_and_nobody_notices(run: Any) -> None:
    async def main() -> None:
        loader = Loader()
        leader, *followers = await loader.tasks(5)
        for follower in followers[1:]:
            follower.cancel()
        loader.gate.set()
        results = await asyncio.gather(leader, *followers, return_exceptions=True)
        assert results[:2] == ["value", "value"]
        assert all(isinstance(r, asyncio.CancelledError) for r in results[2:])
        assert (loader.calls, loader.cancelled) == (1, 0)

    run(main())


def test_all_are_cancelled_so_the_loader_is_and_its_cleanup_is_awaited(run: Any) -> None:
    async def main() -> None:
        loader = Loader()
        tasks = await loader.tasks(3)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        # Whoever waits for the last caller knows that the loader has cleaned up.
        assert (loader.calls, loader.cancelled, loader.cleaned) == (1, 1, 1)
        assert loader.load.cache.get_stats()["loading"] == 0
        loader.gate.set()
        assert await loader.load(0) == "value"
        assert loader.calls == 2

    run(main())


def test_a_timeout_around_the_only_caller_ends_the_loader(run: Any) -> None:
    async def main() -> None:
        loader = Loader()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await loader.load(0)
        assert loader.cleaned == 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loader.load(0), 0.01)
        assert loader.cleaned == 2
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(main())


def test_a_shield_keeps_the_load_going(run: Any) -> None:
    async def main() -> None:
        loader = Loader()
        inner = asyncio.ensure_future(loader.load(0))
        outer = asyncio.create_task(asyncio.wait_for(asyncio.shield(inner), 0.01))
        with pytest.raises(TimeoutError):
            await outer
        loader.gate.set()
        assert await inner == "value"
        assert loader.cancelled == 0

    run(main())


def test_whoever_comes_during_the_cleanup_loads_anew(run: Any) -> None:
    async def main() -> None:
        loader = Loader()
        (only,) = await loader.tasks(1)
        only.cancel()
        await asyncio.sleep(0)
        late = asyncio.create_task(loader.load(0))
        loader.gate.set()
        assert await late == "value"
        assert only.cancelled() or await asyncio.wait([only])
        assert loader.calls == 2

    run(main())


def test_a_loader_that_ends_cancelled_by_itself(run: Any) -> None:
    calls: list[int] = []

    @cached
    async def load() -> str:
        calls.append(1)
        await asyncio.sleep(0)
        if len(calls) == 1:
            raise asyncio.CancelledError
        return "value"

    async def main() -> None:
        leader, follower = asyncio.create_task(load()), asyncio.create_task(load())
        results = await asyncio.gather(leader, follower, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1] == "value"

    run(main())
    assert len(calls) == 2


def test_a_loader_that_turns_its_cancellation_into_something_else(run: Any) -> None:
    async def main() -> None:
        for outcome in (KeyError("instead"), "a value"):
            cache: Cache[str, str] = Cache(10)

            async def stubborn(outcome: Any = outcome) -> str:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if isinstance(outcome, Exception):
                        raise outcome from None
                return str(outcome)

            task = asyncio.create_task(cache.get_or_set("k", stubborn))
            await asyncio.sleep(0.001)
            task.cancel()
            if isinstance(outcome, Exception):
                with pytest.raises(KeyError):
                    await task
            else:
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert cache["k"] == "a value"

    run(main())


def test_cancelled_at_every_await_point(run: Any) -> None:
    """After n steps of the loop one caller is cancelled; the others are well, always."""

    async def once(steps: int, callers: int, victim: int) -> bool:
        cache: Cache[str, int] = Cache(10)
        running = 0

        async def load() -> int:
            nonlocal running
            running += 1
            try:
                for _ in range(4):
                    await asyncio.sleep(0)
                return 7
            finally:
                try:
                    await asyncio.sleep(0)
                finally:
                    running -= 1

        tasks = [asyncio.create_task(cache.get_or_set("k", load)) for _ in range(callers)]
        for _ in range(steps):
            await asyncio.sleep(0)
        hit = tasks[victim].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for index, result in enumerate(results):
            if index == victim and hit:
                assert isinstance(result, asyncio.CancelledError) or result == 7
            else:
                assert result == 7
        assert running == 0
        assert cache.get_stats()["loading"] == 0
        return hit

    async def main() -> None:
        for callers in (1, 2, 3):
            for victim in range(callers):
                hits = [await once(steps, callers, victim) for steps in range(14)]
                assert hits[0]
                assert not hits[-1]

    run(main())


def test_completion_and_cancel_in_the_same_tick(run: Any) -> None:
    rng = random.Random(17)
    noise: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: noise.append(context))
        cache: Cache[int, int] = Cache(10_000)
        for number in range(1_000 * SOAK):
            event = asyncio.Event()

            async def load(event: asyncio.Event = event, number: int = number) -> int:
                await event.wait()
                return number

            tasks = [
                asyncio.create_task(cache.get_or_set(number, load))
                for _ in range(rng.randint(1, 4))
            ]
            for _ in range(rng.randint(1, 3)):
                await asyncio.sleep(0)
            victims = [task for task in tasks if rng.random() < 0.6]
            actions: list[Callable[[], Any]] = [event.set, *(task.cancel for task in victims)]
            rng.shuffle(actions)
            for action in actions:
                loop.call_soon(action)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for task, result in zip(tasks, results, strict=True):
                assert result == number or (
                    task in victims and isinstance(result, asyncio.CancelledError)
                ), results
        assert cache.get_stats()["loading"] == 0

    run(main())
    assert noise == []


# Errors.


class LoadError(Exception):
    pass


def depth(error: BaseException) -> int:
    return len(traceback.extract_tb(error.__traceback__))


def test_everybody_gets_the_one_exception_and_the_next_call_tries_again(run: Any) -> None:
    async def main() -> None:
        error = LoadError("once")
        loader = Loader(error)
        tasks = await loader.tasks(50)
        loader.gate.set()
        depths = []
        for task in tasks:
            with pytest.raises(LoadError) as caught:
                await task
            assert caught.value is error
            depths.append(depth(error))
        # One exception, raised fifty times: its traceback does not grow.
        assert max(depths) - min(depths) <= 2
        assert "in load" in "".join(traceback.format_exception(error))
        assert loader.calls == 1
        loader.result = "now"
        assert await loader.load(0) == "now"
        assert loader.calls == 2

    run(main())


def test_threads_get_the_one_exception() -> None:
    error = LoadError("once")
    release = threading.Event()
    calls: list[int] = []

    @cached
    def load() -> str:
        calls.append(1)
        release.wait()
        raise error

    def work() -> BaseException | None:
        try:
            load()
        except LoadError as caught:
            return caught
        return None

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(work) for _ in range(8)]
        while not calls:
            time.sleep(0.001)
        time.sleep(0.02)
        release.set()
        assert {job.result() for job in jobs} == {error}
    assert depth(error) < 8
    assert calls == [1]


def test_a_failed_load_leaves_nothing_behind(run: Any) -> None:
    errors: list[weakref.ref[LoadError]] = []

    def fail() -> None:
        error = LoadError()
        errors.append(weakref.ref(error))
        raise error

    @cached
    def sync(x: int) -> None:
        fail()

    @cached
    async def eager(x: int) -> None:
        fail()

    @cached
    async def late(x: int) -> None:
        await asyncio.sleep(0)
        fail()

    @cached(single_flight=False)
    async def alone(x: int) -> None:
        fail()

    async def main() -> None:
        for function in (eager, late, alone):
            for x in range(3):
                await asyncio.gather(function(x), function(x), return_exceptions=True)

    for x in range(3):
        with contextlib.suppress(LoadError):
            sync(x)
    run(main())
    gc.collect()
    assert len(errors) >= 12
    assert [ref() for ref in errors if ref() is not None] == []


def test_an_error_of_the_weigher_or_the_options_reaches_everybody(run: Any) -> None:
    def weigher(key: Any, value: Any) -> int:
        raise ZeroDivisionError("weigher")

    cache: Cache[str, int] = Cache(10, max_bytes=100, weigher=weigher)

    async def load() -> int:
        await asyncio.sleep(0)
        return 1

    async def main() -> None:
        got = await asyncio.gather(
            *(cache.get_or_set("k", load) for _ in range(3)), return_exceptions=True
        )
        assert [type(error) for error in got] == [ZeroDivisionError] * 3
        with pytest.raises(ZeroDivisionError):
            cache.get_or_set_sync("k", lambda: 1)
        with pytest.raises(TypeError, match="NoneType"):
            await cache.get_or_set("k", lambda: None)  # type: ignore[arg-type, return-value]
        plain: Cache[str, int] = Cache(10)
        with pytest.raises(ValueError, match="ttl"):
            await plain.get_or_set("k", load, ttl=-1)
        with pytest.raises(TypeError, match="tags"):
            await plain.get_or_set("k", load, tags="letters")
        assert len(cache) == len(plain) == 0

    run(main())
    assert cache.get_stats()["loading"] == 0


def test_a_base_exception_of_its_own_reaches_the_leader(run: Any) -> None:
    class Abort(BaseException):
        pass

    calls: list[int] = []

    @cached
    async def load(wait: bool) -> str:
        calls.append(1)
        if wait:
            await asyncio.sleep(0)
        if len(calls) == 1:
            raise Abort
        return "value"

    async def main(wait: bool) -> None:
        calls.clear()
        load.cache_clear()
        leader = asyncio.create_task(load(wait))
        follower = asyncio.create_task(load(wait))
        with pytest.raises(Abort):
            await leader
        assert await follower == "value"

    for wait in (False, True):
        run(main(wait))
        gc.collect()


# Recursion and deadlock.


def test_a_load_that_asks_for_itself_raises(run: Any) -> None:
    cache: Cache[str, Any] = Cache(10)

    @cached
    def direct(x: int) -> int:
        return direct(x)

    @cached
    def even(x: int) -> int:
        return odd(x)

    @cached
    def odd(x: int) -> int:
        return even(x)

    @cached
    async def adirect(x: int) -> int:
        return await adirect(x)

    @cached
    async def suspended(x: int) -> int:
        await asyncio.sleep(0)
        return await suspended(x)

    @cached
    async def by_task(x: int) -> int:
        return await asyncio.create_task(by_task(x))

    @cached
    async def aeven(x: int) -> int:
        await asyncio.sleep(0)
        return await aodd(x)

    @cached
    async def aodd(x: int) -> int:
        await asyncio.sleep(0)
        return await aeven(x)

    async def by_thread() -> Any:
        return await asyncio.to_thread(cache.get_or_set_sync, "k", lambda: 1)

    async def main() -> None:
        for function in (adirect, suspended, by_task, aeven, aodd):
            with pytest.raises(RuntimeError, match="recursive load"):
                await asyncio.wait_for(function(1), 5)
        with pytest.raises(RuntimeError, match="recursive load"):
            await asyncio.wait_for(cache.get_or_set("k", by_thread), 5)
        # Both at once: neither is inside the other, and yet each waits for the other.
        both = await asyncio.wait_for(asyncio.gather(aeven(2), aodd(2), return_exceptions=True), 5)
        assert all(isinstance(error, RuntimeError) for error in both), both

    for function in (direct, even, odd):
        with pytest.raises(RuntimeError, match="recursive load"):
            function(1)
    run(main())
    # Not a recursion: another key, and the same one once the load is over.
    fib = cached(lambda n: n if n < 2 else fib(n - 1) + fib(n - 2))  # type: ignore[var-annotated]
    assert fib(60) == 1548008755920


@pytest.mark.hostile
def test_two_threads_that_wait_for_each_other_raise() -> None:
    code = """
    import threading
    from ferrogate import cached
    meet = threading.Barrier(2)
    @cached
    def a(first):
        if first: meet.wait()
        return b(False)
    @cached
    def b(first):
        if first: meet.wait()
        return a(False)
    a2 = cached(key=lambda first: 1)(a.__wrapped__)
    b2 = cached(key=lambda first: 1)(b.__wrapped__)
    a, b = a2, b2
    errors = []
    def work(function):
        try:
            function(True)
        except RuntimeError as error:
            errors.append(str(error))
    threads = [threading.Thread(target=work, args=(f,)) for f in (a, b)]
    for thread in threads: thread.start()
    for thread in threads: thread.join(20)
    print(len(errors), all("recursive load" in error for error in errors))
    """
    assert child_output(code, timeout=40) == "2 True\n"


def test_blocking_the_thread_whose_loop_is_loading_raises(run: Any) -> None:
    cache: Cache[str, int] = Cache(10)

    async def main() -> None:
        gate = asyncio.Event()

        async def load() -> int:
            await gate.wait()
            return 1

        task = asyncio.create_task(cache.get_or_set("k", load))
        await asyncio.sleep(0.001)
        with pytest.raises(RuntimeError, match="this thread's event loop is loading that key"):
            cache.get_or_set_sync("k", lambda: 2)
        with pytest.raises(RuntimeError, match="this thread's event loop"):
            cache.setdefault("k", 2)
        gate.set()
        assert await task == 1
        assert cache.setdefault("k", 2) == 1

    run(main())


# Loops that end.


def test_a_loop_that_is_closed_over_its_loader_blocks_nobody() -> None:
    cache: Cache[str, str] = Cache(10)

    async def never() -> str:
        await asyncio.Event().wait()
        return "never"

    async def begin() -> None:
        begun.append(asyncio.ensure_future(cache.get_or_set("k", never)))
        await asyncio.sleep(0.01)

    async def value() -> str:
        return "value"

    begun: list[asyncio.Future[str]] = []
    for ask in (
        lambda: asyncio.run(cache.get_or_set("k", value)),  # type: ignore[arg-type]
        lambda: cache.get_or_set_sync("k", lambda: "value"),
    ):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(begin())
        assert cache.get_stats()["loading"] == 1
        loop.close()
        for task in begun:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        assert ask() == "value"
        assert cache.get_stats()["loading"] == 0
        cache.clear()
        begun.clear()
        gc.collect()


def test_those_who_wait_already_learn_of_the_closed_loop(monkeypatch: Any) -> None:
    monkeypatch.setattr(_flight, "_LOOK", 0.05)
    cache: Cache[str, str] = Cache(10)
    loop = asyncio.new_event_loop()

    async def never() -> str:
        await asyncio.Event().wait()
        return "never"

    async def value() -> str:
        return "value"

    async def begin() -> asyncio.Task[str]:
        task = asyncio.create_task(cache.get_or_set("k", never))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        return task

    task = loop.run_until_complete(begin())
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        blocked = pool.submit(cache.get_or_set_sync, "k", lambda: "value")
        waiting = pool.submit(lambda: asyncio.run(cache.get_or_set("k", value)))  # type: ignore[arg-type]
        time.sleep(0.1)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
        assert blocked.result(10) == waiting.result(10) == "value"
    del task
    gc.collect()


def test_a_loop_closed_with_waiters_is_silent(run: Any, capfd: Any) -> None:
    release = threading.Event()
    cache: Cache[str, int] = Cache(10)

    def slow() -> int:
        release.wait()
        return 5

    thread = threading.Thread(target=cache.get_or_set_sync, args=("k", slow))
    thread.start()
    while cache.get_stats()["loading"] == 0:
        time.sleep(0.001)

    async def main() -> None:
        task = asyncio.create_task(cache.get_or_set("k", asyncio.Event().wait))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        assert not task.done()

    run(main())  # ends with the task cancelled
    loop = asyncio.new_event_loop()
    task = loop.create_task(cache.get_or_set("k", asyncio.Event().wait))  # type: ignore[arg-type]
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()  # ends with the task still waiting
    release.set()
    thread.join()
    assert cache["k"] == 5
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task
    gc.collect()
    assert capfd.readouterr().err == ""


def test_a_waiting_coroutine_that_is_thrown_away_leaves_the_line(run: Any) -> None:
    async def main() -> None:
        loader = Loader()
        coroutine = loader.load(0)
        yielded = coroutine.send(None)  # type: ignore[attr-defined]
        assert asyncio.isfuture(yielded)
        coroutine.close()  # type: ignore[attr-defined]
        for _ in range(5):
            await asyncio.sleep(0)
        assert (loader.calls, loader.cleaned) == (1, 1)
        assert loader.load.cache.get_stats()["loading"] == 0

    run(main())


def counted() -> tuple[int, int]:
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="not on macOS or Windows")
def test_a_hundred_runs_and_eight_loops_leak_nothing(run: Any) -> None:
    async def main(n: int) -> None:
        loader = Loader(result=n if n % 3 else LoadError())
        tasks = await loader.tasks(4)
        tasks[n % 4].cancel()
        loader.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        if n % 2:
            unfinished = Loader()
            asyncio.create_task(unfinished.load(0))  # noqa: RUF006 - the runner cancels it
            await asyncio.sleep(0)

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    for n in range(6):
        run(main(n))
    before, threads = objects(), counted()
    for n in range(100):
        run(main(n))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: run(main(n)), range(64)))
    assert counted() == threads
    assert objects() - before < 500
    assert _flight._loaders == {}


# What asyncio does with the result of a call, hit or miss.


def test_asyncio_takes_a_hit_as_it_takes_a_miss(run: Any) -> None:
    @cached
    async def load(x: int) -> int:
        await asyncio.sleep(0)
        return x

    async def ways(x: int) -> None:
        assert await load(x) == x
        assert await asyncio.create_task(load(x), name="t") == x
        assert await asyncio.ensure_future(load(x)) == x
        assert await asyncio.gather(load(x), load(x)) == [x, x]
        assert await asyncio.wait_for(load(x), 1) == x
        assert await asyncio.wait_for(load(x), None) == x
        assert await asyncio.shield(load(x)) == x
        async with asyncio.timeout(1):
            assert await load(x) == x
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(load(x)) for _ in range(3)]
        assert [task.result() for task in tasks] == [x] * 3
        done, _ = await asyncio.wait([asyncio.ensure_future(load(x))])
        assert done.pop().result() == x
        for future in asyncio.as_completed([load(x), load(x)]):
            assert await future == x
        loop = asyncio.get_running_loop()
        other = asyncio.run_coroutine_threadsafe
        assert await asyncio.to_thread(lambda: other(load(x), loop).result(5)) == x
        task = asyncio.create_task(load(x))
        assert repr(task)
        task.print_stack(file=io.StringIO())
        assert await task == x

    async def main() -> None:
        for x in range(3):
            await ways(x)
            await ways(x)

    for debug in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            run(main(), debug=debug)
        load.cache_clear()
    with asyncio.Runner() as runner:
        assert runner.run(load(1)) == 1
        assert runner.run(load(1)) == 1


def test_awaited_never_or_twice(run: Any) -> None:
    @cached
    async def load(x: int) -> int:
        return x

    async def main() -> None:
        await load(1)
        load(1)  # a hit that nobody awaits is nothing to warn of
        gc.collect()
        hit = load(1)
        assert await hit == 1
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await hit
        miss = load(2)
        assert await miss == 2
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await miss
        with pytest.warns(RuntimeWarning, match="never awaited"):
            load(3)

    run(main())


def test_an_eager_task_factory() -> None:
    if sys.version_info < (3, 12):
        pytest.skip("needs CPython 3.12")
    calls: list[int] = []

    @cached
    async def at_once(x: int) -> int:
        calls.append(x)
        return x

    @cached
    async def later(x: int) -> int:
        calls.append(x)
        await asyncio.sleep(0)
        return x

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        for function in (at_once, later):
            tasks = [asyncio.create_task(function(1)) for _ in range(5)]
            assert await asyncio.gather(*tasks) == [1] * 5
            assert asyncio.create_task(function(1)).done()
        assert calls == [1, 1]

    asyncio.run(main())  # uvloop and this factory do not get on with each other on 3.13


def test_a_task_factory_from_before_contexts() -> None:
    made: list[Any] = []

    def factory(loop: Any, coroutine: Any) -> asyncio.Task[Any]:
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop)

    @cached
    async def load(x: int) -> int:
        await asyncio.sleep(0)
        return x

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        assert await load(1) == 1

    with asyncio.Runner() as runner:  # uvloop itself insists on the newer signature
        runner.run(main())
        runner.get_loop().set_task_factory(None)
    assert len(made) == 1


def test_context_variables_are_visible_and_not_leaked(run: Any) -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    seen: list[str] = []

    @cached
    async def load(x: int) -> int:
        seen.append(user.get())
        user.set("the loader's")
        await asyncio.sleep(0)
        seen.append(user.get())
        return x

    @cached
    def sync(x: int) -> int:
        seen.append(user.get())
        return x

    async def main() -> None:
        user.set("leader")
        leader = asyncio.create_task(load(1))
        await asyncio.sleep(0)
        user.set("follower")
        assert await load(1) == await leader == 1
        assert user.get() == "follower"
        sync(1)
        assert user.get() == "follower"
        assert _flight._leading.get() == frozenset()

    run(main())
    assert seen == ["leader", "the loader's", "follower"]


# Signals.


@pytest.mark.hostile
@pytest.mark.parametrize("kind", ["def", "async def", "async def, eager"])
def test_ctrl_c_in_the_leader_frees_the_key(kind: str) -> None:
    code = f"""
    import asyncio, signal, threading, time
    from ferrogate import Cache
    kind = {kind!r}
    cache = Cache(10)
    interrupted = []

    def load():
        signal.raise_signal(signal.SIGINT)
        time.sleep(10)

    async def aload():
        if kind == "async def":
            await asyncio.sleep(0)
        raise KeyboardInterrupt

    async def main():
        await cache.get_or_set("k", aload)

    try:
        if kind == "def":
            cache.get_or_set_sync("k", load)
        else:
            asyncio.run(main())
    except KeyboardInterrupt:
        interrupted.append(1)
    assert interrupted == [1]
    assert cache.get_stats()["loading"] == 0
    assert cache.get_or_set_sync("k", lambda: "again") == "again"
    from ferrogate import _flight
    assert _flight._loaders == {{}}
    print("fine")
    """
    assert child_output(code) == "fine\n"


@pytest.mark.hostile
def test_ctrl_c_while_a_thread_waits_for_anothers_load() -> None:
    code = """
    import signal, threading, time
    from ferrogate import Cache
    cache = Cache(10)
    release = threading.Event()
    thread = threading.Thread(target=cache.get_or_set_sync, args=("k", release.wait))
    thread.start()
    while not cache.get_stats()["loading"]:
        time.sleep(0.001)
    threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
    def later():
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    threading.Thread(target=later).start()
    started = time.monotonic()
    try:
        cache.get_or_set_sync("k", int)
    except KeyboardInterrupt:
        took = time.monotonic() - started
    try:
        time.sleep(0.3)
    except KeyboardInterrupt:
        pass
    release.set()
    thread.join()
    assert took < 0.5, took
    assert cache["k"] is True
    print("fine")
    """
    done = child(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


@pytest.mark.hostile
def test_a_fork_during_a_load() -> None:
    code = """
    import os, threading, time, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    from ferrogate import Cache, cached
    cache = Cache(10)
    release = threading.Event()
    thread = threading.Thread(target=cache.get_or_set_sync, args=("k", release.wait))
    thread.start()
    while not cache.get_stats()["loading"]:
        time.sleep(0.001)
    pid = os.fork()
    if pid == 0:
        # The loader stayed in the parent; the child loads for itself.
        ok = cache.get_or_set_sync("k", lambda: "child") == "child"
        os._exit(0 if ok else 1)
    _, status = os.waitpid(pid, 0)
    release.set()
    thread.join()
    assert cache["k"] is True

    @cached
    def forks(x):
        return os.fork()
    pid = forks(1)
    if pid == 0:
        os._exit(0 if forks(1) == 0 else 1)
    _, second = os.waitpid(pid, 0)
    print(status, second, forks(1) == pid)
    """
    assert child_output(code) == "0 0 True\n"
