"""What Redis could not be told concerns what was there by then, and nothing that came after."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis_servers import Server, connected, needs_redis, until
from waiting import in_time

from ferrogate import CacheService

pytestmark = needs_redis

#: Seconds; a debt may be told so much later than its age was taken, and then seems younger.
APART = 0.5


class Cut:
    """A process that can be cut off from Redis, while others are not."""

    def __init__(self, redis: Server, name: str = "cut", timeout: float = 5.0) -> None:
        self.redis = redis
        self.name = name
        self.acl("on", ">s", "~*", "&*", "+@all")
        url = f"redis://{name}:s@127.0.0.1:{redis.port}/0"
        self.service = CacheService(url, timeout_seconds=timeout)

    def acl(self, *rules: str) -> None:
        assert self.redis.command("ACL", "SETUSER", self.name, *rules) == b"+OK"

    async def off(self) -> None:
        await connected(self.service)
        self.acl("off")
        self.redis.command("CLIENT", "KILL", "USER", self.name)
        await until(lambda: not self.service.get_stats()["listening"])

    async def back(self) -> None:
        self.acl("on")
        await self.settled()

    async def settled(self) -> None:
        await until(lambda: self.service.get_stats()["owed"] == 0, 30)


@asynccontextmanager
async def opened(
    redis: Server, timeout: float = 5.0
) -> AsyncIterator[tuple[Cut, CacheService, CacheService]]:
    """One that is cut off, one that writes meanwhile, one that reads what Redis has."""
    cut = Cut(redis, timeout=timeout)
    async with (
        cut.service,
        CacheService(redis.url, timeout_seconds=5) as other,
        CacheService(redis.url, timeout_seconds=5, near_bytes=1) as reader,
    ):
        await connected(cut.service, other, reader)
        yield cut, other, reader


def apart() -> None:
    noted = time.monotonic()
    while time.monotonic() < noted + APART:
        pass


WHERE: list[tuple[str, str, list[str] | None]] = [
    ("ns", "k", None), ("gone", "k", None), ("tagged", "k", ["t"]),
]  # fmt: skip


async def outdate(service: CacheService) -> None:
    assert await service.delete("ns", "k") is False
    assert await service.invalidate_namespace("gone") is False
    assert await service.invalidate_tag("t") is False
    assert service.get_stats()["owed"] == 3


async def write(service: CacheService, value: str, key: str = "k") -> None:
    for ns, _, tags in WHERE:
        assert await service.set(ns, key, value, tags=tags)


async def stored(reader: CacheService, key: str = "k") -> list[Any]:
    return [await reader.get(ns, key) for ns, _, _ in WHERE]


def test_what_others_have_written_since_stays(redis: Server) -> None:
    async def main() -> None:
        async with opened(redis) as (cut, other, reader):
            await write(other, "old")
            await cut.off()
            # Also what was written without this process knowing, but before.
            await write(other, "old", "more")
            await outdate(cut.service)
            apart()
            await write(other, "new")
            await cut.back()
            assert await stored(reader) == ["new"] * 3
            assert await stored(reader, "more") == ["old", None, None]
            await until(lambda: other.get_sync("gone", "more") is None)
            # And it goes on so, also for who sees the generations for the first time.
            await write(other, "newer", "more")
            async with CacheService(redis.url, timeout_seconds=5) as late:
                assert await stored(late, "more") == ["newer"] * 3
                assert await late.invalidate_namespace("gone")
                assert await late.invalidate_tag("t")
            assert await stored(reader) == ["new", None, None]

    in_time(lambda _: empty(redis, asyncio.run(main())))


@pytest.mark.parametrize("what", ["key", "namespace", "tag"])
def test_a_full_redis_is_told_as_well(redis: Server, what: str) -> None:
    async def main() -> None:
        async with opened(redis) as (cut, other, reader):
            await write(other, "old")
            await cut.off()
            service = cut.service
            match what:
                case "key":
                    assert not await service.delete("ns", "k")
                case "namespace":
                    assert not await service.invalidate_namespace("gone")
                case "tag":
                    assert not await service.invalidate_tag("t")
            redis.command("CONFIG", "SET", "maxmemory", "1")
            await cut.back()
            left = await stored(reader)
            assert left == [None if what == it else "old" for it in ("key", "namespace", "tag")]

    asyncio.run(main())


def empty(redis: Server, _: None) -> None:
    redis.command("FLUSHALL")


def test_what_others_had_written_by_then_goes(redis: Server) -> None:
    async def main() -> None:
        async with opened(redis) as (cut, other, reader):
            await cut.off()
            for _ in range(5):
                # Written in the moment before: no rounding may make it newer.
                await write(other, "old")
                await outdate(cut.service)
                await cut.back()
                assert await stored(reader) == [None] * 3
                await cut.off()

    asyncio.run(main())


def test_what_was_loaded_from_before_goes_though_it_is_stored_later(redis: Server) -> None:
    async def main() -> None:
        async with opened(redis) as (cut, other, reader):
            loading, go_on = asyncio.Semaphore(0), asyncio.Event()

            async def load() -> str:
                loading.release()
                await go_on.wait()
                return "old"

            loads = [
                asyncio.ensure_future(other.get_or_set(ns, "k", load, tags=tags))
                for ns, _, tags in WHERE
            ]
            for _ in loads:
                await loading.acquire()
            await cut.off()
            await outdate(cut.service)
            apart()
            go_on.set()
            assert await asyncio.gather(*loads) == ["old"] * 3
            await cut.back()
            assert await stored(reader) == [None] * 3
            await until(lambda: other.get_sync("ns", "k") is None)

    asyncio.run(main())


@pytest.mark.parametrize("what", ["key", "namespace", "tag"])
def test_a_write_that_was_carried_out_late_goes(redis: Server, what: str) -> None:
    """Redis takes what it had received while it hung, also what the writer took for failed."""

    async def main() -> None:
        async with opened(redis, 0.25) as (cut, _, reader):
            service = cut.service
            redis.stop()
            assert await service.set("ns", "k", "late", tags=["t"]) is False
            if what == "key":
                assert await service.delete("ns", "k") is False
            elif what == "namespace":
                assert await service.invalidate_namespace("ns") is False
            else:
                assert await service.invalidate_tag("t") is False
            redis.go_on()
            await cut.settled()
            await connected(reader)
            assert await reader.get("ns", "k") is None

    asyncio.run(main())


def test_what_the_process_itself_writes_afterwards_stays(redis: Server) -> None:
    async def main() -> None:
        async with opened(redis, 0.25) as (cut, other, reader):
            service = cut.service
            for number in range(5):
                await write(other, f"old {number}")
                redis.stop()
                await outdate(service)
                redis.go_on()
                for ns, key, tags in WHERE:
                    await until(lambda: service.set(ns, key, number, tags=tags))  # noqa: B023
                await cut.settled()
                await connected(reader)
                assert await stored(reader) == [number] * 3
                await connected(service, other)

    in_time(lambda _: empty(redis, asyncio.run(main())))


def test_a_value_from_the_future_is_taken_for_old(redis: Server) -> None:
    """Its server had another clock than the one that has taken over."""

    async def main() -> None:
        async with opened(redis) as (cut, other, reader):
            await write(other, "old")
            born, rest = redis.command("HGET", "ferrogate:{ns:k}", "g").split(b"@", 1)
            ahead = str(int(born) + 3_600_000_000).encode()
            redis.command("HSET", "ferrogate:{ns:k}", "g", ahead + b"@" + rest)
            assert await reader.get("ns", "k") == "old"
            await cut.off()
            await outdate(cut.service)
            await cut.back()
            assert await reader.get("ns", "k") is None

    asyncio.run(main())


def test_an_invalidation_that_is_owed_twice_holds_for_both(redis: Server) -> None:
    async def main() -> None:
        async with opened(redis) as (cut, other, reader):
            second = Cut(redis, "second")
            async with second.service:
                await connected(second.service)
                await write(other, "first")
                await cut.off()
                await second.off()
                assert await cut.service.invalidate_namespace("gone") is False
                apart()
                await write(other, "between", "l")
                assert await second.service.invalidate_namespace("gone") is False
                apart()
                await write(other, "last", "m")
                # The later one first: the earlier one changes nothing then.
                for one in (second, cut):
                    await one.back()
                    found = [await reader.get("gone", key) for key in "klm"]
                    assert found == [None, None, "last"]

    in_time(lambda _: empty(redis, asyncio.run(main())))


def said(caplog: pytest.LogCaptureFixture, sentence: str) -> int:
    return sum(sentence in one.getMessage() for one in caplog.records)


def test_who_may_not_publish_writes_all_the_same(
    redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with opened(redis) as (cut, other, reader):
            cut.acl("resetchannels")
            redis.command("CLIENT", "KILL", "USER", cut.name)
            service = cut.service
            await until(lambda: not service.get_stats()["listening"])
            await until(service.health_check)
            for number in range(3):
                assert await service.set("ns", "k", number, tags=["t"])
                assert await reader.get("ns", "k") == number
            assert await service.get_or_set("ns", "l", lambda: asyncio.sleep(0, "loaded"))
            assert await reader.get("ns", "l") == "loaded"
            assert await service.delete("ns", "l")
            assert await service.invalidate_namespace("gone")
            assert await service.invalidate_tag("t")
            async with CacheService(redis.url, timeout_seconds=5) as late:
                assert await late.get("ns", "k") is None
                assert await late.get("ns", "l") is None
            # Nor is what others write deleted again and again.
            assert service.get_stats()["owed"] == 0
            assert await other.set("ns", "k", "other")
            cut.acl("off")
            redis.command("CLIENT", "KILL", "USER", cut.name)
            assert await service.delete("ns", "none") is False
            cut.acl("on")
            await cut.settled()
            assert await reader.get("ns", "k") == "other"
        assert said(caplog, "other processes are not told of changes") == 1

    asyncio.run(main())


def test_what_is_refused_to_the_user_for_good_is_given_up(
    redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with opened(redis) as (cut, _, reader):
            await write(cut.service, "kept")
            cut.acl("resetkeys", "%R~*")
            await outdate(cut.service)
            assert await cut.service.get("ns", "k") is None
            await cut.settled()
            assert await stored(reader) == ["kept"] * 3
            assert await cut.service.delete("ns", "k") is False
            await cut.settled()
        assert said(caplog, "the store refuses to forget what was changed") == 1
        assert "NOPERM" in caplog.text

    asyncio.run(main())


def test_what_is_refused_for_a_moment_is_not_given_up(redis: Server) -> None:
    async def main() -> None:
        async with opened(redis) as (cut, _, reader):
            await write(cut.service, "old")
            cut.acl("resetkeys", "%R~*")
            await outdate(cut.service)
            await until(lambda: cut.service.get_stats()["owed"] == 3)
            cut.acl("~*")
            await cut.settled()
            assert await stored(reader) == [None] * 3

    asyncio.run(main())
