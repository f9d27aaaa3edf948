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
from collections.abc import Awaitable, Callable, Iterable
from types import CoroutineType
from typing import Any, TypeVar

from ferrogate import _failures, _loads, _suites
from ferrogate._core import Cache as _NativeCache
from ferrogate._core import Flight, Freshness, Lookup

_T = TypeVar("_T")
Join = Callable[[Lookup], tuple[Flight, bool, tuple[Any] | None]]

#: Seconds between two looks whether the loop of somebody else's loader is closed:
#: a loop that is closed over a pending task tells nobody.
_LOOK = 1.0


def _result(flight: Flight) -> tuple[bool, Any]:
    """``(True, value)``, or ``(False, None)`` when abandoned; raises what the loader raised."""
    outcome = flight.outcome()
    if outcome is None:
        return False, None
    succeeded, value = outcome
    if succeeded:
        return True, value
    error, traceback, context = value
    try:
        # Raising adds frames to the one exception; every caller starts from the loader's.
        raise error.with_traceback(traceback)
    finally:
        # And what this caller is handling just now is none of the others' business.
        error.__context__ = context
        # The traceback keeps this frame and the flight keeps the traceback, a cycle that
        # the collector cannot see through. So with every frame that an error passes.
        del error, traceback, context, value, outcome, flight


def load_sync(
    cache: _NativeCache,
    lookup: Lookup,
    function: Callable[..., _T],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    freshness: Freshness | None = None,
    tags: Iterable[str] | None = None,
) -> _T:
    """The value for ``lookup``: loaded by this thread, or by whoever is loading it already."""
    if _suites.state.bypassed:
        return function(*args, **(kwargs or {}))
    try:
        return _load_sync(cache, cache._join, lookup, function, args, kwargs, freshness, tags)
    except Exception:
        found = None if freshness is None else cache._fallback(lookup, freshness)
        if found is None:
            raise
        return found[0]  # type: ignore[no-any-return]


