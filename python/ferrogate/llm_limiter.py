"""Limits for LLM traffic: requests, tokens and money, reserved before a call and settled after."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from datetime import timedelta
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from ferrogate import _core, _suites
from ferrogate._again import remembers
from ferrogate._arguments import flag, text_or_none
from ferrogate._core import Denial, Reservation
from ferrogate._headers import RateLimitHeaders
from ferrogate.adaptive import AdaptiveConcurrency, AdaptiveConcurrencyStats, AdaptiveRateStats
from ferrogate.budget import Budget

__all__ = ["Denial", "LLMDimensionStats", "LLMLimiter", "LLMLimiterStats", "Reservation"]


class LLMDimensionStats(TypedDict):
    """One limit of :class:`LLMLimiterStats`; tokens and requests as int, dollars as float."""

    limit: float
    """What is allowed per minute: as configured, or less if the provider said so."""
    used: float
    """Reserved and spent within the last minute."""
    remaining: float
    """What could be granted now."""
    debt: float
    """What has to leave the window before anything is granted."""


class LLMLimiterStats(TypedDict):
    """What :meth:`LLMLimiter.get_stats` returns."""

    name: str | None
    fairness: str
    enabled: bool
    granted: int
    """Reservations granted."""
    rejected: int
    """Requests refused, timed out or impossible."""
    rejection_rate: float
    """``rejected / (granted + rejected)``, 0..1."""
    settled: int
    """Reservations settled."""
    released: int
    """Reservations given back, dropped ones included."""
    open: int
    """Reservations that are neither yet."""
    waiting: int
    """Requests standing in line now."""
    concurrent_requests: int
    """Slots in use now."""
    concurrency: int | None
    """All slots, now."""
    adaptive_concurrency: AdaptiveConcurrencyStats | None
    """Of ``concurrency=AdaptiveConcurrency(...)``."""
    adaptive_rate: AdaptiveRateStats | None
    """Of ``adaptive_rate=True``."""
    paused_seconds: float
    """How long nothing will be granted; 0 without a pause."""
    tenants: int
    """Tenants that ``fairness="weighted"`` remembers."""
    models: int
    """Models whose answers are known."""
    dimensions: dict[str, LLMDimensionStats]
    """By ``"requests"``, ``"input_tokens"``, ``"output_tokens"``, ``"tokens"`` and ``"usd"``:
    those with a limit."""


#: Answers of HTTP that mean: too many, or too much to do.
_OVERLOADED = frozenset((429, 503, 504, 529))

_living: weakref.WeakSet[LLMLimiter] = weakref.WeakSet()


class LLMLimiter(_core.LLMLimiter):
    """Grants calls to a model while all of their requests, tokens and dollars fit.

    ::

        limiter = LLMLimiter("openai", requests_per_minute=500, tokens_per_minute=200_000)

        async with await limiter.reserve(input_tokens=1200, model="gpt-5") as reserved:
            answer = await client.chat.completions.create(...)
            usage = answer.usage
            reserved.settle(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)

    A call takes its share of every limit at once or waits for all of them
    together. What it reserved too much is granted to the next at once when it
    is settled; what it used beyond is a debt, and nothing is granted until that
    has been worked off. One limiter serves all threads and event loops of the
    process.

    Args:
        name: for messages and statistics.
        requests_per_minute: calls in any 60 seconds.
        input_tokens_per_minute: tokens of prompts in any 60 seconds.
        output_tokens_per_minute: tokens of answers in any 60 seconds.
        tokens_per_minute: both together, as OpenAI counts them.
        usd_per_minute: dollars in any 60 seconds; counted in billionths.
        concurrency: calls at one time, from their grant until they are settled or
            released; an :class:`AdaptiveConcurrency` finds their number by itself.
        adaptive_rate: for a provider that refuses (HTTP 429) and does not say what it allows:
            a refusal cuts what is allowed a minute to 0.9 of what is in use, once for all calls
            that were under way together, and it grows back by 5 % a minute while it is made use
            of. With limits per minute those are the upper bound; without any, requests a minute
            are found from what was in use at the first refusal. Limits in headers, once seen,
            count instead.
        fairness: who goes next: ``"fifo"``, whoever came first; ``"weighted"``, tenants by
            what they have received, divided by their weights.
        weights: of tenants; others have 1.
        max_waiters: requests that may stand in line.
        max_tenants: tenants that ``"weighted"`` tells apart at one time. A full table
            denies others while somebody waits, and forgets nobody who counts.
        max_models: models whose answers are known apart; others share what is known.
        estimate_quantile: without ``output_tokens=`` a call reserves what this share of
            its model's answers stayed within lately, 0..1.
        default_output_tokens: reserved while a model is unknown and the call has no
            ``max_output_tokens=``; 1,024, or less if the limits are less.
        window_margin: seconds (or a timedelta) that every window is longer than a minute.
            Calls need unlike long to the provider: two that left 60 s apart may arrive
            within 59.9. 0.2 is plenty.
        budget: a :class:`Budget` whose money the calls spend, too: what a call costs is reserved
            there with everything else, and settled with it. A budget with a ``key=`` has an
            account for each tenant. One that is spent out refuses at once
            (``BudgetExceededError``): nobody waits for tomorrow.
        clock: a ``ferrogate.testing.ManualClock`` for tests.
        enabled: ``False`` (or ``FERROGATE_DISABLED=1``) grants and counts everything.

    Raises:
        ValueError, TypeError: a wrong argument, no limit at all, or limits that contradict
            each other; the message names the argument.
    """

    if TYPE_CHECKING:

        @property
        def budget(self) -> Budget | None:
            """Whose money the calls spend."""

    _made_with: tuple[tuple[Any, ...], dict[str, Any]]

    @remembers
    def __new__(
        cls,
        name: str | None = None,
        *,
        requests_per_minute: int | None = None,
        input_tokens_per_minute: int | None = None,
        output_tokens_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        usd_per_minute: float | None = None,
        concurrency: int | AdaptiveConcurrency | None = None,
        adaptive_rate: bool = False,
        fairness: Literal["fifo", "weighted"] = "fifo",
        weights: Mapping[object, float] | None = None,
        max_waiters: int = 65_536,
        max_tenants: int = 4096,
        max_models: int = 256,
        estimate_quantile: float = 0.9,
        default_output_tokens: int | None = None,
        window_margin: float | timedelta = 0.0,
        budget: Budget | None = None,
        clock: _core.ManualClock | None = None,
        enabled: bool = True,
    ) -> LLMLimiter:
        if not isinstance(fairness, str):
            raise TypeError(f"fairness: expected a str, got {type(fairness).__name__}")
        if isinstance(estimate_quantile, bool) or not isinstance(estimate_quantile, int | float):
            kind = type(estimate_quantile).__name__
            raise TypeError(f"estimate_quantile: expected a share such as 0.9, got {kind}")
        if budget is not None and not isinstance(budget, Budget):
            raise TypeError(f"budget: expected a Budget or None, got {type(budget).__name__}")
        if weights is not None and not isinstance(weights, dict):
            if not isinstance(weights, Mapping):
                kind = type(weights).__name__
                raise TypeError(f'weights: expected a mapping such as {{"tenant": 2}}, got {kind}')
            weights = dict(weights)
        self = super().__new__(
            cls,
            text_or_none("name", name),
            limits=(
                requests_per_minute,
                input_tokens_per_minute,
                output_tokens_per_minute,
                tokens_per_minute,
                usd_per_minute,
            ),
            concurrency=concurrency,
            adaptive_rate=flag("adaptive_rate", adaptive_rate),
            fairness=fairness,
            weights=weights,
            max_waiters=max_waiters,
            max_tenants=max_tenants,
            max_models=max_models,
            estimate_quantile=estimate_quantile,
            default_output_tokens=default_output_tokens,
            window_margin=window_margin,
            budget=budget,
            clock=clock,
            enabled=flag("enabled", enabled),
        )
        subscribe = getattr(clock, "_on_advance", None)
        if subscribe is not None:
            subscribe(self._on_clock)
        _living.add(self)
        _suites.register(self)
        return self

    def update(
        self,
        *,
        requests_per_minute: int | EllipsisType | None = ...,
        input_tokens_per_minute: int | EllipsisType | None = ...,
        output_tokens_per_minute: int | EllipsisType | None = ...,
        tokens_per_minute: int | EllipsisType | None = ...,
        usd_per_minute: float | EllipsisType | None = ...,
        concurrency: int | AdaptiveConcurrency | EllipsisType | None = ...,
    ) -> None:
        """Changes limits while running; what was granted keeps counting.

        What is not named stays as it is; ``None`` lifts a limit; a number in place of an
        ``AdaptiveConcurrency`` ends that, and a new one begins anew. Waiters that no longer fit
        at all get ``ValueError``; all others are granted what now fits.

        Raises:
            ValueError, TypeError: a wrong argument, or no limit would be left.
        """
        self._update(
            (
                requests_per_minute,
                input_tokens_per_minute,
                output_tokens_per_minute,
                tokens_per_minute,
                usd_per_minute,
            ),
            concurrency,
        )

    def observe(
        self,
        headers: Mapping[Any, Any] | Iterable[tuple[Any, Any]],
        status: int | None = None,
        *,
        reservation: _core.Reservation | None = None,
    ) -> RateLimitHeaders:
        """Learns from the headers of an answer: limits, what is left of them, how long to wait.

        What they say only lowers what this limiter allows. After a 429 (and whenever there is a
        ``Retry-After``) it grants nothing to anybody for as long as they ask; once, not for each
        caller. A 429 also cuts what finds itself (``adaptive_rate``, ``AdaptiveConcurrency``), the
        latter also a 503, 504 or 529. Whatever the headers hold, this raises nothing about it.

        Args:
            headers: as :meth:`RateLimitHeaders.parse` takes them.
            status: the answer's HTTP status.
            reservation: the one that the answer belongs to: what is left was true when that
                request arrived.

        Returns:
            What could be read.

        Raises:
            TypeError, ValueError: ``headers`` is neither a mapping nor pairs, or ``status`` is
                no HTTP status.
        """
        told = RateLimitHeaders.parse(headers, status)
        by_kind = told.input_tokens.limit is not None or told.output_tokens.limit is not None
        for dimension in ("requests", "tokens", "input_tokens", "output_tokens"):
            if dimension == "tokens" and by_kind:
                # Anthropic's: whichever kind is the tightest now, not both together.
                continue
            said = getattr(told, dimension)
            if said.limit is not None or said.remaining is not None:
                self.learn(
                    dimension,
                    limit=said.limit,
                    remaining=said.remaining,
                    reset=said.reset_in,
                    reservation=reservation,
                )
        if told.pause:
            self.pause(told.pause)
        if status in _OVERLOADED:
            self._refused(status == 429, reservation)
        return told

    def get_stats(self) -> LLMLimiterStats:
        """Counts since construction and what is in use now."""
        counts, paused, rows = self._stats()
        granted, rejected, settled, released, open_, waiting, concurrent, tenants, models = counts
        asked = granted + rejected
        slots, rate = self._adaptive_stats()
        return {
            "name": self.name,
            "fairness": self.fairness,
            "enabled": self.enabled,
            "granted": granted,
            "rejected": rejected,
            "rejection_rate": rejected / asked if asked else 0.0,
            "settled": settled,
            "released": released,
            "open": open_,
            "waiting": waiting,
            "concurrent_requests": concurrent,
            "concurrency": self.concurrency,
            "adaptive_concurrency": cast("AdaptiveConcurrencyStats | None", slots),
            "adaptive_rate": (
                None if rate is None else {"share": rate[0], "cuts": rate[1], "told": rate[2]}
            ),
            "paused_seconds": paused,
            "tenants": tenants,
            "models": models,
            "dimensions": {
                dimension: {"limit": limit, "used": used, "remaining": left, "debt": debt}
                for dimension, limit, used, left, debt in rows
            },
        }

    def _on_clock(self) -> None:
        # A bound method of Python's, which the clock can hold weakly.
        self._clock_moved()

    def __repr__(self) -> str:
        stats = self.get_stats()
        parts = [
            f"{known['used']} of {known['limit']} {dimension}"
            for dimension, known in stats["dimensions"].items()
        ]
        if self.concurrency is not None:
            parts.append(f"{stats['concurrent_requests']} of {stats['concurrency']} slots")
        slots, rate = stats["adaptive_concurrency"], stats["adaptive_rate"]
        if slots is not None:
            parts[-1] += f" ({slots['law']} of {slots['signal']})"
        if rate is not None and rate["share"] != 1:
            parts.append(f"rate cut to {rate['share']:.2f}")
        parts.append(f"{stats['waiting']} waiting")
        if stats["paused_seconds"] > 0:
            parts.append(f"paused for {stats['paused_seconds']:.3g} s")
        if not self.enabled:
            parts.append("disabled")
        name = "" if self.name is None else f" {self.name!r}"
        return f"<LLMLimiter{name} {self.fairness}: {', '.join(parts)}>"


def _after_fork_in_child() -> None:
    for limiter in tuple(_living):
        limiter._after_fork()
