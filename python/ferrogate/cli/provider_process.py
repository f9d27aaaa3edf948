"""Starts the provider's process, asks for its count, notices its end, leaves none behind."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from ferrogate.cli._errors import FAILED, CliError
from ferrogate.cli.provider_config import ProviderConfig

__all__ = ["ProviderProcess"]

_START_SECONDS = 20.0
_STOP_SECONDS = 3.0


class ProviderProcess:
    """``async with ProviderProcess(config) as provider: provider.origin``."""

    def __init__(self, config: ProviderConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._follower: threading.Thread | None = None
        self.port = 0
        self.pid = 0

    @property
    def origin(self) -> str:
        """``http://127.0.0.1:port``."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        command = [sys.executable, "-m", "ferrogate.cli.provider"]
        command += ["--config", json.dumps(self._config.to_dict())]
        # A session of its own: Ctrl-C in the terminal must reach the replay
        # only, which still has to ask the provider for its count.
        self._process = subprocess.Popen(  # noqa: ASYNC220 (a few ms, before any request)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self.pid = self._process.pid
        loop = asyncio.get_running_loop()
        first_line: asyncio.Future[bytes] = loop.create_future()
        self._end: asyncio.Future[int] = loop.create_future()
        # A thread and not the loop's child watcher: that one differs from one
        # Python and system to the next. It ends when the process ends.
        self._follower = threading.Thread(
            target=_follow, args=(self._process, loop, first_line, self._end), daemon=True
        )
        self._follower.start()
        try:
            line = await asyncio.wait_for(first_line, _START_SECONDS)
            self.port = int(json.loads(line)["port"])
        except (TimeoutError, ValueError, KeyError, TypeError) as error:
            await self._stop()
            raise CliError("the provider's process did not start", FAILED) from error
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop()

    async def gone(self) -> str:
        """Waits until the process has ended, and says how."""
        code = await asyncio.shield(self._end)
        how = f"exit code {code}"
        if code < 0:
            with suppress(ValueError):
                how = f"killed by {signal.Signals(-code).name}"
        return f"the provider's process ended before the replay did ({how})"

    async def stats(self) -> dict[str, Any]:
        """The provider's own count.

        Raises:
            CliError: it does not answer.
        """

        def ask() -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                connection.request("GET", "/stats")
                return json.load(connection.getresponse())
            finally:
                connection.close()

        try:
            stats: dict[str, Any] = await asyncio.to_thread(ask)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise CliError(f"the provider does not give its count: {error}", FAILED) from error
        return stats

    async def _stop(self) -> None:
        process, self._process = self._process, None
        follower = self._follower
        if process is None or follower is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            await asyncio.to_thread(follower.join, _STOP_SECONDS)
        finally:
            if follower.is_alive():
                process.kill()
                follower.join()
            process.stdout.close()


def _follow(
    process: subprocess.Popen[bytes],
    loop: asyncio.AbstractEventLoop,
    first_line: asyncio.Future[bytes],
    end: asyncio.Future[int],
) -> None:
    """Reads what the process prints until it ends; runs in a thread."""

    def tell(future: asyncio.Future[Any], result: object) -> None:
        if not future.done():
            future.set_result(result)

    assert process.stdout is not None
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(tell, first_line, process.stdout.readline())
    process.stdout.read()
    code = process.wait()
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(tell, end, code)
