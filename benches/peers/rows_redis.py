"""The Redis rows: one server of our own, one client each, values of 100 bytes.

The near cache is off, so that every get asks the server. Ours reads, beside the value,
how long it still lives and the generations that it was written in.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import cache
from importlib import import_module
from typing import Any

from measure import Contender, Namespace, Row, Target

TASKS = 100
GETS = 10  # by each task, one after the other
KEYS = tuple(f"key {n}" for n in range(TASKS))
VALUE = b"x" * 100

Get = Callable[[str], Awaitable[Any]]

HOLDING: list[asyncio.Task[None]] = []


@cache
def port() -> int:
    """Starts the server that all contenders ask."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise RuntimeError("redis-server is not installed: `make system`")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = int(probe.getsockname()[1])
    folder = tempfile.mkdtemp(prefix="ferrogate-bench-")
    command = [binary, "--port", str(number), "--dir", folder, "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def end() -> None:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    for _ in range(1000):
        try:
            with socket.create_connection(("127.0.0.1", number)) as one:
                for key in KEYS:
                    one.sendall(b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n" % (len(key), key.encode()))
                    one.sendall(b"$%d\r\n%s\r\n" % (len(VALUE), VALUE))
                    assert one.recv(64) == b"+OK\r\n"
                return number
        except OSError:
            time.sleep(0.01)
    raise RuntimeError("redis-server does not answer")


def space(
    connect: Callable[[], Awaitable[Get]], close: Callable[[], object] | None = None
) -> Namespace:
    """What a contender's statements use; it connects within the loop, once."""
    known: list[Get] = []

    async def ready() -> Get:
        if not known:
            known.append(await connect())
        return known[0]

    async def worker(get: Get, key: str) -> None:
        for _ in range(GETS):
            assert len(await get(key)) == len(VALUE)

    async def hundred() -> None:
        get = await ready()
        await asyncio.gather(*(worker(get, key) for key in KEYS))

    async def series() -> None:
        get = await ready()
        for key in KEYS:
            assert len(await get(key)) == len(VALUE)

    found: Namespace = {"hundred": hundred, "series": series}
    if close is not None:
        found["close"] = close
    return found


def ours() -> Namespace:
    service = import_module("ferrogate").CacheService(
        f"redis://127.0.0.1:{port()}/0", codec="bytes", near_bytes=1
    )

    async def connect() -> Get:
        for key in KEYS:
            assert await service.set("bench", key, VALUE)
        ask = service.get

        def get(key: str) -> Awaitable[Any]:
            found: Awaitable[Any] = ask("bench", key)
            return found

        return get

    return space(connect, service.close_sync)


def redis_py() -> Namespace:
    async def connect() -> Get:
        get: Get = import_module("redis.asyncio").Redis(host="127.0.0.1", port=port()).get
        return get

    return space(connect)


def coredis_client() -> Namespace:
    async def connect() -> Get:
        ready: asyncio.Future[Get] = asyncio.get_running_loop().create_future()

        async def hold() -> None:
            # It belongs to a context, which has to end in the task in which it began.
            async with import_module("coredis").Redis(host="127.0.0.1", port=port()) as client:
                ready.set_result(client.get)
                await asyncio.Event().wait()

        # With the loop it is cancelled.
        HOLDING.append(asyncio.create_task(hold()))
        return await ready

    return space(connect)


def glide_client() -> Namespace:
    async def connect() -> Get:
        glide = import_module("glide")
        where = [glide.NodeAddress("127.0.0.1", port())]
        client = await glide.GlideClient.create(glide.GlideClientConfiguration(where))
        get: Get = client.get
        return get

    return space(connect)


def contenders(statement: str, base: str) -> list[Contender]:
    """All of them, the base first."""
    everybody = [
        Contender("valkey-glide", statement, glide_client, "valkey-glide"),
        Contender("ferrogate", statement, ours, "ferrogate", "near cache off"),
        Contender("redis-py + hiredis", statement, redis_py, "redis"),
        Contender("coredis", statement, coredis_client, "coredis"),
    ]
    return sorted(everybody, key=lambda one: one.name != base)


ROWS = [
    Row(
        "Redis get, 100 concurrent tasks",
        Target(at_most=1 / 1.5, says="≥ 1.5 x valkey-glide's throughput"),
        contenders("await hundred()", "valkey-glide"),
        (None,),
        calls=TASKS * GETS,
    ),
    Row(
        "Redis get, one after the other",
        Target(at_most=1.0, says="≤ redis-py"),
        contenders("await series()", "redis-py + hiredis"),
        (None,),
        calls=len(KEYS),
    ),
]
