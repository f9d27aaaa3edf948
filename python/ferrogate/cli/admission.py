"""What becomes of a request at the provider, the same on every wire."""

from __future__ import annotations

from dataclasses import dataclass

from ferrogate.cli.provider_core import Answer, ProviderCore, Refusal
from ferrogate.cli.wire import ARRIVAL_HEADER, BadRequest, ChatRequest, refusal

__all__ = ["Admitted", "Refused", "receive"]


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request is served with this answer."""

    chat: ChatRequest
    answer: Answer
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Refused:
    """The request is answered at once with an error, as JSON."""

    status: int
    body: bytes
    headers: dict[str, str]


def receive(core: ProviderCore, body: bytes, arrived: float) -> Admitted | Refused:
    """Parses and admits a request that arrived at ``arrived`` on the provider's clock."""
    try:
        chat = ChatRequest.parse(body)
    except BadRequest as error:
        text, _ = refusal(Refusal(400, "invalid_request_error", str(error)))
        return Refused(400, text, {})
    verdict = core.admit(chat.prompt, chat.input_tokens, chat.output_tokens)
    headers = core.headers() | {ARRIVAL_HEADER: f"{arrived:.6f}"}
    if isinstance(verdict, Refusal):
        text, more = refusal(verdict)
        return Refused(verdict.status, text, headers | more)
    return Admitted(chat, verdict, headers)
