"""A request that comes alone: the connection that whoever asks reads from."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

from lone_requests import direct, far, ready, stats
from redis_servers import Server, connected, needs_redis, server, until
from waiting import eventually, in_time

from ferrogate import CacheService

pytestmark = needs_redis

FOREIGN = "ferrogate:{ns:k}"


def test_one_after_the_other_goes_directly(redis: Server) -> None:
    async def main() -> None:
        async with far(redis) as service:
            await service.set("ns", "k", "value", tags=["t"])
            await ready(service)
            before = stats(service)
            for _ in range(200):
                assert await service.get("ns", "k") == "value"
                assert await service.exists("ns", "k")
                assert await service.get("ns", "nothing") is None
                assert not await service.exists("ns", "nothing")
            after = stats(service)
            assert after["direct_requests"] - before["direct_requests"] > 400
            assert after["tier_hits"] - before["tier_hits"] == 200
            assert after["errors"] == before["errors"]
            # What others change is seen at once, as ever.
            assert await service.set("ns", "k", "new")
            assert await service.get("ns", "k") == "new"
            assert await service.invalidate_tag("t")
            assert await service.invalidate_namespace("ns")
            assert await service.get("ns", "k") is None

    asyncio.run(main())


def test_many_at_once_go_together(redis: Server) -> None:
    async def main() -> None:
        async with far(redis) as service:
            for number in range(100):
                await service.set("ns", number, number)
            await ready(service)
            for _ in range(20):
                before = stats(service)
                got = await asyncio.gather(*(service.get("ns", n) for n in range(100)))
                assert got == list(range(100))
                after = stats(service)
                # The first of them finds nobody under way.
                assert after["direct_requests"] - before["direct_requests"] <= 20
            assert after["errors"] == 0

    asyncio.run(main())


def test_blocked_threads_read_themselves(redis: Server) -> None:
    with far(redis) as service:
        for number in range(8):
            assert service.set_sync("ns", number, number)
        eventually(lambda: service.get_sync("ns", 0) == 0 and direct(service) > 10)
        before = direct(service)
        for _ in range(200):
            assert service.get_sync("ns", 1) == 1
        assert direct(service) - before > 150
        wrong: list[object] = []

        def read(number: int) -> None:
            for _ in range(200):
                found = service.get_sync("ns", number)
                if found != number:
                    wrong.append(found)

        threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert stats(service)["errors"] == 0


def test_loops_and_threads_take_turns(redis: Server) -> None:
    with far(redis) as service:
        for number in range(6):
            assert service.set_sync("ns", number, number)
        wrong: list[object] = []

        async def awaits(number: int) -> None:
            for turn in range(300):
                found = await service.get("ns", number)
                if found != number:
                    wrong.append(found)
                if turn % 50 == 0:
                    await asyncio.sleep(0.002)

        def blocks(number: int) -> None:
            for turn in range(300):
                found = service.get_sync("ns", number)
                if found != number:
                    wrong.append(found)
                if turn % 50 == 0:
                    time.sleep(0.002)

        threads = [threading.Thread(target=lambda n=n: asyncio.run(awaits(n))) for n in range(3)]
        threads += [threading.Thread(target=blocks, args=(n,)) for n in range(3, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert direct(service) > 0
        assert stats(service)["errors"] == 0


def test_large_values_come_in_parts(redis: Server) -> None:
    async def main() -> None:
        async with far(redis, codec="bytes", max_value_bytes=64 << 20) as service:
            values = {n: os.urandom(n) for n in (0, 1, 16_383, 16_384, 1_000_000, 20_000_000)}
            for size, value in values.items():
                assert await service.set("ns", size, value)
            await ready(service)
            before = direct(service)
            for size, value in values.items():
                assert await service.get("ns", size) == value
            for size, value in values.items():
                assert await asyncio.to_thread(service.get_sync, "ns", size) == value
            # Now and then something else is under way.
            assert direct(service) - before >= len(values)
            assert stats(service)["errors"] == 0

    asyncio.run(main())


def test_a_busy_loop_still_gets_what_has_come(redis: Server) -> None:
    async def main() -> None:
        async with far(redis, timeout_seconds=0.25) as service:
            await until(lambda: service.set("ns", "k", "value"))
            await ready(service)
            before = direct(service)
            asked = asyncio.ensure_future(service.get("ns", "k"))
            await asyncio.sleep(0)
            # Nobody reads for longer than a request may take: the reply waits in the socket.
            time.sleep(0.6)  # noqa: ASYNC251
            assert await asked == "value"
            assert direct(service) - before == 1
            assert stats(service)["errors"] == 0

    in_time(lambda _: asyncio.run(main()))


def test_a_cancelled_or_abandoned_request_leaves_the_line_usable(redis: Server) -> None:
    with far(redis) as service:

        async def cancelled() -> None:
            await ready(service)
            for _ in range(50):
                asked = asyncio.ensure_future(service.get("ns", "k"))
                await asyncio.sleep(0)
                asked.cancel()
                assert await service.get("ns", "k") == "value"

        async def abandoned() -> None:
            await ready(service)
            asked = asyncio.ensure_future(service.get("ns", "k"))
            await asyncio.sleep(0)
            assert not asked.done()

        assert service.set_sync("ns", "k", "value")
        asyncio.run(cancelled())
        for _ in range(5):
            # `run` cancels what is left; a loop that is only closed does not even do that.
            loop = asyncio.new_event_loop()
            loop.run_until_complete(abandoned())
            loop.run_until_complete(asyncio.sleep(0))
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.close()
            assert service.get_sync("ns", "k") == "value"
        assert stats(service)["errors"] == 0


def test_a_user_a_database_and_a_bound_of_connections() -> None:
    with server("--requirepass", "secret") as redis:

        async def main() -> None:
            for most, line in ((2, False), (3, True), (10, True)):
                url = f"redis://:secret@127.0.0.1:{redis.port}/3"
                arguments: dict[str, Any] = {"max_connections": most, "timeout_seconds": 5}
                async with CacheService(url, near_bytes=1, **arguments) as service:
                    assert await service.set("ns", "k", most)
                    await connected(service)
                    for _ in range(200):
                        assert await service.get("ns", "k") == most
                        await asyncio.sleep(0)
                    if line:
                        await ready(service)
                    for n in range(3000):
                        await service.set("ns", n, n)
                    await asyncio.gather(*(service.get("ns", n) for n in range(3000)))
                    assert (direct(service) > 0) == line
                    # The one that listens is not counted among them.
                    assert stats(service)["connections"] + 1 <= most
                    assert await service.get("ns", "k") == most

        asyncio.run(main())


def test_what_answers_wrongly_is_asked_the_other_way() -> None:
    with server() as redis:

        async def main() -> None:
            async with far(redis) as service:
                await service.set("ns", "k", "value")
                await ready(service)
                redis.command("SET", FOREIGN, "a string where a hash is expected")
                before = stats(service)
                assert await service.get("ns", "k") is None
                assert stats(service)["errors"] == before["errors"]
                redis.command("DEL", FOREIGN)
                await service.set("ns", "k", "value")
                await ready(service)
                # An error instead of a value: the driver is told the same, and counts it.
                redis.command("ACL", "SETUSER", "default", "-hmget")
                assert await service.get("ns", "k") is None
                assert stats(service)["errors"] == before["errors"] + 1
                redis.command("ACL", "SETUSER", "default", "+hmget")
                await until(lambda: service.get("ns", "k"))

        asyncio.run(main())
