"""What a loader raises, and loads that would wait for themselves (HOSTILE 17)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import threading
import time
import traceback
import weakref
from typing import Any

import pytest
from child import run_well
from loaders import Loader, LoadError
from turns import turns

from ferrogate import Cache, _loads, cached


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
    assert run_well(code, timeout=40) == "2 True\n"


def test_blocking_the_thread_whose_loop_is_loading_raises(run: Any) -> None:
    cache: Cache[str, int] = Cache(10)

    async def main() -> None:
        gate = asyncio.Event()

        async def load() -> int:
            await gate.wait()
            return 1

        task = asyncio.create_task(cache.get_or_set("k", load))
        await turns()
        with pytest.raises(RuntimeError, match="this thread's event loop is loading that key"):
            cache.get_or_set_sync("k", lambda: 2)
        gate.set()
        assert await task == 1

    run(main())


def test_setdefault_never_waits(run: Any) -> None:
    cache: Cache[str, int] = Cache(10)

    async def main() -> None:
        gate = asyncio.Event()

        async def fails() -> int:
            await gate.wait()
            raise ZeroDivisionError

        async def load() -> int:
            await gate.wait()
            return 1

        for loader in (load, fails):
            gate.clear()
            task = asyncio.ensure_future(cache.get_or_set("k", loader))  # type: ignore[arg-type]
            await turns()
            assert cache.setdefault("k", 2) == 2
            assert cache.setdefault("k", 3) == 2
            gate.set()
            await asyncio.wait([task])
            # Written later than what the load read.
            assert cache["k"] == 2
            cache.clear()

    run(main())


def test_what_one_caller_is_handling_is_not_shown_to_the_others(run: Any) -> None:
    cache: Cache[str, int] = Cache(10)
    seen: dict[str, BaseException | None] = {}

    async def main() -> None:
        gate = asyncio.Event()

        async def load() -> int:
            try:
                await gate.wait()
                {}["the loader's own"]
            except KeyError:
                raise ZeroDivisionError("upstream") from None

        async def ask(name: str, secret: BaseException | None) -> None:
            try:
                if secret is not None:
                    raise secret
                await cache.get_or_set("k", load)
            except ZeroDivisionError as error:
                seen[name] = error.__context__
            except OSError:
                try:
                    await cache.get_or_set("k", load)
                except ZeroDivisionError as error:
                    seen[name] = error.__context__

        tasks = [
            asyncio.ensure_future(ask("leader", OSError("a secret"))),
            asyncio.ensure_future(ask("follower", OSError("another secret"))),
            asyncio.ensure_future(ask("plain", None)),
        ]
        await turns()
        gate.set()
        await asyncio.gather(*tasks)

    run(main())
    assert set(seen) == {"leader", "follower", "plain"}
    for context in seen.values():
        assert isinstance(context, KeyError)
        assert context.__context__ is None


def test_a_failure_at_once_does_not_show_what_its_caller_was_handling() -> None:
    """The loader is begun inside of its first caller; a second one is a thread."""
    cache: Cache[str, int] = Cache(10)
    loading, asked = threading.Event(), threading.Event()
    contexts: list[BaseException | None] = []

    def load() -> int:
        loading.set()
        assert asked.wait(10)
        (loader,) = _loads.loaders.values()
        while loader.flight.waiting() == 0:
            time.sleep(0.001)
        raise ZeroDivisionError

    def follow() -> None:
        assert loading.wait(10)
        asked.set()
        try:
            cache.get_or_set_sync("k", load)
        except ZeroDivisionError as error:
            contexts.append(error.__context__)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        os.stat("/nowhere at all")
    except OSError:
        with pytest.raises(ZeroDivisionError):
            cache.get_or_set_sync("k", load)
    thread.join(10)
    assert contexts == [None]


def test_without_followers_the_caller_sees_its_own_context() -> None:
    cache: Cache[str, int] = Cache(10)
    mine = OSError("mine")
    try:
        raise mine
    except OSError:
        with pytest.raises(ZeroDivisionError) as caught:
            cache.get_or_set_sync("k", lambda: 1 // 0)
    assert caught.value.__context__ is mine
