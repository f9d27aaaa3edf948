"""Starts the provider's process, asks for its count, and never leaves it behind."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from ferrogate.cli._errors import CliError
from ferrogate.cli.provider_core import ProviderConfig

__all__ = ["ProviderProcess"]

_START_SECONDS = 20.0
_STOP_SECONDS = 3.0


class ProviderProcess:
    """``async with ProviderProcess(config) as provider: provider.base_url``."""

    def __init__(self, config: ProviderConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
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
        try:
            line = await asyncio.wait_for(asyncio.to_thread(self._first_line), _START_SECONDS)
            self.port = int(json.loads(line)["port"])
        except (TimeoutError, ValueError, KeyError, TypeError) as error:
            await self._stop()
            raise CliError("the provider's process did not start") from error
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

    async def stats(self) -> dict[str, Any]:
        """The provider's own count."""

        def ask() -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                connection.request("GET", "/stats")
                return json.load(connection.getresponse())
            finally:
                connection.close()

        stats: dict[str, Any] = await asyncio.to_thread(ask)
        return stats

    def _first_line(self) -> bytes:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        return process.stdout.readline()

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            await asyncio.to_thread(process.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        except asyncio.CancelledError:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close()
