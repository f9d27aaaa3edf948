"""A guard under every client that stands on httpx.

::

    guard = Guard("openai", breaker=CircuitBreaker("openai"), retry=RetryPolicy(attempts=3))
    http = httpx.AsyncClient(transport=GuardedTransport(guard))

Whatever retries above it (an SDK, a decorator), one call comes to so many
requests as the guard's policy allows, and to those that its budget pays for.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, ClassVar

import httpx

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


class _AsyncStream(AsyncBody, httpx.AsyncByteStream):
    pass


class _SyncStream(SyncBody, httpx.SyncByteStream):
    pass


class GuardedTransport(AsyncTransport, httpx.AsyncBaseTransport):
    """A transport for ``httpx.AsyncClient`` that puts each request through a guard.

    An answer counts by its status: 429 is throttled, 408, 425 and 5xx are failures, other 4xx
    are neutral, and what the transport below raises is a failure. Failures are retried as
    the guard's policy says, after the wait that ``Retry-After`` or the provider's rate-limit
    headers ask for, unless the request's body is a stream, which can be sent once only. The last
    answer is returned and not raised, so that an SDK makes its usual exception of it. The attempt
    lasts until the answer's body has been read: one that breaks is a failure, one that is left is
    neutral. Bodies of up to 1 MiB that are no event streams are read at once, and so are retried
    as well if they break.

    **Layers above.** An answer that the guard gave up on carries ``x-should-retry: false``, which
    the SDKs of OpenAI and Anthropic heed. A request that comes again nevertheless, with the same
    method, URL, body and headers, gets the same failure again without being sent, for 2 s, then
    4, 8, up to 30 s, or as long as the provider asked for; after that it is sent once, if
    the retry budget pays for it. So all layers together send no more than the policy's attempts
    for a call, and what the budget pays for.

    **Pauses.** While a provider asks for patience (429 with ``Retry-After``, or headers that say
    when there will be room), new requests with the same credentials wait, without a request.

    **Tokens.** The usage that answers tell, streamed ones too, is in ``get_stats()``, and in
    ``response.usage`` once the body has been read. An ``LLMLimiter`` of the guard's settles with
    it. Its ``estimate=`` is called with the request and, as keywords, the fields of its JSON, so
    that by default ``messages``, ``model`` and ``max_tokens`` are found. It learns from all
    answers' headers, and its pauses replace those above.

    **Refusals** of the guard's parts become answers too, 429 from a limiter and 503 from a
    breaker; ``response.extensions["ferrogate"]`` is the error. ``GuardTimeout`` becomes
    ``httpx.ReadTimeout``. A fallback of the guard has to return an ``httpx.Response``.
    What could be granted never is a ``ValueError``. A ``hedge`` of the guard's is not used.

    Args:
        guard: what requests go through; its ``name`` is in the messages.
        transport: what sends them; by default an ``httpx.AsyncHTTPTransport`` for up to 1,000
            connections. It is closed with this one.
        budget: what pays for retries of the layers above; by default that of the guard's policy,
            or a ``RetryBudget()``.
        max_wait: seconds that a request may wait for the end of a pause; beyond that it is
            answered with 429.
        max_remembered: calls that failed of which it knows; the oldest are forgotten.

    Raises:
        ValueError, TypeError: a wrong argument; the message names it.
    """

    _http: ClassVar[ModuleType] = httpx
    _make_stream: ClassVar[Any] = _AsyncStream

    def __init__(
        self,
        guard: Guard,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        budget: RetryBudget | None = None,
        max_wait: float = 60.0,
        max_remembered: int = 4096,
    ) -> None:
        self._begin(guard, transport, budget, max_wait, max_remembered)


class SyncGuardedTransport(SyncTransport, httpx.BaseTransport):
    """:class:`GuardedTransport` for ``httpx.Client``; it waits in the calling thread.

    Args:
        guard, budget, max_wait, max_remembered: as there.
        transport: what sends; by default an ``httpx.HTTPTransport`` for up to 1,000 connections.

    Raises:
        ValueError, TypeError: a wrong argument; the message names it.
    """

    _http: ClassVar[ModuleType] = httpx
    _make_stream: ClassVar[Any] = _SyncStream

    def __init__(
        self,
        guard: Guard,
        transport: httpx.BaseTransport | None = None,
        *,
        budget: RetryBudget | None = None,
        max_wait: float = 60.0,
        max_remembered: int = 4096,
    ) -> None:
        self._begin(guard, transport, budget, max_wait, max_remembered)
