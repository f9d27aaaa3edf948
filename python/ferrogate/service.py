"""The cache service: bytes in a near cache, in front of a store that processes share."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, TypeVar, cast

from ferrogate import _core, _flight
from ferrogate._arguments import flag, seconds_or_never, text_or_none, whole
from ferrogate._core import CacheUnavailable, ManualClock
from ferrogate._service_url import shown, tier_of
from ferrogate._signed import check_key

if TYPE_CHECKING:
    from ferrogate._client import CacheClient

__all__ = ["CacheService", "CacheUnavailable", "ServiceStats"]

T = TypeVar("T")
Seconds = float | timedelta
Codec = Literal["json", "msgpack", "bytes", "pickle"]

_MIB = 1 << 20
#: Seconds that closing waits for what was acknowledged to reach the store.
_PATIENCE = 5.0
#: Seconds until a load is asked for again where nobody can tell when another process's ends.
_NOBODY_WAITS = 0.05


class ServiceStats(TypedDict, total=False):
    """What :meth:`CacheService.get_stats` returns; a store adds figures of its own."""

    name: str
    enabled: bool
    hits: int
    misses: int
    total_requests: int
    hit_rate: float  #: hits / lookups, 0..1; 0 before the first lookup
    hit_rate_percent: float  #: the same, 0..100
    memory_cache_size: int  #: entries of the near cache
    size: int  #: entries of the store, as far as it counts them; else of the near cache
    near_hits: int
    near_entries: int
    near_bytes: int
    near_evictions: int
    tier_hits: int
    sets: int
    deletes: int
    invalidations: int
    evictions: int
    errors: int  #: requests that the store did not answer
    skipped: int  #: requests that were not sent because it was away
    unreadable: int  #: values of another codec, with a wrong signature, or garbage: misses
    rejections: int  #: values above ``max_value_bytes`` or the near cache
    outdated: int  #: loaded values that had been invalidated before they were stored
    available: bool  #: whether the store answers
    owed: int  #: what was deleted or invalidated while it was away, and it is not told yet


class CacheService(_core.CacheService):
    """A cache in namespaces whose values are bytes, and may outlive the process.

    What is read or written stays in a near cache in this process and is answered
    from there at once. The store behind it is shared by processes. When it is
    away, the near cache goes on, and callers see misses instead of exceptions.

    One service may be used from any number of event loops and threads. Methods
    that may wait are coroutines; each has a blocking twin that ends in ``_sync``.

    Args:
        url: ``memory://`` for this process alone, ``sqlite:///path`` for the processes of a
            machine, ``redis://user:password@host:port/db`` for those of several; with
            ``rediss`` over TLS, ``redis+sentinel://host,host/master/db`` and
            ``redis+cluster://host,host`` where there are more servers.
        near_bytes: the near cache's bound.
        default_ttl: seconds (or a timedelta) that a value lives; ``None`` for ever.
        codec: how values become bytes. ``"json"`` (readable by others) and
            ``"msgpack"`` give back what equals what was set, or refuse it;
            ``"bytes"`` carries bytes; ``"pickle"`` anything, signed.
        hmac_key: the secret for pickle, at least 16 bytes, the same in all processes.
        max_value_bytes: longer values are refused.
        compress_over: from so many bytes on values are compressed (zstd); ``None`` never.
        strict: raise :class:`CacheUnavailable` where the store does not answer.
        lease_seconds: so long a process that died keeps the others from loading instead.
        name: shown in statistics, the log and ``repr``.
        clock: a :class:`ferrogate.testing.ManualClock` in tests.
        enabled: ``False`` makes it store nothing and still count.
        options: of SQLite ``max_bytes``, ``max_entries``, ``readers`` and ``busy_seconds``; of
            Redis ``timeout_seconds`` (0.25: a request gives up), ``max_connections``
            (``REDIS_MAX_CONNECTIONS`` in the environment, else 10), ``prefix`` of all keys,
            ``sentinel`` (the master's name) or ``cluster=True`` instead of the longer schemes,
            and over TLS ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile`` (paths).

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
    """

    def __new__(
        cls,
        url: str = "memory://",
        *,
        near_bytes: int = 64 * _MIB,
        default_ttl: Seconds | None = None,
        codec: Codec = "json",
        hmac_key: bytes | str | None = None,
        max_value_bytes: int = 16 * _MIB,
        compress_over: int | None = 4096,
        strict: bool = False,
        lease_seconds: Seconds = 10.0,
        name: str | None = None,
        clock: ManualClock | None = None,
        enabled: bool = True,
        **options: Any,
    ) -> Self:
        flag("enabled", enabled)
        if codec not in ("json", "msgpack", "bytes", "pickle"):
            raise ValueError(
                f"codec: expected 'json', 'msgpack', 'bytes' or 'pickle', got {codec!r}"
            )
        if compress_over is not None:
            whole("compress_over", compress_over, least=0)
        lease = seconds_or_never("lease_seconds", lease_seconds)
        tier = tier_of(url, options)
        if tier is not None:
            tier["lease_seconds"] = lease
        # Stores nothing itself: it knows who loads what in this process.
        flights = _core.Cache.__new__(_core.Cache, 1, enabled=False)
        self = _core.CacheService.__new__(
            cls,
            near_bytes=whole("near_bytes", near_bytes, least=1),
            default_ttl=default_ttl,
            codec=codec,
            pickle=check_key(codec, hmac_key),
            max_value_bytes=whole("max_value_bytes", max_value_bytes, least=1),
            compress_over=compress_over,
            strict=flag("strict", strict),
            enabled=enabled,
            name=text_or_none("name", name) or url.partition(":")[0],
            clock=clock,
            tier=tier,
            flights=flights,
        )
        self._flights = flights
        self._closures = weakref.WeakValueDictionary()
        self._enabled = enabled
        self.url = shown(url)
        self.codec = codec
        return self

    #: Where its store is, without a password.
    url: str
    #: How values become bytes.
    codec: Codec

    _flights: _core.Cache
    _enabled: bool
    #: The functions with a closure that views of namespaces cache, by namespace and name.
    _closures: weakref.WeakValueDictionary[tuple[str, str], Callable[..., Any]]

    def __init__(self, url: str = "memory://", **arguments: Any) -> None:
        # Everything was done in __new__.
        super().__init__()

    async def get_or_set(
        self,
        ns: str,
        key: Any,
        factory: Callable[[], Awaitable[T]],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] | None = None,
    ) -> T:
        """The value under ``key`` in ``ns``; on a miss ``await factory()`` makes it.

        Single flight, also across processes: while one loads, the others wait for
        its value. A process that dies while it loads is replaced within
        ``lease_seconds``. What ``factory`` raises reaches all callers in its
        process and is not stored; another process then tries for itself.
        """
        found = await self.get(ns, key, _MISSING)
        if found is not _MISSING:
            return cast(T, found)
        names = None if tags is None else _core._check_tags(tags)
        lookup = cast(_core.Lookup, self._flights._ready_or_lookup((ns, key)))
        load = (ns, key, factory, ttl, names)
        marks = _names(ns, names)
        flights, args = self._flights, (lookup, self._load, load, None, None, marks)
        return cast(T, await _flight.load_async(flights, *args))

    def get_or_set_sync(
        self,
        ns: str,
        key: Any,
        factory: Callable[[], T],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] | None = None,
    ) -> T:
        """The blocking twin of :meth:`get_or_set`."""
        found = self.get_sync(ns, key, _MISSING)
        if found is not _MISSING:
            return cast(T, found)
        names = None if tags is None else _core._check_tags(tags)
        lookup = cast(_core.Lookup, self._flights._ready_or_lookup((ns, key)))
        load = (ns, key, factory, ttl, names)
        marks = _names(ns, names)
        flights, args = self._flights, (lookup, self._load_sync, load, None, None, marks)
        return cast(T, _flight.load_sync(flights, *args))

    async def _load(
        self,
        ns: str,
        key: Any,
        factory: Callable[[], Awaitable[T]],
        ttl: Seconds | None,
        tags: list[str] | None,
    ) -> T:
        anew = again = False
        while True:
            what, *more = await self._lease(False, ns, key, tags, anew)
            anew = what == "unreadable"
            if what == "value":
                return cast(T, more[0])
            if what == "busy":
                if not await self._await(False, ns, key, more[0]):
                    await asyncio.sleep(_NOBODY_WAITS)
            elif what == "alone" and more[0] and not again:
                again = True
            elif what != "unreadable":
                lease = more[0] if what == "lease" else self._lease_here(ns, key)
                try:
                    value = await factory()
                    await self._set_loaded(False, ns, key, value, ttl, tags, lease)
                finally:
                    lease.release()
                return value

    def _load_sync(
        self,
        ns: str,
        key: Any,
        factory: Callable[[], T],
        ttl: Seconds | None,
        tags: list[str] | None,
    ) -> T:
        anew = again = False
        while True:
            what, *more = self._lease(True, ns, key, tags, anew)
            anew = what == "unreadable"
            if what == "value":
                return cast(T, more[0])
            if what == "busy":
                if not self._await(True, ns, key, more[0]):
                    time.sleep(_NOBODY_WAITS)
            elif what == "alone" and more[0] and not again:
                again = True
            elif what != "unreadable":
                lease = more[0] if what == "lease" else self._lease_here(ns, key)
                try:
                    value = factory()
                    self._set_loaded(True, ns, key, value, ttl, tags, lease)
                finally:
                    lease.release()
                return value

    def namespace(
        self,
        ns: str,
        *,
        ttl: Seconds | None = None,
        key: Iterable[str] | None = None,
        tags: Iterable[str] | None = None,
    ) -> CacheClient:
        """A view of one namespace with a TTL of its own.

        With ``key``, the names of fields, values are kept by those fields::

            research = svc.namespace("tech_research", ttl=86400, key=("category", "language"))
            await research.set("web", "python", findings)
            await research.get(category="web", language="python")
        """
        from ferrogate._client import CacheClient

        return CacheClient._of(self, ns, ttl=ttl, key=key, tags=tags)

    def _is_one_closure(self, ns: str, name: str, function: Callable[..., Any]) -> bool:
        """False if another closure of that name, around other values, is cached there."""
        if not getattr(function, "__closure__", None):
            return True
        other = self._closures.setdefault((ns, name), function)
        return other is function or _around(other) == _around(function)

    async def warm(
        self,
        items: Iterable[tuple[str, Any, Any]],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] | None = None,
        progress: Callable[[int], object] | None = None,
        concurrency: int = 64,
    ) -> int:
        """Stores ``(ns, key, value)`` triples; returns how many the store has.

        ``progress`` is called with the count of those done so far, after every batch of
        ``concurrency``.
        """
        whole("concurrency", concurrency, least=1)
        tags = None if tags is None else _core._check_tags(tags)
        done = stored = 0
        batch: list[Awaitable[bool]] = []

        async def flush() -> None:
            nonlocal done, stored
            now, batch[:] = batch[:], []
            stored += sum(await asyncio.gather(*now))
            done += len(now)
            if progress is not None:
                progress(done)

        try:
            for ns, key, value in items:
                batch.append(self.set(ns, key, value, ttl, tags))
                if len(batch) >= concurrency:
                    await flush()
        except BaseException:
            # Those before the one that cannot be stored are on their way.
            await asyncio.gather(*batch, return_exceptions=True)
            raise
        if batch:
            await flush()
        return stored

    def get_stats(self) -> ServiceStats:
        """Counters, and the figures of the near cache and the store."""
        figures = self._figures()
        hits = figures["near_hits"] + figures["tier_hits"]
        total = hits + figures["misses"]
        rate = hits / total if total else 0.0
        common: dict[str, Any] = {
            "name": self.name,
            "enabled": self._enabled,
            "hits": hits,
            "total_requests": total,
            "hit_rate": rate,
            "hit_rate_percent": 100 * hits / total if total else 0.0,
            "memory_cache_size": figures["near_entries"],
            "size": figures["near_entries"],
            "evictions": figures["near_evictions"],
        }
        return cast(ServiceStats, common | figures)

    async def close(self) -> None:
        """Refuses everything from now on, once the store has what was acknowledged."""
        await asyncio.to_thread(self._close, _PATIENCE)

    def close_sync(self) -> None:
        """The blocking twin of :meth:`close`."""
        self._close(_PATIENCE)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close_sync()

    def __reduce__(self) -> Any:
        raise TypeError(f"{type(self).__name__}: a cache service belongs to its process")

    def __repr__(self) -> str:
        stats = self.get_stats()
        state = "" if stats["available"] else ", store away"
        if self.closed:
            state = ", closed"
        return (
            f"{type(self).__name__}({self.name!r}, {stats['size']} entries, "
            f"hit rate {stats['hit_rate']:.1%}{state})"
        )


def _names(ns: str, tags: list[str] | None) -> list[str]:
    """What a load can be outdated by, as the native class has it."""
    return [f"n{ns}", *(f"t{tag}" for tag in tags or ())]


def _around(function: Callable[..., Any]) -> list[int]:
    """What a function takes from around it: the identities of the values."""
    around = []
    for cell in getattr(function, "__closure__", None) or ():
        try:
            around.append(id(cell.cell_contents))
        except ValueError:  # not assigned yet
            around.append(id(cell))
    return around


_MISSING = object()
