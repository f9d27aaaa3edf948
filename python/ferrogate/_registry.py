"""The registered checks by name: running them all, and what came of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from ferrogate._background import Stop
from ferrogate._check_runs import NOT_RUN, Outcome, Run, loop_reference, usable
from ferrogate._checks import Check
from ferrogate._components import Condition, condition, of_check
from ferrogate._core import HealthCore
from ferrogate._health_types import ComponentHealth, HealthStatus, RawAlert


class Checks:
    """Checks by name, each name with one thread or task at the most.

    At most ``most`` names, those of removed checks that still run included.
    """

    def __init__(self, core: HealthCore, most: int) -> None:
        self._core = core
        self._most = most
        # Reentrant: a finaliser that runs while it is held may ask the monitor.
        self._lock = threading.RLock()
        self._by_name: dict[str, Check] = {}
        # What removed checks have left running.
        self._left: dict[str, Run] = {}
        self._loop: Callable[[], asyncio.AbstractEventLoop | None] = loop_reference(None)
        self._runs = self._failures = self._timeouts = 0

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, check: Check) -> None:
        """Adds ``check`` or replaces the one of its name, whose run it waits for."""
        name = check.name
        self._settle(name)
        with self._lock:
            over = [left for left, run in self._left.items() if run.future.done()]
            ended = [self._left.pop(left) for left in over]
            known = name in self._by_name or name in self._left
            if not known and len(self._by_name) + len(self._left) >= self._most:
                raise ValueError(
                    f"max_checks: {self._most} checks are registered already, "
                    f"{len(self._left)} removed ones that still run included"
                )
            replaced = self._by_name.get(name)
            check.before = self._left.pop(name, None)
            if replaced is not None:
                check.before = _withdraw(replaced)
            self._by_name[name] = check
        # Outcomes and functions may have finalisers: outside of the lock.
        del ended, replaced

    def remove(self, name: str) -> bool:
        """Removes a check and ends its alert; whether there was one."""
        self._settle(name)
        with self._lock:
            removed = self._by_name.pop(name, None)
            run = None if removed is None else _withdraw(removed)
            if run is not None:
                self._left[name] = run
            if removed is not None:
                self._core.resolve(f"check:{name}")
        return removed is not None

    def _settle(self, name: str) -> None:
        """Ends what stands in the way of ``name`` and will never come back."""
        with self._lock:
            check = self._by_name.get(name)
            left = list(self._left.values())
        if check is not None:
            check.settle()
        for run in left:
            run.settle()

    def all(self) -> list[Check]:
        """The checks in the order they were registered."""
        with self._lock:
            return list(self._by_name.values())

    def judge(
        self, by: Callable[[list[Condition]], None]
    ) -> tuple[dict[str, ComponentHealth], list[RawAlert]]:
        """Has the core judge by the last outcomes; the components, and the alerts active now.

        No check comes, goes or changes in between: an alert of a check that is
        gone would stay, since nobody speaks for it any more.
        """
        with self._lock:
            components = {name: of_check(check) for name, check in self._by_name.items()}
            by([condition(component) for component in components.values()])
            # The lock is reentrant: a finaliser in here may have removed some.
            for name in components.keys() - self._by_name.keys():
                self._core.resolve(f"check:{name}")
            return components, self._core.alerts()

    def run_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Has async checks run on ``loop`` from now on, as long as it runs."""
        self._loop = loop_reference(loop)

    async def run_all(self) -> None:
        """Runs all at once, async ones on the running loop, and waits for them."""
        loop = asyncio.get_running_loop()
        self.run_on(loop)
        runs = self._begin(self.all(), loop)
        outcomes = await asyncio.gather(*(check.wait_async(run) for check, run in runs))
        for (check, run), outcome in zip(runs, outcomes, strict=True):
            self._finish(check, run, outcome)

    def run_and_wait(self, checks: list[Check], stop: Stop | None) -> None:
        """Runs them at once and waits in this thread, until ``stop`` at the most."""
        for check, run in self._begin(checks, usable(self._loop())):
            outcome = check.wait(run, stop)
            if outcome is None:
                return
            self._finish(check, run, outcome)

    def _begin(
        self, checks: list[Check], loop: asyncio.AbstractEventLoop | None
    ) -> list[tuple[Check, Run]]:
        now = self._core.now()
        for check in checks:
            check.last_started = now
        return [(check, check.begin(self._lock, loop)) for check in checks]

    def _finish(self, check: Check, run: Run, outcome: Outcome) -> None:
        if outcome is NOT_RUN:
            return
        with self._lock:
            if not run.counted:
                run.counted = True
                self._runs += 1
                self._timeouts += outcome.timed_out
                self._failures += outcome.status is HealthStatus.UNHEALTHY
            check.last_finished = self._core.unix()
            check.outcome, previous = outcome, check.outcome
        del previous  # may hold user objects: outside of the lock

    def counts(self) -> tuple[int, int, int]:
        """Runs so far, unhealthy ones, and those that took too long; a hung one is one run."""
        with self._lock:
            return self._runs, self._failures, self._timeouts

    def after_fork(self) -> None:
        """Starts afresh in a forked child."""
        # A thread of the parent may have held it; those that ran checks are not here.
        self._lock = threading.RLock()
        self._loop = loop_reference(None)
        for check in self._by_name.values():
            check.run = check.before = None
        self._left = {}


def _withdraw(check: Check) -> Run | None:
    """Keeps ``check`` from starting; what runs under its name even so."""
    # In this order: a run that still waits its turn now sees this when the turn comes.
    check.withdrawn = True
    return check.under_way()
