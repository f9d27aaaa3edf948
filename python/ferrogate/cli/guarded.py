"""The agent behind ferrogate: a cache with single flight, and a gate that keeps the limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai

from ferrogate import Cache, RateLimitExceeded, cached
from ferrogate.cli.agent import Ask, Attempts, Refused, Reply, Reservation, Reuse, Run
from ferrogate.cli.backlog import Backlog
from ferrogate.cli.gates import Gate, WindowGate
from ferrogate.cli.llm_gate import LLMGate
from ferrogate.cli.settings import Settings
from ferrogate.testing import ManualClock

__all__ = ["GuardedAgent"]


class GuardedAgent:
    """Asks the provider only for what it does not know yet, and only when it may.

    To be made on the running loop.
    """

    def __init__(
        self, attempts: Attempts, settings: Settings, run: Run, clock: ManualClock | None
    ) -> None:
        gate: type[LLMGate | WindowGate] = LLMGate if LLMGate.fits(settings) else WindowGate
        self.gate: Gate = gate(settings, clock)
        self._backlog = Backlog(run.backlog, asyncio.get_running_loop().time)
        self._speed = settings.speed
        self._margin = settings.margin
        self._max_wait = None if settings.max_wait is None else settings.max_wait / self._speed
        self.cache: Cache[Any, Reply] = Cache(
            settings.cache_size,
            ttl=settings.cache_ttl / settings.speed,
            name="answers",
            clock=clock,
        )
        under_way = self._under_way = set[str]()

        @cached(cache=self.cache, ignore=("ask",))
        async def answer(prompt: str, ask: Ask) -> Reply:
            ask.reuse = None
            under_way.add(prompt)
            try:
                return await attempts.call(ask, self._permit)
            finally:
                under_way.discard(prompt)

        self._answer = answer

    async def ask(self, ask: Ask) -> Reply:
        """The answer from the cache, from a call under way, or from a call of its own."""
        prompt = ask.row.prompt
        ask.reuse = Reuse.JOIN if prompt in self._under_way else Reuse.HIT
        return await self._answer(prompt, ask)

    @asynccontextmanager
    async def _permit(self, ask: Ask) -> AsyncIterator[Reservation]:
        """Waits until the request may be sent; holds what it takes until the block ends."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        try:
            with self._backlog.one_more():
                taken = await self.gate.reserve(ask, self._max_wait)
        except (TimeoutError, RateLimitExceeded):
            raise Refused("waited too long for a permit", never=False) from None
        ask.run.waits.append((loop.time() - asked) * self._speed)
        try:
            yield taken
        except openai.APITimeoutError:
            # The provider learns a moment later that we have hung up.
            await asyncio.sleep(self._margin)
            raise
        finally:
            taken.release()
