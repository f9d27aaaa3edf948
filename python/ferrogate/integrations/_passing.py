"""One request on its way: its attempt, its reservation, and what passes of its answer."""

from __future__ import annotations

import json
from typing import Any

from ferrogate import _core
from ferrogate.exceptions import RateLimitExceeded
from ferrogate.integrations._exchanges import Exchanges, Sent
from ferrogate.integrations._usage import EventStream, Usage

__all__ = ["MOST_HELD", "Passing", "encoding", "is_stream"]

#: So much of a body is read before its head is given on, so that one that breaks can be asked
#: for again.
MOST_HELD = 1 << 20

#: Bytes of a request for each token that it is taken to have.
_BYTES_PER_TOKEN = 4


class Passing:
    """A request from its first attempt until its answer has been read to the end."""

    __slots__ = ("_exchanges", "_reservation", "_sent", "_usage", "attempt", "whole")

    def __init__(self, exchanges: Exchanges, sent: Sent) -> None:
        self._exchanges = exchanges
        self._sent = sent
        self._reservation: Any = None
        self._usage: Usage = Usage()
        self.attempt = _core._OpenAttempt()
        self.whole = False
        """The body is here."""

    async def reserve(self) -> None:
        """Waits for what this attempt will take of the limits."""
        if self._exchanges.limiter is not None:
            try:
                self._reservation = await self._exchanges.limiter.reserve(**self._wanted())
            except ValueError as error:
                raise self._impossible(error) from error
            self._reservation.mark_sent()
        self._exchanges.on_the_way()

    def reserve_sync(self) -> None:
        """:meth:`reserve`, waiting in this thread."""
        if self._exchanges.limiter is not None:
            try:
                self._reservation = self._exchanges.limiter.reserve_sync(**self._wanted())
            except ValueError as error:
                raise self._impossible(error) from error
            self._reservation.mark_sent()
        self._exchanges.on_the_way()

    def _wanted(self) -> dict[str, Any]:
        body = self._sent.body or b""
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            asked = None
        wanted: dict[str, Any] = {
            "input_tokens": len(body) // _BYTES_PER_TOKEN,
            "timeout": self._exchanges.max_wait,
        }
        if isinstance(asked, dict):
            if isinstance(asked.get("model"), str):
                wanted["model"] = asked["model"]
            for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
                most = asked.get(name)
                if isinstance(most, int) and not isinstance(most, bool) and most > 0:
                    wanted["max_output_tokens"] = most
                    break
        return wanted

    def _impossible(self, error: ValueError) -> RateLimitExceeded:
        """It is more than can ever be granted, which is no failure of the other side's."""
        name = getattr(self._exchanges.limiter, "name", None)
        return RateLimitExceeded(str(error), name=name, retry_after=float("inf"))

    def head(self, status: int, headers: list[tuple[bytes, bytes]], kind: str, coded: str) -> None:
        """The answer's head is here."""
        self._exchanges.answered(self._sent, status, headers, self._reservation)
        self._usage = EventStream(coded) if is_stream(kind) else Usage()

    def came_to_nothing(self) -> None:
        """This attempt has failed before its answer was there."""
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            reservation.release()

    def body(self, decoded: bytes) -> None:
        """All of the answer's body."""
        self.whole = True
        self._usage.read(decoded)

    def chunk(self, chunk: bytes) -> None:
        """A piece of a streamed body, as it came."""
        if isinstance(self._usage, EventStream):
            self._usage.feed(chunk)

    def done(self, response: object) -> None:
        """The answer has been read to its end."""
        self._settle()
        self.attempt.end(response)

    def broke(self, error: BaseException) -> None:
        """Reading the answer has failed."""
        self._settle()
        self.attempt.end(None, error)

    def closed(self, response: object) -> None:
        """Nobody reads on. Whoever has seen the last event has seen all."""
        if isinstance(self._usage, EventStream) and self._usage.finished:
            self.done(response)
        else:
            self._settle()
            self.attempt.abandon()

    def _settle(self) -> None:
        reservation, self._reservation = self._reservation, None
        usage, self._usage = self._usage, Usage()
        self._exchanges.used(usage.input_tokens, usage.output_tokens)
        if reservation is not None:
            reservation.settle(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)


def is_stream(kind: str) -> bool:
    """Whether an answer of that ``content-type`` comes event by event."""
    return kind.partition(";")[0].strip().lower() == "text/event-stream"


def encoding(value: str) -> str:
    """A ``content-encoding``, to be compared."""
    return value.strip().lower()
