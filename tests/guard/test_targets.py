"""Several targets behind one guard: which is chosen, and what happens when one fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from guarding import on_virtual_time
from hypothesis import given
from hypothesis import strategies as st
from routing import Refused, Upstream, ask, ask_sync, breaker, guard_of, is_at_rest, tripped

from ferrogate import (
    CircuitBreakerOpenError,
    Guard,
    LLMLimiter,
    RateLimiter,
    RetryBudget,
    RetryPolicy,
    Target,
)
from ferrogate.testing import ManualClock


def called(*upstreams: Upstream) -> list[int]:
    return [len(upstream.calls) for upstream in upstreams]


def test_the_function_is_given_the_target() -> None:
    async def main() -> None:
        east, west = Upstream("east"), Upstream("west")
        guard = guard_of(None, Target("east", east), Target("west", west))
        assert await guard.call(ask, "hi") == "east"
        assert guard.call_sync(ask_sync, "hi") == "east"

        @guard
        async def decorated(prompt: str, **named: Any) -> Any:
            return named["target"].name, prompt

        @guard
        def plain(prompt: str, target: Any = None) -> Any:
            return target.name, prompt

        assert await decorated("hi") == ("east", "hi")
        assert plain("hi") == ("east", "hi")
        with pytest.raises(TypeError, match="target: filled in by the guard"):
            await decorated("hi", target=guard.targets[1])
        assert is_at_rest(guard)

    asyncio.run(main())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_weights_are_exact_over_every_round(weights: list[int]) -> None:
    async def main() -> None:
        upstreams = [Upstream(str(at)) for at in range(len(weights))]
        targets = [
            Target(one.name, one, weight=weight)
            for one, weight in zip(upstreams, weights, strict=True)
        ]
        guard = guard_of(None, *targets, route="weighted")
        for rounds in (1, 2):
            for _ in range(sum(weights)):
                await guard.call(ask)
            assert called(*upstreams) == [rounds * weight for weight in weights]
        shares = [row["share"] for row in guard.get_stats()["targets"].values()]
        assert shares == [weight / sum(weights) for weight in weights]

    asyncio.run(main())


def test_the_weights_of_those_that_are_left_hold_while_one_is_away() -> None:
    async def main(clock: ManualClock) -> None:
        upstreams = [Upstream(name) for name in "abc"]
        targets = [
            Target("a", upstreams[0], weight=5, breaker=tripped("a", clock, 60)),
            Target("b", upstreams[1], weight=2),
            Target("c", upstreams[2], weight=1),
        ]
        guard = guard_of(clock, *targets, route="weighted")
        for _ in range(30):
            await guard.call(ask)
        assert called(*upstreams) == [0, 20, 10]
        assert guard.get_stats()["retries"] == 0

    on_virtual_time(main)


def test_the_cheapest_that_can_take_it() -> None:
    async def main(clock: ManualClock) -> None:
        dear, cheap = Upstream("dear"), Upstream("cheap")
        guard = guard_of(
            clock,
            Target("dear", dear, price=0.02),
            Target("cheap", cheap, price=0.01, limiter=RateLimiter("2/minute", clock=clock)),
            route="cheapest",
        )
        for _ in range(5):
            await guard.call(ask)
        assert called(dear, cheap) == [3, 2]
        assert clock.now() == 0

    on_virtual_time(main)


def test_a_price_by_tokens_depends_on_the_call() -> None:
    async def main() -> None:
        long, short = Upstream("for long prompts"), Upstream("for long answers")
        guard = guard_of(
            None,
            Target("in", long, price=(1.0, 30.0)),
            Target("out", short, price=(5.0, 5.0)),
            route="cheapest",
            estimate=lambda prompt: {"input_tokens": len(prompt), "output_tokens": 10},
        )
        assert await guard.call(ask, "x" * 1000) == "for long prompts"
        assert await guard.call(ask, "x" * 10) == "for long answers"

    asyncio.run(main())


def test_a_limiter_reserves_what_the_target_costs() -> None:
    async def main(clock: ManualClock) -> None:
        limiter = LLMLimiter("model", usd_per_minute=1.0, clock=clock)
        upstream = Upstream("a", takes=1)
        guard = guard_of(
            clock,
            Target("a", upstream, price=(100.0, 400.0), limiter=limiter),
            estimate=lambda _: {"input_tokens": 1000, "output_tokens": 500},
            price=lambda _: 0.25,
        )
        task = asyncio.ensure_future(guard.call(ask, "x"))
        await asyncio.sleep(0.5)
        assert limiter.get_stats()["dimensions"]["usd"]["used"] == pytest.approx(0.3)
        await task
        assert limiter.get_stats()["dimensions"]["usd"]["used"] == pytest.approx(0.25)
        assert is_at_rest(guard)

    on_virtual_time(main)


def test_the_fastest_and_one_that_recovers() -> None:
    async def main(clock: ManualClock) -> None:
        upstreams = [Upstream("a", 0.1), Upstream("b", 0.2), Upstream("c", 0.3)]
        targets = [Target(one.name, one) for one in upstreams]
        guard = guard_of(clock, *targets, route="fastest")

        async def calls(count: int) -> Counter[str]:
            return Counter([await guard.call(ask) for _ in range(count)])

        await calls(60)
        assert (await calls(100))["a"] >= 94
        upstreams[0].takes = 2.0
        await calls(20)
        assert (await calls(100))["b"] >= 90
        upstreams[0].takes = 0.1
        await calls(400)
        assert (await calls(100))["a"] >= 94
        latency = guard.get_stats()["targets"]["a"]["latency"]
        assert latency == pytest.approx(0.1)
        # Failing at once is not fast.
        upstreams[0].down = ConnectionError()
        await calls(40)
        assert (await calls(100))["b"] >= 95
        assert len(upstreams[0].calls) < 600

    on_virtual_time(main)


def test_streams_are_fast_by_their_first_item() -> None:
    async def main(clock: ManualClock) -> None:
        async def stream(*, target: Target[float]) -> AsyncIterator[str]:
            await asyncio.sleep(target.value)
            yield target.name
            await asyncio.sleep(10)
            yield target.name

        guard = guard_of(clock, Target("a", 0.5), Target("b", 0.25), route="fastest")
        guarded = guard(stream)
        names = []
        for _ in range(30):
            names += [name async for name in guarded()]
        assert names[-20:] == ["b"] * 20
        assert guard.get_stats()["targets"]["b"]["latency"] == pytest.approx(0.25)
        assert is_at_rest(guard)

    on_virtual_time(main)


@pytest.mark.parametrize("error", [Refused(500), Refused(429, 20), Refused(429), ConnectionError()])
def test_what_failed_is_tried_elsewhere_at_once(error: Exception) -> None:
    async def main(clock: ManualClock) -> None:
        east, west = Upstream("east", script=[error]), Upstream("west")
        guard = guard_of(clock, Target("east", east), Target("west", west), attempts=2)
        assert await guard.call(ask) == "west"
        assert clock.now() == 0
        assert called(east, west) == [1, 1]
        stats = guard.get_stats()
        assert (stats["retries"], stats["calls"], stats["rejected"]) == (1, 1, 0)
        assert stats["targets"]["east"]["successes"] == 0
        assert stats["targets"]["west"]["successes"] == 1

    on_virtual_time(main)


def test_an_attempt_that_takes_too_long_goes_elsewhere() -> None:
    async def main(clock: ManualClock) -> None:
        east, west = Upstream("east", takes=100), Upstream("west", takes=1)
        guard = guard_of(clock, Target("east", east), Target("west", west), attempt_timeout=5)
        assert await guard.call(ask) == "west"
        assert clock.now() == pytest.approx(6, abs=1e-3)
        assert guard.get_stats()["targets"]["east"]["failures"] == 1

    on_virtual_time(main)


@pytest.mark.parametrize("status", [429, 503, 500])
def test_a_target_that_asked_for_patience_is_left_alone_by_all(status: int) -> None:
    async def main(clock: ManualClock) -> None:
        east, west = Upstream("east", script=[Refused(status, 20)]), Upstream("west")
        guard = guard_of(clock, Target("east", east), Target("west", west))
        for _ in range(5):
            assert await guard.call(ask) == "west"
        assert called(east, west) == [1, 5]
        clock.advance(20)
        assert await guard.call(ask) == "east"

    on_virtual_time(main)


def test_attempts_and_the_budget_bound_the_calls() -> None:
    async def main(clock: ManualClock) -> None:
        upstreams = [Upstream(str(at)) for at in range(5)]
        for upstream in upstreams:
            upstream.down = Refused(500)
        targets = [Target(one.name, one) for one in upstreams]
        guard = guard_of(clock, *targets, attempts=3)
        with pytest.raises(Refused) as caught:
            await guard.call(ask)
        assert called(*upstreams) == [1, 1, 1, 0, 0]
        assert clock.now() == 0
        assert any("3 attempts" in note for note in caught.value.__notes__)
        budget = RetryBudget(0.0, min_per_second=0.1, clock=clock)
        retry = RetryPolicy(5, budget=budget, clock=clock)
        guard = Guard("chat", targets=targets, retry=retry, clock=clock)
        with pytest.raises(Refused):
            await guard.call(ask)
        assert sum(called(*upstreams)) == 5
        # Without a policy nothing is made twice.
        with pytest.raises(Refused):
            await Guard("chat", targets=targets, clock=clock).call(ask)
        assert sum(called(*upstreams)) == 6

    on_virtual_time(main)


def test_one_target_waits_as_a_policy_does() -> None:
    async def main(clock: ManualClock) -> None:
        upstream = Upstream("only", script=[Refused(500), Refused(500), Refused(429, 7)])
        guard = guard_of(clock, Target("only", upstream))
        assert await guard.call(ask) == "only"
        assert clock.now() == pytest.approx(1 + 2 + 7, abs=1e-3)

    on_virtual_time(main)


def test_when_all_have_failed_the_first_to_return_is_asked_again() -> None:
    async def main(clock: ManualClock) -> None:
        east = Upstream("east", script=[Refused(429, 9)])
        west = Upstream("west", script=[Refused(429, 4)])
        guard = guard_of(clock, Target("east", east), Target("west", west))
        assert await guard.call(ask) == "west"
        assert clock.now() == pytest.approx(4, abs=1e-3)

    on_virtual_time(main)


def test_mistakes_are_not_tried_elsewhere() -> None:
    async def main(clock: ManualClock) -> None:
        for error in (TypeError(), Refused(400)):
            east, west = Upstream("east", script=[error]), Upstream("west")
            guard = guard_of(clock, Target("east", east), Target("west", west))
            with pytest.raises(type(error)):
                await guard.call(ask)
            assert called(east, west) == [1, 0]

    on_virtual_time(main)


def test_a_refusal_costs_no_attempt() -> None:
    async def main(clock: ManualClock) -> None:
        west = Upstream("west", script=[Refused(500)])
        limiter = RateLimiter("1/minute", clock=clock)
        await limiter.acquire()
        held = RateLimiter(burst=1, clock=clock)
        guard = guard_of(
            clock,
            Target("open", Upstream("open"), breaker=tripped("open", clock, 60)),
            Target("limited", Upstream("limited"), limiter=limiter),
            Target("full", Upstream("full"), bulkhead=held),
            Target("west", west),
            Target("last", Upstream("last")),
            attempts=2,
        )
        async with held:
            assert await guard.call(ask) == "last"
            assert called(west) == [1]
            assert guard.call_sync(ask_sync) == "west"
        assert guard.get_stats()["rejected"] == 0
        assert limiter.get_stats()["waiting"] == 0

    on_virtual_time(main)


def test_a_breaker_hears_of_its_own_target_only() -> None:
    async def main(clock: ManualClock) -> None:
        east, west = Upstream("east"), Upstream("west")
        east.down = Refused(500)
        targets = [
            Target("east", east, breaker=breaker("east", clock)),
            Target("west", west, breaker=breaker("west", clock)),
        ]
        guard = guard_of(clock, *targets)
        for _ in range(5):
            assert await guard.call(ask) == "west"
        assert called(east, west) == [2, 5]
        assert guard.get_stats()["targets"]["east"]["state"] == "open"
        assert "open" in repr(guard)
        assert targets[1].breaker is not None
        assert targets[1].breaker.get_stats()["successes"] == 5
        assert targets[0].breaker is not None
        with pytest.raises(CircuitBreakerOpenError):
            targets[0].breaker.call_sync(int)

    on_virtual_time(main)


def test_a_stream_fails_over_before_its_first_item_only() -> None:
    async def main(clock: ManualClock) -> None:
        seen: list[str] = []

        async def stream(bad: str, *, target: Target[None]) -> AsyncIterator[str]:
            seen.append(target.name)
            if bad == "first" and target.name == "east":
                raise Refused(500)
            yield target.name
            if bad == "later":
                raise Refused(500)

        targets = [Target(name, None, bulkhead=1) for name in ("east", "west")]
        guard = guard_of(clock, *targets)
        guarded = guard(stream)
        assert [item async for item in guarded("first")] == ["west"]
        assert seen == ["east", "west"]
        assert is_at_rest(guard)
        later = guarded("later")
        assert await anext(later) == "east"
        with pytest.raises(Refused):
            await anext(later)
        assert is_at_rest(guard)
        # Left, closed, and closed before it has begun.
        left = guarded("")
        assert await anext(left) == "east"
        assert not is_at_rest(guard)
        await left.aclose()
        assert is_at_rest(guard)
        await guarded("").aclose()
        assert len(seen) == 4

    on_virtual_time(main)


def test_a_hedge_goes_to_another_target() -> None:
    from ferrogate import Hedge

    async def main(clock: ManualClock) -> None:
        east, west = Upstream("east", takes=10), Upstream("west", takes=1)
        targets = [
            Target("east", east, breaker=breaker("east", clock), bulkhead=5),
            Target("west", west, breaker=breaker("west", clock), bulkhead=5),
        ]
        budget = RetryBudget(1.0, min_per_second=10, clock=clock)
        guard = guard_of(clock, *targets, hedge=Hedge(delay=2, budget=budget))
        assert await guard.call(ask) == "west"
        assert clock.now() == pytest.approx(3, abs=1e-3)
        assert called(east, west) == [1, 1]
        await asyncio.sleep(0)
        assert is_at_rest(guard)
        stats = guard.get_stats()
        assert (stats["calls"], stats["successes"], stats["retries"]) == (1, 1, 0)
        assert stats["targets"]["east"]["neutral"] == 1
        assert stats["targets"]["west"]["successes"] == 1
        assert targets[0].breaker is not None
        assert targets[0].breaker.get_stats()["successes"] == 0
        # A function of its own is called as it is.

        async def other(prompt: Any = None) -> str:
            return "other"

        guard = guard_of(clock, *targets, hedge=Hedge(other, delay=2, budget=budget))
        assert await guard.call(ask) == "other"
        await asyncio.sleep(0)
        assert is_at_rest(guard)

    on_virtual_time(main)


def test_a_batch_spreads_over_the_targets() -> None:
    async def main(clock: ManualClock) -> None:
        upstreams = [Upstream("a", takes=1), Upstream("b", takes=1)]
        targets = [Target(one.name, one, bulkhead=2, clock=clock) for one in upstreams]
        guard = guard_of(clock, *targets)
        answers = await guard.map(ask, range(12), concurrency=12)
        assert Counter(answers) == {"a": 6, "b": 6}
        assert clock.now() == pytest.approx(3, abs=0.01)
        assert is_at_rest(guard)

    on_virtual_time(main)


def test_a_guard_that_is_off_chooses_all_the_same() -> None:
    async def main(clock: ManualClock) -> None:
        east, west = Upstream("east"), Upstream("west")
        targets = [
            Target("east", east, breaker=tripped("east", clock, 60), weight=2),
            Target("west", west, limiter=RateLimiter("1/minute", clock=clock)),
        ]
        guard = guard_of(clock, *targets, route="weighted", enabled=False)
        for _ in range(6):
            await guard.call(ask)
        assert called(east, west) == [4, 2]
        east.down = Refused(500)
        with pytest.raises(Refused):
            await guard.call(ask)

    on_virtual_time(main)


def test_bypassed_calls_get_the_first_target() -> None:
    from ferrogate.testing import bypass

    async def main() -> None:
        east = Upstream("east")
        guard = guard_of(None, Target("east", east, breaker=tripped("east", None, 60)))
        decorated = guard(ask)
        with bypass():
            assert await decorated() == "east"
            assert await guard.call(ask) == "east"
            assert guard.call_sync(ask_sync) == "east"
        assert guard.get_stats()["calls"] == 0

    asyncio.run(main())
