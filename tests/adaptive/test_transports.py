"""What a transport sees of a streamed answer is what the limit goes by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from http_sides import EVENTS, JSON, Side

from ferrogate import AdaptiveConcurrency, Guard, LLMLimiter
from ferrogate.testing import ManualClock

pytest.importorskip("httpx")
pytest.importorskip("httpx2")

ANTHROPIC = [
    (1.0, {"type": "message_start", "message": {"usage": {"input_tokens": 9}}}),
    (1.0, {"type": "ping"}),
    (1.0, {"type": "content_block_delta", "delta": {"text": "a"}}),
    (6.0, {"type": "message_delta", "usage": {"output_tokens": 7}}),
    (0.0, {"type": "message_stop"}),
]
OPENAI = [
    (3.0, {"choices": [{"delta": {"content": "a"}}]}),
    (6.0, {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 7}}),
]
RESPONSES = [
    (1.0, {"type": "response.created"}),
    (1.0, {"type": "response.in_progress"}),
    (1.0, {"type": "response.output_text.delta", "delta": "a"}),
    (
        6.0,
        {
            "type": "response.completed",
            "response": {"usage": {"input_tokens": 9, "output_tokens": 7}},
        },
    ),
]


class Paced(list[Any]):
    """Pieces of a body that take their time, on the test's clock."""

    def __init__(self, clock: ManualClock, events: list[tuple[float, Any]]) -> None:
        super().__init__(events)
        self.clock = clock

    def __iter__(self) -> Iterator[bytes]:
        yield b": waiting for a place\n\n"
        for pause, event in super().__iter__():
            self.clock.advance(pause)
            yield b"data: %b\n\n" % json.dumps(event).encode()


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("events", [OPENAI, RESPONSES, ANTHROPIC])
@pytest.mark.parametrize(("signal", "usual"), [("ttft", 3.0), ("tpot", 1.0), ("latency", 9.0)])
def test_the_first_event_with_a_token_and_the_count_of_tokens_are_seen(
    name: str, blocks: bool, events: list[Any], signal: str, usual: float
) -> None:
    clock = ManualClock()
    found = AdaptiveConcurrency(signal=signal, window=1)
    limiter = LLMLimiter(concurrency=found, clock=clock)
    bulkhead = None if signal == "tpot" else found
    guard = Guard("provider", limiter=limiter, bulkhead=bulkhead, clock=clock)
    client = Side(name, blocks).client([(200, EVENTS, Paced(clock, events))] * 3, guard)
    for _ in range(3):
        client.stream()
    seen = [limiter.get_stats()["adaptive_concurrency"]]
    if bulkhead is not None:
        slots = guard.get_stats()["bulkhead"]
        assert slots is not None
        seen.append(slots["adaptive_concurrency"])
    for stats in seen:
        assert stats is not None
        assert (stats["samples"], stats["skipped"], stats["usual_seconds"]) == (3, 0, usual)


@pytest.mark.parametrize("blocks", [False, True])
def test_whole_answers_have_no_first_token_and_refusals_cut_once(blocks: bool) -> None:
    clock = ManualClock()
    limiter = LLMLimiter(concurrency=AdaptiveConcurrency(20), adaptive_rate=True, clock=clock)
    guard = Guard("provider", limiter=limiter, clock=clock)
    body = json.dumps({"usage": {"prompt_tokens": 9, "completion_tokens": 7}}).encode()
    replies: list[Any] = [(200, JSON, [body]), (429, JSON, [b"{}"]), (529, JSON, [b"{}"])]
    client = Side("httpx", blocks).client(replies, guard)
    for status in (200, 429, 529):
        clock.advance(60)
        assert client.ask(json={"messages": status}).status_code == status
    stats = limiter.get_stats()
    assert stats["adaptive_concurrency"] is not None
    assert stats["adaptive_concurrency"]["limit"] == 9
    assert (stats["adaptive_concurrency"]["skipped"], stats["adaptive_concurrency"]["cuts"]) == (
        1,
        2,
    )
    assert stats["adaptive_rate"] is not None
    assert stats["adaptive_rate"]["cuts"] == 1
