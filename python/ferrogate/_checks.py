"""Running health checks: at most one run of each at a time, none waited for too long.

A check that hangs cannot be killed, only left alone. It keeps its one thread
(or task) until it comes back; meanwhile it is reported as timed out and not
started again, and a check that replaces it waits its turn: hanging checks
never pile up.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from ferrogate._check_runs import (
    NOT_RUN,
    CheckFunction,
    Outcome,
    Run,
    failure,
    in_thread,
    loop_reference,
    on_loop,
    running_loop,
)
from ferrogate._health_types import HealthStatus


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

    def due_in(self, now: float) -> float:
        """Seconds until its next background run; 0 or less is now."""
        return 0.0 if self.last_started is None else self.last_started + self.interval - now

    def settle(self) -> None:
        """Ends the runs whose loop is gone; never with a lock held."""
        for run in (self.before, self.run):
            if run is not None:
                run.settle()

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
        self.settle()
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
                target=in_thread,
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
                run.finish(failure(error, run.started))

    def _begin_on(self, run: Run, loop: asyncio.AbstractEventLoop) -> None:
        def create() -> None:
            run.task = loop.create_task(on_loop(run, self.function, self.timeout))

        run.loop = loop_reference(loop)
        try:
            if loop is running_loop():
                create()
            else:
                loop.call_soon_threadsafe(create)
        except RuntimeError as error:  # closed in the meantime
            run.finish(failure(error, run.started))

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
        if await run.over(self.remaining(run)):
            return run.future.result()
        return self.timed_out(run)
