"""The limiter rows. Every timing begins with a new limiter, and every call is granted."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

from measure import Contender, Namespace, Row, Target

# A timing grants 1,000, half of the smaller window: an exact log is filled but not huge
# (that of `limits` grows dearer with every entry: 7.1 µs a call here, 8.8 with 5,000).
CALLS = 1_000
A_MINUTE = 2 * CALLS
AN_HOUR = 20 * CALLS
KEYS = tuple(range(100))
ROUNDS = CALLS // len(KEYS)


def ours(**more: Any) -> Any:
    rate_limiter = import_module("ferrogate").RateLimiter
    limits = [f"{A_MINUTE}/minute", f"{AN_HOUR}/hour"]
    # GCRA's single state stands for one limit.
    return rate_limiter(*(limits[:1] if "algorithm" in more else limits), **more)


def ours_sync(**more: Any) -> Namespace:
    limiter = ours(**more)

    def verify() -> None:
        decision = limiter.try_acquire()
        assert decision, "a call was denied"
        spent = A_MINUTE - decision.remaining
        assert spent % CALLS == 1 or more.get("algorithm"), f"{spent} permits spent"

    return {"acquire": limiter.try_acquire, "verify": verify}


def limits_moving_window() -> Namespace:
    limits = import_module("limits")
    strategies = import_module("limits.strategies")
    storage = import_module("limits.storage").MemoryStorage()
    minute = limits.parse(f"{A_MINUTE}/minute")
    hour = limits.parse(f"{AN_HOUR}/hour")
    hit = strategies.MovingWindowRateLimiter(storage).hit

    def acquire() -> bool:
        return bool(hit(minute, "agent") and hit(hour, "agent"))

    def verify() -> None:
        assert acquire(), "a call was denied"

    return {"acquire": acquire, "verify": verify}


def throttled_sliding_window() -> Namespace:
    throttled = import_module("throttled")
    store = throttled.MemoryStore()
    using = throttled.RateLimiterType.SLIDING_WINDOW.value
    minute = throttled.Throttled(
        key="minute", using=using, quota=throttled.per_min(A_MINUTE), store=store
    )
    hour = throttled.Throttled(
        key="hour", using=using, quota=throttled.per_hour(AN_HOUR), store=store
    )

    def acquire() -> bool:
        return not minute.limit().limited and not hour.limit().limited

    def verify() -> None:
        assert acquire(), "a call was denied"

    return {"acquire": acquire, "verify": verify}


def pyrate() -> Namespace:
    pyrate_limiter = import_module("pyrate_limiter")
    duration = pyrate_limiter.Duration
    rates = [
        pyrate_limiter.Rate(A_MINUTE, duration.MINUTE),
        pyrate_limiter.Rate(AN_HOUR, duration.HOUR),
    ]
    limiter = pyrate_limiter.Limiter(rates)
    try_acquire = limiter.try_acquire

    def acquire() -> Any:
        return try_acquire("agent", blocking=False)

    def verify() -> None:
        assert acquire(), "a call was denied"

    return {"acquire": acquire, "verify": verify, "close": limiter.close}


def empty_coroutine() -> Namespace:
    # Without an argument, as `acquire` is called.
    async def empty() -> None: ...

    return {"f": empty}


def ours_awaited() -> Namespace:
    return {"acquire": ours(burst=10).acquire}


def aiolimiter_awaited() -> Namespace:
    asyncio.get_running_loop()  # it belongs to one loop
    return {"acquire": import_module("aiolimiter").AsyncLimiter(A_MINUTE, 60).acquire}


def pyrate_awaited() -> Namespace:
    space = pyrate()
    pyrate_limiter = import_module("pyrate_limiter")
    limiter = pyrate_limiter.Limiter(
        [pyrate_limiter.Rate(A_MINUTE, pyrate_limiter.Duration.MINUTE)]
    )
    space["close"]()
    return {"acquire": limiter.try_acquire_async, "close": limiter.close}


ROWS = [
    Row(
        "try_acquire, granted, two exact windows + burst",
        Target(nanoseconds=120, says="≤ 120 ns"),
        [
            Contender(
                "limits, MovingWindow",
                "acquire()",
                limits_moving_window,
                "limits",
                "one window after the other, not all or nothing",
            ),
            Contender("ferrogate", "acquire()", lambda: ours_sync(burst=10), "ferrogate"),
            Contender(
                "ferrogate, gcra",
                "acquire()",
                lambda: ours_sync(burst=10, algorithm="gcra"),
                "ferrogate",
                "one limit",
            ),
            Contender(
                "throttled-py, sliding window",
                "acquire()",
                throttled_sliding_window,
                "throttled-py",
                "one after the other; an approximate window",
            ),
            Contender("pyrate-limiter", "acquire()", pyrate, "pyrate-limiter"),
        ],
        KEYS,
        fresh=True,
        rounds=ROUNDS,
    ),
    Row(
        "awaiting a granted acquire",
        Target(at_most=2.0, says="≤ 2 x an empty coroutine"),
        [
            Contender("an empty coroutine", "await f()", empty_coroutine),
            Contender(
                "ferrogate", "await acquire()", ours_awaited, "ferrogate", "two windows + burst"
            ),
            Contender(
                "aiolimiter",
                "await acquire()",
                aiolimiter_awaited,
                "aiolimiter",
                "one leaky bucket",
            ),
            Contender(
                "pyrate-limiter",
                "await acquire('agent')",
                pyrate_awaited,
                "pyrate-limiter",
                "one window",
            ),
        ],
        KEYS,
        fresh=True,
        rounds=ROUNDS,
    ),
]
