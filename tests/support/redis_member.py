"""A child's program: one of several processes that share a cache service in Redis.

``python redis_member.py load URL COUNTER_PORT TASKS SECONDS LEASE``: all tasks ask for one key,
whose load counts itself and takes so long; prints the results.
``python redis_member.py follow URL``: for each line ``key value`` on stdin, waits until ``get``
brings that value, and prints when it did (nanoseconds of the clock that all processes share).
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time

from ferrogate import CacheService


def count(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
        one.sendall(b"INCR loads\r\n")
        one.recv(64)


async def load(url: str, port: int, tasks: int, seconds: float, lease: float) -> None:
    async def loader() -> str:
        count(port)
        print("loading", flush=True)
        await asyncio.sleep(seconds)
        return "loaded"

    async with CacheService(url, lease_seconds=lease, timeout_seconds=5) as service:
        print("ready", flush=True)
        sys.stdin.readline()
        found = await asyncio.gather(*(service.get_or_set("ns", "k", loader) for _ in range(tasks)))
    print(json.dumps(found), flush=True)


def follow(url: str) -> None:
    with CacheService(url, timeout_seconds=5) as service:
        print("ready", flush=True)
        for line in sys.stdin:
            key, value = line.split()
            deadline = time.monotonic() + 20
            while service.get_sync("ns", key) != value and time.monotonic() < deadline:
                time.sleep(0.0005)
            print(time.monotonic_ns(), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "load":
        url, port, tasks, seconds, lease = sys.argv[2:]
        asyncio.run(load(url, int(port), int(tasks), float(seconds), float(lease)))
    else:
        follow(sys.argv[2])
