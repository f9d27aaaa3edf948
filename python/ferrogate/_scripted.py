"""A provider for test suites: real HTTP on a loopback port, answers as the test scripts them.

In threads of its own and on the standard library alone, so it works under any
event loop and any test runner. What is not scripted is answered by the logic of
``ferrogate demo``'s provider, at once and under the limits that it was given.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Self

from ferrogate._scripted_http import Exchange, Server
from ferrogate.cli.admission import DIALECTS, Admission, Admitted, Refused
from ferrogate.cli.provider_config import ProviderConfig
from ferrogate.cli.provider_core import Answer, ProviderCore, Refusal
from ferrogate.cli.wire import TENANT_HEADER, BadRequest, ChatRequest, Dialect

__all__ = ["ProviderReply", "ProviderRequest", "ScriptedProvider"]

_MODELS = {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
# At once, unless a test wants to see time pass.
_AT_ONCE: Mapping[str, float] = {
    "ttft_base": 0.0,
    "ttft_per_input_token": 0.0,
    "seconds_per_output_token": 0.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderReply:
    """One scripted answer; only what is given differs from a plain success.

    Args:
        status: the HTTP status; from 400 on an error in the words of the API that was asked.
        text: what an answer says.
        headers: sent beside the usual ones, such as ``{"retry-after": "2"}``.
        body: the whole body instead, as JSON (bytes as they are).
        delay: seconds until it begins.
        input_tokens, output_tokens: its usage; by default what the request implies, and a token
            for every word of ``text``.
        breaks_after: the connection is closed after so many pieces of a streamed
            answer, or without a word for a whole one.
        hangs: no answer ever comes, until the client or the provider gives up.
    """

    status: int = 200
    text: str = "ok"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    delay: float = 0.0
    input_tokens: int | None = None
    output_tokens: int | None = None
    breaks_after: int | None = None
    hangs: bool = False

    def __post_init__(self) -> None:
        if not 200 <= self.status <= 599:
            raise ValueError(f"status: expected 200 to 599, got {self.status}")
        if self.delay < 0:
            raise ValueError(f"delay: expected seconds, at least 0, got {self.delay}")


@dataclass(slots=True)
class ProviderRequest:
    """A request as it arrived, and how it was answered."""

    method: str
    path: str
    headers: dict[str, str]
    """With names in lower case."""
    body: bytes
    status: int | None = None
    """As answered; ``None`` while it is not, and if it never was."""

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def prompt(self) -> str:
        """What the messages say.

        Raises:
            BadRequest: it is not a request of the API that its path belongs to.
        """
        return DIALECTS[self.path].parse(self.body).prompt


class ScriptedProvider:
    """A server that answers as OpenAI and Anthropic do, and as the test says.

    ::

        with ScriptedProvider() as provider:
            provider.script([429, 500, "hello", provider.timeout])
            client = openai.OpenAI(base_url=provider.openai_url, api_key="test")
            ...
            assert provider.count(429) == 1

    A script is a list of statuses, texts, ``TimeoutError`` (no answer),
    ``ConnectionError`` (closed without one), dicts (the JSON body) and
    :class:`ProviderReply`; each answers one request, in order of arrival. After
    the last one the provider answers by itself, under its limits.

    Args:
        limits: fields of the demo provider's settings, such as ``requests_per_minute=``,
            ``input_tokens_per_minute=``, ``output_tokens_per_minute=``, ``concurrency=``, and
            ``ttft_base=`` and ``seconds_per_output_token=``, which are 0 here.

    Raises:
        TypeError, ValueError: a wrong setting or piece of a script.
    """

    timeout: ClassVar[ProviderReply] = ProviderReply(hangs=True)
    """For a script: no answer."""
    disconnect: ClassVar[ProviderReply] = ProviderReply(breaks_after=0)
    """For a script: the connection is closed without one."""

    def __init__(self, **limits: Any) -> None:
        self._lock = threading.Lock()
        self._script: deque[ProviderReply] = deque()
        self._stopping = threading.Event()
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self.requests: list[ProviderRequest] = []
        """Those to be answered, in order of arrival."""
        self.limit(**limits)

    @property
    def url(self) -> str:
        """``http://127.0.0.1:port``, the base of Anthropic's SDK."""
        if self._server is None:
            raise RuntimeError("the provider is not started: use `with` or start()")
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def openai_url(self) -> str:
        """The base of OpenAI's SDK."""
        return f"{self.url}/v1"

    def script(self, replies: Iterable[object]) -> None:
        """Says how the next requests are answered, after those that are scripted already."""
        if isinstance(replies, str | bytes | Mapping):
            raise TypeError(f"script: expected a list of replies, got {replies!r}")
        ready = [_reply(reply) for reply in replies]
        with self._lock:
            self._script.extend(ready)

    @property
    def scripted(self) -> int:
        """Replies of the script that are left."""
        return len(self._script)

    def limit(self, **limits: Any) -> None:
        """Begins anew with these limits; nothing has been spent of them."""
        config = ProviderConfig(**{**_AT_ONCE, **limits})
        with self._lock:
            self._admission = Admission(ProviderCore(config, time.monotonic))

    def count(self, status: int | None = None) -> int:
        """How many requests came, or were answered with ``status``."""
        with self._lock:
            return sum(status in (None, request.status) for request in self.requests)

    def stats(self) -> dict[str, Any]:
        """The books of what was not scripted, as ``GET /stats`` has them."""
        with self._lock:
            return self._admission.core.stats()

    def reset(self) -> None:
        """Forgets the script and the requests."""
        with self._lock:
            self._script.clear()
            self.requests.clear()

    def start(self) -> Self:
        """Listens on a free port of the loopback interface."""
        if self._server is None:
            self._stopping.clear()
            self._server = Server(self._answer)
            self._thread = threading.Thread(
                target=self._server.serve, name="ferrogate-provider", daemon=True
            )
            self._thread.start()
        return self

    def stop(self) -> None:
        """Closes every connection and ends every thread."""
        server, self._server = self._server, None
        if server is not None and self._thread is not None:
            self._stopping.set()
            server.end()
            self._thread.join()
            server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        where = "stopped" if self._server is None else f"at {self.url}"
        return f"<ScriptedProvider {where}: {self.count()} requests, {self.scripted} scripted>"

    def _answer(self, exchange: Exchange) -> None:
        """Answers one request; runs in the connection's thread."""
        if exchange.command == "GET":
            told = self.stats() if exchange.path == "/stats" else _MODELS
            exchange.send(200, json.dumps(told).encode(), {})
            return
        arrived = time.monotonic()
        dialect = DIALECTS.get(exchange.path)
        request = ProviderRequest(
            exchange.command,
            exchange.path,
            {name.lower(): value for name, value in exchange.headers.items()},
            exchange.body,
        )
        if dialect is None:
            exchange.send(404, b'{"error": {"message": "no such path"}}', {})
            return
        with self._lock:
            self.requests.append(request)
            reply = self._script.popleft() if self._script else None
            received: Admitted | Refused | None = None
            if reply is None:
                tenant = request.headers.get(TENANT_HEADER)
                received = self._admission.receive(dialect, request.body, arrived, tenant)
        if reply is not None:
            self._play(exchange, request, dialect, reply)
        elif isinstance(received, Refused):
            request.status = received.status
            exchange.send(received.status, received.body, received.headers)
        elif received is not None:
            self._serve(exchange, request, received)

    def _serve(self, exchange: Exchange, request: ProviderRequest, admitted: Admitted) -> None:
        answer = admitted.answer
        delivered = False
        try:
            if answer.lost:
                self._stopping.wait()
                exchange.hang_up()
                return
            self._stopping.wait(answer.total)
            delivered = True
        finally:
            with self._lock:  # before the last byte leaves: whoever has it finds its slot free
                self._admission.core.finish(answer, delivered=delivered)
        request.status = 200
        if admitted.chat.stream:
            exchange.stream(admitted.events(), admitted.headers)
        else:
            exchange.send(200, admitted.whole(), admitted.headers)

    def _play(
        self,
        exchange: Exchange,
        request: ProviderRequest,
        dialect: Dialect,
        reply: ProviderReply,
    ) -> None:
        """Answers as the script says."""
        if reply.hangs or (reply.delay and self._stopping.wait(reply.delay)):
            self._stopping.wait()
            exchange.hang_up()
            return
        number = len(self.requests)
        if reply.body is not None or reply.status >= 400:
            body, headers = _refusal(dialect, reply, number)
            request.status = reply.status
            exchange.send(reply.status, body, headers | dict(reply.headers))
            return
        try:
            chat = dialect.parse(request.body)
        except BadRequest as error:
            refusal = Refusal(400, "invalid_request_error", str(error))
            request.status = 400
            exchange.send(400, *dialect.refusal(refusal, number))
            return
        pieces = [f"{word} " for word in reply.text.split(" ")]
        pieces[-1] = pieces[-1][:-1]
        answer = _answer_of(reply, chat, len(reply.text.split()))
        if reply.breaks_after is not None and not (chat.stream and reply.breaks_after):
            exchange.hang_up()
            return
        request.status = reply.status
        if chat.stream:
            events = dialect.events(chat, answer, number, pieces)
            exchange.stream(events, dict(reply.headers), most=reply.breaks_after)
        else:
            whole = dialect.whole(chat, answer, number, reply.text)
            exchange.send(reply.status, whole, dict(reply.headers))


