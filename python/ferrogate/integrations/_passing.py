"""One request on its way: its attempt, and what passes of its answer."""

from __future__ import annotations

import json
from typing import Any

from ferrogate import _core
from ferrogate.integrations._exchanges import Exchanges, Sent
from ferrogate.integrations._usage import EventStream, Usage

__all__ = ["MOST_HELD", "Passing", "encoding", "is_stream"]

#: So much of a body is read before its head is given on, so that one that breaks can be asked
#: for again.
MOST_HELD = 1 << 20


class Passing:
    """A request from its first attempt until its answer has been read to the end."""

    __slots__ = ("_begun", "_exchanges", "_sent", "_usage", "attempt", "sent", "whole")

    def __init__(self, exchanges: Exchanges, sent: Sent) -> None:
        self._exchanges = exchanges
        self._sent = sent
        self._usage: Usage = Usage()
        self._begun = False
        self.attempt = _core._OpenAttempt()
        self.sent = False
        """An attempt has been let through."""
        self.whole = False
        """The body is here."""

    def asked(self) -> dict[str, Any]:
        """What a guard's ``LLMLimiter`` is to know of the request: the fields of its JSON."""
        if not self._exchanges.reserves:
            return {}
        try:
            asked = json.loads(self._sent.body or b"")
        except (ValueError, RecursionError):
            return {}
        return asked if isinstance(asked, dict) else {}

    def on_the_way(self) -> None:
        """An attempt has been let through."""
        self.sent = True
        self._exchanges.on_the_way()

    def head(self, status: int, headers: list[tuple[bytes, bytes]], kind: str, coded: str) -> None:
        """The answer's head is here."""
        self._exchanges.answered(self._sent, status, headers)
        self._usage = EventStream(coded) if is_stream(kind) else Usage()

    def body(self, decoded: bytes) -> None:
        """All of the answer's body."""
        self.whole = True
        self._usage.read(decoded)

    def chunk(self, chunk: bytes) -> None:
        """A piece of a streamed body, as it came."""
        if isinstance(self._usage, EventStream):
            self._usage.feed(chunk)
            if self._usage.begun and not self._begun:
                self._begun = True
                self.attempt.first_token()

    def done(self, response: object) -> None:
        """The answer has been read to its end."""
        self._count(response)
        self.attempt.end(response)

    def broke(self, error: BaseException) -> None:
        """Reading the answer has failed."""
        self._count(None)
        self.attempt.end(None, error)

    def closed(self, response: object) -> None:
        """Nobody reads on. Whoever has seen the last event has seen all."""
        if isinstance(self._usage, EventStream) and self._usage.finished:
            self.done(response)
        else:
            self._count(None)
            self.attempt.abandon()

    def _count(self, response: Any) -> None:
        usage, self._usage = self._usage, Usage()
        told = {name: count for name, count in usage.told() if count is not None}
        if told:
            self._exchanges.used(usage.input_tokens, usage.output_tokens)
            if response is not None:
                # Where a guard's `usage=` looks for it, and its `classify=` can.
                response.usage = told


def is_stream(kind: str) -> bool:
    """Whether an answer of that ``content-type`` comes event by event."""
    return kind.partition(";")[0].strip().lower() == "text/event-stream"


def encoding(value: str) -> str:
    """A ``content-encoding``, to be compared."""
    return value.strip().lower()
