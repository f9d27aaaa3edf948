"""Anthropic's messages, as its SDK expects them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ferrogate.cli.provider_core import Answer, LimitState, Refusal
from ferrogate.cli.wire import BadRequest, ChatRequest, Dialect, lengths, load, retry_seconds

__all__ = ["ANTHROPIC"]

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class _Anthropic(Dialect):
    def parse(self, body: bytes) -> ChatRequest:
        value = load(body)
        parts = [value.get("system", "")]
        parts += [message.get("content", "") for message in value["messages"]]
        prompt = "\n".join(filter(None, map(_text, parts)))
        if value.get("max_tokens") is None:
            raise BadRequest("'max_tokens' is required")
        metadata = value.get("metadata")
        sent, output, most = lengths(metadata, value["max_tokens"], prompt)
        user = metadata.get("user_id") if isinstance(metadata, dict) else None
        return ChatRequest(
            model=str(value.get("model", "")),
            prompt=prompt,
            input_tokens=sent,
            output_tokens=output,
            max_tokens=most,
            stream=bool(value.get("stream")),
            tenant=str(user or ""),
        )

    def whole(self, request: ChatRequest, answer: Answer, number: int, words: str) -> bytes:
        message = _envelope(request, number) | {
            "content": [{"type": "text", "text": words}],
            "stop_reason": _end(request),
            "usage": _usage(answer, answer.output_tokens),
        }
        return json.dumps(message).encode()

    def events(
        self, request: ChatRequest, answer: Answer, number: int, pieces: list[str]
    ) -> list[bytes]:
        """The usage comes twice: the input's in front, the output's at the end."""
        message = _envelope(request, number) | {"usage": _usage(answer, min(1, len(pieces)))}
        block = {"type": "text", "text": ""}
        start = _event("message_start", message=message)
        start += _event("content_block_start", index=0, content_block=block) + _event("ping")
        blocks = [
            _event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
            for piece in pieces
        ]
        end = {"stop_reason": _end(request), "stop_sequence": None}
        blocks.append(
            _event("content_block_stop", index=0)
            + _event("message_delta", delta=end, usage={"output_tokens": answer.output_tokens})
        )
        blocks[0] = start + blocks[0]
        return [*blocks, _event("message_stop")]

    def refusal(self, refused: Refusal, number: int) -> tuple[bytes, dict[str, str]]:
        kind = "api_error" if refused.status >= 500 else "invalid_request_error"
        name = f"req_{number}"
        error = {"type": _KINDS.get(refused.status, kind), "message": refused.message}
        body = {"type": "error", "error": error, "request_id": name}
        return json.dumps(body).encode(), retry_seconds(refused) | {"request-id": name}

    def headers(self, limits: Mapping[str, LimitState], unix: float) -> dict[str, str]:
        """``anthropic-ratelimit-*``.

        As Anthropic has it, the tokens that remain are rounded to the nearest
        thousand, and ``tokens`` sums input and output where nothing limits both.
        """
        states = dict(limits)
        apart = [states[kind] for kind in ("input-tokens", "output-tokens") if kind in states]
        if apart and "tokens" not in states:
            states["tokens"] = LimitState(
                sum(state.limit for state in apart),
                sum(state.remaining for state in apart),
                max(state.reset for state in apart),
            )
        headers: dict[str, str] = {}
        for kind, state in states.items():
            remaining = state.remaining
            if kind != "requests":
                remaining = min(state.limit, round(remaining, -3))
            headers[f"anthropic-ratelimit-{kind}-limit"] = str(state.limit)
            headers[f"anthropic-ratelimit-{kind}-remaining"] = str(remaining)
            headers[f"anthropic-ratelimit-{kind}-reset"] = _stamp(unix + state.reset)
        return headers


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)


def _end(request: ChatRequest) -> str:
    return "max_tokens" if request.cut else "end_turn"


def _envelope(request: ChatRequest, number: int) -> dict[str, Any]:
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _usage(answer: Answer, output: int) -> dict[str, int]:
    return {"input_tokens": answer.input_tokens, "output_tokens": output}


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()


def _stamp(unix: float) -> str:
    """RFC 3339, in whole seconds and never too early."""
    return datetime.fromtimestamp(math.ceil(unix), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


ANTHROPIC: Dialect = _Anthropic()
