"""`Cache`: a mutable mapping with exact order, bounds, lifetimes, tags and a listener."""

from __future__ import annotations

import collections
from collections.abc import ItemsView, KeysView, MutableMapping, ValuesView
from datetime import timedelta
from typing import Any

import pytest
from child import patience, times
from hypothesis import given, settings
from hypothesis import strategies as st

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


# ── a mutable mapping


def test_it_is_a_mutable_mapping() -> None:
    cache: Cache[str, int] = Cache(10)
    assert isinstance(cache, MutableMapping)
    cache.update({"a": 1}, b=2)
    cache.update([("c", 3)])
    assert (list(cache), len(cache), bool(cache)) == (["a", "b", "c"], 3, True)
    assert cache["a"] == 1
    with pytest.raises(KeyError) as missing:
        cache["no"]
    assert missing.value.args == ("no",)
    with pytest.raises(KeyError) as missing:
        del cache["no"]
    assert missing.value.args == ("no",)
    with pytest.raises(KeyError, match=r"^'no'$"):
        cache.pop("no")
    assert cache.pop("no", None) is None
    assert cache.pop("no", 5) == 5
    with pytest.raises(TypeError, match="pop: expected pop"):
        cache.pop("no", 1, 2)  # type: ignore[call-overload]
    assert cache.pop("c") == 3
    assert (cache.setdefault("b", 9), cache.setdefault("d", 4)) == (2, 4)
    assert cache.setdefault("none") is None
    assert "none" in cache
    assert cache.delete("none") is True
    assert cache.delete("none") is False
    assert (cache.get("no"), cache.get("no", 7), cache.get("d")) == (None, 7, 4)
    assert cache.popitem() == ("a", 1)
    assert dict(cache) == {"b": 2, "d": 4}
    cache.clear()
    assert (len(cache), bool(cache), list(cache)) == (0, False, [])
    with pytest.raises(KeyError, match="empty"):
        cache.popitem()


def test_views_show_the_order_and_count_nothing() -> None:
    cache: Cache[str, int] = Cache(10)
    cache.update(a=1, b=2, c=3)
    assert cache.get("a") == 1
    keys, values, items = cache.keys(), cache.values(), cache.items()
    assert isinstance(keys, KeysView)
    assert isinstance(values, ValuesView)
    assert isinstance(items, ItemsView)
    before = cache.get_stats()
    assert list(keys) == ["b", "c", "a"]
    assert list(values) == [2, 3, 1]
    assert list(items) == [("b", 2), ("c", 3), ("a", 1)]
    assert [len(keys), len(values), len(items)] == [3, 3, 3]
    assert ("a" in keys, "x" in keys, 3 in values, 4 in values) == (True, False, True, False)
    assert (("a", 1) in items, ("a", 2) in items, ("x", 1) in items) == (True, False, False)
    assert "a" not in items
    assert keys & {"a", "x"} == {"a"}
    assert items - {("b", 2)} == {("c", 3), ("a", 1)}
    assert "a" in cache
    assert cache.exists("a")
    assert cache.get_stats() == before
    assert list(cache) == ["b", "c", "a"]
    cache["d"] = 4  # views are of the cache, not of a moment
    assert (list(keys)[-1], len(values)) == ("d", 4)


def test_iteration_is_over_a_snapshot() -> None:
    cache: Cache[int, int] = Cache(3)
    cache.update({1: 1, 2: 2, 3: 3})
    for key in cache:
        cache[key + 10] = key
        cache.pop(key, None)
    assert list(cache) == [11, 12, 13]


def test_equality() -> None:
    cache: Cache[Any, Any] = Cache(10)
    cache.update(a=1, b=float("nan"))
    same = {"b": cache["b"], "a": 1}
    assert cache == same
    assert same == cache
    assert cache != {"a": 1}
    assert cache != {"a": 1, "c": 1}
    assert cache != {"a": 2, "b": 1}
    assert cache != [("a", 1)]
    assert cache == cache  # noqa: PLR0124
    assert cache == collections.ChainMap(same)
    with pytest.raises(TypeError, match="unhashable"):
        hash(cache)


