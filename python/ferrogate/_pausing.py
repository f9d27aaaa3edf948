"""Pauses and time limits, on the machine's clock or on one that tests move."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from asyncio import events
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ferrogate.exceptions import GuardTimeout

if TYPE_CHECKING:
    from ferrogate.testing import ManualClock

__all__ = ["call_later", "pause", "pause_sync", "timed_out"]

# Event loops refuse timers of many years, and locks those of many days.
_LONGEST_SLEEP = 86_400.0
# A timer may fire a moment before its time; the next one must not make the loop spin.
_SHORTEST_SLEEP = 1e-6


class _Handle(Protocol):
    def cancel(self) -> object: ...


class _Timer:
    """Calls back in the running loop once ``clock`` has moved by ``delay`` seconds.

    The loop's own timer is set as well: a loop that lives on the clock jumps to it.
    """

    __slots__ = ("__weakref__", "_callback", "_clock", "_due", "_loop", "_timer")

    def __init__(self, clock: ManualClock, delay: float, callback: Callable[[], object]) -> None:
        self._clock = clock
        self._due = clock.now_ns() + max(0, round(delay * 1e9))
        self._callback: Callable[[], object] | None = callback
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._set()
        clock._on_advance(self._moved)

    def _set(self) -> None:
        left = (self._due - self._clock.now_ns()) / 1e9
        left = min(max(left, _SHORTEST_SLEEP), _LONGEST_SLEEP)
        self._timer = self._loop.call_later(left, self._look)

    def _moved(self) -> None:
        """The clock was moved, by any thread."""
        if self._callback is None or self._clock.now_ns() < self._due:
            return
        if events._get_running_loop() is self._loop:
            # Not at once: whoever moves the clock may be what is to be cancelled, and a task that
            # is running cannot take that back on every Python.
            self._loop.call_soon(self._look)
            return
        # Closed: nobody waits there any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        callback = self._callback
        if callback is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._clock.now_ns() < self._due:
            self._set()
            return
        self._callback = None
        callback()

    def cancel(self) -> None:
        self._callback = None
        if self._timer is not None:
            self._timer.cancel()


def call_later(clock: ManualClock, delay: float, callback: Callable[[], object]) -> _Handle:
    """Has the running loop call back after ``delay`` seconds of ``clock``."""
    return _Timer(clock, delay, callback)


async def pause(clock: ManualClock | None, delay: float) -> None:
    """Ends after ``delay`` seconds."""
    if clock is None:
        await asyncio.sleep(delay)
        return
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end() -> None:
        if not over.done():
            over.set_result(None)

    timer = _Timer(clock, delay, end)
    try:
        await over
    finally:
        timer.cancel()


class _Moved:
    """Rings when a clock was moved."""

    def __init__(self, clock: ManualClock) -> None:
        self.bell = threading.Event()
        clock._on_advance(self._ring)

    def _ring(self) -> None:
        self.bell.set()


def pause_sync(clock: ManualClock | None, delay: float) -> None:
    """Returns after ``delay`` seconds; a signal's handler may raise out of it."""
    if clock is None:
        # Not time.sleep: it refuses long ones, and both are interrupted by signals.
        threading.Event().wait(min(delay, _LONGEST_SLEEP))
        return
    due = clock.now_ns() + round(delay * 1e9)
    moved = _Moved(clock)
    while clock.now_ns() < due:
        moved.bell.wait()
        moved.bell.clear()


def timed_out(name: str, kind: str, limit: float) -> GuardTimeout:
    """The error of what took longer than ``limit`` seconds."""
    if kind == "outer":
        message = "no time is left of the guarded call around this one"
    else:
        what = "an attempt" if kind == "attempt" else "the call with all its attempts"
        message = f"{what} took longer than {limit:g} s"
    return GuardTimeout(f"{name}: {message}", name=name, timed_out=kind, limit=limit)
