"""The provider over HTTP, a process of its own: ``python -m ferrogate.cli.provider``.

A server on loopback that speaks as OpenAI (``POST /v1/chat/completions``) and as
Anthropic (``POST /v1/messages``) do, whole or streamed, under the same limits;
``GET /v1/models``, and ``GET /stats`` with its own count. It takes its settings
as one JSON object in ``--config``, prints ``{"port": N}`` once it listens, and
ends when its standard input closes: so it never outlives the process that
started it, however that one died.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from ferrogate.cli.admission import DIALECTS, Admission, Admitted, Refused
from ferrogate.cli.provider_config import ProviderConfig
from ferrogate.cli.provider_core import Answer, ProviderCore
from ferrogate.cli.wire import TENANT_HEADER

__all__ = ["application", "main"]

# Longer than any client waits: an injected timeout is ended by the client.
_FOREVER = 3600.0
_MODELS = {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}


class _Handlers:
    def __init__(self, core: ProviderCore) -> None:
        self._core = core
        self._admission = Admission(core)

    async def post(self, request: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        body = await request.read()
        tenant = request.headers.get(TENANT_HEADER)
        received = self._admission.receive(DIALECTS[request.path], body, arrived, tenant)
        if isinstance(received, Refused):
            return web.Response(
                status=received.status,
                body=received.body,
                headers=received.headers,
                content_type="application/json",
            )
        if received.answer.lost:
            await asyncio.sleep(_FOREVER)
        if received.chat.stream:
            return await self._stream(request, received)
        with self._slot(received.answer):
            await asyncio.sleep(received.answer.total)
        return web.Response(
            body=received.whole(), headers=received.headers, content_type="application/json"
        )

    async def _stream(self, request: web.Request, admitted: Admitted) -> web.StreamResponse:
        kind = {"content-type": "text/event-stream"}
        response = web.StreamResponse(headers=admitted.headers | kind)
        *chunks, last = admitted.events()
        answer = admitted.answer
        with self._slot(answer):
            await response.prepare(request)
            await asyncio.sleep(answer.ttft)
            await response.write(chunks[0])
            for chunk in chunks[1:]:
                await asyncio.sleep((answer.total - answer.ttft) / (len(chunks) - 1))
                await response.write(chunk)
        await response.write(last)
        await response.write_eof()
        return response

    @contextmanager
    def _slot(self, answer: Answer) -> Iterator[None]:
        """Ends before the answer's last bytes leave: whoever has read it finds its slot free."""
        delivered = False
        try:
            yield
            delivered = True
        finally:
            self._core.finish(answer, delivered=delivered)

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response(_MODELS)

    async def stats(self, _request: web.Request) -> web.Response:
        return web.json_response(self._core.stats())


def application(core: ProviderCore) -> web.Application:
    """The server's routes over ``core``."""
    handlers = _Handlers(core)
    app = web.Application(client_max_size=1 << 26)
    for path in DIALECTS:
        app.router.add_post(path, handlers.post)
    app.router.add_get("/v1/models", handlers.models)
    app.router.add_get("/stats", handlers.stats)
    return app


async def _serve(config: ProviderConfig, port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def watch() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(stop.set)

    runner = web.AppRunner(
        application(ProviderCore(config, time.monotonic)),
        access_log=None,
        handler_cancellation=True,  # a client that hangs up gives its slot back
        keepalive_timeout=_FOREVER,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    threading.Thread(target=watch, daemon=True).start()
    await stop.wait()
    await runner.cleanup()


def main(argv: list[str] | None = None) -> int:
    """Serves until standard input closes."""
    parser = argparse.ArgumentParser(prog="python -m ferrogate.cli.provider")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--config", type=json.loads, default={}, help="settings as a JSON object")
    options = parser.parse_args(argv)
    asyncio.run(_serve(ProviderConfig.from_dict(options.config), options.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
