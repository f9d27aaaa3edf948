"""`AdaptiveConcurrency` finds what a server bears, follows it, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from batching import (
    BatchingServer,
    ComputingServer,
    keep_busy,
    long,
    on,
    short,
    stop,
    watched,
)

from ferrogate import AdaptiveConcurrency, Guard, GuardTimeout, LLMLimiter, RateLimiter
from ferrogate.testing import ManualClock, reset_all


class Refused(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__(status_code)
        self.status_code = status_code


def adaptive(clock: ManualClock, *args: Any, **more: Any) -> LLMLimiter:
    return LLMLimiter(concurrency=AdaptiveConcurrency(*args, **more), clock=clock)


def limit_of(limiter: LLMLimiter) -> int:
    found = limiter.get_stats()["adaptive_concurrency"]
    assert found is not None
    return found["limit"]


def test_by_the_first_token_it_settles_at_the_knee_and_follows_it() -> None:
    clock = ManualClock()
    limiter = adaptive(clock, 10)

    async def main() -> None:
        server = BatchingServer(40)
        tasks = await keep_busy(limiter, server, 300, short)
        for knee in (40, 80, 20):
            server.widen(knee)
            await watched(200, limiter)
            before = server.tokens
            for limit in await watched(200, limiter):
                assert 0.75 * knee <= limit <= 1.25 * knee, (knee, limit)
            served = (server.tokens - before) / 200
            assert served >= 0.9 * server.capacity(100)
        await stop(tasks)

    on(clock, main)
    stats = limiter.get_stats()
    assert (stats["open"], stats["concurrent_requests"], stats["waiting"]) == (0, 0, 0)


@pytest.mark.parametrize("signal", ["ttft", "latency"])
def test_the_length_of_answers_misleads_the_whole_latency_only(signal: str) -> None:
    """Far below the server's knee, where nothing queues, answers get ten times as long."""
    clock = ManualClock()
    limiter = adaptive(clock, 10, most=100, signal=signal)
    longer = asyncio.Event()

    def tokens(draws: random.Random) -> int:
        return long(draws) if longer.is_set() else short(draws)

    async def main() -> None:
        server = BatchingServer(1_000)
        tasks = await keep_busy(limiter, server, 100, tokens)
        assert (await watched(300, limiter))[-1] == 100
        longer.set()
        lowest = min(await watched(300, limiter))
        # By the latency it makes calls wait that the server would have taken.
        assert lowest == 100 if signal == "ttft" else lowest < 50
        await stop(tasks)

    on(clock, main)


def test_by_the_time_per_token_it_finds_where_the_batch_is_full() -> None:
    clock = ManualClock()
    limiter = adaptive(clock, 10, signal="tpot", tolerance=1.1, queue_size=2)

    async def main() -> None:
        tasks = await keep_busy(limiter, ComputingServer(40), 300, short)
        await watched(300, limiter)
        for limit in await watched(300, limiter):
            assert 0.75 * 40 <= limit <= 1.25 * 40, limit
        await stop(tasks)

    on(clock, main)


def test_aimd_stays_where_the_first_token_is_in_time() -> None:
    clock = ManualClock()
    limiter = adaptive(clock, 10, law="aimd", slow_after=0.5)

    async def main() -> None:
        server = BatchingServer(40)
        tasks = await keep_busy(limiter, server, 300, short)
        await watched(300, limiter)
        before = server.tokens
        seen = await watched(300, limiter)
        assert min(seen) >= 0.6 * 40
        assert max(seen) <= 1.4 * 40
        assert (server.tokens - before) / 300 >= 0.85 * server.capacity(100)
        await stop(tasks)

    on(clock, main)


def test_what_is_not_made_use_of_does_not_grow() -> None:
    clock = ManualClock()
    limiter = adaptive(clock, 20)

    async def main() -> None:
        tasks = await keep_busy(limiter, BatchingServer(1_000), 5, short)
        assert max(await watched(300, limiter)) == 20
        await stop(tasks)

    on(clock, main)


def test_a_guards_stream_says_when_its_first_item_comes() -> None:
    clock = ManualClock()
    limiter = adaptive(clock, 10, window=1)
    guard = Guard("model", limiter=limiter, estimate=lambda _: {}, clock=clock)

    @guard
    async def stream(pause: float) -> AsyncIterator[str]:
        await asyncio.sleep(pause)
        yield "first"
        await asyncio.sleep(100)
        yield "last"

    async def read(pause: float) -> None:
        async for _ in stream(pause):
            pass

    async def main() -> None:
        await asyncio.gather(*[read(0.5) for _ in range(10)])
        stats = limiter.get_stats()["adaptive_concurrency"]
        assert stats is not None
        assert (stats["samples"], stats["skipped"], stats["usual_seconds"]) == (10, 0, 0.5)

    on(clock, main)


