"""Loops that end, signals and forks during a load (HOSTILE 9, 11, 12, 16)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import threading
import time
from typing import Any

import pytest
from child import run_well
from loaders import Loader, LoadError

from ferrogate import Cache, _flight, _loads

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
    assert _loads.loaders == {}


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
    from ferrogate import _loads
    assert _loads.loaders == {{}}
    print("fine")
    """
    assert run_well(code) == "fine\n"


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
    assert run_well(code) == "fine\n"


@pytest.mark.hostile
def test_ctrl_c_of_the_last_waiting_thread_cancels_the_loader() -> None:
    code = """
    import asyncio, signal, threading
    from ferrogate import Cache, _loads
    cache, log, ended = Cache(10), [], threading.Event()
    async def load():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            log.append("cancelled")
            raise
        finally:
            ended.set()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    first = asyncio.run_coroutine_threadsafe(cache.get_or_set("k", load), loop)
    while not _loads.loaders: pass
    (loader,) = _loads.loaders.values()
    def disturb():
        while loader.flight.waiting() < 2: pass
        first.cancel()
        while loader.flight.waiting() > 1: pass
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    threading.Thread(target=disturb).start()
    try:
        cache.get_or_set_sync("k", int)
    except KeyboardInterrupt:
        print("interrupted")
    assert ended.wait(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
    print(log)
    """
    assert run_well(code) == "interrupted\n['cancelled']\n"


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
    assert run_well(code) == "0 0 True\n"
