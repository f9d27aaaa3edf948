"""What grants the guarded agent's permits: the provider's limits, kept on the client's side.

How no request is ever over the limit. The provider counts a request when it
arrives, the agent when its permit is granted, and the way between the two takes
now more, now less time. So two bursts that the agent holds exactly one window
apart can reach the provider a little closer than that. The agent's windows are
therefore longer than the provider's by ``--margin`` (real seconds, whatever the
speed): as long as no way takes longer than the shortest one by more than the
margin, no window of the provider ever sees more than its limit. The report
states the ways that were measured, from the moment that the agent goes on with
its permit: on an idle 2-core machine at most 50 ms, with both cores overloaded
190 ms. The price is ``margin / (window + margin)`` of the capacity: with half a
second 0.8 % at speed 1, and 8 % at speed 10, where a minute has 6 seconds.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from ferrogate import RateLimiter
from ferrogate.cli.agent import Ask, Refused, Reservation
from ferrogate.cli.settings import Settings
from ferrogate.cli.traces import Row
from ferrogate.testing import ManualClock

__all__ = ["WAITERS", "Gate", "HasStats", "Taken", "WindowGate"]

# More than any trace has rows in line; the bound is there for those who have no trace.
WAITERS = 1_000_000


class HasStats(Protocol):
    """What the run's monitor can watch."""

    def get_stats(self) -> Any:
        """Its counters."""
        ...


class Taken(Reservation, Protocol):
    """A reservation that ends."""

    def release(self) -> None:
        """The attempt is over; what was not settled is as the gate sees fit."""
        ...


class Gate(Protocol):
    """Grants what a request needs, all of it or nothing."""

    @property
    def watched(self) -> HasStats | None:
        """Its limiter, for the run's monitor."""
        ...

    async def reserve(self, ask: Ask, timeout: float | None) -> Taken:
        """Waits until the request may be sent.

        Raises:
            Refused: it could never be granted; raised at once.
            TimeoutError, RateLimitExceeded: it did not come in ``timeout`` (scaled) seconds.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Weighed:
    """A limit that counts tokens."""

    what: str
    limiter: RateLimiter
    cost: Callable[[Row], int]


class WindowGate:
    """The limits as `RateLimiter`s.

    Without a limit on tokens that is one limiter, which grants all at one
    moment. With some, each is a limiter of its own: whoever is first in the line
    waits until all have room and then takes all at once. Taking one and then
    waiting for another would let the first permit grow old, and the request
    would arrive later than its permit says.

    First in, first out, whoever the tenant; what was reserved too much is not
    given back.
    """

    def __init__(self, settings: Settings, clock: ManualClock | None) -> None:
        provider = settings.provider
        speed, margin = settings.speed, settings.margin

        def limiter(name: str, *limits: tuple[int, float], slots: int = 0) -> RateLimiter | None:
            texts = [
                f"{count}/{seconds / speed + margin:.9f}s" for count, seconds in limits if count
            ]
            if not texts and not slots:
                return None
            return RateLimiter(
                *texts, burst=slots or None, max_waiters=WAITERS, name=name, clock=clock
            )

        weights: tuple[tuple[str, int, Callable[[Row], int]], ...] = (
            (
                "tokens",
                provider.tokens_per_minute,
                lambda row: row.input_tokens + row.max_tokens,
            ),
            ("input tokens", provider.input_tokens_per_minute, lambda row: row.input_tokens),
            ("output tokens", provider.output_tokens_per_minute, lambda row: row.max_tokens),
        )
        self._weighed = [
            _Weighed(what, made, cost)
            for what, count, cost in weights
            if (made := limiter(what, (count, 60.0))) is not None
        ]
        apart = bool(self._weighed)
        windows = ((provider.requests_per_minute, 60.0), (provider.requests_per_hour, 3600.0))
        self._requests = limiter("requests", *windows, slots=0 if apart else provider.concurrency)
        self._slots = limiter("slots", slots=provider.concurrency if apart else 0)
        self._turn = asyncio.Lock()

    @property
    def watched(self) -> RateLimiter | None:
        """The limiter of the provider's request limits, if it has any."""
        return self._requests

    async def reserve(self, ask: Ask, timeout: float | None) -> Taken:
        """Waits until the request may be sent; holds its slot until it is released."""
        costs = [(each, each.cost(ask.row)) for each in self._weighed]
        for each, cost in costs:
            if math.isinf(each.limiter.eta(cost)):
                raise Refused(
                    f"{cost:,} {each.what} are more than the limit per minute", never=True
                )
        with ExitStack() as held:
            async with asyncio.timeout(timeout):
                await self._enter([(each.limiter, cost) for each, cost in costs], held)
            return _Held(held.pop_all())
        raise AssertionError("the stack above swallows no exception")

    async def _enter(self, costs: list[tuple[RateLimiter, int]], held: ExitStack) -> None:
        if not costs:
            if self._requests is not None:
                await self._requests.__aenter__()
                held.push(self._requests.__exit__)
            return
        if self._slots is not None:
            await self._slots.__aenter__()
            held.push(self._slots.__exit__)
        if self._requests is not None:
            costs.append((self._requests, 1))
        async with self._turn:
            # The lock keeps everybody else out: room that is there now stays.
            while (wait := max(limiter.eta(cost) for limiter, cost in costs)) > 0:  # noqa: ASYNC110
                await asyncio.sleep(wait)
            for limiter, cost in costs:
                if not (decision := limiter.try_acquire(cost)):
                    raise RuntimeError(f"somebody took the room in spite of the lock: {decision}")


class _Held:
    """The slots of a request under way; its windows slide by themselves."""

    def __init__(self, slots: ExitStack) -> None:
        self._slots = slots

    def settle(self, *, input_tokens: int, output_tokens: int) -> None:
        """Windows that have counted do not count less."""

    def release(self) -> None:
        """Gives the slots back."""
        self._slots.close()
