"""The rate limiter from Python: answers, arguments, the decorator."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import math
import pickle
import time
from datetime import timedelta
from typing import Any

import pytest

from ferrogate import (
    HealthMonitor,
    Limit,
    RateLimitConfig,
    RateLimiter,
    RateLimitExceeded,
    rate_limited,
)
from ferrogate.testing import ManualClock


async def until(condition: Any) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("did not happen")


def test_both_windows_of_the_common_setup_hold() -> None:
    clock = ManualClock()
    limiter = RateLimiter(
        RateLimitConfig(requests_per_minute=3, requests_per_hour=5, burst_limit=2), clock=clock
    )
    assert all(limiter.try_acquire() for _ in range(3))
    denied = limiter.try_acquire()
    assert not denied
    assert (denied.retry_after, denied.reason, denied.remaining) == (60.0, "limited", 0)
    assert denied.limit == Limit(3, 60)
    assert str(denied.limit) == "3/minute"
    clock.advance(60)
    assert limiter.try_acquire(2)
    assert limiter.try_acquire().retry_after == 3540.0
    stats = limiter.get_stats()
    assert stats["current_minute_requests"] == 2
    assert stats["windows"] == {"3/minute": 2, "5/hour": 5}
    assert (stats["acquired"], stats["rejected"], stats["rejection_rate"]) == (4, 2, 2 / 6)
    assert stats["burst"] == 2
    assert "2 of 3/minute" in repr(limiter)
    assert "0 of 2 slots" in repr(limiter)


def test_retry_after_is_exact_to_the_nanosecond() -> None:
    clock = ManualClock(3)
    limiter = RateLimiter("2/1.5s", clock=clock)
    limiter.try_acquire()
    clock.advance(0.7)
    limiter.try_acquire()
    wait = limiter.try_acquire().retry_after
    assert wait == 0.8
    clock._advance_ns(round(wait * 1e9) - 1)
    assert not limiter.try_acquire()
    clock._advance_ns(1)
    granted = limiter.try_acquire()
    assert (granted.reason, granted.retry_after, granted.remaining) == ("granted", 0.0, 0)
    assert granted.reset_after == 1.5


def test_a_cost_that_can_never_be_granted() -> None:
    limiter = RateLimiter("10/minute", name="openai")
    decision = limiter.try_acquire(11)
    assert decision.retry_after == math.inf
    assert decision.reason == "cost exceeds limit"
    assert limiter.eta(11) == math.inf
    with pytest.raises(ValueError, match='cost: expected at most what "10/minute" allows'):
        limiter.acquire(11)
    with pytest.raises(ValueError, match="cost"):
        limiter.acquire_sync(11)
    with pytest.raises(ValueError, match="cost"):
        limiter.acquire(11, key="new")
    with pytest.raises(ValueError, match="cost"):
        rate_limited(limiter=limiter, cost=11)
    assert limiter.get_stats()["windows"] == {"10/minute": 0}


def test_gcra_and_token_bucket() -> None:
    clock = ManualClock()
    gcra = RateLimiter("60/minute", algorithm="gcra", clock=clock)
    assert all(gcra.try_acquire() for _ in range(60))
    assert gcra.try_acquire().retry_after == 1.0
    bucket = RateLimiter("60/minute", "2/s", algorithm="token_bucket", clock=clock)
    assert bucket.try_acquire(2)
    assert bucket.try_acquire().retry_after == 0.5
    with pytest.raises(ValueError, match="exactly one limit, got 2"):
        RateLimiter("1/s", "2/minute", algorithm="gcra")
    with pytest.raises(ValueError, match="cannot change its limit"):
        gcra.update("1/s")


def test_keys_are_separate_and_a_limited_one_is_never_forgotten() -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/hour", max_keys=3, clock=clock)
    for key in ("a", b"a", 1):
        assert limiter.try_acquire(key=key)
        assert not limiter.try_acquire(key=key)
    for n in range(2000):
        denied = limiter.try_acquire(key=f"other {n}")
        assert denied.reason == "key table full"
        assert denied.retry_after == limiter.eta(key="new") == 3600.0
    assert not limiter.try_acquire(key="a")
    assert limiter.try_acquire()
    with pytest.raises(RateLimitExceeded, match="key table full"):
        limiter.acquire_sync(key="yet another", timeout=0)
    clock.advance(3600)
    assert limiter.eta(key="other 1") == 0.0
    assert limiter.try_acquire(key="other 1")
    assert limiter.get_stats()["keys"] <= 3


def test_update_while_running() -> None:
    clock = ManualClock()
    limiter = RateLimiter("2/minute", clock=clock)
    assert limiter.try_acquire(2)
    limiter.update("3/minute", Limit(100, timedelta(hours=1)))
    assert [str(limit) for limit in limiter.limits] == ["3/minute", "100/hour"]
    assert limiter.try_acquire()
    assert not limiter.try_acquire()
    limiter.update(RateLimitConfig(requests_per_minute=5))
    assert limiter.eta(3) == 60.0
    assert limiter.eta(2) == 0.0


@pytest.mark.parametrize("value", ["", "0", "False", "FALSE", " Off ", "No"])
def test_what_the_environment_calls_off_is_on(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: ``FERROGATE_DISABLED=False`` switched everything off."""
    monkeypatch.setenv("FERROGATE_DISABLED", value)
    assert RateLimiter("1/s").enabled
    assert HealthMonitor().enabled
    monkeypatch.setenv("FERROGATE_DISABLED", "True")
    assert not RateLimiter("1/s").enabled
    assert not HealthMonitor().enabled


