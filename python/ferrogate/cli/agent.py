"""The client side: an agent that sends every row of a trace through the OpenAI SDK.

The same agent runs twice, with and without ferrogate. Both call
``AsyncOpenAI.chat.completions.create`` with the SDK's own retries off and both
repeat a failed attempt by the rule that the SDK has by default (two retries
after 429, 5xx, a timeout or a broken connection; ``retry-after`` obeyed up to
two minutes, else 0.5 s doubled up to 8 s, less up to a quarter). That rule
stands here and not in the SDK, so that its pauses scale with ``--speed`` and
its attempts are counted.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import openai

from ferrogate.cli.traces import Row
from ferrogate.cli.wire import ARRIVAL_HEADER, TENANT_HEADER

__all__ = [
    "Agent",
    "Ask",
    "Attempts",
    "Demand",
    "Permit",
    "Refused",
    "Reply",
    "Reservation",
    "Reuse",
    "Run",
    "UnguardedAgent",
]

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 8.0
_LONGEST_RETRY_AFTER = 120.0


class Refused(Exception):
    """Never sent: it could never be granted, or waited longer than the agent wants to."""

    def __init__(self, reason: str, *, never: bool) -> None:
        super().__init__(reason)
        self.never = never


@dataclass(frozen=True, slots=True)
class Reply:
    """What an agent keeps of an answer."""

    text: str
    input_tokens: int
    output_tokens: int


@dataclass(slots=True)
class Demand:
    """What a tenant's requests asked of the provider, answers from the cache apart."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Run:
    """What the client side saw of one run; seconds are trace time."""

    name: str
    requests: int = 0
    answered: int = 0
    failed: int = 0
    hits: int = 0
    joins: int = 0
    """Answered by a call of somebody else's that was under way."""
    rejected: int = 0
    unfinished: int = 0
    attempts: int = 0
    retries: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    saved_input_tokens: int = 0
    saved_output_tokens: int = 0
    latencies: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    transits: list[float] = field(default_factory=list)
    """From the start of an attempt to its arrival at the provider, in real seconds."""
    late: float = 0.0
    """By how much the latest request left after its time, in real seconds."""
    never_granted: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    wall_seconds: float = 0.0
    interrupted: bool = False
    stopped: str = ""
    """What ended the run early, if it was not the user."""
    backlog: list[tuple[float, float]] = field(default_factory=list)
    """When requests waited for a permit, from and to, on the loop's clock."""
    demand: dict[str, Demand] = field(default_factory=dict)
    tenants_when_all_was_sent: dict[str, dict[str, int]] = field(default_factory=dict)
    """The provider's count by tenant at the moment of the last arrival."""
    provider: dict[str, Any] = field(default_factory=dict)
    components: dict[str, Any] = field(default_factory=dict)


class Reuse(Enum):
    """Where an answer came from, if not from a call of its own."""

    HIT = "hit"
    JOIN = "join"


@dataclass(slots=True)
class Ask:
    """One row on its way, and what happened to it."""

    row: Row
    run: Run
    retries: int = 0
    reuse: Reuse | None = None


class Agent(Protocol):
    """Answers rows."""

    async def ask(self, ask: Ask) -> Reply:
        """The answer; ``ask`` learns how it came."""
        ...


class Reservation(Protocol):
    """What a permit has taken of the provider's limits."""

    def settle(self, *, input_tokens: int, output_tokens: int) -> None:
        """The answer has come, and spent so much."""
        ...


Permit = Callable[[Ask], AbstractAsyncContextManager[Reservation | None]]
"""What an attempt has to pass: entered before it is sent, left when it is over."""


class Attempts:
    """Calls the provider for a row until it answers or the retries are spent."""

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        *,
        model: str,
        speed: float,
        retries: int,
        timeout: float,
        stream: bool,
        seed: int,
    ) -> None:
        self._client = client
        self._model = model
        self._speed = speed
        self._retries = retries
        self._timeout = timeout / speed
        self._stream = stream
        self._jitter = random.Random(f"jitter:{seed}")

    async def call(self, ask: Ask, permit: Permit) -> Reply:
        """One answer; every attempt goes through ``async with permit(ask)``."""
        run = ask.run
        while True:
            try:
                async with permit(ask) as reservation:
                    reply = await self._once(ask.row, run)
                    if reservation is not None:
                        reservation.settle(
                            input_tokens=reply.input_tokens, output_tokens=reply.output_tokens
                        )
                    return reply
            except openai.APIStatusError as error:
                kind = f"{error.status_code} {error.code or ''}".strip()
                headers: Any = error.response.headers
                again = error.status_code == 429 or error.status_code >= 500
                again = again and error.code != "request_too_large"
                failure: Exception = error
            except openai.APITimeoutError as error:
                kind, headers, again, failure = "timeout", {}, True, error
            except openai.APIConnectionError as error:
                kind, headers, again, failure = "connection", {}, True, error
            run.errors[kind] += 1
            pause = self._pause(ask.retries, headers)
            if not again or ask.retries >= self._retries or pause is None:
                raise failure
            ask.retries += 1
            run.retries += 1
            await asyncio.sleep(pause)

    async def _once(self, row: Row, run: Run) -> Reply:
        run.attempts += 1
        started = asyncio.get_running_loop().time()
        request: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": row.prompt}],
            "max_tokens": row.max_tokens,
            "metadata": {
                "input_tokens": str(row.input_tokens),
                "output_tokens": str(row.output_tokens),
            },
            "timeout": self._timeout,
        }
        if row.tenant:
            request["extra_headers"] = {TENANT_HEADER: row.tenant}
        create = self._client.chat.completions.with_raw_response.create
        if self._stream:
            raw = await create(**request, stream=True)
            self._arrived(raw.headers, started, run)
            return await _collect(raw.parse(), row)
        raw = await create(**request)
        self._arrived(raw.headers, started, run)
        done = raw.parse()
        usage = done.usage
        return Reply(
            done.choices[0].message.content or "", usage.prompt_tokens, usage.completion_tokens
        )

    def _arrived(self, headers: Any, started: float, run: Run) -> None:
        stamp = headers.get(ARRIVAL_HEADER)
        if stamp is not None:
            run.transits.append(float(stamp) - started)

    def _pause(self, attempt: int, headers: Any) -> float | None:
        """Seconds (scaled) before the next attempt, or None if it is not worth it."""
        for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
            if (value := headers.get(name)) is not None:
                asked = float(value) * unit
                return asked if asked * self._speed <= _LONGEST_RETRY_AFTER else None
        pause = min(_FIRST_PAUSE * 2.0 ** min(attempt, 10), _LONGEST_PAUSE)
        return pause * (1 - 0.25 * self._jitter.random()) / self._speed


async def _collect(stream: Any, row: Row) -> Reply:
    pieces: list[str] = []
    sent, received = row.input_tokens, row.output_tokens
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
        if chunk.usage is not None:
            sent, received = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
    return Reply("".join(pieces), sent, received)


class UnguardedAgent:
    """The plain SDK: every row is a call, whenever it comes."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts

    async def ask(self, ask: Ask) -> Reply:
        """Calls the provider and asks nobody before."""
        return await self._attempts.call(ask, lambda _ask: nullcontext())
