"""What is one key and what is not: Python's own equality, the same in every process."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import gc
import itertools
import math
import numbers
import pathlib
import sys
import threading
import types
import uuid
import weakref
import zoneinfo
from typing import Any, ClassVar, NamedTuple

import pydantic
import pytest
from children import SOAK, child_output, is_collected
from hypothesis import given, settings
from hypothesis import strategies as st

from ferrogate import Cache, cache_key, cached

D = decimal.Decimal
F = fractions.Fraction


def same(a: Any, b: Any) -> bool:
    """Whether a cache takes both for one key; symmetric, or it is a defect."""
    there: Cache[Any, int] = Cache(10)
    there[a] = 1
    back: Cache[Any, int] = Cache(10)
    back[b] = 1
    assert (b in there) == (a in back), (a, b)
    return b in there


def same_digest(a: Any, b: Any) -> bool:
    return cache_key(a) == cache_key(b)


# Equality as Python has it.


class Colour(enum.Enum):
    RED = 1
    GREEN = 2
    CRIMSON = 1  # noqa: PIE796 - an alias


class Other(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


class Word(enum.StrEnum):
    A = "a"


class Mixed(str, enum.Enum):  # noqa: UP042 - the older spelling is in wide use
    A = "a"


class Perm(enum.Flag):
    R = 1
    W = 2


class IntPerm(enum.IntFlag):
    R = 1
    W = 2


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Plain:
    a: Any
    b: Any = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: Any
    b: Any = 0


@dataclasses.dataclass
class Partly:
    a: int
    note: str = dataclasses.field(default="", compare=False)
    start: dataclasses.InitVar[int] = 0
    kind: ClassVar[str] = "partly"


@dataclasses.dataclass(eq=False)
class ByIdentity:
    a: int


@dataclasses.dataclass(frozen=True)
class OwnEquality:
    a: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnEquality) and self.a.lower() == other.a.lower()

    def __hash__(self) -> int:
        return hash(self.a.lower())


class Model(pydantic.BaseModel):
    x: int
    tags: list[str] = []
    _secret: int = pydantic.PrivateAttr(0)

    @functools.cached_property
    def doubled(self) -> int:
        return 2 * self.x


class OpenModel(pydantic.BaseModel, extra="allow"):
    x: int


class Text(str):
    __slots__ = ()


class LowerText(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


class Whole(int):
    pass


class IdentityInt(int):
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


class IdentityFloat(float):
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


class IdentityList(list):  # type: ignore[type-arg]
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


class IdentityDict(dict):  # type: ignore[type-arg]
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


class IdentitySet(set):  # type: ignore[type-arg]
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


class HashableDict(dict):  # type: ignore[type-arg]
    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


class IndexLike:
    """As NumPy's integers: no int, but equal to one, and registered as such."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value

    def __eq__(self, other: object) -> bool:
        return self.value == other

    def __hash__(self) -> int:
        return hash(self.value)


