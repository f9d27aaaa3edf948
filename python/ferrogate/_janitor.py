"""The background sweep of expired cache entries.

One daemon thread serves all caches of the process. It starts with the first
cache that wants it, holds its caches weakly, ends when the last of them is
gone, is joined at exit, and starts again after a fork only when it is needed.
"""

from __future__ import annotations

import atexit
import heapq
import threading
import time
import weakref
from datetime import timedelta

from ferrogate import _core

_Due = tuple[float, int, float, "weakref.ref[_core.Cache]"]


class _Janitor:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: list[_Due] = []
        self._count = 0
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, cache: _core.Cache, interval: float) -> None:
        with self._changed:
            if self._stopped:
                return
            self._count += 1
            due = time.monotonic() + interval
            heapq.heappush(self._queue, (due, self._count, interval, weakref.ref(cache)))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="ferrogate-cleanup", daemon=True
                )
                self._thread.start()
            else:
                self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._queue.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=1.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                # Caches that are gone must not keep the thread alive until they would be due.
                self._queue = [entry for entry in self._queue if entry[3]() is not None]
                heapq.heapify(self._queue)
                if not self._queue:
                    self._thread = None
                    return
                due, count, interval, reference = self._queue[0]
                wait = due - time.monotonic()
                if wait > 0:
                    self._changed.wait(min(wait, 60.0))
                    continue
                heapq.heapreplace(
                    self._queue, (time.monotonic() + interval, count, interval, reference)
                )
            cache = reference()
            if cache is not None:
                cache.cleanup()
            del cache


_janitor = _Janitor()


def sweep_regularly(cache: _core.Cache, interval: float | timedelta) -> None:
    """Has the expired entries of ``cache`` removed every ``interval`` seconds while it lives."""
    if isinstance(interval, timedelta):
        interval = interval.total_seconds()
    if isinstance(interval, bool) or not isinstance(interval, int | float):
        raise TypeError(f"cleanup_interval: expected seconds above 0, got {interval!r}")
    if not interval > 0:
        raise ValueError(f"cleanup_interval: expected seconds above 0, got {interval!r}")
    if cache.enabled:
        _janitor.add(cache, float(interval))


def _after_fork_in_child() -> None:
    # The thread stayed in the parent, and its lock may have been taken; start afresh with
    # the caches that this process inherited.
    global _janitor  # noqa: PLW0603
    inherited = _janitor._queue
    _janitor = _Janitor()
    for _, _, interval, reference in inherited:
        cache = reference()
        if cache is not None:
            _janitor.add(cache, interval)


@atexit.register
def _stop() -> None:
    _janitor.stop()
