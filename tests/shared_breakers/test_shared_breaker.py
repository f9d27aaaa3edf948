"""Breakers of several processes that share their state over Redis."""

from __future__ import annotations

import time
from typing import Any

import pytest
from breaker_fleet import Fleet, Provider
from child import patience, run_well
from redis_servers import Server, needs_redis
from waiting import eventually, in_time

from ferrogate import CircuitBreaker, CircuitBreakerConfig, CircuitBreakerOpenError
from ferrogate.testing import ManualClock, reset_all

pytestmark = [needs_redis, pytest.mark.timeout(patience(60))]

#: A second is what is left of the rest when a busy machine has let all know of it.
SHORT = {"timeout_seconds": 1.0, "success_threshold": 2, "probe_timeout_seconds": 2.0}


def moment(took: float) -> None:
    """What is promised is a fifth of a second; a busy machine gets more."""
    assert took < 1.0, took


@pytest.mark.parametrize("count", [2, 4])
def test_what_one_finds_down_all_stop_calling(fleet: Fleet, provider: Provider, count: int) -> None:
    fleet.start(count, timeout_seconds=60.0)
    fleet.joined()

    def judge(attempt: int) -> None:
        if attempt:
            fleet.members[0].ask("reset")
            fleet.come_to("closed")
        fleet.members[0].ask("fail")
        moment(fleet.come_to("open"))

    in_time(judge)
    assert [one.ask("call") for one in fleet.members] == ["refused"] * count
    assert provider.calls == 0
    for one in fleet.members:
        assert 50 < one.ask("stats")["retry_after"] <= 60
    assert [one.ask("events")[1] for one in fleet.members] == ["open"] * count


def test_when_ones_probes_succeed_all_close(fleet: Fleet) -> None:
    members = fleet.start(3, **SHORT)
    fleet.joined()
    members[0].ask("fail")
    fleet.come_to("open")
    # Nobody but the second one calls.
    assert members[1].ask("until", "closed", 30)
    for one in (members[0], members[2]):
        eventually(lambda: one.ask("state") == "closed")  # noqa: B023
    assert [one.ask("events") for one in members] == [["closed", "open", "close"]] * 3
    stats = [one.ask("stats") for one in members]
    assert [one["shared"]["closed_elsewhere"] for one in stats] == [1, 0, 1]
    assert [one["shared"]["opened_elsewhere"] for one in stats] == [0, 1, 1]
    assert [one["times_opened"] for one in stats] == [1, 0, 0]


@pytest.mark.parametrize("probes", [1, 3])
def test_a_herd_probes_as_one(fleet: Fleet, provider: Provider, probes: int) -> None:
    config = {**SHORT, "success_threshold": 20, "half_open_max_calls": probes}
    members = fleet.start(4, **{**config, "probe_timeout_seconds": 30.0})

    def lost() -> list[int]:
        return [one.ask("stats")["shared"]["losses"] for one in members]

    def storm(seconds: float) -> list[Any]:
        provider.reset()
        for one in members:
            one.do("storm", seconds, 5)
        ended = [one.answer() for one in members]
        # Where Redis gets no time to answer, there is nobody to say who is to probe.
        assert lost() == losses
        assert provider.most <= probes
        return ended

    def judge(_: int) -> None:
        nonlocal losses
        provider.seconds, provider.well = 0.0, True
        fleet.joined()
        fleet.come_to("closed")
        losses = lost()
        provider.seconds, provider.well = 0.02, False
        members[3].ask("fail")
        fleet.come_to("open")
        # At first its probes fail, too.
        ended = storm(2.5)
        assert 1 <= provider.calls <= 3 * probes
        assert sum(one["well"] for one in ended) == 0
        assert sum(one["refused"] for one in ended) > 100
        # Those that succeed are too few yet: 20 in a row take 0.4 s, and a busy machine longer.
        provider.seconds, provider.well = 0.2, True
        fleet.come_to("open")
        storm(1.5)
        assert provider.calls >= 1
        assert "closed" not in fleet.states()
        provider.seconds = 0.0
        fleet.come_to("closed")

    losses: list[int] = []
    in_time(judge)


def test_a_prober_that_is_killed_is_followed_by_another(fleet: Fleet, provider: Provider) -> None:
    first, second = fleet.start(2, **SHORT)
    fleet.joined()
    first.ask("fail")
    fleet.come_to("open")
    provider.reset()
    provider.seconds = 60.0
    first.ask("hold")
    eventually(lambda: provider.calls == 1)
    first.kill()
    fleet.members.remove(first)
    first.close()
    provider.seconds = 0.0
    begun = time.monotonic()
    assert second.ask("until", "closed", 30)
    assert time.monotonic() - begun < 20
    assert provider.most == 1


def test_by_hand_is_for_all_but_those_that_only_look(fleet: Fleet) -> None:
    first, second, third = fleet.start(3)
    fleet.joined()
    third.ask("metrics_only")
    first.ask("force_open")
    assert second.ask("until", "forced_open", 30)
    # One that comes later as well.
    (late,) = fleet.start(1)
    assert late.ask("until", "forced_open", 30)
    second.ask("disable")
    assert first.ask("until", "disabled", 30)
    assert third.ask("state") == "metrics_only"
    first.ask("reset")
    for one in (first, second, late):
        assert one.ask("until", "closed", 30)
    assert third.ask("state") == "metrics_only"
    third.ask("fail")
    assert third.ask("state") == "metrics_only"
    assert first.ask("state") == "closed"


