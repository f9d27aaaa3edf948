"""What a report says of each component: the checks, and those the monitor watches itself."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Protocol

from ferrogate._checks import Check
from ferrogate._health_types import (
    SEVERITY_STATUS,
    Alert,
    ComponentHealth,
    HealthStatus,
    SystemSample,
    worst,
)

BUILT_IN: Mapping[str, frozenset[str]] = {
    "system_resources": frozenset({"memory_usage", "disk_usage"}),
    "cache": frozenset({"cache_hit_rate"}),
    "rate_limiter": frozenset(),
    "performance": frozenset({"error_rate", "response_time"}),
}
"""The monitor's own components and the conditions that speak for them."""


class HasStats(Protocol):
    """Anything with statistics: a cache, a limiter."""

    def get_stats(self) -> Any: ...


def with_stats(argument: str, value: HasStats | None) -> HasStats | None:
    """Something with statistics, or None where none was given."""
    if value is not None and not callable(getattr(value, "get_stats", None)):
        raise TypeError(
            f"{argument}: expected an object with get_stats() or None, got {type(value).__name__}"
        )
    return value


Totals = tuple[tuple[int, int, float] | None, tuple[int, int] | None, dict[str, str]]
"""Generations (all, failed, seconds), lookups (hits, misses), and who failed to tell."""


Condition = tuple[str, str | None, str]
"""As the native book judges it: name, severity if any, sentence."""


def totals(watched: Mapping[str, HasStats | None]) -> Totals:
    """Running totals of generations and lookups, and who failed to give them."""
    generations: tuple[int, int, float] | None = None
    lookups: tuple[int, int] | None = None
    broken: dict[str, str] = {}
    for name, component in watched.items():
        if component is None:
            continue
        try:
            stats: Mapping[str, Any] = component.get_stats()
            if name == "cache" and stats.get("enabled", True):
                # One that is switched off cannot hit: that is not an alarm.
                lookups = (_count(stats, "hits"), _count(stats, "misses"))
            elif name == "performance":
                failed, spent = _count(stats, "failed"), float(stats["total_time_seconds"])
                generations = (_count(stats, "total_generations"), failed, spent)
        except Exception as error:
            broken[name] = f"{type(error).__name__}: {error}"
    return generations, lookups, broken


def _count(stats: Mapping[str, Any], name: str) -> int:
    value = operator.index(stats[name])
    if not 0 <= value < 2**64:
        raise ValueError(f"{name}: expected a count between 0 and 2**64 - 1, got {value}")
    return value


def of_check(check: Check) -> ComponentHealth:
    """A check by its last outcome."""
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


def own_components(
    watched: Mapping[str, HasStats | None],
    sample: SystemSample,
    alerts: tuple[Alert, ...],
    broken: Mapping[str, str],
) -> dict[str, ComponentHealth]:
    """The monitor's own components, each as bad as its alerts."""
    own: dict[str, ComponentHealth] = {}
    for name, conditions in BUILT_IN.items():
        if name != "system_resources" and watched[name] is None:
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


def condition(component: ComponentHealth) -> Condition:
    """A component as the native book judges it."""
    severity = {
        HealthStatus.UNHEALTHY: "critical",
        HealthStatus.DEGRADED: "warning",
    }.get(component.status)
    message = f"{component.name} is {component.status}"
    if component.message:
        message += f": {component.message}"
    return (f"check:{component.name}", severity, message)


def group_statuses(components: Mapping[str, ComponentHealth]) -> dict[str, HealthStatus]:
    """Of each group the status of its worst component."""
    groups: dict[str, HealthStatus] = {}
    for component in components.values():
        if component.group is not None:
            known = groups.get(component.group, HealthStatus.HEALTHY)
            groups[component.group] = worst(known, component.status)
    return groups
