"""Refreshes in the background: one for a key, while its value is still served.

In asyncio that is a task of the loop in which the value was asked for; it ends
with the loop. For plain functions it is one of a few threads: they start when
there is something to do, end when there is not, and are waited for at exit. If
all of them are busy the caller refreshes in its own time.

A refresh that fails is counted and changes nothing; it prints nothing either.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any

from ferrogate import _flight, _loads
from ferrogate._core import Cache as _NativeCache
from ferrogate._core import Flight, Freshness, Lookup

Job = Callable[[], object]

_THREADS = 8
"""Plain functions that are refreshed at the same time, in the whole process."""

_IDLE = 5.0
"""Seconds that a thread waits for something to do."""

_EXIT = 1.0
"""Seconds that the interpreter's exit waits for the refreshes under way."""


def refresh_async(
    cache: _NativeCache,
    lookup: Lookup,
    function: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    freshness: Freshness | None = None,
    tags: Iterable[str] | None = None,
) -> None:
    """Begins to load in a task of the running loop, unless somebody does already."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        # Called, but awaited nowhere yet. Once the value is not served any more, it is loaded.
        return
    flight = _begin(cache, lookup)
    if flight is None:
        return
    try:
        loader = _flight.load(lookup, flight, function, args, kwargs or {}, freshness, tags)
        task = _flight.start(loop, flight, loader)
        # Its loop may be closed before it is done: nobody waits for it who should be told.
        with contextlib.suppress(AttributeError):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
    finally:
        del flight  # see _flight._result


def refresh_sync(
    cache: _NativeCache,
    lookup: Lookup,
    function: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    freshness: Freshness | None = None,
    tags: Iterable[str] | None = None,
) -> tuple[Any] | None:
    """Begins to load in a thread, unless somebody does already.

    Returns ``(value,)`` if there was no thread for it and the caller has loaded it instead.
    """
    flight = _begin(cache, lookup)
    if flight is None:
        return None
    work = (lookup, flight, function, args, kwargs or {}, freshness, tags)
    try:
        if _threads.run(_Refresh(work)) or _threads.exiting:
            return None
        return (_flight.lead_sync(*work),)
    except Exception:
        return None
    finally:
        del flight, work  # see _flight._result


def _begin(cache: _NativeCache, lookup: Lookup) -> Flight | None:
    while True:
        flight, leads, _ = cache._join_refresh(lookup)
        try:
            if leads:
                return flight
            # Or else nobody would ever refresh that key again.
            if not _loads.forget_if_orphaned(flight):
                return None
        finally:
            del flight  # see _flight._result


class _Refresh:
    """One load, in the context of who asked for the value."""

    def __init__(self, work: tuple[Any, ...]) -> None:
        self._work = work
        self._context = copy_context()

    def __call__(self) -> None:
        work, flight = self._work, self._work[1]
        del self._work
        try:
            flight.move_here()
            self._context.run(_loads.leading.set, frozenset())
            self._context.run(_flight.lead_sync, *work)
        except BaseException:
            # There is nobody to tell, and a thread to go on with.
            return
        finally:
            del flight, work  # see _flight._result


class Threads:
    """At most ``most`` daemon threads, each of which ends when it was idle for ``idle`` seconds."""

    def __init__(self, most: int, idle: float) -> None:
        self._most = most
        self._idle = idle
        self._reset()

    def _reset(self) -> None:
        # Reentrant: a finaliser may ask for a value that is stale.
        self._lock = threading.RLock()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._waiting = 0
        self._alive: set[threading.Thread] = set()
        self.exiting = False

    def run(self, job: Job) -> bool:
        """Has a thread do ``job``; false if all are busy, or at exit."""
        with self._lock:
            if self.exiting:
                return False
            if self._waiting:
                self._waiting -= 1
                self._jobs.put(job)
                return True
            if len(self._alive) >= self._most:
                return False
            thread = threading.Thread(
                target=self._work, args=(job,), name="ferrogate-refresh", daemon=True
            )
            self._alive.add(thread)
        try:
            thread.start()
        except RuntimeError:
            # The machine has no more of them, or the interpreter is about to end.
            self._alive.discard(thread)
            return False
        return True

    def _work(self, job: Job | None) -> None:
        while job is not None:
            job()
            job = None
            with self._lock:
                self._waiting += 1
            while job is None:
                try:
                    job = self._jobs.get(timeout=self._idle)
                except Empty:
                    if self._retires():
                        return
                else:
                    break
        self._alive.discard(threading.current_thread())

    def _retires(self) -> bool:
        with self._lock:
            # Whoever lets one of us begin has put the job there by now.
            if not self._jobs.empty():
                return False
            self._waiting -= 1
            self._alive.discard(threading.current_thread())
            return True

    def end(self, timeout: float) -> None:
        """Waits up to ``timeout`` seconds for what is under way; begins nothing any more."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self.exiting = True
            alive = list(self._alive)
            for _ in alive:
                self._jobs.put(None)
        for thread in alive:
            thread.join(max(0.0, deadline - time.monotonic()))

    def after_fork_in_child(self) -> None:
        """None of the threads is here, and one of them may hold the lock."""
        self._reset()


_threads = Threads(_THREADS, _IDLE)
atexit.register(_threads.end, _EXIT)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.after_fork_in_child)
