"""How many tokens an answer has cost, read from its body as it passes."""

from __future__ import annotations

import json
import zlib
from typing import Any

__all__ = ["EventStream", "Usage"]

#: A line of an event stream that is longer is not looked at.
_LONGEST_LINE = 1 << 20
_BEFORE_TOKENS = (
    b"message_start",
    b'"ping"',
    b"response.created",
    b"response.queued",
    b"response.in_progress",
)


class Usage:
    """Tokens of one answer; ``None`` where nothing was said of them."""

    __slots__ = ("input_tokens", "output_tokens")

    def __init__(self) -> None:
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None

    def told(self) -> list[tuple[str, int | None]]:
        """Both by their names."""
        return [("input_tokens", self.input_tokens), ("output_tokens", self.output_tokens)]

    def read(self, body: bytes) -> None:
        """Takes what a body, or an event's data, says; anything else is passed over."""
        if b'"usage"' not in body:
            return
        try:
            said = json.loads(body)
        except (ValueError, RecursionError):
            return
        # Anthropic's message_start has it in the message, OpenAI's response.completed in the
        # response; all others have it at the top.
        for owner in (said, *(_item(said, name) for name in ("message", "response"))):
            self._take(_item(owner, "usage"))

    def _take(self, usage: Any) -> None:
        sent = _count(usage, "prompt_tokens", "input_tokens")
        if sent is not None:
            # Anthropic counts what it writes to its cache beside the rest, towards the limit.
            self.input_tokens = sent + (_count(usage, "cache_creation_input_tokens") or 0)
        received = _count(usage, "completion_tokens", "output_tokens")
        if received is not None:
            self.output_tokens = received


class EventStream(Usage):
    """The usage in a stream of server-sent events, and whether its last event has passed."""

    __slots__ = ("_decoder", "_rest", "begun", "finished")

    def __init__(self, encoding: str = "") -> None:
        """``encoding``: the answer's ``content-encoding``; some cannot be looked into."""
        super().__init__()
        self.begun = False
        """The first token has passed; or, in what cannot be looked into, the first bytes."""
        self.finished = False
        self._rest: bytes | None = b"" if encoding in ("", "identity", "gzip", "deflate") else None
        self._decoder = zlib.decompressobj(47) if encoding in ("gzip", "deflate") else None

    def feed(self, chunk: bytes) -> None:
        """The next bytes, as they came."""
        if self._rest is None:
            self.begun = True
            return
        if self._decoder is not None:
            try:
                chunk = self._decoder.decompress(chunk)
            except zlib.error:
                self._rest = None
                return
        *lines, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest if len(rest) <= _LONGEST_LINE else b""
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]" or _is_last(data):
            self.finished = True
        # These come when a request is accepted, or waits: not with a token.
        self.begun = self.begun or not any(name in data for name in _BEFORE_TOKENS)
        self.read(data)


def _is_last(data: bytes) -> bool:
    if b"message_stop" not in data and b"response.completed" not in data:
        return False
    try:
        return _item(json.loads(data), "type") in ("message_stop", "response.completed")
    except (ValueError, RecursionError):
        return False


def _item(owner: Any, name: str) -> Any:
    return owner.get(name) if isinstance(owner, dict) else None


def _count(usage: Any, *names: str) -> int | None:
    for name in names:
        count = _item(usage, name)
        if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= 10**12:
            return count
    return None
