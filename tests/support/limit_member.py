"""A child's program: one of several processes that share a limit in Redis.

``python limit_member.py URL LIMIT SECONDS TASKS HOW``: waits for a line on stdin, asks for permits
for so long, and prints, as JSON, when each was granted: in between two times of the clock that all
processes of a machine share. ``HOW`` is ``wait`` (tasks stand in line all the time), ``try`` (one
loop that never waits), ``sync`` (threads stand in line) or ``keys`` (tasks with a key each).
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import deque
from typing import Any

from ferrogate import RateLimiter
from ferrogate.exceptions import RateLimitExceeded


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


async def waiting(
    limiter: RateLimiter, until: int, tasks: int, grants: list[Any], keyed: bool
) -> None:
    ticks = deque([now()], maxlen=6)

    async def tick() -> None:
        while True:
            ticks.append(now())
            await asyncio.sleep(0.002)

    async def one(number: int) -> None:
        key = number % 4 if keyed else None
        while (left := until - now()) > 0:
            begun = now()
            try:
                await limiter.acquire(key=key, timeout=left / 1e9)
            except RateLimitExceeded:
                return
            # From the bell to the task a loop turns three times: what was granted before the
            # oldest of these ticks would have been here at one of them.
            grants.append((max(begun, ticks[0]), now(), key))

    ticking = asyncio.create_task(tick())
    await asyncio.gather(*(one(number) for number in range(tasks)))
    ticking.cancel()


def trying(limiter: RateLimiter, until: int, grants: list[Any]) -> None:
    while now() < until:
        begun = now()
        if limiter.try_acquire():
            grants.append((begun, now(), None))
        else:
            time.sleep(0.001)


def blocking(limiter: RateLimiter, until: int, grants: list[Any]) -> None:
    while (left := until - now()) > 0:
        begun = now()
        try:
            limiter.acquire_sync(timeout=left / 1e9)
        except RateLimitExceeded:
            return
        grants.append((begun, now(), None))


def main() -> None:
    url, limit, seconds, tasks, how = sys.argv[1:]
    limiter = RateLimiter(limit, store=url, name="shared")
    grants: list[Any] = []
    print("ready", flush=True)
    sys.stdin.readline()
    until = now() + int(float(seconds) * 1e9)
    if how == "try":
        trying(limiter, until, grants)
    elif how == "sync":
        threads = [
            threading.Thread(target=blocking, args=(limiter, until, grants))
            for _ in range(int(tasks))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        asyncio.run(waiting(limiter, until, int(tasks), grants, how == "keys"))
    print(json.dumps({"grants": grants, "stats": limiter.get_stats()}), flush=True)


if __name__ == "__main__":
    main()
