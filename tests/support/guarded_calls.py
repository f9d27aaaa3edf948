"""How to call what `ferrogate.Guard` exports: the recipes of the panic tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from ferrogate import AttemptRecord, Guard, Hedge, Recording, _core

Recipe = Callable[[], Callable[[], object]]


def double(x: int) -> int:
    return 2 * x


async def double_later(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


def of_guard(call: Callable[[Guard], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        guard = Guard("panics")
        return lambda: call(guard)

    return recipe


def of_function(call: Callable[[Any], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        function = Guard("panics")(double)
        return lambda: call(function)

    return recipe


def finished(coroutine: Any) -> object:
    async def main() -> object:
        return await coroutine

    return asyncio.run(main())


def thrown(guard: Guard) -> None:
    call = guard.call(double_later, 1)
    try:
        call.throw(KeyError("k"))
    except KeyError:
        return
    finally:
        # Where even `throw` failed, nobody has begun it.
        call.close()
    raise AssertionError("nothing was raised")


def attribute(function: Any) -> None:
    function.note = 1
    del function.note


class Owner:
    method = Guard("panics")(lambda self, x: x)


async def items() -> AsyncIterator[int]:
    yield 1
    yield 2


def of_stream(call: Callable[[Any], object]) -> Recipe:
    """A stream runs once, so every call has one of its own."""

    def recipe() -> Callable[[], object]:
        function = Guard("panics")(items)
        return lambda: finished(call(function()))

    return recipe


async def closed_by(stream: Any) -> None:
    with contextlib.suppress(KeyError):
        await stream.athrow(KeyError("k"))


def opened(call: Callable[[Guard, _core._OpenAttempt], object]) -> Recipe:
    """An attempt ends once, so every call has one of its own."""

    def recipe() -> Callable[[], object]:
        guard = Guard("panics")

        def step() -> object:
            attempt = _core._OpenAttempt()
            guard._open_sync(attempt, False, double, 1)
            return call(guard, attempt)

        return step

    return recipe


def of_recording(call: Callable[[Recording], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        recording = Recording()
        return lambda: call(recording)

    return recipe


RECIPES: dict[str, Recipe] = {
    "Guard": lambda: lambda: Guard("panics"),
    "Guard._clock_moved": of_guard(lambda g: g._clock_moved()),
    "Guard._counts": of_guard(lambda g: g.get_stats()),
    "Guard._open": opened(lambda g, a: finished(g._open(a, False, double_later, 1))),
    "Guard._open_sync": opened(lambda g, a: g._open_sync(a, True, double, 1)),
    "Guard._parts": of_guard(lambda g: g._parts()),
    "Guard._targets": of_guard(_core.Guard._targets),
    "Guard.call": of_guard(lambda g: finished(g.call(double_later, 1))),
    "Guard.call_sync": of_guard(lambda g: g.call_sync(double, 1)),
    "Driven.send": of_guard(lambda g: finished(g.call(double_later, 1))),
    "Driven.throw": of_guard(thrown),
    "GuardedFunction": of_guard(lambda g: g(double)),
    "GuardedFunction.__call__": of_function(lambda f: f(1)),
    "GuardedFunction.__class_getitem__": lambda: lambda: _core.GuardedFunction[[int], int],
    "GuardedFunction.__delattr__": of_function(attribute),
    "GuardedFunction._doc": of_function(lambda f: f._doc),
    "GuardedFunction.__get__": lambda: lambda: Owner().method,
    "GuardedFunction.__getattribute__": of_function(lambda f: f.__name__),
    "GuardedFunction.__reduce__": of_function(lambda f: f.__reduce__()),
    "GuardedFunction.__repr__": of_function(repr),
    "GuardedFunction.__setattr__": of_function(attribute),
    "GuardedStream.__anext__": of_stream(lambda s: s.__anext__()),
    "GuardedStream.aclose": of_stream(lambda s: s.aclose()),
    "GuardedStream.asend": of_stream(lambda s: s.asend(None)),
    "GuardedStream.athrow": of_stream(closed_by),
    "Hedge": lambda: Hedge,
    "Recording": lambda: Recording,
    "Recording._push": of_recording(lambda r: r._push(AttemptRecord(1, 1, 0, 0, 1, "success"))),
    "Recording._rows": of_recording(list),
    "Recording.clear": of_recording(lambda r: r.clear()),
    "Hedge._stats": lambda: lambda: Hedge().get_stats(),
    "_OpenAttempt": lambda: _core._OpenAttempt,
    "_OpenAttempt.abandon": opened(lambda _, a: a.abandon()),
    "_OpenAttempt.first_token": opened(lambda _, a: a.first_token()),
    "_OpenAttempt.end": opened(lambda _, a: a.end(None)),
    "_outcome_of": lambda: lambda: _core._outcome_of(ValueError()),
}

C_API = "talks to CPython's C API only; there is nothing of Rust's in it that could panic"
READS = "reads a field"

EXCUSED = {
    "Driven.__await__": C_API,
    "Driven.__iter__": C_API,
    "Driven.__name__": "reads an attribute of the function",
    "Driven.__next__": "as Driven.send",
    "Driven.__qualname__": "reads an attribute of the function",
    "Driven.close": "ends by Driven.send or Driven.end, which go through the edge",
    "Driven.cr_await": READS,
    "Driven.cr_frame": C_API,
    "Driven.cr_running": READS,
    "Driven.cr_suspended": READS,
    "Guard._bulkhead": READS,
    "Guard.enabled": READS,
    "Guard.name": READS,
    "GuardedFunction.__dict__": READS,
    "GuardedFunction.guard": READS,
    "Recording.__len__": READS,
    "Recording.dropped": READS,
    "Recording.max_records": READS,
    "GuardedStream.__aiter__": "returns itself",
    "Hedge.budget": READS,
    "_Alarm.__call__": "through the edge; a loop's callback, whose errors the loop logs",
    "_Rival.__call__": "through the edge; a loop's callback, whose errors the loop logs",
    "_set_bypass": "stores one bit",
    "_Watch.__call__": "through the edge; a loop's callback, whose errors the loop logs",
}

THROUGH = {"GuardedFunction._doc": "GuardedFunction.__doc__"}
