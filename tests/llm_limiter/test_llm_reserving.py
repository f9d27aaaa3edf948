"""`LLMLimiter`: what it grants, what it says when it does not, and what its arguments are."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import decimal
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ferrogate import FerrogateError, LLMLimiter, RateLimitExceeded
from ferrogate.llm_limiter import Denial, Reservation
from ferrogate.testing import ManualClock

RunVirtual = Callable[[Any], Any]


def dimension(limiter: LLMLimiter, name: str) -> tuple[float, float, float, float]:
    known = limiter.get_stats()["dimensions"][name]
    return known["limit"], known["used"], known["remaining"], known["debt"]


def test_reserve_settle_and_what_is_left(usual: LLMLimiter) -> None:
    reserved = usual.try_reserve(input_tokens=100, output_tokens=400, cost_usd=0.25)
    assert reserved
    assert isinstance(reserved, Reservation)
    assert (reserved.input_tokens, reserved.output_tokens, reserved.cost_usd) == (100, 400, 0.25)
    assert reserved.granted
    assert reserved.state == "open"
    assert dimension(usual, "output_tokens") == (500, 400, 100, 0)
    assert dimension(usual, "usd") == (1.0, 0.25, 0.75, 0.0)
    assert reserved.settle(input_tokens=90, output_tokens=150, cost_usd=0.1)
    assert not reserved.settle(output_tokens=1)
    assert not reserved.release()
    assert reserved.state == "settled"
    assert dimension(usual, "input_tokens") == (1_000, 90, 910, 0)
    assert dimension(usual, "output_tokens") == (500, 150, 350, 0)
    assert dimension(usual, "usd") == (1.0, 0.1, 0.9, 0.0)
    assert dimension(usual, "requests") == (10, 1, 9, 0)


def test_a_denial_says_what_and_when(usual: LLMLimiter, clock: ManualClock) -> None:
    kept = usual.try_reserve(output_tokens=400)
    clock.advance(10)
    denied = usual.try_reserve(output_tokens=101)
    assert not denied
    assert isinstance(denied, Denial)
    assert (denied.reason, denied.dimension) == ("limited", "output_tokens")
    assert (denied.limit, denied.remaining, denied.retry_after) == (500, 100, 50)
    assert "output_tokens 500/minute" in repr(denied)
    clock.advance(50)
    assert usual.try_reserve(output_tokens=101)
    del kept


def test_what_can_never_be_granted_is_an_error_at_once(usual: LLMLimiter) -> None:
    denied = usual.try_reserve(input_tokens=1_001)
    assert isinstance(denied, Denial)
    assert (denied.reason, denied.retry_after) == ("cost exceeds limit", math.inf)
    with pytest.raises(ValueError, match=r"input_tokens: .*1000.*input_tokens_per_minute.*1001"):
        usual.reserve(input_tokens=1_001)
    with pytest.raises(ValueError, match=r"cost_usd: .* 1 that usd_per_minute .* got 1\.5"):
        usual.reserve_sync(cost_usd=1.5)
    with pytest.raises(ValueError, match="cost_usd"):
        usual.reserve(cost_usd=1e300)
    assert usual.eta(output_tokens=501) == math.inf
    assert usual.get_stats()["open"] == 0


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"input_tokens": -1}, ValueError, "input_tokens"),
        ({"input_tokens": 2**64}, ValueError, "input_tokens"),
        ({"input_tokens": -(10**5000)}, ValueError, "input_tokens"),
        ({"input_tokens": 1.5}, TypeError, "input_tokens"),
        ({"input_tokens": True}, TypeError, "input_tokens"),
        ({"output_tokens": "7"}, TypeError, "output_tokens"),
        ({"output_tokens": 7, "max_output_tokens": 6}, ValueError, "output_tokens"),
        ({"max_output_tokens": -1}, ValueError, "max_output_tokens"),
        ({"cost_usd": -0.01}, ValueError, "cost_usd"),
        ({"cost_usd": math.nan}, ValueError, "cost_usd"),
        ({"cost_usd": math.inf}, ValueError, "cost_usd"),
        ({"cost_usd": 10**400}, ValueError, "cost_usd"),
        ({"cost_usd": "1"}, TypeError, "cost_usd"),
        ({"cost_usd": False}, TypeError, "cost_usd"),
        ({"cost_usd": object()}, TypeError, "cost_usd"),
        ({"model": object()}, TypeError, "model"),
        ({"tenant": object()}, TypeError, "tenant"),
    ],
)
def test_wrong_requests_are_named(
    usual: LLMLimiter, arguments: dict[str, Any], error: type[Exception], named: str
) -> None:
    for call in (usual.try_reserve, usual.reserve, usual.reserve_sync, usual.eta):
        with pytest.raises(error, match=f"^{named}"):
            call(**arguments)
    stats = usual.get_stats()
    assert (stats["open"], stats["granted"]) == (0, 0)


def test_wrong_timeouts_are_named(usual: LLMLimiter) -> None:
    for timeout, error in ((-1, ValueError), (math.nan, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="timeout"):
            usual.reserve(timeout=timeout)  # type: ignore[arg-type]
    assert usual.get_stats()["open"] == 0


def test_wrong_settlements_change_nothing(usual: LLMLimiter) -> None:
    reserved = usual.reserve_sync(output_tokens=100)
    for usage in ({"output_tokens": -1}, {"cost_usd": math.nan}, {"input_tokens": 2.0}):
        with pytest.raises((ValueError, TypeError)):
            reserved.settle(**usage)  # type: ignore[arg-type]
    assert reserved.state == "open"
    assert reserved.settle(output_tokens=2**64 - 1, cost_usd=1e300)
    assert dimension(usual, "output_tokens")[3] == 2**64 - 1 - 500


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({}, ValueError, "requests_per_minute"),
        ({"requests_per_minute": 0}, ValueError, "requests_per_minute"),
        ({"requests_per_minute": 1.0}, TypeError, "requests_per_minute"),
        ({"tokens_per_minute": -5}, ValueError, "tokens_per_minute"),
        ({"usd_per_minute": 0}, ValueError, "usd_per_minute"),
        ({"usd_per_minute": -1.0}, ValueError, "usd_per_minute"),
        ({"usd_per_minute": math.nan}, ValueError, "usd_per_minute"),
        ({"usd_per_minute": math.inf}, ValueError, "usd_per_minute"),
        ({"concurrency": 0}, ValueError, "concurrency"),
        ({"tokens_per_minute": 10, "input_tokens_per_minute": 11}, ValueError, "input_tokens"),
        ({"tokens_per_minute": 10, "output_tokens_per_minute": 11}, ValueError, "output_tokens"),
        (
            {"output_tokens_per_minute": 10, "default_output_tokens": 11},
            ValueError,
            "default_output_tokens",
        ),
        ({"concurrency": 1, "fairness": "random"}, ValueError, "fairness"),
        ({"concurrency": 1, "fairness": 1}, TypeError, "fairness"),
        ({"concurrency": 1, "weights": {"a": 1}}, ValueError, "weights"),
        ({"concurrency": 1, "fairness": "weighted", "weights": {"a": 0}}, ValueError, "weights"),
        ({"concurrency": 1, "fairness": "weighted", "weights": {"a": -1}}, ValueError, "weights"),
        ({"concurrency": 1, "fairness": "weighted", "weights": {"a": True}}, ValueError, "weights"),
        (
            {"concurrency": 1, "fairness": "weighted", "weights": {object(): 1}},
            TypeError,
            "weights",
        ),
        ({"concurrency": 1, "fairness": "weighted", "weights": ["a"]}, TypeError, "weights"),
        ({"concurrency": 1, "max_waiters": 0}, ValueError, "max_waiters"),
        ({"concurrency": 1, "max_tenants": 0}, ValueError, "max_tenants"),
        ({"concurrency": 1, "max_models": 0}, ValueError, "max_models"),
        ({"concurrency": 1, "estimate_quantile": 0}, ValueError, "estimate_quantile"),
        ({"concurrency": 1, "estimate_quantile": 1.1}, ValueError, "estimate_quantile"),
        ({"concurrency": 1, "estimate_quantile": "p90"}, TypeError, "estimate_quantile"),
        ({"concurrency": 1, "window_margin": -1}, ValueError, "window_margin"),
        ({"concurrency": 1, "name": 7}, TypeError, "name"),
        ({"concurrency": 1, "clock": 7}, TypeError, "clock"),
        ({"concurrency": 1, "enabled": 1}, TypeError, "enabled"),
    ],
)
def test_wrong_set_ups_are_named(
    arguments: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=f"^{named}"):
        LLMLimiter(**arguments)


def test_money_is_counted_in_billionths(clock: ManualClock) -> None:
    limiter = LLMLimiter(usd_per_minute=0.3, clock=clock)
    for _ in range(3):
        # As floats, 0.1 + 0.1 + 0.1 > 0.3.
        limiter.reserve_sync(cost_usd=decimal.Decimal("0.1")).settle()  # type: ignore[arg-type]
    assert dimension(limiter, "usd") == (0.3, 0.3, 0.0, 0.0)
    # Less than can be counted is not nothing.
    assert not limiter.try_reserve(cost_usd=1e-30)
    assert limiter.try_reserve(cost_usd=0)


def test_the_window_is_a_minute_and_its_margin(clock: ManualClock) -> None:
    margin = datetime.timedelta(milliseconds=200)
    limiter = LLMLimiter(requests_per_minute=1, window_margin=margin, clock=clock)
    limiter.reserve_sync().settle()
    clock.advance(60.1)
    assert not limiter.try_reserve()
    clock.advance(0.1)
    assert limiter.try_reserve()


def test_blocks_settle_as_reserved_and_release_when_they_raise(
    usual: LLMLimiter, run_virtual: RunVirtual
) -> None:
    with usual.reserve_sync(output_tokens=100) as reserved:
        assert reserved.state == "open"
    assert reserved.state == "settled"
    assert dimension(usual, "output_tokens")[1] == 100
    with pytest.raises(KeyError), usual.reserve_sync(output_tokens=100) as reserved:
        raise KeyError
    assert reserved.state == "released"
    assert dimension(usual, "requests")[1] == 1
    with usual.reserve_sync(output_tokens=100) as reserved:
        reserved.settle(output_tokens=1)
    assert dimension(usual, "output_tokens")[1] == 101

    async def main() -> None:
        async with await usual.reserve(output_tokens=100) as reserved:
            pass
        assert reserved.state == "settled"
        with contextlib.suppress(ZeroDivisionError):
            async with await usual.reserve(output_tokens=100) as reserved:
                reserved.mark_sent()
                raise ZeroDivisionError
        assert reserved.sent
        assert reserved.state == "released"

    run_virtual(main())
    # The one that was sent is a request that the provider has counted.
    assert dimension(usual, "requests")[1] == 4
    assert dimension(usual, "output_tokens")[1] == 201


def test_dropped_reservations_come_back(usual: LLMLimiter, run_virtual: RunVirtual) -> None:
    usual.try_reserve(output_tokens=500)
    usual.reserve_sync(output_tokens=500)

    async def main() -> None:
        usual.reserve(output_tokens=500)
        usual.reserve(output_tokens=500).close()
        with pytest.raises(KeyError):
            usual.reserve(output_tokens=500).throw(KeyError())
        await usual.reserve(output_tokens=500)
        reserved = await usual.reserve(output_tokens=500)
        assert dimension(usual, "output_tokens")[1] == 500
        del reserved

    run_virtual(main())
    assert dimension(usual, "output_tokens")[1] == 0
    assert dimension(usual, "requests")[1] == 0


def test_waiting_ends_when_something_comes_back(
    usual: LLMLimiter, run_virtual: RunVirtual, clock: ManualClock
) -> None:
    async def main() -> None:
        first = await usual.reserve(output_tokens=400)
        second = asyncio.create_task(usual.reserve(output_tokens=300))
        await asyncio.sleep(5)
        assert not second.done()
        first.settle(output_tokens=200)
        await second
        assert clock.now() == 5
        # Over-use holds everybody until it is worked off.
        second.result().settle(output_tokens=1_000)
        await asyncio.sleep(1)
        assert dimension(usual, "output_tokens") == (500, 1_200, 0, 700)
        await usual.reserve(output_tokens=0)
        assert clock.now() == pytest.approx(65)

    run_virtual(main())


def test_a_wait_that_would_be_too_long_is_refused_at_once(
    usual: LLMLimiter, run_virtual: RunVirtual, clock: ManualClock
) -> None:
    async def main() -> None:
        first = await usual.reserve(input_tokens=1_000)
        assert usual.eta(input_tokens=1) == 60
        with pytest.raises(RateLimitExceeded, match="cannot be granted in time") as caught:
            await usual.reserve(input_tokens=1, timeout=59)
        assert clock.now() == 0
        error = caught.value
        assert isinstance(error, TimeoutError)
        assert isinstance(error, FerrogateError)
        assert (error.name, error.limit) == ("usual", "input_tokens 1000/minute")
        assert error.retry_after == 60
        # It may be settled for less, but then nobody has promised so.
        await usual.reserve(input_tokens=1, timeout=60)
        assert clock.now() == pytest.approx(60)
        del first

    run_virtual(main())


def test_a_timeout_without_a_known_wait(run_virtual: RunVirtual, clock: ManualClock) -> None:
    limiter = LLMLimiter(concurrency=1, clock=clock)

    async def main() -> None:
        first = await limiter.reserve()
        with pytest.raises(RateLimitExceeded, match="no free slot"):
            await limiter.reserve(timeout=5)
        assert clock.now() == pytest.approx(5)
        with pytest.raises(RateLimitExceeded):
            await limiter.reserve(timeout=0)
        first.settle()
        (await limiter.reserve(timeout=0)).settle()
        assert limiter.get_stats()["rejected"] == 2

    run_virtual(main())


def test_estimates_follow_the_model(clock: ManualClock) -> None:
    limiter = LLMLimiter(output_tokens_per_minute=1_000_000, usd_per_minute=5, clock=clock)
    assert limiter.reserve_sync(model="a").output_tokens == 1_024
    assert limiter.reserve_sync(model="a", max_output_tokens=50).output_tokens == 50
    for tokens in range(1, 21):
        limiter.reserve_sync(model="a").settle(output_tokens=tokens, cost_usd=tokens / 1000)
    reserved = limiter.reserve_sync(model="a")
    assert (reserved.output_tokens, reserved.cost_usd) == (18, pytest.approx(0.018, rel=0.07))
    assert limiter.reserve_sync(model="a", max_output_tokens=5).output_tokens == 5
    assert limiter.reserve_sync(model="b").output_tokens == 1_024
    assert limiter.get_stats()["models"] == 1


def test_the_default_estimate_keeps_within_the_limits(clock: ManualClock) -> None:
    limiter = LLMLimiter(tokens_per_minute=1_000, clock=clock)
    assert limiter.reserve_sync(input_tokens=300).output_tokens == 700
    default = LLMLimiter(tokens_per_minute=1_000, default_output_tokens=7, clock=clock)
    assert default.reserve_sync(input_tokens=300).output_tokens == 7


def test_update_is_live(usual: LLMLimiter, run_virtual: RunVirtual, clock: ManualClock) -> None:
    async def main() -> None:
        first = await usual.reserve(output_tokens=500)
        small = asyncio.create_task(usual.reserve(output_tokens=50))
        big = asyncio.create_task(usual.reserve(output_tokens=400))
        await asyncio.sleep(1)
        usual.update(output_tokens_per_minute=550)
        await small
        assert clock.now() == 1
        usual.update(output_tokens_per_minute=300)
        with pytest.raises(ValueError, match=r"output_tokens: .*300"):
            await big
        assert usual.limits["output_tokens_per_minute"] == 300
        assert usual.limits["requests_per_minute"] == 10
        usual.update(output_tokens_per_minute=None, concurrency=7)
        assert usual.concurrency == 7
        del first

    run_virtual(main())
    with pytest.raises(ValueError, match="usd_per_minute"):
        usual.update(usd_per_minute=0)
    with pytest.raises(ValueError, match="at least one limit"):
        usual.update(
            requests_per_minute=None,
            input_tokens_per_minute=None,
            usd_per_minute=None,
            concurrency=None,
        )
    assert usual.limits["usd_per_minute"] == 1.0


def test_a_pause_holds_everybody(
    usual: LLMLimiter, run_virtual: RunVirtual, clock: ManualClock
) -> None:
    async def main() -> None:
        usual.pause(20)
        usual.pause(datetime.timedelta(seconds=1))
        denied = usual.try_reserve()
        assert isinstance(denied, Denial)
        assert (denied.reason, denied.retry_after) == ("paused", 20)
        assert "paused for 20 s" in repr(usual)
        await asyncio.gather(*(usual.reserve(output_tokens=1) for _ in range(5)))
        assert clock.now() == pytest.approx(20)
        usual.pause(100)
        waiting = asyncio.create_task(usual.reserve(output_tokens=1))
        await asyncio.sleep(1)
        usual.resume()
        await waiting
        assert clock.now() == pytest.approx(21)

    run_virtual(main())
    with pytest.raises(ValueError, match="duration"):
        usual.pause(-1)


def test_what_the_provider_says_counts(usual: LLMLimiter, clock: ManualClock) -> None:
    reserved = usual.reserve_sync()
    usual.learn("requests", limit=5, remaining=2, reset=10, reservation=reserved)
    assert dimension(usual, "requests") == (5, 1, 2, 0)
    clock.advance(10)
    assert dimension(usual, "requests") == (5, 1, 4, 0)
    usual.learn("usd", remaining=0.25)
    assert dimension(usual, "usd") == (1.0, 0.0, 0.25, 0.0)
    # Garbage changes nothing.
    usual.learn("requests", limit=0)
    assert dimension(usual, "requests")[0] == 5
    for arguments, named in (
        ({"dimension": "quota"}, "dimension"),
        ({"dimension": "requests", "remaining": -1}, "remaining"),
        ({"dimension": "usd", "limit": math.nan}, "limit"),
        ({"dimension": "requests", "reset": -1}, "reset"),
    ):
        with pytest.raises(ValueError, match=f"^{named}"):
            usual.learn(**arguments)  # type: ignore[arg-type]


def test_it_tells_about_itself(usual: LLMLimiter) -> None:
    reserved = usual.reserve_sync(input_tokens=5, output_tokens=7)
    assert repr(usual) == (
        "<LLMLimiter 'usual' fifo: 1 of 10 requests, 5 of 1000 input_tokens, "
        "7 of 500 output_tokens, 0.0 of 1.0 usd, 0 waiting>"
    )
    assert repr(reserved) == "<Reservation open: 5 tokens in, 7 out, 0 USD>"
    stats = usual.get_stats()
    assert (stats["name"], stats["fairness"], stats["enabled"]) == ("usual", "fifo", True)
    assert (stats["granted"], stats["open"], stats["concurrent_requests"]) == (1, 1, 1)
    assert stats["rejection_rate"] == 0


def test_switched_off_it_only_counts(clock: ManualClock) -> None:
    limiter = LLMLimiter(requests_per_minute=1, clock=clock, enabled=False)
    held = [limiter.reserve_sync(input_tokens=10**9) for _ in range(5)]
    assert limiter.get_stats()["open"] == 5
    assert held[0].settle()
    del held
    stats = limiter.get_stats()
    assert (stats["granted"], stats["settled"], stats["released"]) == (5, 1, 4)
    assert "disabled" in repr(limiter)
    code = "from ferrogate import LLMLimiter as L; print(L(requests_per_minute=1).enabled)"
    environment = os.environ | {"FERROGATE_DISABLED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
