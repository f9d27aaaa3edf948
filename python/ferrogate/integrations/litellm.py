"""LiteLLM's response cache in a cache service.

::

    litellm.cache = litellm.Cache(type="local")
    litellm.cache.cache = FerrogateCache(CacheService("sqlite:///./cache.db"))
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Any

from litellm.caching.base_cache import BaseCache

from ferrogate.integrations._payload import check_service
from ferrogate.service import CacheService, Seconds

__all__ = ["FerrogateCache"]

_log = logging.getLogger("ferrogate")


class FerrogateCache(BaseCache):
    """A ``litellm.caching.base_cache.BaseCache`` in one namespace of a service.

    Values are what LiteLLM gives it: dicts and strings that any codec but
    ``"bytes"`` carries. One that cannot be stored is logged and not kept, as
    LiteLLM does it with its own caches: the answer reaches the caller anyway.

    Args:
        service: where the responses live; it is not closed by this.
        namespace: the service's namespace for them.
        ttl: seconds (or a timedelta) that they live where LiteLLM does not say it;
            ``None`` for the service's own.

    Raises:
        TypeError: ``service`` is none.
        ValueError: its codec carries bytes only.
    """

    def __init__(
        self, service: CacheService, *, namespace: str = "litellm", ttl: Seconds | None = None
    ) -> None:
        super().__init__()
        self._service = check_service(service)
        if service.codec == "bytes":
            raise ValueError("service: codec 'bytes' cannot carry LiteLLM's responses; use 'json'")
        self.namespace = namespace
        self._ttl = ttl

    def _seconds(self, given: dict[str, Any]) -> Seconds | None:
        ttl = given.get("ttl")
        return self._ttl if ttl is None else float(ttl)

    def set_cache(self, key: str, value: Any, **kwargs: Any) -> None:
        """Keeps a response."""
        self._service.set_sync(self.namespace, key, value, self._seconds(kwargs))

    async def async_set_cache(self, key: str, value: Any, **kwargs: Any) -> None:
        """Keeps a response."""
        await self._service.set(self.namespace, key, value, self._seconds(kwargs))

    async def async_set_cache_pipeline(
        self, cache_list: Sequence[tuple[str, Any]], **kwargs: Any
    ) -> None:
        """Keeps several responses at once."""
        ttl = self._seconds(kwargs)
        writes: list[Awaitable[bool]] = [
            self._service.set(self.namespace, key, value, ttl) for key, value in cache_list
        ]
        await asyncio.gather(*writes)

    async def batch_cache_write(self, key: str, value: Any, **kwargs: Any) -> None:
        """Keeps a response; batches are the service's own business."""
        await self.async_set_cache(key, value, **kwargs)

    def get_cache(self, key: str, **kwargs: Any) -> Any:
        """The response, or ``None``."""
        return self._service.get_sync(self.namespace, key)

    async def async_get_cache(self, key: str, **kwargs: Any) -> Any:
        """The response, or ``None``."""
        return await self._service.get(self.namespace, key)

    def batch_get_cache(self, keys: Sequence[str], **kwargs: Any) -> list[Any]:
        """The responses, ``None`` for each that is not there."""
        return [self.get_cache(key) for key in keys]

    async def async_batch_get_cache(self, keys: Sequence[str], **kwargs: Any) -> list[Any]:
        """The responses, ``None`` for each that is not there."""
        return list(await asyncio.gather(*(self.async_get_cache(key) for key in keys)))

    def delete_cache(self, key: str) -> None:
        """Forgets a response."""
        self._service.delete_sync(self.namespace, key)

    def flush_cache(self) -> None:
        """Forgets all responses."""
        self._service.invalidate_namespace_sync(self.namespace)

    async def disconnect(self) -> None:
        """Nothing: the service is not ours to close."""

    async def test_connection(self) -> dict[str, str]:
        """Whether the service's store answers."""
        if await self._service.health_check():
            return {"status": "success", "message": f"{self._service.url} answers"}
        message = f"{self._service.url} does not answer"
        return {"status": "failed", "message": message, "error": message}
