"""Values that once had the key of another, or none."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import os
import pathlib
import subprocess
import sys
import zoneinfo
from typing import Any

from child import run_well
from keyed import same, same_digest

from ferrogate import Cache, cached

PARIS = zoneinfo.ZoneInfo("Europe/Paris")


def test_a_time_that_its_zone_skips() -> None:
    # A time that a zone skips is none of the others, though it has the instant of one; and those
    # that Python calls equal to nothing in another zone equal what has their instant.
    skipped = dt.datetime(2024, 3, 31, 2, 30, tzinfo=PARIS)
    for other in (skipped.replace(hour=3), skipped.replace(hour=1, fold=1)):
        assert skipped != other
        assert not same(skipped, other)
    assert not same(skipped.replace(fold=1), dt.datetime(2024, 3, 31, 1, 30, tzinfo=PARIS))
    assert not same(skipped, skipped.astimezone(dt.UTC))
    assert same(skipped, dt.datetime(2024, 3, 31, 2, 30, tzinfo=PARIS))
    assert same(dt.datetime(2024, 3, 31, 3, 30, tzinfo=PARIS), skipped.astimezone(dt.UTC))


def test_an_equality_that_makes_keys_itself() -> None:
    cache: Cache[Any, int] = Cache(100)

    class Plain:
        pass

    class Chatty:
        def __init__(self, number: int) -> None:
            self.number = number

        def __hash__(self) -> int:
            return 7

        def __eq__(self, other: object) -> bool:
            cache[Plain()] = 0
            return isinstance(other, Chatty) and other.number == self.number

    cache[Chatty(1)] = 1
    cache[Chatty(2)] = 2
    assert (cache[Chatty(1)], cache[Chatty(2)]) == (1, 2)


OWN_EQUALITY = """
import dataclasses
from ferrogate import Cache

@dataclasses.dataclass(eq=False)
class Parity:
    n: int
    def __eq__(self, other):
        return isinstance(other, Parity) and self.n % 2 == other.n % 2
    def __hash__(self):
        return self.n % 2

@dataclasses.dataclass(frozen=True, slots=True)
class Plain:
    n: int

cache = Cache(10)
cache[Parity(1)] = cache[Plain(1)] = "one"
print(Parity(3) in cache, Parity(2) in cache, Plain(1) in cache, Plain(3) in cache)
"""


def test_a_dataclass_with_an_equality_of_its_own_that_has_no_file() -> None:
    assert run_well(OWN_EQUALITY).split() == ["True", "False", "True", "False"]


def test_an_enum_with_an_equality_of_its_own_is_not_its_value() -> None:
    class Exact(str, enum.Enum):  # noqa: UP042 - its equality is the point
        A = "a"

        def __eq__(self, other: object) -> bool:
            return self is other

        def __ne__(self, other: object) -> bool:
            return self is not other

        def __hash__(self) -> int:
            return 7

    class Usual(enum.StrEnum):
        A = "a"

    assert Exact.A != "a"
    assert not same(Exact.A, "a")
    assert same(Exact.A, Exact.A)
    assert same(Usual.A, "a")


MAIN = """
import dataclasses, sys
from ferrogate import cache_key

@dataclasses.dataclass
class Point:
    x: int

if __name__ == "__main__":
    import package_of_mine.points as imported
    print(cache_key(Point(1)) == cache_key(imported.Point(1)))
"""


def test_a_class_is_the_same_in_a_module_that_runs(tmp_path: pathlib.Path) -> None:
    package = tmp_path / "package_of_mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "points.py").write_text(MAIN)
    for how, same_key in (
        (["-m", "package_of_mine.points"], "True"),
        ([package / "points.py"], "False"),
    ):
        done = subprocess.run(
            [sys.executable, *how],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.stdout.strip(), done.stderr) == (same_key, "")


def test_a_class_of_a_script_is_no_builtin() -> None:
    code = """
import dataclasses
from ferrogate import cache_key
@dataclasses.dataclass
class Point:
    x: int
here = cache_key(Point(1))
Point.__module__ = "builtins"
print(here != cache_key(Point(1)))
"""
    assert run_well(code) == "True\n"


def test_a_class_whose_module_is_no_text() -> None:
    for module in (None, 5, [], "no.such.module"):
        made = dataclasses.make_dataclass("Made", ["x"])
        made.__module__ = module  # type: ignore[assignment]
        assert same(made(1), made(1))
        assert not same(made(1), made(2))
        assert same_digest(made(1), made(1))


def test_no_text_is_the_key_of_a_function() -> None:
    shared: Cache[Any, Any] = Cache(100)

    @cached(cache=shared)
    def load() -> str:
        return "loaded"

    module, name = load.__module__, load.__qualname__
    for number in range(1_000):
        for text in (
            f"{module}.{name}",
            f"{module}.{name}#{number:x}",
            f"{module}.{name}#{number}",
        ):
            shared.setdefault(text, "of somebody else")
    assert load() == "loaded"
