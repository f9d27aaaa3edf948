"""Single flight in asyncio and in threads: who leads, who waits, who is told.

The native core decides who leads a load and keeps the waiters; this module
runs the loader. In asyncio that is a task of its own from its first
instruction, so the cancellation of one caller is never that of another:

* a caller is cancelled: it leaves, the others get the one result;
* the last caller is cancelled: the loader is cancelled, and its clean-up is
  awaited, as if it had been called directly;
* the loader is cancelled by somebody else (its loop closes): whoever still
  waits starts again.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from types import CoroutineType
from typing import Any, NamedTuple, TypeVar

from ferrogate._core import Cache as _NativeCache
from ferrogate._core import Flight, Lookup

_T = TypeVar("_T")

#: The flights that the current code is loading for.
_leading: ContextVar[frozenset[int]] = ContextVar("ferrogate_leading", default=frozenset())


class _Loader(NamedTuple):
    #: Absent in a thread, and until an asyncio task has begun.
    task: asyncio.Task[None] | None
    #: Where it runs.
    thread: int
    #: A handle that does not lead, for landing it when the loader no longer can.
    flight: Flight


#: The loader of each flight under way.
_loaders: dict[int, _Loader] = {}

#: The flights that the loader of a flight is waiting for.
_waits: dict[int, list[int]] = {}

#: Seconds between two looks whether the loop of somebody else's loader is closed:
#: a loop that is closed over a pending task tells nobody.
_LOOK = 1.0

#: Whenever there are so many loaders more, those of closed loops are looked for.
_SWEEP = 256


def _under_way() -> frozenset[int]:
    """The flights that the current code is loading for, without those that have landed."""
    return frozenset(one for one in _leading.get() if one in _loaders)


def _landed(number: int) -> None:
    _loaders.pop(number, None)
    _waits.pop(number, None)


def _result(flight: Flight) -> tuple[bool, Any]:
    """``(True, value)``, or ``(False, None)`` when abandoned; raises what the loader raised."""
    outcome = flight.outcome()
    if outcome is None:
        return False, None
    succeeded, value = outcome
    if succeeded:
        return True, value
    error, traceback = value
    try:
        # Raising adds frames to the one exception; every caller starts from the loader's.
        raise error.with_traceback(traceback)
    finally:
        # The traceback keeps this frame and the flight keeps the traceback, a cycle that
        # the collector cannot see through. So with every frame that an error passes.
        del error, traceback, value, outcome, flight


def _enter_line(flight: Flight) -> list[int]:
    """Registers that the current loaders wait for `flight`; returns them for `_leave_line`.

    Raises:
        RuntimeError: they would wait for themselves.
    """
    mine = list(_under_way())
    if not mine:
        return mine
    # Registered before the look: of two that meet, at least one sees the other.
    for one in mine:
        _waits.setdefault(one, []).append(flight.id)
    seen: set[int] = set()
    ahead = [flight.id]
    while ahead:
        one = ahead.pop()
        if one in mine:
            _leave_line(flight, mine)
            if one == flight.id:
                raise RuntimeError(
                    "recursive load: the loader asked for the key that it is loading"
                )
            raise RuntimeError("recursive load: two loaders ask for each other's keys")
        if one not in seen:
            seen.add(one)
            ahead.extend(_waits.get(one, ()))
    return mine


def _leave_line(flight: Flight, mine: list[int]) -> None:
    for one in mine:
        line = _waits.get(one)
        if line is not None and flight.id in line:
            line.remove(flight.id)


def _refuse_own_thread(flight: Flight) -> None:
    loader = _loaders.get(flight.id)
    if loader is not None and loader.thread == threading.get_ident():
        raise RuntimeError(
            "this thread's event loop is loading that key; waiting here would block it for ever"
        )


def _forget_if_orphaned(flight: Flight) -> bool:
    """Abandons a flight whose loop was closed over its loader; true if it was so."""
    task = _task_of(flight)
    if task is None or not task.get_loop().is_closed():
        return False
    _landed(flight.id)
    # It is accounted for: somebody else loads instead.
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    flight.abandon()
    return True


def _task_of(flight: Flight) -> asyncio.Task[None] | None:
    loader = _loaders.get(flight.id)
    return None if loader is None else loader.task


def _sweep_orphans() -> None:
    # The collector cannot do it: the flights under way hold their waiters, and one of
    # them is the caller whose frame holds the flight.
    for loader in list(_loaders.values()):
        _forget_if_orphaned(loader.flight)


def load_sync(
    cache: _NativeCache,
    lookup: Lookup,
    function: Callable[..., _T],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    ttl: Any = None,
    tags: Iterable[str] | None = None,
) -> _T:
    """The value for ``lookup``: loaded by this thread, or by whoever is loading it already."""
    while True:
        flight, leads, found = cache._join(lookup)
        try:
            if found is not None:
                flight.land_value(found[0])
                return found[0]  # type: ignore[no-any-return]
            if leads:
                return _lead_sync(lookup, flight, function, args, kwargs or {}, ttl, tags)
            succeeded, value = _follow_sync(flight)
            if succeeded:
                return value  # type: ignore[no-any-return]
        finally:
            del flight  # see _result


def _lead_sync(
    lookup: Lookup,
    flight: Flight,
    function: Callable[..., _T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    ttl: Any,
    tags: Iterable[str] | None,
) -> _T:
    number = flight.id
    token = _leading.set(_under_way() | {number})
    _loaders[number] = _Loader(None, threading.get_ident(), flight.handle())
    try:
        if tags is not None:
            flight.tag(tags)
        value = function(*args, **kwargs)
        _refuse_coroutine(value)
        flight.store(lookup, value, ttl)
    except BaseException as error:
        _land_error(flight, error)
        raise
    else:
        flight.land_value(value)
        return value
    finally:
        _leading.reset(token)
        _landed(number)
        del flight  # see _result


def _follow_sync(flight: Flight) -> tuple[bool, Any]:
    try:
        mine = _enter_line(flight)
        try:
            if _forget_if_orphaned(flight):
                return False, None
            _refuse_own_thread(flight)
            while not flight.wait(_LOOK):
                _forget_if_orphaned(flight)
        finally:
            _leave_line(flight, mine)
        return _result(flight)
    finally:
        del flight  # see _result


def _refuse_coroutine(value: object) -> None:
    if isinstance(value, CoroutineType):
        value.close()
        raise TypeError(
            f"{value.__qualname__} returned a coroutine, which can be awaited only once, so there "
            "is no result to keep; the cached function must be an `async def` itself"
        )


def load_sync_alone(
    cache: _NativeCache,
    lookup: Lookup,
    function: Callable[..., _T],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    ttl: Any = None,
    tags: Iterable[str] | None = None,
) -> _T:
    """Loads and stores without regard for other loads."""
    flight = cache._depart_alone(lookup)
    try:
        if tags is not None:
            flight.tag(tags)
        value = function(*args, **(kwargs or {}))
        _refuse_coroutine(value)
        flight.store(lookup, value, ttl)
        return value
    finally:
        flight.abandon()


async def load_async_alone(
    cache: _NativeCache,
    lookup: Lookup,
    function: Callable[..., Awaitable[_T]],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    ttl: Any = None,
    tags: Iterable[str] | None = None,
) -> _T:
    """Loads in the caller's own coroutine and stores, without regard for other loads."""
    flight = cache._depart_alone(lookup)
    try:
        if tags is not None:
            flight.tag(tags)
        value = await function(*args, **(kwargs or {}))
        flight.store(lookup, value, ttl)
        return value
    finally:
        flight.abandon()


