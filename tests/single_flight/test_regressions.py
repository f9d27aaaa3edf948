"""Single flight where a review found it wanting: each test failed before its repair."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from child import run_well
from turns import turns

from ferrogate import Cache, _flight, _loads


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    yield
    assert _loads.loaders == {}
    assert _loads.waits == {}
    assert _loads.leading.get() == frozenset()


# Loops closed over their loaders.


def orphan(cache: Cache[Any, Any], key: Any) -> Any:
    """A caller of `key` on a loop that is closed over it and its loader."""

    async def never() -> None:
        await asyncio.Event().wait()

    async def begin() -> Any:
        task = asyncio.ensure_future(cache.get_or_set(key, never))  # type: ignore[arg-type]
        await turns()
        return task

    loop = asyncio.new_event_loop()
    caller = loop.run_until_complete(begin())
    caller._log_destroy_pending = False
    loop.close()
    return caller


def test_sweeping_orphans_frees_their_keys(monkeypatch: Any) -> None:
    monkeypatch.setattr(_loads, "SWEEP", 1)
    cache: Cache[str, str] = Cache(10)
    orphans = [orphan(cache, "orphaned")]

    async def value() -> str:
        await asyncio.sleep(0)
        return "value"

    async def main() -> tuple[str, str]:
        other = await cache.get_or_set("other", value)  # makes the sweep
        return other, await asyncio.wait_for(cache.get_or_set("orphaned", value), 5)

    assert asyncio.run(main()) == ("value", "value")
    assert cache.get_stats()["loading"] == 0
    orphans.clear()
    gc.collect()


def test_an_orphan_is_noticed_by_who_came_before_its_task_was_known(monkeypatch: Any) -> None:
    monkeypatch.setattr(_flight, "_LOOK", 0.05)
    cache: Cache[str, str] = Cache(10)
    begun, joined = threading.Event(), threading.Event()

    async def never() -> str:
        # Still in the first step of the loader: nobody knows its task yet.
        begun.set()
        joined.wait(10)
        await asyncio.Event().wait()
        return "never"

    async def value() -> str:
        return "value"

    async def begin() -> Any:
        task = asyncio.ensure_future(cache.get_or_set("k", never))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        return task

    async def follow() -> str:
        asyncio.get_running_loop().call_later(0.1, joined.set)
        return await asyncio.wait_for(cache.get_or_set("k", value), 5)

    def work() -> str:
        begun.wait(10)
        return asyncio.run(follow())

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        following = pool.submit(work)
        loop = asyncio.new_event_loop()
        caller = loop.run_until_complete(begin())
        caller._log_destroy_pending = False
        loop.close()
        assert following.result(10) == "value"
    del caller
    gc.collect()


# Tasks that never begin, or end as somebody else.


def lazy(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """A task factory whose tasks begin in the next turn of the loop, as all did in 3.11."""
    return asyncio.Task(coroutine, loop=loop, **options)


def test_a_loader_cancelled_before_its_first_instruction_frees_its_key() -> None:
    cache: Cache[str, str] = Cache(10)

    async def value() -> str:
        return "value"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lazy)  # type: ignore[arg-type]
        caller: asyncio.Task[str] = loop.create_task(cache.get_or_set("k", value))  # type: ignore[arg-type]
        follower: asyncio.Task[str] = loop.create_task(cache.get_or_set("k", value))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        # The callers have begun, the loader that the first of them made has not.
        (loader,) = _loads.loaders.values()
        assert loader.task is not None
        loader.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(caller, 5)
        assert await asyncio.wait_for(follower, 5) == "value"
        # And by the caller itself, which awaits the end.
        cache.clear()
        caller = loop.create_task(cache.get_or_set("k", value))  # type: ignore[arg-type]
        loop.call_soon(caller.cancel)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(caller, 5)
        assert _loads.loaders == {}
        assert await asyncio.wait_for(cache.get_or_set("k", value), 5) == "value"

    with warnings.catch_warnings():
        # `value()` itself is never awaited where its loader never began.
        warnings.simplefilter("ignore", RuntimeWarning)
        asyncio.run(main())
        gc.collect()


def test_a_loader_collected_in_another_task_leaves_that_task_alone() -> None:
    cache: Cache[str, str] = Cache(10)
    reported: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context["message"]))

        async def never() -> str:
            await asyncio.Event().wait()
            return "never"

        async def innocent() -> None:
            flight, leads, _ = cache._join(cache._ready_or_lookup("k"))  # type: ignore[arg-type]
            assert leads
            lookup = cache._ready_or_lookup("k")
            loader = _flight._load(lookup, flight, never, (), {}, None, None)  # type: ignore[arg-type]
            loader.send(None)
            loader.close()
            raise ValueError("nobody asks for this error")

        asyncio.create_task(innocent())  # noqa: RUF006 - its error is what is looked for
        await turns()

    asyncio.run(main())
    gc.collect()
    assert reported == ["Task exception was never retrieved"]


def test_a_chain_of_tasks_does_not_collect_what_it_once_loaded() -> None:
    cache: Cache[int, int] = Cache(1000)
    sizes: list[int] = []
    done: list[asyncio.Event] = []

    async def link(n: int) -> int:
        sizes.append(len(_loads.leading.get()))
        if n < 300:
            # Goes on when this load is over.
            asyncio.get_running_loop().call_soon(start, n + 1)
        else:
            done[0].set()
        return n

    def start(n: int) -> None:
        tasks.append(asyncio.ensure_future(cache.get_or_set(n, lambda: link(n))))  # type: ignore[arg-type]

    async def main() -> None:
        done.append(asyncio.Event())
        start(0)
        await asyncio.wait_for(done[0].wait(), 10)
        await asyncio.gather(*tasks)

    tasks: list[asyncio.Future[int]] = []
    asyncio.run(main())
    assert len(sizes) == 301
    assert max(sizes) <= 2


# Signals.


@pytest.mark.hostile
def test_a_signal_while_landing_loses_no_waiter() -> None:
    code = """
    import asyncio, signal, threading, time
    from ferrogate import Cache, _flight, _loads
    cache = Cache(10)
    woken = []

    class Interrupting(asyncio.SelectorEventLoop):
        "Its first calls are interrupted by a signal, as any call of Python code can be."
        left = 0
        def call_soon_threadsafe(self, *args, **kwargs):
            if type(self).left:
                type(self).left -= 1
                signal.raise_signal(signal.SIGINT)
            return super().call_soon_threadsafe(*args, **kwargs)

    async def ask():
        woken.append(await asyncio.wait_for(cache.get_or_set("k", asyncio.Event().wait), 20))

    async def both():
        await asyncio.gather(ask(), ask())

    def work():
        with asyncio.Runner(loop_factory=Interrupting) as runner:
            runner.run(both())

    thread = threading.Thread(target=work)
    def load():
        thread.start()
        (loader,) = _loads.loaders.values()
        while loader.flight.waiting() < 2:
            time.sleep(0.001)
        Interrupting.left = 2
        return "value"
    try:
        cache.get_or_set_sync("k", load)
    except KeyboardInterrupt:
        print("interrupted")
    started = time.monotonic()
    thread.join()
    print(woken, time.monotonic() - started < 10, cache["k"])
    """
    assert run_well(code) == "interrupted\n['value', 'value'] True value\n"
