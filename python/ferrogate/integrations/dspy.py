"""DSPy's request cache in a cache service.

::

    service = CacheService("sqlite:///./cache.db", codec="pickle", hmac_key=os.environ["CACHE_KEY"])
    dspy.cache = FerrogateCache(service)
"""

from __future__ import annotations

import logging
from typing import Any, NoReturn

from dspy.clients.cache import Cache

from ferrogate._arguments import store_name
from ferrogate.integrations._payload import Guard, check_service, check_ttl
from ferrogate.service import CacheService, Seconds

__all__ = ["FerrogateCache"]

_log = logging.getLogger("ferrogate")


class FerrogateCache(Cache):
    """A ``dspy.clients.cache.Cache`` in one namespace of a service.

    DSPy caches objects of many classes, so the service's codec has to be
    ``"pickle"``, which is signed: what somebody else wrote is never unpickled.

    What cannot be read is a miss, and what cannot be kept is logged, once for each
    reason, also where the service is closed or strict: the caller has the answer.

    Args:
        service: where the responses live; it is not closed by this.
        namespace: the service's namespace for them.
        ttl: seconds (or a timedelta) that they live; ``None`` for the service's own.

    Raises:
        TypeError, ValueError: an argument is wrong, such as a service whose codec is
            not ``"pickle"``; the message names it.
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
        self._namespace = store_name("namespace", namespace)
        self._ttl = check_ttl(ttl)
        self._keeping = Guard("dspy cache: a response was not kept")
        self._reading = Guard("dspy cache: a response was not read")

    def __contains__(self, key: str) -> bool:
        with self._reading:
            return self._service.exists_sync(self._namespace, key)
        return False

    def get(
        self, request: dict[str, Any], ignored_args_for_cache_key: list[str] | None = None
    ) -> Any:
        """The response to ``request``, marked as a hit, or ``None``."""
        key = self._key(request, ignored_args_for_cache_key)
        if key is None:
            return None
        with self._reading:
            response = self._service.get_sync(self._namespace, key)
            return None if response is None else self._prepare_cached_response(response)
        return None

    def put(
        self,
        request: dict[str, Any],
        value: Any,
        ignored_args_for_cache_key: list[str] | None = None,
        enable_memory_cache: bool = True,
    ) -> None:
        """Keeps the response to ``request``."""
        key = self._key(request, ignored_args_for_cache_key)
        # None is no answer: DSPy asks again.
        if key is None or value is None:
            return
        with self._keeping:
            self._service.set_sync(self._namespace, key, value, self._ttl)

    def _key(self, request: dict[str, Any], ignored: list[str] | None) -> str | None:
        try:
            return str(self.cache_key(request, ignored))
        except Exception as error:
            _log.debug("dspy cache: a request without a key: %r", error)
            return None

    def clear(self) -> None:
        """Forgets all responses, for all processes that share the service's store.

        Raises:
            RuntimeError: the service is closed.
            CacheUnavailable: it is strict, and its store does not answer.
        """
        self._service.invalidate_namespace_sync(self._namespace)

    def reset_memory_cache(self) -> None:
        """Forgets the responses of a ``memory://`` service.

        DSPy's own keeps what is on disk, so this leaves a store that outlives the
        process, and may be shared, as it is; :meth:`clear` empties that.
        """
        if self._service.url != "memory://":
            _log.debug("dspy cache: %s is not reset; clear() does that", self._service.url)
            return
        with self._reading:
            self.clear()

    def save_memory_cache(self, filepath: str) -> NoReturn:
        """Raises ``NotImplementedError``: the service's store has the responses already."""
        raise NotImplementedError(_NO_FILE.format("save_memory_cache"))

    def load_memory_cache(self, filepath: str, allow_pickle: bool = False) -> NoReturn:
        """Raises ``NotImplementedError``: only what is signed with the service's key is read."""
        raise NotImplementedError(_NO_FILE.format("load_memory_cache"))


_NO_FILE = (
    "{}: the responses live in the service's store; with CacheService('sqlite:///path') "
    "they outlive the process without being saved or loaded"
)
