"""The shapes of health: what a sample, an alert and a report hold."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypedDict


def iso(seconds: float) -> str:
    """Seconds since the Unix epoch as ``2026-01-23T10:30:00.123Z``."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


class HealthStatus(enum.StrEnum):
    """How a component or the whole is."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


_BADNESS = {
    HealthStatus.HEALTHY: 0,
    HealthStatus.UNKNOWN: 1,
    HealthStatus.DEGRADED: 2,
    HealthStatus.UNHEALTHY: 3,
}


def worst(*statuses: HealthStatus) -> HealthStatus:
    """The worst of them; healthy without any."""
    return max(statuses, key=_BADNESS.__getitem__, default=HealthStatus.HEALTHY)


Severity = Literal["info", "warning", "critical"]

SEVERITY_STATUS: Mapping[str, HealthStatus] = {
    "info": HealthStatus.HEALTHY,
    "warning": HealthStatus.DEGRADED,
    "critical": HealthStatus.UNHEALTHY,
}


@dataclass(frozen=True)
class AlertThreshold:
    """Levels beyond which an alert is raised.

    All comparisons are strict: exactly 10 % of errors do not alert at 10.
    Errors, response time and hit rate are judged over the monitor's window
    (the last minutes), not over the life of the process; a hit rate only from
    100 lookups in it, since a cache that has just started always misses.

    An alert is a ``warning``; it becomes ``critical`` beyond 2.5 times the
    error rate, twice the response time, and for memory and disk three quarters
    of the way from the threshold to 100 % (80 → 95).

    Raises:
        TypeError: a level is not a number.
        ValueError: a percentage outside 0..100, or a time not above 0.
    """

    error_rate_percent: float = 10.0
    avg_response_time_seconds: float = 30.0
    cache_hit_rate_percent: float = 50.0
    memory_usage_percent: float = 80.0
    disk_usage_percent: float = 90.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
            if name.endswith("_percent"):
                if not 0 <= value <= 100:
                    raise ValueError(
                        f"{name}: expected a percentage between 0 and 100, got {value!r}"
                    )
            elif not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"{name}: expected a finite number of seconds above 0, got {value!r}"
                )


class AlertDict(TypedDict):
    """An :class:`Alert` for JSON; times in ISO 8601, UTC."""

    name: str
    severity: Severity
    message: str
    value: float
    threshold: float
    raised_at: str
    resolved_at: str | None
    times_raised: int


@dataclass(frozen=True, slots=True)
class Alert:
    """One incident, from the first time its condition held to its end.

    A condition that comes back within the flap window reopens the same
    incident: ``times_raised`` counts how often.
    """

    name: str
    severity: Severity
    message: str
    value: float
    threshold: float
    raised_at: float
    """Seconds since the Unix epoch."""
    resolved_at: float | None
    """Seconds since the Unix epoch; ``None`` while it is active."""
    times_raised: int

    @property
    def active(self) -> bool:
        """Whether its condition still holds."""
        return self.resolved_at is None

    def to_dict(self) -> AlertDict:
        """For JSON."""
        return {
            "name": self.name,
            "severity": self.severity,
            "message": self.message,
            "value": self.value,
            "threshold": self.threshold,
            "raised_at": iso(self.raised_at),
            "resolved_at": None if self.resolved_at is None else iso(self.resolved_at),
            "times_raised": self.times_raised,
        }


class RawAlert(TypedDict):
    """An alert as the native book hands it out."""

    name: str
    severity: Severity
    message: str
    value: float
    threshold: float
    raised_at: float
    resolved_at: float | None
    times_raised: int


class Stall(TypedDict):
    """Share of time stalled in percent over 10, 60 and 300 s, and in all, in seconds."""

    avg10: float
    avg60: float
    avg300: float
    total_seconds: float


class Pressure(TypedDict):
    """``some``: at least one task waited; ``full``: all did at once."""

    some: Stall | None
    full: Stall | None


class PressureSet(TypedDict):
    """Linux pressure stall information; ``None`` where the kernel tells nothing."""

    cpu: Pressure | None
    memory: Pressure | None
    io: Pressure | None


class MemoryFacts(TypedDict):
    """Memory against the tighter of the container's and the machine's limit."""

    source: Literal["container", "host"]
    limit_bytes: int
    percent: float | None


class CpuFacts(TypedDict):
    """CPU against the tighter of the container's quota and the machine."""

    source: Literal["container", "host"]
    cores: float
    percent: float | None


class DiskFacts(TypedDict):
    """The file system that holds ``path``; percent as ``df`` counts it."""

    path: str
    total_bytes: int
    used_bytes: int
    available_bytes: int
    percent: float | None


class NetworkFacts(TypedDict):
    """All interfaces but loopback; rates since the sample before."""

    received_bytes: int
    sent_bytes: int
    received_bytes_per_second: float | None
    sent_bytes_per_second: float | None


