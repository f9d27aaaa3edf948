"""One of several processes that share a store: does what the bench tells it, and says when.

`store_worker.py KIND PATH NUMBER`; reads lines `get COUNT`, `set COUNT` and `gather COUNT`,
and answers each with `done`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import cycle
from typing import Any

KEYS = 500
TTL = 3600
VALUE = {"answer": "x" * 400, "tokens": [120, 80], "cost_usd": 0.002}

Work = Callable[[int], None]


def of_ferrogate(path: str, keys: Iterator[str], *, near: bool = False) -> dict[str, Work]:
    # Without a near cache what is measured is the file.
    cache = import_module("ferrogate").CacheService(
        f"sqlite://{path}/ferrogate.db", near_bytes=1 << 26 if near else 1, default_ttl=TTL
    )
    runner = asyncio.Runner()

    def get(count: int) -> None:
        for _ in range(count):
            assert cache.get_sync("bench", next(keys)) == VALUE

    def store(count: int) -> None:
        for _ in range(count):
            assert cache.set_sync("bench", next(keys), VALUE)

    async def together(count: int) -> None:
        for _ in range(count // 50):
            assert all(
                await asyncio.gather(*(cache.set("bench", next(keys), VALUE) for _ in range(50)))
            )

    return {"get": get, "set": store, "gather": lambda count: runner.run(together(count))}


def of_diskcache(cache: Any, keys: Iterator[str]) -> dict[str, Work]:
    def get(count: int) -> None:
        for _ in range(count):
            assert cache.get(next(keys)) == VALUE

    def store(count: int) -> None:
        for _ in range(count):
            # FanoutCache gives up after 10 ms of waiting for the others otherwise.
            assert cache.set(next(keys), VALUE, expire=TTL, retry=True)

    # It has no asyncio: its set blocks.
    return {"get": get, "set": store, "gather": store}


def main(kind: str, path: str, number: int) -> None:
    """Fills the store with its share, then obeys."""
    mine = [f"tenant-{n % 7}:document:{n:05}" for n in range(number, 4 * KEYS, 4)]
    keys = cycle(mine)
    if kind in ("ferrogate", "near"):
        work = of_ferrogate(path, keys, near=kind == "near")
    else:
        diskcache = import_module("diskcache")
        make = diskcache.FanoutCache if kind == "fanout" else diskcache.Cache
        work = of_diskcache(make(f"{path}/{kind}"), keys)
    work["set"](len(mine))
    print("done", flush=True)
    for line in sys.stdin:
        what, count = line.split()
        work[what](int(count))
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
