"""The background sweep of expired cache entries: one thread for all caches of the process.

It starts with the first cache that wants it, holds its caches weakly and ends
with the last of them. A forked child that inherited such caches has its own.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
import weakref
from dataclasses import dataclass
from datetime import timedelta

from ferrogate import _core
from ferrogate._arguments import seconds_or_never
from ferrogate._background import Rounds, Stop

_logger = logging.getLogger("ferrogate")


@dataclass(slots=True)
class _Schedule:
    cache: weakref.ref[_core.Cache]
    interval: float
    due: float
    failed: bool = False


class _Janitor:
    """Which cache is swept when."""

    def __init__(self) -> None:
        # Without a lock, so that a cache may be collected and a process forked at any moment:
        # each access is one step of the interpreter, and only the thread changes `due`.
        self._schedules: dict[int, _Schedule] = {}
        self._numbers = itertools.count()
        self._rounds = Rounds(self._round, "ferrogate-cleanup")

    def add(self, cache: _core.Cache, interval: float) -> None:
        number = next(self._numbers)
        reference = weakref.ref(cache, functools.partial(self._gone, number))
        self._schedules[number] = _Schedule(reference, interval, time.monotonic() + interval)
        # After the entry: the round under way may have missed it, the next one does not.
        self._rounds.start()
        self._rounds.wake()

    def after_fork(self) -> None:
        """Goes on in a forked child, if it inherited caches."""
        if self._schedules:
            self._rounds.start()

    def _gone(self, number: int, _: object) -> None:
        self._schedules.pop(number, None)
        if not self._schedules:
            self._rounds.wake()  # to end

    def _round(self, stop: Stop) -> float | None:
        for schedule in list(self._schedules.values()):
            now = time.monotonic()
            if schedule.due > now:
                continue
            if stop.done():
                break
            schedule.due = now + schedule.interval
            cache = schedule.cache()
            try:
                if cache is not None:
                    cache.cleanup()
            except Exception:
                # One cache's trouble must not keep the others from being swept.
                if not schedule.failed:
                    schedule.failed = True
                    _logger.exception("the sweep of %r failed; told once", cache)
            del cache
        left = [schedule.due for schedule in list(self._schedules.values())]
        return min(left) - time.monotonic() if left else None


_janitor = _Janitor()


def sweep_regularly(cache: _core.Cache, interval: float | timedelta) -> None:
    """Has the expired entries of ``cache`` removed every ``interval`` seconds while it lives."""
    interval = seconds_or_never("cleanup_interval", interval)
    if cache.enabled:
        _janitor.add(cache, interval)


def _after_fork_in_child() -> None:
    _janitor.after_fork()
