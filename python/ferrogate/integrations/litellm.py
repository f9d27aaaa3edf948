"""LiteLLM's response cache in a cache service.

::

    litellm.cache = litellm.Cache(type="local")
    litellm.cache.cache = FerrogateCache(CacheService("sqlite:///./cache.db"))
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from litellm.caching.base_cache import BaseCache

from ferrogate._arguments import store_name
from ferrogate.integrations._payload import Guard, check_service, check_ttl
from ferrogate.service import CacheService, CacheUnavailable, Seconds

__all__ = ["FerrogateCache"]

#: Held between the reading and the writing of a sum: one lock.
_adding = [threading.Lock()]


def _after_fork_in_child() -> None:
    # Whoever held it is not in this process.
    _adding[:] = [threading.Lock()]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class FerrogateCache(BaseCache):
    """A ``litellm.caching.base_cache.BaseCache`` in one namespace of a service.

    Values are what LiteLLM gives it: dicts and strings that any codec but
    ``"bytes"`` carries. What cannot be read is a miss, and what cannot be kept is
    logged, once for each reason, also where the service is closed or strict: the
    answer reaches the caller anyway. Only :meth:`ping` and what forgets raise.

    Args:
        service: where the responses live; it is not closed by this.
        namespace: the service's namespace for them.
        ttl: seconds (or a timedelta) that they live where LiteLLM does not say it;
            ``None`` for the service's own.

    Raises:
        TypeError, ValueError: an argument is wrong, such as a service whose codec
            carries bytes only; the message names it.
    """

    def __init__(
        self, service: CacheService, *, namespace: str = "litellm", ttl: Seconds | None = None
    ) -> None:
        super().__init__()
        self._service = check_service(service)
        if service.codec == "bytes":
            raise ValueError("service: codec 'bytes' cannot carry LiteLLM's responses; use 'json'")
        self.namespace = store_name("namespace", namespace)
        self._ttl = check_ttl(ttl)
        self._keeping = Guard("litellm cache: a response was not kept")
        self._reading = Guard("litellm cache: a response was not read")

    def _seconds(self, given: Mapping[str, Any]) -> float | None:
        """How long LiteLLM has it live; what is no number says nothing, as in its own."""
        try:
            seconds = float(given["ttl"])
        except (KeyError, OverflowError, TypeError, ValueError):
            return self._ttl
        return self._ttl if math.isnan(seconds) else seconds

    def set_cache(self, key: str, value: Any, **kwargs: Any) -> None:
        """Keeps a response; with a ``ttl`` of 0 there is none from now on."""
        with self._keeping:
            seconds = self._seconds(kwargs)
            if seconds is not None and seconds <= 0:
                self._service.delete_sync(self.namespace, key)
            else:
                self._service.set_sync(self.namespace, key, value, seconds)

    async def async_set_cache(self, key: str, value: Any, **kwargs: Any) -> None:
        """Keeps a response; with a ``ttl`` of 0 there is none from now on."""
        with self._keeping:
            seconds = self._seconds(kwargs)
            if seconds is not None and seconds <= 0:
                await self._service.delete(self.namespace, key)
            else:
                await self._service.set(self.namespace, key, value, seconds)

    async def async_set_cache_pipeline(
        self, cache_list: Sequence[tuple[str, Any]], **kwargs: Any
    ) -> None:
        """Keeps several responses at once; one that cannot be kept loses only itself."""
        ttl = kwargs.get("ttl")
        await asyncio.gather(
            *(self.async_set_cache(key, value, ttl=ttl) for key, value in cache_list)
        )

    async def batch_cache_write(self, key: str, value: Any, **kwargs: Any) -> None:
        """Keeps a response; batches are the service's own business."""
        await self.async_set_cache(key, value, **kwargs)

    def get_cache(self, key: str, **kwargs: Any) -> Any:
        """The response, or ``None``."""
        with self._reading:
            return self._service.get_sync(self.namespace, key)
        return None

    async def async_get_cache(self, key: str, **kwargs: Any) -> Any:
        """The response, or ``None``."""
        with self._reading:
            return await self._service.get(self.namespace, key)
        return None

    def batch_get_cache(self, keys: Sequence[str], **kwargs: Any) -> list[Any]:
        """The responses, ``None`` for each that is not there."""
        return [self.get_cache(key) for key in keys]

    async def async_batch_get_cache(self, keys: Sequence[str], **kwargs: Any) -> list[Any]:
        """The responses, ``None`` for each that is not there."""
        return list(await asyncio.gather(*(self.async_get_cache(key) for key in keys)))

    def increment_cache(self, key: str, value: float, **kwargs: Any) -> float:
        """Adds to a number and returns the sum, which lives for ``ttl`` from now on.

        Nothing is lost between the threads of one process. Two processes that add at
        the same moment may lose one of them: the service has no sums of its own.
        """
        with _adding[0]:
            before = self.get_cache(key)
            if isinstance(before, int | float):
                value = before + value
            self.set_cache(key, value, **kwargs)
        return value

    async def async_increment(self, key: str, value: float, **kwargs: Any) -> float:
        """As :meth:`increment_cache`, in a thread."""
        return await asyncio.to_thread(self.increment_cache, key, value, **kwargs)

    def delete_cache(self, key: str) -> None:
        """Forgets a response."""
        self._service.delete_sync(self.namespace, key)

    async def delete_cache_keys(self, keys: Sequence[str]) -> None:
        """Forgets responses."""
        await asyncio.gather(*(self._service.delete(self.namespace, key) for key in keys))

    def flush_cache(self) -> None:
        """Forgets all responses."""
        self._service.invalidate_namespace_sync(self.namespace)

    async def disconnect(self) -> None:
        """Nothing: the service is not ours to close."""

    async def ping(self) -> bool:
        """True if the service's store answers.

        Raises:
            CacheUnavailable: it does not, or the service is closed.
        """
        if not await self._service.health_check():
            raise CacheUnavailable(f"{self._service.url} does not answer")
        return True

    async def test_connection(self) -> dict[str, str]:
        """Whether the service's store answers."""
        try:
            await self.ping()
        except CacheUnavailable as error:
            return {"status": "failed", "message": str(error), "error": str(error)}
        return {"status": "success", "message": f"{self._service.url} answers"}
