"""Work done again and again in a thread that can be stopped.

One thread per :class:`Rounds`. It starts when it is asked to, and ends when it
is asked to, when its owner is collected, when its work says that none is left,
and at exit. A forked child has no thread until it is asked to start or revived.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from queue import Empty, SimpleQueue

Stop = Future[None]
"""Done when the work shall end; a future, so that one can wait for it and for others at once."""

_RETRY = 1.0
"""Seconds from a round that failed to the next."""

_EXIT = 1.0
"""Seconds that the interpreter's exit waits for the rounds under way."""

_logger = logging.getLogger("ferrogate")


class _Life:
    """One thread from its start to its end; never started twice."""

    def __init__(self) -> None:
        self.stop: Stop = Future()
        # Its `put` is reentrant, so a finaliser or a weak reference's callback may wake the thread.
        self.wakes: SimpleQueue[None] = SimpleQueue()
        self.thread: threading.Thread | None = None
        self.asked_again = False

    def end(self) -> None:
        """Asks the thread to end; safe in finalisers."""
        with contextlib.suppress(InvalidStateError):
            self.stop.set_result(None)
        self.wakes.put(None)

    def join(self, timeout: float) -> None:
        """Waits up to ``timeout`` seconds for the end."""
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(timeout)


class Rounds:
    """Calls ``work(stop)`` again and again; it returns the seconds until the next round.

    It returns ``None`` when nothing is left to do: then the thread ends, unless
    :meth:`start` was called since that round began. ``work`` is a bound method
    and held weakly: the thread ends when its owner is collected.
    """

    def __init__(self, work: Callable[[Stop], float | None], name: str) -> None:
        self._work = weakref.WeakMethod(work, self._owner_gone)
        self._name = name
        # Reentrant: a finaliser that runs while it is held may start or stop.
        self._lock = threading.RLock()
        self._life: _Life | None = None
        self._revive_on_use = False
        self.errors = 0
        _all.add(self)

    @property
    def running(self) -> bool:
        """Whether the thread runs."""
        life = self._life
        return life is not None and life.thread is not None and life.thread.is_alive()

    def start(self) -> None:
        """Starts the thread; one that runs has at least one more round before it ends by itself.

        Does nothing once the interpreter exits.
        """
        with self._lock:
            self._revive_on_use = False
            if _exiting:
                return
            if self._life is not None and self.running:
                self._life.asked_again = True
                return
            life = self._life = _Life()
            life.thread = threading.Thread(
                target=self._run, args=(life,), name=self._name, daemon=True
            )
            life.thread.start()

    def wake(self) -> None:
        """Begins the next round at once if the thread runs; safe in finalisers."""
        life = self._life
        if life is not None:
            life.wakes.put(None)

    def stop(self, timeout: float) -> None:
        """Ends the rounds and waits up to ``timeout`` seconds for the one under way."""
        life = self._ask_to_end()
        if life is not None:
            life.join(timeout)

    def revive(self) -> None:
        """Starts again in a forked child whose parent had it running."""
        if self._revive_on_use:
            self.start()

    def _ask_to_end(self) -> _Life | None:
        with self._lock:
            life, self._life = self._life, None
            self._revive_on_use = False
            if life is not None:
                life.end()
            return life

    def _run(self, life: _Life) -> None:
        while not life.stop.done():
            _drain(life.wakes)
            life.asked_again = False
            work = self._work()
            if work is None:
                return
            pause: float | None = _RETRY
            try:
                pause = work(life.stop)
            except Exception:
                self.errors += 1
                if self.errors == 1:
                    _logger.exception("%s failed; further failures are only counted", self._name)
            del work
            if pause is not None:
                _pause(life, pause)
            elif self._retires(life):
                return

    def _retires(self, life: _Life) -> bool:
        """Whether the thread may end: from then on :meth:`start` starts another."""
        with self._lock:
            if life.asked_again:
                return False
            if self._life is life:
                self._life = None
            return True

    def _owner_gone(self, _: object) -> None:
        life = self._life
        if life is not None:
            life.end()

    def _after_fork(self) -> None:
        # A thread of the parent may have held it, and none of them is here.
        self._lock = threading.RLock()
        self._revive_on_use = self._revive_on_use or self._life is not None
        self._life = None


def _drain(wakes: SimpleQueue[None]) -> None:
    while not wakes.empty():
        wakes.get()


def _pause(life: _Life, seconds: float) -> None:
    with contextlib.suppress(Empty):
        life.wakes.get(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))


_all: weakref.WeakSet[Rounds] = weakref.WeakSet()
_exiting = False


def _stop_all() -> None:
    global _exiting  # noqa: PLW0603
    _exiting = True
    deadline = time.monotonic() + _EXIT
    for life in [rounds._ask_to_end() for rounds in list(_all)]:
        if life is not None:
            life.join(max(0.0, deadline - time.monotonic()))


def _after_fork_in_child() -> None:
    for rounds in list(_all):
        rounds._after_fork()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
