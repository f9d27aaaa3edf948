"""LangGraph's node cache in a cache service.

::

    graph = builder.compile(cache=FerrogateCache(CacheService("sqlite:///./cache.db")))
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Generic, TypeVar

from langgraph.cache.base import BaseCache, FullKey, Namespace
from langgraph.checkpoint.serde.base import SerializerProtocol

from ferrogate._arguments import store_name
from ferrogate.integrations._payload import (
    Guard,
    check_service,
    packed,
    unpacked,
)
from ferrogate.service import CacheService

__all__ = ["FerrogateCache"]

ValueT = TypeVar("ValueT")


class FerrogateCache(BaseCache[ValueT], Generic[ValueT]):
    """A ``langgraph.cache.base.BaseCache`` in one namespace of a service.

    Values are what LangGraph's own serializer makes of them, whatever the service's
    codec. What cannot be read is a miss and is forgotten, and what cannot be kept is
    logged, once for each reason, also where the service is closed or strict: the node
    has run. Only :meth:`clear` and :meth:`aclear` raise.

    Args:
        service: where the values live; it is not closed by this.
        namespace: the service's namespace for all of LangGraph's.
        serde: LangGraph's serializer; its default one without.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
    """

    def __init__(
        self,
        service: CacheService,
        *,
        namespace: str = "langgraph",
        serde: SerializerProtocol | None = None,
    ) -> None:
        for method in ("dumps_typed", "loads_typed"):
            if serde is not None and not callable(getattr(serde, method, None)):
                raise TypeError(
                    f"serde: expected LangGraph's SerializerProtocol, got {type(serde).__name__}"
                )
        super().__init__(serde=serde)
        self._service = check_service(service)
        self._namespace = store_name("namespace", namespace)
        self._keeping = Guard("langgraph cache: a value was not kept")
        self._reading = Guard("langgraph cache: a value was not read")

    def get(self, keys: Sequence[FullKey]) -> dict[FullKey, ValueT]:
        """The cached values of those keys that have one."""
        found = []
        for full in keys:
            with self._reading:
                key = _key(full)
                value = self._read(self._service.get_sync(self._namespace, key))
                if value is _UNREADABLE:
                    self._service.delete_sync(self._namespace, key)
                found.append((full, value))
        return _values(found)

    async def aget(self, keys: Sequence[FullKey]) -> dict[FullKey, ValueT]:
        """The cached values of those keys that have one."""

        async def read(full: FullKey) -> tuple[FullKey, Any]:
            with self._reading:
                key = _key(full)
                value = self._read(await self._service.get(self._namespace, key))
                if value is _UNREADABLE:
                    await self._service.delete(self._namespace, key)
                return full, value
            return full, _NOTHING

        return _values(await asyncio.gather(*map(read, keys)))

    def set(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> None:
        """Stores values, each with its seconds to live, or ``None`` for the service's own."""
        for full, (value, ttl) in pairs.items():
            with self._keeping:
                key = _key(full)
                if ttl is not None and ttl <= 0:
                    self._service.delete_sync(self._namespace, key)
                    continue
                stored, tags = self._packed(value), (self._tag(full[0]),)
                self._service.set_sync(self._namespace, key, stored, ttl, tags)

    async def aset(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> None:
        """Stores values, each with its seconds to live, or ``None`` for the service's own."""

        async def write(full: FullKey, value: ValueT, ttl: int | None) -> None:
            with self._keeping:
                key = _key(full)
                if ttl is not None and ttl <= 0:
                    await self._service.delete(self._namespace, key)
                    return
                stored, tags = self._packed(value), (self._tag(full[0]),)
                await self._service.set(self._namespace, key, stored, ttl, tags)

        await asyncio.gather(*(write(full, *pair) for full, pair in pairs.items()))

    def clear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Forgets these namespaces of LangGraph's, or all of them.

        Raises:
            RuntimeError: the service is closed.
            CacheUnavailable: it is strict, and its store does not answer.
        """
        if namespaces is None:
            self._service.invalidate_namespace_sync(self._namespace)
            return
        for namespace in namespaces:
            self._service.invalidate_tag_sync(self._tag(namespace))

    async def aclear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """As :meth:`clear`."""
        if namespaces is None:
            await self._service.invalidate_namespace(self._namespace)
            return
        for namespace in namespaces:
            await self._service.invalidate_tag(self._tag(namespace))

    def _tag(self, namespace: Namespace) -> str:
        """One for each namespace, however long it is and whatever is in it."""
        digest = sha256()
        for part in (self._namespace, *namespace):
            # Lengths, so that ("a", "bc") and ("ab", "c") are two.
            kind, text = ("", part) if isinstance(part, str) else (type(part).__name__, repr(part))
            data = text.encode("utf-8", "surrogatepass")
            digest.update(b"%s:%d:" % (kind.encode(), len(data)) + data)
        return f"langgraph/{digest.hexdigest()}"

    def _packed(self, value: ValueT) -> bytes | str:
        kind, payload = self.serde.dumps_typed(value)
        return packed(self._service, kind.encode() + b"\0" + payload)

    def _read(self, stored: object) -> Any:
        """The value, or what says that there is none, or that it is garbage."""
        if stored is None:
            return _NOTHING
        try:
            kind, _, payload = unpacked(stored).partition(b"\0")
            return self.serde.loads_typed((kind.decode(), payload))
        except Exception as error:
            # Written by another version of its class, say. The node runs again.
            self._reading.log(error)
            return _UNREADABLE


_NOTHING, _UNREADABLE = object(), object()


def _values(found: Iterable[tuple[FullKey, Any]]) -> dict[FullKey, Any]:
    return {
        _key(full): value
        for full, value in found
        if value is not _NOTHING and value is not _UNREADABLE
    }


def _key(full: FullKey) -> FullKey:
    return tuple(full[0]), full[1]