def load_anew_sync(
    cache: _NativeCache,
    lookup: Lookup,
    function: Callable[..., _T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    freshness: Freshness | None,
    tags: Iterable[str] | None,
) -> _T:
    """As :func:`load_sync`, whatever there is."""
    if _suites.state.bypassed:
        return function(*args, **(kwargs or {}))
    return _load_sync(cache, cache._join_anew, lookup, function, args, kwargs, freshness, tags)


def _load_sync(
    cache: _NativeCache,
    join: Join,
    lookup: Lookup,
    function: Callable[..., _T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    freshness: Freshness | None,
    tags: Iterable[str] | None,
) -> _T:
    while True:
        flight, leads, found = join(lookup)
        try:
            if found is not None:
                flight.land_value(found[0])
                return found[0]  # type: ignore[no-any-return]
            if leads:
                return lead_sync(lookup, flight, function, args, kwargs or {}, freshness, tags)
            if _loads.is_of_another_greenlet(flight):
                return load_sync_alone(cache, lookup, function, args, kwargs, freshness, tags)
            succeeded, value = _follow_sync(flight)
            if succeeded:
                return value  # type: ignore[no-any-return]
        finally:
            del flight  # see _result


def lead_sync(
    lookup: Lookup,
    flight: Flight,
    function: Callable[..., _T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    freshness: Freshness | None,
    tags: Iterable[str] | None,
) -> _T:
    """Loads in this thread and lands the flight."""
    number, handled = flight.id, sys.exception()
    token = _loads.leading.set(_loads.under_way() | {number})
    _loads.loaders[number] = _loads.Loader(None, flight.handle())
    try:
        if tags is not None:
            flight.tag(tags)
        value = function(*args, **kwargs)
        _refuse_coroutine(value)
        _store(flight, lookup, value, freshness)
    except BaseException as error:
        _failures.land_error(flight, error, handled, lookup, freshness)
        raise
    else:
        flight.land_value(value)
        return value
    finally:
        _loads.leading.reset(token)
        _loads.landed(number)
        del flight, handled  # see _result


def _follow_sync(flight: Flight) -> tuple[bool, Any]:
    try:
        mine = _loads.enter_line(flight)
        try:
            if _loads.forget_if_orphaned(flight):
                return False, None
            _loads.refuse_own_thread(flight)
            while not flight.wait(_LOOK):
                _loads.forget_if_orphaned(flight)
        except BaseException:
            # Ctrl-C: as a cancelled caller goes.
            if flight.waiting() == 0:
                _loads.cancel_from_anywhere(flight)
            raise
        finally:
            _loads.leave_line(flight, mine)
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
    freshness: Freshness | None = None,
    tags: Iterable[str] | None = None,
) -> _T:
    """Loads and stores without regard for other loads."""
    if _suites.state.bypassed:
        return function(*args, **(kwargs or {}))
    flight, handled = cache._depart_alone(lookup), sys.exception()
    try:
        if tags is not None:
            flight.tag(tags)
        value = function(*args, **(kwargs or {}))
        _refuse_coroutine(value)
        _store(flight, lookup, value, freshness)
    except Exception as error:
        found = _failures.failed_alone(cache, flight, error, handled, lookup, freshness)
        if found is None:
            raise
        return found[0]  # type: ignore[no-any-return]
    else:
        return value
    finally:
        flight.abandon()


async def load_async_alone(
    cache: _NativeCache,
    lookup: Lookup,
    function: Callable[..., Awaitable[_T]],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    freshness: Freshness | None = None,
    tags: Iterable[str] | None = None,
) -> _T:
    """Loads in the caller's own coroutine and stores, without regard for other loads."""
    if _suites.state.bypassed:
        return await function(*args, **(kwargs or {}))
    flight, handled = cache._depart_alone(lookup), sys.exception()
    try:
        if tags is not None:
            flight.tag(tags)
        value = await function(*args, **(kwargs or {}))
        _store(flight, lookup, value, freshness)
    except Exception as error:
        found = _failures.failed_alone(cache, flight, error, handled, lookup, freshness)
        if found is None:
            raise
        return found[0]  # type: ignore[no-any-return]
    else:
        return value
    finally:
        flight.abandon()


async def load_async(
    cache: _NativeCache,
    lookup: Lookup,
    function: Callable[..., Awaitable[_T]],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    freshness: Freshness | None = None,
    tags: Iterable[str] | None = None,
) -> _T:
    """The value for ``lookup``: loaded by a task of ours, or by whoever is loading it already."""
    if _suites.state.bypassed:
        return await function(*args, **(kwargs or {}))
    try:
        return await _load_async(cache._join, lookup, function, args, kwargs, freshness, tags)
    except Exception:
        found = None if freshness is None else cache._fallback(lookup, freshness)
        if found is None:
            raise
        return found[0]  # type: ignore[no-any-return]


async def load_anew_async(
    cache: _NativeCache,
    lookup: Lookup,
    function: Callable[..., Awaitable[_T]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    freshness: Freshness | None,
    tags: Iterable[str] | None,
) -> _T:
    """As :func:`load_async`, whatever there is."""
    if _suites.state.bypassed:
        return await function(*args, **(kwargs or {}))
    return await _load_async(cache._join_anew, lookup, function, args, kwargs, freshness, tags)


async def _load_async(
    join: Join,
    lookup: Lookup,
    function: Callable[..., Awaitable[_T]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    freshness: Freshness | None,
    tags: Iterable[str] | None,
) -> _T:
    loop = asyncio.get_running_loop()
    while True:
        flight, leads, found = join(lookup)
        try:
            if found is not None:
                flight.land_value(found[0])
                return found[0]  # type: ignore[no-any-return]
            if leads:
                loader = load(lookup, flight, function, args, kwargs or {}, freshness, tags)
                task = start(loop, flight, loader)
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
        mine = _loads.enter_line(flight)
        try:
            task = _loads.task_of(flight)
            # Without a task it is a thread, or a loop that has only just begun to load.
            if task is not None and task.get_loop() is loop:
                await _wait(loop, flight)
            else:
                await _wait_for_foreigner(loop, flight)
        finally:
            _loads.leave_line(flight, mine)
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
    if not _loads.forget_if_orphaned(flight):
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
                _loads.cancel_from_anywhere(flight)
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


def start(loop: asyncio.AbstractEventLoop, flight: Flight, loader: Any) -> asyncio.Task[None]:
    """Runs :func:`load` in a task of its own; at once, if somebody waits for it."""
    number = flight.id
    if len(_loads.loaders) % _loads.SWEEP == _loads.SWEEP - 1:
        _loads.sweep_orphans()
    _loads.loaders[number] = _loads.Loader(None, flight.handle())
    eager = sys.version_info >= (3, 12) and loop.get_task_factory() is None
    eager = eager and not flight.unattended
    try:
        if sys.version_info >= (3, 12) and eager:
            task: asyncio.Task[None] = asyncio.Task(loader, loop=loop, eager_start=True)
        else:
            # Without context=, which factories written before Python 3.11 do not take.
            task = loop.create_task(loader)
    except BaseException as error:
        loader.close()
        _loads.landed(number)
        _failures.land_error(flight, error, None)
        raise
    finally:
        del flight  # see _result
    if number in _loads.loaders:
        _loads.loaders[number] = _loads.loaders[number]._replace(task=task)
        if not eager:
            # Cancelled before its first instruction, it never gets to where it lands.
            task.add_done_callback(lambda _: _land_unbegun(number))
    return task


def _land_unbegun(number: int) -> None:
    loader = _loads.loaders.get(number)
    if loader is not None:
        _loads.landed(number)
        loader.flight.abandon()


async def load(
    lookup: Lookup,
    flight: Flight,
    function: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    freshness: Freshness | None,
    tags: Iterable[str] | None,
) -> None:
    """Loads and lands the flight."""
    # Begun eagerly, it runs inside of its first caller until it waits for the first time.
    number, handled = flight.id, sys.exception()
    # Whoever is served meanwhile does not wait for it, and may load what it asks for.
    mine = frozenset() if flight.unattended else _loads.under_way()
    _loads.leading.set(mine | {number})
    try:
        if tags is not None:
            flight.tag(tags)
        value = await function(*args, **kwargs)
        _store(flight, lookup, value, freshness)
    except asyncio.CancelledError:
        flight.abandon()
        raise
    except BaseException as error:
        _failures.land_error(flight, error, handled, lookup, freshness)
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
        _loads.landed(number)
        del flight, handled  # see _result


def _heard(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


def _store(flight: Flight, lookup: Lookup, value: Any, freshness: Freshness | None) -> None:
    if freshness is None or not freshness.skips(value):
        flight.store(lookup, value, freshness)


async def _leave(loop: asyncio.AbstractEventLoop, flight: Flight, waiter: int) -> None:
    """A cancelled caller goes; the last one out cancels the loader and sees it end."""
    try:
        if flight.leave(waiter) > 0:
            return
        task = _loads.task_of(flight)
        if task is None or task.done() or flight.unattended:
            return
        if task.get_loop() is not loop:
            _loads.cancel_from_anywhere(flight)
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
