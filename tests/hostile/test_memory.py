"""Walks every native path a few times, as food for valgrind (`make test-memcheck`).

What each path must do is tested elsewhere; here objects are created and destroyed in
the orders that a wrong reference count or a dangling pointer would not survive:
inside callbacks, during eviction, in the collector, half-way through an await.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest

from ferrogate import Cache, RateLimiter, cache_key, cached
from ferrogate.testing import ManualClock

pytestmark = pytest.mark.memcheck


class Value:
    """A value that can be watched, and that refers to whatever holds it."""

    def __init__(self, owner: Any = None) -> None:
        self.owner = owner


def test_values_leave_by_every_door() -> None:
    clock = ManualClock()
    left: list[tuple[Any, str]] = []
    cache = Cache(
        8,
        ttl=10.0,
        on_evict=lambda key, value, cause: left.append((key, cause)),
        clock=clock,
    )
    watched = []
    for n in range(32):
        value = Value()
        watched.append(weakref.ref(value))
        cache.set(n, value, tags=["odd"] if n % 2 else None)
    del value
    assert len(cache) == 8
    cache[31] = Value()
    assert cache.delete(30)
    assert cache.pop(28) is not None
    assert cache.invalidate_tag("odd") == 3
    clock.advance(11)
    assert cache.cleanup() == 3
    cache["last"] = Value()
    cache.clear()
    gc.collect()
    assert [ref() for ref in watched] == [None] * 32
    assert {cause for _, cause in left} == {
        "evicted",
        "replaced",
        "deleted",
        "invalidated",
        "expired",
        "cleared",
    }


def test_a_cache_in_a_cycle_with_its_values_is_collected() -> None:
    for _ in range(5):
        cache = Cache(4)
        value = Value(cache)
        cache["me"] = value
        cache[Value] = [cache]
        ref = weakref.ref(value)
        del cache, value
        gc.collect()
        assert ref() is None


def test_finalizers_that_use_the_cache() -> None:
    cache = Cache(4)

    class Noisy:
        def __init__(self, n: int) -> None:
            self.n = n

        def __del__(self) -> None:
            if self.n < 64:
                cache.set(self.n + 64, Noisy(self.n + 64))
            cache.get(self.n)
            cache.delete(self.n - 1)

    for n in range(48):
        cache.set(n, Noisy(n))
    assert len(cache) <= 4
    cache.clear()
    gc.collect()
    assert len(cache) <= 4


def test_failing_callbacks() -> None:
    def weigh(key: Any, value: Any) -> int:
        if value == "bad":
            raise ArithmeticError(key)
        return 1

    cache = Cache(100, max_bytes=4, weigher=weigh)
    for n in range(20):
        cache.set(n, "good")
        with pytest.raises(ArithmeticError):
            cache.set(n, "bad")
    assert len(cache) <= 4


class Unequal:
    """Hashable, and refuses to be compared."""

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        raise LookupError("no")


def test_odd_keys() -> None:
    cache = Cache(16)
    plain = object()
    for key in (
        plain,
        b"x" * 200,
        "é" * 100,
        "\ud800",
        2**200,
        -1.5,
        (1, ("a", None)),
        frozenset("ab"),
    ):
        cache[key] = key
        assert cache[key] == key
    first, second = Unequal(), Unequal()
    cache[first] = 1
    with pytest.raises(LookupError):
        cache[second] = 2
    assert list(cache)
    assert len(cache_key({"a": [1, 2.5, {"b"}], "c": ("d" * 200, None)}, x=1)) >= 32
    loop: list[Any] = []
    loop.append(loop)
    for refused in (loop, {"messages": [{"image": object()}]}):
        with pytest.raises((TypeError, ValueError)):
            cache_key(refused)


def test_iteration_while_it_changes() -> None:
    cache = Cache(16)
    for n in range(16):
        cache[n] = Value()
    seen = 0
    try:
        for key in cache:
            seen += 1
            cache.delete(key)
            cache[seen + 100] = Value()
    except RuntimeError:
        pass
    assert seen
    assert list(cache.items())


def test_cached_functions_and_methods() -> None:
    @cached(max_size=4)
    def double(text: str, *, times: int = 2) -> str:
        if times == 0:
            raise KeyError(text)
        return text * times

    for n in range(12):
        assert double(f"{n}") == double(f"{n}")
        assert double(f"{n}", times=3)
        with pytest.raises(KeyError):
            double("x", times=0)
    assert double.cache_info().currsize == 4

    class Agent:
        @cached(max_size=4)
        def answer(self, question: str) -> Value:
            return Value(question)

    agent = Agent()
    assert agent.answer("a") is agent.answer("a")
    ref = weakref.ref(agent)
    del agent
    gc.collect()
    assert ref() is None


def test_awaits_finished_dropped_and_broken_off() -> None:
    @cached(max_size=4)
    async def fetch(key: str) -> Value:
        await asyncio.sleep(0)
        if key == "bad":
            raise ValueError(key)
        return Value(key)

    async def main(new: str) -> None:
        first = await fetch("a")
        assert await fetch("a") is first
        assert await asyncio.gather(*(fetch("a") for _ in range(8))) == [first] * 8
        assert await asyncio.create_task(fetch("a")) is first
        assert await asyncio.wait_for(fetch("a"), 5) is first

        hit = fetch("a")
        hit.close()
        hit = fetch("a")
        with pytest.raises(StopIteration) as stop:
            hit.send(None)
        assert stop.value.value is first
        with pytest.raises(RuntimeError):
            hit.send(None)
        thrown = fetch("a")
        with pytest.raises(LookupError):
            thrown.throw(LookupError("x"))
        fetch("a").close()

        joined = [asyncio.create_task(fetch(new)) for _ in range(6)]
        await asyncio.sleep(0)
        joined[0].cancel()
        results = await asyncio.gather(*joined, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert len({id(r) for r in results[1:]}) == 1

        failed = await asyncio.gather(*(fetch("bad") for _ in range(4)), return_exceptions=True)
        assert all(isinstance(f, ValueError) for f in failed)

    for n in range(3):
        asyncio.run(main(f"new {n}"))
    gc.collect()


def test_threads_share_one_flight() -> None:
    cache = Cache(8)
    started = threading.Barrier(5)
    results = []

    def load() -> Value:
        return Value(cache)

    def work() -> None:
        started.wait()
        results.extend(cache.get_or_set_sync(n, load) for n in range(20))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 100
    assert len(cache) == 8


def test_a_limiter_grants_denies_and_lets_go() -> None:
    clock = ManualClock()
    for algorithm in ("sliding_window", "gcra", "token_bucket"):
        limiter = RateLimiter("5/second", algorithm=algorithm, clock=clock)
        decisions = [limiter.try_acquire() for _ in range(8)]
        assert [bool(d) for d in decisions] == [True] * 5 + [False] * 3
        assert decisions[-1].retry_after > 0
        keyed = [bool(limiter.try_acquire(key=f"tenant {n}")) for n in range(20)]
        assert all(keyed)
        clock.advance(10)

    async def main() -> None:
        limiter = RateLimiter("1000/second", burst=2)

        async def one() -> None:
            async with limiter:
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(one()) for _ in range(12)]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with limiter:
            pass
        await limiter.acquire()

    asyncio.run(main())
    gc.collect()
