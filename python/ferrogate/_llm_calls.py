"""What a call to a model asks for and what it took, read from its arguments and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["estimate", "usage"]

# English prose has some four characters a token; other text has fewer, and providers count more.
_CHARACTERS_PER_TOKEN = 4
# Who writes, and what separates messages.
_TOKENS_PER_MESSAGE = 4
# Of everything that may hold text: deep enough for messages with parts.
_DEEPEST = 6

_PROMPTS = ("messages", "prompt", "input", "contents", "system", "instructions", "tools")
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


def estimate(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """The keywords of ``LLMLimiter.reserve`` for a call with these arguments.

    Prompts are looked for where the SDKs of OpenAI and Anthropic have them, else in all
    positional arguments; a token is four characters.
    """
    asked: dict[str, Any] = {}
    prompts = [kwargs[name] for name in _PROMPTS if name in kwargs]
    asked["input_tokens"] = _tokens(prompts or list(args), _DEEPEST)
    for name in _LIMITS:
        most = kwargs.get(name)
        if isinstance(most, int) and not isinstance(most, bool) and most >= 0:
            asked["max_output_tokens"] = most
            break
    model = kwargs.get("model")
    if isinstance(model, str):
        asked["model"] = model
    return asked


def _tokens(value: Any, deeper: int) -> int:
    if isinstance(value, str):
        return -(-len(value) // _CHARACTERS_PER_TOKEN)
    if deeper == 0:
        return 0
    if isinstance(value, Mapping):
        return _TOKENS_PER_MESSAGE + sum(_tokens(part, deeper - 1) for part in value.values())
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return sum(_tokens(part, deeper - 1) for part in value)
    return 0


def usage(result: Any) -> dict[str, Any]:
    """The keywords of ``Reservation.settle`` for a result: its ``usage`` as OpenAI or Anthropic
    give it, as an object or a mapping; nothing where there is none."""
    told = _field(result, "usage")
    if told is None:
        return {}
    used: dict[str, Any] = {}
    for ours, theirs in (
        ("input_tokens", ("input_tokens", "prompt_tokens")),
        ("output_tokens", ("output_tokens", "completion_tokens")),
    ):
        for name in theirs:
            count = _field(told, name)
            if isinstance(count, int) and not isinstance(count, bool) and count >= 0:
                used[ours] = count
                break
    return used


def _field(of: Any, name: str) -> Any:
    if isinstance(of, Mapping):
        return of.get(name)
    return getattr(of, name, None)
