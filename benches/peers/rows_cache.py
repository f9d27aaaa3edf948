"""The cache rows: decorators on a hit, and the cache itself, TTL on wherever there is one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

from measure import Contender, Namespace, Row, Target

TTL = 3600
ENTRIES = 1000
# The same 100 string keys for everybody, all of them cached.
HITS = tuple(f"tenant-7:document:{n:05}" for n in range(100))
# Four times more than fits: in this order every insert is new and evicts one.
TURNOVER = tuple(f"tenant-7:document:{n:05}" for n in range(4 * ENTRIES))


def decorated(decorate: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Namespace:
    """A cached function that counts its calls: after the first round there are none."""
    calls: list[str] = []

    def load(key: str) -> str:
        calls.append(key)
        return key

    f = decorate(load)

    def verify() -> None:
        assert len(calls) == len(HITS), f"{len(calls)} loads for {len(HITS)} keys"
        assert f(HITS[0]) == HITS[0]

    return {"f": f, "verify": verify}


def decorated_async(decorate: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Namespace:
    """The same for a coroutine function."""
    calls: list[str] = []

    async def load(key: str) -> str:
        calls.append(key)
        return key

    f = decorate(load)

    def verify() -> None:
        assert len(calls) == len(HITS), f"{len(calls)} loads for {len(HITS)} keys"

    return {"f": f, "verify": verify}


def ferrogate_cached(*, wait: bool) -> Namespace:
    decorate = import_module("ferrogate").cached(max_size=ENTRIES, ttl=TTL)
    return decorated_async(decorate) if wait else decorated(decorate)


def cachebox_cached(*, wait: bool) -> Namespace:
    cachebox = import_module("cachebox")
    decorate = cachebox.cached(cachebox.TTLCache(ENTRIES, TTL))
    return decorated_async(decorate) if wait else decorated(decorate)


def moka_cached(*, wait: bool) -> Namespace:
    decorate = import_module("moka_py").cached(ENTRIES, ttl=TTL, policy="lru")
    return decorated_async(decorate) if wait else decorated(decorate)


def cachetools_cached() -> Namespace:
    cachetools = import_module("cachetools")
    threading = import_module("threading")
    return decorated(cachetools.cached(cachetools.TTLCache(ENTRIES, TTL), lock=threading.Lock()))


def async_lru_cached() -> Namespace:
    return decorated_async(import_module("async_lru").alru_cache(maxsize=ENTRIES, ttl=TTL))


def empty_coroutine() -> Namespace:
    async def empty(key: str) -> str:
        return key

    return {"f": empty}


def filled(cache: Any, get: Callable[[str], Any] | None = None, *, size: bool = True) -> Namespace:
    """A cache with the hit keys in it; `verify` sees that it still holds them."""
    set_item = cache.set if hasattr(cache, "set") else cache.__setitem__
    for key in HITS:
        set_item(key, key)
    read = get or cache.get

    def verify() -> None:
        assert read(HITS[0]) == HITS[0]
        if size:
            assert len(cache) <= ENTRIES, f"{len(cache)} entries in a cache of {ENTRIES}"

    return {"c": cache, "get": cache.get, "set": set_item, "verify": verify}


def turned_over(cache: Any, *, size: bool = True) -> Namespace:
    """A full cache; `verify` sees that the bound holds and the latest key is in it."""
    set_item = cache.set if hasattr(cache, "set") else cache.__setitem__
    for key in TURNOVER:
        set_item(key, key)

    def verify() -> None:
        assert cache.get(TURNOVER[-1]) == TURNOVER[-1]
        if size:
            assert len(cache) == ENTRIES, f"{len(cache)} entries in a cache of {ENTRIES}"

    return {"c": cache, "set": set_item, "verify": verify}


def our_cache(policy: str = "lru") -> Any:
    return import_module("ferrogate").Cache(ENTRIES, ttl=TTL, policy=policy)


def cachebox_cache() -> Any:
    return import_module("cachebox").TTLCache(ENTRIES, TTL)


def moka_cache() -> Any:
    return import_module("moka_py").Moka(ENTRIES, ttl=TTL, policy="lru")


def cachetools_cache() -> Any:
    return import_module("cachetools").TTLCache(ENTRIES, TTL)


def filled_to_the_brim(policy: str) -> Namespace:
    """A full cache; which entries are in it is up to the policy."""
    cache = our_cache(policy)
    for key in TURNOVER:
        cache[key] = key
    assert len(cache) == ENTRIES
    return {"set": cache.set}


CACHEBOX = "cachebox TTLCache"
FIFO = "evicts first in, first out"
NO_LOCK = "not safe for threads by itself"
LATE = "bound and order approximate"

LOOSE = functools.partial(filled, size=False)

ROWS = [
    Row(
        "@cached, sync hit, str key, TTL on",
        Target(at_most=1.5, says="≤ 1.5 x lru_cache"),
        [
            Contender(
                "functools.lru_cache",
                "f(key)",
                lambda: decorated(functools.lru_cache(ENTRIES)),
                note="no TTL",
            ),
            Contender("ferrogate", "f(key)", lambda: ferrogate_cached(wait=False), "ferrogate"),
            Contender("cachebox", "f(key)", lambda: cachebox_cached(wait=False), "cachebox"),
            Contender("moka-py", "f(key)", lambda: moka_cached(wait=False), "moka-py"),
            Contender("cachetools", "f(key)", cachetools_cached, "cachetools", "with a Lock"),
        ],
        HITS,
    ),
    Row(
        "@cached, awaiting a hit, str key, TTL on",
        Target(at_most=1.5, says="≤ 1.5 x an empty coroutine"),
        [
            Contender("an empty coroutine", "await f(key)", empty_coroutine),
            Contender(
                "ferrogate", "await f(key)", lambda: ferrogate_cached(wait=True), "ferrogate"
            ),
            Contender("cachebox", "await f(key)", lambda: cachebox_cached(wait=True), "cachebox"),
            Contender("moka-py", "await f(key)", lambda: moka_cached(wait=True), "moka-py"),
            Contender("async-lru", "await f(key)", async_lru_cached, "async-lru"),
        ],
        HITS,
    ),
    Row(
        "Cache.get, hit, TTL on",
        Target(at_most=1.0, says="≤ cachebox"),
        [
            Contender(CACHEBOX, "get(key)", lambda: filled(cachebox_cache()), "cachebox", FIFO),
            Contender("ferrogate", "get(key)", lambda: filled(our_cache()), "ferrogate"),
            Contender("moka-py", "get(key)", lambda: LOOSE(moka_cache()), "moka-py", LATE),
            Contender(
                "cachetools", "get(key)", lambda: filled(cachetools_cache()), "cachetools", NO_LOCK
            ),
        ],
        HITS,
    ),
    Row(
        "Cache.set, the key is there, TTL on",
        Target(at_most=1.0, says="≤ cachebox"),
        [
            Contender(CACHEBOX, "c[key] = key", lambda: filled(cachebox_cache()), "cachebox", FIFO),
            Contender("ferrogate", "set(key, key)", lambda: filled(our_cache()), "ferrogate"),
            Contender(
                "ferrogate, c[key] =", "c[key] = key", lambda: filled(our_cache()), "ferrogate"
            ),
            Contender("moka-py", "set(key, key)", lambda: LOOSE(moka_cache()), "moka-py", LATE),
            Contender(
                "cachetools",
                "c[key] = key",
                lambda: filled(cachetools_cache()),
                "cachetools",
                NO_LOCK,
            ),
        ],
        HITS,
    ),
    Row(
        "Cache insert + evict, a new key into a full cache, TTL on",
        Target(at_most=1.0, says="≤ cachebox"),
        [
            Contender(
                CACHEBOX, "c[key] = key", lambda: turned_over(cachebox_cache()), "cachebox", FIFO
            ),
            Contender("ferrogate", "set(key, key)", lambda: turned_over(our_cache()), "ferrogate"),
            Contender(
                "ferrogate, c[key] =", "c[key] = key", lambda: turned_over(our_cache()), "ferrogate"
            ),
            Contender(
                "moka-py",
                "set(key, key)",
                lambda: turned_over(moka_cache(), size=False),
                "moka-py",
                LATE,
            ),
            Contender(
                "cachetools",
                "c[key] = key",
                lambda: turned_over(cachetools_cache()),
                "cachetools",
                NO_LOCK,
            ),
        ],
        TURNOVER,
    ),
    *(
        Row(
            f'Cache.{name}, policy="adaptive", TTL on',
            Target(at_most=1.5, says="≤ 1.5 x lru"),
            [
                Contender('ferrogate, policy="lru"', work, functools.partial(prepared, "lru")),
                Contender("ferrogate", work, functools.partial(prepared, "adaptive"), "ferrogate"),
            ],
            keys,
        )
        for name, work, prepared, keys in (
            ("get, hit", "get(key)", lambda policy: filled(our_cache(policy)), HITS),
            ("set, the key is there", "set(key, key)", lambda p: filled(our_cache(p)), HITS),
            ("insert + evict", "set(key, key)", filled_to_the_brim, TURNOVER),
        )
    ),
]
