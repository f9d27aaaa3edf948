"""Waiting in asyncio: one loop-local future per wait, woken once, no polling.

The native side decides who goes and when; this module only sleeps. It is the
slow half of `RateLimiter.acquire` and ``async with``: a granted request never
comes here.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import events
from typing import TYPE_CHECKING, Any, TypeVar

from ferrogate.exceptions import RateLimitExceeded

if TYPE_CHECKING:
    from ferrogate import _core

__all__ = ["exceeded", "wait_for_permit"]

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
    else:
        what = reason
    when = "unknown" if math.isinf(retry_after) else f"{retry_after:.3f} s"
    return RateLimitExceeded(
        f"{who}: {what}; retry after {when}", name=name, limit=limit, retry_after=retry_after
    )


class _Waiter:
    """What the line holds (weakly) of a waiting coroutine."""

    __slots__ = ("__weakref__", "_loop", "future", "ticket")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.ticket: _core._Ticket | None = None

    def wake(self) -> None:
        """Called by the native side from any thread, with no lock held."""
        if events._get_running_loop() is self._loop:
            self.resolve()
            return
        try:
            self._loop.call_soon_threadsafe(self.resolve)
        except RuntimeError:
            # The loop was closed with this task in it: its place goes to the next.
            if self.ticket is not None:
                self.ticket.cancel()

    def resolve(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


async def wait_for_permit(
    limiter: _core.RateLimiter,
    cost: int,
    key: object,
    slot: bool,
    timeout: Any,
    result: _T,
) -> _T:
    """Stands in line until granted, then returns ``result``.

    Cancelled at any point, it leaves the line; a permit that was granted in the
    same tick goes back, and on to the next.
    """
    loop = asyncio.get_running_loop()
    waiter = _Waiter(loop)
    ticket = limiter._enqueue(waiter, cost, key, slot, timeout)
    try:
        waiter.ticket = ticket
        while (delay := ticket.poll()) is not None:
            timer = loop.call_later(
                min(max(delay, _SHORTEST_SLEEP), _LONGEST_SLEEP), waiter.resolve
            )
            try:
                await waiter.future
            finally:
                timer.cancel()
            waiter.future = loop.create_future()
        ticket.kept = True
    except BaseException:
        ticket.cancel()
        raise
    return result
