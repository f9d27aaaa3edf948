"""The guard row: everything around a call that suspends once and succeeds, as nearly all do."""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from typing import Any

from measure import Contender, Namespace, Row, Target

KEYS = tuple(range(100))
# So many that nobody ever waits for a permit.
MANY = 100_000_000
ATTEMPT_SECONDS = 30.0


async def work(_: object = None) -> None:
    """An answer from elsewhere: one turn of the loop."""
    await asyncio.sleep(0)


def bare() -> Namespace:
    return {"f": work}


def ours(**more: Any) -> Namespace:
    ferrogate = import_module("ferrogate")
    guard = ferrogate.Guard(
        "api",
        breaker=ferrogate.CircuitBreaker("api"),
        retry=ferrogate.RetryPolicy(attempts=3),
        limiter=ferrogate.RateLimiter(f"{MANY}/minute"),
        attempt_timeout=ATTEMPT_SECONDS,
        **more,
    )

    def verify() -> None:
        stats = guard.get_stats()
        assert stats["successes"] == stats["calls"] > 0, stats
        assert guard.get_stats()["retries"] == 0

    return {"f": guard(work), "verify": verify}


def ours_with_all() -> Namespace:
    return ours(bulkhead=100, timeout=60.0, fallback=lambda _: None)


def another() -> Namespace:
    """An argument that no call had before."""
    return {"other": iter(range(sys.maxsize)).__next__}


def bare_of_another() -> Namespace:
    return bare() | another()


def ours_with_flights() -> Namespace:
    """Each call is a load, in a task of its own."""
    cache = import_module("ferrogate").Cache(1000, ttl=3600.0)
    return ours(cache=cache) | another()


def rivals() -> Namespace:
    """aiolimiter within purgatory within stamina, with asyncio's own time limit."""
    limiter = import_module("aiolimiter").AsyncLimiter(MANY, 60)
    breakers = import_module("purgatory").AsyncCircuitBreakerFactory()
    stamina = import_module("stamina")

    async def f() -> None:
        async with limiter, asyncio.timeout(ATTEMPT_SECONDS):
            await work()

    return {"f": stamina.retry(on=OSError, attempts=3)(breakers("api")(f))}


def rivals_with_flights() -> Namespace:
    f = lighter_rivals()["f"]
    return {"f": import_module("async_lru").alru_cache(maxsize=1000, ttl=3600.0)(f)} | another()


def lighter_rivals() -> Namespace:
    """aiolimiter within pybreaker within tenacity, with asyncio's own time limit."""
    limiter = import_module("aiolimiter").AsyncLimiter(MANY, 60)
    breaker = import_module("pybreaker").CircuitBreaker()
    tenacity = import_module("tenacity")

    async def f(_: object = None) -> None:
        with breaker.calling():
            async with limiter, asyncio.timeout(ATTEMPT_SECONDS):
                await work()

    retry = tenacity.retry(
        stop=tenacity.stop_after_attempt(3), retry=tenacity.retry_if_exception_type(OSError)
    )
    return {"f": retry(f)}


ROWS = [
    Row(
        "a guarded call that suspends once: limit, breaker, retry, time limit",
        Target(over=1_500, says="≤ 1,500 ns over the bare call"),
        [
            Contender("the bare call", "await f()", bare),
            Contender("ferrogate", "await f()", ours, "ferrogate"),
            Contender(
                "ferrogate, bulkhead, deadline and fallback too",
                "await f()",
                ours_with_all,
                "ferrogate",
            ),
            Contender(
                "aiolimiter + pybreaker + tenacity + asyncio.timeout",
                "await f()",
                lighter_rivals,
                "tenacity",
            ),
            Contender(
                "aiolimiter + purgatory + stamina + asyncio.timeout",
                "await f()",
                rivals,
                "stamina",
            ),
        ],
        KEYS,
        fresh=True,
    ),
    Row(
        "a guarded call with single flight, of arguments that are not in the cache",
        Target(over=4_000, says="≤ 4,000 ns over the bare call"),
        [
            Contender("the bare call", "await f(other())", bare_of_another),
            Contender("ferrogate", "await f(other())", ours_with_flights, "ferrogate"),
            Contender(
                "async-lru + aiolimiter + pybreaker + tenacity + asyncio.timeout",
                "await f(other())",
                rivals_with_flights,
                "async-lru",
            ),
        ],
        KEYS,
        fresh=True,
    ),
]
