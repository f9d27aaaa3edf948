"""The key row: a chat request of 10 KB, to a key that is the same everywhere."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from importlib import import_module
from typing import Any

from measure import Contender, Namespace, Row, Target

ENGLISH = "Our invoice of March shows two positions that we did not order, 'plan B' for one. "
# Beyond Latin-1, as typographic quotes are: CPython keeps two bytes a character.
QUOTED = "Our invoice of March shows two positions that we did not order, “plan B” for one. "


def chat_request(sentence: str) -> dict[str, Any]:
    """What an agent sends: a system prompt, a conversation, two tools; 10 KB as JSON."""
    turns = [
        {"role": ("user", "assistant")[n % 2], "content": f"{n}: " + sentence * (3 + n % 4)}
        for n in range(20)
    ]
    tool = {
        "type": "function",
        "function": {
            "name": "find_invoice",
            "description": "Finds an invoice by its number or by customer and month.",
            "parameters": {
                "type": "object",
                "properties": {
                    "number": {"type": "string"},
                    "customer": {"type": "integer", "minimum": 1},
                    "month": {"type": ["string", "null"], "enum": ["2026-03", "2026-04", None]},
                },
                "required": ["customer"],
            },
        },
    }
    return {
        "model": "gpt-5-mini",
        "messages": [{"role": "system", "content": sentence * 6}, *turns],
        "tools": [tool, tool | {"type": "custom"}],
        "temperature": 0.2,
        "max_tokens": 800,
        "stream": False,
    }


def by_json(sentence: str) -> Namespace:
    request = chat_request(sentence)
    size = len(json.dumps(request).encode())
    assert 9_000 <= size <= 11_500, f"the request has {size} bytes"

    def key_of(value: Any) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    return {"key_of": key_of, "request": request}


def ours(sentence: str) -> Namespace:
    request = chat_request(sentence)
    key_of = import_module("ferrogate").cache_key
    turned = dict(reversed(request.items()))

    def verify() -> None:
        assert key_of(request) == key_of(turned)
        assert key_of(request) != key_of(request | {"temperature": 0.3})

    return {"key_of": key_of, "request": request, "verify": verify}


ROWS = [
    Row(
        f"canonical key of a 10 KB chat request, {script}",
        Target(at_most=0.1, says="≥ 10 x faster"),
        [
            Contender(
                "json.dumps(sort_keys) + sha256", "key_of(request)", partial(by_json, sentence)
            ),
            Contender(
                "ferrogate.cache_key", "key_of(request)", partial(ours, sentence), "ferrogate"
            ),
        ],
        tuple(range(10)),
    )
    for script, sentence in (("ASCII", ENGLISH), ("typographic quotes", QUOTED))
]
