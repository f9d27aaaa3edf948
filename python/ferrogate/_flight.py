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
import contextlib
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

from ferrogate._core import Cache as _NativeCache
from ferrogate._core import Flight, Lookup

_T = TypeVar("_T")

#: The flights that the current code is loading for.
_leading: ContextVar[frozenset[int]] = ContextVar("ferrogate_leading", default=frozenset())

#: The loader task of each flight under way and the thread of its loop.
_loaders: dict[int, tuple[asyncio.Task[None] | None, int]] = {}


def _wake(waiters: Iterable[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]]) -> None:
    here = asyncio._get_running_loop()
    for loop, future in waiters:
        if loop is here:
            _settle(future)
            continue
        try:
            loop.call_soon_threadsafe(_settle, future)
        except RuntimeError:
            # That loop is closed; nobody is waiting there any more.
            continue


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


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
        del error, traceback, value, outcome


def _refuse_recursion(flight: Flight, *, blocking: bool) -> None:
    loader = _loaders.get(flight.id)
    if flight.id in _leading.get():
        raise RuntimeError("recursive load: the loader asked for the key that it is loading")
    if blocking and loader is not None and loader[1] == threading.get_ident():
        raise RuntimeError(
            "this thread's event loop is loading that key; waiting here would block it for ever"
        )


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
        if not leads:
            _refuse_recursion(flight, blocking=True)
            flight.wait()
            succeeded, value = _result(flight)
            if succeeded:
                return value  # type: ignore[no-any-return]
            continue
        if found is not None:
            _wake(flight.land_value(found[0]))
            return found[0]  # type: ignore[no-any-return]
        _loaders[flight.id] = (None, threading.get_ident())
        token = _leading.set(_leading.get() | {flight.id})
        try:
            value = function(*args, **(kwargs or {}))
            cache._store(lookup, value, ttl, tags)
        except BaseException as error:
            _land_error(flight, error)
            raise
        else:
            _wake(flight.land_value(value))
            return value
        finally:
            _leading.reset(token)
            _loaders.pop(flight.id, None)


def load_sync_alone(
    cache: _NativeCache,
    lookup: Lookup,
    function: Callable[..., _T],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    ttl: Any = None,
    tags: Iterable[str] | None = None,
) -> _T:
    """Loads and stores without regard for others."""
    value = function(*args, **(kwargs or {}))
    cache._store(lookup, value, ttl, tags)
    return value


async def load_async_alone(
    cache: _NativeCache,
    lookup: Lookup,
    function: Callable[..., Awaitable[_T]],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    ttl: Any = None,
    tags: Iterable[str] | None = None,
) -> _T:
    """Loads in the caller's own coroutine and stores, without regard for others."""
    value = await function(*args, **(kwargs or {}))
    cache._store(lookup, value, ttl, tags)
    return value


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
        if not leads:
            _refuse_recursion(flight, blocking=False)
        elif found is not None:
            _wake(flight.land_value(found[0]))
            return found[0]  # type: ignore[no-any-return]
        if leads:
            loader = _load(cache, lookup, flight, function, args, kwargs or {}, ttl, tags)
            _start(loop, flight, loader)
        # After the start: a loader that never had to wait has landed by now.
        future = loop.create_future()
        waiter = flight.enroll(loop, future)
        if waiter is not None:
            try:
                await future
            except asyncio.CancelledError:
                await _leave(loop, flight, waiter)
                raise
        succeeded, value = _result(flight)
        if succeeded:
            return value  # type: ignore[no-any-return]
        if leads:
            # Our own loader was cancelled from outside (or cancelled itself).
            raise asyncio.CancelledError("the loader was cancelled")


def _start(loop: asyncio.AbstractEventLoop, flight: Flight, loader: Any) -> None:
    _loaders[flight.id] = (None, threading.get_ident())
    context: Context = copy_context()
    try:
        if sys.version_info >= (3, 12) and loop.get_task_factory() is None:
            task = asyncio.Task(loader, loop=loop, context=context, eager_start=True)
        else:
            task = loop.create_task(loader, context=context)
    except BaseException as error:
        loader.close()
        _loaders.pop(flight.id, None)
        _land_error(flight, error)
        raise
    if not task.done():
        _loaders[flight.id] = (task, threading.get_ident())


async def _load(
    cache: _NativeCache,
    lookup: Lookup,
    flight: Flight,
    function: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    ttl: Any,
    tags: Iterable[str] | None,
) -> None:
    _leading.set(_leading.get() | {flight.id})
    try:
        value = await function(*args, **kwargs)
        cache._store(lookup, value, ttl, tags)
    except asyncio.CancelledError:
        _wake(flight.abandon())
        raise
    except BaseException as error:
        _land_error(flight, error)
        if not isinstance(error, Exception):
            # The loop itself raises it to whoever runs it; the task must not be
            # told off on stderr because nobody asks it too.
            task = asyncio.current_task()
            if task is not None:
                task.add_done_callback(_heard)
            raise
    else:
        _wake(flight.land_value(value))
    finally:
        _loaders.pop(flight.id, None)


def _heard(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


def _land_error(flight: Flight, error: BaseException) -> None:
    """The loader's own errors are everybody's; what ends the thread or task is not."""
    if isinstance(error, Exception):
        _wake(flight.land_error((error, error.__traceback__)))
    else:
        _wake(flight.abandon())


async def _leave(loop: asyncio.AbstractEventLoop, flight: Flight, waiter: int) -> None:
    """A cancelled caller goes; the last one out cancels the loader and sees it end."""
    if flight.leave(waiter) > 0:
        return
    task, _ = _loaders.get(flight.id, (None, 0))
    if task is None or task.done():
        return
    owner = task.get_loop()
    if owner is not loop:
        # A closed loop has no loader left to cancel.
        with contextlib.suppress(RuntimeError):
            owner.call_soon_threadsafe(_cancel_unless_wanted, flight, task)
        return
    task.cancel()
    await asyncio.wait((task,))
    # A loader that turned its cancellation into an error raises that, as if called directly.
    outcome = flight.outcome()
    if outcome is not None and not outcome[0]:
        _result(flight)


def _cancel_unless_wanted(flight: Flight, task: asyncio.Task[None]) -> None:
    if flight.waiting() == 0:
        task.cancel()


def _after_fork_in_child() -> None:
    # The loaders stayed in the parent.
    _loaders.clear()
