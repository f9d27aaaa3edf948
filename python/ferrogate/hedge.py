"""Hedging: a second call beside one that takes long."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypedDict

from ferrogate import _core
from ferrogate.retry import RetryBudget

__all__ = ["Hedge", "HedgeStats"]


class HedgeStats(TypedDict):
    """What :meth:`Hedge.get_stats` returns."""

    hedges: int
    """Second calls made."""
    wins: int
    """Second calls whose answer was the one."""
    delay: float | None
    """Seconds after which the next one would be made; ``None``: not known yet."""


class Hedge(_core.Hedge):
    """When a call that takes long gets a second one beside it; the first success is the answer.

    ::

        guard = Guard("openai", hedge=Hedge())  # after what 95 % of the calls take
        guard = Guard("openai", hedge=Hedge(to=ask_another_region, delay=2.0))

    The first call goes on where it is; the second has a task of its own, with a permit, a slot and
    an ``attempt_timeout`` of its own. The loser is cancelled. To breaker, retries and deadline both
    are one attempt. (J. Dean and L. A. Barroso, "The Tail at Scale", CACM 2013.)

    Only coroutines are hedged, no plain functions and no streams. Hedge only what may be done
    twice.

    Args:
        to: another coroutine function, called with the same arguments; ``None``: the same one.
        delay: seconds (or a timedelta) to wait for the first call. ``None``: as long as a share
            of ``quantile`` of the latest calls took; before the eighth nothing is hedged.
        quantile: that share, 0.001..1.
        budget: what pays for second calls: by default a twentieth of the calls, and a reserve of
            one every ten seconds.

    Raises:
        ValueError, TypeError: a wrong argument; the message names it.
    """

    def __new__(
        cls,
        to: Callable[..., Any] | None = None,
        *,
        delay: float | timedelta | None = None,
        quantile: float = 0.95,
        budget: RetryBudget | None = None,
    ) -> Hedge:
        if to is not None and not callable(to):
            raise TypeError(f"to: expected a coroutine function, got {type(to).__name__}")
        if inspect.isasyncgenfunction(to):
            raise TypeError("to: expected a coroutine function; streams are not hedged")
        if isinstance(quantile, bool) or not isinstance(quantile, int | float):
            raise TypeError(f"quantile: expected a number, got {type(quantile).__name__}")
        if not 0.001 <= quantile <= 1:
            raise ValueError(f"quantile: expected a share from 0.001 to 1, got {quantile}")
        if budget is None:
            budget = RetryBudget(0.05, min_per_second=0.1)
        elif not isinstance(budget, RetryBudget):
            raise TypeError(f"budget: expected a RetryBudget, got {type(budget).__name__}")
        return super().__new__(cls, to, delay, quantile, budget)

    def get_stats(self) -> HedgeStats:
        """Counts since construction, and the present delay."""
        hedges, wins, delay = self._stats()
        return {"hedges": hedges, "wins": wins, "delay": delay}

    def __repr__(self) -> str:
        stats = self.get_stats()
        after = "delay not known yet" if stats["delay"] is None else f"after {stats['delay']:.3g} s"
        return f"<Hedge {after}: {stats['hedges']} hedges, {stats['wins']} won>"