def test_alone_each_goes_by_itself_and_all_agree_again(
    fleet: Fleet, redis: Server, provider: Provider
) -> None:
    first, second = fleet.start(2, **SHORT)
    fleet.joined()
    redis.kill()
    for one in fleet.members:
        eventually(lambda: one.ask("stats")["shared"]["alone"])  # noqa: B023
    first.ask("fail")
    assert fleet.states() == ["open", "closed"]
    # It recovers on its own.
    assert first.ask("until", "closed", 30)
    assert second.ask("call") == "well"
    first.ask("fail")
    redis.start()
    fleet.joined()
    fleet.come_to("closed")
    first.ask("fail")
    fleet.come_to("open")
    fleet.come_to("closed")
    stats = [one.ask("stats")["shared"] for one in fleet.members]
    assert [one["losses"] for one in stats] == [1, 1]


def test_one_that_stands_still_costs_no_call_anything(
    fleet: Fleet, redis: Server, provider: Provider
) -> None:
    members = fleet.start(2, **{**SHORT, "timeout_seconds": 2.0})
    fleet.joined()
    members[0].ask("fail")
    fleet.come_to("open")
    redis.stop()

    def judge(_: int) -> None:
        for one in members:
            one.do("storm", 1.0, 4)
        assert max(one.answer()["longest"] for one in members) < 0.1

    in_time(judge)
    # Both of them, with nobody to say who is to probe.
    fleet.come_to("closed")
    redis.go_on()
    fleet.joined()
    fleet.come_to("closed")
    members[1].ask("fail")
    fleet.come_to("open")


def test_a_store_that_is_started_empty_learns_what_is_known(fleet: Fleet, redis: Server) -> None:
    fleet.start(2)[0].ask("force_open")
    fleet.come_to("forced_open")
    redis.kill()
    redis.start()
    fleet.joined()
    (late,) = fleet.start(1)
    assert late.ask("until", "forced_open", 30)
    late.ask("reset")
    fleet.come_to("closed")


def test_a_child_of_a_fork_shares_as_well(fleet: Fleet) -> None:
    first, second = fleet.start(2)
    fleet.joined()
    assert first.ask("fork") == "closed"
    first.ask("force_open")
    assert second.ask("until", "forced_open", 30)
    assert second.ask("fork") == "forced_open"
    second.ask("reset")
    fleet.come_to("closed")


def test_it_ends_at_once_with_or_without_the_store(fleet: Fleet, redis: Server) -> None:
    def judge(attempt: int) -> None:
        members = fleet.start(2, **SHORT)
        fleet.joined()
        begun = time.monotonic()
        assert members[0].close() == 0
        if not attempt:
            redis.kill()
        assert members[1].close() == 0
        for one in members:
            fleet.members.remove(one)
        if attempt == 0:
            redis.start()
        assert time.monotonic() - begun < 5

    in_time(judge)


def test_an_unused_lease_is_given_back_at_the_end(fleet: Fleet, provider: Provider) -> None:
    config = {**SHORT, "probe_timeout_seconds": 600.0}
    first, second = fleet.start(2, **config)
    fleet.joined()
    second.ask("fail")
    fleet.come_to("open")
    eventually(lambda: first.ask("call") == "well")
    assert first.ask("stats")["shared"]["probing"]
    assert first.close() == 0
    fleet.members.remove(first)
    assert second.ask("until", "closed", 30)


def shared(redis: Server, name: str = "one", **config: Any) -> CircuitBreaker:
    return CircuitBreaker(name, CircuitBreakerConfig(**config), store=redis.url)


def test_two_of_one_name_share_and_others_do_not(redis: Server) -> None:
    one, same, other = shared(redis), shared(redis), shared(redis, "{other}")
    eventually(lambda: same.get_stats()["shared"]["joined"])  # type: ignore[index]
    one.force_open()
    eventually(same.is_open)
    assert not other.is_open()
    with pytest.raises(CircuitBreakerOpenError):
        same.call_sync(int)
    assert "shared" in repr(same)
    # What is in the store is not a test's alone.
    reset_all()
    assert one.is_open()


def test_without_a_store_nothing_is_shared(redis: Server) -> None:
    assert CircuitBreaker("x").get_stats()["shared"] is None
    off = CircuitBreaker("x", store=redis.url, enabled=False)
    assert off.get_stats()["shared"] is None
    assert CircuitBreaker("x", store="memory", clock=ManualClock()).state == "closed"


def test_a_store_that_nobody_has_is_lost_once(caplog: pytest.LogCaptureFixture) -> None:
    one = CircuitBreaker("far", store="redis://127.0.0.1:9/0")
    eventually(lambda: one.get_stats()["shared"]["alone"])  # type: ignore[index]
    for _ in range(5):
        with pytest.raises(ValueError, match="down"), one:
            raise ValueError("down")
    assert one.is_open()
    said = [record.message for record in caplog.records if "far" in record.message]
    assert len(said) == 1
    assert "goes by the calls of its own" in said[0]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"store": 5}, TypeError, "store: expected a str"),
        ({"store": "http://x"}, ValueError, "store: expected"),
        ({"store": "redis://x:y/0"}, ValueError, "store:"),
        ({"store": "redis://x/0", "clock": ManualClock()}, ValueError, "clock: expected None"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        CircuitBreaker("x", **options)
    with pytest.raises(ValueError, match=r"name: .*other breakers"):
        CircuitBreaker("", store="redis://x/0")
    with pytest.raises(ValueError, match=r"name: expected at most 200 characters .* got 201"):
        CircuitBreaker("x" * 201, store="redis://x/0")
    CircuitBreaker("x" * 200, store="redis://x/0")


def test_it_goes_with_the_interpreter() -> None:
    run_well(
        """
from ferrogate import CircuitBreaker
import atexit
one = CircuitBreaker("x", store="redis://127.0.0.1:9/0")
atexit.register(lambda: one.call_sync(int))
one.call_sync(int)
""",
    )
