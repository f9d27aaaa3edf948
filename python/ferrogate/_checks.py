"""Running health checks: at most one run of each at a time, none waited for too long.

A check that hangs cannot be killed, only left alone. It keeps its one thread
(or task) until it comes back; meanwhile it is reported as timed out and not
started again, and a check that replaces it waits its turn: hanging checks
never pile up.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
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

    __slots__ = ("future", "started", "task")

    def __init__(self) -> None:
        self.future: Future[Outcome] = Future()
        # Nobody who waits may cancel it for the others.
        self.future.set_running_or_notify_cancel()
        self.started = time.monotonic()
        self.task: asyncio.Task[None] | None = None

    def finish(self, outcome: Outcome) -> None:
        self.task = None
        if not self.future.done():
            self.future.set_result(outcome)


class Check:
    """A registered check and its latest outcome."""

    def __init__(
        self, name: str, function: CheckFunction, group: str | None, timeout: float, interval: float
    ) -> None:
        self.name = name
        self.function = function
        self.group = group
        self.timeout = timeout
        self.interval = interval
        self.run: Run | None = None
        # The run of the check that this one replaced; as long as it lasts, ours waits.
        self.before: Run | None = None
        self.withdrawn = False
        self.last_started: float | None = None
        self.last_finished: float | None = None
        self.outcome: Outcome | None = None
        # A callable object is async when its class's `__call__` is.
        call = inspect.getattr_static(type(function), "__call__", None)
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)

    def under_way(self) -> Run | None:
        """The run that this check's name has a thread or a task for, if any."""
        for run in (self.before, self.run):
            if run is not None and not run.future.done():
                return run
        return None

    def begin(self, lock: threading.RLock, loop: asyncio.AbstractEventLoop | None) -> Run:
        """Starts a run, or joins the one that is under way or waits its turn.

        An async check runs on ``loop`` when there is one, else on a loop of
        its own in the thread.
        """
        with lock:
            if self.run is not None and not self.run.future.done():
                return self.run
            previous, run = self.run, Run()
            self.run = run
            before = self.before
            withdrawn = self.withdrawn
        del previous  # may hold user objects: outside of the lock
        if withdrawn:
            run.finish(NOT_RUN)
        elif before is None or before.future.done():
            self.before = None
            self._launch(run, loop)
        else:
            reference = loop_reference(loop)
            before.future.add_done_callback(lambda _: self._take_turn(run, reference()))
        return run

    def _take_turn(self, run: Run, loop: asyncio.AbstractEventLoop | None) -> None:
        self.before = None
        if self.withdrawn:
            run.finish(NOT_RUN)
        else:
            self._launch(run, loop if loop is not None and loop.is_running() else None)

    def _launch(self, run: Run, loop: asyncio.AbstractEventLoop | None) -> None:
        if self.is_async and loop is not None:
            self._begin_on(run, loop)
        else:
            thread = threading.Thread(
                target=_in_thread,
                args=(run, self.function, self.timeout),
                name=f"ferrogate-check-{self.name}",
                daemon=True,
            )
            try:
                if sys.is_finalizing():
                    # From 3.12 on `start` says so itself; 3.11 waits for the thread for ever.
                    raise RuntimeError("can't create new thread at interpreter shutdown")  # noqa: TRY301
                thread.start()
            except RuntimeError as error:  # no more threads, or the interpreter is going down
                run.finish(_failure(error, run.started))

    def _begin_on(self, run: Run, loop: asyncio.AbstractEventLoop) -> None:
        def create() -> None:
            run.task = loop.create_task(_on_loop(run, self.function, self.timeout))

        try:
            if loop is running_loop():
                create()
            else:
                loop.call_soon_threadsafe(create)
        except RuntimeError as error:  # closed in the meantime
            run.finish(_failure(error, run.started))

    def remaining(self, run: Run) -> float:
        """Seconds that a caller may still wait for ``run``."""
        return max(0.0, run.started + self.timeout - time.monotonic())

    def timed_out(self, run: Run) -> Outcome:
        """The outcome of a run that did not come back in time."""
        since = time.monotonic() - run.started
        message = f"timed out after {self.timeout:g} s"
        before = self.before
        if before is not None and not before.future.done():
            waited = time.monotonic() - before.started
            message += f", waiting for the check it replaced, still running after {waited:.0f} s"
        elif since > self.timeout + 1.0:
            message += f", still running after {since:.0f} s"
        return Outcome(HealthStatus.UNHEALTHY, message, duration=since, timed_out=True)

    def wait(self, run: Run, stop: Future[None] | None = None) -> Outcome | None:
        """Waits in this thread; ``None`` when ``stop`` came first."""
        futures: list[Future[Any]] = [run.future] if stop is None else [run.future, stop]
        wait(futures, timeout=self.remaining(run), return_when=FIRST_COMPLETED)
        if run.future.done():
            return run.future.result()
        if stop is not None and stop.done():
            return None
        return self.timed_out(run)

    async def wait_async(self, run: Run) -> Outcome:
        """Waits in the running loop; being cancelled leaves the run alone."""
        waiter = asyncio.wrap_future(run.future)
        try:
            await asyncio.wait({waiter}, timeout=self.remaining(run))
            return waiter.result() if waiter.done() else self.timed_out(run)
        finally:
            # An uncancelled waiter would be completed on a loop that may be closed by then.
            waiter.cancel()


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


def _in_thread(run: Run, function: CheckFunction, timeout: float) -> None:
    inside_check.set(True)
    try:
        value = function()
        if inspect.isawaitable(value):
            run.finish(asyncio.run(_awaited(value, timeout, run.started)))
        else:
            run.finish(_interpret(value, run.started))
    except BaseException as error:  # a SystemExit of a check ends the check, not the report
        run.finish(_failure(error, run.started))


async def _on_loop(run: Run, function: CheckFunction, timeout: float) -> None:
    inside_check.set(True)
    try:
        value = function()
        if inspect.isawaitable(value):
            run.finish(await _awaited(value, timeout, run.started))
        else:
            run.finish(_interpret(value, run.started))
    except Exception as error:
        run.finish(_failure(error, run.started))
    except BaseException as error:  # cancelled with its loop, or an exit: not ours to swallow
        run.finish(_failure(error, run.started))
        raise


async def _awaited(value: Awaitable[CheckResult], timeout: float, started: float) -> Outcome:
    try:
        async with asyncio.timeout(timeout) as deadline:
            return _interpret(await value, started)
    except TimeoutError as error:
        if not deadline.expired():
            return _failure(error, started)
        elapsed = time.monotonic() - started
        message = f"timed out after {timeout:g} s"
        return Outcome(HealthStatus.UNHEALTHY, message, duration=elapsed, timed_out=True)


def _failure(error: BaseException, started: float) -> Outcome:
    try:
        text = str(error)
    except Exception:
        text = "(no text: its __str__ failed)"
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return Outcome(
        HealthStatus.UNHEALTHY, message[:_MAX_MESSAGE], duration=time.monotonic() - started
    )


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
        message = str(details.get("message", ""))[:_MAX_MESSAGE]
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
        return Outcome(HealthStatus.UNHEALTHY, message[:_MAX_MESSAGE], details, duration)
    return Outcome(status, message, details, duration)
