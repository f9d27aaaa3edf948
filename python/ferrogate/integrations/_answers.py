"""Whole responses, as the guarded HTTP clients keep them and make them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

from ferrogate.exceptions import CircuitBreakerOpenError, FerrogateError, RateLimitExceeded

__all__ = ["Answer", "Answered", "Pairs", "made_here", "refusal"]

Pairs = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: Pairs
    body: bytes
    error: FerrogateError | None = None
    """Why there was no other, where it was made here."""
    source: Any = None
    """The response of a library that has no way to make one."""

    def header(self, name: bytes) -> str:
        """A header's value, or ``""``."""
        for known, value in self.headers:
            if known.lower() == name:
                return value.decode("latin-1")
        return ""

    def final(self, again_in: float | None = None) -> Answer:
        """The same, telling the layers above that it is not worth trying again.

        The SDKs of OpenAI and Anthropic heed ``x-should-retry``.
        """
        changed = {b"x-should-retry": b"false"}
        if again_in is not None:
            changed[b"retry-after"] = str(math.ceil(again_in)).encode()
            changed[b"retry-after-ms"] = str(math.ceil(again_in * 1000)).encode()
        kept = [pair for pair in self.headers if pair[0].lower() not in changed]
        return replace(self, headers=kept + list(changed.items()))


class Answered(Exception):
    """A response with a status that says something went wrong.

    Raised within the guard, whose parts look at errors, and never out of a transport.
    """

    def __init__(self, response: Any, answer: Answer) -> None:
        super().__init__(f"HTTP {answer.status}")
        self.response = response
        self.status_code = answer.status
        self.answer = answer


def refusal(error: FerrogateError) -> Answer:
    """The response that stands for ``error``, so that an SDK makes its usual exception of it."""
    kind, status = "refused", 503
    if isinstance(error, RateLimitExceeded):
        kind, status = "rate_limit_error", 429
    elif isinstance(error, CircuitBreakerOpenError):
        kind = "circuit_open"
    made = made_here(status, str(error), kind, error)
    again_in = getattr(error, "retry_after", math.inf)
    return made.final(again_in if math.isfinite(again_in) else None)


def made_here(status: int, message: str, kind: str, error: FerrogateError | None = None) -> Answer:
    """A response of ours."""
    # Both OpenAI's SDK and Anthropic's find the message in this.
    body = {"type": "error", "error": {"type": kind, "code": "ferrogate", "message": message}}
    headers = [(b"content-type", b"application/json"), (b"x-ferrogate", kind.encode())]
    return Answer(status, headers, json.dumps(body).encode(), error)
