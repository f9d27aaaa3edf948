"""`stale_while_revalidate`: served at once, refreshed once, in the background."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from child import is_collected
from sources import Source, rested, settled, stats
from turns import turns

from ferrogate import Cache, _loads, _refresh, cached
from ferrogate.testing import ManualClock

Run = Callable[..., Any]
STALE: dict[str, Any] = {"stale_while_revalidate": 30}


def test_a_coroutine_function_is_refreshed_by_a_task(run: Run, source: Source) -> None:
    f = source.acached(**STALE)

    async def main() -> None:
        assert await f() == 1
        source.clock.advance(10)
        # Ready at once, and before anything was called.
        assert [await f() for _ in range(5)] == [1] * 5
        assert f.cache.explain(()) == {"present": False}  # no key that anybody could write
        assert source.calls == 1
        await rested()
        assert source.calls == 2
        assert await f() == 2
        assert stats(f) == {"stale_hits": 5, "refreshes": 1}
        assert f.cache_info()[:2] == (6, 1)
        # The new value has its own time to live and its own grace.
        source.clock.advance(39)
        assert await f() == 2
        source.clock.advance(1.5)
        await rested()
        assert await f() == 3

    run(main())


def test_a_function_is_refreshed_by_a_thread(source: Source) -> None:
    f = source.cached(**STALE)
    assert f() == 1
    source.clock.advance(39.9)
    assert f() == 1
    settled()
    assert f() == 2
    assert stats(f) == {"stale_hits": 1, "refreshes": 1}
    source.clock.advance(40)
    assert f() == 3  # too old: whoever asks waits
    assert stats(f) == {"stale_hits": 1, "refreshes": 1}


def test_only_loads_that_want_it_see_what_is_stale() -> None:
    clock = ManualClock()
    cache: Cache[str, int] = Cache(10, ttl=10, clock=clock)
    cache.get_or_set_sync("a", lambda: 1, stale_while_revalidate=20)
    cache["b"] = 5
    clock.advance(10)
    assert cache.explain("a")["state"] == "stale"
    assert (cache.get("a"), "a" in cache, list(cache), len(cache)) == (None, False, [], 0)
    assert cache.get_stats()["size"] == 1
    with pytest.raises(KeyError):
        cache["a"]
    with pytest.raises(KeyError):
        cache.popitem()
    # And none of them has buried it.
    assert cache.get_or_set_sync("a", lambda: 2, stale_while_revalidate=20) == 1
    settled()
    assert cache["a"] == 2
    clock.advance(10)
    assert cache.get_or_set_sync("a", lambda: 3) == 3, "without the terms it is a miss"
    clock.advance(10)
    with pytest.raises(KeyError):
        del cache["a"]
    assert not cache.delete("a"), "an attempt to delete it has removed it"
    cache.get_or_set_sync("a", lambda: 4, stale_while_revalidate=20)
    clock.advance(10)
    assert cache.delete("a")
    assert not cache.explain("a")["present"]


def test_what_is_stale_counts_for_the_bound_and_leaves_with_its_causes() -> None:
    clock = ManualClock()
    told: list[Any] = []
    cache: Cache[str, int] = Cache(
        2, ttl=10, clock=clock, on_evict=lambda key, value, cause: told.append((key, cause))
    )
    for key in "abc":
        cache.get_or_set_sync(key, lambda: 1, stale_while_revalidate=20, tags=["t"])
    assert told == [("a", "evicted")]
    clock.advance(15)
    assert cache.cleanup() == 0
    cache["d"] = 1
    assert told[1:] == [("b", "evicted")]
    assert cache.invalidate_tag("t") == 1
    cache.get_or_set_sync("e", lambda: 1, stale_while_revalidate=20)
    clock.advance(30)
    assert cache.cleanup() == 2
    assert [one for one in told[2:] if one[1] != "expired"] == [("c", "invalidated")]


def test_one_refresh_for_a_key(run: Run, source: Source) -> None:
    gate: asyncio.Event

    async def slow(x: int) -> int:
        version = source.read()
        await gate.wait()
        return version

    f = cached(ttl=10, clock=source.clock, **STALE)(slow)

    async def main() -> None:
        nonlocal gate
        gate = asyncio.Event()
        gate.set()
        assert await f(1) == 1
        gate.clear()
        source.clock.advance(10)
        for _ in range(20):
            assert await f(1) == 1
            source.clock.advance(1)  # long enough that another would be let
            await asyncio.sleep(0)
        assert source.calls == 2
        # Past its grace the callers wait for that very refresh.
        source.clock.advance(15)
        waiting = [asyncio.create_task(f(1)) for _ in range(5)]
        await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*waiting) == [2] * 5
        assert await f(1) == 2
        assert source.calls == 2

    run(main())


def test_eight_threads_meet_one_stale_value(source: Source) -> None:
    gate = threading.Event()
    gate.set()

    @cached(ttl=10, clock=source.clock, **STALE)
    def f(x: int) -> int:
        assert gate.wait(10)
        return source.read()

    assert f(1) == 1
    gate.clear()
    source.clock.advance(10)
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.append(f(1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert got == [1] * 8
    gate.set()
    settled()
    assert (f(1), source.calls) == (2, 2)


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_refresh_that_fails_is_counted_and_says_nothing(
    kind: str, run: Run, source: Source, capfd: pytest.CaptureFixture[str]
) -> None:
    f = source.cached(**STALE) if kind == "def" else source.acached(**STALE)

    async def ask() -> int:
        value = await f() if kind == "async def" else f()
        await rested()
        return value  # type: ignore[no-any-return]

    async def main() -> None:
        assert await ask() == 1
        source.clock.advance(10)
        source.error = ValueError("upstream")
        for _ in range(4):
            for _ in range(3):
                assert await ask() == 1
            source.clock.advance(1)
        # Tried once a second.
        assert source.calls == 5
        assert stats(f) == {"stale_hits": 12, "refreshes": 4, "refresh_failures": 4}
        source.error = None
        assert [await ask(), await ask()] == [1, 6]
        source.error = ValueError("upstream")
        source.clock.advance(40)
        with pytest.raises(ValueError, match="upstream"):
            await ask()

    run(main())
    gc.collect()
    assert capfd.readouterr() == ("", "")


CHANGES: dict[str, Callable[[Cache[str, Any]], object]] = {
    "delete": lambda cache: cache.delete("k"),
    "pop": lambda cache: cache.pop("k", None),
    "clear": lambda cache: cache.clear(),
    "tag": lambda cache: cache.invalidate_tag("t"),
    "set": lambda cache: cache.set("k", "written"),
}


@pytest.mark.parametrize("how", CHANGES)
def test_what_changes_during_a_refresh_outdates_it(how: str, source: Source) -> None:
    begun, gate = threading.Event(), threading.Event()
    cache: Cache[str, Any] = Cache(10, ttl=10, clock=source.clock)

    def load() -> int:
        version = source.read()
        begun.set()
        assert gate.wait(10)
        return version

    def ask() -> Any:
        return cache.get_or_set_sync("k", load, tags=["t"], stale_while_revalidate=30)

    gate.set()
    assert ask() == 1
    source.clock.advance(10)
    gate.clear()
    begun.clear()
    assert ask() == 1
    assert begun.wait(10)
    CHANGES[how](cache)
    gate.set()
    settled()
    assert cache.get("k") == ("written" if how == "set" else None)


def test_the_refresh_sees_the_context_of_its_caller(run: Run, source: Source) -> None:
    tenant = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    @cached(ttl=10, clock=source.clock, **STALE)
    def f() -> int:
        seen.append(tenant.get())
        tenant.set("somebody else")
        return source.read()

    @cached(ttl=10, clock=source.clock, **STALE)
    async def g() -> int:
        await asyncio.sleep(0)
        return f.__wrapped__()  # type: ignore[no-any-return]

    async def main() -> None:
        tenant.set("me")
        assert await g() == 1
        assert f() == 2
        tenant.set("me")
        source.clock.advance(10)
        assert (f(), await g()) == (2, 1)
        await rested()
        assert seen == ["me"] * 4
        assert tenant.get() == "me"

    run(main())


def test_all_threads_are_busy(in_place: None, source: Source) -> None:
    f = source.cached(**STALE)
    assert f() == 1
    source.clock.advance(10)
    assert f() == 2  # in its own time
    source.clock.advance(10)
    source.error = ValueError("no")
    assert f() == 2
    assert stats(f) == {"stale_hits": 2, "refreshes": 2, "refresh_failures": 1}
    source.error = KeyboardInterrupt()
    source.clock.advance(1)
    with pytest.raises(KeyboardInterrupt):
        f()
    assert stats(f)["refresh_failures"] == 1


def test_a_refresh_may_load_what_its_caller_is_loading(run: Run, source: Source) -> None:
    """Whoever was served does not wait for the refresh, so it is no recursive load."""

    @cached(ttl=10, clock=source.clock, **STALE)
    async def inner() -> int:
        if source.calls > 1:
            await asyncio.sleep(0)
            assert await outer() == 3
        return source.read()

    @cached
    async def outer() -> int:
        await inner()
        await turns()
        return 3

    async def main() -> None:
        assert await inner() == 1
        source.clock.advance(10)
        source.calls = 2
        assert await outer() == 3
        await rested()
        assert await inner() == 3
        assert stats(inner) == {"stale_hits": 1, "refreshes": 1}

    run(main())


def test_a_follower_that_is_cancelled_leaves_the_refresh_alone(run: Run, source: Source) -> None:
    gate: asyncio.Event

    @cached(ttl=10, clock=source.clock, **STALE)
    async def f() -> int:
        version = source.read()
        await gate.wait()
        return version

    async def main() -> None:
        nonlocal gate
        gate = asyncio.Event()
        gate.set()
        await f()
        gate.clear()
        source.clock.advance(10)
        assert await f() == 1
        await asyncio.sleep(0)
        source.clock.advance(30)
        follower = asyncio.create_task(f())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        follower.cancel()
        with pytest.raises(asyncio.CancelledError):
            await follower
        gate.set()
        await rested()
        assert (await f(), source.calls) == (2, 2)

    run(main())


def test_a_loop_that_ends_over_a_refresh(
    run: Run, source: Source, capfd: pytest.CaptureFixture[str]
) -> None:
    """Cancelled, or thrown away with a loop that nobody tidied: the next one refreshes."""
    hang = False

    @cached(ttl=10, clock=source.clock, stale_while_revalidate=1000)
    async def f() -> int:
        version = source.read()
        if hang:
            await asyncio.Event().wait()
        return version

    async def ask() -> int:
        source.clock.advance(20)
        value = await f()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return value

    run(ask())
    hang = True
    assert run(ask()) == 1
    assert (f.cache.get_stats()["loading"], source.calls) == (0, 2)
    for _ in range(2):
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(ask()) == 1
        loop.close()
    assert source.calls == 4
    hang = False
    assert run(ask()) == 1
    assert run(f()) == 5
    assert stats(f)["refreshes"] == 4
    assert "refresh_failures" not in stats(f)
    gc.collect()
    assert capfd.readouterr() == ("", "")


def test_without_a_running_loop_there_is_no_refresh(source: Source) -> None:
    f = source.acached(**STALE)
    asyncio.run(f())
    source.clock.advance(10)
    assert asyncio.run(f()) == 1
    assert source.calls == 1
    source.clock.advance(30)
    assert asyncio.run(f()) == 2


def test_methods_and_shared_caches(source: Source) -> None:
    shared: Cache[Any, Any] = Cache(10, ttl=10, clock=source.clock)

    class Service:
        @cached(cache=shared, **STALE)
        def method(self, x: int) -> int:
            return source.read()

    @cached(cache=shared, ttl=5)
    def plain() -> int:
        return source.read()

    service = Service()
    assert (service.method(1), plain()) == (1, 2)
    source.clock.advance(10)
    assert (service.method(1), plain()) == (1, 3)
    settled()
    assert service.method(1) == 4
    assert service.method.cache_info()[:2] == (2, 1)
    assert plain.cache_info()[:2] == (0, 2)
    gone = weakref.ref(service)
    del service
    assert is_collected(gone)
    assert shared.get_stats()["size"] == 1


def test_a_refresh_that_cannot_even_begin(source: Source) -> None:
    broken = False

    def tags(x: int) -> list[str]:
        if broken:
            raise ValueError("no tags")
        return ["t"]

    f = cached(ttl=10, clock=source.clock, tags=tags, **STALE)(source.read)
    assert f(1) == 1
    broken = True
    source.clock.advance(10)
    assert f(1) == 1
    assert stats(f) == {"stale_hits": 1, "refresh_failures": 1}


def test_cycles_through_the_terms_are_collected() -> None:
    class Owner:
        def __init__(self) -> None:
            self.f = cached(
                ttl=10,
                skip_if=self.skip,
                bypass_if=self.skip,
                negative_ttl={ValueError: 5},
                **STALE,
            )(lambda x: self)
            self.f(1)

        def skip(self, *_: object) -> bool:
            return False

    owner = Owner()
    gone = weakref.ref(owner)
    del owner
    assert is_collected(gone)


def test_threads_end_when_there_is_nothing_to_do(no_leaked_threads: None) -> None:
    threads = _refresh.Threads(2, 0.02)
    gate, done = threading.Event(), threading.Semaphore(0)

    def job() -> None:
        assert gate.wait(10)
        done.release()

    assert [threads.run(job) for _ in range(3)] == [True, True, False]
    gate.set()
    for _ in range(2):
        assert done.acquire(timeout=10)
    for _ in range(200):
        while not threads.run(done.release):
            pass
        assert done.acquire(timeout=10)
    names = [one.name for one in threading.enumerate() if one.name == "ferrogate-refresh"]
    assert len(names) <= 2 + len(_refresh._threads._alive)
    threads.end(10)
    assert not threads.run(job)
    assert _loads.loaders == {}


def test_references_to_arguments_end_with_the_refresh(source: Source) -> None:
    class Argument:
        def __cache_key__(self) -> int:
            return 1

    f = cached(ttl=10, clock=source.clock, **STALE)(source.read)
    f(Argument())
    source.clock.advance(10)
    argument = Argument()
    gone = weakref.ref(argument)
    source.error = ValueError("no")
    f(argument)
    settled()
    source.error = None
    del argument
    assert is_collected(gone), sys.getrefcount(gone())