def test_a_bulkhead_finds_its_width_through_streams() -> None:
    clock = ManualClock()
    slots = RateLimiter(burst=AdaptiveConcurrency(10), clock=clock)
    guard = Guard("model", bulkhead=slots, clock=clock)
    server = BatchingServer(40)

    @guard
    async def stream(tokens: int) -> AsyncIterator[str]:
        async for item in server.stream(tokens):
            yield item

    async def client() -> None:
        while True:
            async for _ in stream(random.randint(50, 150)):
                pass

    async def main() -> None:
        tasks = [asyncio.create_task(client()) for _ in range(200)]
        await asyncio.sleep(300)
        for _ in range(100):
            await asyncio.sleep(1)
            found = slots.get_stats()["adaptive_concurrency"]
            assert found is not None
            assert found["probing"] or 30 <= found["limit"] <= 50
            assert slots.burst is not None
        await stop(tasks)
        assert slots.get_stats()["concurrent_requests"] == 0

    on(clock, main)


@pytest.mark.parametrize("law", ["gradient", "aimd"])
@pytest.mark.parametrize("status", [429, 503, 529])
def test_a_refused_herd_cuts_once_through_a_guard(law: Any, status: int) -> None:
    clock = ManualClock()
    limiter = adaptive(clock, 20, law=law)
    guard = Guard(
        "model",
        limiter=limiter,
        bulkhead=AdaptiveConcurrency(20, law=law),
        estimate=dict,
        clock=clock,
    )

    @guard
    async def refused() -> None:
        await asyncio.sleep(1)
        raise Refused(status)

    async def main() -> None:
        await asyncio.gather(*[refused() for _ in range(20)], return_exceptions=True)
        assert limit_of(limiter) == 14
        await asyncio.sleep(1)
        await asyncio.gather(*[refused() for _ in range(3)], return_exceptions=True)
        assert limit_of(limiter) == 9

    on(clock, main)


def test_no_answer_in_time_cuts_and_other_failures_do_not() -> None:
    clock = ManualClock()
    limiter = adaptive(clock, 20)
    guard = Guard("model", limiter=limiter, estimate=lambda _: {}, attempt_timeout=5, clock=clock)

    @guard
    async def call(pause: float) -> None:
        await asyncio.sleep(pause)
        raise Refused(500)

    async def main() -> None:
        with pytest.raises(Refused):
            await call(1)
        assert limit_of(limiter) == 20
        with pytest.raises(GuardTimeout):
            await call(10)
        assert limit_of(limiter) == 14
        task = asyncio.create_task(call(3))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert limit_of(limiter) == 14

    on(clock, main)


def test_a_guard_shows_its_bulkhead_and_a_reset_begins_it_anew() -> None:
    clock = ManualClock()
    guard = Guard("model", bulkhead=AdaptiveConcurrency(10), clock=clock)

    @guard
    async def late() -> None:
        await asyncio.sleep(1)
        raise TimeoutError

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await late()
        assert "0 of 7 slots" in repr(guard)
        reset_all()
        assert "0 of 10 slots" in repr(guard)

    on(clock, main)
    assert Guard("plain").get_stats()["bulkhead"] is None


def test_what_callers_say_by_hand() -> None:
    clock = ManualClock()
    limiter = adaptive(clock, 20)
    with pytest.raises(Refused), limiter.reserve_sync():
        raise Refused(429)
    assert limit_of(limiter) == 14
    clock.advance(1)
    reserved = limiter.reserve_sync()
    limiter.observe({}, 529, reservation=reserved)
    limiter.observe({}, 503, reservation=reserved)
    assert limit_of(limiter) == 9
    assert reserved.first_token()
    assert not reserved.first_token()
    reserved.settle()
    assert not reserved.first_token()
    # Which request was refused is not known: it is taken to have begun a second ago.
    clock.advance(0.5)
    limiter.observe({}, 429)
    assert limit_of(limiter) == 9
    clock.advance(10)
    limiter.observe({}, 429)
    assert limit_of(limiter) == 6
    assert "0 of 6 slots (gradient of ttft)" in repr(limiter)


