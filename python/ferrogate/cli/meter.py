"""How full something was, second by second: the time integral of a level that jumps."""

from __future__ import annotations

__all__ = ["MOST_SECONDS", "Meter"]

MOST_SECONDS = 200_000
"""A longer run is counted in its last second."""


class Meter:
    """The mean level in each second of trace time since the first change."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._level = 0
        self._origin: float | None = None
        self._reached = 0.0
        self._sums: list[float] = []

    def begin(self, now: float) -> None:
        """Second 0 starts now; without it, at the first change."""
        if self._origin is None:
            self._origin = now

    def move(self, at: float, by: int) -> None:
        """The level changes at ``at``, which is not before the last change."""
        self._run_to(at)
        self._level += by

    def means(self, now: float, whole: int) -> list[float]:
        """Percent of ``whole``, for each second until now; the last one may be a part."""
        self._run_to(now)
        seconds = min(self._reached, float(MOST_SECONDS))
        shares = []
        for second, summed in enumerate(self._sums):
            part = min(1.0, seconds - second)
            shares.append(round(100 * summed / (part * whole), 2) if part > 0 else 0.0)
        return shares

    def _run_to(self, at: float) -> None:
        self.begin(at)
        assert self._origin is not None
        until = (at - self._origin) * self._speed
        here, self._reached = self._reached, max(until, self._reached)
        stop = min(until, float(MOST_SECONDS))
        while here < stop:
            second = int(here)
            following = min(stop, second + 1.0)
            while len(self._sums) <= second:
                self._sums.append(0.0)
            self._sums[second] += self._level * (following - here)
            here = following
