"""Leases: whoever asks for one and goes away, however it does, keeps nobody waiting."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from child import FORKS, run_well, times
from redis_servers import needs_redis
from services import HASTY, Open, locked
from turns import turns
from waiting import eventually

from ferrogate import CacheService

#: Longer than any test: a lease that is not given back is a test that fails.
LEASE = 3600.0


async def never() -> int:
    await asyncio.sleep(LEASE)
    return 0


def is_free(other: CacheService, key: object) -> bool:
    """Whether another process would get the lease; it gives it back."""
    answer = other._lease(True, "ns", key, None)
    if answer[0] == "lease":
        answer[1].release()
    return bool(answer[0] == "lease")


@pytest.mark.parametrize("loader", ["never", "at once"])
def test_cancelled_at_every_turn(sqlite: Open, loader: str) -> None:
    """HOSTILE 14: also in the very tick in which the lease arrives."""
    one, other = sqlite(lease_seconds=LEASE), sqlite(lease_seconds=LEASE)
    load = never if loader == "never" else lambda: asyncio.sleep(0, 1)

    async def main(key: str, turn: int) -> None:
        task = asyncio.create_task(one.get_or_set("ns", key, load))
        for _ in range(turn % 8):
            await asyncio.sleep(0)
        if turn >= 8:
            # As many turns after the answer has come, whenever that is.
            while not one.get_stats()["commits"]:
                await turns(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for turn in range(times(48, 2000)):
        key = f"{turn}"
        asyncio.run(main(key, turn % 16))
        eventually(lambda key=key: other.exists_sync("ns", key) or is_free(other, key))


def test_cancelled_in_the_tick_of_its_answer(sqlite: Open, request: pytest.FixtureRequest) -> None:
    """HOSTILE 15: the future has its result, and the task that awaits it is cancelled."""
    one, other = sqlite(lease_seconds=LEASE), sqlite(lease_seconds=LEASE)
    # The exception's frames are a cycle that would keep the lease until the collector comes.
    request.addfinalizer(gc.enable)
    gc.disable()

    async def main(key: str) -> None:
        loop, made = asyncio.get_running_loop(), []
        create_future = loop.create_future

        def record() -> asyncio.Future[Any]:
            made.append(create_future())
            return made[-1]

        loop.create_future = record  # type: ignore[method-assign]
        asked = asyncio.ensure_future(one._lease(False, "ns", key, None))
        # The bridge has settled it, and the task's own turn comes after this one.
        while not made or not made[0].done():
            await turns(1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    for turn in range(times(30, 2000)):
        asyncio.run(main(str(turn)))
        eventually(lambda turn=turn: is_free(other, str(turn)))


def test_a_loop_that_is_closed_over_its_load(sqlite: Open) -> None:
    one, other = sqlite(lease_seconds=LEASE), sqlite(lease_seconds=LEASE)

    async def ask(key: str) -> Any:
        return await one._lease(False, "ns", key, None)

    for turn in range(times(20, 500)):
        loop = asyncio.new_event_loop()
        asked = loop.create_task(ask(str(turn)))
        for _ in range(turn % 4):
            loop.run_until_complete(asyncio.sleep(0))
        asked.cancel()
        loop.run_until_complete(asyncio.gather(asked, return_exceptions=True))
        loop.close()
        # It may have come first, and then its result is the lease.
        del asked
        eventually(lambda turn=turn: is_free(other, str(turn)))


@pytest.mark.parametrize("store", ["sqlite", pytest.param("redis", marks=needs_redis)])
def test_closing_gives_back_what_is_still_loading(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite://{tmp_path}/cache.db"
    if store == "redis":
        url = request.getfixturevalue("redis").url
    one, other = (CacheService(url, lease_seconds=LEASE) for _ in range(2))
    with other:
        eventually(one.health_check_sync)
        what, _lease = one._lease(True, "ns", "k", None)
        assert what == "lease"
        assert not is_free(other, "k")
        one.close_sync()
        eventually(lambda: is_free(other, "k"))


def test_a_load_that_fails(sqlite: Open) -> None:
    one, other = sqlite(lease_seconds=LEASE), sqlite(lease_seconds=LEASE)

    def fails() -> int:
        raise LookupError("told")

    kept: list[BaseException] = []
    for wrong in (fails, lambda: {1, 2}):
        with pytest.raises((LookupError, TypeError)) as caught:
            one.get_or_set_sync("ns", "k", wrong)
        # Its traceback keeps every frame alive, and the lease is free all the same.
        kept.append(caught.value)
        eventually(lambda: is_free(other, "k"))


@pytest.mark.usefixtures("no_leaked_threads")
def test_the_store_goes_away_during_the_load(sqlite: Open, tmp_path: Path) -> None:
    """The value cannot be stored; when the store is back, nobody waits for it."""
    one, other = (sqlite(lease_seconds=LEASE, busy_seconds=HASTY) for _ in range(2))
    eventually(one.health_check_sync)
    with locked(tmp_path / "cache.db") as (lock, unlock):

        def load() -> int:
            lock()
            return 5

        assert one.get_or_set_sync("ns", "k", load) == 5
        assert one.get_stats()["errors"]
        unlock()
        # Its lease could not be ended in the store then.
        eventually(one.health_check_sync)
        eventually(lambda: is_free(other, "k") or other.exists_sync("ns", "k"))


def test_a_child_that_was_forked_in_a_load_leaves_the_lease_alone(tmp_path: Path) -> None:
    code = (
        FORKS
        + """
