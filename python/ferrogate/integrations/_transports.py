"""The transports for httpx and httpx2, which have the same interface."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from types import ModuleType
from typing import Any, ClassVar

from ferrogate._pausing import pause, pause_sync
from ferrogate.exceptions import FerrogateError
from ferrogate.guard import Guard
from ferrogate.integrations._answers import Answer, Answered
from ferrogate.integrations._exchanges import Begun, Exchanges, GuardedTransportStats, Sent
from ferrogate.integrations._passing import MOST_HELD, Passing, encoding, is_stream
from ferrogate.retry import RetryBudget

__all__ = ["AsyncTransport", "SyncTransport"]


class _Transport:
    """What both kinds have in common."""

    _http: ClassVar[ModuleType]
    #: What a transport has to be, and what it is if none is given.
    _kinds: ClassVar[tuple[str, str]]
    _exchanges: Exchanges
    _inner: Any

    def _begin(
        self,
        guard: Guard,
        transport: Any,
        budget: RetryBudget | None,
        max_wait: float,
        max_remembered: int,
    ) -> None:
        base, usual = self._kinds
        if transport is not None and not isinstance(transport, getattr(self._http, base)):
            got = type(transport).__name__
            raise TypeError(f"transport: expected an {self._http.__name__}.{base}, got {got}")
        self._exchanges = Exchanges(
            guard,
            budget=budget,
            max_wait=max_wait,
            max_remembered=max_remembered,
        )
        self._inner = self._default(usual) if transport is None else transport

    @property
    def guard(self) -> Guard:
        """The guard that requests go through."""
        return self._exchanges.guard

    def get_stats(self) -> GuardedTransportStats:
        """Counts since construction."""
        return self._exchanges.get_stats()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._exchanges!r}>"

    def _default(self, kind: str) -> Any:
        # As many connections as the SDKs' own clients have.
        limits = self._http.Limits(max_connections=1000, max_keepalive_connections=100)
        return getattr(self._http, kind)(limits=limits)

    def _sent(self, request: Any) -> Sent:
        try:
            body: bytes | None = request.content
        except self._http.RequestNotRead:
            body = None
        url = request.url
        origin = f"{url.scheme}://{url.netloc.decode()}"
        return Sent(request.method, str(url), origin, request.headers.raw, body)

    def _response(self, request: Any, answer: Answer) -> Any:
        extensions = {} if answer.error is None else {"ferrogate": answer.error}
        return self._http.Response(
            answer.status,
            headers=answer.headers,
            stream=self._http.ByteStream(answer.body),
            extensions=extensions,
            request=request,
        )

    def _head(self, response: Any, passing: Passing) -> bool:
        """Notes an answer's head; true where its body is given on as it comes."""
        headers = response.headers
        kind = headers.get("content-type", "")
        coded = encoding(headers.get("content-encoding", ""))
        passing.head(response.status_code, headers.raw, kind, coded)
        if response.status_code >= 400:
            return False
        length = headers.get("content-length", "")
        return is_stream(kind) or (length.isdecimal() and int(length) > MOST_HELD)

    def _read(self, request: Any, response: Any, body: bytes, passing: Passing) -> Any:
        """A response whose body is here."""
        whole = self._http.Response(
            response.status_code,
            headers=response.headers.raw,
            stream=self._http.ByteStream(body),
            extensions=response.extensions,
        )
        if response.status_code >= 400:
            answer = Answer(response.status_code, response.headers.raw, body)
            raise Answered(whole, answer)
        # Decoded by a copy: the client above reads the response itself.
        copy = self._http.Response(
            response.status_code, headers=response.headers.raw, content=body, request=request
        )
        try:
            passing.body(copy.content)
        except self._http.DecodingError:
            passing.body(b"")
        return whole

    def _again(self, request: Any, begun: Begun) -> Any:
        """What a request is answered with that is not sent."""
        failure = begun.failure
        if isinstance(failure, Answer):
            return self._response(request, failure)
        assert isinstance(failure, Exception)
        if isinstance(failure, self._http.RequestError):
            failure.request = request
        raise failure

    def _ended(self, request: Any, sent: Sent, passing: Passing, error: Exception) -> Any:
        """The guard has raised: the response that stands for it, or the error to be raised."""
        if isinstance(error, Answered):
            answer = self._exchanges.gave_up(sent, error.answer)
            response = error.response
            response.headers = self._http.Headers(answer.headers)
            return response
        if not isinstance(error, FerrogateError):
            if passing.sent:
                self._exchanges.failed(sent, error)
            raise error
        if isinstance(error, TimeoutError) and hasattr(error, "timed_out"):
            late = self._http.ReadTimeout(str(error), request=request)
            self._exchanges.failed(sent, late)
            raise late from error
        return self._response(request, self._exchanges.refused(error))

    def _checked(self, response: Any) -> Any:
        if not isinstance(response, self._http.Response):
            kind = f"{self._http.__name__}.Response"
            got = type(response).__name__
            raise TypeError(f"expected the guard's fallback to return an {kind}, got {got}")
        return response


