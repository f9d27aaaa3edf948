"""What a Redis that hangs does not hold up: forks, loads, and what is asked later."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest
from redis_servers import Server, connected, needs_redis, server, until
from waiting import eventually, in_time

from ferrogate import CacheService

pytestmark = needs_redis

FORK = """
import os, sys, threading, time, warnings
from ferrogate import CacheService

warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
with CacheService(sys.argv[1], timeout_seconds=20) as other:
    assert other.set_sync("ns", "k", "v")
service = CacheService(sys.argv[1], timeout_seconds=20)
assert service.get_sync("ns", "missing") is None
while not service.get_stats()["listening"]:
    time.sleep(0.001)
found = []

def sent():
    figures = service.get_stats()
    return figures["batches"] + figures["direct_requests"]

before = sent()
print("ready", flush=True)
sys.stdin.readline()
asking = threading.Thread(target=lambda: found.append(service.get_sync("ns", "k")))
asking.start()
while sent() == before:
    time.sleep(0.001)
begin = time.monotonic()
pid = os.fork()
took = time.monotonic() - begin
if pid == 0:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print(took, flush=True)
asking.join()
print(found, flush=True)
"""


@pytest.mark.hostile
def test_a_fork_does_not_wait_for_it(redis: Server) -> None:
    def judge(_: int) -> None:
        child = subprocess.Popen(
            [sys.executable, "-c", FORK, redis.url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdin
        assert child.stdout
        try:
            assert child.stdout.readline() == "ready\n"
            redis.stop()
            child.stdin.write("\n")
            child.stdin.flush()
            took = float(child.stdout.readline())
            redis.go_on()
            # What was under way is asked once more.
            assert child.stdout.readline() == "['v']\n"
            assert took < 1
        finally:
            redis.go_on()
            child.kill()
            child.communicate()

    in_time(judge)


def test_a_load_begins_after_one_wait() -> None:
    async def main(one: Server) -> None:
        async with CacheService(one.url, timeout_seconds=1) as cache:
            await connected(cache)
            one.stop()
            begin = time.monotonic()
            loading = asyncio.Event()
            waited = 0.0

            async def load() -> int:
                nonlocal waited
                waited = time.monotonic() - begin
                loading.set()
                return 1

            assert await cache.get_or_set("ns", "k", load) == 1
            assert waited > 0.9
            one.go_on()
            assert waited < 1.8
            await until(cache.health_check)

    def judge(_: int) -> None:
        with server() as one:
            asyncio.run(main(one))

    in_time(judge)


def test_what_is_asked_later_may_wait_longer() -> None:
    """A connection that is not made in time ends only those whose time is up."""

    def judge(_: int) -> None:
        with server() as one:
            with CacheService(one.url, timeout_seconds=5) as other:
                eventually(lambda: other.set_sync("ns", "k", "v"))
            one.stop()
            cache = CacheService(one.url, timeout_seconds=2)
            found: dict[str, object] = {}

            def ask(name: str) -> None:
                found[name] = cache.get_sync("ns", "k")

            early = threading.Thread(target=ask, args=("early",))
            begin = time.monotonic()
            early.start()
            time.sleep(1.6)
            late = threading.Thread(target=ask, args=("late",))
            late.start()
            # By then it has given up connecting, half a second later than the first request.
            time.sleep(max(0.0, begin + 2.9 - time.monotonic()))
            one.go_on()
            early.join()
            late.join()
            assert found == {"early": None, "late": "v"}
            cache.close_sync()

    in_time(judge)
