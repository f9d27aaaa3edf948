"""Structures that are small in memory and huge when written out, and small stacks."""

from __future__ import annotations

import time
from typing import Any

import pytest
from child import run_well

from ferrogate import Cache, cache_key, cached

MIB = 1 << 20
TOO_LARGE = (
    "cannot make a cache key: its canonical form takes more than 64 MiB; choose the key "
    "yourself with key=, leave the argument out with ignore=, or give its class a "
    "__cache_key__() method"
)


def doubled(make: Any, levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = make(value)
    return value


@pytest.mark.parametrize(
    "make",
    [
        lambda v: [v, v],
        lambda v: (v, v),
        lambda v: {"a": v, "b": v},
        lambda v: {1: v, 2: v},
        lambda v: {"a": (v,), "b": [v]},
        lambda v: frozenset({(1, v), (2, v)}),
    ],
)
def test_a_structure_that_holds_another_twice_at_every_level(make: Any) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match="64 MiB") as caught:
        cache_key(doubled(make, 40))
    assert time.monotonic() - start < 20  # on any machine; unbounded it is hours
    assert str(caught.value).startswith("parts[0]")
    assert str(caught.value).endswith("…: " + TOO_LARGE)
    # Far from the bound all is well.
    assert cache_key(doubled(make, 10)) == cache_key(doubled(make, 10))


@pytest.mark.parametrize(
    "value",
    [
        "x" * 65 * MIB,
        "é" * 33 * MIB,
        "\ud800" * 22 * MIB,
        b"x" * 65 * MIB,
        bytearray(65 * MIB),
        memoryview(bytes(65 * MIB)),
        1 << (8 * 65 * MIB),
        ["x" * 33 * MIB] * 2,
        [1] * 8_000_000,
        (1,) * 8_000_000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_large_value(value: Any) -> None:
    with pytest.raises(ValueError, match="64 MiB") as caught:
        cache_key({"text": value})
    assert str(caught.value).startswith("parts[0].text")
    assert str(caught.value).endswith(": " + TOO_LARGE)
    with pytest.raises(ValueError, match=r"^key.* 64 MiB"):
        Cache[Any, int](10)[value] = 1


def test_a_large_argument_is_named() -> None:
    @cached
    def ask(messages: Any, **options: Any) -> None: ...

    with pytest.raises(ValueError, match=r"^options\.extra\[1\]: .* 64 MiB"):
        ask([], extra=[0, "x" * 65 * MIB])
    ask("x" * 60 * MIB)


def test_ctrl_c_during_a_long_walk() -> None:
    code = """
    import decimal, signal, time
    from ferrogate import cache_key
    cache_key(decimal.Decimal("0.1"))
    many = [decimal.Decimal("0.1")] * 5_000_000
    def stop(*_):
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    start = time.monotonic()
    try:
        cache_key(many)
    except KeyboardInterrupt:
        print(time.monotonic() - start < 1)
    """
    assert run_well(code) == "True\n"


SMALL_STACKS = """
import collections, dataclasses, threading, types, typing
import pydantic
from ferrogate import Cache, cache_key

@dataclasses.dataclass
class Data:
    x: object

class Model(pydantic.BaseModel):
    x: typing.Any

class Own:
    def __init__(self, key):
        self.key = key
    def __cache_key__(self):
        return self.key

class Row(tuple):
    pass

makes = [
    lambda v: [v],
    lambda v: (v,),
    lambda v: {"k": v, "l": 1},
    lambda v: {1: v},
    lambda v: frozenset([v]),
    lambda v: Row([v]),
    lambda v: collections.OrderedDict(k=v),
    lambda v: types.MappingProxyType({1: v}),
    lambda v: Model.model_construct(x=v),
    Data,
    Own,
]
for kib in (32, 64, 128, 256, 1024):
    shallowest, deepest = 1000, 0
    for make in makes:
        value, reached = 0, 0
        def run():
            global reached
            for level in range(1, 140):
                try:
                    cache_key(value)
                except ValueError as error:
                    assert "nested too deeply (the limit" in str(error), error
                    assert (kib < 1024) or "(the limit is 128 levels)" in str(error), error
                    break
                reached = level
                nest()
        def nest():
            global value
            value = make(value)
        threading.stack_size(kib * 1024)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        shallowest = min(shallowest, reached)
    print(kib, shallowest)
"""


def test_no_structure_is_too_deep_for_a_small_stack() -> None:
    reached = dict(map(int, line.split()) for line in run_well(SMALL_STACKS).splitlines())
    # A subclass and what it is counts as two levels.
    assert reached[1024] == reached[256] == 64
    assert reached[128] >= 40
    assert reached[64] >= 8
