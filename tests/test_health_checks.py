"""HealthMonitor: checks of every kind, those that misbehave included."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import threading
import time
from typing import Any

import pytest
from waiting import eventually

from ferrogate import HealthMonitor, PerformanceMetrics
from ferrogate.health import HealthStatus


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
    stats = monitor.get_stats()
    assert (stats["timeouts"], stats["failures"], stats["runs"]) == (1, 1, 7)  # 6 of the good one
    release.set()
    eventually(lambda: threading.active_count() <= before)
    assert monitor.check_sync().components["hung"].healthy


def test_a_hanging_async_check_times_out_and_is_cancelled() -> None:
    cancelled = []

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main() -> None:
        release, ended = asyncio.Event(), asyncio.Event()

        async def refuses_to_die() -> None:
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()
            ended.set()

        monitor = HealthMonitor(timeout=0.05)
        monitor.register("hangs", hangs)
        monitor.register("stubborn", refuses_to_die)
        for _ in range(2):
            report = await monitor.check()
            for name in ("hangs", "stubborn"):
                assert "timed out" in report.components[name].message
        release.set()
        await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(main())
    assert len(cancelled) == 2
    monitor = HealthMonitor(timeout=0.05)
    monitor.register("hangs", hangs)
    assert "timed out" in monitor.check_sync().components["hangs"].message


def test_cancelling_a_check_leaves_the_others_their_report() -> None:
    async def main() -> None:
        begun, release = asyncio.Event(), asyncio.Event()

        async def slow() -> bool:
            begun.set()
            return await release.wait()

        monitor = HealthMonitor()
        monitor.register("slow", slow)
        first = asyncio.create_task(monitor.check())
        second = asyncio.create_task(monitor.check())
        await begun.wait()
        first.cancel()
        await asyncio.wait({first})
        release.set()
        report = await second
        assert report.components["slow"].status is HealthStatus.HEALTHY
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(main())


@pytest.mark.usefixtures("no_leaked_threads")
def test_concurrent_callers_share_one_run_and_it_counts_once() -> None:
    calls: list[int] = []
    begun, release = threading.Event(), threading.Event()

    def check() -> bool:
        calls.append(1)
        begun.set()
        release.wait()
        return False

    monitor = HealthMonitor(timeout=30)
    monitor.register("shared", check)
    first = threading.Thread(target=monitor.check_sync)
    first.start()
    assert begun.wait(5)
    run = monitor._checks.all()[0].run
    assert run is not None

    async def many() -> None:
        asking = [asyncio.create_task(monitor.check()) for _ in range(50)]
        await asyncio.to_thread(eventually, lambda: len(run._waiters) == 50)
        release.set()
        reports = await asyncio.gather(*asking)
        assert not any(report.components["shared"].healthy for report in reports)

    try:
        asyncio.run(many())
    finally:
        release.set()
        first.join()
    stats = monitor.get_stats()
    assert (len(calls), stats["runs"], stats["failures"]) == (1, 1, 1)


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
    with pytest.raises(TypeError, match="group"):
        monitor.register("x", lambda: True, group=3)  # type: ignore[arg-type]
