"""What the codecs must make of any bytes: the model that the fuzz targets compare with.

Each function gives the `repr` of the value, which tells `1` from `1.0` and `True`,
`-0.0` from `0.0` and the orders of dicts apart; or None where the codec has to refuse.
"""

from __future__ import annotations

import json as standard
import math
import struct
import sys
from typing import Any

MAX_DEPTH = 200

# What lies below the limit here must not be refused for the interpreter's sake.
sys.setrecursionlimit(max(sys.getrecursionlimit(), 20 * MAX_DEPTH))


class Refused(ValueError):
    """The codec has to refuse it."""


def json(body: bytes) -> str | None:
    """Python's own `json`, less what is no JSON (RFC 8259) or no value that can come back."""
    try:
        value = standard.loads(
            body.decode(), parse_constant=refuse, parse_float=finite, object_pairs_hook=Pairs
        )
        return repr(plain(value, 0))
    except (ValueError, RecursionError):
        return None


class Pairs(list[tuple[str, Any]]):
    """A JSON object, with what a later value of the same name hides."""


def refuse(what: str) -> Any:
    """NaN and Infinity are Python's own."""
    raise Refused(what)


def finite(token: str) -> float:
    """A number that overflows would come back as another one."""
    if not math.isfinite(number := float(token)):
        raise Refused(token)
    return number


def plain(value: Any, depth: int) -> Any:
    """Not too deep, all text Unicode text, objects as dicts."""
    if isinstance(value, str):
        value.encode()  # a lone surrogate is a ValueError
    elif isinstance(value, list):
        if depth >= MAX_DEPTH:
            raise Refused("too deep")
        if isinstance(value, Pairs):
            return {plain(name, depth): plain(one, depth + 1) for name, one in value}
        return [plain(item, depth + 1) for item in value]
    return value


def msgpack(body: bytes) -> str | None:
    """MessagePack's specification, less extensions."""
    try:
        value, at = read(body, 0, 0)
    except (ValueError, TypeError, RecursionError):
        return None  # TypeError: a list or a dict as a key
    return repr(value) if at == len(body) else None


#: First byte: the `struct` format of what follows.
NUMBERS = {
    0xCA: ">f", 0xCB: ">d",
    0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
#: First byte: what follows its length, and how many bytes that has.
SIZED = {
    0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4),
    0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4),
    0xDC: ("list", 2), 0xDD: ("list", 4),
    0xDE: ("dict", 2), 0xDF: ("dict", 4),
}  # fmt: skip


def taken(body: bytes, at: int, count: int) -> bytes:
    if at + count > len(body):
        raise Refused("ends too early")
    return body[at : at + count]


def read(body: bytes, at: int, depth: int) -> tuple[Any, int]:
    """The value that begins there, and where it ends."""
    first = taken(body, at, 1)[0]
    at += 1
    if first < 0x80:
        return first, at
    if first >= 0xE0:
        return first - 0x100, at
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    if first in NUMBERS:
        size = struct.calcsize(NUMBERS[first])
        return struct.unpack(NUMBERS[first], taken(body, at, size))[0], at + size
    if first in SIZED:
        kind, width = SIZED[first]
        length = int.from_bytes(taken(body, at, width))
        at += width
    elif first < 0xC0:
        kind = "dict" if first < 0x90 else "list" if first < 0xA0 else "str"
        length = first & (0x1F if kind == "str" else 0x0F)
    else:
        raise Refused("an extension")
    if kind == "bytes":
        return taken(body, at, length), at + length
    if kind == "str":
        return taken(body, at, length).decode(), at + length
    if depth >= MAX_DEPTH:
        raise Refused("too deep")
    if kind == "list":
        items = []
        for _ in range(length):
            item, at = read(body, at, depth + 1)
            items.append(item)
        return items, at
    pairs: dict[Any, Any] = {}
    for _ in range(length):
        key, at = read(body, at, depth + 1)
        value, at = read(body, at, depth + 1)
        pairs[key] = value
    return pairs, at