class RealLike:
    """As NumPy's floats."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return self.value

    def __eq__(self, other: object) -> bool:
        return self.value == other

    def __hash__(self) -> int:
        return hash(self.value)


numbers.Integral.register(IndexLike)
numbers.Real.register(RealLike)

PARIS = zoneinfo.ZoneInfo("Europe/Paris")
UTC = dt.UTC
PLUS2 = dt.timezone(dt.timedelta(hours=2))

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
    assert [kind(x) for x in apart] == list(range(1, len(apart) + 1))
    assert [kind(x) for x in apart] == list(range(1, len(apart) + 1))


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


@settings(max_examples=250 * SOAK, deadline=None)
@given(values, values)
def test_a_pair_is_one_key_exactly_when_python_says_equal(a: Any, b: Any) -> None:
    assert same(a, b) == (a == b)


@settings(max_examples=200 * SOAK, deadline=None)
@given(st.data())
def test_equal_values_written_differently_are_one_key(data: st.DataObject) -> None:
    a = data.draw(values)
    b = data.draw(equals(a))
    assert a == b
    assert same(a, b)
    assert same_digest(a, b)


@settings(max_examples=80 * SOAK, deadline=None)
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
    # OrderedDicts are dicts here; between each other Python looks at their order.
    one, two = collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1)
    assert one != two
    assert same(one, two)


# Order, size, boundaries.


def test_order_does_not_count_in_dicts_and_sets() -> None:
    names = ["b", "a", "é", "aa", "z" * 200, 3, None]
    items = [(name, str(name)) for name in names]
    digests = {cache_key(dict(order)) for order in itertools.permutations(items)}
    assert len(digests) == 1
    many = {f"key{n}": n for n in range(40)}
    assert same_digest(many, dict(reversed(many.items())))
    few = {"b": 1, "a": 2, "c": 3}
    assert len({cache_key(dict(order)) for order in itertools.permutations(few.items())}) == 1
    assert same_digest({*range(100)}, {*reversed(range(100))})
    assert same_digest({("a", 1), ("b", 2)}, {("b", 2), ("a", 1)})


def test_named_parts_are_order_free_and_no_positional_ones() -> None:
    assert cache_key(a=1, b=2) == cache_key(b=2, a=1)
    assert cache_key("c", a=1) != cache_key("c", {"a": 1})
    assert cache_key() != cache_key(())
    assert cache_key(1, 2) != cache_key((1, 2))
    assert cache_key("ab", "c") != cache_key("a", "bc")


def test_every_length_around_the_inline_limit_is_a_key_of_its_own() -> None:
    cache: Cache[Any, int] = Cache(10_000)
    keys: list[Any] = []
    for size in range(50, 80):
        keys += ["x" * size, b"x" * size, ["x" * size], "é" * (size // 2), Text("y" * size)]
    for number, key in enumerate(keys):
        cache[key] = number
    assert len(cache) == len({repr((type(key).__name__, key)) for key in keys})
    for key in keys:
        assert cache[key] == len(keys) - 1 - keys[::-1].index(key)
    # The fast way for one exact str and the general way meet, on both sides of the limit.
    for size in (61, 62, 63, 64, 65, 127, 128, 129):
        assert same("k" * size, Text("k" * size))
        assert not same("k" * size, "k" * (size + 1))


def test_many_keys_have_many_digests() -> None:
    digests = {cache_key(n, str(n), [n]) for n in range(5_000)}
    assert len(digests) == 5_000
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in digests)


# The same in every process, on every Python: these are compared with constants.

STABLE = """
import collections, dataclasses, datetime as dt, decimal, enum, fractions, pathlib, uuid
from ferrogate import cache_key, cached

class Shade(enum.Enum):
    DARK = 1
class Word(enum.StrEnum):
    A = "a"
@dataclasses.dataclass
class Point:
    x: int
    y: int = 0
class Own:
    def __cache_key__(self):
        return ("own", 7)
Pair = collections.namedtuple("Pair", "a b")
zone = dt.timezone(dt.timedelta(hours=2))
for cls in (Shade, Point, Own):
    cls.__module__ = "stable"

@cached
def ask(model, /, *parts, temperature=0.0, **options):
    return None
ask.__module__ = "stable"

print(cache_key())
print(cache_key(None, True, 1, 2**100, -1.5, "text", "é", "\\ud800", b"bytes"))
print(cache_key([1, (2, {3, 4}), {"b": 1, "a": [None]}], {str(n): n for n in range(30)}))
print(cache_key(frozenset("abcdefgh"), {"x": {"a", "b", "c"}}))
print(cache_key(dt.datetime(2024, 1, 2, 3, 4, 5, 6), dt.datetime(2024, 1, 2, tzinfo=zone),
    dt.date(2024, 1, 2), dt.time(1, 2), dt.time(1, 2, tzinfo=zone), dt.timedelta(1, 2, 3)))
print(cache_key(uuid.UUID(int=7), decimal.Decimal("1.10"), decimal.Decimal("NaN"),
    fractions.Fraction(1, 3), 1j, pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("A")))
