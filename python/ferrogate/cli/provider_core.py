"""What the provider decides, without saying over which wire: shared by HTTP and virtual time.

Every request is judged at the moment it arrives, in this order: an injected
429, the size of the request against each limit, the concurrency limit, every
window together (all or nothing), an injected 500 or timeout. A refused request
spends nothing. (OpenAI also charges refused requests; not doing so is kinder to
a client that retries into the wall.)

Time comes from outside and is already scaled: a provider at ``speed`` 10 has a
minute of 6 seconds and answers in a tenth of the time.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ferrogate.cli.meter import Meter
from ferrogate.cli.provider_config import PRODUCED, ProviderConfig
from ferrogate.cli.provider_counts import ANSWERED, ARRIVED, REFUSED, Counts
from ferrogate.cli.windows import ExactWindow, Spent

__all__ = ["MOST_CHUNKS", "Answer", "LimitState", "ProviderCore", "Refusal"]

MOST_CHUNKS = 16
"""Pieces of an answer: a chunk a token would measure the JSON encoder, not the agent."""

_CONCURRENCY = "concurrency"


@dataclass(eq=False, slots=True)
class Answer:
    """The request is served: what it will be and when (seconds, scaled)."""

    input_tokens: int
    output_tokens: int
    ttft: float
    total: float
    lost: bool = False
    """An injected timeout: no answer will ever come."""
    tenant: str = ""
    admitted_at: float = 0.0
    charged: Spent | None = None
    """What its output was charged on admission, to be corrected when it ends."""
    ended: bool = False

    def produced(self, now: float) -> int:
        """Output tokens that there are by now."""
        elapsed = now - self.admitted_at
        if elapsed >= self.total:
            return self.output_tokens
        if elapsed < self.ttft:
            return 0
        share = (elapsed - self.ttft) / (self.total - self.ttft)
        return int(share * self.output_tokens)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request is not served."""

    status: int
    code: str
    message: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class LimitState:
    """How one kind of limit stands: its tightest window."""

    limit: int
    remaining: int
    reset: float
    """Seconds (scaled) until all of it is there again."""


@dataclass(frozen=True, slots=True)
class _Dimension:
    """One limit, and what a request costs of it."""

    kind: str
    window: ExactWindow
    cost: Callable[[int, int], int]
    """Of the input tokens, and of the output tokens that it may take."""
    correctable: bool = False
    when_produced: bool = False


@dataclass(order=True, slots=True)
class _Piece:
    """Tokens that will have been produced at a moment."""

    at: float
    number: int
    answer: Answer = field(compare=False)
    tokens: int = field(compare=False)


