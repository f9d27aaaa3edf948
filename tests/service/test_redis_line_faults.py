"""A request that comes alone, and what happens to its connection meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time

import pytest
from child import promised, run, times
from lone_requests import direct, far, ready, stats
from redis_servers import Server, connected, needs_redis, server, until
from waiting import eventually, in_time

from ferrogate import CacheService

pytestmark = needs_redis


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
