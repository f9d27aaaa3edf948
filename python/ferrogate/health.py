"""Health of the system and of components, thresholds, and the alerts that follow."""

from __future__ import annotations

import os
import weakref
from dataclasses import astuple
from datetime import timedelta
from typing import TYPE_CHECKING

from ferrogate._arguments import (
    flag,
    globally_disabled,
    path,
    seconds,
    text_or_none,
    whole,
)
from ferrogate._background import Rounds, Stop
from ferrogate._check_runs import CheckFunction, CheckResult, inside_check, running_loop
from ferrogate._checks import Check
from ferrogate._components import (
    BUILT_IN,
    Condition,
    HasStats,
    group_statuses,
    own_components,
    totals,
    with_stats,
)
from ferrogate._core import HealthCore
from ferrogate._health_types import (
    SEVERITY_STATUS,
    Alert,
    AlertDict,
    AlertThreshold,
    ComponentHealth,
    HealthDetailed,
    HealthReport,
    HealthStats,
    HealthStatus,
    SystemMetrics,
    SystemSample,
    iso,
    worst,
)
from ferrogate._lifecycle import Startable
from ferrogate._registry import Checks

if TYPE_CHECKING:
    from ferrogate._core import ManualClock
    from ferrogate.metrics import PerformanceMetrics

__all__ = [
    "Alert",
    "AlertDict",
    "AlertThreshold",
    "CheckFunction",
    "CheckResult",
    "ComponentHealth",
    "HasStats",
    "HealthDetailed",
    "HealthMonitor",
    "HealthReport",
    "HealthStats",
    "HealthStatus",
    "SystemMetrics",
    "SystemSample",
]


_MAX_NAME = 500
"""Bytes of a check's name."""


