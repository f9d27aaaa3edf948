"""The provider's HTTP bodies: OpenAI's chat completions, as the SDK expects them.

A request says which trace row it is in OpenAI's own fields: ``max_tokens`` is
the length of the answer, and ``metadata`` may carry ``input_tokens`` and
``output_tokens`` (as strings, as OpenAI wants them). Without metadata the
prompt is taken to have a token for every four characters and the answer
``max_tokens`` tokens, or 128.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ferrogate.cli.provider_core import Answer, Refusal

__all__ = ["ARRIVAL_HEADER", "BadRequest", "ChatRequest", "completion", "refusal", "stream_chunks"]

ARRIVAL_HEADER = "x-arrival-seconds"
"""The provider's monotonic clock when the request arrived; comparable on the same machine."""

_DEFAULT_ANSWER = 128
_WORDS = ("one ", "call ", "more ", "goes ", "through ", "the ", "gate ", "now ")
# A stream of one chunk a token would measure the JSON encoder, not the agent.
_MOST_CHUNKS = 16


class BadRequest(Exception):
    """The request is not one of OpenAI's: HTTP 400."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """The part of a chat completion request that decides about its answer."""

    model: str
    prompt: str
    input_tokens: int
    output_tokens: int
    stream: bool

    @classmethod
    def parse(cls, body: bytes) -> ChatRequest:
        """Reads a request's body.

        Raises:
            BadRequest: it is not a chat completion request.
        """
        try:
            value = json.loads(body)
        except ValueError:
            raise BadRequest("the body is not JSON") from None
        if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
            raise BadRequest("'messages' must be a list")
        if not all(isinstance(message, dict) for message in value["messages"]):
            raise BadRequest("every message must be an object")
        prompt = "\n".join(str(message.get("content", "")) for message in value["messages"])
        metadata: Any = value.get("metadata") or {}
        limit: Any = value.get("max_completion_tokens") or value.get("max_tokens")
        try:
            output = int(metadata.get("output_tokens", limit or _DEFAULT_ANSWER))
            sent = int(metadata.get("input_tokens", max(1, len(prompt) // 4)))
        except (AttributeError, TypeError, ValueError):
            raise BadRequest("token counts must be whole numbers") from None
        if output < 0 or sent < 0:
            raise BadRequest("token counts must not be negative")
        return cls(str(value.get("model", "")), prompt, sent, output, bool(value.get("stream")))


def completion(request: ChatRequest, answer: Answer, number: int) -> bytes:
    """The body of an answer that is not streamed."""
    return json.dumps(
        _envelope(request, number, "chat.completion")
        | {
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": _text(answer.output_tokens)},
                    "finish_reason": "stop",
                }
            ],
            "usage": _usage(answer),
        }
    ).encode()


def stream_chunks(request: ChatRequest, answer: Answer, number: int) -> list[bytes]:
    """The server-sent events of a streamed answer; the last but one carries the usage."""
    pieces = max(1, min(_MOST_CHUNKS, answer.output_tokens))
    bounds = [answer.output_tokens * i // pieces for i in range(pieces + 1)]
    base = _envelope(request, number, "chat.completion.chunk")
    chunks: list[dict[str, Any]] = []
    for start, end in pairwise(bounds):
        delta = {"content": _text(end - start)}
        if start == 0:
            delta["role"] = "assistant"
        chunks.append(
            base | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        )
    chunks.append(
        base
        | {
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
            "usage": _usage(answer),
        }
    )
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [
        b"data: [DONE]\n\n"
    ]


def refusal(refused: Refusal) -> tuple[bytes, dict[str, str]]:
    """The body and the extra headers of a refusal."""
    headers: dict[str, str] = {}
    if refused.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(refused.retry_after)))
        headers["retry-after-ms"] = str(math.ceil(refused.retry_after * 1000))
    kind = "server_error" if refused.status >= 500 else "requests"
    error = {"message": refused.message, "type": kind, "param": None, "code": refused.code}
    return json.dumps({"error": error}).encode(), headers


def _envelope(request: ChatRequest, number: int, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number}", "object": kind, "created": 0, "model": request.model}


def _usage(answer: Answer) -> dict[str, int]:
    return {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
    }


def _text(tokens: int) -> str:
    whole, rest = divmod(tokens, len(_WORDS))
    return "".join(_WORDS) * whole + "".join(_WORDS[:rest])
