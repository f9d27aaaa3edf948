"""`policy="adaptive"`: the promises of every cache, and hits where LRU has none."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from ferrogate import Cache, LRUCache, cached
from ferrogate.testing import ManualClock


def hits_of(cache: Cache[int, int], references: Any) -> int:
    """Hits when every miss is filled."""
    hits = 0
    for key in references:
        if cache.get(key) is None:
            cache[key] = key + 1
        else:
            hits += 1
    return hits


def loop(times: int) -> list[int]:
    """A thousand keys, one after the other, again and again."""
    return list(range(1000)) * times


def test_a_loop_that_does_not_fit_hits_as_far_as_it_fits() -> None:
    assert hits_of(Cache(500), loop(30)) == 0
    assert hits_of(Cache(500, policy="adaptive"), loop(30)) > 500 * 30 * 0.85


def test_the_bound_holds_and_what_was_set_can_be_read() -> None:
    causes: list[str] = []
    cache: Cache[int, int] = Cache(
        50, policy="adaptive", on_evict=lambda key, value, cause: causes.append(cause)
    )
    for number, key in enumerate(loop(5)):
        cache[key] = number
        assert len(cache) <= 50
        assert cache[key] == number
    assert set(causes) == {"evicted"}
    assert len(causes) == 5 * 1000 - len(cache)
    assert list(cache)[-1] == 999  # iteration is by last use, as with LRU


def test_ttl_tti_weights_and_tags_are_as_with_lru() -> None:
    clock = ManualClock()
    cache: Cache[str, Any] = Cache(
        10, policy="adaptive", ttl=60, tti=30, max_bytes=10, weigher=lambda k, v: v, clock=clock
    )
    cache["heavy"] = 8
    cache.set("tagged", 1, tags=["t"])
    cache["light"] = 4  # only without the heavy one
    assert sorted(cache) == ["light", "tagged"]
    assert cache.get_stats()["bytes"] == 5
    assert cache.invalidate_tag("t") == 1
    clock.advance(29)
    assert cache["light"] == 4
    clock.advance(29)
    assert "light" in cache
    clock.advance(2)
    assert "light" not in cache


def test_statistics_count_what_is_remembered() -> None:
    lru, adaptive = Cache[int, int](4096), Cache[int, int](4096, policy="adaptive")
    for cache in (lru, adaptive):
        hits_of(cache, range(20_000))
    stats = lru.get_stats()
    assert (stats["policy"], stats["ghost_entries"], stats["ghost_bytes"]) == ("lru", 0, 0)
    stats = adaptive.get_stats()
    assert stats["policy"] == adaptive.policy == "adaptive"
    assert 1024 <= stats["ghost_entries"] <= 4 * 1024
    assert 0 < stats["ghost_bytes"] < 4096 * 100 + 4 * 1024 * 100
    adaptive.clear()
    assert adaptive.get_stats()["ghost_entries"] == 0


def test_values_are_dropped_and_cycles_collected() -> None:
    class Value:
        pass

    cache: Any = Cache(2, policy="adaptive")
    values = {name: Value() for name in "abc"}
    watched = {name: weakref.ref(value) for name, value in values.items()}
    cache.update(values)
    values.clear()
    assert {name for name, value in watched.items() if value() is not None} == set(cache)
    assert len(cache) == 2
    cache["c"].cache = cache
    collected = weakref.ref(cache["c"])
    del cache
    gc.collect()
    assert collected() is None


def test_the_decorator_takes_it() -> None:
    @cached(max_size=500, policy="adaptive")
    def double(number: int) -> int:
        return number * 2

    assert [double(n) for n in loop(3)] == [n * 2 for n in loop(3)]
    assert double.cache_parameters()["policy"] == "adaptive"
    assert double.cache_info().hits > 0

    shared: Cache[Any, Any] = Cache(10, policy="adaptive")
    assert cached(cache=shared)(double.__wrapped__).cache_parameters()["policy"] == "adaptive"
    assert cached(cache=shared, policy="adaptive")(double.__wrapped__)(1) == 2
    with pytest.raises(ValueError, match=r"^policy: belongs to the cache"):
        cached(cache=Cache(10), policy="adaptive")(double.__wrapped__)


def test_lru_cache_is_lru() -> None:
    assert LRUCache(3).policy == "lru"
    with pytest.raises(ValueError, match=r"^policy: expected 'lru', got 'adaptive'$"):
        LRUCache(3, policy="adaptive")