def test_switched_off_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RateLimitConfig(1, 1, 1, enabled=False)
    monkeypatch.setenv("FERROGATE_DISABLED", "1")
    by_environment = RateLimiter("1/day", burst=1)
    monkeypatch.delenv("FERROGATE_DISABLED")
    for limiter in (RateLimiter(config), RateLimiter("1/day", enabled=False), by_environment):

        async def use(limiter: RateLimiter) -> None:
            for _ in range(3):
                assert limiter.try_acquire(5).reason == "disabled"
                await limiter.acquire(7)
                limiter.acquire_sync()
                async with limiter, limiter, limiter:
                    assert limiter.get_stats()["concurrent_requests"] == 3

        asyncio.run(use(limiter))
        assert limiter.get_stats()["acquired"] == 18
        assert limiter.get_stats()["concurrent_requests"] == 0
        assert "disabled" in repr(limiter)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (RateLimiter, ValueError, "limits: expected at least one"),
        (lambda: RateLimiter("60"), ValueError, 'limits: expected "<count>/<period>"'),
        (lambda: RateLimiter("0/s"), ValueError, '"0/s"'),
        (lambda: RateLimiter(60), TypeError, "limits: expected text .* got int"),
        (lambda: RateLimiter("1/s", burst=0), ValueError, "burst: expected an int from 1"),
        (lambda: RateLimiter("1/s", burst="2"), TypeError, "burst: .* got str"),
        (lambda: RateLimiter("1/s", max_keys=0), ValueError, "max_keys"),
        (lambda: RateLimiter("1/s", max_keys=2.5), TypeError, "max_keys: .* got float"),
        (lambda: RateLimiter("1/s", max_waiters=-1), ValueError, "max_waiters"),
        (lambda: RateLimiter("1/s", algorithm="leaky"), ValueError, "algorithm: .*leaky"),
        (lambda: RateLimiter("1/s", store="redis://x"), ValueError, "name: .*store="),
        (lambda: RateLimiter("1/s", store="sqlite:///x", name="n"), ValueError, "store: .*redis"),
        (lambda: RateLimiter("1/s", store=5, name="n"), TypeError, "store: expected a str"),
        (
            lambda: RateLimiter("1/s", store="redis://x/y", name="n"),
            ValueError,
            "store: .*database",
        ),
        (
            lambda: RateLimiter("1/s", store="redis://x", name="n", algorithm="gcra"),
            ValueError,
            "algorithm: .*store",
        ),
        (lambda: RateLimiter(store="redis://x", name="n", burst=1), ValueError, "limits: .*share"),
        (
            lambda: RateLimiter("1/s", store="redis://x", name="n", clock=ManualClock()),
            ValueError,
            "clock: .*store=",
        ),
        (lambda: RateLimiter("1/s", clock=time), TypeError, "clock: expected"),
        (lambda: RateLimiter("1/s", algorithm=None), TypeError, "algorithm: .* got NoneType"),
        (lambda: RateLimiter("1/s", name=3), TypeError, "name: .* got int"),
        (lambda: RateLimiter("1/s", enabled="no"), TypeError, "enabled: .* got str"),
        (lambda: RateLimiter("1/s", burst=True), TypeError, "burst: .* got bool"),
        (lambda: RateLimiter("1/s").try_acquire(True), TypeError, "cost: .* got bool"),
        (lambda: RateLimiter("1/s").try_acquire(0), ValueError, "cost: .* got 0"),
        (lambda: RateLimiter("1/s").try_acquire(-1), ValueError, "cost"),
        (lambda: RateLimiter("1/s").try_acquire(1.5), TypeError, "cost: .* got float"),
        (lambda: RateLimiter("1/s").try_acquire(1 << 40), ValueError, "cost"),
        (lambda: RateLimiter("1/s").try_acquire(key=object()), TypeError, "key"),
        (lambda: RateLimiter("1/s").acquire(timeout=-1), ValueError, "timeout"),
        (lambda: RateLimiter("1/s").acquire(timeout="x"), TypeError, "timeout"),
        (lambda: RateLimiter("1/s").acquire_sync(timeout=math.nan), ValueError, "timeout"),
        (lambda: RateLimiter("1/s").update(), ValueError, "limits"),
        (lambda: RateLimitConfig(requests_per_minute=0), ValueError, "requests_per_minute"),
        (lambda: RateLimitConfig(burst_limit="1"), TypeError, "burst_limit"),
        (lambda: Limit(0, 1), ValueError, "count"),
        (lambda: Limit(-1, 1), ValueError, "count"),
        (lambda: Limit(True, 1), TypeError, "count: .* got bool"),
        (lambda: Limit("1", 1), TypeError, "count: .* got str"),
        (lambda: Limit(1, 0), ValueError, "period"),
        (lambda: Limit(1, "s"), TypeError, "period"),
        (lambda: rate_limited(print), TypeError, "rate_limited: expected limits"),
        (lambda: rate_limited("1/s")(3), TypeError, "rate_limited: expected a function"),
        (lambda: rate_limited("1/s", timeout=-1), ValueError, "timeout"),
        (lambda: rate_limited("1/s", limiter=RateLimiter("1/s")), ValueError, "limiter"),
        (
            lambda: rate_limited(limiter=RateLimiter("1/s"), algorithm="gcra"),
            ValueError,
            "limiter: expected either",
        ),
        (
            lambda: rate_limited(limiter=RateLimiter("1/s"), enabled="no"),
            ValueError,
            "limiter: expected either",
        ),
        (lambda: rate_limited(limiter="1/s"), TypeError, "limiter: expected a RateLimiter"),
    ],
)
def test_bad_arguments_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_values() -> None:
    limit = Limit(5, timedelta(seconds=10))
    assert limit == Limit(5, 10) != Limit(5, 11)
    assert len({limit, Limit(5, 10)}) == 1
    assert (str(limit), repr(limit)) == ("5/10s", "Limit(5, 10.0)")
    for value in (limit, Limit(1, timedelta(days=200, microseconds=1))):
        assert pickle.loads(pickle.dumps(value)) == value == copy.copy(value)
    only_slots = RateLimiter(burst=1)
    decision = only_slots.try_acquire(1000)
    assert decision.granted
    assert decision.limit is None
    assert decision.remaining is None
    assert "granted" in repr(decision)


