"""`CacheService("redis://…")` against real servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from typing import Any, cast

import pytest
from child import promised
from redis_servers import Server, connected, heard, needs_redis, server, until
from waiting import in_time

from ferrogate import CacheClient, CacheService, CacheUnavailable

pytestmark = needs_redis


def test_values_are_shared_and_readable_by_others(redis: Server) -> None:
    async def main() -> None:
        async with (
            CacheService(redis.url, timeout_seconds=5) as a,
            CacheService(redis.url, timeout_seconds=5) as b,
        ):
            assert await a.set("ns", "k", {"x": [1, None]}, ttl=60)
            assert await b.get("ns", "k") == {"x": [1, None]}
            assert json.loads(redis.command("HGET", "ferrogate:{ns:k}", "v")) == {"x": [1, None]}
            assert 0 < int(redis.command("PTTL", "ferrogate:{ns:k}")[1:]) <= 60_000
            assert await b.exists("ns", "k")
            assert not await b.exists("ns", "other")
            assert await b.get("ns", "other", "default") == "default"
            assert await b.delete("ns", "k")
            assert not await b.delete("ns", "k")
            assert await a.health_check()
            stats = b.get_stats()
            assert (stats["tier_hits"], stats["misses"], stats["errors"]) == (1, 1, 0)

    asyncio.run(main())


def test_a_value_lives_as_long_as_its_ttl_also_in_other_processes(redis: Server) -> None:
    async def main() -> None:
        async with (
            CacheService(redis.url, timeout_seconds=5) as a,
            CacheService(redis.url, timeout_seconds=5) as b,
        ):
            await connected(a, b)
            ttl = 0.3
            for attempt in range(4):
                # A machine that is busy for as long as it lives gets a longer one.
                begin, ttl = time.monotonic(), 0.3 * 3**attempt
                await a.set("ns", "short", 1, ttl=ttl)
                found = await b.get("ns", "short")
                if time.monotonic() - begin < ttl * 0.9:
                    break
            assert found == 1
            # The server's clock and ours: of the near cache's it must not live longer.
            await until(lambda: b.get_sync("ns", "short") is None, ttl + 2)
            assert time.monotonic() - begin > ttl * 0.9
            await a.set("ns", "long", 2)
            assert await b.get("ns", "long") == 2
            assert redis.command("PTTL", "ferrogate:{ns:long}") == b":-1"
            # Overwritten with a TTL, then without.
            for ttl in (math.inf, 1e10):
                await a.set("ns", "long", 3, ttl=ttl)
                assert redis.command("PTTL", "ferrogate:{ns:long}") == b":-1"
            await a.set("ns", "long", 3, ttl=50)
            assert int(redis.command("PTTL", "ferrogate:{ns:long}")[1:]) > 0
            await a.set("ns", "long", 4)
            assert redis.command("PTTL", "ferrogate:{ns:long}") == b":-1"

    asyncio.run(main())


def test_names_of_any_kind_stay_apart(redis: Server) -> None:
    names = ["a", "a:b", "{a}", "}", "%3A", "", "ü", "a}:lease", "ns:x"]

    async def main() -> None:
        async with (
            CacheService(redis.url, timeout_seconds=5) as a,
            CacheService(redis.url, timeout_seconds=5, near_bytes=1) as b,
        ):
            places = [(ns, key) for ns in names for key in names]
            for number, (ns, key) in enumerate(places):
                assert await a.set(ns, key, number, tags=[ns, key])
            for number, (ns, key) in enumerate(places):
                assert await b.get(ns, key) == number
            assert await a.invalidate_namespace("a")
            assert await a.invalidate_tag("}")
            for number, (ns, key) in enumerate(places):
                gone = ns == "a" or "}" in (ns, key)
                assert await b.get(ns, key) == (None if gone else number)

    asyncio.run(main())


def calls(redis: Server) -> int:
    """How many scripts were run."""
    stats = redis.command("INFO", "commandstats")
    return int(stats.split(b"cmdstat_evalsha:calls=")[1].split(b",")[0])


def test_invalidation_is_one_command_and_reaches_only_its_own(redis: Server) -> None:
    async def main() -> None:
        async with (
            CacheService(redis.url, timeout_seconds=5) as a,
            CacheService(redis.url, timeout_seconds=5) as b,
        ):
            for number in range(300):
                await a.set("many", number, number, tags=["odd" if number % 2 else "even"])
            await a.set("other", 1, 1, tags=["odd"])
            assert [await b.get("many", n) for n in range(300)] == list(range(300))
            before = calls(redis)
            assert await a.invalidate_tag("odd")
            after = calls(redis)
            assert after - before == 1
            assert await a.get("other", 1) is None
            await until(lambda: b.get_sync("many", 1) is None)
            assert [await b.get("many", n) for n in range(0, 300, 2)] == list(range(0, 300, 2))
            assert await a.invalidate_namespace("many")
            await until(lambda: b.get_sync("many", 0) is None)
            assert all([await b.get("many", n) is None for n in range(300)])
            # What is written after it is good.
            await a.set("many", 1, "new", tags=["odd"])
            assert await b.get("many", 1) == "new"

    asyncio.run(main())


def test_what_is_loaded_is_not_stored_if_it_was_invalidated_meanwhile(redis: Server) -> None:
    async def main() -> None:
        async with (
            CacheService(redis.url, timeout_seconds=5) as a,
            CacheService(redis.url, timeout_seconds=5) as b,
        ):
            invalidations = [
                lambda: b.invalidate_namespace("ns"),
                lambda: b.invalidate_tag("t"),
                lambda: b.delete("ns", "k"),
                lambda: b.set("ns", "k", "newer"),
            ]
            for invalidate in invalidations:

                async def load() -> str:
                    assert await invalidate()  # noqa: B023
                    return "loaded"

                await b.delete("ns", "k")
                if invalidate is invalidations[2]:

                    async def load() -> str:
                        # There is nothing to delete, and yet what is loaded is older.
                        assert not await b.delete("ns", "k")
                        return "loaded"

                assert await a.get_or_set("ns", "k", load, tags=["t"]) == "loaded"
                kept = "newer" if invalidate is invalidations[3] else None
                assert await b.get("ns", "k") == kept
                await until(lambda: a.get_sync("ns", "k") == kept)  # noqa: B023
                raw = redis.command("HGET", "ferrogate:{ns:k}", "v")
                assert raw != b'"loaded"'

    asyncio.run(main())


def test_a_foreign_value_is_a_miss(redis: Server) -> None:
    async def main() -> None:
        async with CacheService(redis.url, timeout_seconds=5) as a:
            redis.command("SET", "ferrogate:{ns:string}", "text")
            redis.command("HSET", "ferrogate:{ns:other}", "v", "1", "g", "nonsense")
            redis.command("HSET", "ferrogate:{ns:none}", "v", "1")
            for key in ("string", "other", "none"):
                assert await a.get("ns", key) is None
                assert not await a.exists("ns", key)
                assert await a.set("ns", key, key)
                assert redis.command("HGET", f"ferrogate:{{ns:{key}}}", "v") == f'"{key}"'.encode()
            assert a.get_stats()["errors"] == 0
            await a.set("ns", "k", "v")
            redis.command("HSET", "ferrogate:{ns:k}", "v", b"\xf5p\0garbage")
            async with CacheService(redis.url, timeout_seconds=5) as b:
                assert await b.get("ns", "k") is None
                assert b.get_stats()["unreadable"] == 1

    asyncio.run(main())


def test_one_load_for_all_services(redis: Server) -> None:
    loads = 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.2)
        return loads

    async def main() -> None:
        services = [CacheService(redis.url, timeout_seconds=5) for _ in range(4)]
        results = await asyncio.gather(
            *(one.get_or_set("ns", "k", load) for one in services for _ in range(25))
        )
        assert (set(results), loads) == ({1}, 1)

        async def fail() -> int:
            raise LookupError("no")

        with pytest.raises(LookupError):
            await services[0].get_or_set("ns", "failing", fail)
        # Given back, and not waited for.
        await until(lambda: redis.command("EXISTS", "ferrogate:{ns:failing}:lease") == b":0")
        assert await services[1].get_or_set("ns", "failing", load) == 2
        for one in services:
            await one.close()

    asyncio.run(main())


def test_a_killed_server_is_a_miss_and_then_it_is_back(
    redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with caplog.at_level(logging.WARNING, "ferrogate"):
            async with CacheService(redis.url) as a, CacheService(redis.url, strict=True) as b:
                await connected(a, b)
                await until(lambda: a.set("ns", "k", "kept"))

                async def read() -> bool:
                    with contextlib.suppress(CacheUnavailable):
                        return await b.get("ns", "k") == "kept"
                    return False

                # Else it might hear of it only now, and drop what it has read.
                await heard(a, b)
                await until(read)
                # On a busy machine the first ones may have been late.
                caplog.clear()
                redis.kill()
                for _ in range(20):
                    assert await a.get("ns", "k") == await b.get("ns", "k") == "kept"
                    assert await a.get("ns", "other") is None
                assert not await a.set("ns", "new", 1)
                assert not await a.delete("ns", "other")
                assert not await a.health_check()
                assert await a.get_or_set("ns", "loaded", lambda: asyncio.sleep(0, 7)) == 7
                with pytest.raises(CacheUnavailable):
                    await b.get("ns", "other")
                assert a.get_stats()["errors"] >= 3
                assert not a.get_stats()["available"]
                redis.start()
                # 2 s are promised, a busy machine gets more.
                await until(a.health_check, promised(3, 15))
                await until(lambda: a.set("ns", "k", "again"))

                async def readable() -> bool:
                    await a.get("ns", "other")
                    return a.get_stats()["available"]

                await until(readable)
        said = [r.message for r in caplog.records if "cache service redis" in r.message]
        # Once for each service, for reading and for writing.
        assert 1 <= sum("cannot be" in one for one in said) <= 4, said
        assert 1 <= sum("again" in one for one in said) <= 4, said

    asyncio.run(main())


def test_a_paused_server_is_given_up_in_time_and_nothing_old_comes_back(redis: Server) -> None:
    async def main() -> None:
        async with CacheService(redis.url) as a, CacheService(redis.url) as b:
            await connected(a, b)
            for key in ("replaced", "deleted", "outdated", "kept"):
                ns = "ns" if key != "outdated" else "gone"
                await until(lambda: a.set(ns, key, "old", tags=[key]))  # noqa: B023
            redis.stop()
            begin = time.monotonic()
            await asyncio.gather(*(a.get("ns", f"missing {n}") for n in range(200)))
            assert time.monotonic() - begin < 2
            # Those of which the first were late already when they were asked are not sent.
            stats = cast("dict[str, Any]", a.get_stats())
            assert stats["errors"] + stats["skipped"] >= 200
            assert stats["errors"] >= 3
            begin = time.monotonic()
            assert not await a.set("ns", "replaced", "new")
            assert await a.get("ns", "replaced") == "new"
            assert not await a.delete("ns", "deleted")
            assert not await a.invalidate_namespace("gone")
            assert time.monotonic() - begin < 4
            assert await a.get("ns", "kept") == "old"
            redis.go_on()
            await until(a.health_check, promised(3, 15))
            await until(lambda: a.get_stats()["owed"] == 0)
            await connected(a, b)
            for service in (a, b):
                assert await service.get("ns", "replaced") in (None, "new")
                assert await service.get("ns", "deleted") is None
                assert await service.get("gone", "outdated") is None

    asyncio.run(main())


def test_a_full_server_refuses_writes_and_goes_on_reading(
    redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        caplog.set_level(logging.WARNING, "ferrogate")
        async with CacheService(redis.url, timeout_seconds=5, near_bytes=1) as a:
            assert await a.set("ns", "k", "here", tags=["t"])
            assert await a.set("ns", "old", "old")
            redis.command("CONFIG", "SET", "maxmemory", "1")
            for number in range(10):
                assert not await a.set("ns", f"{number}", "x")
            assert not await a.set("ns", "old", "new")
            assert await a.get("ns", "k") == "here"
            assert await a.get("ns", "old") is None
            assert not a.get_stats()["available"]
            assert caplog.text.count("cannot be written to") == 1
            assert await a.invalidate_tag("t")
            assert await a.get("ns", "k") is None
            assert not await a.health_check()
            redis.command("CONFIG", "SET", "maxmemory", "0")
            await until(lambda: a.set("ns", "k", "again"))
            assert await a.get("ns", "k") == "again"
            await until(lambda: a.get_stats()["available"])

    asyncio.run(main())


def test_forgotten_scripts_and_killed_connections_are_no_errors(redis: Server) -> None:
    async def main() -> None:
        async with CacheService(redis.url, timeout_seconds=5, near_bytes=1) as a:
            assert await a.set("ns", "k", 1)
            redis.command("SCRIPT", "FLUSH")
            assert await a.set("ns", "k", 2)
            redis.command("CLIENT", "KILL", "TYPE", "normal")
            await asyncio.sleep(0.05)
            assert await a.get("ns", "k") == 2
            assert a.get_stats()["errors"] == 0

    asyncio.run(main())


def clients(redis: Server) -> int:
    """How many connections it has, the one that asks included."""
    return len(redis.command("CLIENT", "LIST").splitlines())


def test_a_closed_service_says_so(redis: Server) -> None:
    async def main() -> None:
        service = CacheService(redis.url, timeout_seconds=5)
        await connected(service)
        # The one that asks is one of them.
        assert clients(redis) >= 3
        await service.close()
        with pytest.raises(RuntimeError, match="closed"):
            await service.get("ns", "k")
        assert not await service.health_check()
        await until(lambda: clients(redis) == 1)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "arguments", "error"),
    [
        ("redis://host:port/0", {}, "host:port"),
        ("redis://localhost/zero", {}, "database"),
        ("redis://localhost/0?db=1", {}, "options as arguments"),
        ("redis+cluster://localhost/1", {}, "database 0"),
        ("redis+sentinel://localhost", {}, "master's name"),
        ("redis://localhost", {"max_connections": 1}, "max_connections"),
        ("redis://localhost", {"timeout_seconds": 0}, "timeout_seconds"),
        ("redis://localhost", {"unheard_of": 0}, "unheard_of"),
        ("valkyrie://:secret@localhost", {}, "redis://"),
    ],
)
def test_bad_arguments(url: str, arguments: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error) as caught:
        CacheService(url, **arguments)
    assert "secret" not in str(caught.value)


def test_a_password_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(port: int) -> None:
        monkeypatch.setenv("REDIS_URL", f"redis://:s%C3%A9cret@127.0.0.1:{port}/3")
        monkeypatch.setenv("REDIS_MAX_CONNECTIONS", "2")
        client = CacheClient()
        await until(client.initialize, 30)
        await until(lambda: client.set("k", "v", 60))

        async def read() -> bool:
            return await client.get("k") == "v"

        await until(read)
        assert "écret" not in repr(client)
        await client.close()
        wrong = CacheClient(f"redis://:wrong@127.0.0.1:{port}/3")
        assert not await wrong.initialize()
        assert await wrong.get("k") is None
        await wrong.close()
        monkeypatch.setenv("REDIS_MAX_CONNECTIONS", "many")
        with pytest.raises(ValueError, match="REDIS_MAX_CONNECTIONS"):
            CacheClient()

    with server("--requirepass", "sécret") as one:
        asyncio.run(main(one.port))


def test_what_was_near_is_read_at_once_when_redis_is_back(redis: Server) -> None:
    async def main() -> None:
        async with CacheService(redis.url, timeout_seconds=0.25) as service:
            await connected(service)
            for number in range(20):
                await until(lambda n=number: service.set("ns", n, n))
            redis.stop()
            try:
                # Until reading is given up for a while, and the channel, too.
                await until(lambda: not service.get_stats()["listening"])
                for _ in range(6):
                    assert await service.get("ns", "other") is None
                assert not service.get_stats()["available"]
                flushes = service.get_stats()["near_flushes"]
            finally:
                redis.go_on()
            while service.get_stats()["near_flushes"] == flushes:
                assert await service.get("ns", 7) == 7
                await asyncio.sleep(0)
            # Forgotten here, as others may have changed it, and read again.
            assert await service.get("ns", 7) == 7

    in_time(lambda _: asyncio.run(main()))
