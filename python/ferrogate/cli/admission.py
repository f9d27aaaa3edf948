"""What becomes of a request at the provider, the same on every wire."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import formatdate

from ferrogate.cli.provider_core import Answer, ProviderCore, Refusal
from ferrogate.cli.wire import ARRIVAL_HEADER, BadRequest, ChatRequest, Dialect, bounds, text
from ferrogate.cli.wire_anthropic import ANTHROPIC
from ferrogate.cli.wire_openai import OPENAI

__all__ = ["DIALECTS", "Admission", "Admitted", "Refused"]

#: By the path that a request is posted to.
DIALECTS = {"/v1/chat/completions": OPENAI, "/v1/messages": ANTHROPIC}


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request is served with this answer."""

    chat: ChatRequest
    answer: Answer
    headers: dict[str, str]
    number: int
    dialect: Dialect

    def whole(self) -> bytes:
        """The body of an answer that is not streamed."""
        words = text(self.answer.output_tokens)
        return self.dialect.whole(self.chat, self.answer, self.number, words)

    def events(self) -> list[bytes]:
        """The server-sent events of a streamed one; the last leaves when its slot is free."""
        pieces = [text(end - start) for start, end in bounds(self.answer.output_tokens)]
        return self.dialect.events(self.chat, self.answer, self.number, pieces)


@dataclass(frozen=True, slots=True)
class Refused:
    """The request is answered at once with an error, as JSON."""

    status: int
    body: bytes
    headers: dict[str, str]


class Admission:
    """Reads requests, has them judged, and says what is answered in which words."""

    def __init__(self, core: ProviderCore, unix: Callable[[], float] = time.time) -> None:
        self.core = core
        self._unix = unix
        self._number = 0

    def receive(
        self, dialect: Dialect, body: bytes, arrived: float, tenant: str | None
    ) -> Admitted | Refused:
        """Parses and admits a request that arrived at ``arrived`` on the provider's clock."""
        self._number += 1
        try:
            chat = dialect.parse(body)
        except BadRequest as error:
            return self.refuse(dialect, Refusal(400, "invalid_request_error", str(error)), {})
        chat = replace(chat, tenant=tenant) if tenant is not None else chat
        verdict = self.core.admit(
            chat.prompt,
            chat.input_tokens,
            chat.produced,
            max_tokens=chat.max_tokens,
            tenant=chat.tenant,
        )
        unix = self._unix()
        headers = dialect.headers(self.core.limits(), unix)
        headers |= {ARRIVAL_HEADER: f"{arrived:.6f}", "date": formatdate(unix, usegmt=True)}
        if isinstance(verdict, Refusal):
            return self.refuse(dialect, verdict, headers)
        return Admitted(chat, verdict, headers, self._number, dialect)

    def refuse(self, dialect: Dialect, refusal: Refusal, headers: dict[str, str]) -> Refused:
        """A refusal in the dialect's words."""
        body, more = dialect.refusal(refusal, self._number)
        return Refused(refusal.status, body, headers | more)
