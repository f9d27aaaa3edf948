"""OpenAI's chat completions, as its SDK expects them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ferrogate.cli.provider_core import Answer, LimitState, Refusal
from ferrogate.cli.windows import format_duration
from ferrogate.cli.wire import ChatRequest, Dialect, lengths, load, retry_seconds

__all__ = ["OPENAI"]


class _OpenAI(Dialect):
    def parse(self, body: bytes) -> ChatRequest:
        value = load(body)
        prompt = "\n".join(str(message.get("content", "")) for message in value["messages"])
        limit = value.get("max_completion_tokens") or value.get("max_tokens")
        sent, output, most = lengths(value.get("metadata"), limit, prompt)
        return ChatRequest(
            model=str(value.get("model", "")),
            prompt=prompt,
            input_tokens=sent,
            output_tokens=output,
            max_tokens=most,
            stream=bool(value.get("stream")),
            tenant=str(value.get("user") or ""),
        )

    def whole(self, request: ChatRequest, answer: Answer, number: int, words: str) -> bytes:
        message = {"role": "assistant", "content": words}
        choice = {"index": 0, "message": message, "finish_reason": _end(request)}
        body = _envelope(request, number, "chat.completion")
        return json.dumps(body | {"choices": [choice], "usage": _usage(answer)}).encode()

    def events(
        self, request: ChatRequest, answer: Answer, number: int, pieces: list[str]
    ) -> list[bytes]:
        """The last but one carries the usage."""
        base = _envelope(request, number, "chat.completion.chunk")
        chunks: list[dict[str, Any]] = []
        for piece in pieces:
            delta = {"content": piece} if chunks else {"content": piece, "role": "assistant"}
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            chunks.append(base | {"choices": [choice]})
        last = {"index": 0, "delta": {}, "finish_reason": _end(request)}
        chunks.append(base | {"choices": [last], "usage": _usage(answer)})
        return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [
            b"data: [DONE]\n\n"
        ]

    def refusal(self, refused: Refusal, number: int) -> tuple[bytes, dict[str, str]]:
        headers = retry_seconds(refused)
        if refused.retry_after is not None:
            headers["retry-after-ms"] = str(math.ceil(refused.retry_after * 1000))
        kind = "server_error" if refused.status >= 500 else "requests"
        error = {"message": refused.message, "type": kind, "param": None, "code": refused.code}
        return json.dumps({"error": error}).encode(), headers

    def headers(self, limits: Mapping[str, LimitState], unix: float) -> dict[str, str]:
        """``x-ratelimit-*``; of all limits on tokens the tightest, since OpenAI has one."""
        headers: dict[str, str] = {}
        tokens = [state for kind, state in limits.items() if kind.endswith("tokens")]
        named = {"requests": [limits["requests"]] if "requests" in limits else [], "tokens": tokens}
        for kind, states in named.items():
            if states:
                state = min(states, key=lambda state: state.remaining)
                headers[f"x-ratelimit-limit-{kind}"] = str(state.limit)
                headers[f"x-ratelimit-remaining-{kind}"] = str(state.remaining)
                headers[f"x-ratelimit-reset-{kind}"] = format_duration(state.reset)
        return headers


def _end(request: ChatRequest) -> str:
    return "length" if request.cut else "stop"


def _envelope(request: ChatRequest, number: int, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number}", "object": kind, "created": 0, "model": request.model}


def _usage(answer: Answer) -> dict[str, int]:
    return {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
    }


OPENAI: Dialect = _OpenAI()
