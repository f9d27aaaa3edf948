"""What is one key and what is not: Python's own equality."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import math
import pathlib
import sys
import types
import uuid
import weakref
from typing import Any

import pydantic
import pytest
from child import is_collected
from keyed import (
    PARIS,
    PLUS2,
    UTC,
    ByIdentity,
    Colour,
    D,
    F,
    Frozen,
    HashableDict,
    IdentityDict,
    IdentityFloat,
    IdentityInt,
    IdentityList,
    IdentitySet,
    IndexLike,
    IntPerm,
    LowerText,
    Mixed,
    Model,
    Number,
    OpenModel,
    Other,
    OtherTags,
    OwnEquality,
    Partly,
    Perm,
    Plain,
    Point,
    Ratio,
    RealLike,
    Tagged,
    Tags,
    Text,
    Whole,
    Word,
    same,
)

from ferrogate import Cache, cache_key, cached

EQUAL = [
    (1, 1.0),
    (1, True),
    (0, False),
    (0, -0.0),
    (0.0, -0.0),
    (1, 1 + 0j),
    (1.5, 1.5 + 0j),
    (1, D(1)),
    (1, D("1.000")),
    (D("1.10"), D("1.1")),
    (D(0), D("-0E+7")),
    (0.5, D("0.5")),
    (0.1, D(0.1)),
    (D("Infinity"), math.inf),
    (D("-Infinity"), -math.inf),
    (10**50, D(10) ** 50),
    (1, F(1)),
    (0.5, F(1, 2)),
    (0.1, F(0.1)),
    (10**40, F(10**40)),
    (2**53, 2.0**53),
    (2**53 + 2, float(2**53 + 2)),
    (2**63, 2.0**63),
    (-(2**63), -(2.0**63)),
    (2**64, 2.0**64),
    (int(1e300), 1e300),
    (int(1e300), complex(1e300)),
    (int(sys.float_info.max), sys.float_info.max),
    (math.nan, math.nan),
    (math.nan, -math.nan),
    (math.inf, math.inf),
    (5, IndexLike(5)),
    (2**70, IndexLike(2**70)),
    (1.5, RealLike(1.5)),
    (3, RealLike(3.0)),
    ("a", Text("a")),
    ("é", Text("é")),
    ("\ud800", Text("\ud800")),
    (LowerText("A"), LowerText("a")),
    (7, Whole(7)),
    (2**80, Whole(2**80)),
    (b"ab", bytearray(b"ab")),
    ({1, 2}, frozenset((2, 1))),
    ({1: "a", 2: "b"}, {2: "b", 1: "a"}),
    ({"a": 1}, {Text("a"): True}),
    ({"a": 1}, types.MappingProxyType({"a": 1})),
    ({"a": 1, "b": 2}, collections.OrderedDict(b=2, a=1)),
    ({"a": 1}, collections.defaultdict(int, a=1)),
    ({"a": 1}, collections.Counter("a")),
    ({"a": 1}, HashableDict(a=1)),
    ((1, 2), Point(1, 2)),
    (Colour.RED, Colour.CRIMSON),
    (Number.ONE, 1),
    (Word.A, "a"),
    (Mixed.A, "a"),
    (IntPerm.R | IntPerm.W, 3),
    (Perm.R | Perm.W, Perm.W | Perm.R),
    (Plain(1, [2]), Plain(1.0, [2])),
    (Frozen(1), Frozen(1, False)),
    (Partly(1, "x", 5), Partly(1, "y", 6)),
    (OwnEquality("A"), OwnEquality("a")),
    (Model(x=1), Model(x=1)),
    (OpenModel(x=1, y=2), OpenModel(y=2, x=1)),
    (Tags(["a"]), Tags(["a"])),
    (Tagged(tags=Tags(["a"])), Tagged(tags=Tags(["a"]))),
    (uuid.UUID(int=5), uuid.UUID(int=5)),
    (pathlib.PurePosixPath("a/b"), pathlib.PurePosixPath("a//b")),
    (pathlib.PurePosixPath("\udcff"), pathlib.PurePosixPath("\udcff")),
    (pathlib.Path("a"), pathlib.Path("a")),
    (pathlib.PureWindowsPath("A"), pathlib.PureWindowsPath("a")),
    (dt.timedelta(days=1), dt.timedelta(hours=24)),
    (dt.timedelta.max, dt.timedelta.max),
    (dt.datetime(2024, 1, 1, 12, tzinfo=UTC), dt.datetime(2024, 1, 1, 14, tzinfo=PLUS2)),
    (dt.datetime(2024, 1, 1, fold=0), dt.datetime(2024, 1, 1, fold=1)),
    (dt.time(12, tzinfo=UTC), dt.time(14, tzinfo=PLUS2)),
    (dt.datetime(2024, 7, 1, tzinfo=PARIS), dt.datetime(2024, 6, 30, 22, tzinfo=UTC)),
    (range(3), range(0, 3, 1)),
    (IdentityInt, IdentityInt),
]

DIFFERENT = [
    (None, 0),
    (None, "None"),
    (1, "1"),
    ("a", b"a"),
    ("", b""),
    ("", ()),
    ((), []),
    ([], {}),
    ({}, set()),
    ([1], (1,)),
    ([1, [2]], [[1], 2]),
    (["ab"], ["a", "b"]),
    (["a", "b"], ["b", "a"]),
    ({"a": "b"}, {"b": "a"}),
    ({"a": None}, {}),
    ({"a": {"b": 1}}, {"a": 1, "b": 1}),
    ({1, 2}, {1, 3}),
    (2**53 + 1, 2.0**53),
    (2**63 - 1, 2.0**63),
    (10**300, 1e300),
    (0.1, D("0.1")),
    (F(1, 3), 1 / 3),
    (1, 1 + 1j),
    (1j, -1j),
    (math.inf, -math.inf),
    (math.nan, math.inf),
    (math.nan, "nan"),
    (2**64, 2**64 + 1),
    (2**64, -(2**64)),
    ("\ud800", "\ud801"),
    ("\ud800", "?"),
    ("é", "e\u0301"),
    (IdentityInt(5), IdentityInt(5)),
    (IdentityFloat(1.5), IdentityFloat(1.5)),
    (IdentityList([1]), IdentityList([1])),
    (IdentityDict(a=1), IdentityDict(a=1)),
    (IdentitySet([1]), IdentitySet([1])),
    (Colour.RED, Colour.GREEN),
    (Colour.RED, Other.RED),
    (Colour.RED, 1),
    (Perm.R, Perm.R | Perm.W),
    (Perm.R, 1),
    (Plain(1), Frozen(1)),
    (Plain(1), Plain(2)),
    (Plain(1), (1, 0)),
    (Partly(1), Partly(2)),
    (ByIdentity(1), ByIdentity(1)),
    (OwnEquality("a"), OwnEquality("b")),
    (Model(x=1), Model(x=2)),
    (Model(x=1), OpenModel(x=1)),
    (OpenModel(x=1), OpenModel(x=1, y=None)),
    (Model(x=1), {"x": 1}),
    (Tags(["a"]), Tags(["b"])),
    (Tags(["a"]), OtherTags(["a"])),
    (Tags(["a"]), ["a"]),
    (D("NaN1"), D("NaN2")),
    (D("NaN"), D("NaN1")),
    (uuid.UUID(int=5), 5),
    (pathlib.PurePosixPath("A"), pathlib.PurePosixPath("a")),
    (pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a")),
    (pathlib.PurePosixPath("a"), "a"),
    (dt.date(2024, 1, 1), dt.datetime(2024, 1, 1)),
    (dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=UTC)),
    (dt.time(1), dt.time(1, tzinfo=UTC)),
    (dt.timedelta(0), 0),
    (dt.timedelta.max, dt.timedelta.max - dt.timedelta.resolution),
    (dt.timedelta.min, dt.timedelta.max),
    (int, float),
    (object(), object()),
    (len, max),
]


@pytest.mark.parametrize(("a", "b"), EQUAL, ids=repr)
def test_what_python_calls_equal_is_one_key(a: Any, b: Any) -> None:
    if a == a:  # noqa: PLR0124 - not so for NaN, the documented exception
        assert a == b
    assert same(a, b)
    assert same([a], [b])
    assert same({"k": (a,)}, {"k": (b,)})


@pytest.mark.parametrize(("a", "b"), DIFFERENT, ids=repr)
def test_what_python_tells_apart_is_two_keys(a: Any, b: Any) -> None:
    assert (a == b) is False  # what a dict asks; `!=` may be somebody else's
    assert not same(a, b)
    assert not same([a], [b])


CANONICAL = [*(p for p in EQUAL), *(p for p in DIFFERENT)]


@pytest.mark.parametrize(("a", "b"), CANONICAL, ids=repr)
def test_the_digest_agrees_with_the_cache_or_refuses(a: Any, b: Any) -> None:
    try:
        digests = cache_key(a) == cache_key(b)
    except TypeError as error:
        assert "parts[0]" in str(error)  # noqa: PT017
        return
    assert digests == same(a, b)


def test_a_pydantic_model_is_its_fields_extras_and_private_attributes() -> None:
    one, two = Model(x=1), Model(x=1)
    assert one.doubled == 2  # leaves itself in the instance's dict
    assert one == two
    assert same(one, two)
    two._secret = 5
    assert one != two
    assert not same(one, two)
    bare = Model.model_construct()
    assert same(bare, Model.model_construct())


def test_classes_with_one_name_do_not_collide() -> None:
    def make() -> Any:
        @dataclasses.dataclass
        class Local:
            x: int

        class Shade(enum.Enum):
            DARK = 1

        class Form(pydantic.BaseModel):
            x: int

        return Local(1), Shade.DARK, Form(x=1)

    for a, b in zip(make(), make(), strict=True):
        assert a != b
        assert not same(a, b)
        assert same(a, a)
    one, two = (dataclasses.make_dataclass("Made", ["x"]) for _ in range(2))
    assert one(1) != two(1)
    assert not same(one(1), two(1))
    assert same(one(1), one(1))


def test_the_values_of_a_class_do_not_keep_it_alive_after_their_entries() -> None:
    made = dataclasses.make_dataclass("Made", ["x"])
    cache: Cache[Any, int] = Cache(10)
    cache[made(1)] = 1
    gone = weakref.ref(made)
    cache.clear()
    del made
    assert is_collected(gone)


def test_typed_keeps_numbers_apart_at_every_depth() -> None:
    @cached(typed=True)
    def kind(x: Any) -> int:
        calls.append(x)
        return len(calls)

    calls: list[Any] = []
    apart = [1, 1.0, True, [1], [1.0], {"a": True}, {"a": 1}, {1}, {1.0}, D(1), F(1), 1 + 0j]
    # Numbers of other classes are apart from Python's own and from each other.
    apart += [Whole(1), Number.ONE, IndexLike(1), RealLike(1.0), Ratio(1), [Whole(1)]]
    assert [kind(x) for x in apart] == list(range(1, len(apart) + 1))
    assert [kind(x) for x in apart] == list(range(1, len(apart) + 1))


def test_typed_knows_one_zero_of_each_class() -> None:
    @cached(typed=True)
    def calls(x: Any) -> int:
        return next(numbers)

    numbers = iter(range(99))
    for zeros in ([0.0, -0.0], [D(0), D("-0"), D("0.00"), D("-0e9")], [0j, -0j, complex(-0.0, 0)]):
        assert len({calls(zero) for zero in zeros}) == 1
