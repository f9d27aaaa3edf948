"""DSPy's request cache in a cache service.

::

    service = CacheService("sqlite:///./cache.db", codec="pickle", hmac_key=os.environ["CACHE_KEY"])
    dspy.cache = FerrogateCache(service)
"""

from __future__ import annotations

import logging
from typing import Any

from dspy.clients.cache import Cache

from ferrogate.integrations._payload import check_service, keeping
from ferrogate.service import CacheService, Seconds

__all__ = ["FerrogateCache"]

_log = logging.getLogger("ferrogate")


class FerrogateCache(Cache):
    """A ``dspy.clients.cache.Cache`` in one namespace of a service.

    DSPy caches objects of many classes, so the service's codec has to be
    ``"pickle"``, which is signed: what somebody else wrote is never unpickled.

    Args:
        service: where the responses live; it is not closed by this.
        namespace: the service's namespace for them.
        ttl: seconds (or a timedelta) that they live; ``None`` for the service's own.

    Raises:
        TypeError: ``service`` is none.
        ValueError: its codec is not ``"pickle"``.
    """

    def __init__(
        self, service: CacheService, *, namespace: str = "dspy", ttl: Seconds | None = None
    ) -> None:
        super().__init__(enable_disk_cache=False, enable_memory_cache=False, disk_cache_dir=None)
        self._service = check_service(service)
        if service.codec != "pickle":
            raise ValueError(
                f"service: codec {service.codec!r} cannot carry DSPy's objects; make it with "
                "codec='pickle' and an hmac_key"
            )
        self._namespace = namespace
        self._ttl = ttl

    def __contains__(self, key: str) -> bool:
        return self._service.exists_sync(self._namespace, key)

    def get(
        self, request: dict[str, Any], ignored_args_for_cache_key: list[str] | None = None
    ) -> Any:
        """The response to ``request``, marked as a hit, or ``None``."""
        key = self._key(request, ignored_args_for_cache_key)
        response = None if key is None else self._service.get_sync(self._namespace, key)
        return None if response is None else self._prepare_cached_response(response)

    def put(
        self,
        request: dict[str, Any],
        value: Any,
        ignored_args_for_cache_key: list[str] | None = None,
        enable_memory_cache: bool = True,
    ) -> None:
        """Keeps the response to ``request``; one that cannot be pickled is logged and not kept."""
        key = self._key(request, ignored_args_for_cache_key)
        if key is None:
            return
        with keeping("dspy cache"):
            self._service.set_sync(self._namespace, key, value, self._ttl)

    def _key(self, request: dict[str, Any], ignored: list[str] | None) -> str | None:
        try:
            return str(self.cache_key(request, ignored))
        except Exception as error:
            _log.debug("dspy cache: a request without a key: %r", error)
            return None

    def reset_memory_cache(self) -> None:
        """Forgets all responses."""
        self._service.invalidate_namespace_sync(self._namespace)
