"""What a breaker does when its user looks: states, statistics, settings and wrong arguments."""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
from datetime import timedelta
from typing import Any

import pytest

import ferrogate
from ferrogate import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerOpenError,
    FerrogateError,
)
from ferrogate.testing import ManualClock


class Refused(Exception):
    """What the other side answers."""


def fail(breaker: CircuitBreaker, times: int = 1, error: BaseException | None = None) -> None:
    for _ in range(times):
        with pytest.raises(type(error or Refused())), breaker:
            raise error or Refused


def succeed(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        with breaker:
            pass


def opened(**config: Any) -> tuple[CircuitBreaker, ManualClock]:
    clock = ManualClock()
    breaker = CircuitBreaker("api", CircuitBreakerConfig(**config), clock=clock)
    fail(breaker, 5)
    assert breaker.state == "open"
    return breaker, clock


def test_the_way_of_their_users() -> None:
    clock = ManualClock()
    seen: list[tuple[str, str]] = []
    breaker = CircuitBreaker(
        "llm",
        config=CircuitBreakerConfig(
            failure_threshold=0.5, timeout_seconds=30.0, success_threshold=3
        ),
        clock=clock,
    )
    breaker.on_open(lambda b: seen.append(("open", b.name)))
    breaker.on_close(lambda b: seen.append(("close", b.state)))
    assert (breaker.state, breaker.is_open()) == ("closed", False)
    fail(breaker, 5)
    assert (breaker.state, breaker.is_open()) == ("open", True)
    with pytest.raises(CircuitBreakerOpenError) as refused, breaker:
        raise AssertionError("it was let through")
    assert isinstance(refused.value, FerrogateError)
    error = refused.value
    assert (error.name, error.state, error.retry_after) == ("llm", "open", 30.0)
    clock.advance(30)
    assert (breaker.state, breaker.is_open()) == ("half_open", False)
    succeed(breaker, 3)
    assert (breaker.state, breaker.is_open()) == ("closed", False)
    assert seen == [("open", "llm"), ("close", "closed")]


def test_statistics_say_what_happened() -> None:
    breaker, clock = opened()
    stats = breaker.get_stats()
    assert set(stats) == set(ferrogate.breaker.CircuitBreakerStats.__annotations__)
    assert (stats["name"], stats["state"], stats["enabled"]) == ("api", "open", True)
    assert (stats["error_rate"], stats["calls"], stats["times_opened"]) == (1.0, 5, 1)
    assert stats["retry_after"] == 30.0
    assert "open: 100% of 5 calls failed, retry after 30.000 s" in repr(breaker)
    for _ in range(3):
        with pytest.raises(CircuitBreakerOpenError):
            breaker.__enter__()
    clock.advance(30)
    with breaker:
        stats = breaker.get_stats()
        assert (stats["state"], stats["probes"], stats["calls"]) == ("half_open", 1, 0)
    stats = breaker.get_stats()
    assert (stats["rejected"], stats["successes"], stats["failures"]) == (3, 1, 5)
    assert (stats["probes"], stats["retry_after"]) == (0, 0.0)


def test_by_default_half_is_not_too_much_and_four_say_nothing() -> None:
    breaker = CircuitBreaker("api")
    for _ in range(4):
        succeed(breaker)
        fail(breaker)
    assert breaker.get_stats()["error_rate"] == 0.5
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"


def test_forced_states() -> None:
    clock = ManualClock()
    breaker = CircuitBreaker("api", clock=clock)
    breaker.force_open()
    clock.advance(1e6)
    with pytest.raises(CircuitBreakerOpenError, match="forced open; reset") as refused, breaker:
        pass
    assert (refused.value.state, refused.value.retry_after) == ("forced_open", math.inf)
    assert breaker.is_open()
    assert breaker.get_stats()["times_opened"] == 0
    breaker.metrics_only()
    fail(breaker, 20)
    assert (breaker.state, breaker.get_stats()["error_rate"]) == ("metrics_only", 1.0)
    breaker.disable()
    fail(breaker, 20)
    assert (breaker.state, breaker.get_stats()["failures"]) == ("disabled", 40)
    breaker.reset()
    fail(breaker, 4)
    breaker.reset()
    fail(breaker, 4)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"


def test_one_that_is_not_enabled_is_in_nobodys_way() -> None:
    breaker = CircuitBreaker("api", enabled=False)
    fail(breaker, 20)
    breaker.force_open()
    succeed(breaker)
    assert (breaker.enabled, breaker.state) == (False, "disabled")
    stats = breaker.get_stats()
    assert (stats["failures"], stats["successes"], stats["enabled"]) == (20, 1, False)
    assert repr(breaker).endswith("not enabled>")


def test_all_components_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERROGATE_DISABLED", "1")
    assert not CircuitBreaker("api").enabled
    monkeypatch.setenv("FERROGATE_DISABLED", "0")
    assert CircuitBreaker("api").enabled


@pytest.mark.parametrize("window", [60.0, timedelta(minutes=1)])
def test_a_window_of_time(window: float | timedelta) -> None:
    clock = ManualClock()
    config = CircuitBreakerConfig(window=window, minimum_calls=3)
    breaker = CircuitBreaker("api", config, clock=clock)
    fail(breaker, 2)
    clock.advance(59)
    assert breaker.get_stats()["calls"] == 2
    clock.advance(1)
    assert breaker.get_stats()["calls"] == 0
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"


def test_slow_calls() -> None:
    clock = ManualClock()
    config = CircuitBreakerConfig(slow_call_seconds=2, slow_call_threshold=0.5)
    breaker = CircuitBreaker("api", config, clock=clock)
    for seconds in (1, 2, 1, 2, 2):
        with breaker:
            clock.advance(seconds)
    stats = breaker.get_stats()
    assert (stats["state"], stats["slow"], stats["slow_rate"]) == ("open", 3, 0.6)
    assert stats["error_rate"] == 0


def test_waste_opens_it() -> None:
    clock = ManualClock()
    config = CircuitBreakerConfig(
        max_wasted_usd_per_minute=0.3, max_wasted_tokens_per_minute=1_000_000
    )
    breaker = CircuitBreaker("api", config, clock=clock)
    opened: list[CircuitBreaker] = []
    breaker.on_open(opened.append)
    for _ in range(3):
        breaker.record_waste(usd=0.1)
    # Three times 0.1 is no more than 0.3 here.
    assert (breaker.state, breaker.get_stats()["wasted_usd"]) == ("closed", 0.3)
    clock.advance(60)
    breaker.record_waste(usd=0.3, tokens=1_000_000)
    assert breaker.state == "closed"
    breaker.record_waste(tokens=1)
    assert (breaker.state, opened) == ("open", [breaker])
    assert breaker.get_stats()["wasted_tokens"] == 1_000_001
    breaker.reset()
    assert breaker.get_stats()["wasted_tokens"] == 0
    record: Any = breaker.record_waste
    for argument, wrong, error in [
        ("usd", -0.1, ValueError),
        ("usd", math.nan, ValueError),
        ("usd", math.inf, ValueError),
        ("usd", "1", TypeError),
        ("tokens", -1, ValueError),
        ("tokens", 1.5, TypeError),
        ("tokens", True, TypeError),
    ]:
        with pytest.raises(error, match=f"^{argument}: expected"):
            record(**{argument: wrong})


def test_it_rests_longer_each_time_up_to_a_bound() -> None:
    breaker, clock = opened(max_timeout_seconds=100)
    for rest in (30, 60, 100, 100):
        assert breaker.get_stats()["retry_after"] == rest
        clock.advance(rest)
        fail(breaker)
    clock.advance(100)
    succeed(breaker, 3)
    fail(breaker, 5)
    assert breaker.get_stats()["retry_after"] == 30


def test_jitter_rests_longer_and_never_shorter() -> None:
    ferrogate.testing.seed(1)
    rests = {opened(timeout_jitter=0.5)[0].get_stats()["retry_after"] for _ in range(50)}
    assert all(30 <= rest <= 45 for rest in rests)
    assert len(rests) == 50


def test_it_comes_back_little_by_little() -> None:
    breaker, clock = opened(ramp_up_seconds=100)
    clock.advance(30)
    succeed(breaker, 3)

    def let_through(calls: int) -> int:
        refused = []
        for _ in range(calls):
            try:
                succeed(breaker)
            except CircuitBreakerOpenError as error:
                refused.append(error)
        assert all(error.state == "closed" and error.retry_after <= 100 for error in refused)
        assert all("recovered" in str(error) for error in refused)
        return calls - len(refused)

    assert 95 <= let_through(1000) <= 105
    clock.advance(50)
    assert 495 <= let_through(1000) <= 505
    clock.advance(50)
    assert let_through(1000) == 1000


def test_jumps_of_the_clock() -> None:
    breaker, clock = opened(window=60.0, ramp_up_seconds=5)
    year = timedelta(days=365)
    for _ in range(3):
        clock.advance(year)
        succeed(breaker, 3)
        assert breaker.state == "closed"
        clock.advance(year)
        assert breaker.get_stats()["calls"] == 0
        fail(breaker, 5)
        assert breaker.state == "open"
    # To the end of time, where nothing moves any more.
    clock.advance(math.inf)
    succeed(breaker, 3)
    fail(breaker)
    assert breaker.state == "closed"


def test_without_traffic_it_does_not_stay_open() -> None:
    breaker, clock = opened()
    clock.advance(timedelta(days=7))
    assert not breaker.is_open()
    succeed(breaker, 2)
    clock.advance(timedelta(days=7))
    # Those two are still in a row.
    succeed(breaker)
    assert breaker.state == "closed"


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("failure_threshold", math.nan, ValueError),
        ("failure_threshold", 50, ValueError),
        ("failure_threshold", -0.1, ValueError),
        ("failure_threshold", 10**400, ValueError),
        ("failure_threshold", "0.5", TypeError),
        ("failure_threshold", True, TypeError),
        ("timeout_seconds", 0, ValueError),
        ("timeout_seconds", timedelta(seconds=-1), ValueError),
        ("timeout_seconds", None, TypeError),
        ("success_threshold", 0, ValueError),
        ("success_threshold", 3.0, TypeError),
        ("window", 0, ValueError),
        ("window", 0.0, ValueError),
        ("window", 10**9, ValueError),
        ("window", math.nan, ValueError),
        ("window", True, TypeError),
        ("window", "60 s", TypeError),
        ("minimum_calls", 0, ValueError),
        ("minimum_calls", 21, ValueError),
        ("half_open_max_calls", 0, ValueError),
        ("half_open_max_calls", 2**40, ValueError),
        ("half_open_max_calls", -1, ValueError),
        ("slow_call_seconds", 0, ValueError),
        ("slow_call_threshold", 0.5, ValueError),
        ("count_throttled", 1, TypeError),
        ("max_timeout_seconds", 29.9, ValueError),
        ("ramp_up_seconds", -1, ValueError),
        ("timeout_factor", 0.5, ValueError),
        ("timeout_jitter", 1.5, ValueError),
        ("probe_timeout_seconds", 0, ValueError),
        ("max_wasted_usd_per_minute", -1, ValueError),
        ("max_wasted_usd_per_minute", math.inf, ValueError),
        ("max_wasted_tokens_per_minute", 1.5, TypeError),
        ("max_wasted_tokens_per_minute", -1, ValueError),
    ],
)
def test_a_wrong_setting_is_named(argument: str, value: object, error: type[Exception]) -> None:
    wrong: Any = {argument: value}
    with pytest.raises(error, match=f"^{argument}: "):
        CircuitBreakerConfig(**wrong)
    # The same when it became wrong later.
    config = CircuitBreakerConfig()
    setattr(config, argument, value)
    with pytest.raises(error, match=f"^{argument}: "):
        CircuitBreaker("api", config)


