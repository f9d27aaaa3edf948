"""`skip_if`, `bypass_if`, jitter, early and forced refreshes, and wrong terms."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sources import Source, settled, stats

from ferrogate import Cache, cached
from ferrogate.testing import ManualClock, seed

Run = Callable[..., Any]


@pytest.mark.parametrize("single_flight", [True, False])
def test_what_is_skipped_is_delivered_and_not_stored(run: Run, single_flight: bool) -> None:
    @cached(skip_if=lambda result: not result, single_flight=single_flight)
    def f(x: list[int]) -> list[int]:
        return x

    @cached(skip_if=lambda result: not result, single_flight=single_flight)
    async def g(x: list[int]) -> list[int]:
        return x

    for call in (f, lambda x: run(g(x))):
        assert call([]) == []
        assert call([]) == []
        assert call([1]) == [1]
        assert call([1]) == [1]
    assert f.cache_info() == g.cache_info() == (1, 3, 1000, 1)


def test_a_skip_if_that_raises_is_a_load_that_failed() -> None:
    @cached(skip_if=lambda result: 1 / result)
    def f(x: int) -> int:
        return x

    with pytest.raises(ZeroDivisionError):
        f(0)
    assert f.cache_info().currsize == 0
    assert f.cache.get_stats()["loading"] == 0


def test_a_refresh_that_is_skipped_keeps_the_old(source: Source) -> None:
    f = source.cached(stale_while_revalidate=30, skip_if=lambda result: result == 2)
    f()
    source.clock.advance(10)
    assert f() == 1
    settled()
    source.clock.advance(1)
    assert f() == 1
    settled()
    assert f() == 3


def test_bypassed_calls_are_neither_looked_up_nor_shared_nor_stored(run: Run) -> None:
    calls: list[float] = []

    def hot(prompt: str, temperature: float = 0) -> bool:
        return temperature > 0

    @cached(bypass_if=hot)
    def f(prompt: str, temperature: float = 0) -> int:
        calls.append(temperature)
        return len(calls)

    assert [f("a"), f("a"), f("a", temperature=0.7), f("a", 0.7), f("a")] == [1, 1, 2, 3, 1]
    assert f.cache_info() == (2, 1, 1000, 1)

    @cached(bypass_if=hot)
    async def g(prompt: str, temperature: float = 0) -> int:
        calls.append(temperature)
        await asyncio.sleep(0)
        return len(calls)

    async def main() -> None:
        calls.clear()
        await asyncio.gather(*(g("a", 0.5) for _ in range(3)), g("a"), g("a"))
        assert sorted(calls) == [0, 0.5, 0.5, 0.5]
        assert g.cache_info().currsize == 1

    run(main())

    @cached(bypass_if=lambda x: 1 / x)
    def h(x: int) -> int:
        return x

    with pytest.raises(ZeroDivisionError):
        h(0)


def test_bypassing_one_call(run: Run, source: Source) -> None:
    f, g = source.cached(), source.acached()
    assert [f(), f.cache_bypass(), f(), f.cache_bypass(x=None)] == [1, 2, 1, 3]

    async def main() -> None:
        assert [await g(), await g.cache_bypass(), await g()] == [4, 5, 4]

    run(main())

    class Service:
        @cached
        def method(self, x: int) -> tuple[object, int, int]:
            return self, x, source.read()

    service = Service()
    assert service.method(1)[2] == 6
    assert service.method.cache_bypass(1) == (service, 1, 7)
    assert service.method.cache_refresh(x=1) == (service, 1, 8)
    assert service.method(1)[2] == 8
    with pytest.raises(TypeError, match="too_many"):
        f.cache_bypass(too_many=1)


@pytest.mark.parametrize("single_flight", [True, False])
def test_a_forced_refresh_loads_whatever_there_is(
    run: Run, source: Source, single_flight: bool
) -> None:
    f = source.cached(single_flight=single_flight)
    g = source.acached(single_flight=single_flight)
    for function, refresh, call in (
        (f, f.cache_refresh, f),
        (g, lambda: run(g.cache_refresh()), lambda: run(g())),
    ):
        source.calls, source.error = 0, None
        assert [refresh(), call(), refresh(), call()] == [1, 1, 2, 2]
        source.error = ValueError("no")
        with pytest.raises(ValueError, match="no"):
            refresh()
        assert call() == 2, "a refresh that fails changes nothing"
        assert stats(function) == {"refreshes": 3, "refresh_failures": 1}
        assert function.cache.get_stats()["loading"] == 0


def test_forced_refreshes_are_one_load(run: Run, source: Source) -> None:
    gate: asyncio.Event

    @cached
    async def f() -> int:
        version = source.read()
        await gate.wait()
        return version

    async def main() -> None:
        nonlocal gate
        gate = asyncio.Event()
        # A load that began before may have read what is to be replaced.
        before = [asyncio.create_task(f()) for _ in range(2)]
        await asyncio.sleep(0)
        refreshes = [asyncio.create_task(f.cache_refresh()) for _ in range(3)]
        await asyncio.sleep(0)
        after = [asyncio.create_task(f()) for _ in range(2)]
        await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*before) == [1, 1]
        assert await asyncio.gather(*refreshes) == [2, 2, 2]
        assert await asyncio.gather(*after) == [2, 2]
        assert (await f(), source.calls) == (2, 2)

    run(main())


def test_a_forced_refresh_outdates_lone_loads_too(source: Source) -> None:
    @cached(single_flight=False)
    def f() -> int:
        version = source.read()
        if version == 1:
            assert f.cache_refresh() == 2
        return version

    assert (f(), f()) == (1, 2)


def test_jitter_cuts_the_time_to_live() -> None:
    clock = ManualClock()
    cache: Cache[int, int] = Cache(2000, ttl=100, clock=clock)
    lives = []
    for n in range(1000):
        cache.get_or_set_sync(n, lambda: 1, ttl_jitter=0.25)
        lives.append(cache.explain(n)["expires_in_seconds"])
    assert 75 <= min(lives) < 76
    assert 99 < max(lives) <= 100
    assert 86 < sum(lives) / len(lives) < 89
    # In the order of their own ends, not of writing.
    clock.advance(87)
    assert 400 < cache.cleanup() < 600
    assert sorted(cache) == [n for n in range(1000) if lives[n] > 87]
    cache.get_or_set_sync(-1, lambda: 1, ttl=4, ttl_jitter=1.0)
    assert 0 < cache.explain(-1)["expires_in_seconds"] <= 4


def test_a_seed_makes_jitter_repeatable() -> None:
    def draw() -> list[float]:
        cache: Cache[int, int] = Cache(10, ttl=100, clock=ManualClock())
        for n in range(5):
            cache.get_or_set_sync(n, lambda: 1, ttl_jitter=1.0)
        return [cache.explain(n)["expires_in_seconds"] for n in range(5)]

    seed(7)
    first = draw()
    seed(7)
    assert draw() == first
    assert draw() != first


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_early_refreshes_come_as_the_paper_says(beta: float, source: Source) -> None:
    """XFetch: P(refresh | `left` seconds to go) = exp(-left / (delta * beta)), one draw per hit."""
    cache: Cache[int, int] = Cache(10_000, ttl=100, clock=source.clock)
    seed(3)
    left, delta, keys = 3.0, 2.0, 2000

    def load() -> int:
        source.clock.advance(delta)
        return 1

    def ask(n: int) -> None:
        cache.get_or_set_sync(n, load, early_refresh=beta)

    chosen = 0
    for n in range(keys):
        ask(n)
        source.clock.advance(100 - left)
        before = cache.get_stats()["refreshes"]
        ask(n)
        settled()
        chosen += cache.get_stats()["refreshes"] - before
    expected = 2.718281828 ** (-left / (delta * beta))
    assert chosen / keys == pytest.approx(expected, abs=4 * (expected / keys) ** 0.5)
    # Everybody else was served the value, fresh as it was.
    assert cache.get_stats()["misses"] == keys
    assert cache.get_stats()["stale_hits"] == 0


def test_an_early_refresh_is_one_and_far_from_the_end_there_is_none(source: Source) -> None:
    f = source.cached(early_refresh=1e9)
    g = source.cached(early_refresh=1.0, ttl=3600)
    f(), g()
    for _ in range(100):
        f(), g()
    settled()
    # A load without duration is never worth an early refresh.
    assert (stats(f), stats(g)) == ({}, {})

    @cached(ttl=100, clock=source.clock, early_refresh=1e9)
    def slow() -> int:
        source.clock.advance(1)
        return source.read()

    source.calls = 0
    slow()
    for _ in range(50):
        assert slow() in (1, 2)
    settled()
    assert (slow.cache.get_stats()["refreshes"], slow.cache.get_stats()["misses"]) == (1, 1)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "stale_while_revalidate": ({"ttl": 1, "stale_while_revalidate": 0}, ValueError, "above 0"),
    "a text": ({"ttl": 1, "stale_if_error": "5"}, TypeError, "stale_if_error: expected seconds"),
    "no ttl": ({"stale_while_revalidate": 5}, ValueError, "stale_while_revalidate: needs ttl="),
    "no ttl for errors": ({"stale_if_error": 5}, ValueError, "stale_if_error: needs ttl="),
    "no ttl for jitter": ({"ttl_jitter": 0.5}, ValueError, "ttl_jitter: needs ttl="),
    "no ttl for early": ({"early_refresh": 1}, ValueError, "early_refresh: needs ttl="),
    "jitter": (
        {"ttl": 1, "ttl_jitter": 1.5},
        ValueError,
        r"ttl_jitter: expected a ratio of 0\.\.1",
    ),
    "jitter nan": ({"ttl": 1, "ttl_jitter": float("nan")}, ValueError, "ttl_jitter"),
    "jitter bool": ({"ttl": 1, "ttl_jitter": True}, TypeError, "ttl_jitter"),
    "early": ({"ttl": 1, "early_refresh": -1}, ValueError, "early_refresh: expected a factor"),
    "early inf": ({"ttl": 1, "early_refresh": float("inf")}, ValueError, "early_refresh"),
    "negative": ({"negative_ttl": 5}, TypeError, "negative_ttl: expected a dict"),
    "negative keys": ({"negative_ttl": {"ValueError": 5}}, TypeError, "negative_ttl: expected"),
    "negative class": ({"negative_ttl": {int: 5}}, TypeError, "subclasses of Exception"),
    "cancelled": ({"negative_ttl": {asyncio.CancelledError: 5}}, TypeError, "CancelledError"),
    "negative seconds": ({"negative_ttl": {ValueError: 0}}, ValueError, "negative_ttl"),
    "skip_if": ({"skip_if": 5}, TypeError, "skip_if: expected a callable"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_terms_are_refused_by_name(case: str) -> None:
    options, error, says = WRONG[case]
    with pytest.raises(error, match=says):
        cached(**options)(lambda: 1)
    cache: Cache[str, int] = Cache(10)
    with pytest.raises(error, match=says):
        cache.get_or_set_sync("k", lambda: 1, **options)
    with pytest.raises(error, match=says):
        cache.get_or_set("k", lambda: 1, **options)  # type: ignore[arg-type, return-value]


def test_other_wrong_terms() -> None:
    async def later(*_: object) -> bool:
        return True

    for name in ("skip_if", "bypass_if"):
        with pytest.raises(TypeError, match=f"{name}: expected a plain function"):
            cached(**{name: later})(lambda: 1)
    with pytest.raises(TypeError, match="bypass_if: expected a callable"):
        cached(bypass_if=True)(lambda: 1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="stale"):
        Cache(10).get_or_set_sync("k", lambda: 1, stale=5)  # type: ignore[call-arg]
    # What is None is not given, and a timedelta is seconds.
    f = cached(ttl=1, stale_if_error=None, negative_ttl=None, ttl_jitter=None)(lambda: 1)
    assert f() == 1
    shared: Cache[Any, Any] = Cache(10, ttl=5)
    cached(cache=shared, stale_while_revalidate=timedelta(minutes=1))(lambda: 1)


def test_a_disabled_cache_calls_straight_through(source: Source) -> None:
    f = source.cached(enabled=False, stale_while_revalidate=5, negative_ttl={ValueError: 5})
    assert [f(), f(), f.cache_refresh(), f.cache_bypass()] == [1, 2, 3, 4]
    source.error = ValueError("no")
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            f()
    assert source.calls == 6


def test_a_million_states_leave_no_memory_behind() -> None:
    """Not the memory itself (see tests/hostile/test_growth.py): the entries."""
    clock = ManualClock()
    cache: Cache[int, int] = Cache(50, ttl=10, clock=clock)

    def fails() -> int:
        raise ValueError("no")

    for n in range(2000):
        cache.get_or_set_sync(n, lambda: 1, stale_if_error=5, early_refresh=1.0)
        with pytest.raises(ValueError, match="no"):
            cache.get_or_set_sync(-n - 1, fails, negative_ttl={ValueError: 5})
        if n % 100 == 0:
            clock.advance(7)
            assert cache.get_stats()["size"] <= 50
    clock.advance(100)
    assert cache.get_stats()["size"] == 0
    assert threading.active_count() < 20
