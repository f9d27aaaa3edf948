"""A request that comes alone: the connection that whoever asks reads from."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from typing import Any, cast

import pytest
from child import promised, run, times
from redis_servers import Server, connected, needs_redis, server, until
from waiting import eventually, in_time

from ferrogate import CacheService

pytestmark = needs_redis

FOREIGN = "ferrogate:{ns:k}"


def far(redis: Server, **arguments: Any) -> CacheService:
    """A service that has to ask Redis for each value."""
    arguments.setdefault("timeout_seconds", 5)
    return CacheService(redis.url, near_bytes=1, **arguments)


def stats(service: CacheService) -> dict[str, Any]:
    return cast("dict[str, Any]", service.get_stats())


def direct(service: CacheService) -> int:
    return int(stats(service)["direct_requests"])


async def ready(service: CacheService) -> None:
    """Waits until the line is there and nothing else is under way."""
    await connected(service)

    async def alone() -> bool:
        before = direct(service)
        await service.get("ns", "nothing")
        return direct(service) > before

    await until(alone, 30)


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


def test_a_cut_line_loses_nothing(redis: Server) -> None:
    async def main() -> None:
        async with far(redis) as service:
            await service.set("ns", "k", "value")
            for _ in range(10):
                await ready(service)
                redis.command("CLIENT", "KILL", "TYPE", "normal")
                assert await service.get("ns", "k") == "value"
                assert await asyncio.to_thread(service.get_sync, "ns", "k") == "value"
            assert stats(service)["errors"] == 0

    asyncio.run(main())


def test_a_killed_server_costs_no_exception(redis: Server) -> None:
    async def main() -> None:
        async with far(redis, timeout_seconds=0.25) as service:
            await until(lambda: service.set("ns", "k", "value"))
            await ready(service)
            redis.kill()
            for _ in range(5):
                assert await service.get("ns", "k") is None
                assert service.get_sync("ns", "k") is None
            redis.start()
            await until(lambda: service.set("ns", "k", "again"))
            await ready(service)

            async def reads() -> bool:
                return await service.get("ns", "k") == "again"

            await until(reads)

    asyncio.run(main())


def test_a_paused_server_is_given_up(redis: Server) -> None:
    async def main() -> None:
        async with far(redis, timeout_seconds=0.25) as service:
            await until(lambda: service.set("ns", "k", "value"))
            await ready(service)
            before = direct(service)
            redis.stop()
            try:
                begin = time.monotonic()
                assert await service.get("ns", "k") is None
                took = time.monotonic() - begin
                assert direct(service) == before + 1
            finally:
                redis.go_on()
            assert 0.2 < took < promised(0.27, 0.6)
            await until(lambda: service.get("ns", "k"))
            await ready(service)
            before = direct(service)
            redis.stop()
            try:
                begin = time.monotonic()
                assert await asyncio.to_thread(service.get_sync, "ns", "k") is None
                took = time.monotonic() - begin
                assert direct(service) == before + 1
            finally:
                redis.go_on()
            assert 0.2 < took < promised(0.3, 0.6)
            await until(lambda: service.get("ns", "k"))

    in_time(lambda _: asyncio.run(main()))


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


class Forward:
    """One address for one server after the other."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.sockets = [self.listener]
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self.listener.accept()
                other = socket.create_connection(("127.0.0.1", self.target))
                self.sockets += [one, other]
                for ends in ((one, other), (other, one)):
                    self.threads.append(threading.Thread(target=self.pump, args=ends))
                    self.threads[-1].start()

    def close(self) -> None:
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        for one in self.sockets:
            one.close()

    @staticmethod
    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_nothing_is_read_from_a_server_that_is_no_longer_the_master() -> None:
    async def main(first: Server, second: Server, forward: Forward) -> None:
        url = f"redis://127.0.0.1:{forward.port}/0"
        async with (
            CacheService(url, near_bytes=1, timeout_seconds=5) as service,
            CacheService(url, timeout_seconds=5) as near,
        ):
            assert await service.set("ns", "k", "old")
            await ready(service)
            await connected(near)
            assert await near.get("ns", "k") == "old"
            second.command("REPLICAOF", "127.0.0.1", first.port)
            await until(lambda: b"link_status:up" in second.command("INFO", "replication"), 60)
            second.command("REPLICAOF", "NO", "ONE")
            forward.target = second.port
            # It stays, and its connections with it, but hears nothing of the new master.
            first.command("REPLICAOF", "127.0.0.1", "1")
            await until(lambda: service.set("ns", "k", "new"))
            for _ in range(50):
                assert await service.get("ns", "k") == "new"
            # Who only reads is told by nobody; who writes learns of it.
            await until(lambda: near.set("ns", "other", 1))
            await until(lambda: near.get_sync("ns", "k") == "new")
            await connected(near)
            assert await service.set("ns", "k", "newer")
            await until(lambda: near.get_sync("ns", "k") == "newer")

    with server() as first, server() as second:
        forward = Forward(first.port)
        with contextlib.closing(forward):
            asyncio.run(main(first, second, forward))


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


