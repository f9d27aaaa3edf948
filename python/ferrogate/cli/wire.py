"""What the provider's two dialects share: the request as it understands it, and its times.

A request says which trace row it is in fields that the real APIs have too:
``max_tokens`` is what it may take at most, and ``metadata`` may carry
``input_tokens`` and ``output_tokens`` (as strings, as OpenAI wants them).
Without metadata the prompt is taken to have a token for every four characters
and the answer ``max_tokens`` tokens, or 128.

Its tenant is the header ``x-tenant``, or ``user`` (OpenAI) or
``metadata.user_id`` (Anthropic).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from ferrogate.cli.provider_core import MOST_CHUNKS, Answer, LimitState, Refusal

__all__ = [
    "ARRIVAL_HEADER",
    "TENANT_HEADER",
    "BadRequest",
    "ChatRequest",
    "Dialect",
    "bounds",
    "lengths",
    "load",
    "retry_seconds",
    "text",
]

ARRIVAL_HEADER = "x-arrival-seconds"
"""The provider's monotonic clock when the request arrived; comparable on the same machine."""
TENANT_HEADER = "x-tenant"

_DEFAULT_ANSWER = 128
_WORDS = ("one ", "call ", "more ", "goes ", "through ", "the ", "gate ", "now ")


class BadRequest(Exception):
    """The request is not one of this API's: HTTP 400."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """The part of a request that decides about its answer."""

    model: str
    prompt: str
    input_tokens: int
    output_tokens: int
    max_tokens: int | None
    stream: bool
    tenant: str = ""

    @property
    def cut(self) -> bool:
        """Whether `max_tokens` is shorter than the answer would be."""
        return self.max_tokens is not None and self.output_tokens > self.max_tokens

    @property
    def produced(self) -> int:
        """Tokens of the answer."""
        most = self.output_tokens if self.max_tokens is None else self.max_tokens
        return min(self.output_tokens, most)


class Dialect(Protocol):
    """How one API spells requests, answers, refusals and limits."""

    def parse(self, body: bytes) -> ChatRequest:
        """Reads a request's body.

        Raises:
            BadRequest: it is not one.
        """
        ...

    def whole(self, request: ChatRequest, answer: Answer, number: int, words: str) -> bytes:
        """The body of an answer that is not streamed and says ``words``."""
        ...

    def events(
        self, request: ChatRequest, answer: Answer, number: int, pieces: list[str]
    ) -> list[bytes]:
        """The server-sent events of a streamed answer that comes in ``pieces``.

        One block for each piece or more; the last block has no more of the
        answer, and leaves when its slot is free again.
        """
        ...

    def refusal(self, refused: Refusal, number: int) -> tuple[bytes, dict[str, str]]:
        """The body and the extra headers of a refusal."""
        ...

    def headers(self, limits: Mapping[str, LimitState], unix: float) -> dict[str, str]:
        """The limits as they stand at ``unix`` seconds after 1970."""
        ...


def load(body: bytes) -> dict[str, Any]:
    """A request's JSON object with its list of messages.

    Raises:
        BadRequest: it is not one.
    """
    try:
        value = json.loads(body)
    except ValueError:
        raise BadRequest("the body is not JSON") from None
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        raise BadRequest("'messages' must be a list")
    if not all(isinstance(message, dict) for message in value["messages"]):
        raise BadRequest("every message must be an object")
    return value


def lengths(metadata: Any, limit: Any, prompt: str) -> tuple[int, int, int | None]:
    """Input tokens, output tokens and the most of them, as the request says or implies.

    Raises:
        BadRequest: they are no counts.
    """
    metadata = metadata or {}
    try:
        most = None if limit is None else int(limit)
        output = int(metadata.get("output_tokens", most or _DEFAULT_ANSWER))
        sent = int(metadata.get("input_tokens", max(1, len(prompt) // 4)))
    except (AttributeError, TypeError, ValueError):
        raise BadRequest("token counts must be whole numbers") from None
    if output < 0 or sent < 0 or (most is not None and most < 0):
        raise BadRequest("token counts must not be negative")
    return sent, output, most


def bounds(tokens: int) -> list[tuple[int, int]]:
    """The pieces in which that many tokens are streamed."""
    pieces = max(1, min(MOST_CHUNKS, tokens))
    return list(pairwise(tokens * piece // pieces for piece in range(pieces + 1)))


def text(tokens: int) -> str:
    """An answer of that many tokens."""
    whole, rest = divmod(tokens, len(_WORDS))
    return "".join(_WORDS) * whole + "".join(_WORDS[:rest])


def retry_seconds(refused: Refusal) -> dict[str, str]:
    """``retry-after``, if there is an after."""
    if refused.retry_after is None:
        return {}
    return {"retry-after": str(max(1, math.ceil(refused.retry_after)))}
