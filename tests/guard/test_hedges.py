"""A second call beside one that takes long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from guarding import on_virtual_time

from ferrogate import CircuitBreaker, Guard, GuardTimeout, Hedge, RateLimiter, RetryBudget
from ferrogate.testing import ManualClock


class Upstream(Exception):
    pass


class Calls:
    """A function whose calls take so long each, or raise."""

    def __init__(self, clock: ManualClock, *plan: Any) -> None:
        self.clock = clock
        self.plan = list(plan)
        self.log: list[tuple[str, int, float]] = []

    async def __call__(self) -> int:
        number = sum(what == "begun" for what, _, _ in self.log)
        takes, ending = self.plan[number]
        self.log.append(("begun", number, self.clock.now()))
        try:
            await asyncio.sleep(takes)
        except asyncio.CancelledError:
            self.log.append(("cancelled", number, self.clock.now()))
            raise
        if isinstance(ending, Exception):
            raise ending
        return number


def guard_of(clock: ManualClock, **options: Any) -> tuple[Guard, RateLimiter, CircuitBreaker]:
    slots = RateLimiter(burst=2, clock=clock)
    breaker = CircuitBreaker("hedged", clock=clock)
    options.setdefault("hedge", Hedge(delay=2, budget=RetryBudget(1.0, clock=clock)))
    options.setdefault("bulkhead", slots)
    guard = Guard("hedged", breaker=breaker, clock=clock, **options)
    return guard, slots, breaker


def rest(slots: RateLimiter, breaker: CircuitBreaker, **counts: int) -> None:
    assert slots.get_stats()["concurrent_requests"] == 0
    told: Any = breaker.get_stats()
    assert {name: told[name] for name in counts} == counts


def test_the_second_wins_and_the_first_is_cancelled() -> None:
    async def main(clock: ManualClock) -> None:
        guard, slots, breaker = guard_of(clock)
        calls = Calls(clock, (100, None), (3, None))
        assert await guard.call(calls) == 1
        assert clock.now() == 5
        assert calls.log == [("begun", 0, 0), ("begun", 1, 2), ("cancelled", 0, 5)]
        # One attempt for the breaker, which succeeded.
        rest(slots, breaker, successes=1, failures=0, neutral=0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    on_virtual_time(main)


def test_the_first_wins_and_the_second_is_cancelled() -> None:
    async def main(clock: ManualClock) -> None:
        guard, slots, breaker = guard_of(clock)
        calls = Calls(clock, (4, None), (100, None))
        assert await guard.call(calls) == 0
        await asyncio.sleep(0)
        assert calls.log[-1] == ("cancelled", 1, 4)
        rest(slots, breaker, successes=1)

    on_virtual_time(main)


def test_a_quick_call_is_not_hedged() -> None:
    async def main(clock: ManualClock) -> None:
        guard, slots, breaker = guard_of(clock)
        calls = Calls(clock, (1, None), (1, None))
        assert await guard.call(calls) == 0
        await asyncio.sleep(10)
        assert len(calls.log) == 1
        rest(slots, breaker, successes=1)

    on_virtual_time(main)


@pytest.mark.parametrize(
    ("first", "second", "ends"),
    [
        ((5, Upstream("first")), (1, Upstream("second")), "first"),
        ((3, Upstream("first")), (5, Upstream("second")), "first"),
        ((3, Upstream("first")), (5, None), 1),
        ((5, None), (1, Upstream("second")), 0),
    ],
)
def test_one_that_fails_leaves_it_to_the_other(first: Any, second: Any, ends: Any) -> None:
    async def main(clock: ManualClock) -> None:
        guard, slots, breaker = guard_of(clock)
        calls = Calls(clock, first, second)
        if isinstance(ends, int):
            assert await guard.call(calls) == ends
            rest(slots, breaker, successes=1, failures=0)
        else:
            with pytest.raises(Upstream, match=ends):
                await guard.call(calls)
            rest(slots, breaker, successes=0, failures=1)

    on_virtual_time(main)


@pytest.mark.parametrize("after", [1.0, 3.0, 4.5])
def test_a_cancelled_caller_takes_both_along(after: float) -> None:
    async def main(clock: ManualClock) -> None:
        guard, slots, breaker = guard_of(clock)
        calls = Calls(clock, (4, Upstream("first")), (100, None))
        task = asyncio.ensure_future(guard.call(calls))
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        begun = sum(what == "begun" for what, _, _ in calls.log)
        over = sum(what == "cancelled" for what, _, _ in calls.log) + (after > 4)
        assert begun == over
        rest(slots, breaker)
        assert len(asyncio.all_tasks()) == 1

    on_virtual_time(main)


def test_to_another_function_with_the_same_arguments() -> None:
    async def slow(name: str, *, loud: bool) -> str:
        await asyncio.sleep(100)
        return name

    async def quick(name: str, *, loud: bool) -> str:
        return f"{name} from the other{'!' if loud else ''}"

    async def main(clock: ManualClock) -> None:
        guard, _, _ = guard_of(clock, hedge=Hedge(to=quick, delay=1))
        assert await guard.call(slow, "answer", loud=True) == "answer from the other!"

    on_virtual_time(main)


def test_the_delay_is_what_calls_take_as_a_rule() -> None:
    async def main(clock: ManualClock) -> None:
        hedge = Hedge(quantile=0.9, budget=RetryBudget(1.0, clock=clock))
        guard, _, _ = guard_of(clock, hedge=hedge)
        assert hedge.get_stats()["delay"] is None
        calls = Calls(clock, *[(1, None)] * 10, (100, None), (1, None))
        for _ in range(10):
            await guard.call(calls)
        assert hedge.get_stats()["delay"] == pytest.approx(1, rel=0.07)
        begun = clock.now()
        assert await guard.call(calls) == 11
        assert clock.now() - begun == pytest.approx(2, rel=0.07)
        assert (hedge.get_stats()["hedges"], hedge.get_stats()["wins"]) == (1, 1)

    on_virtual_time(main)


def test_no_more_hedges_than_the_budget_pays_for() -> None:
    async def main(clock: ManualClock) -> None:
        budget = RetryBudget(0.1, min_per_second=0, clock=clock)
        guard, _, _ = guard_of(clock, bulkhead=None, hedge=Hedge(delay=1, budget=budget))

        async def slow() -> None:
            await asyncio.sleep(10)

        for _ in range(100):
            await guard.call(slow)
        assert budget.get_stats()["retries"] == 10

    on_virtual_time(main)


def test_time_limits_bound_both() -> None:
    async def main(clock: ManualClock) -> None:
        guard, slots, breaker = guard_of(clock, attempt_timeout=5, timeout=8)
        calls = Calls(clock, (100, None), (100, None))
        with pytest.raises(GuardTimeout):
            await guard.call(calls)
        await asyncio.sleep(0)
        assert clock.now() <= 8
        await asyncio.sleep(10)
        assert len(asyncio.all_tasks()) == 1
        rest(slots, breaker, failures=1)

    on_virtual_time(main)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": 5}, "to: expected a coroutine function, got int"),
        ({"delay": 0}, "delay: expected a duration above 0 seconds"),
        ({"quantile": 2}, "quantile: expected a share from 0.001 to 1, got 2"),
        ({"quantile": "p95"}, "quantile: expected a number, got str"),
        ({"budget": 0.1}, "budget: expected a RetryBudget, got float"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Hedge(**arguments)


def test_a_second_call_that_is_cancelled_by_itself_is_no_cancellation_of_the_first() -> None:
    """As by a client that is closed in the middle: the first one's error is the call's."""

    async def main(clock: ManualClock) -> None:
        guard, slots, breaker = guard_of(clock)
        calls = Calls(clock, (3, Upstream("first")), (5, asyncio.CancelledError()))
        number = 0

        async def call() -> int:
            nonlocal number
            number += 1
            if number == 1:
                return await calls()
            await asyncio.sleep(3)
            raise asyncio.CancelledError

        with pytest.raises(Upstream, match="first"):
            await guard.call(call)
        assert clock.now() == 5
        rest(slots, breaker, failures=1)

        # Somebody who cancels the caller still does.
        number = 0
        calls = Calls(clock, (3, Upstream("first")))
        task = asyncio.create_task(guard.call(call))
        await asyncio.sleep(4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        rest(slots, breaker, failures=1)

    on_virtual_time(main)