class ProviderCore:
    """Judges requests, plans answers and keeps the count that the report prints.

    `admit` an arriving request; after an `Answer`, call `finish` exactly once.
    Not for several threads at once.
    """

    def __init__(self, config: ProviderConfig, clock: Callable[[], float]) -> None:
        self.config = config
        self.counts = Counts()
        self._clock = clock
        self._faults = random.Random(f"faults:{config.seed}")
        self._started: float | None = None
        self._dimensions = _dimensions(config)
        self._slots = Meter(config.speed)
        self._pieces: list[_Piece] = []
        self._numbers = itertools.count()

    def admit(
        self,
        prompt: str,
        input_tokens: int,
        output_tokens: int,
        *,
        max_tokens: int | None = None,
        tenant: str = "",
    ) -> Answer | Refusal:
        """Judges a request that arrives now.

        Args:
            prompt: decides about the latency.
            input_tokens: as the provider counts them.
            output_tokens: what the answer will have.
            max_tokens: what it may have at most; the estimate of its output.
            tenant: for whose account.
        """
        now = self._arrive()
        counts, theirs = self.counts, self.counts.tenant(tenant)
        counts.received += 1
        theirs.received += 1
        if self._strikes(self.config.rate_429):
            counts.injected_429 += 1
            return Refusal(429, "injected_rate_limit", "injected 429", 1.0 / self.config.speed)
        reserved = output_tokens if max_tokens is None else max_tokens
        costs = [(each, each.cost(input_tokens, reserved)) for each in self._dimensions]
        waits = [(each.window.wait(now, cost), each.window.name) for each, cost in costs]
        if self.config.concurrency and counts.in_flight >= self.config.concurrency:
            waits.append((0.5 / self.config.speed, _CONCURRENCY))
        wait, name = max(waits, default=(0.0, ""))
        if math.isinf(wait):
            counts.too_large += 1
            theirs.too_large += 1
            return Refusal(
                429, "request_too_large", f"Request too large for {name}: can never be granted"
            )
        if wait > 0:
            counts.rate_limited += 1
            theirs.rate_limited += 1
            counts.rate_limited_by[name] = counts.rate_limited_by.get(name, 0) + 1
            self._tick(now, REFUSED)
            return Refusal(429, "rate_limit_exceeded", f"Rate limit reached for {name}", wait)
        charged: Spent | None = None
        for each, cost in costs:
            if not each.when_produced:
                spent = each.window.spend(now, cost)
                charged = spent if each.correctable else charged
        if self._strikes(self.config.rate_500):
            counts.injected_500 += 1
            return Refusal(500, "injected_error", "injected 500")
        theirs.admitted += 1
        theirs.admitted_input_tokens += input_tokens
        theirs.admitted_output_tokens += output_tokens
        ttft, total = self._latency(prompt, input_tokens, output_tokens)
        answer = Answer(
            input_tokens,
            output_tokens,
            ttft,
            total,
            tenant=tenant,
            admitted_at=now,
            charged=charged,
        )
        if self._strikes(self.config.rate_timeout):
            # Lost after acceptance: it stays in the windows but holds no slot,
            # since nobody will ever say that it has ended.
            counts.injected_timeout += 1
            answer.lost = True
            return answer
        if any(each.when_produced for each in self._dimensions):
            self._plan(answer)
        counts.in_flight += 1
        self._slots.move(now, 1)
        counts.peak_in_flight = max(counts.peak_in_flight, counts.in_flight)
        return answer

    def finish(self, answer: Answer, *, delivered: bool) -> None:
        """The answer has been sent, or its client has gone away."""
        if answer.lost:
            return
        now = self._produce()
        counts = self.counts
        counts.in_flight -= 1
        self._slots.move(now, -1)
        answer.ended = not delivered  # the pieces that nobody waits for are not produced
        if answer.charged is not None:
            produced = answer.output_tokens if delivered else answer.produced(now)
            for each in self._dimensions:
                if each.correctable and produced < answer.charged.units:
                    each.window.correct(now, answer.charged, produced)
        if delivered:
            counts.served += 1
            counts.tenant(answer.tenant).served += 1
            counts.input_tokens += answer.input_tokens
            counts.output_tokens += answer.output_tokens
            self._tick(now, ANSWERED)
        else:
            counts.abandoned += 1

    def limits(self) -> dict[str, LimitState]:
        """Each kind of limit as it stands now: requests, tokens, input-tokens, output-tokens."""
        now = self._produce()
        states: dict[str, LimitState] = {}
        for each in self._dimensions:
            window = each.window
            remaining = window.remaining(now)
            known = states.get(each.kind)
            if known is None or remaining < known.remaining:
                states[each.kind] = LimitState(window.limit, remaining, window.reset(now))
        return states

    def stats(self) -> dict[str, Any]:
        """The provider's own count, a timeline in seconds of trace time, how full each limit was.

        ``usage`` has the mean percent of each limit that was in use, for each
        second since the first arrival, which was at ``started`` on the
        provider's clock. For a window that is what the last minute (or hour)
        has spent of it.
        """
        now = self._produce()
        for each in self._dimensions:
            each.window.used(now)
        told = self.counts.to_dict()
        windows = [each.window for each in self._dimensions]
        told["peaks"] = {
            window.name: {"limit": window.limit, "most_in_any_window": window.peak}
            for window in windows
        }
        told["started"] = self._started
        told["usage"] = {
            window.name: window.meter.means(now, window.limit)
            for window in windows
            if window.meter is not None and self._started is not None
        }
        if self.config.concurrency and self._started is not None:
            told["usage"][_CONCURRENCY] = self._slots.means(now, self.config.concurrency)
        return told

    def _arrive(self) -> float:
        now = self._produce()
        if self._started is None:
            self._started = now
            for each in self._dimensions:
                if each.window.meter is not None:
                    each.window.meter.begin(now)
            self._slots.begin(now)
        self._tick(now, ARRIVED)
        return now

    def _plan(self, answer: Answer) -> None:
        """Says when which piece of the answer will have been produced."""
        pieces = max(1, min(MOST_CHUNKS, answer.output_tokens))
        for piece in range(pieces):
            tokens = answer.output_tokens * (piece + 1) // pieces
            tokens -= answer.output_tokens * piece // pieces
            share = piece / (pieces - 1) if pieces > 1 else 0.0
            at = answer.admitted_at + answer.ttft + share * (answer.total - answer.ttft)
            heapq.heappush(self._pieces, _Piece(at, next(self._numbers), answer, tokens))

    def _produce(self) -> float:
        """Counts what has been produced by now, each piece at its own time."""
        now = self._clock()
        while self._pieces and self._pieces[0].at <= now:
            piece = heapq.heappop(self._pieces)
            for each in self._dimensions:
                if each.when_produced and not piece.answer.ended:
                    each.window.spend(piece.at, piece.tokens)
        return now

    def _strikes(self, rate: float) -> bool:
        return rate > 0 and self._faults.random() < rate

    def _latency(self, prompt: str, input_tokens: int, output_tokens: int) -> tuple[float, float]:
        """Time to the first token and to the last: the same for the same prompt and seed."""
        config = self.config
        rng = random.Random(f"latency:{config.seed}:{prompt}")
        ttft = config.ttft_base + config.ttft_per_input_token * input_tokens
        ttft *= rng.lognormvariate(0.0, 0.25)
        decode = config.seconds_per_output_token * output_tokens * rng.lognormvariate(0.0, 0.15)
        return ttft / config.speed, (ttft + decode) / config.speed

    def _tick(self, now: float, column: int) -> None:
        assert self._started is not None
        self.counts.tick((now - self._started) * self.config.speed, column)


