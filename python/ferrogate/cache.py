"""The in-process cache: exact LRU, TTL, tags, single flight, and ``@cached``."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import sys
import weakref
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
from types import ModuleType
from typing import Any, Generic, Literal, NamedTuple, ParamSpec, TypedDict, TypeVar, cast, overload

from ferrogate import _core, _flight, _janitor
from ferrogate._arguments import flag, seconds_or_never, text_or_none
from ferrogate._core import CachedFunction, ManualClock, cache_key

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


class _Doc:
    """The class's docstring on the class, the function's on an instance.

    ``help()`` asks ``object.__getattribute__`` for it, which finds the class's.
    """

    def __init__(self, own: str | None) -> None:
        self.own = own

    def __get__(self, instance: Any, owner: Any = None) -> str | None:
        return self.own if instance is None else instance._doc


for _class in (CachedFunction, _core.CachedMethod):
    _class.__doc__ = _Doc(_class.__doc__)  # type: ignore[assignment]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")
P = ParamSpec("P")
R = TypeVar("R")

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
        if isinstance(self.max_size, bool) or not isinstance(self.max_size, int):
            raise TypeError(f"max_size: expected an int of at least 1, got {self.max_size!r}")
        if self.max_size < 1:
            raise ValueError(f"max_size: expected an int of at least 1, got {self.max_size!r}")
        for name in ("ttl_seconds", "cleanup_interval"):
            seconds = getattr(self, name)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                raise TypeError(f"{name}: expected seconds above 0, got {seconds!r}")
            if not seconds > 0:
                raise ValueError(f"{name}: expected seconds above 0, got {seconds!r}")
        flag("enabled", self.enabled)


class CacheInfo(NamedTuple):
    """What ``cache_info()`` returns, field for field as ``functools.lru_cache``."""

    hits: int
    misses: int
    maxsize: int
    currsize: int


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
    insertions: int
    updates: int
    evictions: int
    expirations: int
    invalidations: int
    rejections: int  #: values that alone exceed ``max_bytes``
    loading: int  #: single-flight loads under way


class Cache(_core.Cache, MutableMapping[K, V], Generic[K, V]):
    """A bounded in-process cache and a full mutable mapping.

    The bound holds after every operation. When room is needed, expired entries
    go first, then the least recently used one. Lookups by ``get``, ``[]`` and
    ``get_or_set`` count and make an entry recent; ``in``, iteration and
    ``explain`` do not.

    Keys may be anything: equal values are one key (``1 == 1.0 == True``, dicts
    and sets in any order), unhashable ones included. Iteration gives the keys
    as they were set, from the least to the most recently used.

    Args:
        max_size: entries at most, or a :class:`CacheConfig` with everything.
        ttl: seconds (or a timedelta) a value lives after it was set; ``None``
            for ever.
        tti: seconds a value lives after it was last set or looked up.
        policy: which entry makes room; ``"lru"``.
        max_bytes: sum of the entries' weights at most.
        weigher: ``weigher(key, value) -> int``, the weight of an entry; without
            it a bounded estimate of the deep size in bytes.
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
        policy: Literal["lru"] = "lru",
        max_bytes: int | None = None,
        weigher: Callable[[Any, Any], int] | None = None,
        on_evict: Callable[[Any, Any, str], object] | None = None,
        cleanup_interval: Seconds | None = None,
        name: str | None = None,
        clock: ManualClock | None = None,
        enabled: bool = True,
    ) -> Cache[K, V]:
        _check_policy(policy)
        flag("enabled", enabled)
        given: tuple[object, ...] = (max_size, ttl, tti, policy, max_bytes, weigher, on_evict)
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
                max_bytes=max_bytes,
                weigher=weigher,
                on_evict=on_evict,
                name=text_or_none("name", name),
                clock=clock,
                enabled=enabled,
            ),
        )
        self._given = given
        if cleanup_interval is not None:
            _janitor.sweep_regularly(self, cleanup_interval)
        return self

    def __init__(
        self,
        max_size: int | CacheConfig = 1000,
        *,
        ttl: Seconds | None = None,
        tti: Seconds | None = None,
        policy: Literal["lru"] = "lru",
        max_bytes: int | None = None,
        weigher: Callable[[Any, Any], int] | None = None,
        on_evict: Callable[[Any, Any, str], object] | None = None,
        cleanup_interval: Seconds | None = None,
        name: str | None = None,
        clock: ManualClock | None = None,
        enabled: bool = True,
    ) -> None:
        # Everything was done in __new__. A subclass that only gives other arguments to
        # super().__init__() would silently get a cache of the default size.
        given: tuple[object, ...] = (max_size, ttl, tti, policy, max_bytes, weigher, on_evict)
        given = (*given, cleanup_interval, name, clock, enabled)
        if given not in (self._given, _DEFAULTS):
            raise TypeError(
                f"{type(self).__name__}: a cache takes its arguments in __new__; a subclass that "
                "changes them overrides __new__(cls, ...) and calls super().__new__(cls, ...)"
            )

    _given: tuple[object, ...]

    def get_or_set(
        self,
        key: K,
        factory: Callable[[], Awaitable[V]],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] | None = None,
    ) -> Awaitable[V]:
        """Awaits to the value under ``key``; on a miss ``await factory()`` makes it.

        Single flight: however many tasks, loops and threads ask at once, one
        factory runs. What it raises reaches everybody and is not stored.

        Raises:
            RuntimeError: ``factory`` asks for the key that it is loading.
        """
        answer = self._ready_or_lookup(key)
        if isinstance(answer, _core.Lookup):
            tags = _check_load(factory, ttl, tags)
            return _flight.load_async(self, answer, factory, (), None, ttl, tags)
        return answer

    def get_or_set_sync(
        self,
        key: K,
        factory: Callable[[], V],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] | None = None,
    ) -> V:
        """The blocking twin of :meth:`get_or_set`; waiting threads do not hold the GIL."""
        lookup = self._ready_or_lookup(key)
        if isinstance(lookup, _core.Lookup):
            tags = _check_load(factory, ttl, tags)
            return _flight.load_sync(self, lookup, factory, (), None, ttl, tags)
        try:
            lookup.send(None)
        except StopIteration as hit:
            return cast(V, hit.value)
        raise AssertionError("a hit is ready at once")

    def setdefault(self, key: K, default: V = None) -> V:  # type: ignore[assignment]
        """The value under ``key``; ``default`` is stored first if there is none."""
        return self.get_or_set_sync(key, lambda: default)

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
    factory: object, ttl: Seconds | None, tags: Iterable[str] | None
) -> Iterable[str] | None:
    """Refuses before a load that may be dear what could not be stored after it."""
    if not callable(factory):
        raise TypeError(
            f"factory: expected a callable without arguments, got {type(factory).__name__}"
        )
    if ttl is not None:
        seconds_or_never("ttl", ttl)
    return None if tags is None else _core._check_tags(tags)


