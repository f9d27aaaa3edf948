"""LangChain's LLM cache in a cache service.

::

    from langchain_core.globals import set_llm_cache

    set_llm_cache(FerrogateCache(CacheService("sqlite:///./cache.db"), ttl=86_400))
"""

from __future__ import annotations

import json
import logging
import warnings
from typing import Any

from langchain_core import messages
from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.load import dumps, loads
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk

from ferrogate.integrations._payload import check_service, keeping, packed, unpacked
from ferrogate.service import CacheService, Seconds

__all__ = ["FerrogateCache"]

_log = logging.getLogger("ferrogate")

# It calls its only way to revive what it has serialised a beta, once for each process.
warnings.filterwarnings("ignore", r"The function `loads` is in beta", module=__name__)


def _classes() -> Any:
    """What a generation is made of."""
    named = [getattr(messages, name) for name in messages.__all__]
    kinds = [each for each in named if isinstance(each, type)]
    return (
        *(Generation, GenerationChunk, ChatGeneration, ChatGenerationChunk),
        *(each for each in kinds if issubclass(each, messages.BaseMessage)),
    )


#: Whoever writes into the store can make us build nothing else.
_ALLOWED = _classes()


class FerrogateCache(BaseCache):
    """A ``langchain_core.caches.BaseCache`` in one namespace of a service.

    Generations are kept as LangChain's own JSON. Only generations and messages
    are revived from it; what cannot be read is a miss.

    Args:
        service: where the generations live; it is not closed by this.
        namespace: the service's namespace for them.
        ttl: seconds (or a timedelta) that they live; ``None`` for the service's own.

    Raises:
        TypeError: ``service`` is none.
    """

    def __init__(
        self, service: CacheService, *, namespace: str = "langchain", ttl: Seconds | None = None
    ) -> None:
        self._service = check_service(service)
        self._namespace = namespace
        self._ttl = ttl

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """The generations for this prompt to this model, or ``None``."""
        return _read(self._service.get_sync(self._namespace, (prompt, llm_string)))

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """The generations for this prompt to this model, or ``None``."""
        return _read(await self._service.get(self._namespace, (prompt, llm_string)))

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Keeps the generations for this prompt to this model."""
        with keeping("langchain cache"):
            stored = _written(self._service, return_val)
            self._service.set_sync(self._namespace, (prompt, llm_string), stored, self._ttl)

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Keeps the generations for this prompt to this model."""
        with keeping("langchain cache"):
            stored = _written(self._service, return_val)
            await self._service.set(self._namespace, (prompt, llm_string), stored, self._ttl)

    def clear(self, **kwargs: Any) -> None:
        """Forgets all of them."""
        self._service.invalidate_namespace_sync(self._namespace)

    async def aclear(self, **kwargs: Any) -> None:
        """Forgets all of them."""
        await self._service.invalidate_namespace(self._namespace)


def _written(service: CacheService, generations: RETURN_VAL_TYPE) -> bytes | str:
    return packed(service, json.dumps([dumps(each) for each in generations]).encode())


def _read(stored: object) -> RETURN_VAL_TYPE | None:
    payload = unpacked(stored)
    if payload is None:
        return None
    try:
        return [loads(each, allowed_objects=_ALLOWED) for each in json.loads(payload)]
    except Exception as error:
        # Written by another version of LangChain, say. The model is asked again.
        _log.warning("langchain cache: generations that cannot be read any more: %r", error)
        return None
