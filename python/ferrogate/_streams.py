"""Streams: ``@cached`` on async generator functions.

The first reader of a key has its generator run by a task of ours; whoever asks
meanwhile reads along from the first chunk on. A reader that goes away costs the
others nothing, the last one to go ends the generator, and only what came to a
clean end is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from typing import Any, Literal

from ferrogate import _flight, _loads, _suites
from ferrogate._arguments import whole
from ferrogate._core import Cache as _NativeCache
from ferrogate._core import Flight, Freshness, Lookup
from ferrogate.exceptions import StreamLagError

Replay = Literal["at_once", "recorded"]
#: ``(function, args, kwargs, freshness, tags)``.
Load = tuple[
    Callable[..., AsyncIterable[Any]],
    tuple[Any, ...],
    dict[str, Any] | None,
    Freshness | None,
    Iterable[str] | None,
]

#: The streams under way, by the numbers of their flights.
_lives: dict[int, _Live] = {}

#: Between two looks whether the loop that reads the upstream is closed.
_LOOK = 1.0


class Recording:
    """A stream that came to its end: its chunks, and the seconds after which each came."""

    __slots__ = ("chunks", "times")

    def __init__(self, chunks: Iterable[Any], times: Iterable[float]) -> None:
        self.chunks = tuple(chunks)
        self.times = tuple(times)

    def __repr__(self) -> str:
        took = self.times[-1] if self.times else 0.0
        return f"<recorded stream of {len(self.chunks)} chunks in {took:.3f} s>"


async def replay(recording: Recording, pace: Replay) -> AsyncGenerator[Any, None]:
    """The chunks as they were, at once or each after the time that it took."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for chunk, after in zip(recording.chunks, recording.times, strict=True):
        if pace == "recorded" and (left := begun + after - loop.time()) > 0:
            await asyncio.sleep(left)
        yield chunk


class _CutOffError(RuntimeError):
    """The upstream ended before its end, and not by a fault of its own."""


