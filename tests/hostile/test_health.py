"""The monitor's threads at exit and across forks, in child processes."""

from __future__ import annotations

import os

import pytest
from child import run_well


@pytest.mark.hostile
@pytest.mark.parametrize("check", ["well", "fails", "asleep", "hangs"])
def test_exit_with_a_running_monitor(check: str) -> None:
    run_well(
        f"""
        import asyncio, threading
        from ferrogate import HealthMonitor
        begun = threading.Semaphore(0)
        def well():
            begun.release()
        def fails():
            begun.release()
            raise OSError("gone")
        async def asleep():
            begun.release()
            await asyncio.Event().wait()
        def hangs():
            begun.release()
            threading.Event().wait()
        m = HealthMonitor(interval=0.01, timeout=0.02)
        m.register("c", {check})
        m.start()
        for _ in range(1 if {check} is hangs else 3):
            assert begun.acquire(timeout=20)
        """
    )


@pytest.mark.hostile
@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_forked_child_starts_its_own_thread_on_use() -> None:
    run_well(
        """
        import os, threading, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: the point
        from ferrogate import HealthMonitor
        m = HealthMonitor(interval=0.001)
        m.register("slow", lambda: time.sleep(0.001))
        m.start()
        users = [threading.Thread(target=lambda: [m.check_sync() for _ in range(200)], daemon=True)
                 for _ in range(8)]
        for u in users: u.start()
        for i in range(30):
            pid = os.fork()
            if pid == 0:
                ok = not m.running
                m.alerts()
                ok = ok and m.running and m.check_sync().components["slow"].healthy
                ok = ok and m.sample()["process"]["pid"] == os.getpid()
                m.stop()
                os._exit(0 if ok else 1)
            deadline = time.monotonic() + 15
            while True:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done: break
                assert time.monotonic() < deadline, "the child hangs"
                time.sleep(0.005)
            assert status == 0, status
        for u in users: u.join(20)
        m.stop()
        """,
        timeout=60,
    )
