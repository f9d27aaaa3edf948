"""One namespace of a cache service: by key, or by the fields that make the key."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self, TypeVar, cast

from ferrogate._arguments import seconds_or_never, text_or_none
from ferrogate._core import _check_tags, cache_key
from ferrogate.service import CacheService, Seconds

F = TypeVar("F", bound=Callable[..., Any])

_log = logging.getLogger("ferrogate")

#: What ``ENABLE_CACHING`` and the like may say for no.
_NO = {"0", "false", "no", "off"}


class CacheClient:
    """A cache with plain keys, in which any failure is a miss.

    Made from a URL it has a service of its own; ``CacheService.namespace()`` makes
    one that is a view of the service, with a TTL, fields and tags of its own.

    Args:
        url: as for :class:`CacheService`; ``None`` takes ``REDIS_URL`` from the
            environment, and ``memory://`` if that is not set.
        namespace: where its keys live.
        ttl: seconds (or a timedelta) that a value lives; ``None`` takes
            ``TECH_SPEC_CACHE_TTL`` from the environment, for ever if that is not set.
        arguments: as for :class:`CacheService`. ``ENABLE_CACHING=false`` in the
            environment is ``enabled=False``.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "default",
        ttl: Seconds | None = None,
        **arguments: Any,
    ) -> None:
        environ = os.environ
        if ttl is None and environ.get("TECH_SPEC_CACHE_TTL"):
            try:
                ttl = float(environ["TECH_SPEC_CACHE_TTL"])
            except ValueError as error:
                raise ValueError(f"TECH_SPEC_CACHE_TTL: expected seconds, got {error}") from None
        if environ.get("ENABLE_CACHING", "").strip().lower() in _NO:
            arguments["enabled"] = False
        url = url or environ.get("REDIS_URL") or "memory://"
        self._service = CacheService(url, **arguments)
        self._owned = True
        self._set_up(namespace, ttl, None, None)

    @classmethod
    def _of(
        cls,
        service: CacheService,
        namespace: str,
        *,
        ttl: Seconds | None,
        key: Iterable[str] | None,
        tags: Iterable[str] | None,
    ) -> Self:
        self = cls.__new__(cls)
        self._service = service
        self._owned = False
        self._set_up(namespace, ttl, key, tags)
        return self

    def _set_up(
        self,
        namespace: str,
        ttl: Seconds | None,
        key: Iterable[str] | None,
        tags: Iterable[str] | None,
    ) -> None:
        if not isinstance(namespace, str):
            raise TypeError(f"namespace: expected a str, got {type(namespace).__name__}")
        if isinstance(key, str):
            raise TypeError(f"key: expected names of fields such as ({key!r},), got a str")
        self.name = namespace
        self._ttl = None if ttl is None else seconds_or_never("ttl", ttl)
        self._fields = None if key is None else tuple(key)
        for field in self._fields or ():
            text_or_none("key", field)
        self._tags = None if tags is None else _check_tags(tags)

    @property
    def service(self) -> CacheService:
        """The service that it is a view of."""
        return self._service

    def cache_key(self, *key: Any, **fields: Any) -> Any:
        """The key under which the service has it: ``"{namespace}:{first field}:{digest}"``
        where values are kept by fields, and else the key itself."""
        if self._fields is None:
            if fields or len(key) != 1:
                raise TypeError(f"{self.name}: expected one key, got {len(key)} and {list(fields)}")
            return key[0]
        names = self._fields
        given = dict(zip(names, key, strict=False))
        doubled = [name for name in fields if name in given]
        given.update(fields)
        if doubled or len(key) > len(names) or set(given) != set(names):
            raise TypeError(f"{self.name}: expected the fields {list(names)}, got {list(given)}")
        values = [given[name] for name in names]
        digest = cache_key(*values)
        first = values[0]
        label = f"{first[:64]}:" if isinstance(first, str) and len(names) > 1 else ""
        return f"{self.name}:{label}{digest}"

    def _write(
        self, args: tuple[Any, ...], fields: dict[str, Any], ttl: Any, tags: Any, method: Any
    ) -> Any:
        if "value" in fields and "value" not in (self._fields or ()):
            value = fields.pop("value")
        elif args:
            *args_, value = args
            if self._fields is None and len(args_) == 2 and ttl is None:
                # set(key, value, ttl)
                key, value_, ttl = args
                args_, value = [key], value_
            args = tuple(args_)
        else:
            raise TypeError(f"{self.name}: nothing to set")
        if tags is not None:
            tags = _check_tags(tags)
        tags = [*(self._tags or ()), *(tags or ())] or None
        return method(
            self.name,
            self.cache_key(*args, **fields),
            value,
            self._ttl if ttl is None else ttl,
            tags,
        )

    async def initialize(self) -> bool:
        """Opens the store; true if it answers."""
        return await self.health_check()

    async def get(self, *key: Any, default: Any = None, **fields: Any) -> Any:
        """The value under a key or some fields, or ``default``."""
        return await self._service.get(self.name, self.cache_key(*key, **fields), default)

    def get_sync(self, *key: Any, default: Any = None, **fields: Any) -> Any:
        """The blocking twin of :meth:`get`."""
        return self._service.get_sync(self.name, self.cache_key(*key, **fields), default)

    async def set(
        self,
        *key_and_value: Any,
        ttl: Seconds | None = None,
        tags: Iterable[str] | None = None,
        **fields: Any,
    ) -> bool:
        """Stores a value, the last argument: ``set(key, value)``, ``set(key, value, ttl)``,
        or with fields ``set(web, python, value)``, ``set(value, category=…, language=…)``.

        True if the store has it.

        Raises:
            TypeError, ValueError: the codec cannot carry the value, or it is too long. A
                client that was made from a URL logs that and returns ``False``.
        """
        try:
            return bool(await self._write(key_and_value, fields, ttl, tags, self._service.set))
        except (TypeError, ValueError) as error:
            return self._failed(error)

    def set_sync(
        self,
        *key_and_value: Any,
        ttl: Seconds | None = None,
        tags: Iterable[str] | None = None,
        **fields: Any,
    ) -> bool:
        """The blocking twin of :meth:`set`."""
        try:
            return bool(self._write(key_and_value, fields, ttl, tags, self._service.set_sync))
        except (TypeError, ValueError) as error:
            return self._failed(error)

    def _failed(self, error: Exception) -> bool:
        if not self._owned:
            raise error
        _log.warning("cache client %s: not stored: %s", self.name, error)
        return False

    async def delete(self, *key: Any, **fields: Any) -> bool:
        """Removes a value; true if it was there."""
        return await self._service.delete(self.name, self.cache_key(*key, **fields))

    def delete_sync(self, *key: Any, **fields: Any) -> bool:
        """The blocking twin of :meth:`delete`."""
        return self._service.delete_sync(self.name, self.cache_key(*key, **fields))

    async def exists(self, *key: Any, **fields: Any) -> bool:
        """Whether a value is there."""
        return await self._service.exists(self.name, self.cache_key(*key, **fields))

    def exists_sync(self, *key: Any, **fields: Any) -> bool:
        """The blocking twin of :meth:`exists`."""
        return self._service.exists_sync(self.name, self.cache_key(*key, **fields))

    async def invalidate(self) -> bool:
        """Outdates everything in the namespace."""
        return await self._service.invalidate_namespace(self.name)

    def invalidate_sync(self) -> bool:
        """The blocking twin of :meth:`invalidate`."""
        return self._service.invalidate_namespace_sync(self.name)

    async def get_or_set(
        self, *key: Any, factory: Callable[[], Awaitable[Any]], **fields: Any
    ) -> Any:
        """The value under a key or some fields; on a miss ``await factory()`` makes it."""
        return await self._service.get_or_set(
            self.name,
            self.cache_key(*key, **fields),
            factory,
            ttl=self._ttl,
            tags=self._tags,
        )

    def get_or_set_sync(self, *key: Any, factory: Callable[[], Any], **fields: Any) -> Any:
        """The blocking twin of :meth:`get_or_set`."""
        return self._service.get_or_set_sync(
            self.name,
            self.cache_key(*key, **fields),
            factory,
            ttl=self._ttl,
            tags=self._tags,
        )

    def cached(
        self,
        function: F | None = None,
        /,
        *,
        ttl: Seconds | None = None,
        key: Callable[..., object] | None = None,
        ignore: Iterable[str] = (),
        tags: Iterable[str] | None = None,
    ) -> Any:
        """Keeps a function's results in this namespace, for all processes.

        The key is the function's full name with its arguments, defaults filled in. For a
        method leave the instance out: ``ignore=("self",)``.

        Args:
            function: a function or coroutine function.
            ttl: seconds (or a timedelta) that a result lives, instead of the namespace's.
            key: called with the arguments, returns what is to be the key beside the name. What
                the function takes from around it (a model's name in a closure, say) is in no
                key unless this puts it there; a second closure of the same name is logged.
            ignore: names of parameters that do not count.
            tags: for ``invalidate_tag``, beside the namespace's own.
        """
        if function is None:
            return functools.partial(self.cached, ttl=ttl, key=key, ignore=ignore, tags=tags)
        if not callable(function):
            raise TypeError(f"cached: expected a function, got {type(function).__name__}")
        if not hasattr(function, "__qualname__"):
            raise TypeError(f"cached: a {type(function).__name__} has no name; write a function")
        if isinstance(ignore, str):
            raise TypeError(f"ignore: expected names of parameters such as ({ignore!r},)")
        left_out = frozenset(ignore)
        ttl = self._ttl if ttl is None else seconds_or_never("ttl", ttl)
        all_tags = [*(self._tags or ()), *(() if tags is None else _check_tags(tags))] or None
        signature = inspect.signature(function)
        full_name = f"{function.__module__}.{function.__qualname__}"
        if key is None and "<lambda>" in full_name:
            raise ValueError(
                f"key: {full_name} has no name of its own, so any other lambda would get its "
                "results; write it as a function, or give key="
            )
        service, name = self._service, self.name
        if key is None and not service._is_one_closure(name, full_name, function):
            _log.warning(
                "cache client %s: %s is cached a second time, around other values; the two share "
                "their results unless key= tells them apart",
                name,
                full_name,
            )

        def key_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
            if key is not None:
                return f"{full_name}:{cache_key(key(*args, **kwargs))}"
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            counted = {k: v for k, v in bound.arguments.items() if k not in left_out}
            return f"{full_name}:{cache_key(counted)}"

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def load_async(*args: Any, **kwargs: Any) -> Any:
                return await service.get_or_set(
                    name,
                    key_of(args, kwargs),
                    lambda: function(*args, **kwargs),
                    ttl=ttl,
                    tags=all_tags,
                )

            wrapper: Any = load_async
        else:

            @functools.wraps(function)
            def load(*args: Any, **kwargs: Any) -> Any:
                return service.get_or_set_sync(
                    name,
                    key_of(args, kwargs),
                    lambda: function(*args, **kwargs),
                    ttl=ttl,
                    tags=all_tags,
                )

            wrapper = load
        wrapper.cache_key = lambda *args, **kwargs: key_of(args, kwargs)
        wrapper.cache_invalidate = lambda *args, **kwargs: service.delete_sync(
            name, key_of(args, kwargs)
        )
        return cast(F, wrapper)

    async def health_check(self) -> bool:
        """Whether the store answers."""
        return await self._service.health_check()

    def get_stats(self) -> dict[str, Any]:
        """The statistics of its service."""
        return cast("dict[str, Any]", self._service.get_stats())

    async def close(self) -> None:
        """Closes its service, unless it is only a view of one."""
        if self._owned:
            await self._service.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self._service!r})"


__all__ = ["CacheClient"]
