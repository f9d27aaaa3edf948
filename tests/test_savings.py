"""`value=`: what hits save, to the last token."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from turns import turns
from waiting import eventually

from ferrogate import Cache, Savings, _loads, cached
from ferrogate.testing import ManualClock


def saved(cache: Any) -> tuple[int, float, float]:
    stats = cache.get_stats()
    return stats["saved_tokens"], stats["saved_usd"], stats["saved_seconds"]


def test_every_hit_saves_what_its_entry_says() -> None:
    cache: Cache[str, int] = Cache(2, value=lambda key, value: Savings(value, value / 4, 0.5))
    cache["a"] = 4
    cache.set("b", 6)
    assert saved(cache) == (0, 0.0, 0.0)
    assert (cache["a"], cache.get("a"), cache.get("b"), cache.get("none")) == (4, 4, 6, None)
    assert saved(cache) == (14, 3.5, 1.5)
    cache["a"] = 8
    assert cache["a"] == 8
    assert saved(cache) == (22, 5.5, 2.0)
    # Neither counts as a hit, so neither saves anything.
    assert "a" in cache
    assert list(cache.values()) == [6, 8]
    assert cache.setdefault("c", 1) == 1
    assert saved(cache) == (22, 5.5, 2.0)
    assert cache.setdefault("c", 2) == 1
    assert saved(cache) == (23, 5.75, 2.5)
    cache.reset_stats()
    assert saved(cache) == (0, 0.0, 0.0)
    assert cache["c"] == 1
    assert saved(cache) == (1, 0.25, 0.5)


def test_a_number_is_us_dollars_and_a_load_takes_its_time() -> None:
    clock = ManualClock()
    cache: Cache[str, int] = Cache(10, value=lambda key, value: 0.25, clock=clock)

    def load() -> int:
        clock.advance(3)
        return 1

    cache.get_or_set_sync("a", load)
    assert saved(cache) == (0, 0.0, 0.0)
    assert cache.get_or_set_sync("a", load) == 1
    assert saved(cache) == (0, 0.25, 3.0)
    cache["a"] = 2  # nobody knows how long that took
    assert cache["a"] == 2
    assert saved(cache) == (0, 0.5, 3.0)


def test_who_shares_a_load_has_saved_one() -> None:
    clock = ManualClock()
    calls: list[int] = []
    gate: asyncio.Event

    @cached(clock=clock, value=lambda result: Savings(tokens=result, usd=0.5))
    async def answer() -> int:
        calls.append(1)
        await gate.wait()
        clock.advance(2)
        return 7

    async def main() -> None:
        nonlocal gate
        gate = asyncio.Event()
        tasks = [asyncio.ensure_future(answer()) for _ in range(10)]
        gone = asyncio.ensure_future(answer())
        await turns()
        gone.cancel()
        await asyncio.wait([gone])
        gate.set()
        assert await asyncio.gather(*tasks) == [7] * 10

    asyncio.run(main())
    assert len(calls) == 1
    assert saved(answer.cache) == (63, 4.5, 18.0)
    assert asyncio.run(_await(answer())) == 7
    assert saved(answer.cache) == (70, 5.0, 20.0)


async def _await(awaitable: Any) -> Any:
    return await awaitable


def test_threads_that_share_a_load() -> None:
    started, release = threading.Event(), threading.Event()

    @cached(value=lambda result: Savings(result, 0.5, 1.0))
    def answer() -> int:
        started.set()
        release.wait(10)
        return 3

    threads = [threading.Thread(target=answer) for _ in range(5)]
    threads[0].start()
    assert started.wait(10)
    for thread in threads[1:]:
        thread.start()
    # Only then has each of them joined: a miss alone may still find the value itself.
    eventually(lambda: [one.flight.waiting() for one in _loads.loaders.values()] == [4])
    release.set()
    for thread in threads:
        thread.join(10)
    assert saved(answer.cache) == (12, 2.0, 4.0)


def test_who_is_overtaken_between_the_miss_and_the_load_has_saved_one() -> None:
    cache: Cache[str, int] = Cache(2, value=lambda key, value: Savings(5, 0.5, 1.0))
    missed: Any = cache._ready_or_lookup("k")
    cache["k"] = 1
    flight, leads, found = cache._join(missed)
    assert (leads, found) == (True, (1,))
    flight.land_value(1)
    assert saved(cache) == (5, 0.5, 1.0)

    class Slow(int):
        """Somebody else sets the key while this default is weighed."""

    def value(key: str, given: int) -> Savings:
        if isinstance(given, Slow):
            late["k"] = 2
        return Savings(7)

    late: Cache[str, int] = Cache(2, value=value)
    assert late.setdefault("k", Slow(1)) == 2
    assert saved(late)[0] == 7


def test_stale_values_save_and_failures_do_not() -> None:
    clock = ManualClock()
    error: Exception | None = None

    @cached(
        ttl=10, clock=clock, stale_if_error=60, negative_ttl={LookupError: 60}, value=lambda _: 1.0
    )
    def answer(x: int) -> int:
        if error is not None:
            raise error
        return x

    assert [answer(1), answer(1)] == [1, 1]
    assert saved(answer.cache)[1] == 1.0
    error = LookupError("gone")
    for _ in range(3):
        with pytest.raises(LookupError):
            answer(2)
    assert answer.cache.get_stats()["negative_hits"] == 2
    assert saved(answer.cache)[1] == 1.0


def test_of_a_stream_the_chunks_are_valued() -> None:
    @cached(value=lambda chunks: Savings(tokens=len(chunks), seconds=0))
    async def stream() -> AsyncGenerator[str, None]:
        yield "a"
        yield "b"

    async def read() -> list[str]:
        return [chunk async for chunk in stream()]

    assert asyncio.run(read()) == asyncio.run(read()) == ["a", "b"]
    assert saved(stream.cache) == (2, 0.0, 0.0)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            "0.1",
            TypeError,
            "value: expected a number of US dollars or a ferrogate.Savings, got str",
        ),
        (
            None,
            TypeError,
            "value: expected a number of US dollars or a ferrogate.Savings, got NoneType",
        ),
        (
            True,
            TypeError,
            "value: expected a number of US dollars or a ferrogate.Savings, got bool",
        ),
        (-1, ValueError, "value: expected a finite number of at least 0, got -1"),
        (float("nan"), ValueError, "value: expected a finite number of at least 0, got nan"),
        (10**400, ValueError, "value: expected a finite number of at least 0, got 1000"),
        (
            Savings(usd=-0.5),
            ValueError,
            "value: usd: expected a finite number of at least 0, got -0.5",
        ),
        (Savings(seconds=float("inf")), ValueError, "value: seconds: expected a finite number"),
        (Savings(tokens=-1), ValueError, "value: tokens: expected a count of at least 0, got -1"),
        (Savings(tokens=1.5), ValueError, "value: tokens: expected a count of at least 0, got 1.5"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_value_is_an_error_of_the_write(
    given: Any, error: type[Exception], message: str
) -> None:
    cache: Cache[str, int] = Cache(2, value=lambda key, value: given)
    for write in (lambda: cache.set("a", 1), lambda: cache.get_or_set_sync("a", lambda: 1)):
        with pytest.raises(error) as caught:
            write()
        assert str(caught.value).startswith(message)
    assert len(cache) == 0


def test_anything_with_the_three_attributes_will_do() -> None:
    usage = SimpleNamespace(tokens=3, usd=1, seconds=None)
    cache: Cache[str, int] = Cache(2, value=lambda key, value: usage)
    cache["a"] = 1
    assert cache["a"] == 1
    assert saved(cache) == (3, 1.0, 0.0)


def test_what_is_no_callable() -> None:
    with pytest.raises(TypeError, match=r"^value: expected a callable or None, got float"):
        Cache(2, value=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^value: expected a callable that gets the result"):
        cached(value=0.5)(len)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"^value: belongs to the cache"):
        cached(cache=Cache(2), value=lambda _: 1.0)(len)


def test_a_value_that_raises_fails_the_write_and_nothing_else() -> None:
    def value(key: str, result: int) -> float:
        raise ZeroDivisionError

    cache: Cache[str, int] = Cache(2, value=value)
    with pytest.raises(ZeroDivisionError):
        cache["a"] = 1
    assert len(cache) == 0
    assert cache.get_stats()["loading"] == 0


def test_the_callable_may_use_the_cache_and_be_collected_with_it() -> None:
    class Owner:
        def __init__(self) -> None:
            self.cache: Cache[str, int] = Cache(2, value=self.value)

        def value(self, key: str, result: int) -> float:
            assert self.cache.get("other") is None
            return 1.0

    owner = Owner()
    owner.cache["a"] = 1
    gone = weakref.ref(owner.cache)
    del owner
    gc.collect()
    assert gone() is None
