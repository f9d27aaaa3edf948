"""HOSTILE 22: jumps of a year, the edges of 64-bit nanoseconds, durations that are none."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from ferrogate import (
    Cache,
    CacheConfig,
    HealthMonitor,
    Limit,
    LLMLimiter,
    PerformanceMetrics,
    RateLimiter,
    cached,
    rate_limited,
)
from ferrogate.testing import ManualClock

YEAR = 365.25 * 86_400
#: What a u64 of nanoseconds holds: 584 years.
END = (2**64 - 1) / 1e9


@pytest.mark.parametrize("jump", [YEAR, 100 * YEAR, END, 10 * END, math.inf, timedelta.max])
def test_a_jump_expires_everything_and_breaks_nothing(jump: float | timedelta) -> None:
    clock = ManualClock()
    gone: list[str] = []
    cache: Cache[str, int] = Cache(
        10, ttl=60, tti=30, clock=clock, on_evict=lambda k, v, cause: gone.append(cause)
    )
    for_ever: Cache[str, int] = Cache(10, clock=clock)
    limiters = [
        RateLimiter("2/minute", "3/hour", clock=clock),
        RateLimiter("2/minute", algorithm="gcra", clock=clock),
        RateLimiter("2/minute", algorithm="token_bucket", clock=clock),
    ]
    calls = LLMLimiter(requests_per_minute=2, tokens_per_minute=20, clock=clock)
    calls.reserve_sync(input_tokens=5, output_tokens=5).settle(output_tokens=30)
    assert not calls.try_reserve()
    metrics = PerformanceMetrics(clock=clock)
    cache["a"] = for_ever["a"] = 1
    for limiter in limiters:
        while limiter.try_acquire():
            pass
        assert not limiter.try_acquire()
    metrics.record_generation(True, 1.0)
    clock.advance(jump)
    assert "a" not in cache
    assert cache.get("a") is None
    cache.cleanup()
    assert gone == ["expired"]
    assert for_ever["a"] == 1
    for limiter in limiters:
        assert limiter.try_acquire(), limiter
        assert limiter.eta(1) < math.inf
        assert limiter.get_stats()["waiting"] == 0
    calls.reserve_sync(input_tokens=5, output_tokens=5).settle(output_tokens=30)
    assert calls.eta() < math.inf
    stats = metrics.get_stats()
    assert stats["total_generations"] == 1
    assert all(math.isfinite(v) for v in stats.values() if isinstance(v, float))
    # And once more, at or near the end of time.
    clock.advance(jump)
    cache["a"] = 2
    limiters[0].try_acquire()
    limiters[0].get_stats()
    calls.try_reserve()
    calls.get_stats()


def test_at_the_end_of_time() -> None:
    clock = ManualClock()
    clock._advance_ns(2**64 - 2)
    for _ in range(3):
        cache: Cache[str, int] = Cache(2, ttl=1, clock=clock)
        cache["a"] = 1
        cache["b"] = 2
        cache["c"] = 3
        assert len(cache) <= 2
        limiter = RateLimiter("2/minute", clock=clock)
        assert limiter.try_acquire()
        assert limiter.try_acquire()
        denied = limiter.try_acquire()
        assert not denied
        assert denied.retry_after >= 0
        clock._advance_ns(2**64 - 1)


@pytest.mark.parametrize("seconds", [1e-12, 1e-9, 5e-324, END - 1, END, 1e300, math.inf])
def test_durations_at_the_edges_are_kept(seconds: float) -> None:
    clock = ManualClock()
    cache: Cache[str, int] = Cache(2, ttl=seconds, tti=seconds, clock=clock)
    cache["a"] = 1
    cache.set("b", 2, ttl=seconds)
    assert cache["a"] == 1
    assert cache["b"] == 2
    explained = cache.explain("b")
    assert explained["present"]
    clock._advance_ns(1)
    assert ("a" in cache) is (seconds > 1e-9)


#: Everything that takes a duration, with its argument.
DURATIONS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "Cache(ttl=)": ("ttl", lambda d: Cache(1, ttl=d)),
    "Cache(tti=)": ("tti", lambda d: Cache(1, tti=d)),
    "Cache(cleanup_interval=)": ("cleanup_interval", lambda d: Cache(1, cleanup_interval=d)),
    "Cache.set(ttl=)": ("ttl", lambda d: Cache(1).set(1, 1, ttl=d)),
    "cached(ttl=)": ("ttl", lambda d: cached(ttl=d)(lambda x: x)),
    "Limit(period)": ("period", lambda d: Limit(1, d)),
    "HealthMonitor(interval=)": ("interval", lambda d: HealthMonitor(interval=d)),
    "HealthMonitor(timeout=)": ("timeout", lambda d: HealthMonitor(timeout=d)),
    "HealthMonitor(window=)": ("window", lambda d: HealthMonitor(window=d)),
}
#: And where nothing at all is a duration too.
FROM_ZERO: dict[str, tuple[str, Callable[[Any], object]]] = {
    "acquire_sync(timeout=)": (
        "timeout",
        lambda d: RateLimiter("1/second").acquire_sync(timeout=d),
    ),
    "acquire(timeout=)": ("timeout", lambda d: RateLimiter("1/second").acquire(timeout=d).close()),
    "rate_limited(timeout=)": ("timeout", lambda d: rate_limited("1/second", timeout=d)(int)),
    "LLMLimiter(window_margin=)": (
        "window_margin",
        lambda d: LLMLimiter(concurrency=1, window_margin=d),
    ),
    "LLMLimiter.learn(reset=)": (
        "reset",
        lambda d: LLMLimiter(concurrency=1).learn("requests", remaining=1, reset=d),
    ),
    "LLMLimiter.pause": ("duration", lambda d: LLMLimiter(concurrency=1).pause(d)),
    "reserve(timeout=)": (
        "timeout",
        lambda d: LLMLimiter(concurrency=1).reserve(timeout=d).close(),
    ),
    "reserve_sync(timeout=)": (
        "timeout",
        lambda d: LLMLimiter(concurrency=1).reserve_sync(timeout=d),
    ),
    "ManualClock.advance": ("by", lambda d: ManualClock().advance(d)),
}


@pytest.mark.parametrize("bad", [-1, -1e-12, -math.inf, math.nan, timedelta(microseconds=-1)])
@pytest.mark.parametrize("where", [*DURATIONS, *FROM_ZERO])
def test_negative_durations_are_refused(where: str, bad: object) -> None:
    argument, take = (DURATIONS | FROM_ZERO)[where]
    with pytest.raises(ValueError, match=rf"^{argument}: ") as caught:
        take(bad)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize("nothing", [0, 0.0, -0.0, timedelta()])
@pytest.mark.parametrize("where", DURATIONS)
def test_no_duration_is_refused(where: str, nothing: object) -> None:
    argument, take = DURATIONS[where]
    with pytest.raises(ValueError, match=rf"^{argument}: "):
        take(nothing)


@pytest.mark.parametrize("nothing", [0, 0.0, -0.0, timedelta()])
@pytest.mark.parametrize("where", FROM_ZERO)
def test_no_time_at_all_is_enough_to_ask(where: str, nothing: object) -> None:
    FROM_ZERO[where][1](nothing)


@pytest.mark.parametrize("bad", ["1", True, None, b"1", [1]])
@pytest.mark.parametrize("where", [*DURATIONS, *FROM_ZERO])
def test_what_is_no_number_is_refused(where: str, bad: object) -> None:
    argument, take = (DURATIONS | FROM_ZERO)[where]
    if bad is None and where not in {
        "Limit(period)",
        "LLMLimiter(window_margin=)",
        "LLMLimiter.pause",
        "ManualClock.advance",
        "HealthMonitor(interval=)",
        "HealthMonitor(timeout=)",
        "HealthMonitor(window=)",
    }:
        take(None)  # the default, or for ever
        return
    with pytest.raises(TypeError, match=rf"^{argument}: "):
        take(bad)


@pytest.mark.parametrize("field", ["ttl_seconds", "cleanup_interval"])
@pytest.mark.parametrize("bad", [0, -1, math.nan, -math.inf])
def test_a_cache_config_refuses_them_too(field: str, bad: float) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: "):
        CacheConfig(**{field: bad})  # type: ignore[arg-type]
