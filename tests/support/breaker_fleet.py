"""Processes with one breaker, and the provider that they call, which counts for itself."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis_servers import MORTAL

MEMBER = Path(__file__).with_name("breaker_member.py")


class Provider:
    """Answers one byte per connection, as long after as it is told to: ``1`` if it is well."""

    def __init__(self) -> None:
        self.well = True
        self.seconds = 0.0
        self.calls = 0
        self.at_once = 0
        self.most = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]

    def reset(self) -> None:
        """Counts from here on."""
        with self._lock:
            self.calls, self.most = 0, self.at_once

    def _listen(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(one,), daemon=True).start()

    def _serve(self, one: socket.socket) -> None:
        # A connection alone is no call yet: who asks has one byte to say.
        with one, contextlib.suppress(OSError):
            if not one.recv(1):
                return
            with self._lock:
                self.calls += 1
                self.at_once += 1
                self.most = max(self.most, self.at_once)
            try:
                one.settimeout(self.seconds or 0.000_001)
                # Whoever is killed meanwhile hangs up.
                with contextlib.suppress(TimeoutError, BlockingIOError):
                    one.recv(1)
            finally:
                # Before the answer: once that has come, the next call may begin.
                with self._lock:
                    self.at_once -= 1
            one.settimeout(5)
            one.sendall(b"1" if self.well else b"0")

    def __enter__(self) -> Self:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Member:
    """One process; ``do`` has it do something, ``ask`` is told what came of that."""

    def __init__(self, url: str, port: int, config: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [*MORTAL, sys.executable, MEMBER, url, str(port), json.dumps(config)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        # Nothing that it is asked may take longer than this.
        self._end = threading.Timer(120, self.process.kill)
        self._end.daemon = True
        self._end.start()
        assert self.answer() == "ready"

    def do(self, *words: str | float) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.poll()}"
        return json.loads(line)

    def ask(self, *words: str | float) -> Any:
        self.do(*words)
        return self.answer()

    def close(self) -> int:
        """Has it end by itself; its exit code."""
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        code = self.process.wait(60)
        self._end.cancel()
        self.process.stdout.close()
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Fleet:
    """Members that share a breaker."""

    def __init__(self, url: str, port: int) -> None:
        self.url, self.port = url, port
        self.members: list[Member] = []

    def start(self, count: int, **config: Any) -> list[Member]:
        """So many more; they have heard of the store."""
        new = [Member(self.url, self.port, config) for _ in range(count)]
        self.members += new
        return new

    def joined(self) -> None:
        """All are."""
        for one in self.members:
            assert one.ask("joined", 30), "nobody answers"

    def states(self) -> list[str]:
        return [one.ask("state") for one in self.members]

    def come_to(self, state: str, seconds: float = 30.0) -> float:
        """Waits until all are there; how long the last one took, from now on."""
        begun = time.clock_gettime(time.CLOCK_BOOTTIME)
        for one in self.members:
            one.do("until", state, seconds)
        seen: list[float] = [one.answer() for one in self.members]
        assert all(seen), (seen, self.states())
        return max(seen) - begun

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for one in self.members:
            one.kill()
            one.close()
