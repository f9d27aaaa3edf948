"""Targets that are all away: a call waits for the first to return, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from typing import Any

import pytest
from guarding import on_virtual_time
from routing import (
    Refused,
    Upstream,
    ask,
    ask_sync,
    breaker,
    guard_of,
    in_use,
    is_at_rest,
    tripped,
)

from ferrogate import (
    CircuitBreaker,
    CircuitBreakerConfig,
    Guard,
    LLMLimiter,
    RateLimiter,
    RetryPolicy,
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


@pytest.mark.parametrize(
    ("first", "seconds"), [("breaker", 12), ("limiter", 10), ("paused", 8), ("patience", 6)]
)
def test_a_call_waits_exactly_until_the_first_returns(first: str, seconds: float) -> None:
    async def main(clock: ManualClock) -> None:
        away = {
            "breaker": lambda: {"breaker": tripped("b", clock, 12 if first == "breaker" else 50)},
            "limiter": lambda: {
                "limiter": spent(clock, "1/10s" if first == "limiter" else "1/minute")
            },
            "paused": lambda: {"limiter": paused(clock, 8 if first == "paused" else 40)},
        }
        targets = [Target(name, Upstream(name), **parts()) for name, parts in away.items()]
        if first == "patience":
            patient = Upstream("patience", script=[Refused(429, 6)])
            targets.append(Target("patience", patient))
            # Nobody goes there for as long as it asked for, whoever was told.
            with pytest.raises(Refused):
                await Guard("chat", targets=targets, clock=clock).call(ask)
            guard = guard_of(clock, *targets, timeout=30)
            guard_of(clock, *targets)
        guard = guard_of(clock, *targets, timeout=30)
        if first == "patience":
            patient.script.append(Refused(429, 6))
        begun = clock.now()
        assert await guard.call(ask) == first
        assert clock.now() - begun == pytest.approx(seconds, abs=0.002)
        assert guard.get_stats()["rejected"] == 0
        assert is_at_rest(guard)

    on_virtual_time(main)


def test_refused_at_once_if_even_the_first_returns_too_late() -> None:
    async def main(clock: ManualClock) -> None:
        forced = breaker("f", clock)
        forced.force_open()
        targets = [
            Target("open", Upstream("open"), breaker=tripped("o", clock, 12)),
            Target("limited", Upstream("limited"), limiter=spent(clock)),
            Target("paused", Upstream("paused"), limiter=paused(clock, 20)),
            Target("forced", Upstream("forced"), breaker=forced),
        ]
        guard = guard_of(clock, *targets, timeout=10)
        with pytest.raises(TargetsUnavailable, match="chat: no target takes the call") as caught:
            await guard.call(ask)
        assert clock.now() == 0
        error = caught.value
        assert error.name == "chat"
        assert error.retry_after == pytest.approx(12)
        assert error.reasons == {
            "open": "circuit breaker open",
            "limited": "limited",
            "paused": "paused",
            "forced": "circuit breaker forced open",
        }
        assert "limited: limited for 60.000 s" in str(error)
        assert str(error).endswith("forced: circuit breaker forced open)")
        stats = guard.get_stats()
        assert (stats["rejected"], stats["neutral"], stats["retries"]) == (1, 0, 0)
        with pytest.raises(TargetsUnavailable):
            guard.call_sync(ask_sync)
        # What no wait helps against is refused without any deadline, too.
        never = guard_of(clock, targets[3])
        with pytest.raises(TargetsUnavailable) as caught:
            await never.call(ask)
        assert caught.value.retry_after == float("inf")
        # The fallback answers that as well.
        kind = guard_of(clock, *targets, timeout=10, fallback=lambda error: type(error).__name__)
        assert await kind.call(ask) == "TargetsUnavailable"
        assert is_at_rest(guard)

    on_virtual_time(main)


def test_what_is_too_large_for_one_goes_to_another() -> None:
    async def main(clock: ManualClock) -> None:
        small = LLMLimiter("small", input_tokens_per_minute=10, clock=clock)
        large = LLMLimiter("large", input_tokens_per_minute=1000, clock=clock)
        guard = guard_of(
            clock,
            Target("small", Upstream("small"), limiter=small),
            Target("large", Upstream("large"), limiter=large),
        )
        assert await guard.call(ask, "x" * 400) == "large"
        assert await guard.call(ask, "x" * 20) == "small"
        with pytest.raises(TargetsUnavailable, match="small: cost exceeds limit; large: cost"):
            await guard.call(ask, "x" * 40_000)

    on_virtual_time(main)


def test_a_deadline_that_passes_while_a_call_waits() -> None:
    async def main(clock: ManualClock) -> None:
        slots = RateLimiter(burst=1, clock=clock)
        guard = guard_of(clock, Target("a", Upstream("a"), bulkhead=slots), timeout=5)
        async with slots:
            with pytest.raises(TargetsUnavailable, match="a: no free slot"):
                await guard.call(ask)
            assert clock.now() == pytest.approx(5, abs=0.01)
            assert slots.get_stats()["waiting"] == 0
        assert is_at_rest(guard)

    on_virtual_time(main)


def test_no_herd_at_a_target_that_returns() -> None:
    async def main(clock: ManualClock) -> None:
        config = CircuitBreakerConfig(
            window=2, minimum_calls=2, timeout_seconds=10, success_threshold=3
        )
        upstream = Upstream("a", takes=1)
        most = 0

        async def counted(*, target: Target[Upstream]) -> str:
            nonlocal most
            if known.state == "half_open":
                most = max(most, known.get_stats()["probes"])
            return await target.value.chat()

        known = CircuitBreaker("a", config, clock=clock)
        for _ in range(2):
            with contextlib.suppress(ConnectionError):
                known.call_sync(_fail)
        guard = guard_of(clock, Target("a", upstream, breaker=known), attempts=1)
        calls = [asyncio.ensure_future(guard.call(counted)) for _ in range(50)]
        assert await asyncio.gather(*calls) == ["a"] * 50
        # Three probes one after the other, then all at once.
        assert most == 1
        assert clock.now() == pytest.approx(10 + 3 + 1, abs=0.01)
        assert known.get_stats()["times_opened"] == 1
        assert is_at_rest(guard)

    on_virtual_time(main)


def _fail() -> None:
    raise ConnectionError


def test_a_probe_that_fails_keeps_the_others_waiting() -> None:
    async def main(clock: ManualClock) -> None:
        east = Upstream("east", takes=1, script=[Refused(500)])
        west = Upstream("west", takes=1)
        guard = guard_of(
            clock,
            Target("east", east, breaker=tripped("east", clock, 10)),
            Target("west", west, breaker=tripped("west", clock, 25)),
        )
        calls = [asyncio.ensure_future(guard.call(ask)) for _ in range(10)]
        await asyncio.gather(*calls)
        # East's probe fails at 11 s, and it opens again until 21 s; its second one succeeds.
        assert clock.now() == pytest.approx(23, abs=0.01)
        assert len(east.calls) == 11
        assert is_at_rest(guard)

    on_virtual_time(main)


def test_a_wait_in_one_line_ends_when_another_target_is_free() -> None:
    async def main(clock: ManualClock) -> None:
        east, west = Upstream("east", takes=30), Upstream("west", takes=2)
        targets = [
            Target("east", east, bulkhead=1, clock=clock),
            Target("west", west, bulkhead=1, clock=clock),
        ]
        guard = guard_of(clock, *targets)
        calls = [asyncio.ensure_future(guard.call(ask)) for _ in range(6)]
        # Those that came to stand at east go west when that is free.
        assert await asyncio.gather(*calls) == ["east", *["west"] * 5]
        assert clock.now() == pytest.approx(30, abs=0.01)
        assert is_at_rest(guard)

    on_virtual_time(main)


def test_a_breaker_that_opens_meanwhile_sends_those_in_its_line_elsewhere() -> None:
    async def main(clock: ManualClock) -> None:
        east, west = Upstream("east", takes=3), Upstream("west", takes=50)
        east.down = Refused(500)
        targets = [
            Target("east", east, bulkhead=2, breaker=breaker("east", clock, 500), clock=clock),
            Target("west", west, bulkhead=2, clock=clock),
        ]
        guard = guard_of(clock, *targets)
        calls = [asyncio.ensure_future(guard.call(ask)) for _ in range(6)]
        assert await asyncio.gather(*calls) == ["west"] * 6
        assert len(east.calls) == 2
        assert clock.now() == pytest.approx(150, abs=0.1)
        assert is_at_rest(guard)

    on_virtual_time(main)


def test_limits_are_kept_and_used_by_many() -> None:
    async def main(clock: ManualClock) -> None:
        names = ("a", "b", "c")
        times: dict[str, list[float]] = {name: [] for name in names}

        async def noted(*, target: Target[None]) -> None:
            times[target.name].append(clock.now())
            await asyncio.sleep(0.3)

        targets = [
            Target(name, None, limiter=RateLimiter("4/10s", burst=2, clock=clock)) for name in names
        ]
        guard = guard_of(clock, *targets, route="weighted")
        await asyncio.gather(*(guard.call(noted) for _ in range(48)))
        for seen in times.values():
            assert len(seen) == 16
            for begun in seen:
                assert sum(begun <= other < begun + 10 for other in seen) <= 4
        assert clock.now() == pytest.approx(30.6, abs=0.1)
        assert is_at_rest(guard)

    on_virtual_time(main)


def everything(clock: ManualClock | None) -> Guard:
    """Targets with all parts, of which the first two fail."""
    down = [Upstream("a", takes=1), Upstream("b", takes=1)]
    for upstream in down:
        upstream.down = Refused(500)
    tokens = LLMLimiter("c", requests_per_minute=1000, concurrency=1, clock=clock)
    slots = RateLimiter("1000/minute", burst=1, clock=clock)
    return guard_of(
        clock,
        Target("a", down[0], breaker=breaker("a", clock), limiter=slots, bulkhead=1, clock=clock),
        Target("b", down[1], breaker=breaker("b", clock, 5), bulkhead=1, clock=clock),
        Target("c", Upstream("c", takes=2), breaker=breaker("c", clock), limiter=tokens),
        timeout=1000,
        attempt_timeout=10,
    )


def test_a_cancellation_at_any_await_leaves_nothing_behind() -> None:
    """Six calls fight for one slot each; one of them is cancelled after every possible step."""
    waits: set[int] = set()
    for victim in range(6):
        for step in range(1, 40):

            async def main(clock: ManualClock, victim: int = victim, step: int = step) -> bool:
                guard = everything(clock)
                calls = [asyncio.ensure_future(guard.call(ask)) for _ in range(6)]
                for _ in range(step):
                    await asyncio.sleep(0.25)
                ended = calls[victim].done()
                calls[victim].cancel()
                answers = await asyncio.gather(*calls, return_exceptions=True)
                del calls
                for at, answer in enumerate(answers):
                    if at != victim:
                        assert answer == "c"
                assert is_at_rest(guard), in_use(guard)
                return ended

            if on_virtual_time(main):
                break
            waits.add(victim)
    assert waits == set(range(6))


def test_calls_that_are_dropped_or_driven_by_hand_leave_nothing_behind() -> None:
    async def main(clock: ManualClock) -> None:
        slots = RateLimiter(burst=1, clock=clock)
        upstream = Upstream("a", takes=1)
        guard = guard_of(clock, Target("a", upstream, bulkhead=slots))
        await slots.__aenter__()
        never = guard.call(ask)
        never.close()
        waiting = guard.call(ask)
        waiting.send(None)
        assert slots.get_stats()["waiting"] == 1
        del waiting
        gc.collect()
        assert slots.get_stats()["waiting"] == 0
        waiting = guard.call(ask)
        waiting.send(None)
        with pytest.raises(KeyError):
            waiting.throw(KeyError())
        assert slots.get_stats()["waiting"] == 0
        await slots.__aexit__(None, None, None)
        running = guard.call(ask)
        running.send(None)
        assert not is_at_rest(guard)
        running.close()
        assert is_at_rest(guard)
        assert await guard.call(ask) == "a"

    on_virtual_time(main)


def test_a_wait_that_is_granted_and_cancelled_in_one_tick_gives_it_on() -> None:
    async def main(clock: ManualClock) -> None:
        slots = RateLimiter(burst=1, clock=clock)
        guard = guard_of(clock, Target("a", Upstream("a"), bulkhead=slots))
        await slots.__aenter__()
        first = asyncio.ensure_future(guard.call(ask))
        second = asyncio.ensure_future(guard.call(ask))
        await asyncio.sleep(1)
        await slots.__aexit__(None, None, None)
        first.cancel()
        assert await second == "a"
        assert first.cancelled() or first.done()
        await asyncio.gather(first, return_exceptions=True)
        assert is_at_rest(guard)

    on_virtual_time(main)


def test_a_closed_loop_leaves_its_place_to_others() -> None:
    slots = RateLimiter(burst=1)
    guard = guard_of(None, Target("a", Upstream("a"), bulkhead=slots))
    slots.__enter__()
    loop = asyncio.new_event_loop()
    kept = loop.create_task(_of(guard.call(ask)))
    loop.run_until_complete(asyncio.sleep(0))
    assert slots.get_stats()["waiting"] == 1
    loop.close()

    async def main() -> str:
        task = asyncio.ensure_future(guard.call(ask))
        await asyncio.sleep(0)
        slots.__exit__(None, None, None)
        return await asyncio.wait_for(task, 30)

    assert asyncio.run(main()) == "a"
    assert is_at_rest(guard)
    with contextlib.suppress(RuntimeError):
        kept.cancel()
    del kept


async def _of(call: Any) -> Any:
    return await call


def test_threads_wait_for_the_first_target() -> None:
    east, west = threading.Event(), threading.Event()
    begun = threading.Barrier(3)
    targets = [Target("east", east, bulkhead=1), Target("west", west, bulkhead=1)]
    guard = guard_of(None, *targets)
    answers: list[str] = []

    def hold(*, target: Target[threading.Event]) -> str:
        begun.wait(30)
        assert target.value.wait(30)
        return target.name

    def free(*, target: Target[threading.Event]) -> str:
        return target.name

    holders = [threading.Thread(target=guard.call_sync, args=(hold,)) for _ in range(2)]
    for thread in holders:
        thread.start()
    begun.wait(30)
    waiters = [
        threading.Thread(target=lambda: answers.append(guard.call_sync(free))) for _ in range(4)
    ]
    for thread in waiters:
        thread.start()
    west.set()
    for thread in waiters:
        thread.join(30)
    assert answers == ["west"] * 4
    east.set()
    for thread in holders:
        thread.join(30)
    assert is_at_rest(guard)


def test_a_blocked_thread_waits_on_a_clock_of_tests() -> None:
    clock = ManualClock()
    known = tripped("a", clock, 60)
    guard = guard_of(clock, Target("a", Upstream("a"), breaker=known))
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(guard.call_sync(ask_sync)))
    thread.start()
    while guard.get_stats()["calls"] == 0:
        pass
    clock.advance(59)
    assert answers == []
    clock.advance(1)
    thread.join(30)
    assert answers == ["a"]


def test_a_retry_that_finds_no_target_says_what_came_before() -> None:
    async def main(clock: ManualClock) -> None:
        east = Upstream("east")
        east.down = Refused(429, 100)
        guard = guard_of(
            clock,
            Target("east", east),
            Target("west", Upstream("west"), limiter=spent(clock)),
            timeout=20,
        )
        with pytest.raises(TargetsUnavailable) as caught:
            await guard.call(ask)
        assert isinstance(caught.value.__cause__, Refused)
        assert caught.value.reasons == {"east": "asked for patience", "west": "limited"}
        assert clock.now() == 0

    on_virtual_time(main)


def test_total_timeout_of_the_policy_bounds_the_wait() -> None:
    async def main(clock: ManualClock) -> None:
        retry = RetryPolicy(3, base=1, total_timeout=5, clock=clock)
        known = tripped("a", clock, 10)
        targets = [Target("a", Upstream("a"), breaker=known)]
        guard = Guard("chat", targets=targets, retry=retry, clock=clock)
        with pytest.raises(TargetsUnavailable):
            await guard.call(ask)

    on_virtual_time(main)
