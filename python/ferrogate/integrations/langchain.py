"""LangChain's LLM cache in a cache service.

::

    from langchain_core.globals import set_llm_cache

    set_llm_cache(FerrogateCache(CacheService("sqlite:///./cache.db"), ttl=86_400))
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from langchain_core import messages
from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.load import Serializable, dumps, loads
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk
from pydantic import BaseModel

from ferrogate._arguments import store_name
from ferrogate.integrations._payload import (
    Guard,
    check_service,
    check_ttl,
    packed,
    unpacked,
)
from ferrogate.service import CacheService, Seconds

__all__ = ["FerrogateCache"]

# It calls its only way to revive what it has serialised a beta, once for each process.
warnings.filterwarnings("ignore", r"The function `loads` is in beta", module=__name__)


def _classes() -> tuple[Any, ...]:
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

    Generations are kept as LangChain's own JSON. Only generations and messages are
    revived from it, and no secret from the environment. One that would not come back
    equal (it holds a ``bytes``, a tuple, a message class of your own that is not in
    ``allowed_objects``) is not kept; a model in ``additional_kwargs["parsed"]``
    comes back as the dict that LangChain's parsers make it of.

    What cannot be read is a miss and is forgotten, and what cannot be kept is logged,
    once for each reason, also where the service is closed or strict: the answer is
    there, and paid for. Only :meth:`clear` and :meth:`aclear` raise.

    Args:
        service: where the generations live; it is not closed by this.
        namespace: the service's namespace for them.
        ttl: seconds (or a timedelta) that they live; ``None`` for the service's own.
        allowed_objects: classes of your own, derived from LangChain's, that are revived,
            too. Their constructors are then called with what is in the store.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
    """

    def __init__(
        self,
        service: CacheService,
        *,
        namespace: str = "langchain",
        ttl: Seconds | None = None,
        allowed_objects: Iterable[type[Any]] = (),
    ) -> None:
        self._service = check_service(service)
        self._namespace = store_name("namespace", namespace)
        self._ttl = check_ttl(ttl)
        own = _own(allowed_objects)
        self._revivable = {tuple(each.lc_id()) for each in (*_ALLOWED, *own)}
        self._loading: dict[str, Any] = {"allowed_objects": (*_ALLOWED, *own)}
        if own:
            # A class derived from LangChain's says that it lives where that one does.
            paths = {tuple(each.lc_id()): _path(each) for each in own}
            self._loading["additional_import_mappings"] = paths
            self._loading["valid_namespaces"] = sorted({path[0] for path in paths.values()})
        self._keeping = Guard("langchain cache: generations were not kept")
        self._reading = Guard("langchain cache: generations were not read")

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """The generations for this prompt to this model, or ``None``."""
        with self._reading:
            found = self._read(self._service.get_sync(self._namespace, (prompt, llm_string)))
            if found is not _UNREADABLE:
                return found
            self._service.delete_sync(self._namespace, (prompt, llm_string))
        return None

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """The generations for this prompt to this model, or ``None``."""
        with self._reading:
            found = self._read(await self._service.get(self._namespace, (prompt, llm_string)))
            if found is not _UNREADABLE:
                return found
            await self._service.delete(self._namespace, (prompt, llm_string))
        return None

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Keeps the generations for this prompt to this model."""
        with self._keeping:
            stored = self._written(return_val)
            self._service.set_sync(self._namespace, (prompt, llm_string), stored, self._ttl)

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Keeps the generations for this prompt to this model."""
        with self._keeping:
            stored = self._written(return_val)
            await self._service.set(self._namespace, (prompt, llm_string), stored, self._ttl)

    def clear(self, **kwargs: Any) -> None:
        """Forgets all of them.

        Raises:
            RuntimeError: the service is closed.
            CacheUnavailable: it is strict, and its store does not answer.
        """
        self._service.invalidate_namespace_sync(self._namespace)

    async def aclear(self, **kwargs: Any) -> None:
        """As :meth:`clear`."""
        await self._service.invalidate_namespace(self._namespace)

    def _written(self, generations: RETURN_VAL_TYPE) -> bytes | str:
        """What to set.

        Raises:
            TypeError: it would not come back as it is.
        """
        texts = []
        for each in generations:
            plain = _with_plain_parsed(each)
            text = dumps(plain)
            obstacles = sorted(set(self._obstacles(json.loads(text))))
            if obstacles:
                raise TypeError(
                    f"LangChain cannot revive {', '.join(obstacles)}; "
                    "name message classes of your own in allowed_objects"
                )
            if self._revived(text) != plain:
                raise TypeError(
                    f"{type(each).__name__}: it differs when it comes back from LangChain's "
                    "JSON (a tuple, a key that is no str, a NaN, a secret)"
                )
            texts.append(text)
        return packed(self._service, json.dumps(texts).encode())

    def _obstacles(self, node: Any) -> Iterator[str]:
        """The classes in serialised generations that are not revived."""
        if isinstance(node, list):
            for each in node:
                yield from self._obstacles(each)
            return
        # What is escaped is a caller's own dict that looks like one of LangChain's.
        if not isinstance(node, dict) or set(node) == {"__lc_escaped__"}:
            return
        if node.get("lc") == 1 and node.get("type") in ("constructor", "not_implemented"):
            name = tuple(map(str, node["id"]))
            if node["type"] == "not_implemented" or name not in self._revivable:
                yield ".".join(name)
                return
        for each in node.values():
            yield from self._obstacles(each)

    def _revived(self, text: str) -> Any:
        return loads(text, **self._loading)

    def _read(self, stored: object) -> Any:
        """The generations, ``None`` where there are none, or what says that they are garbage."""
        if stored is None:
            return None
        try:
            return [self._revived(each) for each in json.loads(unpacked(stored))]
        except Exception as error:
            # Written by another version of LangChain, say. The model is asked again, and as
            # its answer may be one that is not kept, this must not be found a second time.
            self._reading.log(error)
            return _UNREADABLE


