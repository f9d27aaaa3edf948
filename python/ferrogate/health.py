"""Health of the system and of components, thresholds, and the alerts that follow."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import astuple
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from ferrogate._arguments import globally_disabled, seconds, whole
from ferrogate._background import Rounds, Stop
from ferrogate._checks import (
    Check,
    CheckFunction,
    CheckResult,
    Outcome,
    Run,
    inside_check,
    loop_reference,
    running_loop,
    usable,
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
    "HealthDetailed",
    "HealthMonitor",
    "HealthReport",
    "HealthStats",
    "HealthStatus",
    "SystemMetrics",
    "SystemSample",
]


class HasStats(Protocol):
    """Anything with statistics: a cache, a limiter."""

    def get_stats(self) -> Any: ...


class HealthMonitor:
    """Samples the system, runs checks, raises and resolves alerts.

    It works without any thread: :meth:`check` and :meth:`check_sync` run
    everything now, :meth:`evaluate` judges now without running the checks.
    :meth:`start` (or ``with`` / ``async with``) does so in the background
    every ``interval`` seconds until :meth:`stop`.

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
        max_checks: checks that can be registered.
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
        self.name = name
        self.thresholds = thresholds
        self.enabled = bool(enabled) and not globally_disabled()
        self._interval = seconds("interval", interval)
        self._timeout = seconds("timeout", timeout)
        self._max_checks = whole("max_checks", max_checks, least=1)
        self._metrics = metrics
        self._cache = cache
        self._limiter = limiter
        self._core = HealthCore(
            astuple(thresholds),
            window,
            flap_window,
            (
                whole("max_alerts", max_alerts, least=1),
                whole("history_size", history_size, least=0),
            ),
            (os.fspath(disk_path), os.fspath(_root)),
            clock,
        )
        # Reentrant: a finaliser that runs while it is held may ask the monitor.
        self._lock = threading.RLock()
        self._checks: dict[str, Check] = {}
        self._report: HealthReport | None = None
        self._rounds = Rounds(self._round, "ferrogate-health")
        self._loop: Callable[[], asyncio.AbstractEventLoop | None] = loop_reference(None)
        self._runs = self._failures = self._timeouts = self._evaluations = 0
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

        It may be a plain function (run in a thread of its own) or an async
        one (run on the loop that awaits :meth:`check` or called :meth:`start`,
        else on a loop of its own). It returns a bool, a status (``"healthy"``,
        ``"degraded"``, ``"unhealthy"``), a dict with ``status`` or
        ``healthy`` and any details, or nothing; whatever it raises makes it
        unhealthy. A check that takes longer than ``timeout`` seconds is
        unhealthy until it comes back, and is not started again before that.

        Args:
            name: the component's name in reports; the alert is ``check:<name>``.
            check: the function, without arguments.
            group: components of one group are summed up in ``report.groups``.
            timeout: seconds it may take; the monitor's by default.
            interval: seconds between two background runs; the monitor's by default.

        Raises:
            TypeError, ValueError: an argument that cannot be used, a reserved
                name, or more checks than ``max_checks``.
        """
        if not isinstance(name, str) or not name:
            raise TypeError("name: expected a non-empty str")
        if name in _BUILT_IN:
            raise ValueError(f"name: {name!r} is one of the monitor's own components")
        if not callable(check):
            raise TypeError(f"check: expected a callable, got {type(check).__name__}")
        entry = Check(
            name,
            check,
            group,
            self._timeout if timeout is None else seconds("timeout", timeout),
            self._interval if interval is None else seconds("interval", interval),
        )
        with self._lock:
            if name not in self._checks and len(self._checks) >= self._max_checks:
                raise ValueError(f"max_checks: {self._max_checks} checks are registered already")
            replaced = self._checks.get(name)
            self._checks[name] = entry
        del replaced  # its function may have a finaliser: outside of the lock

    def unregister(self, name: str) -> bool:
        """Removes a check and ends its alert; whether there was one."""
        with self._lock:
            removed = self._checks.pop(name, None)
        if removed is None:
            return False
        self._core.resolve(f"check:{name}")
        return True

    async def check(self) -> HealthReport:
        """Runs all checks at once and returns a fresh report.

        Takes at most as long as the longest timeout. Inside of a check it
        returns a report without running anything.
        """
        self._rounds.revive()
        if self.enabled and not inside_check.get():
            loop = asyncio.get_running_loop()
            self._loop = loop_reference(loop)
            runs = self._begin(self._registered(), loop)
            outcomes = await asyncio.gather(*(check.wait_async(run) for check, run in runs))
            for (check, _), outcome in zip(runs, outcomes, strict=True):
                self._finish(check, outcome)
        return self.evaluate()

    def check_sync(self) -> HealthReport:
        """:meth:`check` for code without an event loop; blocks."""
        self._rounds.revive()
        if self.enabled and not inside_check.get():
            self._run_and_wait(self._registered(), None)
        return self.evaluate()

    def _registered(self) -> list[Check]:
        with self._lock:
            return list(self._checks.values())

    def _begin(
        self, checks: list[Check], loop: asyncio.AbstractEventLoop | None
    ) -> list[tuple[Check, Run]]:
        now = self._core.now()
        for check in checks:
            check.last_started = now
        return [(check, check.begin(self._lock, loop)) for check in checks]

    def _run_and_wait(self, checks: list[Check], stop: Stop | None) -> None:
        for check, run in self._begin(checks, usable(self._loop())):
            outcome = check.wait(run, stop)
            if outcome is None:
                return
            self._finish(check, outcome)

    def _finish(self, check: Check, outcome: Outcome) -> None:
        with self._lock:
            self._runs += 1
            self._timeouts += outcome.timed_out
            self._failures += outcome.status is HealthStatus.UNHEALTHY
            check.last_finished = self._core.unix()
            check.outcome, previous = outcome, check.outcome
        del previous  # may hold user objects: outside of the lock

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
        components = {c.name: c for c in map(self._component, self._registered())}
        generations, lookups, broken = self._totals()
        if self.enabled:
            self._core.evaluate(
                generations=generations,
                lookups=lookups,
                memory_percent=sample["memory_percent"],
                disk_percent=sample["disk_percent"],
                conditions=[_condition(c) for c in components.values()],
            )
        alerts = tuple(Alert(**raw) for raw in self._core.alerts())
        own = self._own_components(sample, alerts, broken)
        everything: dict[str, ComponentHealth] = {**own, **components}
        statuses = [c.status for c in everything.values() if not c.healthy]
        statuses += [SEVERITY_STATUS[alert.severity] for alert in alerts]
        groups: dict[str, HealthStatus] = {}
        for component in everything.values():
            if component.group is not None:
                known = groups.get(component.group, HealthStatus.HEALTHY)
                groups[component.group] = worst(known, component.status)
        report = HealthReport(
            status=worst(*statuses),
            components=everything,
            groups=groups,
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

    def _component(self, check: Check) -> ComponentHealth:
        outcome = check.outcome
        if outcome is None:
            return ComponentHealth(
                check.name, HealthStatus.UNKNOWN, "not checked yet", group=check.group
            )
        return ComponentHealth(
            check.name,
            outcome.status,
            outcome.message,
            check.group,
            outcome.details,
            check.last_finished,
            outcome.duration,
        )

    def _totals(
        self,
    ) -> tuple[tuple[int, int, float] | None, tuple[int, int] | None, dict[str, str]]:
        """Running totals of generations and lookups, and who failed to give them."""
        generations: tuple[int, int, float] | None = None
        lookups: tuple[int, int] | None = None
        broken: dict[str, str] = {}
        watched: dict[str, HasStats | None] = {
            "performance": self._metrics,
            "cache": self._cache,
            "rate_limiter": self._limiter,
        }
        for name, component in watched.items():
            if component is None:
                continue
            try:
                stats: Mapping[str, Any] = component.get_stats()
                if name == "cache":
                    lookups = (stats["hits"], stats["misses"])
                elif name == "performance":
                    failed, spent = stats["failed"], stats["total_time_seconds"]
                    generations = (stats["total_generations"], failed, spent)
            except Exception as error:
                broken[name] = f"{type(error).__name__}: {error}"
        return generations, lookups, broken

    def _own_components(
        self, sample: SystemSample, alerts: tuple[Alert, ...], broken: Mapping[str, str]
    ) -> dict[str, ComponentHealth]:
        """The monitor's own components, each as bad as its alerts."""
        present = {
            "system_resources": True,
            "cache": self._cache is not None,
            "rate_limiter": self._limiter is not None,
            "performance": self._metrics is not None,
        }
        own: dict[str, ComponentHealth] = {}
        for name, conditions in _BUILT_IN.items():
            if not present[name]:
                continue
            mine = [alert for alert in alerts if alert.name in conditions]
            status = worst(*(SEVERITY_STATUS[alert.severity] for alert in mine))
            message = "; ".join(alert.message for alert in mine)
            if name in broken:
                status, message = HealthStatus.UNHEALTHY, broken[name]
            elif name == "system_resources" and sample["memory"] is None and sample["disk"] is None:
                status, message = HealthStatus.UNKNOWN, "nothing can be read on this platform"
            own[name] = ComponentHealth(name, status, message, checked_at=sample["timestamp"])
        return own

    def get_stats(self) -> HealthStats:
        """Counts of checks and alerts."""
        raised, resolved, dropped = self._core.alert_counts()
        report = self._report
        with self._lock:
            return {
                "name": self.name,
                "enabled": self.enabled,
                "running": self.running,
                "interval_seconds": self._interval,
                "checks": len(self._checks),
                "runs": self._runs,
                "failures": self._failures,
                "timeouts": self._timeouts,
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
            self._loop = loop_reference(loop)
        self._rounds.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Ends the background rounds and waits up to ``timeout`` seconds for it.

        A check that hangs is left alone; it has no thread but its own.
        """
        self._rounds.stop(timeout)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Not in the loop: the thread may be waiting for a check that runs on it.
        await asyncio.to_thread(self.stop)

    def _round(self, stop: Stop) -> float:
        """One background round; returns the seconds to the next."""
        now = self._core.now()
        checks = self._registered()
        due = [c for c in checks if c.last_started is None or now - c.last_started >= c.interval]
        self._run_and_wait(due, stop)
        if not stop.done():
            self.evaluate()
        return min([self._interval, *(check.interval for check in checks)])

    def _after_fork(self) -> None:
        # A thread of the parent may have held it; those that ran checks are not here.
        self._lock = threading.RLock()
        self._loop = loop_reference(None)
        for check in self._checks.values():
            check.run = None


_BUILT_IN: Mapping[str, frozenset[str]] = {
    "system_resources": frozenset({"memory_usage", "disk_usage"}),
    "cache": frozenset({"cache_hit_rate"}),
    "rate_limiter": frozenset(),
    "performance": frozenset({"error_rate", "response_time"}),
}

_monitors: weakref.WeakSet[HealthMonitor] = weakref.WeakSet()


def _condition(component: ComponentHealth) -> tuple[str, str | None, str]:
    """A component as the native book judges it: name, severity if any, sentence."""
    severity = {
        HealthStatus.UNHEALTHY: "critical",
        HealthStatus.DEGRADED: "warning",
    }.get(component.status)
    message = f"{component.name} is {component.status}"
    if component.message:
        message += f": {component.message}"
    return (f"check:{component.name}", severity, message)


def _after_fork_in_child() -> None:
    for monitor in list(_monitors):
        monitor._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