def _check_policy(policy: object) -> None:
    if policy != "lru":
        raise ValueError(f"policy: expected 'lru', got {policy!r}")


#: Objects that :func:`deep_size` looks at; beyond that it extrapolates nothing.
_DEEP_SIZE_LIMIT = 10_000


def deep_size(key: object, value: object) -> int:
    """An estimate in bytes of what an entry keeps alive.

    Follows dicts, lists, tuples, sets and instance attributes, counts shared
    objects once, and stops after 10,000 objects.
    """
    seen: set[int] = set()
    stack: list[object] = [key, value]
    size = 0
    while stack and len(seen) < _DEEP_SIZE_LIMIT:
        item = stack.pop()
        if id(item) in seen or isinstance(item, type | ModuleType):
            continue
        seen.add(id(item))
        size += sys.getsizeof(item, 64)
        if isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            stack.extend(item)
        elif not isinstance(item, str | bytes | int | float | complex | bytearray):
            attributes = getattr(item, "__dict__", None)
            if isinstance(attributes, dict):
                stack.append(attributes)
    return size


@overload
def cached(function: Callable[P, R], /) -> CachedFunction[P, R]: ...


@overload
def cached(
    *,
    max_size: int = ...,
    ttl: Seconds | None = ...,
    key: Callable[..., object] | None = ...,
    typed: bool = ...,
    ignore: Iterable[str] = ...,
    tags: Iterable[str] | Callable[..., Iterable[str]] | None = ...,
    policy: Literal["lru"] = ...,
    cache: _core.Cache | None = ...,
    single_flight: bool = ...,
    clock: ManualClock | None = ...,
    name: str | None = ...,
    enabled: bool = ...,
) -> Callable[[Callable[P, R]], CachedFunction[P, R]]: ...


