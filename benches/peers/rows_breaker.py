"""The circuit breaker rows: closed, every call succeeds at once, nothing is waited for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from measure import Contender, Namespace, Row, Target


async def work() -> None:
    """The call that is guarded: all that is measured is what stands around it."""


def bare() -> Namespace:
    return {"f": work}


def ours(**more: Any) -> Any:
    ferrogate = import_module("ferrogate")
    return ferrogate.CircuitBreaker("api", ferrogate.CircuitBreakerConfig(**more))


def counted(breaker: Any, space: Namespace) -> Namespace:
    def verify() -> None:
        stats = breaker.get_stats()
        assert stats["successes"] > 0, "calls went past the breaker"
        assert stats["state"] == "closed", stats["state"]

    return {**space, "verify": verify}


def ours_decorated() -> Namespace:
    breaker = ours()
    return counted(breaker, {"f": breaker(work)})


def ours_in_a_block() -> Namespace:
    breaker = ours()

    async def f() -> None:
        async with breaker:
            await work()

    return counted(breaker, {"f": f})


def ours_of_time() -> Namespace:
    breaker = ours(window=60.0)
    return counted(breaker, {"f": breaker(work)})


def hyx_decorated() -> Namespace:
    return {"f": import_module("hyx.circuitbreaker").consecutive_breaker()(work)}


def pybreaker_in_a_block() -> Namespace:
    breaker = import_module("pybreaker").CircuitBreaker()

    # Its call_async is for Tornado.
    async def f() -> None:
        with breaker.calling():
            await work()

    return {"f": f}


def purgatory_decorated() -> Namespace:
    return {"f": import_module("purgatory").AsyncCircuitBreakerFactory()("api")(work)}


def interlock_decorated() -> Namespace:
    breaker = import_module("interlock").CircuitBreaker(name="api")
    return {"f": breaker(work), "close": breaker.close}


ROWS = [
    Row(
        "breaker, closed path, per await",
        Target(over=300, says="≤ 300 ns over the bare call"),
        [
            Contender("the bare call", "await f()", bare),
            Contender("ferrogate", "await f()", ours_decorated, "ferrogate", "the last 20 calls"),
            Contender(
                "ferrogate, async with", "await f()", ours_in_a_block, "ferrogate", "in a coroutine"
            ),
            Contender(
                "ferrogate, window of 60 s", "await f()", ours_of_time, "ferrogate", "in 60 parts"
            ),
            Contender(
                "hyx", "await f()", hyx_decorated, "hyx", "consecutive failures; no half-open bound"
            ),
            Contender(
                "pybreaker",
                "await f()",
                pybreaker_in_a_block,
                "pybreaker",
                "with breaker.calling(); consecutive failures",
            ),
            Contender(
                "purgatory", "await f()", purgatory_decorated, "purgatory", "consecutive failures"
            ),
            Contender(
                "interlock-cb",
                "await f()",
                interlock_decorated,
                "interlock-cb",
                "the last 100 calls",
            ),
        ],
    ),
]
