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

import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ferrogate.cli.windows import ExactWindow, format_duration

__all__ = ["Answer", "ProviderConfig", "ProviderCore", "Refusal"]

# One bin a second of trace time; a longer run is counted in the last one.
_MOST_BINS = 200_000


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """The provider's settings in trace time; 0 means "no such limit"."""

    requests_per_minute: int = 0
    requests_per_hour: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0
    rate_429: float = 0.0
    rate_500: float = 0.0
    rate_timeout: float = 0.0
    ttft_base: float = 0.2
    ttft_per_input_token: float = 0.00025
    seconds_per_output_token: float = 0.02
    seed: int = 0
    speed: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rate_429", "rate_500", "rate_timeout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be a share between 0 and 1")
        for name in (
            "requests_per_minute",
            "requests_per_hour",
            "tokens_per_minute",
            "concurrency",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise ValueError("speed must be a positive number")

    def to_dict(self) -> dict[str, Any]:
        """A JSON object that `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ProviderConfig:
        """Reads `to_dict`'s object."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True, slots=True)
class Answer:
    """The request is served: what it will be and when (seconds, scaled)."""

    input_tokens: int
    output_tokens: int
    ttft: float
    total: float
    lost: bool = False
    """An injected timeout: no answer will ever come."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request is not served."""

    status: int
    code: str
    message: str
    retry_after: float | None = None


@dataclass(slots=True)
class _Counts:
    received: int = 0
    served: int = 0
    abandoned: int = 0
    rate_limited: int = 0
    rate_limited_by: dict[str, int] = field(default_factory=dict)
    too_large: int = 0
    injected_429: int = 0
    injected_500: int = 0
    injected_timeout: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0


class ProviderCore:
    """Judges requests, plans answers and keeps the count that the report prints.

    `admit` an arriving request; after an `Answer`, call `finish` exactly once.
    """

    def __init__(self, config: ProviderConfig, clock: Callable[[], float]) -> None:
        self.config = config
        self._clock = clock
        self._faults = random.Random(f"faults:{config.seed}")
        self._counts = _Counts()
        self._started: float | None = None
        self._bins: dict[int, list[int]] = {}
        scale = 1.0 / config.speed
        self._requests = [
            ExactWindow(name, limit, seconds * scale)
            for name, limit, seconds in (
                ("requests per minute", config.requests_per_minute, 60.0),
                ("requests per hour", config.requests_per_hour, 3600.0),
            )
            if limit
        ]
        self._tokens = [
            ExactWindow("tokens per minute", limit, 60.0 * scale)
            for limit in (config.tokens_per_minute,)
            if limit
        ]

    def admit(self, prompt: str, input_tokens: int, output_tokens: int) -> Answer | Refusal:
        """Judges a request that arrives now."""
        now = self._clock()
        counts = self._counts
        counts.received += 1
        self._bin(now, 0)
        if self._strikes(self.config.rate_429):
            counts.injected_429 += 1
            return Refusal(429, "injected_rate_limit", "injected 429", 1.0 / self.config.speed)
        costs = [(window, 1) for window in self._requests]
        costs += [(window, input_tokens + output_tokens) for window in self._tokens]
        waits = [(window.wait(now, cost), window.name) for window, cost in costs]
        if self.config.concurrency and counts.in_flight >= self.config.concurrency:
            waits.append((0.5 / self.config.speed, "concurrency"))
        wait, name = max(waits, default=(0.0, ""))
        if math.isinf(wait):
            counts.too_large += 1
            return Refusal(
                429, "request_too_large", f"Request too large for {name}: can never be granted"
            )
        if wait > 0:
            counts.rate_limited += 1
            counts.rate_limited_by[name] = counts.rate_limited_by.get(name, 0) + 1
            self._bin(now, 2)
            return Refusal(429, "rate_limit_exceeded", f"Rate limit reached for {name}", wait)
        for window, cost in costs:
            window.spend(now, cost)
        if self._strikes(self.config.rate_500):
            counts.injected_500 += 1
            return Refusal(500, "injected_error", "injected 500")
        ttft, total = self._latency(prompt, input_tokens, output_tokens)
        if self._strikes(self.config.rate_timeout):
            # Lost after acceptance: it stays in the windows but holds no slot,
            # since nobody will ever say that it has ended.
            counts.injected_timeout += 1
            return Answer(input_tokens, output_tokens, ttft, total, lost=True)
        counts.in_flight += 1
        counts.peak_in_flight = max(counts.peak_in_flight, counts.in_flight)
        return Answer(input_tokens, output_tokens, ttft, total)

    def finish(self, answer: Answer, *, delivered: bool) -> None:
        """The answer has been sent, or its client has gone away."""
        if answer.lost:
            return
        counts = self._counts
        counts.in_flight -= 1
        if delivered:
            counts.served += 1
            counts.input_tokens += answer.input_tokens
            counts.output_tokens += answer.output_tokens
            self._bin(self._clock(), 1)
        else:
            counts.abandoned += 1

    def headers(self) -> dict[str, str]:
        """``x-ratelimit-*`` as they stand now; durations in this process's seconds."""
        now = self._clock()
        headers: dict[str, str] = {}
        for kind, windows in (("requests", self._requests), ("tokens", self._tokens)):
            if not windows:
                continue
            tightest = min(windows, key=lambda window: window.remaining(now))
            headers[f"x-ratelimit-limit-{kind}"] = str(tightest.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(tightest.remaining(now))
            headers[f"x-ratelimit-reset-{kind}"] = format_duration(tightest.reset(now))
        return headers

    def stats(self) -> dict[str, Any]:
        """The provider's own count, and a timeline in seconds of trace time."""
        counts = asdict(self._counts)
        counts["peaks"] = {
            window.name: {"limit": window.limit, "most_in_any_window": window.peak}
            for window in (*self._requests, *self._tokens)
        }
        counts["timeline"] = [[second, *bins] for second, bins in sorted(self._bins.items())]
        return counts

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

    def _bin(self, now: float, column: int) -> None:
        if self._started is None:
            self._started = now
        second = min(int((now - self._started) * self.config.speed), _MOST_BINS)
        self._bins.setdefault(second, [0, 0, 0])[column] += 1
