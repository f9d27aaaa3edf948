"""The service's contract, on every store."""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from services import Open
from turns import turns
from waiting import eventually

from ferrogate import CacheService, _loads
from ferrogate.testing import ManualClock


def test_the_scheduler_s_calls(service: Open) -> None:
    """SYSTEMS S5, verbatim."""
    cache = service()

    async def main() -> None:
        assert await cache.get("tasks", "1") is None
        await cache.set("tasks", "1", {"state": "queued"}, ttl=10)
        assert await cache.get("tasks", "1") == {"state": "queued"}
        await cache.invalidate_namespace("tasks")
        assert await cache.get("tasks", "1") is None

    asyncio.run(main())
    stats = cache.get_stats()
    shape = {"hits", "misses", "total_requests", "hit_rate_percent", "memory_cache_size"}
    assert shape <= set(stats)
    assert (stats["hits"], stats["misses"], stats["hit_rate_percent"]) == (1, 2, 100 / 3)


def test_twins(service: Open) -> None:
    cache = service()
    assert cache.get_sync("ns", "k") is None
    assert cache.get_sync("ns", "k", 7) == 7
    assert cache.set_sync("ns", "k", [1], tags=["t"])
    assert cache.exists_sync("ns", "k")
    assert cache.get_sync("ns", "k") == [1]
    assert cache.delete_sync("ns", "k")
    assert not cache.delete_sync("ns", "k")
    assert not cache.exists_sync("ns", "k")
    assert cache.set_sync("ns", "k", [2], tags=["t"])
    assert cache.invalidate_tag_sync("t")
    assert cache.get_sync("ns", "k") is None
    assert cache.set_sync("ns", "k", [3])
    assert cache.invalidate_namespace_sync("ns")
    assert not cache.exists_sync("ns", "k")
    assert cache.health_check_sync()


def test_coroutines(service: Open) -> None:
    cache = service()

    async def main() -> None:
        assert await asyncio.create_task(cache.set("ns", "k", [1], tags=["t"]))
        assert await asyncio.wait_for(cache.get("ns", "k"), 5) == [1]
        assert await asyncio.gather(cache.exists("ns", "k"), cache.delete("ns", "k")) == [True] * 2
        assert await cache.get("ns", "k", "none") == "none"
        assert await cache.invalidate_tag("t")
        assert await cache.health_check()

    asyncio.run(main())
    # Made before a loop runs, awaited in one.
    assert asyncio.run(cache.set("ns", "k", 5)) is True
    assert asyncio.run(cache.get("ns", "other")) is None
    assert asyncio.run(cache.get("ns", "k")) == 5
    assert asyncio.run(cache.exists("ns", "k")) is True
    assert asyncio.run(cache.delete("ns", "k")) is True
    assert asyncio.run(cache.invalidate_namespace("ns")) is True
    assert asyncio.run(cache.invalidate_tag("t")) is True
    assert asyncio.run(cache.health_check()) is True


def test_values_are_copies(service: Open) -> None:
    cache = service()
    value = {"a": [1]}
    cache.set_sync("ns", "k", value)
    value["a"].append(2)
    cache.get_sync("ns", "k")["a"].append(3)
    assert cache.get_sync("ns", "k") == {"a": [1]}


def test_ttl(timed: Open) -> None:
    clock = ManualClock(1_000.0)
    cache = timed(clock=clock, default_ttl=60)
    cache.set_sync("ns", "usual", 1)
    cache.set_sync("ns", "short", 2, ttl=datetime.timedelta(seconds=10))
    cache.set_sync("ns", "long", 3, 100)
    found = lambda: [cache.get_sync("ns", key) for key in ("usual", "short", "long")]  # noqa: E731
    clock.advance(9)
    assert found() == [1, 2, 3]
    clock.advance(1)
    assert found() == [1, None, 3]
    clock.advance(50)
    assert found() == [None, None, 3]
    clock.advance(40)
    assert found() == [None, None, None]


def test_the_near_cache_has_what_remains_of_the_ttl(sqlite: Open) -> None:
    clock = ManualClock(1_000.0)
    writer, reader = sqlite(clock=clock), sqlite(clock=clock)
    writer.set_sync("ns", "k", 1, ttl=10)
    clock.advance(8)
    # While its watcher hears that somebody has set it, it is not kept; the next time it is.
    eventually(lambda: reader.get_sync("ns", "k") == 1 and reader.get_stats()["near_entries"] == 1)
    clock.advance(2)
    assert reader.get_sync("ns", "k") is None