_UNREADABLE = object()


def _with_plain_parsed(generation: Generation) -> Generation:
    """With the fields of what a model provider has parsed, as LangChain's own JSON has them.

    Raises:
        TypeError: it cannot be made of its fields again, as LangChain's parsers do it.
    """
    message = getattr(generation, "message", None)
    if not isinstance(message, messages.AIMessage):
        return generation
    parsed = message.additional_kwargs.get("parsed")
    if not isinstance(parsed, BaseModel):
        return generation
    kind, fields = type(parsed), parsed.model_dump(mode="json")
    try:
        same = kind(**fields) == parsed
    except Exception:
        same = False
    if not same:
        raise TypeError(f"{kind.__name__} in 'parsed' cannot be made of its own JSON again")
    plain = {**message.additional_kwargs, "parsed": fields}
    message = message.model_copy(update={"additional_kwargs": plain})
    return generation.model_copy(update={"message": message})


def _path(kind: type[Any]) -> tuple[str, ...]:
    return (*kind.__module__.split("."), kind.__name__)


def _own(allowed_objects: Iterable[type[Any]]) -> tuple[type[Any], ...]:
    """The classes that are not LangChain's own, checked."""
    try:
        given = tuple(allowed_objects)
    except TypeError:
        kind = type(allowed_objects).__name__
        raise TypeError(f"allowed_objects: expected classes, got {kind}") from None
    taken: dict[tuple[str, ...], Any] = {tuple(each.lc_id()): each for each in _ALLOWED}
    own = []
    for each in given:
        if not (isinstance(each, type) and issubclass(each, Serializable)):
            raise TypeError(
                "allowed_objects: expected classes derived from LangChain's Serializable, "
                f"got {each!r:.80}"
            )
        if each in _ALLOWED:
            continue
        name = f"{each.__module__}.{each.__qualname__}"
        if not each.is_lc_serializable():
            raise ValueError(f"allowed_objects: {name}.is_lc_serializable() is not True")
        if getattr(importlib.import_module(each.__module__), each.__name__, None) is not each:
            raise ValueError(f"allowed_objects: {name} is not found in its module by its name")
        other = taken.setdefault(tuple(each.lc_id()), each)
        if other is not each:
            raise ValueError(f"allowed_objects: LangChain cannot tell {name} from {other!r}")
        own.append(each)
    return tuple(own)
