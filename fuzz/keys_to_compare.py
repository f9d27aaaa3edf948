"""The objects that the target `key` makes, as far as they are no built-ins."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import pathlib
import types
from collections import OrderedDict
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID

__all__ = ["BYTES", "DICTS", "MEMBERS", "Custom", "Decimal", "Fraction", "Frozen", "Plain"]

START = dt.datetime(1, 1, 1)
BYTES = [bytes, bytearray, memoryview]
DICTS = [dict, OrderedDict, types.MappingProxyType]


class Whole(int):
    """Equal to an int."""


class Text(str):
    """Equal to a str."""

    __slots__ = ()


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Other(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    A = "a"


MEMBERS = [Colour.RED, Colour.GREEN, Other.RED, Number.ONE, Word.A]


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Any
    b: Any


@dataclasses.dataclass
class Plain:
    a: Any
    b: Any


class Custom:
    """Has a key of its own."""

    def __init__(self, key: Any) -> None:
        self.key = key

    def __cache_key__(self) -> Any:
        return self.key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Custom) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def whole(digits: str, subclass: bool) -> int:
    number = int(digits, 16)
    return Whole(number) if subclass else number


def text(utf_32: bytes, subclass: bool) -> str:
    letters = utf_32.decode("utf-32-le", "surrogatepass")
    return Text(letters) if subclass else letters


def zone(minutes: int | None) -> dt.timezone | None:
    return None if minutes is None else dt.timezone(timedelta(minutes=minutes))


def day(ordinal: int) -> dt.date:
    return dt.date.fromordinal(ordinal)


def moment(micros: int, minutes: int | None) -> dt.datetime:
    return (START + timedelta(microseconds=micros)).replace(tzinfo=zone(minutes))


def time_of_day(micros: int, minutes: int | None) -> dt.time:
    return (START + timedelta(microseconds=micros)).time().replace(tzinfo=zone(minutes))


def uuid(octets: bytes) -> UUID:
    return UUID(bytes=octets)


def path(parts: str, windows: bool) -> pathlib.PurePath:
    return (pathlib.PureWindowsPath if windows else pathlib.PurePosixPath)(parts)
