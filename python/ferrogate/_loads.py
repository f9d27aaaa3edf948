"""The loads under way: who runs each, and which of them waits for which."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import NamedTuple

from ferrogate._core import Flight

#: The flights that the current code is loading for.
leading: ContextVar[frozenset[int]] = ContextVar("ferrogate_leading", default=frozenset())


class Loader(NamedTuple):
    #: Absent in a thread, and until an asyncio task has begun.
    task: asyncio.Task[None] | None
    #: A handle that does not lead, for landing it when the loader no longer can.
    flight: Flight


#: The loader of each flight under way.
loaders: dict[int, Loader] = {}

#: The flights that the loader of a flight is waiting for.
waits: dict[int, list[int]] = {}

#: Whenever there are so many loaders more, those of closed loops are looked for.
SWEEP = 256


def under_way() -> frozenset[int]:
    """The flights that the current code is loading for, without those that have landed."""
    return frozenset(one for one in leading.get() if one in loaders)


def landed(number: int) -> None:
    loaders.pop(number, None)
    waits.pop(number, None)


def enter_line(flight: Flight) -> list[int]:
    """Registers that the current loaders wait for `flight`; returns them for `leave_line`.

    Raises:
        RuntimeError: they would wait for themselves.
    """
    mine = list(under_way())
    if not mine:
        return mine
    # Registered before the look: of two that meet, at least one sees the other.
    for one in mine:
        waits.setdefault(one, []).append(flight.id)
    seen: set[int] = set()
    ahead = [flight.id]
    while ahead:
        one = ahead.pop()
        if one in mine:
            leave_line(flight, mine)
            if one == flight.id:
                raise RuntimeError(
                    "recursive load: the loader asked for the key that it is loading"
                )
            raise RuntimeError("recursive load: two loaders ask for each other's keys")
        if one not in seen:
            seen.add(one)
            ahead.extend(waits.get(one, ()))
    return mine


def leave_line(flight: Flight, mine: list[int]) -> None:
    for one in mine:
        line = waits.get(one)
        if line is not None and flight.id in line:
            line.remove(flight.id)


def is_of_another_greenlet(flight: Flight) -> bool:
    """Whether this very thread runs the loader and is here all the same: to wait is to hang."""
    return flight.is_of_this_thread() and task_of(flight) is None and flight.id not in leading.get()


def refuse_own_thread(flight: Flight) -> None:
    """Raises RuntimeError if the loop of this thread has to load it."""
    if flight.is_of_this_thread() and task_of(flight) is not None:
        raise RuntimeError(
            "this thread's event loop is loading that key; waiting here would block it for ever"
        )


def forget_if_orphaned(flight: Flight) -> bool:
    """Abandons a flight whose loop was closed over its loader; true if it was so."""
    task = task_of(flight)
    if task is None or not task.get_loop().is_closed():
        return False
    landed(flight.id)
    # It is accounted for: somebody else loads instead.
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    flight.abandon()
    return True


def task_of(flight: Flight) -> asyncio.Task[None] | None:
    loader = loaders.get(flight.id)
    return None if loader is None else loader.task


def sweep_orphans() -> None:
    # The collector cannot do it: the flights under way hold their waiters, and one of
    # them is the caller whose frame holds the flight.
    for loader in list(loaders.values()):
        forget_if_orphaned(loader.flight)


def cancel_from_anywhere(flight: Flight) -> None:
    task = task_of(flight)
    if task is None or task.done() or flight.unattended:
        return
    try:
        task.get_loop().call_soon_threadsafe(_cancel_unless_wanted, flight, task)
    except RuntimeError:
        forget_if_orphaned(flight)


def _cancel_unless_wanted(flight: Flight, task: asyncio.Task[None]) -> None:
    if flight.waiting() == 0:
        task.cancel()


def after_fork_in_child() -> None:
    # The loaders stayed in the parent.
    loaders.clear()
    waits.clear()
