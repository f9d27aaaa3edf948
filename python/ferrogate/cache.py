"""The in-process cache: exact LRU, TTL, tags, single flight, and ``@cached``."""

from __future__ import annotations

from collections.abc import (
    Awaitable,
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    ValuesView,
)
from dataclasses import dataclass
from datetime import timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
)

from ferrogate import _core, _failures, _flight, _janitor, _refresh, _suites
from ferrogate._arguments import flag, known_policy, seconds_or_never, text_or_none, whole
from ferrogate._core import CachedFunction, Freshness, ManualClock, cache_key
from ferrogate._freshness import Terms, freshness_of
from ferrogate._weigher import deep_size

__all__ = [
    "Cache",
    "CacheConfig",
    "CacheInfo",
    "CacheStats",
    "CachedFunction",
    "LRUCache",
    "cache_key",
    "cached",
]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

Seconds = float | timedelta


#: The arguments of a Cache that is given none.
_DEFAULTS: tuple[object, ...] = (1000, None, None, "lru", *(None,) * 6, True)


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """A cache by its numbers.

    Attributes:
        max_size: entries at most.
        ttl_seconds: seconds that a value lives.
        cleanup_interval: seconds between two background sweeps of expired entries.
        enabled: whether anything is stored at all.
    """

    max_size: int = 1000
    ttl_seconds: float = 3600
    cleanup_interval: float = 300
    enabled: bool = True

    def __post_init__(self) -> None:
        whole("max_size", self.max_size, least=1)
        seconds_or_never("ttl_seconds", self.ttl_seconds)
        seconds_or_never("cleanup_interval", self.cleanup_interval)
        flag("enabled", self.enabled)


class CacheInfo(NamedTuple):
    """What ``cache_info()`` returns, field for field as ``functools.lru_cache``."""

    hits: int
    misses: int
    maxsize: int
    currsize: int


class Savings(NamedTuple):
    """What one hit saves; ``value=`` of :class:`Cache` and :func:`cached` returns one.

    Attributes:
        tokens: tokens that are neither sent nor generated.
        usd: US dollars.
        seconds: seconds; ``None`` stands for the time that the load took.
    """

    tokens: int = 0
    usd: float = 0.0
    seconds: float | None = None


class CacheStats(TypedDict):
    """What :meth:`Cache.get_stats` returns."""

    name: str | None
    enabled: bool
    size: int
    max_size: int
    bytes: int
    max_bytes: int | None
    hits: int
    misses: int
    hit_rate: float  #: hits / lookups, 0..1; 0 before the first lookup
    stale_hits: int  #: the hits among them that were stale
    negative_hits: int  #: the hits among them that were failures, raised without a call
    refreshes: int  #: loads of what was still served, in the background or forced
    refresh_failures: int  #: the refreshes among them that raised
    stale_on_error: int  #: callers whose load raised and who got the stale value
    insertions: int
    updates: int
    evictions: int
    expirations: int
    invalidations: int
    rejections: int  #: values that alone exceed ``max_bytes``
    saved_tokens: int  #: as ``value=`` says it, by all hits and by those who shared a load
    saved_usd: float
    saved_seconds: float
    policy: str  #: ``"lru"`` or ``"adaptive"``
    ghost_entries: int  #: keys of entries that are gone, which ``"adaptive"`` remembers
    ghost_bytes: int  #: what these and the frequencies of keys take, beside the entries
    loading: int  #: single-flight loads under way


