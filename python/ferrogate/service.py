"""The cache service: bytes in a near cache, in front of a store that processes share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

from ferrogate import _core, _suites
from ferrogate._arguments import (
    flag,
    globally_disabled,
    seconds_or_never,
    store_names,
    text_or_none,
    whole,
)
from ferrogate._core import CacheUnavailable, ManualClock
from ferrogate._replies import log
from ferrogate._service_loads import load_once, load_once_sync
from ferrogate._service_stats import NOT_RESET, ServiceStats
from ferrogate._service_url import shown, tier_of, url_of
from ferrogate._signed import check_key

if TYPE_CHECKING:
    from ferrogate._view import CacheView

__all__ = ["CacheService", "CacheUnavailable", "ServiceStats"]

T = TypeVar("T")
Seconds = float | timedelta
Codec = Literal["json", "msgpack", "bytes", "pickle"]

_MIB = 1 << 20
#: Seconds that closing waits for what was acknowledged to reach the store.
_PATIENCE = 5.0
#: Seconds; a shorter lease runs out between two turns of a process that is well.
_SHORTEST_LEASE = 0.1


class CacheService(_core.CacheService):
    """A cache in namespaces whose values are bytes, and may outlive the process.

    What is read or written stays in a near cache in this process and is answered
    from there at once. The store behind it is shared by processes. When it is
    away, the near cache goes on, and callers see misses instead of exceptions.

    One service may be used from any number of event loops and threads. Methods
    that may wait are coroutines; each has a blocking twin that ends in ``_sync``.

    Args:
        url: ``memory://`` for this process alone; a file, as a :class:`pathlib.Path` or as
            ``sqlite:///absolute/path`` or ``sqlite:///./relative/path``, for the processes of a
            machine; ``redis://user:password@host:port/db`` for those of several; with
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
        lease_seconds: so long a process that died keeps the others from loading instead; at
            least 0.1, for it has to be renewed while they load.
        name: shown in statistics, the log and ``repr``.
        clock: a :class:`ferrogate.testing.ManualClock` in tests. What is in Redis expires by
            Redis's own clock all the same.
        enabled: ``False`` makes it store nothing and still count.
        options: what a kind of store has beside. A file has ``max_bytes`` (1 GiB) and
            ``max_entries`` (1,000,000), both kept by eviction; ``readers`` (2, up to 64),
            the threads that read it; ``busy_seconds`` (0.25), how long a request waits for other
            processes' commits. Redis has ``timeout_seconds`` (0.25: a request gives up; at
            most 3600),
            ``max_connections`` (``REDIS_MAX_CONNECTIONS`` in the environment, else 10),
            ``prefix`` of all keys, ``sentinel`` (the master's name) or ``cluster=True`` instead
            of the longer schemes, ``sentinel_username`` and ``sentinel_password`` (the URL has
            those of the servers), and over TLS ``ssl_ca_certs``, ``ssl_certfile``,
            ``ssl_keyfile`` (paths).

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
        OSError: the file cannot be opened or made.
    """

    def __new__(
        cls,
        url: str | os.PathLike[str] = "memory://",
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
        given = {**locals(), **options}
        try:
            url = url_of(url)
            tier = tier_of(url, options)
        except (TypeError, ValueError) as error:
            if cls.__init__ is not CacheService.__init__:
                error.add_note(f"{cls.__name__} has an __init__, but a service is made in __new__")
            raise
        flag("enabled", enabled)
        if codec not in ("json", "msgpack", "bytes", "pickle"):
            raise ValueError(
                f"codec: expected 'json', 'msgpack', 'bytes' or 'pickle', got {codec!r}"
            )
        if compress_over is not None:
            whole("compress_over", compress_over, least=0)
        lease = seconds_or_never("lease_seconds", lease_seconds, least=_SHORTEST_LEASE)
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
        self._enabled = enabled and not globally_disabled()
        self._zero = {}
        self._made_with = given
        self.url = shown(url)
        self.codec = codec
        return self

    #: Where its store is, without a password.
    url: str
    #: How values become bytes.
    codec: Codec

    _flights: _core.Cache
    _enabled: bool
    #: What the figures that know no reset were at the last one.
    _zero: dict[str, int]
    #: The arguments, until `__init__` has seen that they are its own.
    _made_with: dict[str, Any]

    def __init__(self, url: str | os.PathLike[str] | None = None, **arguments: Any) -> None:
        super().__init__()
        # Everything was done in __new__. A subclass whose __init__ passes on what __new__ has not
        # had would believe in a store that is not there.
        made, self._made_with = self._made_with, {}
        if url is not None:
            arguments["url"] = url
        wrong = [name for name, value in arguments.items() if made.get(name, _MISSING) != value]
        if wrong and type(self).__new__ is CacheService.__new__:
            kind = type(self).__name__
            self._close(0.0)
            raise TypeError(
                f"{wrong[0]}: {kind}.__init__ passes it on, but a service is made in __new__, "
                f"which has had {made.get(wrong[0])!r}: override {kind}.__new__ instead"
            )

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

        What ``factory`` has returned is returned, whether the store takes it or not.

        Raises:
            TypeError, ValueError: an argument is wrong (before ``factory`` is called), or
                what ``factory`` returned is nothing that the codec can carry, or too long.
        """
        found = await self.get(ns, key, _MISSING)
        if found is not _MISSING:
            return cast(T, found)
        return cast(T, await load_once(self, ns, key, factory, ttl, tags))

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
        return cast(T, load_once_sync(self, ns, key, factory, ttl, tags))

    def namespace(
        self,
        ns: str,
        *,
        ttl: Seconds | None = None,
        key: Iterable[str] | None = None,
        tags: Iterable[str] | None = None,
    ) -> CacheView:
        """A view of one namespace with a TTL of its own.

        With ``key``, the names of fields, values are kept by those fields::

            research = svc.namespace("tech_research", ttl=86400, key=("category", "language"))
            await research.set("web", "python", findings)
            await research.get(category="web", language="python")
        """
        from ferrogate._view import CacheView

        return CacheView(self, ns, ttl=ttl, key=key, tags=tags)

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
        given = _check_warming(items, progress)
        ttl = None if ttl is None else seconds_or_never("ttl", ttl)
        names = None if tags is None else store_names("tags", tags)
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
            for ns, key, value in given:
                batch.append(self.set(ns, key, value, ttl, names))
                if len(batch) >= concurrency:
                    await flush()
        except BaseException:
            # Those before the one that cannot be stored are on their way.
            await asyncio.gather(*batch, return_exceptions=True)
            raise
        if batch:
            await flush()
        return stored

    def warm_sync(
        self,
        items: Iterable[tuple[str, Any, Any]],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """The blocking twin of :meth:`warm`: one after the other; ``progress`` after each."""
        given = _check_warming(items, progress)
        ttl = None if ttl is None else seconds_or_never("ttl", ttl)
        names = None if tags is None else store_names("tags", tags)
        stored = 0
        for done, (ns, key, value) in enumerate(given, 1):
            stored += self.set_sync(ns, key, value, ttl, names)
            if progress is not None:
                progress(done)
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
        all_figures = common | figures
        for name, before in self._zero.items():
            all_figures[name] -= before
        return cast(ServiceStats, all_figures)

    def reset_stats(self) -> None:
        """Counts from zero again."""
        super().reset_stats()
        self._zero = {}
        stats = cast("dict[str, int]", self.get_stats())
        self._zero = {name: stats[name] for name in NOT_RESET if name in stats}

    async def close(self) -> None:
        """Refuses everything from now on, once the store has what was acknowledged."""
        await asyncio.to_thread(self._close, _PATIENCE)

    def close_sync(self) -> None:
        """The blocking twin of :meth:`close`."""
        self._close(_PATIENCE)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_sync()

    def __del__(self) -> None:
        # Not at exit, which closes all services, nor where one could not even be made.
        if sys.is_finalizing():
            return
        with contextlib.suppress(Exception):
            if owed := self._figures()["owed"]:
                log(
                    "cache service",
                    self.name,
                    f"dropped, not closed; if its store answers, it is told {owed} changes",
                )

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


def _check_warming(
    items: Iterable[tuple[str, Any, Any]], progress: object
) -> Iterable[tuple[str, Any, Any]]:
    """The items, each checked as its turn comes."""
    if progress is not None and not callable(progress):
        raise TypeError(f"progress: expected a function, got {type(progress).__name__}")
    if not isinstance(items, Iterable):
        raise TypeError(f"items: expected (ns, key, value) triples, got {type(items).__name__}")

    def checked() -> Iterable[tuple[str, Any, Any]]:
        for item in items:
            if not isinstance(item, tuple | list) or len(item) != _TRIPLE:
                raise TypeError(f"items: expected (ns, key, value) triples, got {item!r:.100}")
            yield item[0], item[1], item[2]

    return checked()


_TRIPLE = 3
_MISSING = object()


def _miss(_self: object, _ns: str, _key: object, default: Any = None) -> Any:
    return default


async def _miss_async(_self: object, _ns: str, _key: object, default: Any = None) -> Any:
    return default


def _nothing(_self: object, *_: object, **__: object) -> bool:
    return False


async def _nothing_async(_self: object, *_: object, **__: object) -> bool:
    return False


_suites.replaces(
    CacheService,
    get=_miss_async,
    get_sync=_miss,
    set=_nothing_async,
    set_sync=_nothing,
    exists=_nothing_async,
    exists_sync=_nothing,
    delete=_nothing_async,
    delete_sync=_nothing,
)