def test_keys(service: Open) -> None:
    cache = service()
    keys: list[Any] = ["k", "", "\u0001", "x" * 5000, 1, 2.5, None, (1, "k"), {"a": [1, {2}]}, b"k"]
    for number, key in enumerate(keys):
        assert cache.set_sync("ns", key, number)
    assert [cache.get_sync("ns", key) for key in keys] == list(range(len(keys)))
    assert cache.get_sync("ns", {"a": [1.0, frozenset([2])]}) == keys.index({"a": [1, {2}]})
    assert cache.get_sync("n", "sk") is None
    assert cache.get_sync("nsk", "") is None


def test_tags_and_namespaces_reach_only_their_own(service: Open) -> None:
    cache = service()
    for ns in ("a", "b"):
        for key, tags in (("1", ["x", "y"]), ("2", ["y"]), ("3", None)):
            cache.set_sync(ns, key, ns + key, tags=tags)
    cache.invalidate_tag_sync("x")
    left = lambda: [  # noqa: E731
        v for ns in ("a", "b") for k in "123" if (v := cache.get_sync(ns, k)) is not None
    ]
    assert left() == ["a2", "a3", "b2", "b3"]
    cache.invalidate_namespace_sync("a")
    assert left() == ["b2", "b3"]
    cache.invalidate_tag_sync("a")
    cache.invalidate_namespace_sync("y")
    assert left() == ["b2", "b3"]
    cache.set_sync("a", "1", "a1", tags=["x"])
    assert left() == ["a1", "b2", "b3"]


def test_one_load(service: Open) -> None:
    cache, loads = service(), []

    async def load() -> list[int]:
        loads.append(1)
        await asyncio.sleep(0.02)
        return [len(loads)]

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(cache.get_or_set("ns", "k", load) for _ in range(50)))

    assert asyncio.run(main()) == [[1]] * 50
    assert asyncio.run(main()) == [[1]] * 50
    assert loads == [1]


def test_one_load_over_loops_and_threads(service: Open) -> None:
    cache, loads = service(), []
    barrier = threading.Barrier(6)

    def load() -> int:
        loads.append(1)
        time.sleep(0.05)
        return 7

    async def load_async() -> int:
        loads.append(1)
        await asyncio.sleep(0.05)
        return 7

    results: list[int] = []

    def thread() -> None:
        barrier.wait()
        results.append(cache.get_or_set_sync("ns", "k", load))

    def loop() -> None:
        barrier.wait()

        async def main() -> list[int]:
            return await asyncio.gather(*(cache.get_or_set("ns", "k", load_async),) * 1)

        results.extend(asyncio.run(main()))

    threads = [threading.Thread(target=target) for target in (thread, loop) * 3]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert results == [7] * 6
    assert loads == [1]


def test_what_a_loader_raises_is_everybody_s_and_not_stored(service: Open) -> None:
    cache, calls = service(), []
    all_wait = asyncio.Event()

    async def fails() -> int:
        calls.append(1)
        await all_wait.wait()
        raise LookupError("told")

    async def main() -> list[Any]:
        tries = [asyncio.create_task(cache.get_or_set("ns", "k", fails)) for _ in range(5)]
        # Each has looked in the store first: then one of them loads, and the others wait for it.
        while waiting() < 5:
            await turns(1)
        all_wait.set()
        return await asyncio.gather(*tries, return_exceptions=True)

    def waiting() -> int:
        return sum(load.flight.waiting() for load in _loads.loaders.values())

    assert [str(error) for error in asyncio.run(main())] == ["told"] * 5
    assert calls == [1]
    assert cache.get_or_set_sync("ns", "k", lambda: 3) == 3


def test_a_cancelled_load_lets_the_next_one_in(service: Open) -> None:
    # It is given back, or the next one waits for longer than any test.
    cache = service(lease_seconds=3600)

    async def main() -> None:
        begun = asyncio.Event()

        async def never() -> int:
            begun.set()
            await asyncio.sleep(3600)
            return 0

        task = asyncio.create_task(cache.get_or_set("ns", "k", never))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await cache.get_or_set("ns", "k", lambda: asyncio.sleep(0, 4)) == 4

    asyncio.run(main())


@pytest.mark.parametrize("how", ["set", "delete", "namespace", "tag"])
def test_what_is_invalidated_during_its_load_is_not_stored(service: Open, how: str) -> None:
    cache = service()

    async def main() -> None:
        begun = asyncio.Event()
        go_on = asyncio.Event()

        async def load() -> str:
            begun.set()
            await go_on.wait()
            return "old"

        task = asyncio.create_task(cache.get_or_set("ns", "k", load, tags=["t"]))
        await begun.wait()
        match how:
            case "set":
                await cache.set("ns", "k", "new")
            case "delete":
                await cache.delete("ns", "k")
            case "namespace":
                await cache.invalidate_namespace("ns")
            case "tag":
                await cache.invalidate_tag("t")
        # Whoever comes now does not get what was read before.
        newer = await asyncio.wait_for(
            cache.get_or_set("ns", "k", lambda: asyncio.sleep(0, "new")), 60
        )
        assert newer == "new"
        go_on.set()
        assert await task == "old"
        assert await cache.get("ns", "k") == "new"

    asyncio.run(main())