class Cache(_core.Cache, MutableMapping[K, V], Generic[K, V]):
    """A bounded in-process cache and a full mutable mapping.

    The bound holds after every operation. When room is needed, expired entries
    go first, then the one that the policy names. Lookups by ``get``, ``[]`` and
    ``get_or_set`` count and make an entry recent; ``in``, iteration and
    ``explain`` do not. Values that a load left behind as stale, and failures
    that it had remembered, are entries for the bound; only loads see them.

    Keys may be anything: equal values are one key (``1 == 1.0 == True``, dicts
    and sets in any order), unhashable ones included. Iteration gives the keys
    as they were set, from the least to the most recently used.

    Args:
        max_size: entries at most, or a :class:`CacheConfig` with everything.
        ttl: seconds (or a timedelta) a value lives after it was set; ``None``
            for ever.
        tti: seconds a value lives after it was last set or looked up.
        policy: which entry makes room: ``"lru"``, exactly the least recently used one; or
            ``"adaptive"``, by recency or by frequency, whichever would have hit more of
            late (loops, scans and few popular keys profit; LLM prompts like ``"lru"``).
        max_bytes: sum of the entries' weights at most.
        weigher: ``weigher(key, value) -> int``, the weight of an entry; without
            it a bounded estimate of the deep size in bytes.
        value: ``value(key, value)``, what each hit on that entry will save: US dollars,
            or a :class:`Savings`. The sums are in :meth:`get_stats`.
        on_evict: ``on_evict(key, value, cause)``, called after an entry left,
            with no lock held; ``cause`` is ``"expired"``, ``"evicted"``,
            ``"replaced"``, ``"deleted"``, ``"invalidated"`` or ``"cleared"``.
            What it raises goes to ``sys.unraisablehook``.
        cleanup_interval: seconds between background sweeps of expired entries;
            ``None`` sweeps only on use and on :meth:`cleanup`.
        name: shown in statistics and ``repr``.
        clock: a :class:`ferrogate.testing.ManualClock` in tests.
        enabled: ``False`` makes it store nothing and still count.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
    """

    def __new__(
        cls,
        max_size: int | CacheConfig = 1000,
        *,
        ttl: Seconds | None = None,
        tti: Seconds | None = None,
        policy: Literal["lru", "adaptive"] = "lru",
        max_bytes: int | None = None,
        weigher: Callable[[Any, Any], int] | None = None,
        value: Callable[[Any, Any], float | Savings] | None = None,
        on_evict: Callable[[Any, Any, str], object] | None = None,
        cleanup_interval: Seconds | None = None,
        name: str | None = None,
        clock: ManualClock | None = None,
        enabled: bool = True,
    ) -> Cache[K, V]:
        known_policy(policy, cls._policies)
        flag("enabled", enabled)
        given: tuple[object, ...] = (
            max_size,
            ttl,
            tti,
            policy,
            max_bytes,
            weigher,
            value,
            on_evict,
        )
        given = (*given, cleanup_interval, name, clock, enabled)
        if isinstance(max_size, CacheConfig):
            config = max_size
            max_size = config.max_size
            ttl = config.ttl_seconds if ttl is None else ttl
            if cleanup_interval is None:
                cleanup_interval = config.cleanup_interval
            enabled = enabled and config.enabled
        if weigher is not None and max_bytes is None:
            raise ValueError("weigher: needs max_bytes=, the bound on the sum of the weights")
        if max_bytes is not None and weigher is None:
            weigher = deep_size
        self = cast(
            "Cache[K, V]",
            _core.Cache.__new__(
                cls,
                max_size,
                ttl=ttl,
                tti=tti,
                policy=policy,
                max_bytes=max_bytes,
                weigher=weigher,
                value=value,
                on_evict=on_evict,
                name=text_or_none("name", name),
                clock=clock,
                enabled=enabled,
            ),
        )
        self._given = given
        if cleanup_interval is not None:
            _janitor.sweep_regularly(self, cleanup_interval)
        _suites.register(self)
        return self

    def __init__(
        self,
        max_size: int | CacheConfig = 1000,
        *,
        ttl: Seconds | None = None,
        tti: Seconds | None = None,
        policy: Literal["lru", "adaptive"] = "lru",
        max_bytes: int | None = None,
        weigher: Callable[[Any, Any], int] | None = None,
        value: Callable[[Any, Any], float | Savings] | None = None,
        on_evict: Callable[[Any, Any, str], object] | None = None,
        cleanup_interval: Seconds | None = None,
        name: str | None = None,
        clock: ManualClock | None = None,
        enabled: bool = True,
    ) -> None:
        # Everything was done in __new__. A subclass that only gives other arguments to
        # super().__init__() would silently get a cache of the default size.
        given: tuple[object, ...] = (
            max_size,
            ttl,
            tti,
            policy,
            max_bytes,
            weigher,
            value,
            on_evict,
        )
        given = (*given, cleanup_interval, name, clock, enabled)
        if given not in (self._given, _DEFAULTS):
            raise TypeError(
                f"{type(self).__name__}: a cache takes its arguments in __new__; a subclass that "
                "changes them overrides __new__(cls, ...) and calls super().__new__(cls, ...)"
            )

    _given: tuple[object, ...]
    _policies: ClassVar[tuple[str, ...]] = ("lru", "adaptive")

    def get_or_set(
        self,
        key: K,
        factory: Callable[[], Awaitable[V]],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] | None = None,
        **terms: Unpack[Terms],
    ) -> Awaitable[V]:
        """Awaits to the value under ``key``; on a miss ``await factory()`` makes it.

        Single flight: however many tasks, loops and threads ask at once, one
        factory runs. What it raises reaches everybody and is not stored, unless
        the terms say so: ``stale_while_revalidate=``, ``stale_if_error=``,
        ``negative_ttl=``, ``skip_if=``, ``ttl_jitter=`` and ``early_refresh=`` as
        for :func:`cached`.

        Raises:
            RuntimeError: ``factory`` asks for the key that it is loading.
        """
        freshness = freshness_of(self.ttl, ttl, terms) if terms else None
        answer = self._ready_or_lookup(key, freshness)
        if isinstance(answer, _core.Lookup):
            freshness, tags = _check_load(self, factory, freshness, ttl, tags)
            return _flight.load_async(self, answer, factory, (), None, freshness, tags)
        if isinstance(answer, tuple):
            ready, more = answer
            if ready is None:
                return _failures.fail_async(more)
            freshness, tags = _check_load(self, factory, freshness, ttl, tags)
            _refresh.refresh_async(self, more, factory, (), None, freshness, tags)
            return cast("Awaitable[V]", ready)
        return cast("Awaitable[V]", answer)

    def get_or_set_sync(
        self,
        key: K,
        factory: Callable[[], V],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] | None = None,
        **terms: Unpack[Terms],
    ) -> V:
        """The blocking twin of :meth:`get_or_set`; waiting threads do not hold the GIL."""
        freshness = freshness_of(self.ttl, ttl, terms) if terms else None
        answer = self._ready_or_lookup(key, freshness)
        if isinstance(answer, _core.Lookup):
            freshness, tags = _check_load(self, factory, freshness, ttl, tags)
            return _flight.load_sync(self, answer, factory, (), None, freshness, tags)
        if isinstance(answer, tuple):
            answer, more = answer
            if answer is None:
                return cast(V, _failures.fail(more))
            freshness, tags = _check_load(self, factory, freshness, ttl, tags)
            loaded = _refresh.refresh_sync(self, more, factory, (), None, freshness, tags)
            if loaded is not None:
                return cast(V, loaded[0])
        try:
            answer.send(None)
        except StopIteration as hit:
            return cast(V, hit.value)
        raise AssertionError("a hit is ready at once")

    if TYPE_CHECKING:

        def setdefault(
            self, key: K, default: V = ..., *, tags: Iterable[str] | None = None
        ) -> V: ...

    def _tags_of_calls(
        self, key: Callable[..., object], tags: Iterable[str] | Callable[..., Iterable[str]] | None
    ) -> Iterable[str] | Callable[..., Iterable[str]] | None:
        """What ``@cached(cache=self, key=key, tags=tags)`` tags its entries with."""
        return tags

    def _reset(self) -> None:
        """Forgets entries and counts, for test suites."""
        self.clear()
        self.reset_stats()

    def items(self) -> ItemsView[K, V]:
        """Keys and values, from the least to the most recently used; counts nothing."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """The values, from the least to the most recently used; counts nothing."""
        return _Values(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        mine = self._snapshot()
        if len(mine) != len(other):
            return False
        missing = object()
        for key, value in mine:
            try:
                # Not other[key]: a cache would count a hit, a defaultdict make an entry.
                if isinstance(other, _core.Cache):
                    theirs = (other._peek(key) or (missing,))[0]
                else:
                    theirs = other.get(key, missing)
            except TypeError:
                # This cache has keys that a dict cannot have.
                theirs = missing
            if theirs is not value and theirs != value:
                return False
        return True

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{type(self).__name__}: a cache belongs to its process and is neither pickled nor "
            "copied; make a new one, or copy its items with dict(cache)"
        )

    def __repr__(self) -> str:
        stats = self.get_stats()
        name = f"{self.name!r}, " if self.name else ""
        ttl = "" if self.ttl is None else f", ttl={self.ttl:g}s"
        off = "" if self.enabled else ", disabled"
        return (
            f"{type(self).__name__}({name}{stats['size']} of {self.max_size} entries{ttl}, "
            f"hit rate {stats['hit_rate']:.1%}{off})"
        )


class LRUCache(Cache[K, V]):
    """:class:`Cache` with ``policy="lru"``, by its field name."""

    _policies = ("lru",)


class _Items(ItemsView[K, V]):
    _mapping: Cache[K, V]

    # The mixin looks every key up, which would count hits and reorder entries.
    def __iter__(self) -> Iterator[tuple[K, V]]:
        return iter(self._mapping._snapshot())

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        key, value = item
        found = self._mapping._peek(key)
        return found is not None and (found[0] is value or found[0] == value)


class _Values(ValuesView[V]):
    _mapping: Cache[Any, V]

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._mapping._snapshot())

    def __contains__(self, value: object) -> bool:
        return any(mine is value or mine == value for mine in self)


def _check_load(
    cache: Cache[Any, Any],
    factory: object,
    freshness: Freshness | None,
    ttl: Seconds | None,
    tags: Iterable[str] | None,
) -> tuple[Freshness | None, Iterable[str] | None]:
    """Refuses before a load that may be dear what could not be stored after it."""
    if not callable(factory):
        raise TypeError(
            f"factory: expected a callable without arguments, got {type(factory).__name__}"
        )
    if freshness is None:
        freshness = freshness_of(cache.ttl, ttl, {})
    return freshness, None if tags is None else _core._check_tags(tags)


def _keep_nothing(_self: object, *_: object, **__: object) -> None:
    pass


def _give_default(_self: object, _key: object, default: Any = None, **_: object) -> Any:
    return default


_suites.replaces(Cache, set=_keep_nothing, __setitem__=_keep_nothing, setdefault=_give_default)

# Last: the decorator makes caches of the class above.
from ferrogate._cached import cached  # noqa: E402
