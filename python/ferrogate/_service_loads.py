"""One load for a key: in this process by a flight, over all processes by a lease."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from ferrogate import _core, _flight
from ferrogate._arguments import seconds_or_never, store_names

if TYPE_CHECKING:
    from ferrogate.service import CacheService

_log = logging.getLogger("ferrogate")

#: Seconds until a load is asked for again where nobody can tell when another process's ends.
_NOBODY_WAITS = 0.05

#: Namespace, key, factory, TTL, tags, and whether nothing but the factory may raise.
_Load = tuple[str, Any, Callable[[], Any], float | None, list[str] | None, bool]


async def load_once(
    service: CacheService,
    ns: str,
    key: Any,
    factory: Callable[[], Awaitable[Any]],
    ttl: Any,
    tags: Any,
    *,
    tolerant: bool = False,
) -> Any:
    """What a miss takes. With ``tolerant`` nothing raises but ``factory``, once it begins.

    Raises:
        TypeError, ValueError: an argument is wrong; ``factory`` has not been called then.
    """
    load, lookup, marks = _begin(service, ns, key, factory, ttl, tags, tolerant)
    args = (lookup, _load, (service, *load), None, None, marks)
    return await _flight.load_async(service._flights, *args)


def load_once_sync(
    service: CacheService,
    ns: str,
    key: Any,
    factory: Callable[[], Any],
    ttl: Any,
    tags: Any,
    *,
    tolerant: bool = False,
) -> Any:
    """The blocking twin of :func:`load_once`."""
    load, lookup, marks = _begin(service, ns, key, factory, ttl, tags, tolerant)
    args = (lookup, _load_sync, (service, *load), None, None, marks)
    return _flight.load_sync(service._flights, *args)


def _begin(
    service: CacheService, ns: str, key: Any, factory: Any, ttl: Any, tags: Any, tolerant: bool
) -> tuple[_Load, _core.Lookup, list[str]]:
    check_factory(factory)
    ttl = None if ttl is None else seconds_or_never("ttl", ttl)
    tags = None if tags is None else store_names("tags", tags)
    lookup = cast(_core.Lookup, service._flights._ready_or_lookup((ns, key)))
    # What the load can be outdated by, as the native class has it.
    marks = [f"n{ns}", *(f"t{tag}" for tag in tags or ())]
    return (ns, key, factory, ttl, tags, tolerant), lookup, marks


async def _load(
    service: CacheService,
    ns: str,
    key: Any,
    factory: Callable[[], Awaitable[Any]],
    ttl: float | None,
    tags: list[str] | None,
    tolerant: bool,
) -> Any:
    anew = again = False
    while True:
        try:
            what, *more = await service._lease(False, ns, key, tags, anew)
            waited = what != "busy" or await service._await(False, ns, key, more[0])
        except Exception:
            if not tolerant:
                raise
            what, more, waited = "alone", [False], True
        anew = what == "unreadable"
        if what == "value":
            return more[0]
        if what == "busy":
            if not waited:
                await asyncio.sleep(_NOBODY_WAITS)
        elif what == "alone" and more[0] and not again:
            again = True
        elif what != "unreadable":
            lease = more[0] if what == "lease" else service._lease_here(ns, key)
            try:
                value = await _awaitable(factory())
                try:
                    await service._set_loaded(False, ns, key, value, ttl, tags, lease)
                except Exception as error:
                    if _is_the_callers(error) and not tolerant:
                        raise
                    _not_kept(service, error)
            finally:
                lease.release()
            return value


def _load_sync(
    service: CacheService,
    ns: str,
    key: Any,
    factory: Callable[[], Any],
    ttl: float | None,
    tags: list[str] | None,
    tolerant: bool,
) -> Any:
    anew = again = False
    while True:
        try:
            what, *more = service._lease(True, ns, key, tags, anew)
            waited = what != "busy" or service._await(True, ns, key, more[0])
        except Exception:
            if not tolerant:
                raise
            what, more, waited = "alone", [False], True
        anew = what == "unreadable"
        if what == "value":
            return more[0]
        if what == "busy":
            if not waited:
                time.sleep(_NOBODY_WAITS)
        elif what == "alone" and more[0] and not again:
            again = True
        elif what != "unreadable":
            lease = more[0] if what == "lease" else service._lease_here(ns, key)
            try:
                value = _no_coroutine(factory())
                try:
                    service._set_loaded(True, ns, key, value, ttl, tags, lease)
                except Exception as error:
                    if _is_the_callers(error) and not tolerant:
                        raise
                    _not_kept(service, error)
            finally:
                lease.release()
            return value


def _is_the_callers(error: Exception) -> bool:
    """Whether the caller has to mend it; anything else does not cost them the value."""
    return isinstance(error, TypeError | ValueError)


def at_exit(service: CacheService, error: Exception) -> bool:
    """Whether it is only that the interpreter ends, which threads may find out in any call."""
    return type(error) is RuntimeError and not service.closed


def _not_kept(service: CacheService, error: Exception) -> None:
    if at_exit(service, error):
        return
    _log.warning("cache service %s: what was loaded is not kept: %s", service.name, error)


def check_factory(factory: object) -> None:
    """Refuses what cannot be called."""
    if callable(factory):
        return
    got = type(factory).__name__
    hint = "; write lambda: and the call" if inspect.isawaitable(factory) else ""
    raise TypeError(f"factory: expected a function without arguments, got {got}{hint}")


def _awaitable(made: Any) -> Awaitable[Any]:
    if inspect.isawaitable(made):
        return made
    raise TypeError(
        "factory: expected a coroutine function, but it returned "
        f"{type(made).__name__}; get_or_set_sync takes other functions"
    )


def _no_coroutine(value: Any) -> Any:
    if not inspect.iscoroutine(value):
        return value
    value.close()
    raise TypeError("factory: expected a function, but it returned a coroutine; get_or_set awaits")
