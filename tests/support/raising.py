"""A child's program: user code raises at random, and a model says what the cache then holds."""

from __future__ import annotations

import collections
import random
import sys
from collections.abc import Callable
from typing import Any

from ferrogate import Cache


class Mine(Exception):
    """Of the user."""


class Ending(BaseException):
    """What ends a thread, such as KeyboardInterrupt."""


armed = ""
failure: BaseException
turn = random.Random(int(sys.argv[2]))
raised: collections.Counter[str] = collections.Counter()
ERRORS = (
    Mine,
    Ending,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    StopIteration,
)


def act(kind: str) -> None:
    if armed == kind:
        raised[kind] += 1
        raise failure


class Key:
    def __init__(self, n: int) -> None:
        self.n = n

    def __hash__(self) -> int:
        act("hash")
        return self.n % 4

    def __eq__(self, other: object) -> bool:
        act("eq")
        return isinstance(other, Key) and self.n == other.n


def weigh(key: object, value: object) -> int:
    act("weigher")
    return 1


def load(value: int) -> int:
    act("loader")
    return value


ROOM = 8
cache: Cache[Any, int] = Cache(ROOM, max_bytes=ROOM, weigher=weigh)
model: collections.OrderedDict[int, int] = collections.OrderedDict()


def store(n: int, value: int) -> None:
    model.pop(n, None)
    while len(model) >= ROOM:
        model.popitem(last=False)
    model[n] = value


def look_up(n: int) -> int | None:
    if n in model:
        model.move_to_end(n)
    return model.get(n)


def loaded(n: int, value: int) -> int:
    found = look_up(n)
    if found is None:
        store(n, value)
        return value
    return found


#: What is done to the cache, and the same done to the model.
OPERATIONS: list[tuple[Callable[[Any, int], object], Callable[[int, int], object]]] = [
    (cache.__setitem__, store),
    (lambda key, value: cache.set(key, value, 60, ["tag"]), store),
    (lambda key, value: cache.get(key), lambda n, value: look_up(n)),
    (lambda key, value: key in cache, lambda n, value: n in model),
    (lambda key, value: cache.pop(key, None), lambda n, value: model.pop(n, None)),
    (lambda key, value: cache.delete(key), lambda n, value: model.pop(n, None) is not None),
    (lambda key, value: cache.explain(key)["present"], lambda n, value: n in model),
    (lambda key, value: cache.get_or_set_sync(key, lambda: load(value)), loaded),
    (cache.setdefault, loaded),
    (lambda key, value: cache.update({1: value}) or cache.pop(1), lambda n, value: one(value)),
]


def one(value: int) -> int:
    store(-1, value)
    return model.pop(-1)


for _ in range(int(sys.argv[1])):
    do, expect = turn.choice(OPERATIONS)
    n, value = turn.randrange(16), turn.randrange(1000)
    failure = turn.choice(ERRORS)("mine")
    key: Any = Key(n)
    if turn.randrange(3) == 0:
        key = ("in", [Key(n)])
        n += 100
    armed = turn.choice(("eq", "hash", "weigher", "loader", "", ""))
    try:
        answer = do(key, value)
    except BaseException as error:
        armed = ""
        if error is not failure or error.__cause__ is not None:
            raise AssertionError(f"raised {failure!r}, came out as {error!r}") from error
    else:
        armed = ""
        assert answer == expect(n, value), (answer, n)
    keys = [key.n if isinstance(key, Key) else key[1][0].n + 100 for key in cache]
    assert keys == list(model), (keys, list(model))
    assert list(cache.values()) == list(model.values())
    stats = cache.get_stats()
    assert stats["size"] == stats["bytes"] == len(model), stats
    assert stats["loading"] == 0, stats
print(*sorted(kind for kind, count in raised.items() if count > 5))