class HostFacts(TypedDict):
    """The machine."""

    memory_total_bytes: int | None
    memory_available_bytes: int | None
    memory_percent: float | None
    swap_total_bytes: int | None
    swap_used_bytes: int | None
    cpu_percent: float | None
    cores: int | None
    load_1m: float | None
    pressure: PressureSet


class ContainerFacts(TypedDict):
    """The control group; a limit may stand on any ancestor, the tightest counts."""

    cgroup_version: int
    memory_limit_bytes: int | None
    memory_current_bytes: int | None
    memory_used_bytes: int | None
    memory_percent: float | None
    memory_limit_hits: int | None
    oom_events: int | None
    oom_kills: int | None
    new_oom_kills: int | None
    cpu_quota_cores: float | None
    cpu_percent: float | None
    cpu_seconds: float | None
    periods: int | None
    throttled_periods: int | None
    throttled_seconds: float | None
    throttled_percent: float | None
    pressure: PressureSet


class ProcessFacts(TypedDict):
    """This process; 100 % of CPU is one whole core."""

    pid: int
    memory_bytes: int
    cpu_percent: float | None
    cpu_seconds: float


class SystemSample(TypedDict):
    """Everything known about the system at one moment.

    ``None`` is a source that cannot be read here, or a rate for which there is
    no sample before; ``interval_seconds`` is the time the rates are taken over.
    """

    timestamp: float
    interval_seconds: float | None
    memory_percent: float | None
    cpu_percent: float | None
    disk_percent: float | None
    memory: MemoryFacts | None
    cpu: CpuFacts | None
    disk: DiskFacts | None
    network: NetworkFacts | None
    host: HostFacts
    container: ContainerFacts | None
    process: ProcessFacts | None


class SystemMetrics(TypedDict):
    """The three figures of a dashboard, in percent; ``None`` is not known (yet)."""

    memory_percent: float | None
    disk_percent: float | None
    cpu_percent: float | None


class HealthDetailed(TypedDict):
    """The answer of ``GET /health/detailed``."""

    status: str
    healthy: bool
    components: dict[str, bool]
    alerts: list[AlertDict]
    metrics: SystemMetrics
    last_check: str


class HealthStats(TypedDict):
    """What :meth:`HealthMonitor.get_stats` returns."""

    name: str | None
    enabled: bool
    running: bool
    interval_seconds: float
    checks: int
    runs: int
    """Of checks, whoever shared them; one that hangs is one run."""
    failures: int
    timeouts: int
    evaluations: int
    alerts_active: int
    alerts_raised: int
    alerts_resolved: int
    alerts_dropped: int
    """Incidents not raised, since ``max_alerts`` were active when they began."""
    last_check: str | None


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    """The state of one component at its last check."""

    name: str
    status: HealthStatus
    message: str = ""
    group: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    checked_at: float | None = None
    """Seconds since the Unix epoch; ``None`` when it was never checked."""
    duration_seconds: float | None = None

    @property
    def healthy(self) -> bool:
        """Not known to be degraded or unhealthy."""
        return self.status in {HealthStatus.HEALTHY, HealthStatus.UNKNOWN}


@dataclass(frozen=True, slots=True, repr=False)
class HealthReport:
    """The health of everything at one moment."""

    status: HealthStatus
    components: Mapping[str, ComponentHealth]
    groups: Mapping[str, HealthStatus]
    alerts: tuple[Alert, ...]
    system: SystemSample
    checked_at: float
    """Seconds since the Unix epoch."""

    @property
    def healthy(self) -> bool:
        """Nothing is degraded or unhealthy and no alert above ``info`` is active."""
        return self.status is HealthStatus.HEALTHY

    @property
    def metrics(self) -> SystemMetrics:
        """Memory, disk and CPU in percent."""
        return {
            "memory_percent": self.system["memory_percent"],
            "disk_percent": self.system["disk_percent"],
            "cpu_percent": self.system["cpu_percent"],
        }

    def __repr__(self) -> str:
        # What one looks for first; the fields have all of it.
        sick = [f"{one.name} {one.status}" for one in self.components.values() if not one.healthy]
        shown = [
            f"{what} {'?' if percent is None else format(percent, '.0f') + ' %'}"
            for what, percent in (
                ("memory", self.system["memory_percent"]),
                ("disk", self.system["disk_percent"]),
                ("cpu", self.system["cpu_percent"]),
            )
        ]
        told = [f"{alert.severity}: {alert.message}" for alert in self.alerts]
        parts = [f"{len(self.components)} components", *sick, *shown, *told]
        return f"<HealthReport {self.status}: {', '.join(parts)}>"

    def to_dict(self) -> HealthDetailed:
        """For JSON, in the shape of ``GET /health/detailed``."""
        return {
            "status": str(self.status),
            "healthy": self.healthy,
            "components": {name: c.healthy for name, c in self.components.items()},
            "alerts": [alert.to_dict() for alert in self.alerts],
            "metrics": self.metrics,
            "last_check": iso(self.checked_at),
        }
