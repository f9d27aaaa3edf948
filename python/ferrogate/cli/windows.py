"""The provider's own bookkeeping: exact sliding windows and OpenAI's spelling of durations.

On purpose not ferrogate's limiter: the provider is the judge of the replay, so
it counts by itself, in the plainest way there is.
"""

from __future__ import annotations

import re
from collections import deque

from ferrogate.cli.meter import Meter

__all__ = ["ExactWindow", "Spent", "format_duration", "parse_duration"]

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Spent:
    """Units that were counted at one moment."""

    __slots__ = ("at", "units")

    def __init__(self, at: float, units: int) -> None:
        self.at = at
        self.units = units


class ExactWindow:
    """At most ``limit`` units in every window ``(t - seconds, t]``, whatever its offset."""

    def __init__(self, name: str, limit: int, seconds: float, meter: Meter | None = None) -> None:
        self.name = name
        self.limit = limit
        self.seconds = seconds
        self.peak = 0
        self.meter = meter
        self._spent: deque[Spent] = deque()
        self._used = 0

    def used(self, now: float) -> int:
        """Units spent in the window that ends now."""
        spent = self._spent
        while spent and spent[0].at <= now - self.seconds:
            gone = spent.popleft()
            self._change(gone.at + self.seconds, -gone.units)
        return self._used

    def wait(self, now: float, cost: int) -> float:
        """Seconds until ``cost`` units fit; 0 if they fit now, infinite if they never do."""
        if cost > self.limit:
            return float("inf")
        excess = self.used(now) + cost - self.limit
        if excess <= 0:
            return 0.0
        for spent in self._spent:
            excess -= spent.units
            if excess <= 0:
                return spent.at + self.seconds - now
        raise AssertionError("the window holds less than it has counted")

    def spend(self, now: float, cost: int) -> Spent:
        """Counts ``cost`` units at ``now``, which is not before the last of them."""
        self.used(now)
        spent = Spent(now, cost)
        self._spent.append(spent)
        self._change(now, cost)
        self.peak = max(self.peak, self._used)
        return spent

    def correct(self, now: float, spent: Spent, units: int) -> None:
        """What was counted turns out to have been ``units``, fewer than thought."""
        self.used(now)
        if spent.at > now - self.seconds:
            self._change(now, units - spent.units)
            spent.units = units

    def remaining(self, now: float) -> int:
        """Units that could be spent now."""
        return max(0, self.limit - self.used(now))

    def reset(self, now: float) -> float:
        """Seconds until the window is empty again."""
        return self._spent[-1].at + self.seconds - now if self.used(now) else 0.0

    def _change(self, at: float, by: int) -> None:
        self._used += by
        if self.meter is not None and by:
            self.meter.move(at, by)


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
