"""Order, length, and the same digest in every process and Python."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from child import run_well
from keyed import (
    Text,
    same,
    same_digest,
)

from ferrogate import Cache, cache_key

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
    "e3db485dbfc981f28c4428bd1727c5cf435770812165039092eb6a19e88bbd4c",
    "3d51a05551fa2559442635826a50653f8645c969f56e4aa175181c78d77ba18b",
    "stable.ask:23823edb19916ae197e10ae5b6becd218427d8d8724195bb274f34ba1e0f876a",
]


@pytest.mark.parametrize("seed", ["0", "1", "4294967295", "random"])
def test_digests_are_the_same_in_every_process_and_python(seed: str) -> None:
    assert run_well(STABLE, env={"PYTHONHASHSEED": seed}).split() == DIGESTS