def cached(
    function: Callable[..., Any] | None = None,
    /,
    *,
    max_size: int = 1000,
    ttl: Seconds | None = None,
    key: Callable[..., object] | None = None,
    typed: bool = False,
    ignore: Iterable[str] = (),
    tags: Iterable[str] | Callable[..., Iterable[str]] | None = None,
    policy: Literal["lru"] = "lru",
    cache: _core.Cache | None = None,
    single_flight: bool = True,
    clock: ManualClock | None = None,
    name: str | None = None,
    enabled: bool = True,
) -> Any:
    """Caches the results of a function, a coroutine function or a method.

    ``f(1, 2)``, ``f(1, y=2)`` and ``f(y=2, x=1)`` are one key, with defaults
    filled in. A method's results belong to its instance and leave with it.
    Exceptions are not cached. The result has ``cache_info()``,
    ``cache_clear()``, ``cache_invalidate(*args, **kwargs)``,
    ``cache_key(*args, **kwargs)``, ``cache_parameters()`` and ``__wrapped__``.

    Args:
        max_size: results at most; the least recently used one makes room.
        ttl: seconds (or a timedelta) that a result lives.
        key: called with the arguments, returns what is to be the key.
        typed: keep ``1``, ``1.0`` and ``True`` apart.
        ignore: names of parameters that do not count for the key.
        tags: for ``cache.invalidate_tag``; a callable gets the arguments.
        policy: ``"lru"``.
        cache: a :class:`Cache` to share with others instead of one of its own.
        single_flight: concurrent calls with one key run the function once.
        clock: a :class:`ferrogate.testing.ManualClock` in tests.
        name: the name of its own cache; the function's by default.
        enabled: ``False`` calls straight through and still counts.

    Raises:
        TypeError: the function is a generator, or an argument is of a wrong type.
        ValueError: an argument is out of range; the message names it.
    """
    if function is None:
        return functools.partial(
            cached,
            max_size=max_size,
            ttl=ttl,
            key=key,
            typed=typed,
            ignore=ignore,
            tags=tags,
            policy=policy,
            cache=cache,
            single_flight=single_flight,
            clock=clock,
            name=name,
            enabled=enabled,
        )
    _check_policy(policy)
    _check_function(function, key)
    if isinstance(ignore, str):
        raise TypeError(f"ignore: expected names of parameters such as ({ignore!r},), got a str")
    if tags is not None and not callable(tags):
        tags = tuple(_core._check_tags(tags))
    full_name = f"{getattr(function, '__module__', '?')}.{_qualname(function)}"
    shared_as = None
    if cache is None:
        cache = Cache(
            max_size,
            ttl=ttl,
            policy=policy,
            name=name or full_name,
            clock=clock,
            enabled=enabled,
        )
        ttl = None
    elif not isinstance(cache, _core.Cache):
        raise TypeError(f"cache: expected a ferrogate.Cache or None, got {type(cache).__name__}")
    else:
        # Its keys and entries in there. Lambdas, and functions that one factory makes, all
        # have one name, so the name alone would give each the others' results.
        shared_as = f"{full_name}#{_number(function)}"
        max_size = cache.max_size
    is_async = inspect.iscoroutinefunction(function)
    load: Callable[..., Any]
    if is_async:
        load = _flight.load_async if single_flight else _flight.load_async_alone
    else:
        load = _flight.load_sync if single_flight else _flight.load_sync_alone
    wrapper = CachedFunction(
        function,
        cache,
        is_async=is_async,
        load=load,
        info=CacheInfo,
        parameters={
            "max_size": max_size,
            "ttl": cache.ttl if ttl is None else ttl,
            "typed": typed,
            "ignore": tuple(ignore),
            "policy": policy,
            "single_flight": single_flight,
            "enabled": cache.enabled,
        },
        key=key,
        typed=typed,
        ignore=list(ignore),
        ttl=ttl,
        tags=tags,
        shared_as=shared_as,
    )
    return functools.update_wrapper(wrapper, function)


def _check_function(function: object, key: object) -> None:
    if isinstance(function, int):
        raise TypeError(
            f"cached takes its options by keyword: write @cached(max_size={function!r})"
        )
    if isinstance(function, classmethod | staticmethod):
        raise TypeError(f"put @{type(function).__name__} above @cached, not below it")
    if not callable(function):
        raise TypeError(f"cached: expected a function, got {type(function).__name__}")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(
            f"cached: {_qualname(function)} is a generator function; its generator could be read "
            "only once, so there is no result to keep. Return a list, or cache what it reads"
        )
    if key is not None and not callable(key):
        raise TypeError(f"key: expected a callable or None, got {type(key).__name__}")


#: Functions that share a cache, by identity: their numbers, and how to tell a younger
#: function at the same address.
_numbered: dict[int, tuple[int, weakref.ref[Any]]] = {}
_next_number = itertools.count(1)


def _number(function: object) -> int:
    """A number of this very object; decorated again, it finds its results again."""
    address = id(function)
    known = _numbered.get(address)
    if known is not None and known[1]() is function:
        return known[0]
    number = next(_next_number)

    def forget(gone: weakref.ref[Any]) -> None:
        known = _numbered.get(address)
        if known is not None and known[1] is gone:
            del _numbered[address]

    with contextlib.suppress(TypeError):
        _numbered[address] = (number, weakref.ref(function, forget))
    return number


def _qualname(function: object) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)
