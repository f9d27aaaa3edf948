"""Limits that find themselves: how many calls at a time, and how many a minute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict, cast

from ferrogate._core import AdaptiveConcurrency

if TYPE_CHECKING:
    from ferrogate import _core

__all__ = ["AdaptiveConcurrency", "AdaptiveConcurrencyStats", "AdaptiveRateStats"]


class AdaptiveConcurrencyStats(TypedDict):
    """What is known of an :class:`AdaptiveConcurrency` at work."""

    law: Literal["gradient", "aimd"]
    signal: Literal["ttft", "tpot", "latency"]
    limit: int
    """Calls at one time, now."""
    least: int
    most: int
    samples: int
    """Calls whose signal counted."""
    skipped: int
    """Calls that ended well and had no signal (as a whole answer has no first token), or one of a
    load that is not allowed any more."""
    cuts: int
    """Times that a refusal, or what counts as one, cut it."""
    usual_seconds: float
    """What the gradient takes for the signal without a queue; 0 before there is any."""
    probing: bool
    """The limit is halved for a while, to see what that is."""


class AdaptiveRateStats(TypedDict):
    """What is known of an ``LLMLimiter`` with ``adaptive_rate=True``."""

    share: float
    """What is allowed now, as a ratio of the limits per minute; without any, of the requests a
    minute that were in use at the first refusal, and then it may be above 1."""
    cuts: int
    """Times that a refusal cut it."""
    told: bool
    """The provider has told its limits, which count in place of this."""


def concurrency_stats(limiter: _core.RateLimiter) -> AdaptiveConcurrencyStats | None:
    """Of slots that find their own number."""
    return cast("AdaptiveConcurrencyStats | None", limiter._adaptive_stats())
