"""`Cache` around its entries: statistics, configuration, wrong arguments, loading, subclasses."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import typing
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import Any

import pytest
from child import run_well

from ferrogate import Cache, CacheConfig, LRUCache
from ferrogate.cache import CacheStats
from ferrogate.testing import ManualClock

INFINITY = float("inf")
NAN = float("nan")


# ── what it says about itself


def test_statistics() -> None:
    clock = ManualClock()
    cache: Cache[str, int] = Cache(2, name="mine", ttl=10, clock=clock)
    assert set(cache.get_stats()) == set(typing.get_type_hints(CacheStats))
    assert cache.get_stats() == {
        "name": "mine",
        "enabled": True,
        "size": 0,
        "max_size": 2,
        "bytes": 0,
        "max_bytes": None,
        "hits": 0,
        "misses": 0,
        "hit_rate": 0.0,
        "stale_hits": 0,
        "negative_hits": 0,
        "refreshes": 0,
        "refresh_failures": 0,
        "stale_on_error": 0,
        "insertions": 0,
        "updates": 0,
        "evictions": 0,
        "expirations": 0,
        "invalidations": 0,
        "rejections": 0,
        "saved_tokens": 0,
        "saved_usd": 0.0,
        "saved_seconds": 0.0,
        "policy": "lru",
        "ghost_entries": 0,
        "ghost_bytes": 0,
        "loading": 0,
    }
    cache.get("a")
    cache.update(a=1, b=2, c=3)
    cache["c"] = 4
    for _ in range(2):
        cache.get("c")
    with pytest.raises(KeyError):
        cache["no"]
    cache.set("t", 5, tags=["x"])
    cache.invalidate_tag("x")
    clock.advance(10)
    expected = {
        "size": 0,
        "hits": 2,
        "misses": 2,
        "hit_rate": 0.5,
        "insertions": 5,
        "updates": 1,
        "evictions": 2,
        "expirations": 1,
        "invalidations": 1,
    }
    assert cache.get_stats().items() >= expected.items()
    cache["d"] = 6
    cache.reset_stats()
    stats = cache.get_stats()
    assert (stats.pop("name"), stats.pop("enabled"), stats.pop("max_size")) == ("mine", True, 2)
    assert (stats.pop("size"), stats.pop("max_bytes"), stats.pop("policy")) == (1, None, "lru")
    assert set(stats.values()) == {0}
    cache.get_stats().clear()  # a copy
    assert cache.get_stats()["size"] == 1


def test_explain() -> None:
    clock = ManualClock(100)
    cache: Cache[str, int] = Cache(2, tti=8, max_bytes=9, weigher=lambda *_: 3, clock=clock)
    assert cache.explain("a") == {"present": False}
    cache.set("a", 1, ttl=20, tags=["x"])
    clock.advance(7)
    before = cache.get_stats()
    assert cache.explain("a") == {
        "present": True,
        "state": "fresh",
        "age_seconds": 7.0,
        "fresh_for_seconds": 1.0,
        "expires_in_seconds": 1.0,
        "weight": 3,
        "tags": ["x"],
    }
    cache.get("a")
    assert cache.explain("a")["expires_in_seconds"] == 8.0
    assert cache.get_stats()["hits"] == before["hits"] + 1
    clock.advance(8)
    assert cache.explain("a") == {"present": False}
    plain: Cache[str, int] = Cache(2)
    plain["a"] = 1
    assert plain.explain("a")["expires_in_seconds"] is None


def test_repr() -> None:
    cache: Cache[str, int] = Cache(5, name="models", ttl=90)
    cache["a"] = 1
    cache.get("a")
    cache.get("b")
    assert repr(cache) == "Cache('models', 1 of 5 entries, ttl=90s, hit rate 50.0%)"
    assert repr(LRUCache(3)) == "LRUCache(0 of 3 entries, hit rate 0.0%)"
    assert "disabled" in repr(Cache(3, enabled=False))
    recursive: Cache[str, Any] = Cache(3)
    recursive["me"] = recursive
    assert repr(recursive) == "Cache(1 of 3 entries, hit rate 0.0%)"


def test_attributes_are_read_only() -> None:
    cache: Cache[str, int] = Cache(
        5, ttl=timedelta(minutes=1), tti=2, max_bytes=7, name="n", weigher=lambda *_: 1
    )
    shown = (cache.max_size, cache.ttl, cache.tti, cache.max_bytes, cache.name, cache.enabled)
    assert shown == (5, 60.0, 2.0, 7, "n", True)
    for name in ("max_size", "ttl", "tti", "max_bytes", "name", "enabled"):
        with pytest.raises(AttributeError):
            setattr(cache, name, 1)
    assert (Cache().max_size, Cache().ttl, Cache().name) == (1000, None, None)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_is_refused(protocol: int) -> None:
    with pytest.raises(TypeError, match=r"^Cache: a cache belongs to its process"):
        pickle.dumps(Cache(1), protocol)


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_copying_is_refused(copier: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"^LRUCache: .* dict\(cache\)$"):
        copier(LRUCache(1))


# ── configuration


def test_a_configuration() -> None:
    config = CacheConfig()
    assert (config.max_size, config.ttl_seconds, config.cleanup_interval) == (1000, 3600, 300)
    assert config.enabled is True
    assert (config, hash(config)) == (CacheConfig(1000, 3600), hash(CacheConfig()))
    with pytest.raises(FrozenInstanceError):
        config.max_size = 5  # type: ignore[misc]
    cache: Cache[str, int] = Cache(CacheConfig(5, ttl_seconds=7, cleanup_interval=INFINITY))
    assert (cache.max_size, cache.ttl, cache.enabled) == (5, 7.0, True)
    assert Cache(CacheConfig(cleanup_interval=INFINITY), ttl=9).ttl == 9.0
    assert Cache(CacheConfig(enabled=False)).enabled is False
    forever: Cache[str, int] = Cache(CacheConfig(ttl_seconds=INFINITY, cleanup_interval=INFINITY))
    forever["a"] = 1
    assert forever["a"] == 1


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("max_size", 0, ValueError),
        ("max_size", -1, ValueError),
        ("max_size", 1.0, TypeError),
        ("max_size", True, TypeError),
        ("max_size", None, TypeError),
        ("ttl_seconds", 0, ValueError),
        ("ttl_seconds", -1.0, ValueError),
        ("ttl_seconds", NAN, ValueError),
        ("ttl_seconds", "60", TypeError),
        ("ttl_seconds", None, TypeError),
        ("ttl_seconds", True, TypeError),
        ("cleanup_interval", 0, ValueError),
        ("cleanup_interval", NAN, ValueError),
        ("cleanup_interval", None, TypeError),
        ("enabled", 1, TypeError),
        ("enabled", None, TypeError),
        ("enabled", "no", TypeError),
    ],
)
def test_a_wrong_configuration(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{name}: expected "):
        CacheConfig(**{name: value})


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_size": 0}, ValueError),
        ({"max_size": -(2**70)}, ValueError),
        ({"max_size": 10.0}, TypeError),
        ({"max_size": "10"}, TypeError),
        ({"max_size": True}, TypeError),
        ({"max_size": None}, TypeError),
        ({"ttl": 0}, ValueError),
        ({"ttl": -1}, ValueError),
        ({"ttl": NAN}, ValueError),
        ({"ttl": timedelta(0)}, ValueError),
        ({"ttl": timedelta(-1)}, ValueError),
        ({"ttl": "60"}, TypeError),
        ({"ttl": True}, TypeError),
        ({"tti": 0.0}, ValueError),
        ({"tti": []}, TypeError),
        ({"policy": "fifo"}, ValueError),
        ({"policy": None}, ValueError),
        ({"policy": ["lru"]}, ValueError),
        ({"max_bytes": 0}, ValueError),
        ({"max_bytes": 1.5}, TypeError),
        ({"weigher": len}, ValueError),
        ({"weigher": 5, "max_bytes": 5}, TypeError),
        ({"on_evict": 5}, TypeError),
        ({"cleanup_interval": 0}, ValueError),
        ({"cleanup_interval": -1}, ValueError),
        ({"cleanup_interval": NAN}, ValueError),
        ({"cleanup_interval": "60"}, TypeError),
        ({"name": 5}, TypeError),
        ({"name": b"x"}, TypeError),
        ({"clock": 5}, TypeError),
        ({"clock": ManualClock}, TypeError),
        ({"enabled": 1}, TypeError),
        ({"enabled": None}, TypeError),
    ],
    ids=repr,
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], error: type[Exception]) -> None:
    name = next(iter(arguments))
    with pytest.raises(error, match=rf"^{name}: "):
        Cache(**arguments)


@pytest.mark.parametrize(
    ("call", "name", "error"),
    [
        (lambda cache: cache.set("a", 1, ttl=0), "ttl", ValueError),
        (lambda cache: cache.set("a", 1, ttl=-1.5), "ttl", ValueError),
        (lambda cache: cache.set("a", 1, ttl=NAN), "ttl", ValueError),
        (lambda cache: cache.set("a", 1, ttl="1"), "ttl", TypeError),
        (lambda cache: cache.set("a", 1, tags="abc"), "tags", TypeError),
        (lambda cache: cache.set("a", 1, tags=5), "tags", TypeError),
        (lambda cache: cache.set("a", 1, tags=[5]), "tags", TypeError),
        (lambda cache: cache.set("a", 1, tags=["x", None]), "tags", TypeError),
        (lambda cache: cache.invalidate_tag(5), "tag", TypeError),
        (lambda cache: cache.invalidate_tag(["x"]), "tag", TypeError),
        (lambda cache: cache.get_or_set_sync("a", 5), "factory", TypeError),
        (lambda cache: cache.get_or_set_sync("a", _never, ttl=0), "ttl", ValueError),
        (lambda cache: cache.get_or_set_sync("a", _never, tags="abc"), "tags", TypeError),
        (lambda cache: cache.get_or_set("a", 5), "factory", TypeError),
        (lambda cache: cache.get_or_set("a", _never, ttl="1"), "ttl", TypeError),
        (lambda cache: cache.get_or_set("a", _never, tags=[5]), "tags", TypeError),
    ],
)
def test_a_wrong_argument_of_a_call_is_named(
    call: Callable[[Cache[Any, Any]], object], name: str, error: type[Exception]
) -> None:
    cache: Cache[str, int] = Cache(5)
    cache["b"] = 1
    with pytest.raises(error, match=rf"^{name}: expected "):
        call(cache)
    assert dict(cache) == {"b": 1}
    assert cache.get_stats()["loading"] == 0


def _never() -> Any:
    raise AssertionError("loads before it looks at its arguments")


# ── switched off


def test_disabled() -> None:
    calls: list[int] = []
    cache: Cache[str, int] = Cache(5, enabled=False, on_evict=lambda *_: calls.append(0))
    cache["a"] = 1
    cache.set("a", 1, ttl=5, tags=["x"])
    assert (len(cache), cache.get("a"), "a" in cache, dict(cache)) == (0, None, False, {})
    assert (cache.invalidate_tag("x"), cache.cleanup(), cache.delete("a")) == (0, 0, False)
    for n in range(3):
        assert cache.get_or_set_sync("a", lambda n=n: n) == n  # type: ignore[misc]
    assert cache.setdefault("a", 7) == 7
    assert cache.enabled is False
    stats = cache.get_stats()
    assert (stats["enabled"], stats["misses"], stats["insertions"], calls) == (False, 5, 0, [])


@pytest.mark.hostile
@pytest.mark.parametrize(("value", "enabled"), [("1", False), ("yes", False), ("0", True)])
def test_switched_off_from_outside(value: str, enabled: bool) -> None:
    code = """
        import ferrogate
        cache = ferrogate.Cache(5, cleanup_interval=0.01)
        cache["a"] = 1
        @ferrogate.cached
        def f(x):
            return object()
        print(cache.enabled, len(cache), f(1) is f(1), f.cache_parameters()["enabled"])
    """
    said = run_well(code, env={"FERROGATE_DISABLED": value})
    assert said.split() == [str(enabled), str(int(enabled)), str(enabled), str(enabled)]


# ── subclasses


class Doubling(Cache[str, int]):
    """Overrides an operation."""

    def __setitem__(self, key: str, value: int) -> None:
        super().__setitem__(key, 2 * value)


class Named(Cache[str, int]):
    """Takes arguments of its own."""

    extra: str

    def __new__(cls, extra: str) -> Named:
        self = typing.cast(Named, super().__new__(cls, 7, name=extra))
        self.extra = extra
        return self

    def __init__(self, extra: str) -> None:
        super().__init__(7, name=extra)


class Wrong(Cache[str, int]):
    """Gives other arguments to __init__ only."""

    def __init__(self) -> None:
        super().__init__(5)


def test_subclasses() -> None:
    doubling = Doubling(5)
    doubling.update(a=1)
    assert (doubling["a"], repr(doubling)) == (2, "Doubling(1 of 5 entries, hit rate 100.0%)")
    named = Named("mine")
    assert (named.max_size, named.name, named.extra) == (7, "mine", "mine")
    with pytest.raises(TypeError, match=r"^Wrong: a cache takes its arguments in __new__"):
        Wrong()
    assert isinstance(LRUCache[str, int](4), Cache)
    free: Any = Cache(1)
    free.attribute = 5
    assert free.attribute == 5


# ── loading


def test_get_or_set_sync() -> None:
    clock = ManualClock()
    cache: Cache[Any, Any] = Cache(5, ttl=100, clock=clock)
    calls: list[int] = []

    def load() -> int:
        calls.append(1)
        return len(calls)

    assert [cache.get_or_set_sync("a", load, ttl=5, tags=["t"]) for _ in range(3)] == [1, 1, 1]
    assert cache.explain("a")["tags"] == ["t"]
    clock.advance(5)
    assert cache.get_or_set_sync("a", load) == 2
    assert cache.get_or_set_sync({"un": "hashable"}, load) == 3
    assert cache[{"un": "hashable"}] == 3
    assert list(cache) == ["a", {"un": "hashable"}]
    assert cache.get_or_set_sync("none", lambda: None) is None
    assert "none" in cache
    with pytest.raises(RuntimeError, match="recursive load"):
        cache.get_or_set_sync("r", lambda: cache.get_or_set_sync("r", load))
    assert cache.get_or_set_sync("r", lambda: cache.get_or_set_sync("s", load)) == 4
    assert cache.get_stats()["loading"] == 0


def test_threads_load_once() -> None:
    cache: Cache[str, object] = Cache(5)
    entered, go = threading.Event(), threading.Event()
    calls: list[int] = []
    results: list[object] = []

    def load() -> object:
        calls.append(1)
        entered.set()
        assert go.wait(20)
        return object()

    threads = [
        threading.Thread(target=lambda: results.append(cache.get_or_set_sync("a", load)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    assert entered.wait(20)
    assert cache.get_stats()["loading"] == 1
    go.set()
    for thread in threads:
        thread.join(20)
    assert (len(calls), len(results), len(set(map(id, results)))) == (1, 6, 1)


def test_get_or_set() -> None:
    cache: Cache[str, object] = Cache(5)
    calls: list[int] = []

    async def load() -> object:
        calls.append(1)
        await asyncio.sleep(0)
        return object()

    async def fail() -> object:
        raise failure

    failure = OSError("down")

    async def main() -> None:
        loads = [cache.get_or_set("a", load, tags=["t"]) for _ in range(10)]
        results = await asyncio.gather(*loads)
        assert (len(calls), len(set(map(id, results)))) == (1, 1)
        assert await cache.get_or_set("a", load) is results[0] is cache["a"]
        assert cache.invalidate_tag("t") == 1
        for _ in range(2):
            with pytest.raises(OSError, match="down") as raised:
                await cache.get_or_set("b", fail)
            assert raised.value is failure
        assert "b" not in cache

    asyncio.run(main())
    assert cache.get_stats()["loading"] == 0
