"""The retry rows: calls that succeed at once, as nearly all do."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from measure import Contender, Namespace, Row, Target

KEYS = tuple(range(100))


async def answer() -> None: ...


def answer_now() -> None: ...


def bare() -> Namespace:
    return {"f": answer}


def bare_now() -> Namespace:
    return {"f": answer_now}


def ours(function: Any, **more: Any) -> Namespace:
    f = import_module("ferrogate").retry(attempts=3, on=OSError, **more)(function)

    def verify() -> None:
        stats = f.guard.get_stats()
        assert stats["calls"] > 0, "the policy was not asked"
        assert stats["retries"] == 0, "a call was made again"

    return {"f": f, "verify": verify}


def ours_with_all(function: Any) -> Namespace:
    budget = import_module("ferrogate").RetryBudget(0.2)
    return ours(function, budget=budget, total_timeout=60)


def stamina(function: Any) -> Namespace:
    return {"f": import_module("stamina").retry(on=OSError, attempts=3)(function)}


def tenacity(function: Any) -> Namespace:
    tenacity = import_module("tenacity")
    retry = tenacity.retry(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
        retry=tenacity.retry_if_exception_type(OSError),
        reraise=True,
    )
    return {"f": retry(function)}


def row(name: str, call: str, target: float, function: Any, base: Any) -> Row:
    """One kind of call behind every library's decorator."""
    return Row(
        name,
        Target(over=target, says=f"≤ {target:g} ns over the bare call"),
        [
            Contender("the bare call", call, base),
            Contender("ferrogate", call, lambda: ours(function), "ferrogate"),
            Contender(
                "ferrogate, budget and deadline",
                call,
                lambda: ours_with_all(function),
                "ferrogate",
            ),
            Contender("stamina", call, lambda: stamina(function), "stamina"),
            Contender("tenacity", call, lambda: tenacity(function), "tenacity"),
        ],
        KEYS,
    )


ROWS = [
    row("awaiting a call behind @retry that succeeds", "await f()", 300, answer, bare),
    row("a call behind @retry that succeeds", "f()", 300, answer_now, bare_now),
]