def test_comparing_changes_neither_side() -> None:
    one, other = (Cache[Any, int](10) for _ in range(2))
    one.update(a=1, b=2)
    other.update(b=2, a=1)
    before = other.get_stats()
    assert one == other
    assert other == one
    assert (list(other), other.get_stats()) == (["b", "a"], before)
    growing: collections.defaultdict[str, int] = collections.defaultdict(int, c=1, d=1)
    assert one != growing
    assert dict(growing) == {"c": 1, "d": 1}
    one.clear()
    one[{"un": "hashable"}] = 1
    assert one != {"x": 1}
    other.clear()
    other[{"un": "hashable"}] = 1
    assert one == other


KEYS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([0.0, 1.0, 2.5, True, False, None, "", "a", b"a", (), (1, "a"), (1.0, "a")]),
    st.frozensets(st.integers(0, 2), max_size=2),
)
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["set", "get", "get", "in", "del", "pop", "default", "update", "popitem", "clear"]
        ),
        KEYS,
        st.integers(),
    ),
    max_size=60,
)


def apply(mapping: Any, operation: str, key: Any, value: int) -> object:
    try:
        match operation:
            case "set":
                mapping[key] = value
            case "get":
                return (mapping.get(key, value), mapping.get(key), mapping[key])
            case "in":
                return key in mapping
            case "del":
                del mapping[key]
            case "pop":
                return (mapping.pop(key, value), mapping.pop(key))
            case "default":
                return mapping.setdefault(key, value)
            case "update":
                mapping.update({key: value, (key, "more"): value})
            case "clear" if value % 4 == 0:
                mapping.clear()
            case "popitem" if value % 2 == 0:
                return len(mapping.popitem())
    except KeyError as error:
        return type(error)
    return None


@pytest.mark.soak
@pytest.mark.timeout(patience(0.05, times(200, 10_000)))
@settings(max_examples=times(200, 10_000), deadline=None)
@given(OPERATIONS)
def test_unbounded_it_is_a_dict(operations: list[tuple[str, Any, int]]) -> None:
    cache: Cache[Any, int] = Cache(1_000_000)
    reference: dict[Any, int] = {}
    for operation, key, value in operations:
        if operation == "popitem" and reference and value % 2 == 0:
            # A dict gives its newest entry, a cache its least recently used one.
            popped = cache.popitem()
            assert popped == (popped[0], reference.pop(popped[0]))
            continue
        assert apply(cache, operation, key, value) == apply(reference, operation, key, value)
        assert len(cache) == len(reference)
    assert cache == reference
    assert dict(cache.items()) == reference
    assert set(cache.keys()) == reference.keys()
    assert sorted(cache.values()) == sorted(reference.values())


def test_unhashable_keys_and_keys_in_other_words() -> None:
    cache: Cache[Any, str] = Cache(10)
    cache[{"b": [1, 2], "a": {3}}] = "dict"
    assert cache[{"a": {3.0}, "b": [True, 2]}] == "dict"
    assert list(cache) == [{"b": [1, 2], "a": {3}}]
    cache[[1]] = "list"
    assert cache.get([1.0]) == "list"
    assert [1] in cache
    assert cache.pop([1]) == "list"
    cache[1] = "one"
    assert (cache[True], cache[1.0]) == ("one", "one")
    opaque = object()
    cache[opaque] = "by identity"
    assert cache[opaque] == "by identity"
    assert object() not in cache
    with pytest.raises(TypeError, match="__cache_key__"):
        cache[_Unhashable()]


class _Unhashable:
    __hash__ = None  # type: ignore[assignment]


# ── order, bounds and lifetimes


def test_the_least_recently_used_makes_room() -> None:
    told = Told()
    cache: Cache[str, int] = Cache(3, on_evict=told)
    cache.update(a=1, b=2, c=3)
    assert cache.get("a") == 1  # a lookup refreshes
    assert "b" in cache  # these do not
    assert cache.explain("b")["present"]
    cache["d"] = 4
    assert (list(cache), told.take()) == (["c", "a", "d"], [("b", 2, "evicted")])
    cache["c"] = 5  # a write refreshes
    cache["e"] = 6
    assert (list(cache), told.take()) == (
        ["d", "c", "e"],
        [("c", 3, "replaced"), ("a", 1, "evicted")],
    )
    for n in range(1000):
        cache[str(n)] = n
        assert len(cache) == 3
    one: Cache[int, int] = Cache(1)
    one.update({1: 1, 2: 2})
    assert dict(one) == {2: 2}


