"""A cache with plain keys, in which any failure is a miss."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any, Self, cast

from ferrogate._arguments import seconds_or_never
from ferrogate._core import CacheUnavailable
from ferrogate._service_loads import at_exit, load_once, load_once_sync
from ferrogate._service_url import url_of
from ferrogate._view import CacheView
from ferrogate.service import CacheService, Seconds

__all__ = ["CacheClient"]

_log = logging.getLogger("ferrogate")

_NO = {"0", "false", "no", "off", "n", "f", "disabled"}
_YES = {"1", "true", "yes", "on", "y", "t", "enabled"}

_MISSING = object()


class _Tolerant:
    """A service behind which nothing raises: it may be closed, and opened again."""

    def __init__(self, url: str, arguments: dict[str, Any]) -> None:
        self._url = url
        self._arguments = arguments
        #: Whether the store that was asked for could not be opened, and memory stands in.
        self.fallen_back = False
        self.service = self._open()

    def _open(self) -> CacheService:
        try:
            service = CacheService(self._url, **self._arguments)
        except OSError as error:
            _log.warning("cache client: %s; it goes on in memory", error)
            self.fallen_back = True
            # Without the options of the store that it is not.
            known = CacheService.__new__.__kwdefaults__ or {}
            own = {name: given for name, given in self._arguments.items() if name in known}
            return CacheService("memory://", **own)
        self.fallen_back = False
        return service

    def open(self) -> None:
        """Opens the store if it is not open."""
        if self.fallen_back or self.service.closed:
            before, self.service = self.service, self._open()
            before.close_sync()

    def failed(self, what: str, error: Exception) -> None:
        """Logs it, unless the service was closed, the interpreter ends, or it is to raise."""
        if isinstance(error, CacheUnavailable):
            # Only from a service that is strict.
            raise error
        if not self.service.closed and not at_exit(self.service, error):
            _log.warning("cache client %s: %s: %s", self.service.name, what, error)

    async def get(self, ns: str, key: Any, default: Any = None) -> Any:
        try:
            return await self.service.get(ns, key, default)
        except Exception as error:
            self.failed("not read", error)
            return default

    def get_sync(self, ns: str, key: Any, default: Any = None) -> Any:
        try:
            return self.service.get_sync(ns, key, default)
        except Exception as error:
            self.failed("not read", error)
            return default

    async def set(self, ns: str, key: Any, value: Any, ttl: Any = None, tags: Any = None) -> bool:
        return await self._flag("not stored", self.service.set, ns, key, value, ttl, tags)

    def set_sync(self, ns: str, key: Any, value: Any, ttl: Any = None, tags: Any = None) -> bool:
        return self._flag_sync("not stored", self.service.set_sync, ns, key, value, ttl, tags)

    async def delete(self, ns: str, key: Any) -> bool:
        return await self._flag("not deleted", self.service.delete, ns, key)

    def delete_sync(self, ns: str, key: Any) -> bool:
        return self._flag_sync("not deleted", self.service.delete_sync, ns, key)

    async def exists(self, ns: str, key: Any) -> bool:
        return await self._flag("not looked up", self.service.exists, ns, key)

    def exists_sync(self, ns: str, key: Any) -> bool:
        return self._flag_sync("not looked up", self.service.exists_sync, ns, key)

    async def invalidate_namespace(self, ns: str) -> bool:
        return await self._flag("not invalidated", self.service.invalidate_namespace, ns)

    def invalidate_namespace_sync(self, ns: str) -> bool:
        return self._flag_sync("not invalidated", self.service.invalidate_namespace_sync, ns)

    async def get_or_set(
        self, ns: str, key: Any, factory: Any, *, ttl: Any = None, tags: Any = None
    ) -> Any:
        try:
            found = await self.service.get(ns, key, _MISSING)
            ttl = None if ttl is None else seconds_or_never("ttl", ttl)
        except Exception as error:
            self.failed("loaded without it", error)
            return await factory()
        if found is not _MISSING:
            return found
        return await load_once(self.service, ns, key, factory, ttl, tags, tolerant=True)

    def get_or_set_sync(
        self, ns: str, key: Any, factory: Any, *, ttl: Any = None, tags: Any = None
    ) -> Any:
        try:
            found = self.service.get_sync(ns, key, _MISSING)
            ttl = None if ttl is None else seconds_or_never("ttl", ttl)
        except Exception as error:
            self.failed("loaded without it", error)
            return factory()
        if found is not _MISSING:
            return found
        return load_once_sync(self.service, ns, key, factory, ttl, tags, tolerant=True)

    async def _flag(self, what: str, method: Callable[..., Awaitable[bool]], *args: Any) -> bool:
        try:
            return await method(*args)
        except Exception as error:
            self.failed(what, error)
            return False

    def _flag_sync(self, what: str, method: Callable[..., bool], *args: Any) -> bool:
        try:
            return method(*args)
        except Exception as error:
            self.failed(what, error)
            return False


class CacheClient(CacheView):
    """A cache with plain keys and a service of its own, in which any failure is a miss.

    Nothing that becomes of the store or is wrong with a value raises: reads are misses, writes
    are ``False``, ``get_or_set`` and ``cached`` return what was loaded; it is logged. A store
    that cannot be opened is replaced by memory, until :meth:`initialize` can open it. After
    :meth:`close` everything is a miss, until :meth:`initialize`.

    Args:
        url: as for :class:`CacheService`; ``None`` takes ``REDIS_URL`` from the
            environment unless ``ENABLE_REDIS_CACHE`` says no, and ``memory://`` if that is
            not set.
        namespace: where its keys live.
        ttl: seconds (or a timedelta) that a value lives; ``None`` takes
            ``TECH_SPEC_CACHE_TTL`` from the environment, for ever if that is not set.
        arguments: as for :class:`CacheService`. ``ENABLE_CACHING=false`` in the environment is
            ``enabled=False``, and ``ENABLE_MEMORY_CACHE=false`` leaves only the store; what is
            given here has precedence. With ``strict=True`` :class:`CacheUnavailable` is raised.

    Raises:
        ValueError, TypeError: an argument or a variable is wrong; the message names it.
    """

    _store: Any

    def __init__(
        self,
        url: str | os.PathLike[str] | None = None,
        *,
        namespace: str = "default",
        ttl: Seconds | None = None,
        **arguments: Any,
    ) -> None:
        variable = "TECH_SPEC_CACHE_TTL"
        if ttl is None and os.environ.get(variable):
            ttl = seconds_or_never(variable, _number(variable))
        if url is None:
            variable = "REDIS_URL"
            url = (_says("ENABLE_REDIS_CACHE") and os.environ.get(variable)) or "memory://"
        url = url_of(url)
        if not _says("ENABLE_CACHING"):
            arguments.setdefault("enabled", False)
        if not _says("ENABLE_MEMORY_CACHE"):
            if url.startswith("memory:"):
                arguments.setdefault("enabled", False)
            else:
                # Too little for any value.
                arguments.setdefault("near_bytes", 1)
        try:
            store = _Tolerant(url, arguments)
        except ValueError as error:
            if variable == "REDIS_URL":
                raise ValueError(str(error).replace("url:", "REDIS_URL:", 1)) from None
            raise
        super().__init__(cast(Any, store), namespace, ttl=ttl)

    @property
    def service(self) -> CacheService:
        """Its service; another one after :meth:`close` and :meth:`initialize`."""
        return cast(CacheService, self._store.service)

    async def initialize(self) -> bool:
        """Opens the store, if it is not open; true if it answers."""
        self._store.open()
        return await self.health_check()

    def initialize_sync(self) -> bool:
        """The blocking twin of :meth:`initialize`."""
        self._store.open()
        return self.health_check_sync()

    async def health_check(self) -> bool:
        """Whether the store answers and can be written to; not while memory stands in for it."""
        return not self._store.fallen_back and await super().health_check()

    def health_check_sync(self) -> bool:
        """The blocking twin of :meth:`health_check`."""
        return not self._store.fallen_back and super().health_check_sync()

    async def close(self) -> None:
        """Closes its service: from now on everything is a miss."""
        await self.service.close()

    def close_sync(self) -> None:
        """The blocking twin of :meth:`close`."""
        self.service.close_sync()

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __enter__(self) -> Self:
        self.initialize_sync()
        return self

    def __exit__(self, *_: object) -> None:
        self.close_sync()


def _says(variable: str) -> bool:
    """Yes where nothing is said."""
    word = os.environ.get(variable, "").strip().lower()
    if word in _NO:
        return False
    if word and word not in _YES:
        raise ValueError(f"{variable}: expected true or false in the environment, got {word!r}")
    return True


def _number(variable: str) -> float:
    text = os.environ[variable]
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{variable}: expected seconds in the environment, got {text!r}") from None
