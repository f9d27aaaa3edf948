"""HealthMonitor: async checks and the event loops that end under them."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from ferrogate import HealthMonitor


class Database:
    """Answers at once, but for the first time never."""

    def __init__(self) -> None:
        self.asked = 0
        self.begun = asyncio.Event()

    async def ping(self) -> bool:
        self.asked += 1
        self.begun.set()
        if self.asked == 1:
            await asyncio.Event().wait()
        return True


def leave_a_run_behind(monitor: HealthMonitor, database: Database) -> None:
    """Closes a loop without ending the tasks on it, the check's included."""
    loop = asyncio.new_event_loop()

    async def main() -> None:
        asking = asyncio.create_task(monitor.check())
        await database.begun.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    loop.run_until_complete(main())
    loop.close()


@pytest.mark.parametrize("how", ["async", "sync"])
def test_a_check_whose_loop_was_closed_under_it_runs_anew(how: str) -> None:
    monitor, database = HealthMonitor(), Database()
    monitor.register("db", database.ping)
    leave_a_run_behind(monitor, database)
    report = asyncio.run(monitor.check()) if how == "async" else monitor.check_sync()
    assert (report.components["db"].message, database.asked) == ("", 2)
    assert report.components["db"].healthy


@pytest.mark.parametrize("unregistered", [False, True])
def test_a_check_registered_after_the_end_of_a_loop_need_not_wait(unregistered: bool) -> None:
    monitor, database = HealthMonitor(max_checks=1), Database()
    monitor.register("db", database.ping)
    leave_a_run_behind(monitor, database)
    if unregistered:
        assert monitor.unregister("db")
        monitor.register("other", lambda: True)
        assert monitor.unregister("other")
    monitor.register("db", database.ping)
    assert monitor.check_sync().components["db"].healthy
    assert database.asked == 2


@pytest.mark.usefixtures("no_leaked_threads")
def test_waiting_for_a_hung_check_leaves_nothing_behind() -> None:
    release = threading.Event()
    monitor = HealthMonitor(timeout=0.02)
    monitor.register("db", release.wait)

    async def main() -> None:
        await monitor.check()
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(200):
            await monitor.check()
        gc.collect()
        assert len(gc.get_objects()) - before < 100

    try:
        asyncio.run(main())
    finally:
        release.set()


@pytest.mark.usefixtures("no_leaked_threads")
def test_everybody_who_waits_for_a_run_is_woken_by_its_end() -> None:
    begun, release = threading.Event(), threading.Event()

    def check() -> None:
        begun.set()
        release.wait()

    monitor = HealthMonitor(timeout=30)
    monitor.register("db", check)

    async def many() -> None:
        asking = [asyncio.create_task(monitor.check()) for _ in range(20)]
        await asyncio.sleep(0)
        asking[0].cancel()
        await asyncio.to_thread(ready.wait, 5)
        reports = await asyncio.gather(*asking[1:])
        assert all(report.components["db"].healthy for report in reports)

    ready = threading.Barrier(4)
    threads = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(5)
    ready.wait(5)
    release.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
