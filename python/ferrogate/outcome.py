"""How a call ended: said once, heard by breaker, retry, limiter and metrics."""

from __future__ import annotations

import enum

__all__ = ["Outcome"]


class Outcome(enum.StrEnum):
    """How a call ended."""

    SUCCESS = "success"
    """It did what it was to do."""
    FAILURE = "failure"
    """It failed for a reason that the next call may meet again."""
    THROTTLED = "throttled"
    """The other side is well and asks for patience (HTTP 429)."""
    NEUTRAL = "neutral"
    """It says nothing about the other side: cancelled, abandoned, refused by ourselves."""