async def load_async(
    cache: _NativeCache,
    lookup: Lookup,
    function: Callable[..., Awaitable[_T]],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    ttl: Any = None,
    tags: Iterable[str] | None = None,
) -> _T:
    """The value for ``lookup``: loaded by a task of ours, or by whoever is loading it already."""
    loop = asyncio.get_running_loop()
    while True:
        flight, leads, found = cache._join(lookup)
        try:
            if found is not None:
                flight.land_value(found[0])
                return found[0]  # type: ignore[no-any-return]
            if leads:
                loader = _load(lookup, flight, function, args, kwargs or {}, ttl, tags)
                task = _start(loop, flight, loader)
                await _wait(loop, flight)
            else:
                await _follow_async(loop, flight)
            succeeded, value = _result(flight)
            if succeeded:
                return value  # type: ignore[no-any-return]
            if leads:
                _raise_end(task)
        finally:
            del flight  # see _result


async def _follow_async(loop: asyncio.AbstractEventLoop, flight: Flight) -> None:
    try:
        mine = _enter_line(flight)
        try:
            task = _task_of(flight)
            # Without a task it is a thread, or a loop that has only just begun to load.
            if task is not None and task.get_loop() is loop:
                await _wait(loop, flight)
            else:
                await _wait_for_foreigner(loop, flight)
        finally:
            _leave_line(flight, mine)
    finally:
        del flight  # see _result


async def _wait_for_foreigner(loop: asyncio.AbstractEventLoop, flight: Flight) -> None:
    timers: list[asyncio.TimerHandle] = []
    try:
        _look(loop, flight, timers)
        await _wait(loop, flight)
    finally:
        while timers:
            timers.pop().cancel()
        del flight  # see _result


