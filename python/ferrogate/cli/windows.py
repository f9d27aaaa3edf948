"""The provider's own bookkeeping: exact sliding windows and OpenAI's spelling of durations.

On purpose not ferrogate's limiter: the provider is the judge of the replay, so
it counts by itself, in the plainest way there is.
"""

from __future__ import annotations

import re
from collections import deque

__all__ = ["ExactWindow", "format_duration", "parse_duration"]

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class ExactWindow:
    """At most ``limit`` units in every window ``(t - seconds, t]``, whatever its offset."""

    def __init__(self, name: str, limit: int, seconds: float) -> None:
        self.name = name
        self.limit = limit
        self.seconds = seconds
        self.peak = 0
        self._spent: deque[tuple[float, int]] = deque()
        self._used = 0

    def used(self, now: float) -> int:
        """Units spent in the window that ends now."""
        spent = self._spent
        while spent and spent[0][0] <= now - self.seconds:
            self._used -= spent.popleft()[1]
        return self._used

    def wait(self, now: float, cost: int) -> float:
        """Seconds until ``cost`` units fit; 0 if they fit now, infinite if they never do."""
        if cost > self.limit:
            return float("inf")
        excess = self.used(now) + cost - self.limit
        if excess <= 0:
            return 0.0
        for at, units in self._spent:
            excess -= units
            if excess <= 0:
                return at + self.seconds - now
        raise AssertionError("the window holds less than it has counted")

    def spend(self, now: float, cost: int) -> None:
        """Counts ``cost`` units at ``now``; the caller has asked `wait` first."""
        self._spent.append((now, cost))
        self._used += cost
        self.peak = max(self.peak, self._used)

    def remaining(self, now: float) -> int:
        """Units that could be spent now."""
        return self.limit - self.used(now)

    def reset(self, now: float) -> float:
        """Seconds until the window is empty again."""
        return self._spent[-1][0] + self.seconds - now if self.used(now) else 0.0


def format_duration(seconds: float) -> str:
    """OpenAI's form of a duration in ``x-ratelimit-reset-*``: ``12ms``, ``1.5s``, ``6m0s``."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    tail = f"{rest / 1000:g}s"
    if not minutes:
        return tail
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{tail}" if hours else f"{minutes}m{tail}"


def parse_duration(text: str) -> float:
    """Seconds of a duration in OpenAI's form.

    Raises:
        ValueError: not such a duration.
    """
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"not a duration like '6m0s' or '12ms': {text!r}")
    return sum(float(number) * _UNIT[unit] for number, unit in parts)
