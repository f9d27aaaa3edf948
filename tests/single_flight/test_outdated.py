"""What is invalidated or written while it is being loaded (HOSTILE 17)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest
from turns import turns

from ferrogate import Cache, cached
from ferrogate._categories import CategoryCache
from ferrogate._core import CachedFunction

Invalidate = Callable[[Cache[str, Any]], object]

INVALIDATIONS = {
    "delete": lambda cache: cache.delete("users:1"),
    "pop": lambda cache: cache.pop("users:1", None),
    "clear": lambda cache: cache.clear(),
    "tag": lambda cache: cache.invalidate_tag("u"),
}


@pytest.mark.parametrize("how", INVALIDATIONS)
def test_what_is_invalidated_while_it_loads_is_delivered_and_not_stored(how: str) -> None:
    invalidate: Invalidate = INVALIDATIONS[how]
    cache: Cache[str, Any] = Cache(10)
    versions = iter(range(1, 100))

    async def main() -> None:
        gate = asyncio.Event()

        async def load() -> int:
            version = next(versions)
            await gate.wait()
            return version

        def ask(key: str = "users:1") -> asyncio.Future[Any]:
            return asyncio.ensure_future(cache.get_or_set(key, load, tags=["u", "v"]))  # type: ignore[arg-type]

        before = [ask(), ask()]
        await turns()
        invalidate(cache)
        after = [ask(), ask()]
        await turns()
        gate.set()
        assert await asyncio.gather(*before) == [1, 1]
        assert await asyncio.gather(*after) == [2, 2]
        assert cache["users:1"] == 2
        # Without a newcomer nothing is stored at all.
        cache.clear()
        gate.clear()
        alone = ask()
        await turns()
        invalidate(cache)
        gate.set()
        assert await alone == 3
        assert len(cache) == 0
        # What has nothing to do with the load leaves it alone.
        gate.clear()
        alone = ask()
        await turns()
        cache.delete("another")
        cache.invalidate_tag("another")
        gate.set()
        assert await alone == 4
        assert cache["users:1"] == 4

    asyncio.run(main())


def test_what_is_written_while_it_loads_stays() -> None:
    cache: Cache[str, Any] = Cache(10)

    async def main() -> None:
        gate = asyncio.Event()

        async def load() -> str:
            await gate.wait()
            return "read before the write"

        waiting = [asyncio.ensure_future(cache.get_or_set("k", load)) for _ in range(2)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        cache["k"] = "written"
        cache["another"] = 1
        assert await cache.get_or_set("k", load) == "written"
        gate.set()
        assert await asyncio.gather(*waiting) == ["read before the write"] * 2
        assert cache["k"] == "written"
        assert cache.get_stats()["loading"] == 0

    asyncio.run(main())


LONE_CHANGES: dict[str, Callable[[CachedFunction[..., Any], Cache[Any, Any]], object]] = {
    "invalidate": lambda function, _: function.cache_invalidate(1),
    "cache_clear": lambda function, _: function.cache_clear(),
    "clear": lambda _, cache: cache.clear(),
    "tag": lambda _, cache: cache.invalidate_tag("t"),
}


@pytest.mark.parametrize("how", LONE_CHANGES)
def test_loads_without_single_flight_are_outdated_too(how: str) -> None:
    shared: Cache[Any, Any] = Cache(10)
    during: list[Callable[[], object]] = []

    def load(x: int) -> int:
        if during:
            during.pop()()
        return x

    async def load_async(x: int) -> int:
        await asyncio.sleep(0)
        return load(x)

    options: dict[str, Any] = {"cache": shared, "single_flight": False, "tags": ["t"]}
    sync, coroutine = cached(**options)(load), cached(**options)(load_async)
    cases: list[tuple[CachedFunction[..., Any], Callable[[], int]]] = [
        (sync, lambda: sync(1)),
        (coroutine, lambda: asyncio.run(coroutine(1))),
    ]
    for function, call in cases:
        during.append(lambda f=function: LONE_CHANGES[how](f, shared))  # type: ignore[misc]
        assert call() == 1
        assert shared.get_stats()["size"] == 0
        assert call() == 1
        assert shared.get_stats()["size"] == 1
        assert shared.get_stats()["loading"] == 0
        # What somebody else invalidates meanwhile leaves it alone.
        shared.clear()
        during.append(lambda: shared.invalidate_tag("another"))
        assert call() == 1
        assert shared.get_stats()["size"] == 1
        shared.clear()


def test_a_lone_load_that_fails_leaves_nothing_behind() -> None:
    shared: Cache[Any, Any] = Cache(10)

    @cached(cache=shared, single_flight=False)
    async def fails() -> None:
        raise ValueError("no")

    @cached(cache=shared, single_flight=False)
    async def hangs() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        with pytest.raises(ValueError, match="no"):
            await fails()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(hangs(), 0.01)
        assert shared.get_stats()["loading"] == 0

    asyncio.run(main())
    never_run = hangs()
    assert shared.get_stats()["loading"] == 0
    never_run.close()


def test_cached_functions_are_invalidated_while_they_load() -> None:
    shared: Cache[Any, Any] = Cache(10)
    versions = iter(range(1, 100))
    release, begun = threading.Event(), threading.Event()

    @cached
    def own(x: int) -> int:
        version = next(versions)
        begun.set()
        assert release.wait(10)
        return version

    in_shared = cached(cache=shared)(own.__wrapped__)

    class Holder:
        @cached
        def method(self) -> int:
            return own.__wrapped__(1)  # type: ignore[no-any-return]

    holder = Holder()
    cases: list[tuple[Callable[[], int], Callable[[], object]]] = [
        (lambda: own(1), lambda: own.cache_invalidate(1)),
        (lambda: own(1), own.cache_clear),
        (lambda: in_shared(1), lambda: in_shared.cache_invalidate(1)),
        (lambda: in_shared(1), in_shared.cache_clear),
        (holder.method, holder.method.cache_clear),
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for call, invalidate in cases:
            release.clear()
            begun.clear()
            old = pool.submit(call)
            assert begun.wait(10)
            invalidate()
            begun.clear()
            new = pool.submit(call)
            assert begun.wait(10)
            release.set()
            assert new.result(10) == old.result(10) + 1
            assert call() == new.result(), "the outdated value was stored"
            invalidate()


def test_a_category_is_invalidated_while_it_loads() -> None:
    async def main() -> None:
        cache = CategoryCache(10)
        gate = asyncio.Event()

        async def load() -> int:
            await gate.wait()
            return 1

        task = asyncio.ensure_future(cache.get_or_set("prompt:1", load))  # type: ignore[arg-type]
        await turns()
        cache.invalidate_category("prompt")
        gate.set()
        assert await task == 1
        assert "prompt:1" not in cache

    asyncio.run(main())