def test_ttl() -> None:
    clock = ManualClock()
    told = Told()
    cache: Cache[str, int] = Cache(10, ttl=timedelta(seconds=10), clock=clock, on_evict=told)
    cache["usual"] = 1
    cache.set("short", 2, ttl=5)
    cache.set("long", 3, ttl=20)
    cache.set("ever", 4, ttl=float("inf"))
    clock.advance(4.999999999)
    assert cache.get("short") == 2  # a lookup does not prolong
    clock._advance_ns(1)
    assert ("short" in cache, cache.get("short"), told.take()) == (
        False,
        None,
        [("short", 2, "expired")],
    )
    cache["usual"] = 5  # a write does
    clock.advance(9)
    assert (len(cache), list(cache)) == (3, ["long", "ever", "usual"])
    clock.advance(1)
    assert (len(cache), list(cache)) == (2, ["long", "ever"])
    assert cache.cleanup() == 0
    clock.advance(5)
    assert cache.cleanup() == 1
    clock.advance(365 * 86_400 * 100)
    assert dict(cache) == {"ever": 4}
    never: Cache[str, int] = Cache(10, ttl=float("inf"), clock=ManualClock())
    never["a"] = 1
    assert never["a"] == 1


def test_the_dead_make_room_before_the_old() -> None:
    clock = ManualClock()
    told = Told()
    cache: Cache[str, int] = Cache(2, clock=clock, on_evict=told)
    cache["old"] = 1
    cache.set("dead", 2, ttl=1)
    clock.advance(1)
    cache["new"] = 3
    assert (list(cache), told) == (["old", "new"], [("dead", 2, "expired")])


def test_time_to_idle() -> None:
    clock = ManualClock()
    cache: Cache[str, int] = Cache(10, tti=10, ttl=25, clock=clock)
    cache.update(a=1, b=2)
    clock.advance(9)
    assert cache.get("a") == 1
    assert "b" in cache
    clock.advance(1)
    assert list(cache) == ["a"]
    clock.advance(8)
    assert cache.get("a") == 1
    clock.advance(7)  # idle for 7 s, but 25 s old
    assert cache.get("a") is None
    assert cache.get_stats()["expirations"] == 2


# ── weights


def test_max_bytes_with_a_weigher() -> None:
    told = Told()
    cache: Cache[str, Any] = Cache(
        10, max_bytes=10, weigher=lambda key, value: value, on_evict=told
    )
    cache.update(a=4, b=4)
    cache["c"] = 3
    assert (dict(cache), cache.get_stats()["bytes"]) == ({"b": 4, "c": 3}, 7)
    cache["c"] = 6
    assert (dict(cache), cache.get_stats()["bytes"]) == ({"b": 4, "c": 6}, 10)
    cache["zero"] = 0
    assert (len(cache), cache.explain("c")["weight"]) == (3, 6)
    told.clear()
    # What alone exceeds the bound is not stored, and what it was to replace is outdated.
    for heavy in (11, 2**64 - 1, 2**64, 10**40):
        cache["b"] = 1
        told.clear()
        cache["b"] = heavy
        assert "b" not in cache
        assert told.take() == [("b", 1, "replaced")]
    stats = cache.get_stats()
    assert (stats["rejections"], stats["bytes"], stats["max_bytes"]) == (4, 6, 10)


@pytest.mark.parametrize(
    ("weight", "error"),
    [
        (-1, ValueError),
        (-(2**70), ValueError),
        ("3", TypeError),
        (1.5, TypeError),
        (None, TypeError),
    ],
)
def test_a_weigher_that_is_wrong(weight: Any, error: type[Exception]) -> None:
    cache: Cache[str, Any] = Cache(10, max_bytes=10, weigher=lambda key, value: value)
    cache["a"] = 1
    with pytest.raises(error, match=r"^weigher: expected an int of at least 0, got"):
        cache["a"] = weight
    assert (dict(cache), cache.get_stats()["bytes"]) == ({"a": 1}, 1)


def test_a_weigher_that_raises() -> None:
    failure = ZeroDivisionError("mine")

    def weigher(_: object, value: object) -> int:
        if value == "bad":
            raise failure
        return 1

    cache: Cache[str, Any] = Cache(10, max_bytes=10, weigher=weigher)
    cache["a"] = "good"
    for write in (lambda: cache.set("a", "bad"), lambda: cache.get_or_set_sync("b", lambda: "bad")):
        with pytest.raises(ZeroDivisionError) as raised:
            write()
        assert raised.value is failure
    assert (dict(cache), cache.get_stats()["loading"]) == ({"a": "good"}, 0)


