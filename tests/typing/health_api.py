"""Type-checked, never run: what a user's checker sees of the health monitor."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import assert_type

from ferrogate import AlertThreshold, Cache, HealthMonitor, PerformanceMetrics, RateLimiter
from ferrogate.health import Alert, ComponentHealth, HealthReport, HealthStatus
from ferrogate.testing import ManualClock

cache: Cache[str, int] = Cache(5)
monitor = HealthMonitor(
    AlertThreshold(error_rate_percent=5.0),
    interval=timedelta(seconds=1),
    metrics=PerformanceMetrics(),
    cache=cache,
    limiter=RateLimiter("60/minute"),
    disk_path=Path("/"),
    clock=ManualClock(),
)
HealthMonitor(5.0)  # type: ignore[arg-type]
HealthMonitor(None, 5.0)  # type: ignore[call-arg]
HealthMonitor(cache={})  # type: ignore[arg-type]


def works() -> bool:
    return True


async def answers() -> None: ...


monitor.register("database", works, group="stores", timeout=1.0, interval=timedelta(minutes=1))
monitor.register("provider", answers)
monitor.register(name="queue", check=lambda: None)
monitor.register("wrong", 5)  # type: ignore[arg-type]
assert_type(monitor.unregister("database"), bool)

assert_type(monitor.check_sync(), HealthReport)
assert_type(monitor.report(), HealthReport)
assert_type(monitor.alerts(), list[Alert])
assert_type(monitor.alert_history(), list[Alert])
assert_type(monitor.running, bool)
assert_type(monitor.report().status, HealthStatus)
assert_type(monitor.report().components["database"], ComponentHealth)
assert_type(monitor.report().components["database"].healthy, bool)
assert_type(monitor.sample()["memory_percent"], float | None)
assert_type(monitor.get_stats()["alerts_raised"], int)
monitor.report().status = HealthStatus.HEALTHY  # type: ignore[misc]


async def use() -> None:
    assert_type(await monitor.check(), HealthReport)
