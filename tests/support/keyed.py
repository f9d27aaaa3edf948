"""Values that are equal, or only look so, and whether a cache takes two for one key."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import numbers
import zoneinfo
from typing import Any, ClassVar, NamedTuple

import pydantic

from ferrogate import Cache, cache_key

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


class Tags(pydantic.RootModel[list[str]]):
    pass


class OtherTags(pydantic.RootModel[list[str]]):
    pass


class Tagged(pydantic.BaseModel):
    tags: Tags


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


class Ratio(F):
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
