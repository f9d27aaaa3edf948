"""Work done every few seconds in a thread that can be stopped.

One thread per :class:`Rounds`; stopped by its owner, with its owner, and from
``atexit``. A forked child starts its own on first use, never by itself.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait

Stop = Future[None]
"""Done when the work shall end; a future, so that one can wait for it and for others at once."""

_logger = logging.getLogger("ferrogate")


class Rounds:
    """Calls ``work(stop)`` again and again; it returns the seconds until the next round.

    ``work`` is a bound method and held weakly: the thread ends when its owner
    is collected.
    """

    def __init__(self, work: Callable[[Stop], float], name: str) -> None:
        self._work = weakref.WeakMethod(work, self._owner_gone)
        self._name = name
        # Reentrant: a finaliser that runs while it is held may start or stop.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._stop: Stop | None = None
        self._revive_on_use = False
        self.errors = 0
        _all.add(self)

    @property
    def running(self) -> bool:
        """Whether the thread runs."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def start(self) -> None:
        """Starts the thread; nothing if it runs."""
        with self._lock:
            self._revive_on_use = False
            if self.running:
                return
            self._stop = Future()
            self._thread = threading.Thread(
                target=self._run, args=(self._stop,), name=self._name, daemon=True
            )
            self._thread.start()

    def stop(self, timeout: float) -> None:
        """Ends the rounds and waits up to ``timeout`` seconds for the one under way."""
        with self._lock:
            thread, stop = self._thread, self._stop
            self._thread = self._stop = None
            self._revive_on_use = False
            if stop is not None and not stop.done():
                stop.set_result(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def revive(self) -> None:
        """Starts again in a forked child whose parent had it running."""
        if self._revive_on_use:
            self.start()

    def _run(self, stop: Stop) -> None:
        pause = 1.0
        while not stop.done():
            work = self._work()
            if work is None:
                return
            try:
                pause = work(stop)
            except Exception:
                self.errors += 1
                if self.errors == 1:
                    _logger.exception("%s failed; further failures are only counted", self._name)
            del work
            wait([stop], timeout=pause)

    def _owner_gone(self, _: object) -> None:
        with self._lock:
            if self._stop is not None and not self._stop.done():
                self._stop.set_result(None)

    def _after_fork(self) -> None:
        # A thread of the parent may have held it, and none of them is here.
        self._lock = threading.RLock()
        self._revive_on_use = self._revive_on_use or self._thread is not None
        self._thread = self._stop = None


_all: weakref.WeakSet[Rounds] = weakref.WeakSet()


def _stop_all() -> None:
    for rounds in list(_all):
        rounds.stop(timeout=1.0)


def _after_fork_in_child() -> None:
    for rounds in list(_all):
        rounds._after_fork()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
