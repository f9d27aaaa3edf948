"""User code inside the cache, under threads and the collector: no hang, no lost value, no leak."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from child import SEED, patience, run_well, times

from ferrogate import (
    Cache,
    CacheConfig,
    Limit,
    LRUCache,
    ProductionOptimizer,
    RateLimiter,
    cached,
    rate_limited,
)
from ferrogate.testing import ManualClock

CALLBACKS = Path(__file__).parent / "support" / "callbacks.py"
KINDS = ("cache_key", "del", "eq", "hash", "key", "listener", "loader", "weigher")

hostile = pytest.mark.hostile
pytestmark = pytest.mark.timeout(patience(60, times(1, 30)))


def callbacks(what: str, kinds: str, threads: int, rounds: int) -> list[str]:
    arguments = (what, kinds, str(threads), str(times(rounds, 30 * rounds)), str(SEED))
    return run_well(CALLBACKS, *arguments, timeout=30 * times(1, 30)).split()


@hostile
@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_user_code_that_uses_the_cache(kind: str) -> None:
    assert callbacks("reenter", kind, 1, 1500) == [kind]


@hostile
@pytest.mark.memcheck
@pytest.mark.soak
@pytest.mark.parametrize(("what", "rounds"), [("reenter", 700), ("collect", 40), ("sleep", 150)])
def test_user_code_while_others_hammer(what: str, rounds: int) -> None:
    assert callbacks(what, "all", 8, rounds) == sorted(KINDS)


@hostile
@pytest.mark.soak
def test_live_values_are_no_garbage() -> None:
    # A collector that skips a cache because another thread holds its lock takes what only
    # the cache refers to for garbage.
    code = """
        import gc, sys, threading, time, weakref
        from ferrogate import Cache, cached

        class Value:
            died = 0
            def __init__(self, cache):
                self.cycle = [self, cache]
            def __del__(self):
                Value.died += 1

        caches = [Cache(40_000) for _ in range(4)]
        @cached(max_size=40_000)
        def remember(n):
            return Value(remember)
        watched = []
        for n in range(4_000):
            for cache in caches:
                cache[n] = Value(cache)
                watched.append(weakref.ref(cache[n]))
            watched.append(weakref.ref(remember(n)))
        stop = time.monotonic() + float(sys.argv[1])
        failures = []
        threading.excepthook = failures.append

        def contend(number):
            cache = caches[number % 4]
            gone = 0
            while time.monotonic() < stop:
                for n in range(200):
                    cache[100_000 + n] = [n]
                    cache.get(n)
                    remember(n)
                    remember(100_000 + n)
                    cache.pop(100_000 + n, None)
                gc.collect(number % 3)

        gc.set_threshold(5, 2, 2)
        threads = [threading.Thread(target=contend, args=(n,)) for n in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert not failures, failures
        assert Value.died <= len(watched), Value.died
        alive = sum(ref() is not None for ref in watched)
        assert alive == len(watched) == 20_000, alive
        assert all(caches[i][n] is watched[5 * n + i]() for n in range(4_000) for i in range(4))
        gc.set_threshold(700, 10, 10)
        del cache, caches, remember, contend, thread, threads
        gc.collect()
        assert all(ref() is None for ref in watched)
    """
    run_well(code, str(times(1, 30)), timeout=30 + 10 * times(1, 30))


# ── cycles


class Thing:
    """What must not be kept alive."""

    held: Any = None

    def method(self, *_: object) -> int:
        return 1

    @cached
    def cached_method(self, x: int = 0) -> Any:
        return [x]

    @cached
    async def awaited_method(self, x: int = 0) -> Any:
        return [x]


def as_value(thing: Thing) -> None:
    thing.held = Cache(5)
    thing.held["me"] = thing


def as_opaque_key(thing: Thing) -> None:
    thing.held = Cache(5)
    thing.held[thing] = 1
    thing.held[(thing, "inside")] = 2


def in_a_subclass(thing: Thing) -> None:
    cache: Any = LRUCache(5)
    cache.attribute = cache
    cache.thing = thing


def with_a_sweep(thing: Thing) -> None:
    thing.held = Cache(CacheConfig())
    thing.held["me"] = thing


def as_listener(thing: Thing) -> None:
    thing.held = Cache(5, on_evict=thing.method)
    cache: Cache[Any, Any] = Cache(1, on_evict=lambda *_: cache.get(thing))
    cache.update(a=1, b=2)


def as_weigher(thing: Thing) -> None:
    thing.held = Cache(5, max_bytes=5, weigher=thing.method)
    thing.held["a"] = 1


def as_factory(thing: Thing) -> None:
    cache: Cache[Any, Any] = Cache(5)

    def fail() -> None:
        assert cache is thing

    cache.get_or_set_sync("a", lambda: (thing, cache))
    with pytest.raises(AssertionError):
        cache.get_or_set_sync("b", fail)


def as_awaited_factory(thing: Thing) -> None:
    cache: Cache[Any, Any] = Cache(5)

    async def load() -> Any:
        await asyncio.sleep(0)
        return thing, cache

    async def fail() -> None:
        assert cache is thing

    async def main() -> None:
        await asyncio.gather(*(cache.get_or_set("a", load) for _ in range(3)))
        await asyncio.gather(*(cache.get_or_set("b", fail) for _ in range(3)))

    with pytest.raises(AssertionError):
        asyncio.run(main())


def as_awaitables_and_views(thing: Thing) -> None:
    cache: Cache[Any, Any] = Cache(9)
    cache["a"] = box = [thing, cache]
    box.append(cache.get_or_set("a", asyncio.Event().wait))  # a hit: never starts it
    box.append(cache.items())
    box.append(iter(cache))
    box.append(iter(cache.items()))


def in_its_own_closure(thing: Thing) -> None:
    @cached
    def function(x: int) -> Any:
        return function, thing

    @cached(key=lambda x: function and x, tags=lambda x: [str(thing and function and x)])
    def other(x: int) -> Any:
        return other, thing

    function(1)
    other(1)


def in_its_own_coroutine(thing: Thing) -> None:
    @cached
    async def function(x: int) -> Any:
        return function, thing

    asyncio.run(function(1))


def through_a_shared_cache(thing: Thing) -> None:
    cache: Cache[Any, Any] = Cache(5)

    @cached(cache=cache)
    def function(x: int) -> Any:
        return function, cache, thing

    function(1)


def through_methods(thing: Thing) -> None:
    assert thing.cached_method(1) is thing.cached_method(1)
    assert asyncio.run(thing.awaited_method(1)) == [1]
    thing.held = (thing.cached_method, thing.awaited_method)


def through_methods_that_return_self(thing: Thing) -> None:
    # With its class: while the class lives, its cache does, and a result keeps what it refers to.
    class Own:
        @cached
        def method(self, x: int) -> Any:
            return self, thing

        @cached
        async def awaited(self, x: int) -> Any:
            return self, thing

    own: Any = Own()
    own.held = (own.method, own.awaited)
    own.method(1)
    asyncio.run(own.awaited(1))


def with_an_abandoned_load(thing: Thing) -> None:
    cache: Cache[Any, Any] = Cache(5)

    async def load() -> Any:
        await asyncio.sleep(3600)
        return thing, cache

    async def main() -> None:
        load_of_all = [asyncio.create_task(_await(cache.get_or_set("a", load))) for _ in range(3)]
        await asyncio.sleep(0)
        for task in load_of_all:
            task.cancel()

    asyncio.run(main())


async def _await(awaitable: Any) -> Any:
    return await awaitable


def with_a_limiter(thing: Thing) -> None:
    class Own(RateLimiter):
        pass

    limiter: Any = Own(Limit(1, 60), clock=ManualClock())
    limiter.held = (limiter, thing)
    limiter.try_acquire()
    thing.held = limiter.limit(timeout=1) if hasattr(limiter, "limit") else limiter

    @rate_limited(Limit(5, 60))
    def function() -> Any:
        return function, thing

    function()


def with_a_waiting_line(thing: Thing) -> None:
    limiter = RateLimiter(Limit(1, 3600))

    async def main() -> None:
        await limiter.acquire()
        waiting = [asyncio.create_task(_hold(limiter, thing)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()

    asyncio.run(main())


async def _hold(limiter: RateLimiter, thing: Thing) -> None:
    await limiter.acquire()
    assert thing is None


def with_an_optimizer(thing: Thing) -> None:
    optimizer: Any = ProductionOptimizer(clock=ManualClock())
    optimizer.held = (optimizer, thing)
    optimizer.cache["me"] = (optimizer, thing)
    optimizer.limiter.try_acquire()
    optimizer.record_generation(success=True, time_seconds=1.0)
    optimizer.health.register("mine", lambda: bool(optimizer and thing))
    thing.held = optimizer


CYCLES = [
    as_value,
    as_opaque_key,
    in_a_subclass,
    with_a_sweep,
    as_listener,
    as_weigher,
    as_factory,
    as_awaited_factory,
    as_awaitables_and_views,
    in_its_own_closure,
    in_its_own_coroutine,
    through_a_shared_cache,
    through_methods,
    through_methods_that_return_self,
    with_an_abandoned_load,
    with_a_limiter,
    with_a_waiting_line,
    with_an_optimizer,
]


@pytest.mark.memcheck
@pytest.mark.parametrize("tie", CYCLES, ids=lambda tie: tie.__name__)
def test_cycles_are_collected(tie: Callable[[Thing], None]) -> None:
    thing = Thing()
    tie(thing)
    watched = weakref.ref(thing)
    del thing
    gc.collect()
    assert watched() is None


# ── exceptions


@hostile
@pytest.mark.memcheck
@pytest.mark.soak
def test_what_user_code_raises_comes_out_unchanged() -> None:
    code = Path(__file__).parent / "support" / "raising.py"
    # Enough to raise each of them some dozens of times, under valgrind as well.
    rounds = str(max(2_000, times(4_000, 200_000)))
    raised = run_well(code, rounds, str(SEED), timeout=30 * times(1, 30)).split()
    assert raised == ["eq", "hash", "loader", "weigher"]
