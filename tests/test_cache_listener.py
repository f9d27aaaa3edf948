"""`on_evict`: told of each entry that left, once, with no lock held."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from ferrogate import Cache
from ferrogate.testing import ManualClock


class Told(list[tuple[Any, Any, str]]):
    """A listener that keeps what it was told."""

    def __call__(self, key: Any, value: Any, cause: str) -> None:
        self.append((key, value, cause))

    def take(self) -> list[tuple[Any, Any, str]]:
        told = list(self)
        self.clear()
        return told


def test_the_listener_hears_each_cause_once() -> None:
    clock = ManualClock()
    told = Told()
    cache: Cache[str, int] = Cache(2, ttl=10, on_evict=told, clock=clock)
    cache["a"] = 1
    cache["a"] = 2
    assert told.take() == [("a", 1, "replaced")]
    cache.update(b=3, c=4)
    assert told.take() == [("a", 2, "evicted")]
    del cache["b"]
    assert told.take() == [("b", 3, "deleted")]
    assert cache.pop("c") == 4
    assert told.take() == [("c", 4, "deleted")]
    cache["d"] = 5
    assert cache.popitem() == ("d", 5)
    assert told.take() == [("d", 5, "deleted")]
    cache.set("e", 6, tags=["t"])
    assert cache.invalidate_tag("t") == 1
    assert told.take() == [("e", 6, "invalidated")]
    cache.update(f=7, g=8)
    cache.clear()
    assert sorted(told.take()) == [("f", 7, "cleared"), ("g", 8, "cleared")]
    for see in (cache.cleanup, lambda: cache.get("h"), lambda: len(cache), cache.get_stats):
        cache["h"] = 9
        clock.advance(10)
        see()
        assert told.take() == [("h", 9, "expired")]
    for leave in (lambda: cache.pop("h", None), lambda: cache.set("h", 1)):
        cache["h"] = 9
        clock.advance(10)
        leave()
        assert told.take() == [("h", 9, "expired")]
    clock.advance(10)
    with pytest.raises(KeyError):
        cache.popitem()
    assert told == [("h", 1, "expired")]


def test_a_listener_that_uses_the_cache() -> None:
    causes: list[str] = []

    def again(key: int, value: int, cause: str) -> None:
        causes.append(cause)
        assert key not in cache
        if value < 5:
            cache[key] = value + 1
            assert len(cache) <= 2

    cache: Cache[int, int] = Cache(2, on_evict=again)
    cache.update({1: 1, 2: 5, 3: 5})
    assert len(cache) == 2
    assert set(causes) == {"evicted"}


def test_a_listener_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    failure = OSError("full")

    def listener(*_: object) -> None:
        raise failure

    cache: Cache[str, int] = Cache(1, on_evict=listener)
    cache.update(a=1, b=2)
    assert dict(cache) == {"b": 2}
    assert [(one.exc_value, one.object) for one in unraisable] == [(failure, listener)]
    cache.clear()
    assert len(unraisable) == 2


def test_a_listener_that_writes_what_was_invalidated_again() -> None:
    def again(key: Any, value: int, cause: str) -> None:
        if cause == "invalidated":
            cache.set(key, value + 1, tags=["t"])

    cache: Cache[int, int] = Cache(10_000, on_evict=again)
    for n in range(600):
        cache.set(n, 0, tags=["t"])
    assert cache.invalidate_tag("t") == 600
    # All that was there is gone, and what came since stays.
    assert dict(cache) == dict.fromkeys(range(600), 1)


def test_ctrl_c_in_the_listener_is_put_off_and_not_lost() -> None:
    heard: list[str] = []

    def interrupted(key: str, value: int, cause: str) -> None:
        heard.append(key)
        if key == "a":
            raise KeyboardInterrupt

    cache: Cache[str, int] = Cache(10, on_evict=interrupted)
    cache.update(a=1, b=2)

    def clear_and_go_on() -> None:
        cache.clear()
        for _ in range(1000):
            pass

    with pytest.raises(KeyboardInterrupt):
        clear_and_go_on()
    assert heard == ["a", "b"]
    assert len(cache) == 0