def test_what_concerns_other_keys_does_not_outdate_a_load(service: Open) -> None:
    cache = service()

    def load() -> int:
        for number in range(500):
            cache.set_sync("ns", str(number), number, tags=["u"])
        cache.delete_sync("ns", "7")
        cache.invalidate_tag_sync("u")
        cache.invalidate_namespace_sync("other")
        return 5

    assert cache.get_or_set_sync("ns", "k", load, tags=["t"]) == 5
    assert cache.get_sync("ns", "k") == 5
    assert cache.get_stats()["outdated"] == 0


def test_a_recursive_load_raises(service: Open) -> None:
    cache = service()

    async def load() -> Any:
        return await cache.get_or_set("ns", "k", load)

    with pytest.raises(RuntimeError, match="recursive load"):
        asyncio.run(cache.get_or_set("ns", "k", load))


def test_warming(service: Open) -> None:
    cache, seen = service(), []
    items = (("ns", str(number), number) for number in range(250))
    assert asyncio.run(cache.warm(items, progress=seen.append, concurrency=100)) == 250
    assert seen == [100, 200, 250]
    assert cache.get_sync("ns", "249") == 249


def test_closing(service: Open) -> None:
    cache = service()
    cache.set_sync("ns", "k", 1)
    asyncio.run(cache.close())
    cache.close_sync()
    assert cache.closed
    for call in (
        lambda: cache.get_sync("ns", "k"),
        lambda: cache.set_sync("ns", "k", 1),
        lambda: cache.delete_sync("ns", "k"),
        lambda: asyncio.run(cache.get("ns", "other")),
        lambda: cache.get_or_set_sync("ns", "k", int),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    assert not cache.health_check_sync()
    assert "closed" in repr(cache)
    with service() as other:
        assert not other.closed
    assert other.closed


def test_disabled(service: Open) -> None:
    cache = service(enabled=False)
    assert cache.set_sync("ns", "k", 1) is False
    assert cache.get_sync("ns", "k") is None
    assert cache.get_or_set_sync("ns", "k", lambda: 5) == 5
    assert cache.get_or_set_sync("ns", "k", lambda: 6) == 6
    assert cache.get_stats()["misses"] >= 3


def test_near_bytes_is_a_bound(service: Open) -> None:
    cache = service(near_bytes=50_000)
    for number in range(500):
        cache.set_sync("ns", str(number), "x" * 1000)
    stats = cache.get_stats()
    assert stats["near_bytes"] <= 50_000
    assert stats["near_evictions"] > 400
    assert cache.get_sync("ns", "499") == "x" * 1000


def test_one_service_over_many_loops(sqlite: Open) -> None:
    cache = sqlite(near_bytes=1)
    errors: list[BaseException] = []

    def loop(number: int) -> None:
        async def main() -> None:
            for turn in range(20):
                key = f"{number}:{turn}"
                assert await asyncio.gather(*(cache.set("ns", key, turn) for _ in range(10)))
                await asyncio.gather(*(cache.get("ns", key) for _ in range(10)))

        try:
            for _ in range(3):
                asyncio.run(main())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not errors


def test_names_and_repr() -> None:
    cache = CacheService(name="answers")
    assert cache.name == "answers"
    assert repr(cache) == "CacheService('answers', 0 entries, hit rate 0.0%)"
    cache.set_sync("ns", "k", 1)
    cache.get_sync("ns", "k")
    cache.reset_stats()
    assert cache.get_stats()["hits"] == 0


def test_on_both_loops(sqlite: Open, run: Callable[..., Any]) -> None:
    """HOSTILE 19: what waits for the store is a coroutine like any other."""
    cache = sqlite(near_bytes=1)
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")

    async def load() -> str:
        await turns(3)
        return user.get()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(cache.set("ns", number, number))
        got = await asyncio.gather(*(cache.get("ns", number) for number in range(50)))
        assert got == list(range(50))
        user.set("me")
        assert await asyncio.wait_for(cache.get_or_set("ns", "user", load), 60) == "me"
        assert asyncio.iscoroutine(waiting := cache.get("ns", "none"))
        assert await waiting is None
        cancelled = [asyncio.ensure_future(cache.get("ns", number)) for number in range(50)]
        await turns(1)
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
        assert await cache.delete("ns", 7)
        assert not await cache.exists("ns", 7)

    for _ in range(3):
        run(main(), debug=True)
        assert cache.get_sync("ns", 8) == 8
