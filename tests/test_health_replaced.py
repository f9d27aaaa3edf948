"""HealthMonitor: checks replaced or removed while they run keep to one thread a name."""

from __future__ import annotations

import asyncio
import functools
import threading
import time

import pytest
from waiting import eventually

from ferrogate import HealthMonitor


def check_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("ferrogate-check-")]


@pytest.mark.usefixtures("no_leaked_threads")
@pytest.mark.parametrize("unregistered", [False, True])
def test_registering_a_hung_check_again_starts_no_further_thread(unregistered: bool) -> None:
    release = threading.Event()
    calls: list[int] = []

    def hangs(i: int) -> None:
        calls.append(i)
        release.wait()

    monitor = HealthMonitor(timeout=0.02)
    try:
        for i in range(20):
            monitor.register("db", functools.partial(hangs, i))
            message = monitor.check_sync().components["db"].message
            assert message.startswith("timed out after 0.02 s")
            assert ("waiting for the check it replaced" in message) == (i > 0)
            assert len(check_threads()) == 1
            if unregistered:
                assert monitor.unregister("db")
    finally:
        release.set()
    if unregistered:
        monitor.register("db", lambda: calls.append(20))
    eventually(lambda: monitor.check_sync().components["db"].healthy)
    # Those in between were replaced before their turn came; the last one had its turn.
    assert calls[0] == 0
    assert set(calls[1:]) <= {19, 20}
    assert calls[-1] == (20 if unregistered else 19)


@pytest.mark.usefixtures("no_leaked_threads")
def test_a_check_replaced_in_the_middle_of_a_run_is_no_alarm() -> None:
    begun, release = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        release.wait()

    monitor = HealthMonitor(timeout=10)
    monitor.register("db", slow)
    first = threading.Thread(target=monitor.check_sync)
    first.start()
    assert begun.wait(5)
    monitor.register("db", lambda: {"new": True})

    def release_once_the_new_one_waits() -> None:
        eventually(lambda: monitor._checks.all()[0].run is not None)
        release.set()

    second = threading.Thread(target=release_once_the_new_one_waits)
    second.start()
    component = monitor.check_sync().components["db"]
    assert component.healthy
    assert component.details == {"new": True}
    first.join()
    second.join()
    assert monitor.report().components["db"].details == {"new": True}
    assert monitor.get_stats()["alerts_raised"] == 0


def test_an_async_check_waits_its_turn_on_its_loop() -> None:
    begun, release = threading.Event(), threading.Event()
    loops: list[object] = []

    def blocks() -> None:
        begun.set()
        release.wait()

    async def notes() -> None:
        loops.append(asyncio.get_running_loop())

    async def main() -> None:
        monitor = HealthMonitor(timeout=5)
        monitor.register("db", blocks)
        first = asyncio.create_task(monitor.check())
        assert await asyncio.to_thread(begun.wait, 5)
        monitor.register("db", notes)
        second = asyncio.create_task(monitor.check())
        [check] = monitor._checks.all()
        await asyncio.to_thread(eventually, lambda: check.run is not None)
        assert loops == []
        release.set()
        assert (await second).components["db"].healthy
        await first
        assert loops == [asyncio.get_running_loop()]

    asyncio.run(main())


@pytest.mark.usefixtures("no_leaked_threads")
def test_an_async_check_whose_turn_comes_after_its_loop_has_a_thread() -> None:
    release = threading.Event()
    calls: list[int] = []

    async def notes() -> None:
        calls.append(1)

    monitor = HealthMonitor(timeout=0.02)
    monitor.register("db", release.wait)
    monitor.check_sync()
    monitor.register("db", notes)
    assert not asyncio.run(monitor.check()).components["db"].healthy
    release.set()
    eventually(lambda: calls)
    eventually(lambda: monitor.check_sync().components["db"].healthy)


@pytest.mark.usefixtures("no_leaked_threads")
def test_removed_checks_that_still_run_count() -> None:
    release = threading.Event()
    monitor = HealthMonitor(timeout=0.02, max_checks=3)
    try:
        for i in range(3):
            monitor.register(f"hung{i}", release.wait)
            monitor.check_sync()
            monitor.unregister(f"hung{i}")
        with pytest.raises(ValueError, match=r"max_checks: 3 .* 3 removed ones that still run"):
            monitor.register("one more", lambda: True)
        monitor.register("hung0", lambda: True)
        assert len(check_threads()) == 3
    finally:
        release.set()
    eventually(lambda: check_threads() == [])
    monitor.register("one more", lambda: True)
    assert monitor.check_sync().healthy


@pytest.mark.usefixtures("no_leaked_threads")
def test_registering_while_checks_run_never_overlaps() -> None:
    running, overlaps, calls = [0], [0], [0]
    guard = threading.Lock()

    def check() -> None:
        with guard:
            running[0] += 1
            overlaps[0] += running[0] > 1
            calls[0] += 1
        time.sleep(0.0005)
        with guard:
            running[0] -= 1

    monitor = HealthMonitor(timeout=5)
    ends = threading.Event()

    def replaces() -> None:
        while not ends.is_set():
            monitor.register("db", functools.partial(check))
            if calls[0] % 7 == 0:
                monitor.unregister("db")

    def asks() -> None:
        while not ends.is_set():
            monitor.check_sync()

    threads = [threading.Thread(target=work) for work in (replaces, replaces, asks, asks, asks)]
    for thread in threads:
        thread.start()
    eventually(lambda: calls[0] > 300, 30)
    ends.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert overlaps[0] == 0
