"""Loads that fail: who is told, and what is remembered of it."""

from __future__ import annotations

from typing import Any

from ferrogate._core import Cache as _NativeCache
from ferrogate._core import Failure, Flight, Freshness, Lookup
from ferrogate._weigher import deep_size


def land_error(
    flight: Flight,
    error: BaseException,
    handled: BaseException | None,
    lookup: Lookup | None = None,
    freshness: Freshness | None = None,
) -> None:
    """The loader's own errors are everybody's; what ends the thread or task is not.

    `handled` is what its caller was handling when it began to load: that is not
    for the others to see.
    """
    if not isinstance(error, Exception):
        flight.abandon()
        return
    try:
        if lookup is not None and freshness is not None:
            _keep_failure(flight, error, handled, lookup, freshness)
    finally:
        if handled is not None and flight.waiting():
            _sever(error, handled)
        flight.land_error((error, error.__traceback__, error.__context__))


def _keep_failure(
    flight: Flight,
    error: Exception,
    handled: BaseException | None,
    lookup: Lookup,
    freshness: Freshness,
) -> None:
    ttl = freshness.negative_ttl(error)
    if ttl is None:
        return
    if handled is not None:
        _sever(error, handled)
    # The weigher knows values, not exceptions.
    weight = deep_size(None, error) if flight.weighs else 0
    flight.store_failure(lookup, error, ttl, weight)


def failed_alone(
    cache: _NativeCache,
    flight: Flight,
    error: Exception,
    handled: BaseException | None,
    lookup: Lookup,
    freshness: Freshness | None,
) -> tuple[Any] | None:
    if freshness is None:
        return None
    _keep_failure(flight, error, handled, lookup, freshness)
    return cache._fallback(lookup, freshness)


def _sever(error: BaseException, handled: BaseException) -> None:
    seen: set[int] = set()
    while (context := error.__context__) is not None and id(context) not in seen:
        if context is handled:
            error.__context__ = None
            return
        seen.add(id(context))
        error = context


def fail(failure: Failure) -> Any:
    """Raises a failure that was kept, as if it had just happened."""
    error, context = failure.error, failure.context
    try:
        # Not with the traceback of those who got it before.
        raise error.with_traceback(None)
    finally:
        error.__context__ = context
        del error, context, failure  # see _result


async def fail_async(failure: Failure) -> Any:
    """:func:`fail` when awaited."""
    fail(failure)
