"""Waiting in asyncio: one loop-local future per wait, woken once, no polling.

The native side decides who goes and when; this module only sleeps. It is the
slow half of every limiter's `acquire` or `reserve`: a granted request never
comes here.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import events
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from ferrogate.exceptions import RateLimitExceeded

if TYPE_CHECKING:
    from ferrogate import _core

__all__ = ["Place", "exceeded", "refuse"]

_T = TypeVar("_T")

# A timer may fire a nanosecond before its time; the next one must not make the loop spin.
_SHORTEST_SLEEP = 1e-6
# Event loops refuse timers of many years.
_LONGEST_SLEEP = 86_400.0


def exceeded(
    name: str | None, limit: str | None, retry_after: float, reason: str
) -> RateLimitExceeded:
    """The exception for a request that was refused for ``reason``."""
    who = "rate limiter" if name is None else f"rate limiter {name!r}"
    if reason == "limited":
        what = f"{limit} is used up" if limit else "the limit is used up"
    elif reason == "store unavailable":
        what = "the store that the limits are shared in does not answer"
    else:
        what = reason
    when = "unknown" if math.isinf(retry_after) else f"{retry_after:.3f} s"
    return RateLimitExceeded(
        f"{who}: {what}; retry after {when}", name=name, limit=limit, retry_after=retry_after
    )


class _Waiter:
    """What the line holds (weakly) of a waiting coroutine."""

    __slots__ = ("__weakref__", "_loop", "_ticket", "future")

    def __init__(self, ticket: _core._Ticket) -> None:
        self._loop = asyncio.get_running_loop()
        self._ticket = ticket
        self.future: asyncio.Future[None] = self._loop.create_future()

    def wake(self) -> _core._Ticket | None:
        """Called by the native side from any thread, with no lock held.

        Returns the ticket if the loop was closed with this task in it: its
        place goes to the next.
        """
        if events._get_running_loop() is self._loop:
            self.resolve()
            return None
        try:
            self._loop.call_soon_threadsafe(self.resolve)
        except RuntimeError:
            # Not any RuntimeError: RecursionError is one.
            if self._loop.is_closed():
                return self._ticket
            raise
        return None

    def resolve(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def renew(self) -> None:
        self.future = self._loop.create_future()


class Place(Coroutine[Any, Any, _T]):
    """An awaitable place in the line, which becomes the ticket's ``result`` when it is granted.

    Not a bare coroutine: one that is cancelled before its first step never runs,
    yet lives on in the traceback of its CancelledError, and its place with it.
    One that is dropped unawaited gives its place back with the ticket.
    """

    __slots__ = ("__weakref__", "_coroutine", "_ticket")

    def __init__(self, ticket: _core._Ticket) -> None:
        self._ticket = ticket
        self._coroutine: Coroutine[Any, Any, _T] = _wait(ticket)

    def send(self, value: Any) -> Any:
        """Goes on waiting."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Leaves the line; what was granted goes on to the next."""
        try:
            return self._coroutine.throw(*error)
        finally:
            self._ticket.cancel()

    def close(self) -> None:
        """Leaves the line."""
        self._ticket.cancel()
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, _T]:
        return cast("Generator[Any, Any, _T]", self)

    def __iter__(self) -> Place[_T]:
        return self

    def __next__(self) -> Any:
        return self._coroutine.send(None)


async def _wait(ticket: _core._Ticket) -> Any:
    try:
        waiter = _Waiter(ticket)
        loop = asyncio.get_running_loop()
        while (delay := ticket.poll(waiter)) is not None:
            timer = loop.call_later(
                min(max(delay, _SHORTEST_SLEEP), _LONGEST_SLEEP), waiter.resolve
            )
            try:
                await waiter.future
            finally:
                timer.cancel()
            waiter.renew()
        result = ticket.result
        ticket.kept = True
    except BaseException:
        # Cancelled at any point; what was granted in the same tick goes back.
        ticket.cancel()
        raise
    return result


async def refuse(error: Exception) -> NoReturn:
    """Raises ``error``, for a request that there is no place in the line for."""
    raise error
