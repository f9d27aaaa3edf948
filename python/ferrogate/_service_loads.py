"""One load for a key: in this process by a flight, over all processes by a lease."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ferrogate import _core, _flight, _suites
from ferrogate._arguments import seconds_or_never, store_names

if TYPE_CHECKING:
    from ferrogate.service import CacheService

_T = TypeVar("_T")

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
    if _suites.state.bypassed:
        return await _awaitable(factory())
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
    if _suites.state.bypassed:
        return _no_coroutine(factory())
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
    found, lease = await _ask(service, False, ns, key, tags, tolerant)
    if lease is None:
        return found
    try:
        value = await _awaitable(factory())
        try:
            await service._set_loaded(False, ns, key, value, ttl, tags, lease)
        except Exception as error:
            _not_kept(service, error, tolerant)
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
    found, lease = _at_once(_ask(service, True, ns, key, tags, tolerant))
    if lease is None:
        return found
    try:
        value = _no_coroutine(factory())
        try:
            service._set_loaded(True, ns, key, value, ttl, tags, lease)
        except Exception as error:
            _not_kept(service, error, tolerant)
    finally:
        lease.release()
    return value


async def _ask(
    service: CacheService,
    wait: bool,
    ns: str,
    key: Any,
    tags: list[str] | None,
    tolerant: bool,
) -> tuple[Any, _core._Lease | None]:
    """The value, once there is one, or else the lease to load it with.

    With ``wait`` it blocks in every call and suspends nowhere: see :func:`_at_once`. The factory
    is not for in here, where a StopIteration of its would become another error.
    """
    anew = again = False
    while True:
        try:
            answer = service._lease(wait, ns, key, tags, anew)
            if not wait:
                answer = await answer
            what = answer[0]
            if what == "busy":
                waited = service._await(wait, ns, key, answer[1])
                if not wait:
                    waited = await waited
        except Exception:
            if not tolerant:
                raise
            what, answer = "alone", ("alone", False)
        if what == "value":
            return answer[1], None
        if what == "lease":
            return None, answer[1]
        anew = what == "unreadable"
        if what == "alone":
            if again or not answer[1]:
                return None, service._lease_here(ns, key)
            again = True
        elif what == "busy" and not waited:
            if wait:
                time.sleep(_NOBODY_WAITS)  # noqa: ASYNC251
            else:
                await asyncio.sleep(_NOBODY_WAITS)


def _at_once(asked: Coroutine[Any, Any, _T]) -> _T:
    """What a coroutine that suspends nowhere returns."""
    try:
        asked.send(None)
    except StopIteration as done:
        return cast(_T, done.value)
    raise AssertionError("it was to wait by blocking")


def _is_the_callers(error: Exception) -> bool:
    """Whether the caller has to mend it; anything else does not cost them the value."""
    return isinstance(error, TypeError | ValueError)


def at_exit(service: CacheService, error: Exception) -> bool:
    """Whether it is only that the interpreter ends, which threads may find out in any call."""
    return type(error) is RuntimeError and not service.closed


def _not_kept(service: CacheService, error: Exception, tolerant: bool) -> None:
    """What comes of ``error``, which is being handled: it does not cost the value."""
    if _is_the_callers(error) and not tolerant:
        raise error
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