class _Live:
    """One upstream that is being read, and those who read along.

    Chunks are kept from the first one on for those who come late; beyond
    ``most`` the oldest go, the stream is not stored, and who comes then has an
    upstream of their own.
    """

    # Not the flight: that keeps the failure, whose traceback keeps the frames that keep
    # this object, and the collector cannot see through the flight.
    def __init__(self, number: int, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self.number = number
        self.loop = loop
        self.most = most
        self.chunks: deque[Any] = deque()
        self.times: deque[float] = deque()
        #: How many chunks went before those that are kept.
        self.gone = 0
        self.readers = 0
        self.ended = False
        #: ``(exception, traceback, context)`` of an upstream that failed.
        self.failure: tuple[BaseException, Any, BaseException | None] | None = None
        self.task: asyncio.Task[None] | None = None
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    @property
    def count(self) -> int:
        """How many chunks there have been."""
        return self.gone + len(self.chunks)

    def add(self, chunk: Any, after: float) -> None:
        self.chunks.append(chunk)
        self.times.append(after)
        if len(self.chunks) > self.most:
            self.chunks.popleft()
            self.times.popleft()
            self.gone += 1
            loader = _loads.loaders.get(self.number)
            if self.gone == 1 and loader is not None:
                loader.flight.outdate()
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """With what the upstream raised, if it did; the first time counts."""
        if self.ended:
            return
        if error is not None:
            self.failure = (error, error.__traceback__, error.__context__)
        self.ended = True
        _lives.pop(self.number, None)
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        here = asyncio._get_running_loop()
        for loop, future in waiting:
            if loop is here:
                _settle(future)
            else:
                # A closed loop has nobody waiting any more.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(_settle, future)

    async def more(self, position: int) -> None:
        """Until there is a chunk at ``position``, or the end."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.append((loop, future))
        # In this order: another thread may add one between a look and the waiting.
        if position < self.count or self.ended:
            return
        if self.loop is loop:
            await future
            return
        while not (await asyncio.wait((future,), timeout=_LOOK))[0]:
            # It may be closed without a word.
            if self.loop.is_closed():
                loader = _loads.loaders.get(self.number)
                if loader is not None:
                    _loads.forget_if_orphaned(loader.flight)
                self.end(_CutOffError("the event loop that read the stream was closed"))

    async def leave(self) -> None:
        """One reader less; the last one ends the upstream, and sees its clean-up end."""
        self.readers -= 1
        task = self.task
        if self.readers > 0 or self.ended or task is None or task.done():
            return
        if asyncio._get_running_loop() is self.loop:
            self._cancel_unless_read()
            await asyncio.wait((task,))
        else:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._cancel_unless_read)

    def _cancel_unless_read(self) -> None:
        if self.readers > 0 or self.task is None:
            return
        # Whoever comes while it cleans up has an upstream of their own.
        _lives.pop(self.number, None)
        loader = _loads.loaders.get(self.number)
        if loader is not None:
            loader.flight.outdate()
        self.task.cancel()

    def cut_off(self, _: object) -> None:
        """Cancelled before its first instruction, the task could not tell."""
        self.end(_CutOffError("the stream was cancelled where it was read"))


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _pump(
    live: _Live, function: Callable[..., AsyncIterable[Any]], *args: Any, **kwargs: Any
) -> Recording:
    """Reads the upstream to its end."""
    try:
        begun = live.loop.time()
        upstream = function(*args, **kwargs)
        try:
            async for chunk in upstream:
                live.add(chunk, live.loop.time() - begun)
        finally:
            if isinstance(upstream, AsyncGenerator):
                await upstream.aclose()
        live.end()
        return Recording(live.chunks, live.times)
    except asyncio.CancelledError:
        live.cut_off(None)
        raise
    except BaseException as error:
        live.end(error)
        raise
    finally:
        del live  # see _Live


def _begin(lookup: Lookup, flight: Flight, live: _Live, load: Load) -> None:
    _lives[flight.id] = live
    function, args, kwargs, freshness, tags = load
    pump = functools.partial(_pump, live, function)
    try:
        loader = _flight.load(lookup, flight, pump, args, kwargs or {}, freshness, tags)
        live.task = _flight.start(live.loop, flight, loader)
        live.task.add_done_callback(live.cut_off)
    except BaseException:
        _lives.pop(flight.id, None)
        raise
    finally:
        del flight, loader, pump


async def _read_along(live: _Live) -> AsyncGenerator[Any, None]:
    live.readers += 1
    position = 0
    try:
        while True:
            if position < live.gone:
                raise StreamLagError(behind=live.count - position, kept=live.most)
            if position < live.count:
                position += 1
                yield live.chunks[position - 1 - live.gone]
            elif live.ended:
                break
            else:
                await live.more(position)
        if live.failure is not None:
            _raise(live)
    finally:
        try:
            await live.leave()
        finally:
            del live  # see _Live


def _raise(live: _Live) -> None:
    assert live.failure is not None
    error, traceback, context = live.failure
    try:
        raise error.with_traceback(traceback)
    finally:
        # As _flight._result does.
        error.__context__ = context
        del error, traceback, context, live


async def read(
    cache: _NativeCache,
    lookup: Lookup,
    function: Callable[..., AsyncIterable[Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    freshness: Freshness | None,
    tags: Iterable[str] | None,
    *,
    pace: Replay,
    most: int,
    anew: bool = False,
) -> AsyncGenerator[Any, None]:
    """The stream for ``lookup``: begun by us, or read along from the first chunk on."""
    if _suites.state.bypassed:
        async for chunk in function(*args, **(kwargs or {})):
            yield chunk
        return
    loop = asyncio.get_running_loop()
    join = cache._join_anew if anew else cache._join
    while True:
        flight, leads, found = join(lookup)
        mine: list[int] = []
        began = False
        try:
            if found is not None:
                flight.land_value(found[0])
                stream = replay(found[0], pace)
            elif leads:
                live = _Live(flight.id, loop, most)
                _begin(lookup, flight, live, (function, args, kwargs, freshness, tags))
                stream = _read_along(live)
            else:
                mine = _loads.enter_line(flight)
                reading = _lives.get(flight.id)
                if reading is None or reading.gone:
                    # It has just ended, or another thread is just beginning it, or its first
                    # chunks have just gone.
                    await asyncio.sleep(0)
                    continue
                stream = _read_along(reading)
            async with contextlib.aclosing(stream):
                async for chunk in stream:
                    began = True
                    yield chunk
        except _CutOffError:
            if began:
                raise
        else:
            return
        finally:
            _loads.leave_line(flight, mine)
            del flight  # see _Live


def check(pace: object, most: object) -> None:
    """Refuses wrong options of a stream."""
    if pace not in {"at_once", "recorded"}:
        raise ValueError(f"stream_replay: expected 'at_once' or 'recorded', got {pace!r}")
    whole("stream_chunks", most, least=1)  # type: ignore[arg-type]


def skip_if(user: Callable[[Any], object] | None) -> Callable[[Recording], object] | None:
    """``skip_if`` of a stream gets its chunks."""
    if user is None or not callable(user):
        return user
    return lambda recording: user(recording.chunks)


def after_fork_in_child() -> None:
    # Those who read stayed in the parent.
    _lives.clear()