def test_the_limit_can_be_changed_while_running() -> None:
    limiter = LLMLimiter(requests_per_minute=1_000, concurrency=3)
    assert limiter.get_stats()["adaptive_concurrency"] is None
    limiter.update(concurrency=AdaptiveConcurrency(5, most=8, law="aimd"))
    stats = limiter.get_stats()
    assert stats["concurrency"] == limiter.concurrency == 5
    assert stats["adaptive_concurrency"] == {
        "law": "aimd",
        "signal": "ttft",
        "limit": 5,
        "least": 1,
        "most": 8,
        "samples": 0,
        "skipped": 0,
        "cuts": 0,
        "usual_seconds": 0.0,
        "probing": False,
    }
    limiter.update(concurrency=2)
    assert limiter.get_stats()["adaptive_concurrency"] is None
    limiter.update(concurrency=None)
    assert limiter.concurrency is None


def test_switched_off_it_learns_nothing() -> None:
    limiter = LLMLimiter(concurrency=AdaptiveConcurrency(2), enabled=False)
    held = [limiter.reserve_sync() for _ in range(5)]
    for reserved in held:
        reserved.first_token()
        limiter.observe({}, 429, reservation=reserved)
        reserved.settle()
    found = limiter.get_stats()["adaptive_concurrency"]
    assert found is not None
    assert (found["limit"], found["samples"], found["cuts"]) == (2, 0, 0)


@pytest.mark.parametrize("law", ["gradient", "aimd"])
def test_after_a_storm_of_cancels_everything_is_at_rest(law: Any) -> None:
    clock = ManualClock()
    limiter = adaptive(clock, 10, law=law, window=3)
    draws = random.Random(3)
    most = 0

    async def caller(server: BatchingServer) -> None:
        nonlocal most
        async with await limiter.reserve(output_tokens=20) as reserved:
            stats = limiter.get_stats()
            # In use when it was granted; since then the limit may have fallen, never the count.
            most = max(most, stats["concurrent_requests"])
            if draws.random() < 0.05:
                raise Refused(429)
            async for item in server.stream(draws.randint(2, 50)):
                if item == "first":
                    reserved.first_token()
            reserved.settle(output_tokens=draws.randint(1, 40))

    async def main() -> None:
        server = BatchingServer(30)
        tasks = []
        for _ in range(1_000):
            tasks.append(asyncio.create_task(caller(server)))
            if draws.random() < 0.1:
                await asyncio.sleep(draws.random())
            if draws.random() < 0.3:
                draws.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    on(clock, main)
    stats = limiter.get_stats()
    assert (stats["open"], stats["concurrent_requests"], stats["waiting"]) == (0, 0, 0)
    assert 1 <= limit_of(limiter) <= 1_000
    assert most >= 1


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"initial": 0}, ValueError, "initial"),
        ({"initial": True}, TypeError, "initial"),
        ({"initial": 2_000}, ValueError, "initial"),
        ({"initial": 10, "least": 11}, ValueError, "initial"),
        ({"initial": 10, "most": 9}, ValueError, "initial"),
        ({"least": 11, "most": 9}, ValueError, "initial"),
        ({"law": "vegas"}, ValueError, r"law: .*\"aimd\".*\"vegas\""),
        ({"signal": "rtt"}, ValueError, "signal"),
        ({"tolerance": 0.5}, ValueError, "tolerance"),
        ({"tolerance": float("nan")}, ValueError, "tolerance"),
        ({"queue_size": 0}, ValueError, "queue_size"),
        ({"window": 0}, ValueError, "window"),
        ({"backoff_ratio": 1}, ValueError, "backoff_ratio"),
        ({"slow_after": 1}, ValueError, "slow_after"),
        ({"law": "aimd", "slow_after": -1}, ValueError, "slow_after"),
        ({"law": "aimd", "slow_after": "1"}, TypeError, "slow_after"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        AdaptiveConcurrency(**arguments)


def test_where_it_does_not_belong() -> None:
    with pytest.raises(ValueError, match="bulkhead: no tokens"):
        Guard("g", bulkhead=AdaptiveConcurrency(signal="tpot"))
    with pytest.raises(ValueError, match="limiter: slots"):
        Guard("g", limiter=RateLimiter("1/s", burst=AdaptiveConcurrency()))
    with pytest.raises(TypeError, match="concurrency"):
        LLMLimiter(concurrency=object())  # type: ignore[arg-type]
    found = AdaptiveConcurrency(4, most=9)
    assert (found.initial, found.least, found.most) == (4, 1, 9)
    assert (found.law, found.signal) == ("gradient", "ttft")
    assert repr(found) == ('AdaptiveConcurrency(4, least=1, most=9, law="gradient", signal="ttft")')


def test_bounds_that_are_given_alone_move_what_it_begins_with() -> None:
    assert AdaptiveConcurrency(most=5).initial == 5
    assert AdaptiveConcurrency(least=50).initial == 50
    assert AdaptiveConcurrency(least=5, most=50).initial == 10
