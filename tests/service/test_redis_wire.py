"""What can befall a connection between a service and Redis."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from child import SEED, times
from redis_servers import Server, needs_redis, until

from ferrogate import CacheService

pytestmark = needs_redis


class Proxy:
    """Passes on what both sides say, and hangs up in the middle of it when told to."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.draw = random.Random(SEED)
        self.cutting = False
        self.cuts = 0

    async def pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, cuts: bool
    ) -> None:
        while said := await source.read(65_536):
            if cuts and self.cutting and self.draw.random() < 0.1:
                self.cuts += 1
                target.write(said[: self.draw.randrange(len(said))])
                return
            target.write(said)
            await target.drain()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        ways = [
            asyncio.ensure_future(self.pass_on(reader, back, cuts=False)),
            asyncio.ensure_future(self.pass_on(there, writer, cuts=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, back):
                end.close()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()


def test_a_reply_that_breaks_off_is_never_a_wrong_value(redis: Server) -> None:
    async def main() -> None:
        proxy = Proxy(redis.port)
        async with proxy.listening() as port:
            url = f"redis://127.0.0.1:{port}"
            async with CacheService(url, near_bytes=1, timeout_seconds=5) as service:
                for key in range(20):
                    assert await service.set("ns", key, f"value {key}" * 50)
                proxy.cutting = True

                async def some(key: int) -> None:
                    for turn in range(times(20, 500)):
                        found = await service.get("ns", key)
                        assert found in (None, f"value {key}" * 50)
                        await service.set("others", (key, turn), turn)
                        loaded = service.get_or_set(
                            "loads",
                            (key, turn),
                            lambda: asyncio.sleep(0, turn),  # noqa: B023
                        )
                        assert await loaded == turn

                await asyncio.gather(*(some(key) for key in range(20)))
                assert proxy.cuts
                proxy.cutting = False
                await until(service.health_check)

                async def all_there() -> bool:
                    found = [await service.get("ns", key) for key in range(20)]
                    return found == [f"value {key}" * 50 for key in range(20)]

                # A store that could not be read is left alone for up to a second.
                await until(all_there)
                assert service.get_stats()["unreadable"] == 0
            # Their other ends are gone: each way through the proxy ends by itself.
            await until(lambda: len(asyncio.all_tasks()) == 1)

    asyncio.run(main())
