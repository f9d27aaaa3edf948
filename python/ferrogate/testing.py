"""Time for test suites: a clock that stands still, and an event loop that lives on it."""

from __future__ import annotations

import asyncio
import math
import os
import selectors
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ferrogate import _suites
from ferrogate._core import ManualClock as _NativeClock
from ferrogate._core import _seed

if TYPE_CHECKING:
    from ferrogate._scripted import ProviderReply, ProviderRequest, ScriptedProvider

__all__ = [
    "ManualClock",
    "ProviderReply",
    "ProviderRequest",
    "ScriptedProvider",
    "VirtualTimeLoop",
    "bypass",
    "reset_all",
    "seed",
]


def __getattr__(name: str) -> Any:
    # It brings an HTTP server and the command line's provider along, which a clock does not need.
    if name in ("ProviderReply", "ProviderRequest", "ScriptedProvider"):
        from ferrogate import _scripted

        return getattr(_scripted, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def reset_all() -> None:
    """Brings every living component back to how it was made, for the next test.

    Entries and statistics of every ``Cache`` and ``@cached`` (``on_evict`` is
    told, as by ``clear()``), the windows and adaptive slots of every ``RateLimiter``, the
    state of every ``CircuitBreaker`` (``on_close`` is told, as by ``reset()``), what every
    ``Budget`` in memory has spent, the generations of every ``ProductionOptimizer``.
    Settings stay, and so does what lies in the store of a ``CacheService`` or in the
    file of a ``Budget``, which is the test's own business.

    Raises:
        ExceptionGroup: of what single components raised; all others are reset.
    """
    _suites.reset_all()


@contextmanager
def bypass() -> Iterator[None]:
    """Every component is a transparent no-op until the block ends.

    ``@cached`` and ``get_or_set`` call through, and so do guards, breakers and
    retry policies; caches keep nothing, limiters grant everything; also those
    that were made long before, and those that are made meanwhile.
    What they had kept is gone: it begins with :func:`reset_all`.
    Not for blocks that run at one time in several threads, nor within a
    ``with limiter:`` that began outside.
    """
    with _suites.bypass():
        yield


def seed(number: int) -> None:
    """Has this process draw the same random numbers again after the same ``number``.

    Jitter and early refreshes draw from it, in the order in which they come.

    Args:
        number: 0 to 2**64 - 1.
    """
    _seed(number)


class ManualClock(_NativeClock):
    """A clock that only moves when it is told to.

    Give it to any component as ``clock=``; then TTLs expire and windows slide
    when the test says so::

        clock = ManualClock()
        cache = Cache(10, ttl=60, clock=clock)
        clock.advance(61)

    Whoever waits on a component with this clock is woken by :meth:`advance`.
    """

    def __init__(self, start: float | timedelta = 0.0) -> None:
        self._lock = threading.Lock()
        self._listeners: list[weakref.WeakMethod[Callable[[], object]]] = []
        _clocks.add(self)

    def advance(self, by: float | timedelta) -> None:
        """Moves forward by ``by`` (seconds or a timedelta) and wakes those whose time has come.

        Raises:
            ValueError: ``by`` is negative or not a number.
        """
        self._advance(by)
        self._notify()

    def _on_advance(self, listener: Callable[[], object]) -> None:
        """Calls the bound method ``listener`` after every advance; held weakly."""
        reference = weakref.WeakMethod(listener)
        with self._lock:
            self._listeners = [known for known in self._listeners if known() is not None]
            if reference not in self._listeners:
                self._listeners.append(reference)

    def _notify(self) -> None:
        with self._lock:
            references = tuple(self._listeners)
        for reference in references:
            listener = reference()
            if listener is not None:
                listener()


#: Their locks do not survive a fork.
_clocks: weakref.WeakSet[ManualClock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for clock in list(_clocks):
        clock._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class _JumpingSelector(selectors.BaseSelector):
    """A selector that moves the clock forward instead of waiting.

    Real events (a byte on a socket, a ``call_soon_threadsafe``) still come
    first: it looks for them without waiting before each jump.
    """

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._selector = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = self._selector.select(0)
        if events or timeout == 0:
            return events
        if timeout is None:
            # Nothing is scheduled: only another thread or the outside can go on.
            return self._selector.select(None)
        # The clock counts whole nanoseconds; a jump that rounds down to none
        # would make the loop spin on a timer that is never due.
        self._clock._advance_ns(max(1, round(timeout * 1e9)))
        self._clock._notify()
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._selector.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._selector.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._selector.modify(fileobj, events, data)

    def close(self) -> None:
        self._selector.close()

    def get_map(self) -> Any:
        return self._selector.get_map()


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on a :class:`ManualClock`: ``sleep`` and timeouts take no real time.

    When nothing is ready to run, the clock jumps to the next timer. Components
    that share the clock see the same time, so an hour of traffic runs in as
    long as its computation takes::

        clock = ManualClock()
        with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
            runner.run(main(clock))
    """

    #: A timer that is no longer needed would still be jumped to.
    _jumps_to_timers = True

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = clock if clock is not None else ManualClock()
        super().__init__(_JumpingSelector(self.clock))

    def time(self) -> float:
        """The clock's time, in seconds."""
        return self.clock.now()

    # asyncio calls a timer due that is at most so far ahead. It would take the real clock's
    # nanosecond: past 2**24 seconds (half a year) a float has none, and after a jump that
    # rounding left short of a timer, time stood still for ever.
    @property
    def _clock_resolution(self) -> float:
        return max(1e-9, 2 * math.ulp(self.time()))

    @_clock_resolution.setter
    def _clock_resolution(self, resolution: float) -> None:
        """Called by asyncio with the real clock's."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Waits for the executor's threads in real time, however long they take.

        They do not live on the clock: a deadline on it would pass at once.
        ``asyncio.Runner`` gives them 300 s, and on a busy machine CPython 3.13
        warned of threads that had not ended "within 300 seconds" of none.
        """
        await super().shutdown_default_executor()