def test_the_exception_carries_data() -> None:
    limiter = RateLimiter("1/minute", name="search", clock=ManualClock())
    limiter.try_acquire()
    with pytest.raises(RateLimitExceeded) as caught:
        limiter.acquire_sync(timeout=0.5)
    error = caught.value
    assert (error.name, error.limit, error.retry_after) == ("search", "1/minute", 60.0)
    assert isinstance(error, TimeoutError)
    assert limiter.get_stats()["rejected"] == 1


def test_the_decorator_keeps_what_it_decorates() -> None:
    @rate_limited("100/s", burst=1)
    def plain(a: int, *, b: str = "x") -> tuple[int, str]:
        """Doc."""
        return a, b

    @rate_limited("100/s", burst=1)
    async def coroutine(a: int) -> int:
        return a

    @rate_limited("100/s", burst=1)
    def generator(n: int) -> Any:
        yield from range(n)

    assert plain(1, b="y") == (1, "y")
    assert plain.__doc__ == "Doc."
    assert list(inspect.signature(plain).parameters) == ["a", "b"]
    assert inspect.iscoroutinefunction(coroutine)
    assert asyncio.run(coroutine(3)) == 3
    assert list(generator(3)) == [0, 1, 2]
    for function in (plain, coroutine, generator):
        stats = function.limiter.get_stats()  # type: ignore[attr-defined]
        assert (stats["acquired"], stats["concurrent_requests"]) == (1, 0)