def _dimensions(config: ProviderConfig) -> list[_Dimension]:
    """The limits that there are."""
    produced = config.output_counted == PRODUCED

    def request(_input: int, _output: int) -> int:
        return 1

    def both(input_tokens: int, output_tokens: int) -> int:
        return input_tokens + output_tokens

    def sent(input_tokens: int, _output: int) -> int:
        return input_tokens

    def received(_input: int, output_tokens: int) -> int:
        # One token of room is all that counting what is produced can ask for.
        return 1 if produced else output_tokens

    asked: tuple[tuple[str, str, int, float, Callable[[int, int], int]], ...] = (
        ("requests", "requests per minute", config.requests_per_minute, 60.0, request),
        ("requests", "requests per hour", config.requests_per_hour, 3600.0, request),
        ("tokens", "tokens per minute", config.tokens_per_minute, 60.0, both),
        ("input-tokens", "input tokens per minute", config.input_tokens_per_minute, 60.0, sent),
        (
            "output-tokens",
            "output tokens per minute",
            config.output_tokens_per_minute,
            60.0,
            received,
        ),
    )
    return [
        _Dimension(
            kind,
            ExactWindow(name, limit, seconds / config.speed, Meter(config.speed)),
            cost,
            correctable=kind == "output-tokens" and not produced,
            when_produced=kind == "output-tokens" and produced,
        )
        for kind, name, limit, seconds, cost in asked
        if limit
    ]
