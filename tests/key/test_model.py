"""Keys against Python's equality, on generated values."""

from __future__ import annotations

import collections
import datetime as dt
import math
from typing import Any

import pytest
from child import patience, times
from hypothesis import given, settings
from hypothesis import strategies as st
from keyed import (
    PARIS,
    PLUS2,
    UTC,
    Colour,
    D,
    F,
    Frozen,
    IndexLike,
    IntPerm,
    LowerText,
    Number,
    Perm,
    Plain,
    Point,
    RealLike,
    Text,
    Whole,
    Word,
    same,
    same_digest,
)

from ferrogate import Cache

# Equality by hypothesis.

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([2**53, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**30]),
    st.floats(allow_nan=False),
    st.integers(-3, 3).map(float),
    st.integers(2**52, 2**70).map(float),
    st.sampled_from("ab").map(str),
    st.text(st.characters(), max_size=3),
    st.binary(max_size=3),
    st.binary(max_size=2).map(bytearray),
    st.decimals(allow_nan=False, places=2),
    st.integers(-3, 3).map(D),
    # Fractions that are no float are not compared with decimals; see the exceptions below.
    st.builds(F, st.integers(-5, 5), st.sampled_from([1, 2, 4])),
    st.complex_numbers(allow_nan=False, max_magnitude=3),
    st.dates(dt.date(2020, 1, 1), dt.date(2020, 1, 3)),
    st.datetimes(dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, 0, 0, 1)),
    st.datetimes(
        dt.datetime(2020, 1, 1),
        dt.datetime(2020, 1, 2),
        timezones=st.sampled_from([UTC, PLUS2]),
    ).map(lambda t: t.replace(minute=0, second=0, microsecond=0)),
    st.timedeltas(dt.timedelta(0), dt.timedelta(microseconds=2)),
    st.times(dt.time(1), dt.time(1, 0, 1)),
    st.sampled_from([Colour.RED, Colour.GREEN, Number.ONE, Word.A, Perm.R, IntPerm.W]),
    st.uuids(),
)


def is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


hashable = leaves.filter(is_hashable)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(hashable, inner, max_size=3),
        st.dictionaries(st.text(max_size=2), inner, max_size=12),
        st.sets(hashable, max_size=3),
        st.frozensets(hashable, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Plain, inner, inner),
        st.builds(Frozen, inner),
    ),
    max_leaves=8,
)


@st.composite
def equals(draw: st.DrawFn, value: Any) -> Any:
    """Something that Python calls equal to `value`, written differently where possible."""
    match value:
        case bool() | int() if type(value) in (int, bool):
            wide = [value, D(value), F(value), Whole(value), IndexLike(int(value))]
            if abs(value) < 2**1000 and int(float(value)) == value:
                wide += [float(value), complex(value)]
            return draw(st.sampled_from(wide))
        case float() if math.isfinite(value):
            return draw(st.sampled_from([value, complex(value), F(value), RealLike(value)]))
        case str() if type(value) is str:
            return Text(value)
        case bytes():
            return bytearray(value)
        case list():
            return [draw(equals(item)) for item in value]
        case tuple() if type(value) is tuple:
            return tuple(draw(equals(item)) for item in value)
        case dict():
            items = draw(st.permutations(list(value.items())))
            return {key: draw(equals(item)) for key, item in items}
        case set() | frozenset():
            return draw(st.sampled_from([set, frozenset]))(draw(st.permutations(list(value))))
        case Plain():
            return Plain(draw(equals(value.a)), draw(equals(value.b)))
    return value


@pytest.mark.soak
@pytest.mark.timeout(patience(0.05, times(250, 10_000)))
@settings(max_examples=times(250, 10_000), deadline=None)
@given(values, values)
def test_a_pair_is_one_key_exactly_when_python_says_equal(a: Any, b: Any) -> None:
    assert same(a, b) == (a == b)


@pytest.mark.soak
@pytest.mark.timeout(patience(0.05, times(200, 10_000)))
@settings(max_examples=times(200, 10_000), deadline=None)
@given(st.data())
def test_equal_values_written_differently_are_one_key(data: st.DataObject) -> None:
    a = data.draw(values)
    b = data.draw(equals(a))
    assert a == b
    assert same(a, b)
    assert same_digest(a, b)


@pytest.mark.soak
@pytest.mark.timeout(patience(0.05, times(80, 8_000)))
@settings(max_examples=times(80, 8_000), deadline=None)
@given(st.lists(values, max_size=6))
def test_a_cache_and_a_dict_agree_on_hashable_keys(keys: list[Any]) -> None:
    keys = [key for key in keys if is_hashable(key)]
    reference: dict[Any, int] = {}
    cache: Cache[Any, int] = Cache(1000)
    for number, key in enumerate(keys):
        reference[key] = number
        cache[key] = number
    assert dict(cache) == reference
    assert len(cache) == len(reference)


def test_the_documented_exceptions() -> None:
    # Two numbers that equal no float and no int, of different types: Python compares them
    # exactly, the canonical forms differ. A miss too many, never a wrong hit.
    assert D("0.1") == F(1, 10)
    assert not same(D("0.1"), F(1, 10))
    # An aware datetime is its instant; Python looks at the wall clock within one zone.
    early = dt.datetime(2024, 10, 27, 2, 30, tzinfo=PARIS, fold=0)
    late = early.replace(fold=1)
    assert early == late
    assert not same(early, late)
    # A subclass with an equality of its own equals its own kind only.
    assert LowerText("A") == "a"
    assert not same(LowerText("A"), "a")
    # So do an int and a Decimal of 4,000 digits or more, and NumPy's times (test_numpy.py).
    assert D("1e4000") == 10**4000
    assert not same(D("1e4000"), 10**4000)
    # A Counter is a dict, also against another one (Python skips the zeros then).
    assert collections.Counter(a=0) == collections.Counter()
    assert not same(collections.Counter(a=0), collections.Counter())
    # OrderedDicts are dicts here; between each other Python looks at their order.
    one, two = collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1)
    assert one != two
    assert same(one, two)
