"""One namespace of a cache service: by key, or by the fields that make the key."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from ferrogate._arguments import seconds_or_never, store_name, store_names
from ferrogate._core import cache_key
from ferrogate._service_cached import Place, wrapped
from ferrogate._service_loads import check_factory

if TYPE_CHECKING:
    from ferrogate.service import CacheService, Seconds, ServiceStats

__all__ = ["CacheView"]

F = TypeVar("F", bound=Callable[..., Any])

#: Arguments of a view's methods, which no field can be called.
_RESERVED = ("default", "factory", "tags", "ttl", "value")


class Store(Protocol):
    """What a view calls: a service, or what stands in front of one."""

    async def get(self, ns: str, key: Any, default: Any = None) -> Any: ...
    def get_sync(self, ns: str, key: Any, default: Any = None) -> Any: ...
    async def set(
        self, ns: str, key: Any, value: Any, ttl: Any = None, tags: Any = None
    ) -> bool: ...
    def set_sync(
        self, ns: str, key: Any, value: Any, ttl: Any = None, tags: Any = None
    ) -> bool: ...
    async def delete(self, ns: str, key: Any) -> bool: ...
    def delete_sync(self, ns: str, key: Any) -> bool: ...
    async def exists(self, ns: str, key: Any) -> bool: ...
    def exists_sync(self, ns: str, key: Any) -> bool: ...
    async def invalidate_namespace(self, ns: str) -> bool: ...
    def invalidate_namespace_sync(self, ns: str) -> bool: ...
    async def get_or_set(
        self, ns: str, key: Any, factory: Any, *, ttl: Any = None, tags: Any = None
    ) -> Any: ...
    def get_or_set_sync(
        self, ns: str, key: Any, factory: Any, *, ttl: Any = None, tags: Any = None
    ) -> Any: ...


class CacheView:
    """One namespace of a service, with a TTL, tags and fields of its own.

    ``CacheService.namespace()`` makes one. Its keys are those of the namespace; with
    ``key=("category", "language")`` values are kept by these fields, which are given by
    position or by name.

    Args:
        service: the service.
        namespace: at most 1024 bytes.
        ttl: seconds (or a timedelta) that a value lives; ``None`` is the service's.
        key: names of fields.
        tags: for ``invalidate_tag``, on every value.
    """

    def __init__(
        self,
        service: CacheService | Store,
        namespace: str,
        *,
        ttl: Seconds | None = None,
        key: Iterable[str] | None = None,
        tags: Iterable[str] | None = None,
    ) -> None:
        self._store = cast(Store, service)
        self.name = store_name("namespace", namespace)
        self._ttl = None if ttl is None else seconds_or_never("ttl", ttl)
        self._fields = None if key is None else _checked_fields(key)
        self._tags = None if tags is None else store_names("tags", tags)

    @property
    def service(self) -> CacheService:
        """The service that it is a view of."""
        return cast("CacheService", self._store)

    def cache_key(self, /, *key: Any, **fields: Any) -> Any:
        """The key under which the service has it: ``"{namespace}:{first field}:{digest}"``
        where values are kept by fields, and else the key itself."""
        names = self._fields
        if names is None:
            if len(key) == 1 and not fields:
                return key[0]
            if not key and fields.keys() == {"key"}:
                return fields["key"]
            raise TypeError(f"key: expected one, got {_shown(key, fields)}")
        given = dict(zip(names, key, strict=False))
        doubled = [name for name in fields if name in given]
        given.update(fields)
        if doubled or len(key) > len(names) or set(given) != set(names):
            raise TypeError(
                f"key: expected the fields {', '.join(names)}, got {_shown(key, fields)}"
            )
        values = [given[name] for name in names]
        digest = cache_key(*values)
        first = values[0]
        label = f"{first[:64]}:" if isinstance(first, str) and len(names) > 1 else ""
        return f"{self.name}:{label}{digest}"

    def _split(
        self, args: tuple[Any, ...], fields: dict[str, Any]
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What belongs to the key, and what comes behind it."""
        names = ("key",) if self._fields is None else self._fields
        count = sum(name not in fields for name in names)
        return args[:count], args[count:]

    def _key_and_default(
        self, args: tuple[Any, ...], fields: dict[str, Any], default: Any
    ) -> tuple[Any, Any]:
        if self._fields is None and len(args) + len(fields) == 2:
            args, rest = self._split(args, fields)
            if rest:
                default = rest[0]
        return self.cache_key(*args, **fields), default

    def _written(
        self, args: tuple[Any, ...], fields: dict[str, Any], ttl: Any, tags: Any
    ) -> tuple[Any, ...]:
        args, rest = self._split(args, fields)
        if "value" in fields:
            rest = (fields.pop("value"), *rest)
        if not rest:
            raise TypeError(f"value: missing, got {_shown(args, fields)}")
        value, *more = rest
        if len(more) > 1 or (more and ttl is not None):
            raise TypeError(f"value: expected one and a ttl behind it, got {_shown(rest, {})}")
        key = self.cache_key(*args, **fields)
        return self.name, key, value, *self._terms(more[0] if more else ttl, tags)

    def _terms(self, ttl: Any, tags: Any) -> tuple[Any, list[str] | None]:
        """A call's TTL and tags, with the view's."""
        ttl = self._ttl if ttl is None else ttl
        tags = [] if tags is None else store_names("tags", tags)
        return ttl, [*(self._tags or ()), *tags] or None

    def _loading(
        self, args: tuple[Any, ...], fields: dict[str, Any], factory: Any
    ) -> tuple[Any, Any]:
        args, rest = self._split(args, fields)
        if len(rest) > 1 or (rest and factory is not None):
            raise TypeError(f"factory: expected one, got {_shown(rest, {})} behind the key")
        factory = rest[0] if rest else factory
        check_factory(factory)
        return self.cache_key(*args, **fields), factory

    async def get(self, /, *key: Any, default: Any = None, **fields: Any) -> Any:
        """The value under a key or some fields, or ``default``."""
        if len(key) != 1 or fields or self._fields is not None:
            one, default = self._key_and_default(key, fields, default)
        else:
            one = key[0]
        return await self._store.get(self.name, one, default)

    def get_sync(self, /, *key: Any, default: Any = None, **fields: Any) -> Any:
        """The blocking twin of :meth:`get`."""
        one, default = self._key_and_default(key, fields, default)
        return self._store.get_sync(self.name, one, default)

    async def set(
        self,
        /,
        *key_and_value: Any,
        ttl: Seconds | None = None,
        tags: Iterable[str] | None = None,
        **fields: Any,
    ) -> bool:
        """Stores a value: ``set(key, value)``, ``set(key, value, ttl)``, or with fields
        ``set(web, python, value)``, ``set(value, category=…, language=…)``; all by name, too.

        True if the store has it.

        Raises:
            TypeError, ValueError: the codec cannot carry the value, or it is too long. A
                :class:`CacheClient` logs that and returns ``False``.
        """
        return await self._store.set(*self._written(key_and_value, fields, ttl, tags))

    def set_sync(
        self,
        /,
        *key_and_value: Any,
        ttl: Seconds | None = None,
        tags: Iterable[str] | None = None,
        **fields: Any,
    ) -> bool:
        """The blocking twin of :meth:`set`."""
        return self._store.set_sync(*self._written(key_and_value, fields, ttl, tags))

    async def delete(self, /, *key: Any, **fields: Any) -> bool:
        """Removes a value; true if it was there."""
        return await self._store.delete(self.name, self.cache_key(*key, **fields))

    def delete_sync(self, /, *key: Any, **fields: Any) -> bool:
        """The blocking twin of :meth:`delete`."""
        return self._store.delete_sync(self.name, self.cache_key(*key, **fields))

    async def exists(self, /, *key: Any, **fields: Any) -> bool:
        """Whether a value is there, as ``CacheService.exists``: it is not read."""
        return await self._store.exists(self.name, self.cache_key(*key, **fields))

    def exists_sync(self, /, *key: Any, **fields: Any) -> bool:
        """The blocking twin of :meth:`exists`."""
        return self._store.exists_sync(self.name, self.cache_key(*key, **fields))

    async def invalidate(self) -> bool:
        """Outdates everything in the namespace."""
        return await self._store.invalidate_namespace(self.name)

    def invalidate_sync(self) -> bool:
        """The blocking twin of :meth:`invalidate`."""
        return self._store.invalidate_namespace_sync(self.name)

    async def get_or_set(
        self,
        /,
        *key: Any,
        factory: Callable[[], Awaitable[Any]] | None = None,
        ttl: Seconds | None = None,
        tags: Iterable[str] | None = None,
        **fields: Any,
    ) -> Any:
        """The value under a key or some fields; on a miss ``await factory()`` makes it.

        ``factory`` may stand behind the key. Else as ``CacheService.get_or_set``.
        """
        one, make = self._loading(key, fields, factory)
        ttl, tags = self._terms(ttl, tags)
        return await self._store.get_or_set(self.name, one, make, ttl=ttl, tags=tags)

    def get_or_set_sync(
        self,
        /,
        *key: Any,
        factory: Callable[[], Any] | None = None,
        ttl: Seconds | None = None,
        tags: Iterable[str] | None = None,
        **fields: Any,
    ) -> Any:
        """The blocking twin of :meth:`get_or_set`."""
        one, make = self._loading(key, fields, factory)
        ttl, tags = self._terms(ttl, tags)
        return self._store.get_or_set_sync(self.name, one, make, ttl=ttl, tags=tags)

    def cached(
        self,
        function: F | None = None,
        /,
        *,
        ttl: Seconds | None = None,
        key: Callable[..., object] | None = None,
        ignore: Iterable[str] = (),
        tags: Iterable[str] | None = None,
        name: str | None = None,
    ) -> Any:
        """Keeps a function's results in this namespace, for all processes.

        The key is the function's full name with its arguments, defaults filled in. For a
        method leave the instance out: ``ignore=("self",)``. A function of a script has the
        script's path in its name, so no other script gets its results.

        What it takes from around it (a model's name in a closure, say) is in no key, so such a
        function needs ``key=`` or ``name=``, and so does a lambda, which has no name.

        The function has ``cache_key(...)``, ``cache_invalidate(...)``, which blocks, and
        ``cache_invalidate_async(...)``, all called with its arguments.

        Args:
            function: a function or coroutine function.
            ttl: seconds (or a timedelta) that a result lives, instead of the namespace's.
            key: called with the arguments, returns what is to be the key beside the name.
            ignore: names of parameters that do not count.
            tags: for ``invalidate_tag``, beside the namespace's own.
            name: instead of the full name; one for each function. A new one, ``"ask.v2"``,
                leaves the old results behind.

        Raises:
            ValueError, TypeError: an argument is wrong, or the function needs ``key=``.
        """
        if function is None:
            more = {"ttl": ttl, "key": key, "ignore": ignore, "tags": tags, "name": name}
            return functools.partial(self.cached, **more)  # type: ignore[arg-type]
        ttl = self._ttl if ttl is None else seconds_or_never("ttl", ttl)
        place = Place(self._store, self.name, *self._terms(ttl, tags))
        return wrapped(place, function, name, key, ignore)

    async def health_check(self) -> bool:
        """Whether the store answers and can be written to."""
        return await self.service.health_check()

    def health_check_sync(self) -> bool:
        """The blocking twin of :meth:`health_check`."""
        return self.service.health_check_sync()

    def get_stats(self) -> ServiceStats:
        """The statistics of its service."""
        return self.service.get_stats()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.service!r})"


def _checked_fields(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise TypeError(f"key: expected names of fields such as ({names!r},), got a str")
    if not isinstance(names, Iterable):
        raise TypeError(f"key: expected names of fields, got {type(names).__name__}")
    fields = tuple(names)
    for field in fields:
        if not isinstance(field, str):
            raise TypeError(f"key: expected names of fields, got {field!r:.100}")
        if field in _RESERVED:
            raise ValueError(
                f"key: {field!r} is an argument of get or set; call the field otherwise"
            )
    if not fields or not all(fields) or len(set(fields)) < len(fields):
        raise ValueError(f"key: expected names of fields, each once, got {fields!r:.100}")
    return fields


def _shown(key: tuple[Any, ...], fields: dict[str, Any]) -> str:
    """What was given, as it was written."""
    given = [f"{one!r:.40}" for one in key] + [f"{name}=" for name in fields]
    return ", ".join(given) if given else "nothing"
