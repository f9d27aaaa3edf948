"""Real Redis servers as child processes, on free ports."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ferrogate import CacheService, CacheUnavailable

BINARY = shutil.which("redis-server")
#: What makes a program end with who has started it, also when that is killed. Not a
#: `preexec_fn`, which forks: services notice that, and make their connections anew.
SETPRIV = shutil.which("setpriv")
MORTAL = [SETPRIV, "--pdeathsig", "KILL", "--"] if SETPRIV else []

needs_redis = pytest.mark.skipif(
    BINARY is None and not os.environ.get("CI"), reason="redis-server: run `make system`"
)


def free_port() -> int:
    """A port that nobody has, also no other run of these tests, for as long as this process lives.

    Below those that the system gives to clients, and so are those of a Cluster's bus, 10,000
    above: a port from the system may be somebody else's before a server has it, who then
    answers instead.
    """
    # Another user's files could not be opened.
    folder = Path(tempfile.gettempdir()) / f"ferrogate-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        port = random.SystemRandom().randrange(10_000, 20_000)
        held = os.open(folder / str(port), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe, socket.socket() as bus:
                probe.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + 10_000))
        except OSError:
            os.close(held)
        else:
            return port


def command(port: int, *words: str | bytes | int) -> bytes:
    """The first line of the reply to a command (a bulk string's content), over a new socket."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
        parts = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        packed = b"*%d\r\n" % len(parts)
        one.sendall(packed + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        with one.makefile("rb") as reply:
            line = reply.readline().rstrip(b"\r\n")
            if line.startswith(b"$") and line != b"$-1":
                return reply.read(int(line[1:]))
            return line


class Server:
    """One `redis-server`, which can be killed, stopped and started again on its port."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.folder = folder
        self.options = options
        self.port = port or free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        assert BINARY, "redis-server is not installed"
        self.folder.mkdir(parents=True, exist_ok=True)
        log = (self.folder / f"{self.port}.log").open("ab")
        self.process = subprocess.Popen(
            [
                *MORTAL, BINARY, "--port", str(self.port), "--bind", "127.0.0.1",
                "--dir", str(self.folder), "--save", "", "--appendonly", "no", *self.options,
            ],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.command("PING") in (b"+PONG", b"-NOAUTH Authentication required."):
                    return
            assert self.process.poll() is None, self.log()
            time.sleep(0.01)
        raise AssertionError(f"redis-server does not answer: {self.log()}")

    def log(self) -> str:
        return (self.folder / f"{self.port}.log").read_text(errors="replace")[-2000:]

    def command(self, *words: str | bytes | int) -> bytes:
        """:func:`command` of this server."""
        return command(self.port, *words)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        assert self.process
        self.stopped = True
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        assert self.process
        self.stopped = False
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            if self.stopped:
                self.go_on()
            self.kill()


@contextlib.contextmanager
def server(*options: str) -> Iterator[Server]:
    """A server in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="ferrogate-redis-") as folder:
        one = Server(Path(folder), *options)
        try:
            yield one
        finally:
            one.close()


async def until(condition: Any, seconds: float = 15.0) -> float:
    """Waits for a condition, sync or async; how long it took."""
    begin = time.monotonic()
    while True:
        met = condition()
        if asyncio.iscoroutine(met):
            met = await met
        if met:
            return time.monotonic() - begin
        assert time.monotonic() - begin < seconds, "it did not come to pass"
        await asyncio.sleep(0.005)


async def connected(*services: CacheService) -> None:
    """Waits until services are answered, and hear of changes.

    What is asked for next has no connection to make, and the near cache is not emptied any more,
    as it is when its ear gets there.
    """
    for service in services:
        await until(service.health_check, 30)

        def hears() -> bool:
            return bool(cast("dict[str, Any]", service.get_stats())["listening"])  # noqa: B023

        await until(hears, 30)
        # By then it has also emptied what it was to empty first.
        await until(service.health_check, 30)
        await until(service.health_check, 30)


async def heard(writer: CacheService, reader: CacheService) -> None:
    """Waits until one has heard of all that the other has changed so far."""

    def reads(number: int) -> bool:
        with contextlib.suppress(CacheUnavailable):
            return reader.get_sync("heard", "k") == number
        return False

    # When it reads the second, it has heard of the first at least.
    for number in (1, 2):
        await until(lambda: writer.set("heard", "k", number))  # noqa: B023
        await until(lambda: reads(number))  # noqa: B023