print(cache_key(Shade.DARK, Word.A, Point(1), Own(), Pair(1, 2)))
print(cache_key("x" * 1000, category="pattern", min_confidence=0.7))
print(ask.cache_key("m", 1, 2, top=5))
"""

DIGESTS: list[str] = [
    "19d179cc02a34125aad841b471cd7fcf64feed57b14328ddc47404c99a30b8bb",
    "7f1859e9cd5bf5789fb3e5fc3dc867853fe71148583825b0281f4fb2b777b382",
    "cf35b87724f38bd3942b50579c93f17cd44da893f7057a14346937bd80a0763a",
    "fd5f4b64c55d4d2580395729bc3aa66b1f42c8af37ff4f5fae52f936082b4a65",
    "03a3b45787d3828c84df86b7be1a229b85c7f3ac27209ecc39a584ba036eb073",
    "89d64fa165d8ac210056f166e4fe206cc8499478e10ca40b00e9863488052ad3",
    "09f29e6bacb6770f327f06473b31bbfe7af173a2211b7d14ab39c504cfdbd5ee",
    "3d51a05551fa2559442635826a50653f8645c969f56e4aa175181c78d77ba18b",
    "stable.ask:23823edb19916ae197e10ae5b6becd218427d8d8724195bb274f34ba1e0f876a",
]


@pytest.mark.parametrize("seed", ["0", "1", "4294967295", "random"])
def test_digests_are_the_same_in_every_process_and_python(seed: str) -> None:
    assert child_output(STABLE, PYTHONHASHSEED=seed).split() == DIGESTS


# Objects with their own mind.


class Keyed:
    def __init__(self, key: Any) -> None:
        self.key = key

    def __cache_key__(self) -> Any:
        if isinstance(self.key, BaseException):
            raise self.key
        return self.key


class KeyedToo(Keyed):
    pass


def test_cache_key_methods() -> None:
    assert same(Keyed(1), Keyed(1.0))
    assert not same(Keyed(1), Keyed(2))
    assert not same(Keyed(1), 1)
    assert not same(Keyed(1), KeyedToo(1))
    assert same_digest(Keyed({"a": [1]}), Keyed({"a": [1]}))
    # On the class itself it is a method like any other; the class is no Keyed.
    assert not same(Keyed, Keyed(1))
    with pytest.raises(TypeError, match=r"parts\[0\]: cannot make a cache key from .* type type"):
        cache_key(Keyed)
    boom = ValueError("from the object")
    with pytest.raises(ValueError, match="from the object") as caught:
        cache_key([Keyed(boom)])
    assert caught.value is boom
    with pytest.raises(TypeError, match=r"parts\[0\]\.__cache_key__\(\)\[1\]: cannot make"):
        cache_key(Keyed((1, object())))


def test_a_cache_key_method_that_never_ends() -> None:
    class Endless:
        def __cache_key__(self) -> Any:
            return self

    with pytest.raises(ValueError, match="contains itself") as caught:
        cache_key(Endless())
    assert len(str(caught.value)) < 300


def test_encoding_inside_encoding() -> None:
    class Nested:
        def __cache_key__(self) -> Any:
            return cache_key("inner", [1, 2]), cache_key({"a": self.__class__.__name__})

    assert same_digest([Nested(), "after"], [Nested(), "after"])


def test_an_index_that_is_no_int() -> None:
    class Liar:
        def __index__(self) -> Any:
            return "five"  # noqa: PLE0305

        def __hash__(self) -> int:
            return 5

    numbers.Integral.register(Liar)
    with pytest.raises(TypeError, match="__index__ returned non-int"):
        cache_key(Liar())


class Unhashable:
    __hash__ = None  # type: ignore[assignment]


THREE_WAYS = (
    "choose the key yourself with key=, leave the argument out with ignore=, "
    "or give its class a __cache_key__() method"
)


@pytest.mark.parametrize("make", [object, Unhashable, lambda: lambda: 0, threading.Lock])
def test_what_has_no_key_is_named_by_its_path(make: Any) -> None:
    value = make()
    request = [{"role": "user"}, {"role": "user"}, {"role": "user", "image": value}]
    with pytest.raises(TypeError) as caught:
        cache_key(messages=request)
    assert str(caught.value).startswith("messages[2].image: cannot make a cache key from an object")
    assert str(caught.value).endswith(THREE_WAYS)


def test_the_path_in_a_call() -> None:
    @cached
    def ask(messages: Any, **options: Any) -> None: ...

    bad = Unhashable()
    for call, path in [
        (lambda: ask([0, 0, {"image": bad}]), "messages[2].image"),
        (lambda: ask(1, extra={"not a name": bad}), "options.extra['not a name']"),
        (lambda: ask((bad,)), "messages[0]"),
        (lambda: ask({1: bad}), "messages[1]"),
        (lambda: ask(Plain(a=[bad])), "messages.a[0]"),
        (lambda: ask(Point(0, bad)), "messages[1]"),
        (lambda: ask(Keyed(bad)), "messages.__cache_key__()"),
    ]:
        with pytest.raises(TypeError) as caught:
            call()
        text = str(caught.value)
        assert text.startswith(path + ": cannot make a cache key from"), text
        assert text.endswith(THREE_WAYS)
    with pytest.raises(TypeError, match=r"^key: cannot make a cache key"):
        Cache(1)[Unhashable()] = 1


def test_the_three_ways_out() -> None:
    bad = Unhashable()
    chosen = cached(key=lambda client, x: x)(lambda client, x: object())
    assert chosen(bad, 1) is chosen(Unhashable(), 1)
    left_out = cached(ignore=("client",))(lambda client, x: object())
    assert left_out(bad, 1) is left_out(Unhashable(), 1)
    own = cached(lambda client, x: object())
    assert own(Keyed(5), 1) is own(Keyed(5), 1)


def test_a_failing_hash_or_equality_goes_through_unchanged() -> None:
    class Failing:
        def __init__(self, hashes: bool) -> None:
            self.hashes = hashes

        def __hash__(self) -> int:
            if not self.hashes:
                raise ZeroDivisionError("hash")
            return 1

        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError("eq")

    cache: Cache[Any, int] = Cache(10)
    with pytest.raises(ZeroDivisionError, match="hash"):
        cache[Failing(False)] = 1
    one = Failing(True)
    cache[one] = 1
    assert cache[one] == 1  # identity comes first, as in a dict
    with pytest.raises(ZeroDivisionError, match="eq"):
        cache[Failing(True)] = 2
    assert len(cache) == 1


# Hostile structures.


def test_cycles_and_depth() -> None:
    loop: list[Any] = []
    loop.append(loop)
    dict_loop: dict[str, Any] = {}
    dict_loop["self"] = dict_loop
    pair = Point([], 1)
    pair.x.append(pair)
    plain = Plain(None)
    plain.a = plain
    for cycle in (loop, dict_loop, pair, plain):
        with pytest.raises(ValueError, match="it contains itself") as caught:
            cache_key(cycle)
        assert str(caught.value).startswith("parts[0]")
        assert "…" in str(caught.value)
        assert len(str(caught.value)) < 250
    deep: Any = 0
    for _ in range(200):
        deep = [deep]
    with pytest.raises(ValueError, match=r"nested too deeply \(the limit is 128 levels\)"):
        cache_key(deep)
    # A value that occurs twice is no cycle.
    twice = [1]
    assert same([twice, twice], [[1], [1]])
    fine: Any = 0
    for _ in range(120):
        fine = {"k": [fine]} if isinstance(fine, int) else [fine]
    assert same_digest(fine, fine)


def test_the_deepest_allowed_structure_on_a_small_stack() -> None:
    code = """
    import threading
    from ferrogate import cache_key
    deep = 0
    for n in range(63):
        deep = {"k": [deep], "l": 1}
    def run():
        out.append(cache_key(deep))
    out = []
    threading.stack_size(256 * 1024)
    thread = threading.Thread(target=run)
    thread.start(); thread.join()
    print(len(out[0]))
    """
    assert child_output(code) == "64\n"


@pytest.mark.parametrize("count", [3, 40])
def test_containers_that_change_while_they_are_read(count: int) -> None:
    class Meddler:
        def __init__(self, action: Any) -> None:
            self.action = action

        def __cache_key__(self) -> int:
            self.action()
            return 1

    items: list[Any] = [*range(count)]
    items[0] = Meddler(items.pop)
    with pytest.raises(RuntimeError, match="list changed"):
        cache_key(items)

    table: dict[Any, Any] = dict.fromkeys(range(count), 0)
    table[0] = Meddler(lambda: table.__setitem__("new", 1))
    with pytest.raises(RuntimeError, match="dict changed"):
        cache_key(table)

    # The same size again, but not the same items.
    swap: dict[Any, Any] = dict.fromkeys(range(count), 0)

    def exchange() -> None:
        size = len(swap)
        swap.clear()
        swap.update(dict.fromkeys(range(100, 100 + size), 0))

    swap[count - 1] = Meddler(exchange)
    try:
        cache_key(swap)
    except RuntimeError as error:
        assert "dict changed" in str(error)  # noqa: PT017

    # A small dict of text keys is read as it was.
    small: dict[str, Any] = {"a": 0, "b": 2}
    small["a"] = Meddler(small.clear)
    assert cache_key(small) == cache_key({"a": Meddler(int), "b": 2})

    group = {Meddler(lambda: group.add(object()))} | set(range(count))
    with pytest.raises(RuntimeError, match=r"[sS]et changed"):
        cache_key(group)


def test_keys_are_made_in_many_threads_at_once() -> None:
    value = {"messages": [{"role": "user", "content": "x" * 500}] * 20, "t": {1, 2, 3}}
    expected = cache_key(value)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(200):
            got = cache_key(value)
            if got != expected:
                wrong.append(got)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_interned_keys_leave_with_their_entries() -> None:
    class Opaque:
        def __init__(self, n: int) -> None:
            self.n = n

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Opaque) and self.n == other.n

        def __hash__(self) -> int:
            return self.n % 3

    cache: Cache[Any, int] = Cache(50)
    alive = weakref.WeakSet()  # type: ignore[var-annotated]
    for n in range(500):
        key = Opaque(n)
        alive.add(key)
        cache[key] = n
        cache[(key, [n])] = n
        assert cache[Opaque(n)] == n
        assert cache.get(Opaque(n + 1)) is None
    del key
    gc.collect()
    assert len(cache) == 50
    assert len(alive) == 25
    cache.clear()
    gc.collect()
    assert not alive