class AsyncTransport(_Transport):
    """For clients that are awaited."""

    _kinds = ("AsyncBaseTransport", "AsyncHTTPTransport")

    async def handle_async_request(self, request: Any) -> Any:
        """Sends a request through the guard."""
        exchanges = self._exchanges
        if exchanges.passes:
            return await exchanges.guard.call(self._inner.handle_async_request, request)
        sent = self._sent(request)
        begun = exchanges.begin(sent)
        if begun.failure is not None:
            return self._again(request, begun)
        if begun.wait:
            await pause(exchanges.clock, begun.wait)
        passing = Passing(exchanges, sent)
        once = begun.once or sent.body is None
        try:
            response = await exchanges.guard._open(
                passing.attempt, once, partial(self._attempt, passing), request, **passing.asked()
            )
        except Exception as error:
            return self._ended(request, sent, passing, error)
        if passing.whole:
            passing.done(response)
        return self._checked(response)

    async def _attempt(self, passing: Passing, request: Any, /, **_asked: Any) -> Any:
        passing.on_the_way()
        response = await self._inner.handle_async_request(request)
        try:
            if self._head(response, passing):
                response.stream = self._stream([], response, passing)
                return response
            parts, held = [], 0
            source = response.stream.__aiter__()
            async for part in source:
                parts.append(part)
                held += len(part)
                if held > MOST_HELD and response.status_code < 400:
                    response.stream = self._stream(parts, response, passing, source)
                    return response
        except BaseException:
            await response.stream.aclose()
            raise
        await response.stream.aclose()
        return self._read(request, response, b"".join(parts), passing)

    def _stream(self, parts: list[bytes], response: Any, passing: Passing, rest: Any = None) -> Any:
        return self._make_stream(parts, response, response.stream, passing, rest)

    _make_stream: ClassVar[Any]

    async def aclose(self) -> None:
        """Closes the transport below."""
        await self._inner.aclose()


class SyncTransport(_Transport):
    """For clients that block."""

    _kinds = ("BaseTransport", "HTTPTransport")

    def handle_request(self, request: Any) -> Any:
        """Sends a request through the guard."""
        exchanges = self._exchanges
        if exchanges.passes:
            return exchanges.guard.call_sync(self._inner.handle_request, request)
        sent = self._sent(request)
        begun = exchanges.begin(sent)
        if begun.failure is not None:
            return self._again(request, begun)
        if begun.wait:
            pause_sync(exchanges.clock, begun.wait)
        passing = Passing(exchanges, sent)
        once = begun.once or sent.body is None
        try:
            response = exchanges.guard._open_sync(
                passing.attempt, once, partial(self._attempt, passing), request, **passing.asked()
            )
        except Exception as error:
            return self._ended(request, sent, passing, error)
        if passing.whole:
            passing.done(response)
        return self._checked(response)

    def _attempt(self, passing: Passing, request: Any, /, **_asked: Any) -> Any:
        passing.on_the_way()
        response = self._inner.handle_request(request)
        try:
            if self._head(response, passing):
                response.stream = self._stream([], response, passing)
                return response
            parts, held = [], 0
            source = iter(response.stream)
            for part in source:
                parts.append(part)
                held += len(part)
                if held > MOST_HELD and response.status_code < 400:
                    response.stream = self._stream(parts, response, passing, source)
                    return response
        except BaseException:
            response.stream.close()
            raise
        response.stream.close()
        return self._read(request, response, b"".join(parts), passing)

    def _stream(self, parts: list[bytes], response: Any, passing: Passing, rest: Any = None) -> Any:
        return self._make_stream(parts, response, response.stream, passing, rest)

    _make_stream: ClassVar[Any]

    def close(self) -> None:
        """Closes the transport below."""
        self._inner.close()


class AsyncBody:
    """The body of an answer that is given on as it comes."""

    def __init__(
        self, parts: list[bytes], response: Any, source: Any, passing: Passing, rest: Any
    ) -> None:
        self._parts = parts
        self._response = response
        self._source = source
        self._passing = passing
        self._rest = source.__aiter__() if rest is None else rest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            parts, self._parts = self._parts, []
            for part in parts:
                yield part
            async for part in self._rest:
                self._passing.chunk(part)
                yield part
        except GeneratorExit:
            raise  # it is closed then, too
        except BaseException as error:
            self._passing.broke(error)
            raise
        self._passing.done(self._response)

    async def aclose(self) -> None:
        try:
            await self._source.aclose()
        finally:
            self._passing.closed(self._response)


class SyncBody:
    """:class:`AsyncBody` for clients that block."""

    def __init__(
        self, parts: list[bytes], response: Any, source: Any, passing: Passing, rest: Any
    ) -> None:
        self._parts = parts
        self._response = response
        self._source = source
        self._passing = passing
        self._rest = iter(source) if rest is None else rest

    def __iter__(self) -> Iterator[bytes]:
        try:
            parts, self._parts = self._parts, []
            for part in parts:
                yield part
            for part in self._rest:
                self._passing.chunk(part)
                yield part
        except GeneratorExit:
            raise  # it is closed then, too
        except BaseException as error:
            self._passing.broke(error)
            raise
        self._passing.done(self._response)

    def close(self) -> None:
        try:
            self._source.close()
        finally:
            self._passing.closed(self._response)
