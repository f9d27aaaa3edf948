"""HealthMonitor: async checks and the event loops that end under them."""

from __future__ import annotations

import asyncio

import pytest

from ferrogate import HealthMonitor


class Database:
    """Answers at once, but for the first time never."""

    def __init__(self) -> None:
        self.asked = 0

    async def ping(self) -> bool:
        self.asked += 1
        if self.asked == 1:
            await asyncio.Event().wait()
        return True


def leave_a_run_behind(monitor: HealthMonitor) -> None:
    """Closes a loop without ending the tasks on it, the check's included."""
    loop = asyncio.new_event_loop()

    async def main() -> None:
        asking = asyncio.create_task(monitor.check())
        await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    loop.run_until_complete(main())
    loop.close()


@pytest.mark.parametrize("how", ["async", "sync"])
def test_a_check_whose_loop_was_closed_under_it_runs_anew(how: str) -> None:
    monitor, database = HealthMonitor(), Database()
    monitor.register("db", database.ping)
    leave_a_run_behind(monitor)
    report = asyncio.run(monitor.check()) if how == "async" else monitor.check_sync()
    assert (report.components["db"].message, database.asked) == ("", 2)
    assert report.components["db"].healthy


@pytest.mark.parametrize("unregistered", [False, True])
def test_a_check_registered_after_the_end_of_a_loop_need_not_wait(unregistered: bool) -> None:
    monitor, database = HealthMonitor(max_checks=1), Database()
    monitor.register("db", database.ping)
    leave_a_run_behind(monitor)
    if unregistered:
        assert monitor.unregister("db")
        monitor.register("other", lambda: True)
        assert monitor.unregister("other")
    monitor.register("db", database.ping)
    assert monitor.check_sync().components["db"].healthy
    assert database.asked == 2