def test_wrong_arguments_are_named() -> None:
    make: Any = CircuitBreaker
    for arguments, named in [
        ({"name": 7}, "name"),
        ({"name": None}, "name"),
        ({"config": {"failure_threshold": 0.5}}, "config"),
        ({"clock": object()}, "clock"),
        ({"enabled": "yes"}, "enabled"),
        ({"classify": "failure"}, "classify"),
    ]:
        with pytest.raises(TypeError, match=f"^{named}: "):
            make(**{"name": "api", **arguments})
    with pytest.raises(TypeError):
        make("api", CircuitBreakerConfig(), None)
    with pytest.raises(ValueError, match=r"^name: expected text that UTF-8 can carry"):
        make("\ud800")


def test_the_calls_that_a_small_window_needs() -> None:
    assert CircuitBreakerConfig().minimum_calls == 5
    assert CircuitBreakerConfig(window=3).minimum_calls == 3
    assert CircuitBreakerConfig(window=1.0).minimum_calls == 5


def test_a_breaker_keeps_its_own_settings() -> None:
    config = CircuitBreakerConfig(timeout_seconds=10)
    breaker = CircuitBreaker("api", config, clock=ManualClock())
    config.timeout_seconds = 99
    assert breaker.config.timeout_seconds == 10
    fail(breaker, 5)
    assert breaker.get_stats()["retry_after"] == 10


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_breaker_is_one_per_process(duplicate: Any) -> None:
    with pytest.raises(TypeError, match=r"circuit breaker.*one per process.*CircuitBreakerConfig"):
        duplicate(CircuitBreaker("api"))
    assert pickle.loads(pickle.dumps(CircuitBreakerConfig(window=3))).window == 3


def test_its_error_travels() -> None:
    breaker, _ = opened()
    with pytest.raises(CircuitBreakerOpenError) as refused, breaker:
        pass
    error = pickle.loads(pickle.dumps(refused.value))
    assert str(error) == str(refused.value)
    assert (error.name, error.state, error.retry_after) == ("api", "open", 30.0)


def test_a_subclass_of_ones_own() -> None:
    class Own(CircuitBreaker):
        tenant = "acme"

    async def main() -> str:
        async with Own("api") as breaker:
            return breaker.tenant  # type: ignore[no-any-return]

    assert asyncio.run(main()) == "acme"
