"""A guard under every client that stands on httpx2.

::

    guard = Guard("openai", breaker=CircuitBreaker("openai"), retry=RetryPolicy(attempts=3))
    http = httpx2.AsyncClient(transport=GuardedTransport(guard))
    client = openai.AsyncOpenAI(http_client=http)

Whatever retries above it (an SDK, a decorator), one call comes to so many
requests as the guard's policy allows, and to those that its budget pays for.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, ClassVar

import httpx2

from ferrogate.guard import Guard
from ferrogate.integrations._exchanges import GuardedTransportStats
from ferrogate.integrations._transports import (
    AsyncBody,
    AsyncTransport,
    SyncBody,
    SyncTransport,
)
from ferrogate.retry import RetryBudget

__all__ = ["GuardedTransport", "GuardedTransportStats", "SyncGuardedTransport"]


class _AsyncStream(AsyncBody, httpx2.AsyncByteStream):
    pass


class _SyncStream(SyncBody, httpx2.SyncByteStream):
    pass


class GuardedTransport(AsyncTransport, httpx2.AsyncBaseTransport):
    """A transport for ``httpx2.AsyncClient`` that puts each request through a guard.

    All that ``ferrogate.integrations.httpx.GuardedTransport`` is for httpx, with the same
    arguments and errors, for httpx2.
    """

    _http: ClassVar[ModuleType] = httpx2
    _make_stream: ClassVar[Any] = _AsyncStream

    def __init__(
        self,
        guard: Guard,
        transport: httpx2.AsyncBaseTransport | None = None,
        *,
        budget: RetryBudget | None = None,
        max_wait: float = 60.0,
        max_remembered: int = 4096,
    ) -> None:
        self._begin(guard, transport, budget, max_wait, max_remembered)


class SyncGuardedTransport(SyncTransport, httpx2.BaseTransport):
    """:class:`GuardedTransport` for ``httpx2.Client``; it waits in the calling thread."""

    _http: ClassVar[ModuleType] = httpx2
    _make_stream: ClassVar[Any] = _SyncStream

    def __init__(
        self,
        guard: Guard,
        transport: httpx2.BaseTransport | None = None,
        *,
        budget: RetryBudget | None = None,
        max_wait: float = 60.0,
        max_remembered: int = 4096,
    ) -> None:
        self._begin(guard, transport, budget, max_wait, max_remembered)
