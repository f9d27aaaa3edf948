"""The registered checks by name: running them all, and what came of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from ferrogate._background import Stop
from ferrogate._checks import Check, Outcome, Run, loop_reference, usable
from ferrogate._core import HealthCore
from ferrogate._health_types import HealthStatus


class Checks:
    """At most ``most`` checks, each the only one of its name."""

    def __init__(self, core: HealthCore, most: int) -> None:
        self._core = core
        self._most = most
        # Reentrant: a finaliser that runs while it is held may ask the monitor.
        self._lock = threading.RLock()
        self._by_name: dict[str, Check] = {}
        self._loop: Callable[[], asyncio.AbstractEventLoop | None] = loop_reference(None)
        self._runs = self._failures = self._timeouts = 0

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, check: Check) -> None:
        """Adds ``check`` or replaces the one of its name."""
        with self._lock:
            if check.name not in self._by_name and len(self._by_name) >= self._most:
                raise ValueError(f"max_checks: {self._most} checks are registered already")
            replaced = self._by_name.get(check.name)
            self._by_name[check.name] = check
        del replaced  # its function may have a finaliser: outside of the lock

    def remove(self, name: str) -> bool:
        """Removes a check and ends its alert; whether there was one."""
        with self._lock:
            removed = self._by_name.pop(name, None)
        if removed is None:
            return False
        self._core.resolve(f"check:{name}")
        return True

    def all(self) -> list[Check]:
        """The checks in the order they were registered."""
        with self._lock:
            return list(self._by_name.values())

    def run_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Has async checks run on ``loop`` from now on, as long as it runs."""
        self._loop = loop_reference(loop)

    async def run_all(self) -> None:
        """Runs all at once, async ones on the running loop, and waits for them."""
        loop = asyncio.get_running_loop()
        self.run_on(loop)
        runs = self._begin(self.all(), loop)
        outcomes = await asyncio.gather(*(check.wait_async(run) for check, run in runs))
        for (check, _), outcome in zip(runs, outcomes, strict=True):
            self._finish(check, outcome)

    def run_and_wait(self, checks: list[Check], stop: Stop | None) -> None:
        """Runs them at once and waits in this thread, until ``stop`` at the most."""
        for check, run in self._begin(checks, usable(self._loop())):
            outcome = check.wait(run, stop)
            if outcome is None:
                return
            self._finish(check, outcome)

    def _begin(
        self, checks: list[Check], loop: asyncio.AbstractEventLoop | None
    ) -> list[tuple[Check, Run]]:
        now = self._core.now()
        for check in checks:
            check.last_started = now
        return [(check, check.begin(self._lock, loop)) for check in checks]

    def _finish(self, check: Check, outcome: Outcome) -> None:
        with self._lock:
            self._runs += 1
            self._timeouts += outcome.timed_out
            self._failures += outcome.status is HealthStatus.UNHEALTHY
            check.last_finished = self._core.unix()
            check.outcome, previous = outcome, check.outcome
        del previous  # may hold user objects: outside of the lock

    def counts(self) -> tuple[int, int, int]:
        """Outcomes so far, unhealthy ones, and those of runs that took too long."""
        with self._lock:
            return self._runs, self._failures, self._timeouts

    def after_fork(self) -> None:
        """Starts afresh in a forked child."""
        # A thread of the parent may have held it; those that ran checks are not here.
        self._lock = threading.RLock()
        self._loop = loop_reference(None)
        for check in self._by_name.values():
            check.run = None