def _reply(given: object) -> ProviderReply:
    match given:
        case ProviderReply():
            return given
        case bool():
            pass
        case int():
            return ProviderReply(status=given)
        case str():
            return ProviderReply(text=given)
        case dict():
            return ProviderReply(body=given)
    kind = given if isinstance(given, type) else type(given)
    if issubclass(kind, TimeoutError):
        return ScriptedProvider.timeout
    if issubclass(kind, ConnectionError):
        return ScriptedProvider.disconnect
    raise TypeError(
        "script: expected statuses, texts, dicts, TimeoutError, ConnectionError or ProviderReply, "
        f"got {given!r}"
    )


def _refusal(dialect: Dialect, reply: ProviderReply, number: int) -> tuple[bytes, dict[str, str]]:
    if reply.body is None:
        code = {429: "rate_limit_exceeded", 529: "overloaded"}.get(reply.status, "scripted_error")
        return dialect.refusal(Refusal(reply.status, code, f"scripted {reply.status}"), number)
    body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
    return body, {}


def _answer_of(reply: ProviderReply, chat: ChatRequest, words: int) -> Answer:
    sent = chat.input_tokens if reply.input_tokens is None else reply.input_tokens
    said = words if reply.output_tokens is None else reply.output_tokens
    return Answer(sent, said, 0.0, 0.0)
