"""Several targets behind one guard: deployments, keys or models, each with limits of its own."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Generic, NoReturn, TypedDict, TypeVar

from ferrogate import _core
from ferrogate._arguments import whole
from ferrogate.adaptive import AdaptiveConcurrency, concurrency_stats
from ferrogate.breaker import CircuitBreaker
from ferrogate.limiter import RateLimiter
from ferrogate.llm_limiter import LLMLimiter

__all__ = ["Target", "TargetStats"]

_Value = TypeVar("_Value")

# Sums of weights stay far from the end of the native side's integers.
_MOST_WEIGHT = 1_000_000


class TargetStats(TypedDict):
    """What ``Guard.get_stats()["targets"]`` has for each target."""

    attempts: int
    """Attempts that it was chosen for."""
    share: float
    """Those as a share of all, 0..1."""
    under_way: int
    """Those that have not ended."""
    successes: int
    failures: int
    throttled: int
    """Attempts that met HTTP 429."""
    neutral: int
    """Attempts that say nothing about the other side, as those that were cancelled."""
    latency: float | None
    """Seconds until an answer or a stream's first item: the median of the latest; ``None``: not
    known yet."""
    state: str | None
    """That of its breaker; ``None``: it has none."""


class Target(Generic[_Value]):
    """One of the places where a :class:`Guard` can make a call, and what holds there.

    ::

        Target("azure-east", client, limiter=LLMLimiter(requests_per_minute=600), weight=3)

    The function finds it as its keyword ``target``; ``target.value`` is the client, key, URL or
    model name that was given here. Callers leave that keyword out, which type checkers let them if
    it has a default: ``target: Target[Client] = Target.chosen``. A target may serve several guards,
    which then share its limits.

    Args:
        name: for messages and statistics; no two of a guard's have the same.
        value: what a call to it needs.
        breaker: a :class:`CircuitBreaker` of its own.
        limiter: a :class:`RateLimiter` or an :class:`LLMLimiter` of its own.
        bulkhead: how many attempts may run there at a time; or a ``RateLimiter`` of slots only.
        weight: for ``route="weighted"``: how many of the calls it gets, beside the others' weights.
            On the other routes, how much it can take where two are equally good.
        price: for ``route="cheapest"``: US dollars per call, or a pair: US dollars per million
            tokens of the prompt and of the answer. The tokens are those of the guard's
            ``estimate``; an answer that is not estimated is taken to have as many as the prompt.
            An ``LLMLimiter`` reserves that cost where the estimate names none.
        clock: a ``ferrogate.testing.ManualClock`` for the slots of an int ``bulkhead``.

    Raises:
        ValueError, TypeError: a wrong argument; the message names it.
    """

    __slots__ = (
        "__weakref__",
        "breaker",
        "bulkhead",
        "limiter",
        "name",
        "price",
        "value",
        "weight",
    )

    chosen: ClassVar[Any] = None
    """A default for the parameter ``target``, which the guard fills in."""

    name: str
    value: _Value
    breaker: CircuitBreaker | None
    limiter: RateLimiter | LLMLimiter | None
    bulkhead: RateLimiter | None
    weight: int
    price: float | tuple[float, float] | None

    def __init__(
        self,
        name: str,
        value: _Value,
        *,
        breaker: CircuitBreaker | None = None,
        limiter: RateLimiter | LLMLimiter | None = None,
        bulkhead: int | AdaptiveConcurrency | RateLimiter | None = None,
        weight: int = 1,
        price: float | tuple[float, float] | None = None,
        clock: _core.ManualClock | None = None,
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name: expected a str, got {type(name).__name__}")
        if not name:
            raise ValueError("name: expected at least one character, got ''")
        if breaker is not None and not isinstance(breaker, CircuitBreaker):
            got = type(breaker).__name__
            raise TypeError(f"breaker: expected a ferrogate.CircuitBreaker, got {got}")
        if limiter is not None and not isinstance(limiter, RateLimiter | LLMLimiter):
            got = type(limiter).__name__
            raise TypeError(f"limiter: expected a RateLimiter or an LLMLimiter, got {got}")
        if isinstance(limiter, RateLimiter) and concurrency_stats(limiter) is not None:
            raise ValueError("limiter: slots that find their own number belong in bulkhead=")
        if isinstance(limiter, LLMLimiter) and limiter.budget is not None:
            raise ValueError(
                "limiter: a target's LLMLimiter has no budget= yet; reserve from the Budget in "
                "the function, or bound money by usd_per_minute="
            )
        for attribute, given in (
            ("name", name),
            ("value", value),
            ("breaker", breaker),
            ("limiter", limiter),
            ("bulkhead", slots(name, bulkhead, clock)),
            ("weight", whole("weight", weight, least=1, most=_MOST_WEIGHT)),
            ("price", None if price is None else _price(price)),
        ):
            object.__setattr__(self, attribute, given)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name}: a Target stays as it was made; make another one")

    def __repr__(self) -> str:
        told = [repr(self.name)]
        if self.breaker is not None:
            told.append(self.breaker.state)
        if self.weight != 1:
            told.append(f"weight {self.weight}")
        if isinstance(self.price, tuple):
            told.append("{:g} and {:g} USD per million tokens".format(*self.price))
        elif self.price is not None:
            told.append(f"{self.price:g} USD per call")
        return f"<Target {', '.join(told)}>"


def slots(
    name: str,
    bulkhead: int | AdaptiveConcurrency | RateLimiter | None,
    clock: _core.ManualClock | None,
) -> RateLimiter | None:
    """The slots that ``bulkhead=`` asks for."""
    if isinstance(bulkhead, int) and not isinstance(bulkhead, bool):
        if bulkhead < 1:
            raise ValueError(f"bulkhead: expected at least 1, got {bulkhead}")
        bulkhead = RateLimiter(burst=bulkhead, name=f"{name} bulkhead", clock=clock)
    elif isinstance(bulkhead, AdaptiveConcurrency):
        bulkhead = RateLimiter(burst=bulkhead, name=f"{name} bulkhead", clock=clock)
    elif bulkhead is not None and not isinstance(bulkhead, RateLimiter):
        got = type(bulkhead).__name__
        raise TypeError(
            f"bulkhead: expected an int, an AdaptiveConcurrency or a RateLimiter, got {got}"
        )
    if bulkhead is not None and bulkhead.limits:
        limits = " and ".join(map(str, bulkhead.limits))
        raise ValueError(
            f"bulkhead: expected a RateLimiter of slots alone (burst=), got one of {limits}; "
            "that is what limiter= is for"
        )
    found = None if bulkhead is None else concurrency_stats(bulkhead)
    if found is not None and found["signal"] == "tpot":
        raise ValueError(
            'bulkhead: no tokens are counted here; use signal="ttft" or "latency", or '
            "limiter=LLMLimiter(concurrency=AdaptiveConcurrency(...))"
        )
    return bulkhead


def _price(given: float | tuple[float, float]) -> float | tuple[float, float]:
    if isinstance(given, tuple):
        if len(given) != 2:
            raise ValueError(
                "price: expected a number of US dollars per call, or a pair of those per million "
                f"tokens in and out, got {len(given)} numbers"
            )
        return (_dollars(given[0]), _dollars(given[1]))
    return _dollars(given)


def _dollars(given: float) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TypeError(
            "price: expected a number of US dollars per call, or a pair of those per million "
            f"tokens in and out, got {type(given).__name__}"
        )
    # A comparison, as an int may be too large for a float.
    if not 0 <= given <= 1e9 or math.isnan(given):
        raise ValueError(f"price: expected US dollars from 0 to 1e9, got {given!r}")
    return float(given)
