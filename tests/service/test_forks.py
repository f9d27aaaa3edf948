"""Forks beside what a service does: none waits for ever, and nothing old is served for long."""

from __future__ import annotations

from pathlib import Path

import pytest
from child import run_well, times

pytestmark = pytest.mark.hostile

PRELUDE = """
import warnings; warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
import asyncio, os, subprocess, sys, threading, time
from ferrogate import CacheService

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_closing_in_one_thread_while_another_forks(tmp_path: Path) -> None:
    code = (
        PRELUDE
        + f"""
stop = threading.Event()
def close():
    n = 0
    while not stop.is_set():
        cache = CacheService(sys.argv[1], busy_seconds=60)
        assert cache.set_sync("ns", "k", n)
        cache.close_sync()
        n += 1
thread = threading.Thread(target=close)
thread.start()
for _ in range({times(150, 2000)}):
    fork()
stop.set()
thread.join()
"""
    )
    run_well(code, f"sqlite://{tmp_path}/cache.db", timeout=100 * times(1, 10))


def test_an_awaited_close_while_the_loop_forks(tmp_path: Path) -> None:
    code = (
        PRELUDE
        + f"""
async def main():
    cache = CacheService(sys.argv[1], busy_seconds=60)
    for i in range(20):
        assert cache.set_sync("ns", str(i), "x" * 50_000)
    closing = asyncio.create_task(cache.close())
    await asyncio.sleep(0)
    await asyncio.sleep(0.0005)
    fork()
    await closing
for _ in range({times(15, 200)}):
    asyncio.run(main())
"""
    )
    run_well(code, f"sqlite://{tmp_path}/cache.db", timeout=100 * times(1, 10))


def test_who_forks_all_the_time_hears_of_changes_too(tmp_path: Path) -> None:
    """A fork stops the thread that watches; a value is trusted for 2 s without it."""
    code = (
        PRELUDE
        + """
cache = CacheService(sys.argv[1], busy_seconds=60)
assert cache.set_sync("ns", "k", "old")
there = "from ferrogate import CacheService; import sys; "
there += "assert CacheService(sys.argv[1], busy_seconds=60).set_sync('ns', 'k', 'new')"
other = subprocess.Popen([sys.executable, "-c", there, sys.argv[1]])
while other.poll() is None:
    fork()
assert other.returncode == 0
end = time.monotonic() + 30
while cache.get_sync("ns", "k") != "new":
    assert time.monotonic() < end, cache.get_stats()
    fork()
"""
    )
    run_well(code, f"sqlite://{tmp_path}/cache.db", timeout=100)