def test_the_decorator_on_methods_and_with_a_shared_limiter() -> None:
    shared = RateLimiter("3/minute", clock=ManualClock())

    class Agent:
        @rate_limited(limiter=shared, timeout=0)
        async def ask(self) -> Agent:
            return self

        @rate_limited(limiter=shared, timeout=0, cost=2)
        def tool(self) -> Agent:
            return self

    agent = Agent()
    assert asyncio.run(agent.ask()) is agent
    assert agent.tool() is agent
    with pytest.raises(RateLimitExceeded):
        agent.tool()
    with pytest.raises(RateLimitExceeded):
        asyncio.run(agent.ask())


def test_the_decorator_on_callable_objects() -> None:
    """Regression: the slot was free again before the work of an ``async __call__`` began."""
    limiter = RateLimiter("1000/s", burst=1)
    inside = []

    class Coroutine:
        async def __call__(self) -> None:
            inside.append(limiter.get_stats()["concurrent_requests"])
            await asyncio.sleep(0)
            inside.append(limiter.get_stats()["concurrent_requests"])

    class AsyncGenerator:
        async def __call__(self) -> Any:
            yield inside.append(limiter.get_stats()["concurrent_requests"])

    class Generator:
        def __call__(self) -> Any:
            yield inside.append(limiter.get_stats()["concurrent_requests"])

    async def main() -> None:
        ask = rate_limited(limiter=limiter)(Coroutine())
        assert inspect.iscoroutinefunction(ask)
        await asyncio.gather(ask(), ask())
        assert [item async for item in rate_limited(limiter=limiter)(AsyncGenerator())()] == [None]
        assert list(rate_limited(limiter=limiter)(Generator())()) == [None]

    asyncio.run(main())
    assert inside == [1] * 6
    assert limiter.get_stats()["concurrent_requests"] == 0


def test_a_plain_function_that_returns_an_awaitable_is_refused() -> None:
    limiter = RateLimiter("1000/s", burst=1)

    async def work() -> None:
        raise AssertionError("ran without a slot")

    with pytest.raises(TypeError, match=r"rate_limited: expected `async def`.*coroutine"):
        rate_limited(limiter=limiter)(lambda _: work())(0)
    assert limiter.get_stats()["concurrent_requests"] == 0


def test_an_async_generator_holds_its_slot_until_it_ends() -> None:
    limiter = RateLimiter("1000/s", burst=1)
    closed = []

    @rate_limited(limiter=limiter)
    async def stream(n: int) -> Any:
        try:
            for i in range(n):
                try:
                    got = yield i
                except KeyError:
                    got = "caught"
                closed.append(got)
            if n == 13:
                raise ArithmeticError
        finally:
            closed.append("end")

    def in_use() -> int:
        return limiter.get_stats()["concurrent_requests"]

    async def main() -> None:
        assert inspect.isasyncgenfunction(stream)
        assert [item async for item in stream(3)] == [0, 1, 2]
        assert in_use() == 0

        half = stream(3)
        assert await anext(half) == 0
        assert in_use() == 1
        assert await half.asend("sent") == 1
        assert await half.athrow(KeyError()) == 2
        await half.aclose()
        assert in_use() == 0
        assert closed[-3:] == ["sent", "caught", "end"]

        with pytest.raises(ArithmeticError):
            _ = [item async for item in stream(13)]
        assert in_use() == 0

        abandoned = stream(3)
        assert await anext(abandoned) == 0
        del abandoned
        gc.collect()
        await until(lambda: in_use() == 0)

        async def consume() -> None:
            async for _ in stream(3):
                await asyncio.sleep(60)

        task = asyncio.create_task(consume())
        await until(lambda: in_use() == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gc.collect()
        await until(lambda: in_use() == 0)

    asyncio.run(main())
