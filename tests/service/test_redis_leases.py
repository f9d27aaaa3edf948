"""Who loads, and who waits, where the store is Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from redis_servers import Server, connected, needs_redis, until
from waiting import in_time

from ferrogate import CacheService

pytestmark = needs_redis

Change = Callable[[CacheService], Awaitable[bool]]


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.invalidate_tag("t"),
        lambda cache: cache.invalidate_namespace("ns"),
        lambda cache: cache.delete("ns", "k"),
    ],
    ids=["tag", "namespace", "key"],
)
def test_nobody_waits_for_a_load_that_is_outdated(redis: Server, change: Change) -> None:
    async def main() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> str:
            begun.set()
            await go_on.wait()
            return "old"

        async with (
            CacheService(redis.url, timeout_seconds=5, lease_seconds=60) as a,
            CacheService(redis.url, timeout_seconds=5, lease_seconds=60) as b,
        ):
            loading = asyncio.create_task(a.get_or_set("ns", "k", slow, tags=["t"]))
            await begun.wait()
            await change(b)
            fresh = b.get_or_set("ns", "k", lambda: asyncio.sleep(0, "new"), tags=["t"])
            assert await asyncio.wait_for(fresh, 10) == "new"
            go_on.set()
            assert await loading == "old"
            assert redis.command("HGET", "ferrogate:{ns:k}", "v") == b'"new"'
            assert await a.get("ns", "k") == await b.get("ns", "k") == "new"
            assert a.get_stats()["outdated"] == 1

    asyncio.run(main())


def test_a_lease_given_to_who_has_given_up_keeps_nobody_waiting(redis: Server) -> None:
    async def fail() -> str:
        raise LookupError("no")

    async def main() -> None:
        async with (
            CacheService(redis.url, lease_seconds=60) as a,
            CacheService(redis.url, timeout_seconds=5, lease_seconds=60) as b,
        ):
            await connected(a, b)
            # What is sent to a paused server is done once it goes on.
            redis.stop()
            with pytest.raises(LookupError):
                await a.get_or_set("ns", "k", fail)
            redis.go_on()
            await until(a.health_check)
            loaded = b.get_or_set("ns", "k", lambda: asyncio.sleep(0, "loaded"))
            assert await asyncio.wait_for(loaded, 10) == "loaded"
            await until(lambda: redis.command("EXISTS", "ferrogate:{ns:k}:lease") == b":0")

    asyncio.run(main())


def test_a_long_load_keeps_its_lease_and_a_failed_one_gives_it_back(redis: Server) -> None:
    async def main(lease: float) -> None:
        loads = 0

        async def load() -> int:
            nonlocal loads
            loads += 1
            await asyncio.sleep(2.1 * lease)
            return loads

        async with (
            CacheService(redis.url, timeout_seconds=5, lease_seconds=lease) as a,
            CacheService(redis.url, timeout_seconds=5, lease_seconds=lease) as b,
        ):
            await connected(a, b)
            key = f"held for {lease}"
            found = await asyncio.gather(*(one.get_or_set("ns", key, load) for one in (a, b, a, b)))
            assert (found, loads) == ([1] * 4, 1)

            async def fail() -> int:
                raise LookupError("no")

            with pytest.raises(LookupError):
                await a.get_or_set("ns", "failing", fail)
            await until(lambda: redis.command("EXISTS", "ferrogate:{ns:failing}:lease") == b":0")
            for one in (a, b):
                await until(lambda: cast("dict[str, Any]", one.get_stats())["leases"] == 0)  # noqa: B023

    # Who gets no turn for a whole lease has lost it: a busy machine gets a longer one.
    in_time(lambda attempt: asyncio.run(main(0.7 * 4**attempt)))


def test_what_cannot_be_read_is_loaded_anew(redis: Server) -> None:
    async def main() -> None:
        async with CacheService(redis.url, timeout_seconds=5, codec="msgpack") as a:
            assert await a.set("ns", "k", 1)
        async with CacheService(redis.url, timeout_seconds=5) as b:
            assert await b.get_or_set("ns", "k", lambda: asyncio.sleep(0, 2)) == 2
            assert redis.command("HGET", "ferrogate:{ns:k}", "v") == b"2"

    asyncio.run(main())