import os, sys
from ferrogate import CacheService
one, other = (CacheService(sys.argv[1], lease_seconds=3600, busy_seconds=60) for _ in range(2))
def load():
    if os.fork() == 0:
        raise LookupError("in the child")
    assert os.wait()[1] == 0
    assert other._lease(True, "ns", "k", None)[0] == "busy"
    return 7
try:
    assert one.get_or_set_sync("ns", "k", load) == 7
except LookupError:
    # It has the store for itself, as any process.
    assert one._lease(True, "ns", "k", None)[0] == "busy"
    assert one.set_sync("ns", "child", 1)
    os._exit(0)
assert other.get_sync("ns", "k") == 7 and other.get_sync("ns", "child") == 1
"""
    )
    run_well(code, f"sqlite://{tmp_path}/cache.db", timeout=100)


def test_blocking_and_awaiting_loaders_wait_for_each_other(sqlite: Open) -> None:
    """Two services, as two processes have them: one load, whoever leads."""
    one, other = sqlite(lease_seconds=LEASE), sqlite(lease_seconds=LEASE)
    loads: list[Any] = []

    def ask(cache: CacheService, key: str) -> None:
        def load() -> str:
            loads.append(key)
            return key

        assert cache.get_or_set_sync("ns", key, load) == key

    async def ask_async(cache: CacheService, key: str) -> None:
        async def load() -> str:
            await turns()
            loads.append(key)
            return key

        assert await cache.get_or_set("ns", key, load) == key

    for turn in range(20):
        threads = [
            threading.Thread(target=ask, args=(one, str(turn))),
            threading.Thread(target=asyncio.run, args=(ask_async(other, str(turn)),)),
            threading.Thread(target=ask, args=(other, str(turn))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(loads) == sorted(str(turn) for turn in range(20))


def test_a_fork_does_not_wait_for_another_process(tmp_path: Path, sqlite: Open) -> None:
    """What was queued behind its lock is stored after the fork, by the parent."""
    code = (
        FORKS
        + """
import os, sys, threading, time
from ferrogate import CacheService
cache = CacheService(sys.argv[1], busy_seconds=3600)
stored = []
threads = [
    threading.Thread(target=lambda n=n: stored.append(cache.set_sync("ns", str(n), n)))
    for n in range(4)
]
for one in threads: one.start()
while cache.get_stats()["sets"] < 4: time.sleep(0.001)
for _ in range(5):
    if os.fork() == 0:
        # Its own: nobody here waits for what the parent's threads asked.
        assert cache.get_sync("ns", "none") is None
        os._exit(0)
    assert os.wait()[1] == 0
# It is unlocked once this is told.
assert not stored, stored
open(sys.argv[2], "w").close()
for one in threads: one.join()
assert stored == [True] * 4, cache.get_stats()
"""
    )
    sqlite().set_sync("ns", "k", 1)
    forked = tmp_path / "forked"
    with locked(tmp_path / "cache.db") as (lock, unlock), ThreadPoolExecutor(1) as pool:
        lock()
        args = (f"sqlite://{tmp_path}/cache.db", str(forked))
        child = pool.submit(run_well, code, *args, timeout=100)
        eventually(lambda: forked.exists() or child.done(), 60)
        unlock()
        child.result()
    assert [sqlite().get_sync("ns", str(n)) for n in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("store", ["sqlite", pytest.param("redis", marks=needs_redis)])
def test_a_loop_that_is_closed_over_a_load_gives_its_lease_back(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if store == "redis":
        url = request.getfixturevalue("redis").url
    else:
        url = f"sqlite://{tmp_path}/cache.db"
    collects = gc.isenabled()
    gc.disable()
    try:
        with CacheService(url, lease_seconds=LEASE) as service, CacheService(url) as other:
            assert service.set_sync("ns", "ready", 1)
            for asks_first in (other, service):
                tasks = []

                async def begin() -> None:
                    loading = asyncio.Event()

                    async def load() -> int:
                        loading.set()
                        return await never()

                    tasks.append(asyncio.ensure_future(service.get_or_set("ns", "k", load)))  # noqa: B023
                    await loading.wait()

                loop = asyncio.new_event_loop()
                loop.run_until_complete(begin())
                assert not is_free(other, "k")
                loop.close()
                # The collector has not found the task, and does not have to.
                assert asks_first.get_or_set_sync("ns", "k", lambda: "loaded") == "loaded"
                assert service.delete_sync("ns", "k")
                for task in tasks:
                    task._log_destroy_pending = False
    finally:
        if collects:
            gc.enable()