def test_it_is_not_inherited(redis: Server) -> None:
    done = run(
        f"""
        import asyncio, os
        from ferrogate import CacheService
        service = CacheService({redis.url!r}, near_bytes=1, timeout_seconds=5)
        service.set_sync("ns", "k", "value")
        while not service.get_stats()["direct_requests"]:
            assert service.get_sync("ns", "k") == "value"
        for _ in range(20):
            child = os.fork()
            if not child:
                for _ in range(50):
                    assert service.get_sync("ns", "k") == "value"
                os._exit(0)
            for _ in range(50):
                assert service.get_sync("ns", "k") == "value"
            assert os.waitpid(child, 0)[1] == 0
        async def main():
            asked = asyncio.ensure_future(service.get("ns", "k"))
            await asyncio.sleep(0)
            child = os.fork()
            if not child:
                os._exit(0)
            assert await asked == "value"
            assert os.waitpid(child, 0)[1] == 0
        def direct():
            return service.get_stats()["direct_requests"]
        while True:
            # The first after a fork finds no connection yet.
            before = direct()
            while direct() == before:
                assert service.get_sync("ns", "k") == "value"
            before = direct()
            asyncio.run(main())
            if direct() > before:
                break
        assert service.get_stats()["errors"] == 0
        print("done")
        """
    )
    assert done.stdout.split() == ["done"], done.stderr


@pytest.mark.parametrize("how", ["awaited", "blocked"])
def test_a_close_lets_a_request_finish(redis: Server, how: str) -> None:
    async def main() -> None:
        service = far(redis)
        assert await service.set("ns", "k", "value")
        await ready(service)
        before = direct(service)
        redis.stop()
        try:
            if how == "awaited":
                asked = asyncio.ensure_future(service.get("ns", "k"))
                await asyncio.sleep(0)
            else:
                blocked = asyncio.to_thread(service.get_sync, "ns", "k")
                asked = asyncio.ensure_future(blocked)
            await until(lambda: direct(service) > before)
            closed = asyncio.ensure_future(asyncio.to_thread(service.close_sync))
            # So long that the tasks have been told to end.
            await asyncio.sleep(0.1)
        finally:
            redis.go_on()
        assert await asked == "value"
        await closed

    asyncio.run(main())


@pytest.mark.hostile
def test_a_close_in_the_middle_leaves_nobody_waiting(redis: Server) -> None:
    done = run(
        f"""
        import asyncio, random, threading, time
        from ferrogate import CacheService

        CacheService({redis.url!r}).set_sync("ns", "k", "value")
        wrong = []
        for number in range({times(100, 5000)}):
            service = CacheService({redis.url!r}, near_bytes=1, timeout_seconds=5)
            while not service.get_stats()["direct_requests"]:
                service.get_sync("ns", "k")

            def blocked():
                try:
                    while True:
                        found = service.get_sync("ns", "k")
                        if found != "value":
                            wrong.append(found)
                except RuntimeError:
                    pass

            async def awaited():
                try:
                    while True:
                        found = await service.get("ns", "k")
                        if found != "value":
                            wrong.append(found)
                except RuntimeError:
                    pass

            threads = [threading.Thread(target=blocked) for _ in range(number % 3)]
            for _ in range(1 + number % 2):
                threads.append(threading.Thread(target=lambda: asyncio.run(awaited())))
            for thread in threads:
                thread.start()
            time.sleep(random.random() * 0.01)
            service.close_sync()
            for thread in threads:
                thread.join()
        print("done", wrong)
        """,
        timeout=60 + 0.2 * times(100, 5000),
    )
    assert done.stdout.split() == ["done", "[]"], str(done)


def test_a_signal_gets_through_to_a_blocked_thread(redis: Server) -> None:
    def judge(_: int) -> None:
        with far(redis, timeout_seconds=60) as service:
            assert service.set_sync("ns", "k", "value")
            eventually(lambda: service.get_sync("ns", "k") == "value" and direct(service) > 0)

            def on_alarm(*_: object) -> None:
                raise InterruptedError

            before = signal.signal(signal.SIGALRM, on_alarm)
            redis.stop()
            try:
                begin, ended = time.monotonic(), False
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.1)
                    service.get_sync("ns", "k")
                except InterruptedError:
                    ended = True
                assert ended
                assert time.monotonic() - begin < promised(0.3, 2)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
                redis.go_on()
            assert service.get_sync("ns", "k") == "value"

    in_time(judge)


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
