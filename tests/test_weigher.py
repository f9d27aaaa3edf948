"""The deep size that `max_bytes` goes by when nobody gives a weigher."""

from __future__ import annotations

import collections
import dataclasses
import mmap
import types
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import pydantic
import pytest

from ferrogate import Cache

TEXT = "x" * 1_000_000


@dataclasses.dataclass(slots=True)
class Slotted:
    body: Any


@dataclasses.dataclass(slots=True)
class SlottedToo(Slotted):
    more: Any = None


class Mangled:
    __slots__ = ("__body", "unset")

    def __init__(self, body: object) -> None:
        self.__body = body


class Open(pydantic.BaseModel, extra="allow"):
    pass


class Private(pydantic.BaseModel):
    _body: Any = pydantic.PrivateAttr(None)

    def __init__(self, body: object) -> None:
        super().__init__()
        self._body = body


class Named(str):
    """Text with attributes."""


def named(body: object) -> Named:
    text = Named("short")
    text.body = body  # type: ignore[attr-defined]
    return text


class Dict(dict):  # type: ignore[type-arg]
    __slots__ = ("body",)


def a_dict_with_a_slot(body: object) -> Dict:
    own = Dict()
    own.body = body
    return own


def weight_of(value: object) -> int:
    cache: Cache[str, object] = Cache(10, max_bytes=10**12)
    cache["k"] = value
    weight: int = cache.get_stats()["bytes"]
    return weight


HOLDERS: list[Any] = [
    Slotted,
    lambda body: SlottedToo(None, body),
    lambda body: SlottedToo(body, None),
    Mangled,
    lambda body: Open(body=body),
    Private,
    named,
    a_dict_with_a_slot,
    lambda body: types.SimpleNamespace(body=body),
    lambda body: collections.deque([body]),
    lambda body: collections.UserDict(body=body),
    lambda body: types.MappingProxyType({"body": body}),
    lambda body: types.MappingProxyType(collections.ChainMap({"body": body})),
    ValueError,
    lambda body: memoryview(body.encode()),
    lambda body: memoryview(bytearray(body, "ascii"))[:10],
    lambda body: memoryview(mmap.mmap(-1, len(body))),
    lambda body: np.zeros(len(body), np.uint8),
    lambda body: np.zeros(len(body), np.uint8)[:10],
    lambda body: np.frombuffer(body.encode(), np.uint8),
    lambda body: np.frombuffer(mmap.mmap(-1, len(body)), np.uint8),
    lambda body: [Slotted({"deep": (Slotted(body),)})],
]


@pytest.mark.parametrize("hold", HOLDERS)
def test_what_an_object_holds_is_part_of_its_weight(hold: Any) -> None:
    assert len(TEXT) < weight_of(hold(TEXT)) < len(TEXT) + 10_000


def test_the_bound_holds_for_slotted_values() -> None:
    cache: Cache[int, Slotted] = Cache(1000, max_bytes=1_000_000)
    for n in range(50):
        cache[n] = Slotted(str(n % 10) * 300_000)
    assert list(cache) == [47, 48, 49]


def test_shared_memory_counts_once() -> None:
    text = "y" * 100_000
    data = np.zeros(100_000, np.uint8)
    raw = bytes(100_000)
    shared = [Slotted(text), Slotted(text), data, data[1:], data[2:], raw, memoryview(raw)]
    assert 300_000 < weight_of(shared) < 305_000


class Hostile:
    """Raises wherever it is touched."""

    __slots__ = ("body",)

    def __getattribute__(self, name: str) -> NoReturn:
        raise RuntimeError(name)

    @property
    def __dict__(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("__dict__")

    @property
    def __class__(self) -> NoReturn:
        raise RuntimeError("__class__")

    def __sizeof__(self) -> NoReturn:
        raise RuntimeError("__sizeof__")

    def __eq__(self, other: object) -> NoReturn:
        raise RuntimeError("__eq__")

    __hash__ = None  # type: ignore[assignment]


class Loud(list):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("__iter__")


class LoudDict(dict):  # type: ignore[type-arg]
    def keys(self) -> NoReturn:
        raise RuntimeError("keys")

    values = keys


def test_no_code_of_the_objects_runs() -> None:
    hostile = Hostile()
    object.__setattr__(hostile, "body", TEXT)
    released = memoryview(b"ab")
    released.release()
    for value in (hostile, Loud([TEXT]), LoudDict(body=TEXT)):
        assert len(TEXT) < weight_of(value) < len(TEXT) + 1_000
    assert weight_of(released) < 1_000


def test_functions_and_classes_do_not_lead_to_their_modules() -> None:
    assert weight_of([weight_of, Slotted, types, pytest.raises]) < 5_000


def test_the_work_is_bounded() -> None:
    same: Any = [None] * 100_000
    for _ in range(30):
        same = [same] * 100_000
    # Less than it is, and at once.
    assert 800_000 < weight_of(same) < 30 * 900_000
    assert weight_of(list(range(1_000, 1_000_000))) < 9_000_000
