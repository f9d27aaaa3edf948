"""LangGraph's node cache in a cache service.

::

    graph = builder.compile(cache=FerrogateCache(CacheService("sqlite:///./cache.db")))
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from langgraph.cache.base import BaseCache, FullKey, Namespace
from langgraph.checkpoint.serde.base import SerializerProtocol

from ferrogate.integrations._payload import check_service, keeping, packed, unpacked
from ferrogate.service import CacheService

__all__ = ["FerrogateCache"]

ValueT = TypeVar("ValueT")

_log = logging.getLogger("ferrogate")


class FerrogateCache(BaseCache[ValueT], Generic[ValueT]):
    """A ``langgraph.cache.base.BaseCache`` in one namespace of a service.

    Values are what LangGraph's own serializer makes of them, whatever the
    service's codec. One that cannot be read any more is a miss.

    Args:
        service: where the values live; it is not closed by this.
        namespace: the service's namespace for all of LangGraph's.
        serde: LangGraph's serializer; its default one without.

    Raises:
        TypeError: ``service`` is none.
    """

    def __init__(
        self,
        service: CacheService,
        *,
        namespace: str = "langgraph",
        serde: SerializerProtocol | None = None,
    ) -> None:
        super().__init__(serde=serde)
        self._service = check_service(service)
        self._namespace = namespace

    def get(self, keys: Sequence[FullKey]) -> dict[FullKey, ValueT]:
        """The cached values of those keys that have one."""
        found = [self._service.get_sync(self._namespace, _key(full)) for full in keys]
        return self._values(keys, found)

    async def aget(self, keys: Sequence[FullKey]) -> dict[FullKey, ValueT]:
        """The cached values of those keys that have one."""
        found = await asyncio.gather(
            *(self._service.get(self._namespace, _key(full)) for full in keys)
        )
        return self._values(keys, found)

    def set(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> None:
        """Stores values, each with its seconds to live, or ``None`` for the service's own."""
        for full, (value, ttl) in pairs.items():
            with keeping("langgraph cache"):
                self._service.set_sync(
                    self._namespace, _key(full), self._packed(value), ttl, self._tags(full)
                )

    async def aset(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> None:
        """Stores values, each with its seconds to live, or ``None`` for the service's own."""
        writes: list[Awaitable[bool]] = []
        for full, (value, ttl) in pairs.items():
            with keeping("langgraph cache"):
                stored = self._packed(value)
                writes.append(
                    self._service.set(self._namespace, _key(full), stored, ttl, self._tags(full))
                )
        for write in writes:
            with keeping("langgraph cache"):
                await write

    def clear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Forgets these namespaces of LangGraph's, or all of them."""
        if namespaces is None:
            self._service.invalidate_namespace_sync(self._namespace)
            return
        for namespace in namespaces:
            self._service.invalidate_tag_sync(self._tag(namespace))

    async def aclear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Forgets these namespaces of LangGraph's, or all of them."""
        if namespaces is None:
            await self._service.invalidate_namespace(self._namespace)
            return
        for namespace in namespaces:
            await self._service.invalidate_tag(self._tag(namespace))

    def _tags(self, full: FullKey) -> tuple[str]:
        return (self._tag(full[0]),)

    def _tag(self, namespace: Namespace) -> str:
        # Lengths, so that ("a", "bc") and ("ab", "c") are two.
        parts = "".join(f"{len(part)}:{part}" for part in namespace)
        return f"{self._namespace}/{parts}"

    def _packed(self, value: ValueT) -> bytes | str:
        kind, payload = self.serde.dumps_typed(value)
        return packed(self._service, kind.encode() + b"\0" + payload)

    def _values(self, keys: Sequence[FullKey], found: Sequence[object]) -> dict[FullKey, ValueT]:
        values: dict[FullKey, ValueT] = {}
        for full, stored in zip(keys, found, strict=True):
            payload = unpacked(stored)
            if payload is None:
                continue
            kind, _, rest = payload.partition(b"\0")
            try:
                value: Any = self.serde.loads_typed((kind.decode(), rest))
            except Exception as error:
                # Written by another version of its class, say. The node runs again.
                _log.warning("langgraph cache: %s cannot be read any more: %r", full, error)
                continue
            values[(tuple(full[0]), full[1])] = value
        return values


def _key(full: FullKey) -> tuple[tuple[str, ...], str]:
    return tuple(full[0]), full[1]
