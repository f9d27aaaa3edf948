"""A guard under every request of an aiohttp session.

::

    guard = Guard("provider", breaker=CircuitBreaker("provider"), retry=RetryPolicy(attempts=3))
    async with aiohttp.ClientSession(middlewares=[GuardedMiddleware(guard)]) as session:
        async with session.post(url, json=question) as response:
            ...

For aiohttp from 3.12 on, which has middlewares for clients.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import aiohttp
from aiohttp.payload import BytesPayload
from multidict import CIMultiDict, CIMultiDictProxy

from ferrogate._pausing import pause
from ferrogate.exceptions import FerrogateError
from ferrogate.guard import Guard
from ferrogate.integrations._answers import Answer, Answered
from ferrogate.integrations._exchanges import (
    KEPT_BODY,
    Begun,
    Exchanges,
    GuardedTransportStats,
    Sent,
)
from ferrogate.integrations._passing import MOST_HELD, Passing, is_stream
from ferrogate.retry import RetryBudget

__all__ = ["GuardedMiddleware", "GuardedTransportStats"]


class GuardedMiddleware:
    """A middleware of ``aiohttp.ClientSession`` that puts each request through a guard.

    As :class:`ferrogate.integrations.httpx.GuardedTransport` does: statuses, retries, pauses, the
    memory of calls that failed and the usage are the same. These differ:

    * What a part of the guard refused is raised, as ``CircuitBreakerOpenError`` or
      ``RateLimitExceeded``, and so is ``GuardTimeout``.
    * An answer below 400 is given on as it comes, so a body that breaks is a failure and is not
      asked for again. The attempt lasts until it has been read, or until the response is closed.
    * Only bodies that are bytes, text or JSON can be sent again, not files, forms or generators.

    Args:
        guard, budget, max_wait, max_remembered: as there.

    Raises:
        ValueError, TypeError: a wrong argument; the message names it.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        budget: RetryBudget | None = None,
        max_wait: float = 60.0,
        max_remembered: int = 4096,
    ) -> None:
        self._exchanges = Exchanges(
            guard,
            budget=budget,
            max_wait=max_wait,
            max_remembered=max_remembered,
        )

    @property
    def guard(self) -> Guard:
        """The guard that requests go through."""
        return self._exchanges.guard

    def get_stats(self) -> GuardedTransportStats:
        """Counts since construction."""
        return self._exchanges.get_stats()

    def __repr__(self) -> str:
        return f"<GuardedMiddleware {self._exchanges!r}>"

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Sends a request through the guard; called by the session."""
        exchanges = self._exchanges
        if exchanges.passes:
            return await exchanges.guard.call(handler, request)
        sent = _sent(request)
        begun = exchanges.begin(sent)
        if begun.failure is not None:
            return _again(begun)
        if begun.wait:
            await pause(exchanges.clock, begun.wait)
        passing = Passing(exchanges, sent)
        once = begun.once or sent.body is None
        try:
            response = await exchanges.guard._open(
                passing.attempt,
                once,
                partial(_attempt, handler, passing),
                request,
                **passing.asked(),
            )
        except Answered as answered:
            answer = exchanges.gave_up(sent, answered.answer)
            return _with_headers(answered.response, answer)
        except FerrogateError as error:
            if isinstance(error, TimeoutError) and hasattr(error, "timed_out"):
                exchanges.failed(sent, error)
            else:
                exchanges.refused(error)
            raise
        except Exception as error:
            if passing.sent:
                exchanges.failed(sent, error)
            raise
        if isinstance(response, aiohttp.ClientResponse):
            if isinstance(response.content, _Content):
                response.content.look()
            return response
        got = type(response).__name__
        raise TypeError(
            f"expected the guard's fallback to return an aiohttp.ClientResponse, got {got}"
        )


def _sent(request: aiohttp.ClientRequest) -> Sent:
    body: Any = request.body
    if isinstance(body, BytesPayload):
        body = body._value
    if isinstance(body, bytearray | memoryview):
        body = bytes(body)
    headers = [(name.encode(), value.encode()) for name, value in request.headers.items()]
    url = request.url
    return Sent(
        request.method,
        str(url),
        str(url.origin()),
        headers,
        body if isinstance(body, bytes) else None,
    )


async def _attempt(
    handler: aiohttp.ClientHandlerType,
    passing: Passing,
    request: aiohttp.ClientRequest,
    /,
    **_asked: Any,
) -> aiohttp.ClientResponse:
    passing.on_the_way()
    response = await handler(request)
    headers = list(response.raw_headers)
    kind = response.headers.get("content-type", "")
    # What is read of it has been decoded.
    passing.head(response.status, headers, kind, "")
    if response.status >= 400:
        await _refused(response, headers)
    response.content = _Content(response, passing, is_stream(kind))  # type: ignore[assignment]
    return response


async def _refused(response: aiohttp.ClientResponse, headers: list[tuple[bytes, bytes]]) -> None:
    """Has the guard see an answer that says that something went wrong."""
    body = await response.read()
    kept = copy.copy(response)
    # Without the connection that it came on.
    kept.content = aiohttp.streams.EmptyStreamReader()
    if len(body) > KEPT_BODY:
        kept._body = b""
    raise Answered(response, Answer(response.status, headers, body, source=kept))


def _again(begun: Begun) -> aiohttp.ClientResponse:
    """What a request is answered with that is not sent."""
    failure = begun.failure
    if isinstance(failure, Answer):
        if failure.error is not None:
            raise failure.error
        return _with_headers(copy.copy(failure.source), failure)
    assert failure is not None
    raise failure


def _with_headers(response: Any, answer: Answer) -> aiohttp.ClientResponse:
    headers = CIMultiDict(
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers
    )
    response._headers = CIMultiDictProxy(headers)
    response._raw_headers = tuple(answer.headers)
    response._cache = {}  # where it would remember the ones that it had
    if isinstance(response, aiohttp.ClientResponse):
        return response
    raise TypeError(f"expected an aiohttp.ClientResponse, got {type(response).__name__}")


class _Content:
    """The content of a response, which notices what is read of it, and how that ends."""

    def __init__(self, response: aiohttp.ClientResponse, passing: Passing, stream: bool) -> None:
        self._source = response.content
        self._response = response
        self._passing = passing
        self._stream = stream
        self._held: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def look(self, piece: bytes = b"") -> None:
        """Something has been read."""
        if self._stream:
            self._passing.chunk(piece)
        else:
            self._size += len(piece)
            self._held.append(piece)
            if self._size > MOST_HELD:
                self._held.clear()
        if self._source.at_eof():
            self._all()

    def _all(self) -> None:
        if not self._stream:
            held, self._held = self._held, []
            self._passing.body(b"".join(held))
        self._passing.done(self._response)

    async def _read(self, name: str, *args: Any, **options: Any) -> Any:
        try:
            read = await getattr(self._source, name)(*args, **options)
        except BaseException as error:
            self._passing.broke(error)
            raise
        self.look(read[0] if isinstance(read, tuple) else read)
        return read

    async def read(self, n: int = -1) -> bytes:
        return await self._read("read", n)  # type: ignore[no-any-return]

    async def readany(self) -> bytes:
        return await self._read("readany")  # type: ignore[no-any-return]

    async def readchunk(self) -> tuple[bytes, bool]:
        return await self._read("readchunk")  # type: ignore[no-any-return]

    async def readexactly(self, n: int) -> bytes:
        return await self._read("readexactly", n)  # type: ignore[no-any-return]

    async def readline(self, **options: Any) -> bytes:
        return await self._read("readline", **options)  # type: ignore[no-any-return]

    async def readuntil(self, *args: Any, **options: Any) -> bytes:
        return await self._read("readuntil", *args, **options)  # type: ignore[no-any-return]

    def read_nowait(self, n: int = -1) -> bytes:
        read = self._source.read_nowait(n)
        self.look(read)
        return read

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._each(self.readline)

    def iter_any(self) -> AsyncIterator[bytes]:
        return self._each(self.readany)

    def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        return self._each(lambda: self.read(n))

    async def iter_chunks(self) -> AsyncIterator[tuple[bytes, bool]]:
        while (chunk := await self.readchunk()) != (b"", False):
            yield chunk

    async def _each(self, read: Any) -> AsyncIterator[bytes]:
        while piece := await read():
            yield piece

    def set_exception(self, error: BaseException, *cause: BaseException) -> None:
        """The response is closed or released."""
        self._source.set_exception(error, *cause)
        if self._source.is_eof():
            self._all()
        else:
            self._passing.closed(self._response)
