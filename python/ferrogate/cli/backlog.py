"""When requests waited for a permit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Backlog"]


class Backlog:
    """The times at which at least one request was in line."""

    def __init__(self, times: list[tuple[float, float]], clock: Callable[[], float]) -> None:
        self._times = times
        self._clock = clock
        self._waiting = 0
        self._since = 0.0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """One more is in line until the block ends."""
        if not self._waiting:
            self._since = self._clock()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            now = self._clock()
            if not self._waiting and now > self._since:
                self._times.append((self._since, now))
