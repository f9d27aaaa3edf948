"""One run of a health check: where it runs, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from ferrogate._health_types import HealthStatus

CheckResult = bool | str | Mapping[str, Any] | None
CheckFunction = Callable[[], CheckResult | Awaitable[CheckResult]]

# True inside of a check: whoever asks the monitor from there gets the latest
# report instead of waiting for the run that it is itself a part of.
inside_check: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "ferrogate_inside_check", default=False
)

_MAX_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of a check came to."""

    status: HealthStatus
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    duration: float = 0.0
    timed_out: bool = False


NOT_RUN = Outcome(HealthStatus.UNKNOWN, "replaced or removed before its turn came")


class Run:
    """One run of a check; its future always gets an :class:`Outcome`."""

    __slots__ = ("_waiters", "counted", "future", "loop", "started", "task")

    def __init__(self) -> None:
        self.future: Future[Outcome] = Future()
        # Nobody who waits may cancel it for the others.
        self.future.set_running_or_notify_cancel()
        self.started = time.monotonic()
        # Where it runs, if not in a thread of its own.
        self.loop: Callable[[], asyncio.AbstractEventLoop | None] | None = None
        self.task: asyncio.Task[None] | None = None
        # Whether an outcome of it was: all who joined it have one, but it is one run.
        self.counted = False
        self._waiters: set[asyncio.Future[None]] = set()

    def finish(self, outcome: Outcome) -> None:
        """Ends it with ``outcome``, unless it has ended; never with a lock held.

        It may drop a task, and the coroutine in it runs what its ``finally`` says.
        """
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(outcome)
        self.task = None
        for waiter in self._waiters.copy():
            _wake(waiter)

    async def over(self, timeout: float) -> bool:
        """Waits for its end in the running loop; whether it came within ``timeout`` seconds.

        A done-callback of the future would stay on a run that hangs, one for every wait.
        """
        if timeout > 0 and not self.future.done():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                # It may have ended, and woken the others, before this one was among them.
                if not self.future.done():
                    await asyncio.wait({waiter}, timeout=timeout)
            finally:
                self._waiters.discard(waiter)
        return self.future.done()

    def settle(self) -> None:
        """Ends it if its loop is gone: it would never come back."""
        if self.loop is None or self.future.done():
            return
        loop = self.loop()
        if loop is None or loop.is_closed():
            self.finish(failure(RuntimeError("its event loop was closed"), self.started))


def _wake(waiter: asyncio.Future[None]) -> None:
    def resolve() -> None:
        if not waiter.done():
            waiter.set_result(None)

    with contextlib.suppress(RuntimeError):  # its loop was closed: nobody waits any more
        waiter.get_loop().call_soon_threadsafe(resolve)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def loop_reference(
    loop: asyncio.AbstractEventLoop | None,
) -> Callable[[], asyncio.AbstractEventLoop | None]:
    """``loop`` held weakly: a monitor must not keep a finished loop alive."""
    if loop is None:
        return lambda: None
    return weakref.ref(loop)


def usable(loop: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop | None:
    """``loop`` if a thread may wait for it: it runs, and not in this thread."""
    if loop is None or not loop.is_running() or loop is running_loop():
        return None
    return loop


def in_thread(run: Run, function: CheckFunction, timeout: float) -> None:
    """Runs ``function`` in this thread, with a loop of its own if it is async."""
    inside_check.set(True)
    try:
        value = function()
        if inspect.isawaitable(value):
            run.finish(asyncio.run(_awaited(value, timeout, run.started)))
        else:
            run.finish(_interpret(value, run.started))
    except BaseException as error:  # a SystemExit of a check ends the check, not the report
        run.finish(failure(error, run.started))


async def on_loop(run: Run, function: CheckFunction, timeout: float) -> None:
    """Runs ``function`` in the running loop."""
    inside_check.set(True)
    try:
        value = function()
        if inspect.isawaitable(value):
            run.finish(await _awaited(value, timeout, run.started))
        else:
            run.finish(_interpret(value, run.started))
    except Exception as error:
        run.finish(failure(error, run.started))
    except BaseException as error:  # cancelled with its loop, or an exit: not ours to swallow
        run.finish(failure(error, run.started))
        raise


async def _awaited(value: Awaitable[CheckResult], timeout: float, started: float) -> Outcome:
    try:
        async with asyncio.timeout(timeout) as deadline:
            return _interpret(await value, started)
    except TimeoutError as error:
        if not deadline.expired():
            return failure(error, started)
        elapsed = time.monotonic() - started
        message = f"timed out after {timeout:g} s"
        return Outcome(HealthStatus.UNHEALTHY, message, duration=elapsed, timed_out=True)


def failure(error: BaseException, started: float) -> Outcome:
    """What a run that raised ``error`` came to."""
    try:
        text = str(error)
    except Exception:
        text = "(no text: its __str__ failed)"
    message = _message(f"{type(error).__name__}: {text}" if text else type(error).__name__)
    return Outcome(HealthStatus.UNHEALTHY, message, duration=time.monotonic() - started)


def _message(text: object) -> str:
    """As text that has a UTF-8 form: a file name in an error may have none."""
    return str(text)[:_MAX_MESSAGE].encode(errors="backslashreplace").decode()


def _interpret(value: object, started: float) -> Outcome:
    """``True``, ``None`` or a status or a dict with ``status`` or ``healthy``."""
    duration = time.monotonic() - started
    if value is None or value is True:
        return Outcome(HealthStatus.HEALTHY, duration=duration)
    if value is False:
        return Outcome(HealthStatus.UNHEALTHY, "the check returned False", duration=duration)
    details: Mapping[str, Any] = {}
    given: object = value
    message = ""
    if isinstance(value, Mapping):
        details = dict(value)
        message = _message(details.get("message", ""))
        given = details.get("status", details.get("healthy", True))
    if isinstance(given, bool):
        status = HealthStatus.HEALTHY if given else HealthStatus.UNHEALTHY
        return Outcome(status, message, details, duration)
    try:
        status = HealthStatus(str(given).lower())
    except ValueError:
        expected = ", ".join(repr(str(status)) for status in HealthStatus)
        message = (
            f"the check returned {given!r}; expected a bool, None, one of {expected}, "
            "or a dict with 'status' or 'healthy'"
        )
        return Outcome(HealthStatus.UNHEALTHY, _message(message), details, duration)
    return Outcome(status, message, details, duration)