def _look(
    loop: asyncio.AbstractEventLoop, flight: Flight, timers: list[asyncio.TimerHandle]
) -> None:
    timers.clear()
    if not _forget_if_orphaned(flight):
        timers.append(loop.call_later(_LOOK, _look, loop, flight, timers))


async def _wait(loop: asyncio.AbstractEventLoop, flight: Flight) -> None:
    """Until the flight has landed."""
    try:
        future = loop.create_future()
        waiter = flight.enroll(loop, future)
        if waiter is None:
            return
        try:
            await future
        except asyncio.CancelledError:
            await _leave(loop, flight, waiter)
            raise
        except GeneratorExit:
            # Thrown away with its loop, perhaps by the collector: nothing can be awaited here.
            if flight.leave(waiter) == 0:
                _cancel_from_anywhere(flight)
            raise
    finally:
        del flight  # see _result


def _raise_end(task: asyncio.Task[None]) -> None:
    """Raises what ended our own loader without a result for everybody."""
    if task.done() and not task.cancelled():
        error = task.exception()
        # The loop raises those two itself, to whoever runs it.
        if error is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
            raise error
    raise asyncio.CancelledError("the loader was cancelled")


def _start(loop: asyncio.AbstractEventLoop, flight: Flight, loader: Any) -> asyncio.Task[None]:
    number = flight.id
    if len(_loaders) % _SWEEP == _SWEEP - 1:
        _sweep_orphans()
    _loaders[number] = _Loader(None, threading.get_ident(), flight.handle())
    eager = sys.version_info >= (3, 12) and loop.get_task_factory() is None
    try:
        if sys.version_info >= (3, 12) and eager:
            task: asyncio.Task[None] = asyncio.Task(loader, loop=loop, eager_start=True)
        else:
            # Without context=, which factories written before Python 3.11 do not take.
            task = loop.create_task(loader)
    except BaseException as error:
        loader.close()
        _landed(number)
        _land_error(flight, error)
        raise
    finally:
        del flight  # see _result
    if number in _loaders:
        _loaders[number] = _loaders[number]._replace(task=task)
        if not eager:
            # Cancelled before its first instruction, it never gets to where it lands.
            task.add_done_callback(lambda _: _land_unbegun(number))
    return task


def _land_unbegun(number: int) -> None:
    loader = _loaders.get(number)
    if loader is not None:
        _landed(number)
        loader.flight.abandon()


async def _load(
    lookup: Lookup,
    flight: Flight,
    function: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    ttl: Any,
    tags: Iterable[str] | None,
) -> None:
    number = flight.id
    _leading.set(_under_way() | {number})
    try:
        if tags is not None:
            flight.tag(tags)
        value = await function(*args, **kwargs)
        flight.store(lookup, value, ttl)
    except asyncio.CancelledError:
        flight.abandon()
        raise
    except BaseException as error:
        _land_error(flight, error)
        if isinstance(error, Exception):
            return
        # Thrown away, it may run inside any task that made the collector start.
        if not isinstance(error, GeneratorExit):
            # The loop itself raises it to whoever runs it; the task must not be
            # told off on stderr because nobody asks it too.
            task = asyncio.current_task() if asyncio._get_running_loop() else None
            if task is not None:
                task.add_done_callback(_heard)
        raise
    else:
        flight.land_value(value)
    finally:
        _landed(number)
        del flight  # see _result


def _heard(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


def _land_error(flight: Flight, error: BaseException) -> None:
    """The loader's own errors are everybody's; what ends the thread or task is not."""
    if isinstance(error, Exception):
        flight.land_error((error, error.__traceback__))
    else:
        flight.abandon()


async def _leave(loop: asyncio.AbstractEventLoop, flight: Flight, waiter: int) -> None:
    """A cancelled caller goes; the last one out cancels the loader and sees it end."""
    try:
        if flight.leave(waiter) > 0:
            return
        task = _task_of(flight)
        if task is None or task.done():
            return
        if task.get_loop() is not loop:
            _cancel_from_anywhere(flight)
            return
        task.cancel()
        await asyncio.wait((task,))
        # A loader that turned its cancellation into an error raises that, as if called directly.
        outcome = flight.outcome()
        if outcome is not None and not outcome[0]:
            del outcome
            _result(flight)
    finally:
        del flight  # see _result


def _cancel_from_anywhere(flight: Flight) -> None:
    task = _task_of(flight)
    if task is None or task.done():
        return
    try:
        task.get_loop().call_soon_threadsafe(_cancel_unless_wanted, flight, task)
    except RuntimeError:
        _forget_if_orphaned(flight)


def _cancel_unless_wanted(flight: Flight, task: asyncio.Task[None]) -> None:
    if flight.waiting() == 0:
        task.cancel()


def _after_fork_in_child() -> None:
    # The loaders stayed in the parent.
    _loaders.clear()
    _waits.clear()
