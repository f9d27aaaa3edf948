"""What Redis keeps when it has no room for everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lone_requests import far
from redis_servers import Server, connected, needs_redis, until

from ferrogate import CacheService

pytestmark = needs_redis


@asynccontextmanager
async def two(redis: Server) -> AsyncIterator[tuple[CacheService, CacheService]]:
    """Two that have to ask Redis for each value."""
    async with far(redis) as service, far(redis) as other:
        await connected(service, other)
        yield service, other


def figure(redis: Server, name: str) -> int:
    info = redis.command("INFO", "all").decode()
    return int(info.split(f"{name}:", 1)[1].split()[0])


def test_the_generations_of_what_is_read_most_are_not_evicted_first(redis: Server) -> None:
    async def main() -> None:
        async with two(redis) as (service, other):
            for number in range(20):
                assert await service.set("hot", str(number), "x" * 200, tags=["t"])

            async def hot(reader: CacheService) -> int:
                found = [await reader.get("hot", str(number)) for number in range(20)]
                return sum(one is not None for one in found)

            async def bulk(begin: int, count: int) -> None:
                for number in range(begin, begin + count, 100):
                    values = (
                        other.set("bulk", str(n), "y" * 500) for n in range(number, number + 100)
                    )
                    assert all(await asyncio.gather(*values))
                    assert await hot(service) == 20

            await bulk(0, 4000)

            # What fills the memory is not used any more; the rest is.
            async def idle() -> bool:
                assert await hot(service) == 20
                return int(redis.command("OBJECT", "IDLETIME", "ferrogate:{bulk:3999}")[1:]) >= 3

            await until(idle)
            used = figure(redis, "used_memory")
            redis.command("CONFIG", "SET", "maxmemory-samples", "64")
            redis.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            redis.command("CONFIG", "SET", "maxmemory", str(used))
            await bulk(4000, 2000)
            assert figure(redis, "evicted_keys") > 500
            # Also for who has to ask for them.
            assert await hot(service) == await hot(other) == 20

    asyncio.run(main())


def test_what_is_found_outdated_takes_no_more_room(redis: Server) -> None:
    async def main() -> None:
        async with two(redis) as (service, other):
            for number in range(20):
                assert await service.set("ns", str(number), number)
                assert await service.set("other", str(number), number, tags=["t", f"u{number % 2}"])
            assert await service.invalidate_namespace("ns")
            assert await service.invalidate_tag("u1")
            assert redis.command("EXISTS", "ferrogate:{ns:1}") == b":1"
            for number in range(20):
                assert await other.get("ns", str(number)) is None
                assert await other.get("other", str(number)) == (None if number % 2 else number)
                # What is written meanwhile is not what was outdated.
                assert await service.set("new", str(number), number)
            for number in range(20):
                gone = ["ns", "other"] if number % 2 else ["ns"]
                for ns in gone:
                    name = f"ferrogate:{{{ns}:{number}}}"
                    await until(lambda: redis.command("EXISTS", name) == b":0")  # noqa: B023
                assert await other.get("new", str(number)) == number
            assert await other.get("other", "2") == 2

    asyncio.run(main())


def test_a_value_that_replaces_an_outdated_one_stays(redis: Server) -> None:
    async def main() -> None:
        async with two(redis) as (service, other):
            for number in range(200):
                assert await service.set("ns", "k", number)
                assert await service.invalidate_namespace("ns")
                _, stored = await asyncio.gather(
                    other.get("ns", "k"), service.set("ns", "k", f"new {number}")
                )
                assert stored
                # What it has still to remove goes before what it asks for next.
                assert await other.get("ns", "none") is None
                assert await service.get("ns", "k") == f"new {number}"

    asyncio.run(main())
