"""A child's program: a cache, and user code of every kind that it calls, under load.

``python callbacks.py WHAT KINDS THREADS ROUNDS SEED``: user code of the given kinds
(comma-separated, or ``all``) reenters the cache, collects garbage, or sleeps
(and so drops the GIL). Says how often each kind was called.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import random
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

from ferrogate import Cache, cached

KINDS = ("eq", "hash", "del", "weigher", "listener", "loader", "key", "cache_key")
ROOM = 24

local = threading.local()
called: collections.Counter[str] = collections.Counter()
told: list[str] = []
living: weakref.WeakSet[Value] = weakref.WeakSet()


def act(kind: str) -> None:
    """What user code of ``kind`` does, once per depth."""
    if kind not in KINDS_NOW:
        return
    called[kind] += 1
    if getattr(local, "inside", False):
        return
    local.inside = True
    try:
        if WHAT == "reenter":
            use(random.randrange(60))
        elif WHAT == "collect":
            gc.collect()
        else:
            time.sleep(0.0002)
    finally:
        local.inside = False


class Key:
    """An opaque key that Python compares."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __hash__(self) -> int:
        act("hash")
        return self.n % 7

    def __eq__(self, other: object) -> bool:
        act("eq")
        return isinstance(other, Key) and self.n == other.n


class Named:
    """A key with a canonical form of its own."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __cache_key__(self) -> int:
        act("cache_key")
        return self.n


class Value:
    """A value that is told when it goes, and that is in a cycle with the cache."""

    def __init__(self) -> None:
        self.owner = [cache]
        living.add(self)

    def __del__(self) -> None:
        act("del")


def weigh(key: object, value: object) -> int:
    act("weigher")
    return 1


def listen(key: object, value: object, cause: str) -> None:
    told.append(cause)
    act("listener")


def load() -> Value:
    act("loader")
    return Value()


async def aload() -> Value:
    act("loader")
    await asyncio.sleep(0)
    return Value()


def key_of(x: object) -> object:
    act("key")
    return x


cache: Cache[Any, Any] = Cache(ROOM, max_bytes=ROOM, weigher=weigh, on_evict=listen)


@cached(cache=cache, key=key_of)
def square(x: Any) -> Value:
    act("loader")
    return Value()


@cached(cache=cache, key=key_of)
async def asquare(x: Any) -> Value:
    act("loader")
    return Value()


async def awaited(n: int) -> None:
    await cache.get_or_set(Key(n), aload)
    await asquare(Named(n))


@contextlib.contextmanager
def unless_recursive() -> Iterator[None]:
    """A load under way in this very thread, or in one that waits for this one, is refused."""
    try:
        yield
    except RuntimeError as error:
        if "load" not in str(error):
            raise


def use(n: int) -> None:
    """One operation, any of them."""
    key: Any = (Key(n), Named(n), n)[n % 3]
    match random.randrange(13):
        case 0 | 1:
            cache[key] = Value()
        case 2:
            cache.set(key, Value(), ttl=random.choice((1e-6, 60)), tags=["t", str(n)])
        case 3:
            cache.get(key)
        case 4:
            cache.pop(key, None)
        case 5:
            key in cache  # noqa: B015
            cache.explain(key)
        case 6:
            list(cache)
            len(cache)
        case 7:
            cache.invalidate_tag(str(n))
            cache.cleanup()
        case 8:
            if n < 4:
                cache.clear()
            cache.get_stats()
        case 9:
            with unless_recursive():
                cache.get_or_set_sync(key, load)
        case 10:
            with unless_recursive():
                square(key)
        case 11:
            square.cache_invalidate(key)
        case _:
            cache.delete(key)


def work(seed: int) -> None:
    turn = random.Random(seed + SEED)
    for n in range(ROUNDS):
        use(turn.randrange(60))
        if n % 20 == 0:
            asyncio.run(awaited(turn.randrange(60)))
        if WHAT != "reenter":
            assert len(list(cache)) <= ROOM


WHAT, kinds, threads, ROUNDS, SEED = *sys.argv[1:3], *map(int, sys.argv[3:])
random.seed(SEED)
KINDS_NOW = KINDS if kinds == "all" else tuple(kinds.split(","))

failures: list[object] = []
threading.excepthook = failures.append
sys.unraisablehook = failures.append
workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
gc.freeze()
if WHAT == "collect":
    gc.set_threshold(1)
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
gc.set_threshold(700)
gc.collect()
assert not failures, failures

stats = cache.get_stats()
assert stats["size"] == stats["bytes"] <= ROOM, stats
assert stats["loading"] == 0, stats
assert stats["insertions"] == len(told) + stats["size"], (stats, collections.Counter(told))
assert stats["evictions"] == told.count("evicted"), stats
assert stats["updates"] == told.count("replaced"), stats
KINDS_NOW, kinds = (), str(KINDS_NOW)
assert len(living) <= stats["size"], (len(living), stats)
assert {type(value) for value in cache.values()} <= {Value}
cache.clear()
gc.collect()
assert len(living) == 0, len(living)
print(*sorted(called))