class HealthMonitor(Startable):
    """Samples the system, runs checks, raises and resolves alerts.

    It works without any thread: :meth:`check` and :meth:`check_sync` run
    everything now, :meth:`evaluate` judges now without running the checks.
    :meth:`start` (or ``with`` / ``async with``) does so in the background
    every ``interval`` seconds until :meth:`stop`.

    ``metrics``, ``cache`` and ``limiter`` are asked for their ``get_stats()`` once
    at construction, as the base of the first window, and in every evaluation.

    Args:
        thresholds: levels beyond which an alert is raised.
        interval: seconds between two background rounds.
        timeout: seconds that a check may take unless it names its own.
        window: seconds over which errors, response time and hit rate are judged.
        flap_window: a condition that comes back within so many seconds reopens
            its alert instead of raising a new one.
        metrics: generations whose errors and response time are judged.
        cache: a cache whose hit rate is judged.
        limiter: a limiter that shall appear among the components.
        disk_path: a path on the file system that is watched.
        max_checks: checks that can be registered, and names that can have a thread.
        max_alerts: alerts active at once; more are counted as dropped.
        history_size: resolved alerts remembered.
        enabled: ``False`` (or ``FERROGATE_DISABLED=1``) runs no check and raises no alert.

    Raises:
        TypeError, ValueError: an argument that cannot be used, by name.
    """

    def __init__(
        self,
        thresholds: AlertThreshold | None = None,
        *,
        interval: float | timedelta = 15.0,
        timeout: float | timedelta = 5.0,
        window: float | timedelta = 300.0,
        flap_window: float | timedelta = 60.0,
        metrics: PerformanceMetrics | None = None,
        cache: HasStats | None = None,
        limiter: HasStats | None = None,
        disk_path: str | os.PathLike[str] = os.sep,
        max_checks: int = 256,
        max_alerts: int = 1024,
        history_size: int = 256,
        enabled: bool = True,
        name: str | None = None,
        clock: ManualClock | None = None,
        _root: str | os.PathLike[str] = os.sep,
    ) -> None:
        if thresholds is None:
            thresholds = AlertThreshold()
        elif not isinstance(thresholds, AlertThreshold):
            raise TypeError(
                f"thresholds: expected an AlertThreshold, got {type(thresholds).__name__}"
            )
        self.name = text_or_none("name", name)
        self.thresholds = thresholds
        self.enabled = flag("enabled", enabled) and not globally_disabled()
        self._interval = seconds("interval", interval)
        self._timeout = seconds("timeout", timeout)
        self._watched: dict[str, HasStats | None] = {
            "performance": with_stats("metrics", metrics),
            "cache": with_stats("cache", cache),
            "rate_limiter": with_stats("limiter", limiter),
        }
        self._core = HealthCore(
            astuple(thresholds),
            window,
            flap_window,
            (
                whole("max_alerts", max_alerts, least=1),
                whole("history_size", history_size, least=0),
            ),
            (path("disk_path", disk_path), path("_root", _root)),
            clock,
        )
        self._checks = Checks(self._core, whole("max_checks", max_checks, least=1))
        self._report: HealthReport | None = None
        self._rounds = Rounds(self._round, "ferrogate-health")
        self._evaluations = 0
        # What was counted before this moment is not of the last minutes.
        generations, lookups, _ = totals(self._watched)
        self._core.evaluate(generations=generations, lookups=lookups)
        _monitors.add(self)

    # -- checks ------------------------------------------------------------

    def register(
        self,
        name: str,
        check: CheckFunction,
        group: str | None = None,
        timeout: float | timedelta | None = None,
        interval: float | timedelta | None = None,
    ) -> None:
        """Adds a check, or replaces the one of that name.

        A check replaced or removed in the middle of a run keeps its thread until
        it comes back, and what is registered under its name waits for that.

        It may be a plain function (run in a thread of its own) or an async
        one (run on the loop that awaits :meth:`check` or called :meth:`start`,
        else on a loop of its own). It returns a bool, a status (``"healthy"``,
        ``"degraded"``, ``"unhealthy"``), a dict with ``status`` or
        ``healthy`` and any details, or nothing; whatever it raises makes it
        unhealthy. A check that takes longer than ``timeout`` seconds is
        unhealthy until it comes back, and is not started again before that.

        Args:
            name: the component's name in reports, at most 500 bytes in UTF-8; the
                alert is ``check:<name>``.
            check: the function, without arguments.
            group: components of one group are summed up in ``report.groups``.
            timeout: seconds it may take; the monitor's by default.
            interval: seconds between two background runs; the monitor's by default.

        Raises:
            TypeError, ValueError: an argument that cannot be used, a reserved
                name, or more checks than ``max_checks``, removed ones that
                still run included.
        """
        _check_name(name)
        if name in BUILT_IN:
            raise ValueError(f"name: {name!r} is one of the monitor's own components")
        if not callable(check):
            raise TypeError(f"check: expected a callable, got {type(check).__name__}")
        entry = Check(
            name,
            check,
            text_or_none("group", group),
            self._timeout if timeout is None else seconds("timeout", timeout),
            self._interval if interval is None else seconds("interval", interval),
        )
        self._checks.add(entry)

    def unregister(self, name: str) -> bool:
        """Removes a check and ends its alert; whether there was one."""
        return self._checks.remove(name)

    async def check(self) -> HealthReport:
        """Runs all checks at once and returns a fresh report.

        Takes at most as long as the longest timeout. Inside of a check it
        returns a report without running anything.
        """
        self._rounds.revive()
        if self.enabled and not inside_check.get():
            await self._checks.run_all()
        return self.evaluate()

    def check_sync(self) -> HealthReport:
        """:meth:`check` for code without an event loop; blocks."""
        self._rounds.revive()
        if self.enabled and not inside_check.get():
            self._checks.run_and_wait(self._checks.all(), None)
        return self.evaluate()

    # -- reports -----------------------------------------------------------

    def report(self) -> HealthReport:
        """The latest report; a first one without running the checks if there is none."""
        self._rounds.revive()
        report = self._report
        return report if report is not None else self.evaluate()

    def evaluate(self) -> HealthReport:
        """Judges the system and the totals now; of the checks, their last outcomes.

        Reads a few kernel files, never waits. System facts are at most a
        quarter of a second old.
        """
        self._rounds.revive()
        sample = self._core.sample()
        generations, lookups, broken = totals(self._watched)

        def judge(conditions: list[Condition]) -> None:
            if self.enabled:
                self._core.evaluate(
                    generations=generations,
                    lookups=lookups,
                    memory_percent=sample["memory_percent"],
                    disk_percent=sample["disk_percent"],
                    conditions=conditions,
                )

        components, active = self._checks.judge(judge)
        alerts = tuple(Alert(**raw) for raw in active)
        own = own_components(self._watched, sample, alerts, broken)
        everything: dict[str, ComponentHealth] = {**own, **components}
        statuses = [c.status for c in everything.values() if not c.healthy]
        statuses += [SEVERITY_STATUS[alert.severity] for alert in alerts]
        report = HealthReport(
            status=worst(*statuses),
            components=everything,
            groups=group_statuses(everything),
            alerts=alerts,
            system=sample,
            checked_at=self._core.unix(),
        )
        self._evaluations += 1
        self._report = report
        return report

    def sample(self) -> SystemSample:
        """The state of the system, at most a quarter of a second old."""
        return self._core.sample()

    def alerts(self) -> list[Alert]:
        """The alerts active now, the worst first."""
        return list(self.evaluate().alerts)

    def alert_history(self) -> list[Alert]:
        """All remembered incidents in the order they began, active ones included."""
        self.evaluate()
        return [Alert(**raw) for raw in self._core.alert_history()]

    def get_stats(self) -> HealthStats:
        """Counts of checks and alerts."""
        raised, resolved, dropped = self._core.alert_counts()
        runs, failures, timeouts = self._checks.counts()
        report = self._report
        return {
            "name": self.name,
            "enabled": self.enabled,
            "running": self.running,
            "interval_seconds": self._interval,
            "checks": len(self._checks),
            "runs": runs,
            "failures": failures,
            "timeouts": timeouts,
            "evaluations": self._evaluations,
            "alerts_active": raised - resolved,
            "alerts_raised": raised,
            "alerts_resolved": resolved,
            "alerts_dropped": dropped,
            "last_check": None if report is None else iso(report.checked_at),
        }

    def __repr__(self) -> str:
        report = self._report
        status = "unknown" if report is None else str(report.status)
        alerts = 0 if report is None else len(report.alerts)
        name = "" if self.name is None else f" {self.name!r}"
        state = "running" if self.running else "not started"
        return f"<HealthMonitor{name} {status} checks={len(self._checks)} alerts={alerts} {state}>"

    # -- background --------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the background thread runs."""
        return self._rounds.running

    def start(self) -> None:
        """Starts the background rounds; nothing if they run, or when disabled.

        Called inside of a running loop, async checks run on that loop.
        """
        if not self.enabled:
            return
        loop = running_loop()
        if loop is not None:
            self._checks.run_on(loop)
        self._rounds.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Ends the background rounds and waits up to ``timeout`` seconds for it.

        A check that hangs is left alone; it has no thread but its own.
        """
        self._rounds.stop(timeout)

    def _round(self, stop: Stop) -> float:
        """One background round; returns the seconds to the next."""
        now = self._core.now()
        self._checks.run_and_wait([c for c in self._checks.all() if c.due_in(now) <= 0], stop)
        if not stop.done():
            self.evaluate()
        now = self._core.now()
        return min([self._interval, *(check.due_in(now) for check in self._checks.all())])


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise TypeError("name: expected a non-empty str")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"name: expected text that has a UTF-8 form, got {name!r}") from None
    # The native book cuts what is longer, and two names cut alike would share an alert.
    if size > _MAX_NAME:
        raise ValueError(f"name: expected at most {_MAX_NAME} bytes in UTF-8, got {size}")


_monitors: weakref.WeakSet[HealthMonitor] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for monitor in list(_monitors):
        monitor._checks.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
