"""NumPy's scalars are what they equal, and buffers the bytes that they equal."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import numpy as np
import pytest
from keyed import same, same_digest

from ferrogate import Cache, cache_key, cached

EQUAL = [
    (np.bool_(True), True),
    (np.bool_(False), 0),
    (np.int64(3), 3),
    (np.uint64(2**63 + 1), 2**63 + 1),
    (np.float16(0.1), float(np.float16(0.1))),
    (np.float32(0.5), 0.5),
    (np.float64(0.1), 0.1),
    (np.longdouble(0.5), 0.5),
    (np.complex64(1 + 0.5j), 1 + 0.5j),
    (np.complex128(1 + 1j), 1 + 1j),
    (np.complex128(1), 1),
    (np.clongdouble(2), 2),
    (np.str_("aé"), "aé"),
    (np.bytes_(b"a\0b"), b"a\0b"),
    (np.bytes_(b"ab"), bytearray(b"ab")),
    (memoryview(b"ab"), b"ab"),
    (memoryview(bytearray(b"ab")), b"ab"),
    (memoryview(b"abcd")[::2], b"ac"),
    (memoryview(b"ab").cast("b"), b"ab"),
    (memoryview(b""), b""),
    (memoryview(b"x" * 200), bytearray(b"x" * 200)),
]


@pytest.mark.parametrize(("a", "b"), EQUAL, ids=repr)
def test_what_equals_a_value_of_pythons_is_one_key_with_it(a: Any, b: Any) -> None:
    assert a == b
    assert same(a, b)
    assert same([a], (b,)) is False
    assert same({"k": [a]}, {"k": [b]})
    assert same_digest(a, b)


def test_what_only_looks_like_bytes_is_another_key() -> None:
    for view in (memoryview(b"ab").cast("c"), memoryview(b"\xff").cast("b")):
        raw = bytes(view)
        assert view != raw
        assert not same(view, raw)
        assert same(view, view)
        with pytest.raises(TypeError, match="cannot make a cache key"):
            cache_key(view)
    square = memoryview(b"abcd").cast("B", (2, 2))
    assert square != b"abcd"
    assert not same(square, b"abcd")


def test_nan_of_every_kind_equals_itself() -> None:
    for nan in (np.float64("nan"), np.float32("nan"), np.longdouble("nan")):
        assert same(nan, type(nan)("nan"))
        assert same(nan, math.nan)
    one, two = (np.complex128(complex(math.nan, 1)) for _ in range(2))
    assert same(one, two)


def test_numpy_and_python_share_a_dict_and_a_cache() -> None:
    numbers = [np.int64(1), np.float64(1), np.bool_(True), np.complex64(1), 1, 1.0, True]
    cache: Cache[Any, int] = Cache(10)
    for number in numbers:
        cache[number] = len(cache)
    assert len(cache) == len(dict.fromkeys(numbers)) == 1


def test_times_of_numpy_equal_their_own_kind_only() -> None:
    # Python's == would make one key of each pair, but its hash only of some.
    for time, other in [
        (np.datetime64("2020-01-01"), dt.date(2020, 1, 1)),
        (np.datetime64("2020-01-01T00:00:01"), dt.datetime(2020, 1, 1, 0, 0, 1)),
        (np.timedelta64(5, "s"), dt.timedelta(seconds=5)),
    ]:
        assert same(time, time.copy())
        assert not same(time, other)
        with pytest.raises(TypeError, match="cannot make a cache key"):
            cache_key(time)


def test_arrays_are_unhashable() -> None:
    with pytest.raises(TypeError, match=r"^key\[1\]: cannot make a cache key from an object"):
        Cache[Any, int](1)[(1, np.zeros(3))] = 1


def test_typed_keeps_numpys_numbers_apart_from_pythons() -> None:
    calls: list[Any] = []

    @cached(typed=True)
    def kind(x: Any) -> int:
        calls.append(x)
        return len(calls)

    apart: list[Any] = [1, 1.0, True, 1 + 0j]
    apart += [np.int64(1), np.int32(1), np.float64(1), np.float32(1), np.bool_(True)]
    apart += [np.complex128(1), np.complex64(1), [np.int64(1)], [1]]
    assert [kind(x) for x in apart] == list(range(1, len(apart) + 1))
    assert [kind(x) for x in apart] == list(range(1, len(apart) + 1))
    # Text and bytes have one type each.
    assert kind("a") == kind(np.str_("a"))
