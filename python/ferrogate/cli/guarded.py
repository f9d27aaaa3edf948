"""The agent behind ferrogate: a cache with single flight, and the provider's limits kept.

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
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import openai

from ferrogate import Cache, RateLimiter, RateLimitExceeded, cached
from ferrogate.cli.agent import Ask, Attempts, Refused, Reply, Reuse
from ferrogate.cli.settings import Settings
from ferrogate.testing import ManualClock

__all__ = ["GuardedAgent"]


# More than any trace has rows in line; the bound is there for those who have no trace.
_WAITERS = 1_000_000


class GuardedAgent:
    """Asks the provider only for what it does not know yet, and only when it may."""

    def __init__(self, attempts: Attempts, settings: Settings, clock: ManualClock | None) -> None:
        self._gate = _Gate(settings, clock)
        self.cache: Cache[Any, Reply] = Cache(
            settings.cache_size,
            ttl=settings.cache_ttl / settings.speed,
            name="answers",
            clock=clock,
        )
        under_way = self._under_way = set[str]()
        permit = self._gate.permit

        @cached(cache=self.cache, ignore=("ask",))
        async def answer(prompt: str, ask: Ask) -> Reply:
            ask.reuse = None
            under_way.add(prompt)
            try:
                return await attempts.call(ask, permit)
            finally:
                under_way.discard(prompt)

        self._answer = answer

    @property
    def limiter(self) -> RateLimiter | None:
        """The limiter of the provider's request limits, if it has any."""
        return self._gate.requests

    async def ask(self, ask: Ask) -> Reply:
        """The answer from the cache, from a call under way, or from a call of its own."""
        prompt = ask.row.prompt
        ask.reuse = Reuse.JOIN if prompt in self._under_way else Reuse.HIT
        return await self._answer(prompt, ask)


class _Gate:
    """Permits for a request, its tokens and a slot.

    Without a limit on tokens that is one limiter, which grants all at one
    moment. With one, tokens and requests are two limiters: whoever is first in
    the line waits until both have room and then takes both at once. Taking one
    and then waiting for the other would let the first permit grow old, and the
    request would arrive later than its permit says.
    """

    def __init__(self, settings: Settings, clock: ManualClock | None) -> None:
        provider = settings.provider
        self._speed = settings.speed
        self._margin = settings.margin
        self._max_wait = None if settings.max_wait is None else settings.max_wait / self._speed

        def limiter(name: str, *limits: tuple[int, float], slots: int = 0) -> RateLimiter | None:
            texts = [
                f"{count}/{seconds / self._speed + settings.margin:.9f}s"
                for count, seconds in limits
                if count
            ]
            if not texts and not slots:
                return None
            return RateLimiter(
                *texts, burst=slots or None, max_waiters=_WAITERS, name=name, clock=clock
            )

        windows = ((provider.requests_per_minute, 60.0), (provider.requests_per_hour, 3600.0))
        self._tokens = limiter("tokens", (provider.tokens_per_minute, 60.0))
        apart = self._tokens is not None
        self.requests = limiter("requests", *windows, slots=0 if apart else provider.concurrency)
        self._slots = limiter("slots", slots=provider.concurrency if apart else 0)
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def permit(self, ask: Ask) -> AsyncIterator[None]:
        """Waits until the request may be sent; holds its slot until the block ends."""
        cost = ask.row.input_tokens + ask.row.output_tokens
        if self._tokens is not None and math.isinf(self._tokens.eta(cost)):
            raise Refused(f"{cost:,} tokens are more than the limit per minute", never=True)
        loop = asyncio.get_running_loop()
        asked = loop.time()
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self._max_wait):
                    await self._enter(cost, held)
            except (TimeoutError, RateLimitExceeded):
                raise Refused("waited too long for a permit", never=False) from None
            ask.run.waits.append((loop.time() - asked) * self._speed)
            try:
                yield
            except openai.APITimeoutError:
                # The provider learns a moment later that we have hung up.
                await asyncio.sleep(self._margin)
                raise

    async def _enter(self, cost: int, held: AsyncExitStack) -> None:
        if self._tokens is None:
            if self.requests is not None:
                await held.enter_async_context(self.requests)
            return
        if self._slots is not None:
            await held.enter_async_context(self._slots)
        async with self._turn:
            # The lock keeps everybody else out: room that is there now stays.
            while (wait := self._wait(self._tokens, cost)) > 0:  # noqa: ASYNC110
                await asyncio.sleep(wait)
            for limiter, permits in ((self._tokens, cost), (self.requests, 1)):
                if limiter is not None and not (decision := limiter.try_acquire(permits)):
                    raise RuntimeError(f"somebody took the room in spite of the lock: {decision}")

    def _wait(self, tokens: RateLimiter, cost: int) -> float:
        requests = self.requests.eta() if self.requests is not None else 0.0
        return max(tokens.eta(cost), requests)