def test_max_bytes_without_a_weigher_estimates_the_deep_size() -> None:
    cache: Cache[str, Any] = Cache(1000, max_bytes=100_000)
    cache["a"] = {"text": ["x" * 60_000]}
    assert 60_000 < cache.get_stats()["bytes"] < 62_000
    cache["b"] = "y" * 60_000
    assert list(cache) == ["b"]
    cache["b"] = ["z" * 100_001]
    assert (len(cache), cache.get_stats()["rejections"]) == (0, 1)


# ── tags


def test_tags() -> None:
    told = Told()
    cache: Cache[str, int] = Cache(3, on_evict=told)
    cache.set("a", 1, tags=["x", "y", "x"])
    cache.set("b", 2, tags=("y",))
    cache.set("c", 3, tags={"z": 1})
    assert cache.explain("a")["tags"] == ["x", "y"]
    assert (cache.invalidate_tag("no"), cache.invalidate_tag("x")) == (0, 1)
    assert told.take() == [("a", 1, "invalidated")]
    cache["b"] = 4  # tags are the value's, not the key's
    assert cache.invalidate_tag("y") == 0
    assert cache.pop("c") == 3
    cache.set("c", 5)
    assert cache.invalidate_tag("z") == 0
    for n in range(1000):
        cache.set(str(n), n, tags=["many"])
    assert (cache.invalidate_tag("many"), len(cache)) == (3, 0)
    wide: Cache[int, int] = Cache(2000)
    for n in range(1000):
        wide.set(n, n, tags=["many", str(n % 2)])
    assert (wide.invalidate_tag("1"), wide.invalidate_tag("many"), len(wide)) == (500, 500, 0)
    assert wide.get_stats()["invalidations"] == 1000


def test_expired_entries_are_not_counted_as_invalidated() -> None:
    clock = ManualClock()
    cache: Cache[str, int] = Cache(3, ttl=1, clock=clock)
    cache.set("a", 1, tags=["x"])
    clock.advance(1)
    assert cache.invalidate_tag("x") == 0
    assert cache.get_stats()["expirations"] == 1


def test_defaults_by_name_as_the_abstract_mapping_has_them() -> None:
    cache: Cache[str, int] = Cache(10)
    assert cache.get("k", default=1) == 1
    assert cache.pop("k", default=2) == 2
    assert cache.pop("k", default=None) is None
    assert cache.setdefault("k", default=3) == 3
    assert cache.pop("k", default=4) == 3
    for wrong in ({"defalt": 1}, {"default": 1, "other": 2}):
        with pytest.raises(TypeError, match="pop: expected pop"):
            cache.pop("k", **wrong)
    with pytest.raises(TypeError, match="pop: expected pop"):
        cache.pop("k", 1, default=2)
    assert len(cache) == 0


def test_setdefault_counts_and_keeps_the_bounds() -> None:
    heard: list[Any] = []
    cache: Cache[str, int] = Cache(
        2, max_bytes=10, weigher=lambda key, value: value, on_evict=lambda *told: heard.append(told)
    )
    assert [cache.setdefault(key, value) for key, value in (("a", 4), ("b", 5), ("a", 9))] == [
        4,
        5,
        4,
    ]
    stats = cache.get_stats()
    assert (stats["hits"], stats["misses"], stats["bytes"]) == (1, 2, 9)
    assert cache.setdefault("c", 6) == 6
    assert heard == [("b", 5, "evicted")]
    # What alone is too heavy is returned and not stored.
    assert cache.setdefault("d", 11) == 11
    assert "d" not in cache
    off: Cache[str, int] = Cache(2, enabled=False)
    assert off.setdefault("a", 1) == 1
    assert len(off) == 0


def test_setdefault_stores_once_though_its_weigher_lets_another_in() -> None:
    def weigher(key: str, value: int) -> int:
        if value == 1:
            cache["k"] = 2
        return 1

    cache: Cache[str, int] = Cache(10, max_bytes=10, weigher=weigher)
    assert cache.setdefault("k", 1) == 2
    assert cache["k"] == 2
