"""HealthMonitor: the background rounds, their start and their end."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
import weakref
from concurrent.futures import Future

import pytest
from waiting import eventually

from ferrogate import HealthMonitor
from ferrogate.testing import ManualClock


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
    assert "ferrogate-health" not in {thread.name for thread in threading.enumerate()}
    count = len(calls)
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


def test_a_round_comes_when_a_check_is_due() -> None:
    """With intervals of 10 and 15 seconds the latter once ran every 20."""
    clock = ManualClock()
    runs: dict[str, list[float]] = {"ten": [], "fifteen": []}
    monitor = HealthMonitor(interval=60, clock=clock)
    for name, interval in (("ten", 10), ("fifteen", 15)):
        note = functools.partial(lambda name: runs[name].append(clock.now()), name)
        monitor.register(name, note, interval=interval)
    while clock.now() < 60:
        clock.advance(monitor._round(Future()))
    assert runs == {"ten": [0, 10, 20, 30, 40, 50], "fifteen": [0, 15, 30, 45]}
    monitor.unregister("ten")
    monitor.unregister("fifteen")
    assert monitor._round(Future()) == 60


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
