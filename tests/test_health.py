"""HealthMonitor: samples, checks that misbehave, alerts raised once and resolved."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture
def no_leaked_threads() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if set(threading.enumerate()) <= before:
            return
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


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
    ],
)
def test_bad_arguments_are_named(argument: str, bad: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=argument):
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
    cache = Numbers(hits=0, misses=99)
    monitor = HealthMonitor(
        AlertThreshold(memory_usage_percent=100, disk_usage_percent=100), cache=cache
    )
    assert monitor.alerts() == []
    cache.hits, cache.misses = 49, 51
    [alert] = monitor.alerts()
    assert (alert.name, alert.severity, alert.value) == ("cache_hit_rate", "warning", 49.0)
    cache.hits = 51
    assert monitor.alerts() == []


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


# -- checks --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (True, "healthy"),
        (None, "healthy"),
        (False, "unhealthy"),
        ("degraded", "degraded"),
        ("HEALTHY", "healthy"),
        (HealthStatus.UNHEALTHY, "unhealthy"),
        ({"status": "degraded", "message": "slow", "ms": 7}, "degraded"),
        ({"healthy": False}, "unhealthy"),
        ({"rows": 3}, "healthy"),
        ("fine", "unhealthy"),
        (42, "unhealthy"),
    ],
)
def test_what_a_check_may_return(value: Any, status: str) -> None:
    monitor = HealthMonitor()
    monitor.register("plain", lambda: value)

    async def answer() -> Any:
        await asyncio.sleep(0)
        return value

    monitor.register("async", answer)
    for report in (monitor.check_sync(), asyncio.run(monitor.check())):
        for name in ("plain", "async"):
            assert report.components[name].status == status
    if isinstance(value, dict):
        assert report.components["plain"].details == value
    if value in ("fine", 42):
        assert "expected a bool" in report.components["plain"].message


def test_what_a_check_raises_is_reported() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    def fails(error: BaseException) -> Any:
        raise error

    async def fails_async() -> None:
        raise ConnectionError("refused")

    monitor = HealthMonitor()
    monitor.register("value", functools.partial(fails, ValueError("x" * 10_000)))
    monitor.register("odd", functools.partial(fails, Unprintable()))
    monitor.register("exit", functools.partial(fails, SystemExit(3)))
    monitor.register("async", fails_async)
    for report in (monitor.check_sync(), asyncio.run(monitor.check())):
        message = report.components["value"].message
        assert message.startswith("ValueError: xxx")
        assert len(message) <= 500
        assert report.components["odd"].message.startswith("Unprintable")
        assert report.components["exit"].message == "SystemExit: 3"
        assert report.components["async"].message == "ConnectionError: refused"
        assert not report.healthy
        assert {a.name for a in report.alerts} >= {"check:value", "check:async"}
    assert monitor.get_stats()["failures"] == 8


def test_a_hanging_check_times_out_without_piling_up_threads() -> None:
    release = threading.Event()
    monitor = HealthMonitor(timeout=0.05)
    monitor.register("hung", release.wait)
    monitor.register("good", lambda: True)
    before = threading.active_count()
    started = time.monotonic()
    for _ in range(5):
        report = monitor.check_sync()
        assert report.components["hung"].status is HealthStatus.UNHEALTHY
        assert "timed out after 0.05 s" in report.components["hung"].message
        assert report.components["good"].healthy
    asyncio.run(monitor.check())
    assert time.monotonic() - started < 2
    assert threading.active_count() <= before + 1
    assert monitor.get_stats()["timeouts"] == 6
    release.set()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert monitor.check_sync().components["hung"].healthy


def test_a_hanging_async_check_times_out_and_is_cancelled() -> None:
    cancelled = []

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def refuses_to_die() -> None:
        while True:
            try:
                await asyncio.sleep(0.3)
            except asyncio.CancelledError:
                continue
            return

    async def main() -> None:
        monitor = HealthMonitor(timeout=0.05)
        monitor.register("hangs", hangs)
        monitor.register("stubborn", refuses_to_die)
        for _ in range(2):
            report = await monitor.check()
            for name in ("hangs", "stubborn"):
                assert "timed out" in report.components[name].message
        await asyncio.sleep(0.7)

    asyncio.run(main())
    assert len(cancelled) == 2
    monitor = HealthMonitor(timeout=0.05)
    monitor.register("hangs", hangs)
    assert "timed out" in monitor.check_sync().components["hangs"].message


def test_cancelling_a_check_leaves_the_others_their_report() -> None:
    async def slow() -> bool:
        await asyncio.sleep(0.05)
        return True

    async def main() -> None:
        monitor = HealthMonitor()
        monitor.register("slow", slow)
        first = asyncio.create_task(monitor.check())
        second = asyncio.create_task(monitor.check())
        await asyncio.sleep(0)
        first.cancel()
        report = await second
        assert report.components["slow"].status is HealthStatus.HEALTHY
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(main())


def test_concurrent_callers_share_one_run() -> None:
    calls = []

    def check() -> bool:
        calls.append(1)
        time.sleep(0.1)
        return True

    monitor = HealthMonitor()
    monitor.register("shared", check)
    threads = [threading.Thread(target=monitor.check_sync) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) <= 2


@pytest.mark.usefixtures("no_leaked_threads")
def test_a_check_may_ask_the_monitor_itself() -> None:
    monitor = HealthMonitor()

    def reenters() -> bool:
        report = monitor.check_sync()
        monitor.alerts()
        monitor.register("added", lambda: True)
        monitor.unregister("added")
        repr(monitor)
        return report.components["inner"].status is HealthStatus.UNKNOWN

    async def reenters_async() -> bool:
        return (await monitor.check()).components["inner"].status is HealthStatus.UNKNOWN

    monitor.register("inner", reenters)
    assert monitor.check_sync().components["inner"].healthy
    monitor.register("inner", reenters_async)
    started = time.monotonic()
    assert asyncio.run(monitor.check()).components["inner"].healthy
    assert time.monotonic() - started < 2


def test_the_collector_inside_of_checks() -> None:
    monitor = HealthMonitor(metrics=PerformanceMetrics())

    class Finaliser:
        def __del__(self) -> None:
            monitor.report()
            monitor.get_stats()

    def check() -> dict[str, object]:
        loop: list[object] = [Finaliser()]
        loop.append(loop)
        del loop
        gc.collect()
        return {"healthy": True, "held": Finaliser()}

    for i in range(4):
        monitor.register(f"gc{i}", check)
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        threads = [
            threading.Thread(target=lambda: [monitor.check_sync() for _ in range(5)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        gc.set_threshold(*threshold)
    assert monitor.report().components["gc0"].healthy


def test_checks_are_bounded_and_named() -> None:
    monitor = HealthMonitor(max_checks=2)
    monitor.register("a", lambda: True)
    monitor.register("b", lambda: True)
    monitor.register("b", lambda: False)
    with pytest.raises(ValueError, match="max_checks"):
        monitor.register("c", lambda: True)
    assert not monitor.check_sync().healthy
    assert monitor.unregister("b")
    assert not monitor.unregister("b")
    assert monitor.alerts() == []
    with pytest.raises(ValueError, match="own components"):
        monitor.register("cache", lambda: True)
    with pytest.raises(TypeError, match="check"):
        monitor.register("x", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name"):
        monitor.register("", lambda: True)


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


def test_the_shapes_are_final() -> None:
    monitor = HealthMonitor(
        metrics=PerformanceMetrics(), cache=Numbers(0, 200), limiter=Numbers(), name="agent"
    )
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


# -- background ------------------------------------------------------------------


def eventually(condition: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.005)


@pytest.mark.usefixtures("no_leaked_threads")
def test_the_background_runs_and_stops() -> None:
    calls: list[int] = []
    monitor = HealthMonitor(interval=0.01)
    monitor.register("db", lambda: calls.append(1))
    with monitor:
        assert monitor.running
        eventually(lambda: len(calls) > 3)
        monitor.start()  # once more: nothing
    assert not monitor.running
    monitor.stop()
    count = len(calls)
    time.sleep(0.05)
    assert len(calls) == count
    with monitor:
        eventually(lambda: len(calls) > count)


@pytest.mark.usefixtures("no_leaked_threads")
def test_each_check_has_its_interval() -> None:
    clock = ManualClock()
    calls = {"often": 0, "seldom": 0}

    def count(name: str) -> bool:
        calls[name] += 1
        return True

    monitor = HealthMonitor(interval=0.01, clock=clock)
    monitor.register("often", functools.partial(count, "often"), interval=0.001)
    monitor.register("seldom", functools.partial(count, "seldom"), interval=3600)
    with monitor:
        for n in range(1, 4):
            eventually(lambda n=n: calls["often"] >= n)
            clock.advance(1)
        assert calls["seldom"] == 1


@pytest.mark.usefixtures("no_leaked_threads")
def test_async_checks_run_on_the_loop_that_started_it() -> None:
    async def main() -> None:
        loops: list[object] = []
        three = asyncio.Event()

        async def check() -> None:
            loops.append(asyncio.get_running_loop())
            if len(loops) == 3:
                three.set()

        async with (monitor := HealthMonitor(interval=0.01)):
            monitor.register("db", check)
            await asyncio.wait_for(three.wait(), 5)
        assert set(loops) == {asyncio.get_running_loop()}
        assert not monitor.running

    asyncio.run(main())


@pytest.mark.usefixtures("no_leaked_threads")
def test_the_background_survives_the_end_of_its_loop() -> None:
    calls: list[int] = []

    async def check() -> None:
        calls.append(1)

    monitor = HealthMonitor(interval=0.01, timeout=1)
    monitor.register("db", check)

    async def main() -> None:
        monitor.start()
        await asyncio.to_thread(eventually, lambda: calls)

    asyncio.run(main())
    count = len(calls)
    eventually(lambda: len(calls) > count + 2)
    monitor.stop()
    assert monitor.report().components["db"].healthy


@pytest.mark.usefixtures("no_leaked_threads")
def test_a_dropped_monitor_is_collected_and_its_thread_ends() -> None:
    def abandon() -> weakref.ref[HealthMonitor]:
        monitor = HealthMonitor(interval=3600)
        monitor.register("me", lambda: monitor is not None)
        monitor.start()
        eventually(lambda: monitor.get_stats()["evaluations"] > 0)
        return weakref.ref(monitor)

    reference = abandon()
    eventually(lambda: gc.collect() is not None and reference() is None)
