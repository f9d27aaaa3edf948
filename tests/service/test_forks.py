"""Forks beside what a service does: none waits for ever, and nothing old is served for long."""

from __future__ import annotations

from pathlib import Path

import pytest
from child import FORKS, run_well, times
from redis_servers import needs_redis

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
for _ in range({times(75, 2000)}):
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


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """A store's URL, and what a service on it is told so that it waits for a busy machine."""
    if request.param == "redis":
        return request.getfixturevalue("redis").url, '{"timeout_seconds": 10}'
    return f"sqlite://{tmp_path}/cache.db", '{"busy_seconds": 60}'


def test_who_forks_all_the_time_hears_of_changes_too(store: tuple[str, str]) -> None:
    """A fork stops what watches or listens, and the next one what has just begun to again."""
    opened = "import json, sys; from ferrogate import CacheService; "
    opened += "cache = CacheService(sys.argv[1], **json.loads(sys.argv[2])); "
    code = (
        PRELUDE
        + opened
        + f"""
assert cache.set_sync("ns", "k", "old")
there = {opened!r} + "assert cache.set_sync('ns', 'k', 'new')"
other = subprocess.Popen([sys.executable, "-c", there, *sys.argv[1:]])
while other.poll() is None:
    fork()
assert other.returncode == 0
end = time.monotonic() + 30
while cache.get_sync("ns", "k") != "new":
    assert time.monotonic() < end, cache.get_stats()
    fork()
"""
    )
    run_well(code, *store, timeout=100)


def test_what_is_under_way_when_the_process_forks_is_neither_lost_nor_refused(
    tmp_path: Path,
) -> None:
    """Threads that read, write, open and close the file; a fork ends nobody's patience at once."""
    code = (
        FORKS
        + """
import asyncio, os, sys, threading
from ferrogate import CacheService
cache = CacheService(sys.argv[1], busy_seconds=60, strict=True, near_bytes=1)
stop, wrong = threading.Event(), []

def blocking(name):
    while not stop.is_set():
        assert cache.set_sync("ns", name, name)
        assert cache.get_sync("ns", name) == name

def awaiting(name):
    async def main():
        while not stop.is_set():
            assert await cache.set("ns", name, name)
            assert await cache.get("ns", name) == name
    asyncio.run(main())

def opening(name):
    while not stop.is_set():
        with CacheService(sys.argv[1], busy_seconds=60, strict=True) as own:
            assert own.set_sync("ns", name, name)

def run(body, name):
    try:
        body(name)
    except BaseException as error:
        wrong.append(f"{name}: {error!r}")

bodies = [blocking, awaiting, opening] * 2
threads = [
    threading.Thread(target=run, args=(body, f"{body.__name__} {number}"))
    for number, body in enumerate(bodies)
]
for one in threads: one.start()
for _ in range(int(sys.argv[2])):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for one in threads: one.join()
assert not wrong, wrong
"""
    )
    url = f"sqlite://{tmp_path}/cache.db"
    run_well(code, url, str(times(50, 3000)), timeout=100 * times(1, 10))
