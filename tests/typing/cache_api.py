"""Type-checked, never run: what a user's checker sees of the cache."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, ItemsView, KeysView, MutableMapping, ValuesView
from datetime import timedelta
from typing import Any, assert_type

from ferrogate import Cache, CacheConfig, LRUCache, cache_key, cached
from ferrogate.cache import CachedFunction, CacheStats
from ferrogate.testing import ManualClock

cache: Cache[str, int] = Cache(10, ttl=timedelta(minutes=1), clock=ManualClock())
lru: LRUCache[str, int] = LRUCache(CacheConfig(max_size=5))
mapping: MutableMapping[str, int] = cache
weighed: Cache[str, bytes] = Cache(
    10,
    max_bytes=1_000,
    weigher=lambda key, value: len(value),
    on_evict=lambda key, value, cause: print(key, cause),
)

assert_type(cache.keys(), KeysView[str])
assert_type(cache.values(), ValuesView[int])
assert_type(cache.items(), ItemsView[str, int])
assert_type(cache.setdefault("a", 1), int)
assert_type(cache.invalidate_tag("t"), int)
assert_type(cache.delete("a"), bool)
assert_type(cache_key("category", [1], min_confidence=0.7), str)
hits: int = cache.get_stats()["hits"]
stats: CacheStats


async def load() -> int:
    return 1


async def use() -> None:
    assert_type(cache.get_or_set("a", load), Awaitable[int])
    assert_type(await cache.get_or_set("a", load, ttl=5, tags=["x"]), int)
    assert_type(cache.get_or_set_sync("a", lambda: 1), int)
    assert_type(await cache.get_or_set("a", load, ttl=5, stale_if_error=5, ttl_jitter=0.5), int)
    assert_type(await answer.cache_refresh("a"), str)
    assert_type(await answer.cache_bypass("a", temperature=0.5), str)
    await answer.cache_refresh(5)  # type: ignore[arg-type]
    cache.get_or_set("a", load, stale=5)  # type: ignore[call-arg]
    cache.get_or_set("a", load, negative_ttl={BaseException: 5})  # type: ignore[dict-item]
    cache.get_or_set("a", lambda: 1)  # type: ignore[arg-type, return-value]
    cache.get_or_set(5, load)  # type: ignore[arg-type]
    cache.get_or_set_sync("a", lambda: "text")  # type: ignore[arg-type, return-value]


@cached
def plain(a: int, *, b: str = "") -> float:
    return float(a) + len(b)


@cached(ttl=60, ignore=["b"], tags=lambda a, b: [str(a)])
async def coroutine(a: int, b: str = "") -> str:
    return b * a


@cached(
    ttl=60,
    stale_while_revalidate=10,
    stale_if_error=timedelta(hours=1),
    negative_ttl={LookupError: 5, OSError: timedelta(seconds=1)},
    skip_if=lambda result: not result,
    bypass_if=lambda prompt, temperature=0.0: temperature > 0,
    ttl_jitter=0.1,
    early_refresh=1.0,
)
async def answer(prompt: str, temperature: float = 0.0) -> str:
    return prompt


class Client:
    @cached(max_size=5)
    def ask(self, x: int) -> list[int]:
        return [x]

    @cached
    async def aask(self, x: int) -> list[int]:
        return [x]

    @staticmethod
    @cached
    def static(x: int) -> int:
        return x


assert_type(plain(1), float)
assert_type(plain(a=1, b="x"), float)
plain("1")  # type: ignore[arg-type]
plain(1, "x")  # type: ignore[call-arg]
plain(1, c=2)  # type: ignore[call-arg]
assert_type(plain.cache_info().hits, int)
assert_type(plain.cache_invalidate(1, b="x"), bool)
assert_type(plain.cache_key(1), str)
plain.cache_invalidate("1")  # type: ignore[arg-type]
plain.cache_key()  # type: ignore[call-arg]
as_written: CachedFunction[[float], float] = cached(float.__neg__)
awaitable: Coroutine[Any, Any, str] = coroutine(1)
assert_type(Client().ask(1), list[int])
assert_type(Client().ask.cache_refresh(1), list[int])
assert_type(Client().ask.cache_bypass(x=1), list[int])
assert_type(Client.ask(Client(), 1), list[int])
assert_type(Client().ask.cache_invalidate(1), bool)
Client().ask("1")  # type: ignore[arg-type]
Client().ask()  # type: ignore[call-arg]
Client().ask.cache_invalidate(1, 2)  # type: ignore[call-arg]
assert_type(Client.static(1), int)
cached(max_size="5")(load)  # type: ignore[call-overload]
cached(policy="mru")(load)  # type: ignore[call-overload]
Cache(10, policy="mru")  # type: ignore[arg-type]


async def use_decorated() -> None:
    assert_type(await coroutine(2, b="x"), str)
    await coroutine("1")  # type: ignore[arg-type]
    await Client().aask("1")  # type: ignore[arg-type]
    assert_type(await Client().aask(1), list[int])
