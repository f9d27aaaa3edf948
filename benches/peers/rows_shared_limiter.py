"""A limit that processes share in Redis: a slice spent here, against one round trip a call."""

from __future__ import annotations

import gc
import itertools
import time
from importlib import import_module
from typing import Any

from measure import Contender, Namespace, Row, Target
from rows_limiter import A_MINUTE, KEYS, ROUNDS
from rows_redis import port

NUMBERS = itertools.count()


def url() -> str:
    return f"redis://127.0.0.1:{port()}/0"


def ours() -> Namespace:
    limiter = import_module("ferrogate").RateLimiter(
        f"{100 * A_MINUTE}/minute", store=url(), name=f"bench {next(NUMBERS)}"
    )
    gc.collect()  # the one before the timing would outlast the slice
    deadline = time.monotonic() + 10
    while limiter.get_stats()["shared"]["slice"] < A_MINUTE:
        assert time.monotonic() < deadline, "nothing is leased"
        if not limiter.get_stats()["waiting"]:
            limiter.try_acquire(2 * A_MINUTE)
        time.sleep(0.001)
    refused = limiter.get_stats()["rejected"]

    def verify() -> None:
        assert limiter.get_stats()["rejected"] == refused, "a call was denied"

    return {"acquire": limiter.try_acquire, "verify": verify}


def limits_moving_window() -> Namespace:
    limits = import_module("limits")
    storage = import_module("limits.storage").RedisStorage(url())
    hit = import_module("limits.strategies").MovingWindowRateLimiter(storage).hit
    minute, name = limits.parse(f"{A_MINUTE}/minute"), f"bench {next(NUMBERS)}"

    def acquire() -> bool:
        return bool(hit(minute, name))

    def verify() -> None:
        assert acquire(), "a call was denied"

    return {"acquire": acquire, "verify": verify, "close": storage.storage.close}


def pyrate() -> Namespace:
    pyrate_limiter = import_module("pyrate_limiter")
    client = import_module("redis").Redis.from_url(url())
    rates = [pyrate_limiter.Rate(A_MINUTE, pyrate_limiter.Duration.MINUTE)]
    bucket = pyrate_limiter.RedisBucket.init(rates, client, f"bench {next(NUMBERS)}")
    limiter = pyrate_limiter.Limiter(bucket)

    def acquire() -> Any:
        return limiter.try_acquire("agent", blocking=False)

    def verify() -> None:
        assert acquire(), "a call was denied"

    def close() -> None:
        limiter.close()
        client.close()

    return {"acquire": acquire, "verify": verify, "close": close}


def throttled_sliding_window() -> Namespace:
    throttled = import_module("throttled")
    minute = throttled.Throttled(
        key=f"bench {next(NUMBERS)}",
        using=throttled.RateLimiterType.SLIDING_WINDOW.value,
        quota=throttled.per_min(A_MINUTE),
        store=throttled.RedisStore(server=url()),
    )

    def acquire() -> bool:
        return not minute.limit().limited

    def verify() -> None:
        assert acquire(), "a call was denied"

    return {"acquire": acquire, "verify": verify}


ROWS = [
    Row(
        "try_acquire on a limit shared in Redis",
        Target(nanoseconds=200, says="≤ 200 ns from a slice"),
        [
            Contender(
                "limits, RedisStorage, MovingWindow", "acquire()", limits_moving_window, "limits"
            ),
            Contender(
                "ferrogate, store=", "acquire()", ours, "ferrogate", "spends a slice leased before"
            ),
            Contender("pyrate-limiter, RedisBucket", "acquire()", pyrate, "pyrate-limiter"),
            Contender(
                "throttled-py, RedisStore",
                "acquire()",
                throttled_sliding_window,
                "throttled-py",
                "an approximate window",
            ),
        ],
        KEYS,
        fresh=True,
        rounds=ROUNDS,
    ),
]
