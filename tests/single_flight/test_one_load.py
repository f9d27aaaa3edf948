"""Many ask, one loads (HOSTILE 17)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from typing import Any

from ferrogate import Cache, cached

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
