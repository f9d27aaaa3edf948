"""Waits for a probe that is under way, and past those who can never go."""

from __future__ import annotations

import asyncio

import pytest
from guarding import on_virtual_time
from routing import (
    Refused,
    Upstream,
    ask,
    guard_of,
    is_at_rest,
    tripped,
)

from ferrogate import (
    Guard,
    LLMLimiter,
    RateLimiter,
    Target,
    TargetsUnavailable,
)
from ferrogate.testing import ManualClock


@pytest.fixture(autouse=True, params=["told of the clock", "by timers alone"])
def woken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's clock wakes all who wait, which the machine's does not: it has to go without."""
    if request.param == "by timers alone":
        monkeypatch.setattr(Guard, "_on_clock", lambda _: None)


def spent(clock: ManualClock, limit: str = "1/minute") -> RateLimiter:
    limiter = RateLimiter(limit, clock=clock)
    assert limiter.try_acquire()
    return limiter


def paused(clock: ManualClock, seconds: float) -> LLMLimiter:
    limiter = LLMLimiter("model", requests_per_minute=100, clock=clock)
    limiter.pause(seconds)
    return limiter


@pytest.mark.parametrize("timeout", [3, 30])
def test_a_probe_under_way_is_waited_for_however_little_time_is_left(timeout: float) -> None:
    async def main(clock: ManualClock) -> None:
        upstream = Upstream("a", takes=1)
        known = tripped("a", clock, 10)
        clock.advance(10)
        guard = guard_of(clock, Target("a", upstream, breaker=known), attempts=1, timeout=timeout)
        calls = [asyncio.ensure_future(guard.call(ask)) for _ in range(5)]
        # One probes, and the others go as soon as that has ended well.
        assert await asyncio.gather(*calls) == ["a"] * 5
        assert clock.now() == pytest.approx(12, abs=0.01)
        assert guard.get_stats()["rejected"] == 0
        assert is_at_rest(guard)

    on_virtual_time(main)


def test_a_probe_that_does_not_end_is_waited_for_until_the_deadline() -> None:
    async def main(clock: ManualClock) -> None:
        known = tripped("a", clock, 10)
        clock.advance(10)
        a = Target("a", Upstream("a", takes=40), breaker=known)
        away = Target("b", Upstream("b"), breaker=tripped("b", clock, 500))
        probe = asyncio.ensure_future(guard_of(clock, a).call(ask))
        await asyncio.sleep(1)
        guard = guard_of(clock, a, away, timeout=5)
        with pytest.raises(TargetsUnavailable, match="half-open, its probes under way;"):
            await guard.call(ask)
        assert clock.now() == pytest.approx(16, abs=0.01)
        # One that has failed waits for it, too.
        east = Target("east", Upstream("east", script=[Refused(500)]))
        patient = guard_of(clock, east, a, timeout=5)
        begun = clock.now()
        assert await patient.call(ask) == "east"
        assert clock.now() - begun == pytest.approx(1, abs=0.01)
        await probe

    on_virtual_time(main)


@pytest.mark.parametrize("large", [0, 1, 3])
def test_one_that_is_too_large_for_a_target_keeps_nobody_from_it(large: int) -> None:
    async def main(clock: ManualClock) -> None:
        small = LLMLimiter("a", input_tokens_per_minute=1000, clock=clock)
        slots = RateLimiter(burst=1, clock=clock)
        a = Upstream("a", takes=2)
        known = tripped("a", clock, 10)
        clock.advance(10)
        guard = guard_of(
            clock,
            Target("a", a, breaker=known, limiter=small),
            Target("b", Upstream("b"), bulkhead=slots),
            timeout=50,
        )
        async with slots:
            probe = asyncio.ensure_future(guard.call(ask, "x"))
            await asyncio.sleep(1)
            waiting = [asyncio.ensure_future(guard.call(ask, "x" * 40_000)) for _ in range(large)]
            await asyncio.sleep(0)
            fits = asyncio.ensure_future(guard.call(ask, "x"))
            assert [await probe, await fits] == ["a", "a"]
            # As soon as the probe has ended.
            assert clock.now() == pytest.approx(10 + 2 + 2, abs=0.01)
        assert await asyncio.gather(*waiting) == ["b"] * large
        assert is_at_rest(guard)

    on_virtual_time(main)
