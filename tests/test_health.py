"""HealthMonitor: samples, reports, alerts raised once and resolved."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pytest
from shapes import mismatch

from ferrogate import AlertThreshold, HealthMonitor, PerformanceMetrics
from ferrogate.health import Alert, HealthDetailed, HealthStats, HealthStatus, SystemSample
from ferrogate.testing import ManualClock


class Numbers:
    """A cache or limiter as the monitor sees it."""

    def __init__(self, hits: int = 0, misses: int = 0) -> None:
        self.hits, self.misses = hits, misses

    def get_stats(self) -> dict[str, int]:
        return {"hits": self.hits, "misses": self.misses}


@pytest.fixture
def container(tmp_path: Path) -> Path:
    """A v2 container with 1,000 bytes of memory of which 900 are used."""
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    (group / "memory.max").write_text("1000\n")
    (group / "memory.current").write_text("900\n")
    (group / "memory.stat").write_text("inactive_file 0\n")
    (group / "memory.events").write_text("max 1\noom 0\noom_kill 0\n")
    (group / "cpu.max").write_text("100000 100000\n")
    (group / "cpu.stat").write_text("usage_usec 0\nnr_periods 0\nnr_throttled 0\n")
    (group / "memory.pressure").write_text("some avg10=1.5 avg60=0 avg300=0 total=2000000\n")
    return tmp_path


# -- thresholds and the system ----------------------------------------------


def test_thresholds_default_to_those_of_s1() -> None:
    t = AlertThreshold()
    assert (t.error_rate_percent, t.avg_response_time_seconds, t.cache_hit_rate_percent) == (
        10.0,
        30.0,
        50.0,
    )
    assert (t.memory_usage_percent, t.disk_usage_percent) == (80.0, 90.0)
    assert AlertThreshold(5, 10) == AlertThreshold(5.0, 10.0, 50.0, 80.0, 90.0)


@pytest.mark.parametrize("bad", [-1, 100.1, float("nan"), float("inf")])
def test_thresholds_out_of_range(bad: float) -> None:
    with pytest.raises(ValueError, match="memory_usage_percent"):
        AlertThreshold(memory_usage_percent=bad)


def test_thresholds_of_the_wrong_type() -> None:
    with pytest.raises(TypeError, match="error_rate_percent"):
        AlertThreshold(error_rate_percent="10")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="thresholds"):
        HealthMonitor({"error_rate_percent": 10})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "bad", "error"),
    [
        ("interval", 0, ValueError),
        ("interval", "1", TypeError),
        ("timeout", -1, ValueError),
        ("window", float("nan"), ValueError),
        ("max_checks", 0, ValueError),
        ("history_size", -1, ValueError),
        ("clock", object(), TypeError),
        ("enabled", "no", TypeError),
        ("name", 3, TypeError),
        ("metrics", 42, TypeError),
        ("cache", object(), TypeError),
        ("limiter", "10/minute", TypeError),
        ("disk_path", 5, TypeError),
        ("disk_path", b"/", TypeError),
    ],
)
def test_bad_arguments_are_named(argument: str, bad: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{argument}: expected"):
        HealthMonitor(**{argument: bad})  # type: ignore[arg-type]


def test_a_sample_of_this_machine_has_the_promised_shape() -> None:
    monitor = HealthMonitor()
    sample = monitor.sample()
    assert mismatch(sample, SystemSample) is None
    assert sample["process"] is not None
    assert sample["process"]["pid"] == os.getpid()
    json.dumps(sample)


def test_the_container_counts_where_it_is_tighter(container: Path) -> None:
    clock = ManualClock()
    monitor = HealthMonitor(clock=clock, disk_path="/no/such/path", _root=container)
    first = monitor.sample()
    assert mismatch(first, SystemSample) is None
    assert first["memory"] == {"source": "container", "limit_bytes": 1000, "percent": 90.0}
    assert first["disk"] is None
    assert first["disk_percent"] is None
    assert first["cpu_percent"] is None  # one reading is not a rate
    facts = first["container"]
    assert facts is not None
    assert facts["pressure"]["memory"]["some"]["total_seconds"] == 2.0  # type: ignore[index]
    clock.advance(10)
    stat = "usage_usec 5000000\nnr_periods 100\nnr_throttled 25\n"
    (container / "sys/fs/cgroup/cpu.stat").write_text(stat)
    second = monitor.sample()
    assert second["interval_seconds"] == 10.0
    assert second["cpu_percent"] == pytest.approx(50.0)
    assert second["container"]["throttled_percent"] == 25.0  # type: ignore[index]
    (container / "proc/self/cgroup").unlink()
    clock.advance(10)
    assert monitor.sample()["container"] is None


# -- alerts --------------------------------------------------------------------


def test_memory_is_raised_once_and_resolved(container: Path) -> None:
    clock = ManualClock()
    monitor = HealthMonitor(clock=clock, _root=container, disk_path="/no/such/path")
    for _ in range(5):
        clock.advance(1)
        report = monitor.evaluate()
    assert [(a.name, a.severity, a.value) for a in report.alerts] == [
        ("memory_usage", "warning", 90.0)
    ]
    assert report.status is HealthStatus.DEGRADED
    assert report.components["system_resources"].status is HealthStatus.DEGRADED
    (container / "sys/fs/cgroup/memory.current").write_text("990\n")
    clock.advance(1)
    assert monitor.evaluate().status is HealthStatus.UNHEALTHY
    (container / "sys/fs/cgroup/memory.current").write_text("100\n")
    clock.advance(1)
    assert monitor.alerts() == []
    assert monitor.report().healthy
    [alert] = monitor.alert_history()
    assert (alert.name, alert.active, alert.times_raised) == ("memory_usage", False, 1)
    assert alert.resolved_at is not None
    assert alert.resolved_at - alert.raised_at == pytest.approx(6.0)
    assert monitor.get_stats()["alerts_raised"] == 1


def test_an_unreadable_source_leaves_an_alert_as_it_is(container: Path) -> None:
    clock = ManualClock()
    monitor = HealthMonitor(clock=clock, _root=container, disk_path="/no/such/path")
    assert len(monitor.alerts()) == 1
    (container / "sys/fs/cgroup/memory.current").unlink()
    clock.advance(1)
    assert len(monitor.alerts()) == 1


def test_errors_and_response_time_over_the_window() -> None:
    clock = ManualClock()
    metrics = PerformanceMetrics(clock=clock)
    monitor = HealthMonitor(
        AlertThreshold(memory_usage_percent=100, disk_usage_percent=100),
        metrics=metrics,
        clock=clock,
    )
    for i in range(100):
        metrics.record_generation(i >= 10, 1.0)
    assert monitor.alerts() == []  # exactly 10 %
    metrics.record_generation(False, 10_000.0)
    names = {a.name: a.severity for a in monitor.alerts()}
    assert names == {"error_rate": "warning", "response_time": "critical"}
    report = monitor.report()
    assert report.status is HealthStatus.UNHEALTHY
    assert not report.to_dict()["components"]["performance"]
    # Ten quiet minutes later nothing speaks for it any more.
    clock.advance(600)
    monitor.evaluate()
    clock.advance(600)
    assert monitor.alerts() == []
    assert len(monitor.alert_history()) == 2


def test_the_hit_rate_needs_a_hundred_lookups() -> None:
    cache = Numbers()
    monitor = HealthMonitor(
        AlertThreshold(memory_usage_percent=100, disk_usage_percent=100), cache=cache
    )
    cache.misses = 99
    assert monitor.alerts() == []
    cache.hits, cache.misses = 49, 51
    [alert] = monitor.alerts()
    assert (alert.name, alert.severity, alert.value) == ("cache_hit_rate", "warning", 49.0)
    cache.hits = 51
    assert monitor.alerts() == []


def test_a_monitor_made_late_judges_from_then_on() -> None:
    clock = ManualClock()
    metrics, cache = PerformanceMetrics(clock=clock), Numbers(misses=1000)
    for _ in range(100):
        metrics.record_generation(False, 100.0)
    clock.advance(86_400)
    monitor = HealthMonitor(
        AlertThreshold(memory_usage_percent=100, disk_usage_percent=100),
        metrics=metrics,
        cache=cache,
        clock=clock,
    )
    assert monitor.alerts() == []
    metrics.record_generation(True, 1.0)
    cache.hits += 100
    assert monitor.alerts() == []
    metrics.record_generation(False, 1.0)
    [alert] = monitor.alerts()
    assert (alert.name, alert.value) == ("error_rate", 50.0)


def test_flapping_is_one_incident() -> None:
    clock = ManualClock()
    healthy = True
    monitor = HealthMonitor(clock=clock)
    monitor.register("db", lambda: healthy)
    for _ in range(10):
        healthy = False
        monitor.check_sync()
        clock.advance(2)
        healthy = True
        monitor.check_sync()
        clock.advance(2)
    history = [a for a in monitor.alert_history() if a.name == "check:db"]
    assert len(history) == 1
    assert history[0].times_raised == 10


def test_history_is_bounded() -> None:
    clock = ManualClock()
    state = {"bad": -1}
    monitor = HealthMonitor(clock=clock, history_size=5, flap_window=1)
    for i in range(20):
        monitor.register(f"c{i}", functools.partial(lambda i: state["bad"] != i, i))
    for i in range(20):
        state["bad"] = i
        monitor.check_sync()
        clock.advance(10)
    resolved = [a for a in monitor.alert_history() if not a.active]
    assert len(resolved) == 5
    assert monitor.get_stats()["alerts_active"] == 1


# -- reports ---------------------------------------------------------------------


def test_groups_are_as_bad_as_their_worst() -> None:
    monitor = HealthMonitor()
    monitor.register("pg", lambda: True, group="storage")
    monitor.register("redis", lambda: "degraded", group="storage")
    monitor.register("llm", lambda: True, group="providers")
    groups = monitor.check_sync().groups
    assert groups == {"storage": HealthStatus.DEGRADED, "providers": HealthStatus.HEALTHY}


def test_a_component_that_cannot_tell_is_unhealthy() -> None:
    class Broken:
        def get_stats(self) -> dict[str, int]:
            raise OSError("gone")

    report = HealthMonitor(cache=Broken(), limiter=Numbers()).evaluate()
    assert report.components["cache"].message == "OSError: gone"
    assert report.status is HealthStatus.UNHEALTHY
    assert report.components["rate_limiter"].healthy


@pytest.mark.parametrize("hits", [-1, 2**64, "7", None])
def test_figures_that_are_no_counts_make_their_component_unhealthy(hits: object) -> None:
    monitor = HealthMonitor(cache=Numbers(hits=hits))  # type: ignore[arg-type]
    report = monitor.evaluate()
    assert not report.components["cache"].healthy
    assert report.components["system_resources"].checked_at


def test_the_shapes_are_final() -> None:
    cache = Numbers()
    monitor = HealthMonitor(
        metrics=PerformanceMetrics(), cache=cache, limiter=Numbers(), name="agent"
    )
    cache.misses = 200
    monitor.register("db", lambda: False)
    detailed = monitor.check_sync().to_dict()
    assert mismatch(detailed, HealthDetailed) is None
    assert set(detailed["components"]) == {
        "system_resources",
        "cache",
        "rate_limiter",
        "performance",
        "db",
    }
    assert detailed["last_check"].endswith("Z")
    assert {a["name"] for a in detailed["alerts"]} >= {"cache_hit_rate", "check:db"}
    json.dumps(detailed)
    assert mismatch(monitor.get_stats(), HealthStats) is None
    assert repr(monitor).startswith("<HealthMonitor 'agent' unhealthy checks=1 alerts=")
    assert isinstance(monitor.alerts()[0], Alert)


def test_report_is_the_latest() -> None:
    monitor = HealthMonitor()
    monitor.register("db", lambda: True)
    first = monitor.report()
    assert first.components["db"].status is HealthStatus.UNKNOWN
    assert monitor.report() is first
    fresh = monitor.check_sync()
    assert fresh is not first
    assert monitor.report() is fresh


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_disabled_is_a_no_op(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("FERROGATE_DISABLED", "1")
    monitor = HealthMonitor(enabled=how == "environment", cache=Numbers(0, 1000), timeout=0.1)
    calls: list[int] = []
    monitor.register("db", lambda: calls.append(1) or False)
    with monitor:
        assert not monitor.running
        report = monitor.check_sync()
    assert (report.healthy, report.alerts, calls) == (True, (), [])


def test_a_report_shows_what_one_looks_for_first() -> None:
    monitor = HealthMonitor()
    monitor.register("db", lambda: 1 / 0)
    shown = repr(monitor.check_sync())
    assert shown.startswith("<HealthReport unhealthy: 2 components, db unhealthy, memory ")
    assert "cpu ?" in shown
    assert shown.endswith("critical: db is unhealthy: ZeroDivisionError: division by zero>")
    assert len(shown) < 300
