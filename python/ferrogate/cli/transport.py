"""The provider without a wire: the real SDK's HTTP client ends in the provider's logic.

For virtual time. The SDK builds and parses the same requests and answers as
over HTTP; only the socket is missing. In its place each request spends a
seeded time on the way (and none on the way back), so that arrivals jitter as
they do on a network: 2 ms and an exponential 8 ms more, at most 200 ms.
"""

from __future__ import annotations

import asyncio
import random

import httpx2

from ferrogate.cli.admission import DIALECTS, Admission, Refused
from ferrogate.cli.provider_core import ProviderCore
from ferrogate.cli.wire import TENANT_HEADER

__all__ = ["InProcessProvider"]

_LEAST_TRANSIT = 0.002
_MEAN_EXTRA_TRANSIT = 0.008
_MOST_TRANSIT = 0.2
_JSON = {"content-type": "application/json"}
# What the calendar says when the virtual clock stands at 0: 2025-01-01.
_EPOCH = 1_735_689_600.0


class InProcessProvider(httpx2.AsyncBaseTransport):
    """An HTTP transport that answers from a `ProviderCore` on the running loop's time."""

    def __init__(self, core: ProviderCore, seed: int) -> None:
        self._core = core
        self._transit = random.Random(f"transit:{seed}")
        self._admission = Admission(core, _unix)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answers one request; models are listed at once, everything else is asked for."""
        if request.url.path.endswith("/models"):
            return httpx2.Response(200, headers=_JSON, content=b'{"object":"list","data":[]}')
        extra = self._transit.expovariate(1 / _MEAN_EXTRA_TRANSIT)
        await asyncio.sleep(min(_LEAST_TRANSIT + extra, _MOST_TRANSIT))
        arrived = asyncio.get_running_loop().time()
        dialect = DIALECTS[request.url.path]
        tenant = request.headers.get(TENANT_HEADER)
        received = self._admission.receive(dialect, await request.aread(), arrived, tenant)
        if isinstance(received, Refused):
            return httpx2.Response(
                received.status, headers=_JSON | received.headers, content=received.body
            )
        answer, headers = received.answer, received.headers
        patience = float(request.extensions["timeout"]["read"])
        if answer.lost:
            await asyncio.sleep(patience)
            raise httpx2.ReadTimeout("no answer", request=request)
        delivered = False
        try:
            await asyncio.sleep(min(patience, answer.total))
            delivered = answer.total <= patience
        finally:
            self._core.finish(answer, delivered=delivered)
        if not delivered:
            raise httpx2.ReadTimeout("no answer in time", request=request)
        if received.chat.stream:
            return httpx2.Response(
                200,
                headers=headers | {"content-type": "text/event-stream"},
                content=b"".join(received.events()),
            )
        return httpx2.Response(200, headers=_JSON | headers, content=received.whole())


def _unix() -> float:
    return _EPOCH + asyncio.get_running_loop().time()
