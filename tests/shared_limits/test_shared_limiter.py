"""One limiter of several on one Redis: its line, its slices, its end.

Two of one name in a process are two of those that share.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest
from child import patience, run, run_well
from redis_servers import Server, needs_redis
from waiting import eventually, in_time

from ferrogate import RateLimiter, RateLimitExceeded
from ferrogate.testing import reset_all

pytestmark = [needs_redis, pytest.mark.timeout(patience(60))]


def shared(redis: Server, *limits: str, name: str = "one", **more: Any) -> RateLimiter:
    return RateLimiter(*limits, store=redis.url, name=name, **more)


def test_two_limiters_of_one_name_share_and_others_do_not(redis: Server) -> None:
    first, second = shared(redis, "5/hour"), shared(redis, "5/hour")
    other = shared(redis, "5/hour", name="{other}")
    for _ in range(5):
        first.acquire_sync(timeout=20)
    with pytest.raises(RateLimitExceeded) as refused:
        second.acquire_sync(timeout=0.3)
    assert (refused.value.name, refused.value.limit) == ("one", "5/hour")
    other.acquire_sync(timeout=20)
    stats = second.get_stats()
    assert stats["shared"] == {**(stats["shared"] or {}), "joined": True, "alone": False}
    assert stats["shared"]["share"] == {"5/hour": 2}
    assert stats["windows"] == {"5/hour": 0}
    assert first.get_stats()["windows"] == {"5/hour": 5}
    assert "5 of 5/hour" in repr(first)


def test_all_limits_hold_together_and_keys_apart(redis: Server) -> None:
    limiters = [shared(redis, "4/second", "6/hour") for _ in range(2)]

    async def main() -> None:
        for _ in range(3):
            await asyncio.gather(*(one.acquire(key="a", timeout=20) for one in limiters))
        for one in limiters:
            with pytest.raises(RateLimitExceeded):
                await one.acquire(key="a", timeout=0.2)
        # 64 bytes and more are a digest.
        await asyncio.gather(*(one.acquire(cost=2, key="b" * 99, timeout=20) for one in limiters))
        with pytest.raises(ValueError, match=r"cost: .*4/second"):
            await limiters[0].acquire(cost=5, key="c")

    asyncio.run(main())


def test_an_empty_slice_is_a_denial_that_asks(redis: Server) -> None:
    limiter = shared(redis, "100/minute")
    denied = limiter.try_acquire()
    assert not denied
    assert 0 < denied.retry_after < 1
    eventually(limiter.try_acquire)
    assert not limiter.try_acquire(cost=101)
    assert limiter.get_stats()["acquired"] == 1


def test_what_nobody_takes_goes_back(redis: Server) -> None:
    first, second = shared(redis, "20/hour"), shared(redis, "20/hour")

    async def main() -> None:
        waiting = [asyncio.ensure_future(first.acquire()) for _ in range(20)]
        # All of them are granted, and none is there to know.
        await asyncio.sleep(0)
        for one in waiting:
            one.cancel()
        assert all(
            isinstance(one, asyncio.CancelledError)
            for one in await asyncio.gather(*waiting, return_exceptions=True)
        )
        async with asyncio.timeout(30):
            await asyncio.gather(*(second.acquire() for _ in range(20)))

    asyncio.run(main())


def test_the_line_of_a_process_is_first_in_first_out(redis: Server) -> None:
    limiter = shared(redis, "5/0.5s")
    order: list[int] = []

    async def one(number: int) -> None:
        await limiter.acquire(cost=1 + number % 3)
        order.append(number)

    async def main() -> None:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(one(number))
                await asyncio.sleep(0)

    asyncio.run(main())
    assert order == list(range(20))


def test_a_large_request_is_not_starved_by_small_ones_elsewhere(redis: Server) -> None:
    small, large = shared(redis, "10/second"), shared(redis, "10/second")

    async def main() -> None:
        over = False

        async def hammer() -> None:
            while not over:
                await small.acquire()

        hammering = [asyncio.ensure_future(hammer()) for _ in range(5)]
        async with asyncio.timeout(30):
            for _ in range(3):
                await large.acquire(cost=10)
        over = True
        for one in hammering:
            one.cancel()
        await asyncio.gather(*hammering, return_exceptions=True)

    asyncio.run(main())


def test_slots_are_each_process_s_own(redis: Server) -> None:
    first, second = (shared(redis, "100/minute", burst=1) for _ in range(2))
    with first, second:
        assert first.get_stats()["concurrent_requests"] == 1


def test_counts_change_while_running_and_periods_do_not(redis: Server) -> None:
    limiter = shared(redis, "2/hour")
    for _ in range(2):
        limiter.acquire_sync(timeout=20)
    limiter.update("3/hour")
    limiter.acquire_sync(timeout=20)
    with pytest.raises(RateLimitExceeded):
        limiter.acquire_sync(timeout=0.2)
    with pytest.raises(ValueError, match="periods"):
        limiter.update("3/minute")


def test_without_a_redis_nothing_is_granted_and_nobody_hangs() -> None:
    limiter = RateLimiter("100/second", store="redis://127.0.0.1:1", name="nowhere")
    begun = time.monotonic()
    denied = limiter.try_acquire()
    assert not denied
    assert (denied.reason, denied.retry_after >= 0.1) == ("store unavailable", True)
    with pytest.raises(RateLimitExceeded, match="does not answer; retry after") as refused:
        limiter.acquire_sync(timeout=0.2)
    assert 0.1 <= refused.value.retry_after < 1
    with pytest.raises(RateLimitExceeded):
        asyncio.run(limiter.acquire(timeout=0.2))
    # Also not after a window: who has never heard of the others does not know its share.
    with pytest.raises(RateLimitExceeded):
        limiter.acquire_sync(timeout=5)
    assert time.monotonic() - begun < 30
    stats = limiter.get_stats()["shared"]
    assert stats is not None
    assert (stats["joined"], stats["alone"], stats["failures"] > 3) == (False, False, True)


def test_that_nobody_answers_is_logged_with_the_first_refusal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limiter = RateLimiter("100/second", store="redis://127.0.0.1:1", name="nowhere")
    with caplog.at_level("WARNING", logger="ferrogate"):
        with pytest.raises(RateLimitExceeded):
            limiter.acquire_sync(timeout=0.5)
        assert len(caplog.messages) == 1, caplog.messages
        with pytest.raises(RateLimitExceeded):
            limiter.acquire_sync(timeout=2)
    assert len(caplog.messages) == 1, caplog.messages
    assert "the store does not answer, callers are refused: " in caplog.text


def test_who_is_refused_while_others_wait_hears_of_the_store_too() -> None:
    limiter = RateLimiter("100/second", store="redis://127.0.0.1:1", name="nowhere")

    async def main() -> None:
        waiting = asyncio.ensure_future(limiter.acquire())
        await asyncio.sleep(0)
        denied = limiter.try_acquire()
        assert (denied.reason, denied.retry_after >= 0.1) == ("store unavailable", True)
        waiting.cancel()

    asyncio.run(main())


def test_an_outage_is_told_until_it_is_over(redis: Server) -> None:
    limiter = shared(redis, "5/hour")
    for _ in range(5):
        limiter.acquire_sync(timeout=20)
    eventually(lambda: limiter.try_acquire().reason == "limited")
    redis.kill()
    eventually(lambda: limiter.try_acquire().reason == "store unavailable")
    redis.start()
    eventually(lambda: limiter.try_acquire().reason == "limited")
    assert not limiter.try_acquire()


def test_a_name_that_all_keys_carry_is_bounded() -> None:
    with pytest.raises(ValueError, match=r"name: expected at most 200 characters .* got 201"):
        RateLimiter("1/hour", store="redis://127.0.0.1:1", name="x" * 201)
    RateLimiter("1/hour", store="redis://127.0.0.1:1", name="x" * 200)
    RateLimiter("1/hour", name="x" * 201)


def test_switched_off_it_asks_nobody() -> None:
    limiter = RateLimiter("1/hour", store="redis://127.0.0.1:1", name="off", enabled=False)
    assert all(limiter.try_acquire() for _ in range(3))
    assert limiter.get_stats()["shared"] is None


def test_waiters_of_a_closed_loop_are_passed_over(redis: Server) -> None:
    limiter = shared(redis, "5/second")
    for _ in range(2):
        loop = asyncio.new_event_loop()
        tasks = [loop.create_task(limiter.acquire()) for _ in range(10)]
        loop.run_until_complete(asyncio.sleep(0.1))
        loop.close()
        for task in tasks:
            with contextlib.suppress(Exception):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
        del tasks, task

    async def main() -> None:
        async with asyncio.timeout(30):
            for _ in range(10):
                await limiter.acquire()

    asyncio.run(main())


def test_forks_share_too_and_the_parent_goes_on(redis: Server) -> None:
    program = """
import os, sys, time, warnings
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
from ferrogate import RateLimiter, RateLimitExceeded
from ferrogate.testing import reset_all

limiter = RateLimiter("40/hour", store=sys.argv[1], name="forked")
for _ in range(4):
    limiter.acquire_sync(timeout=20)
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert limiter.get_stats()["waiting"] == 0
            for _ in range(6):
                limiter.acquire_sync(timeout=20)
            code = 0
        finally:
            os._exit(code)
    children.append(pid)
    limiter.acquire_sync(timeout=20)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
granted = 4 + 4 * 6 + 4
while True:
    try:
        # What a child held when it went is lost to all for an hour.
        limiter.acquire_sync(timeout=8)
        granted += 1
    except RateLimitExceeded:
        break
print(granted)
"""
    done = run_well(program, redis.url, timeout=60)
    assert 36 <= int(done) <= 40


@pytest.mark.parametrize("how", ["idle", "waiting", "thread"])
def test_a_process_ends_in_time_and_leaves_the_others(redis: Server, how: str) -> None:
    program = """
import asyncio, sys, threading, time
from ferrogate import RateLimiter

limiter = RateLimiter("100/hour", store=sys.argv[1], name="left")
limiter.acquire_sync(timeout=20)
if sys.argv[2] == "thread":
    threading.Thread(target=lambda: limiter.acquire_sync(cost=100), daemon=True).start()
    time.sleep(0.2)
elif sys.argv[2] == "waiting":
    async def main():
        task = asyncio.create_task(limiter.acquire(cost=100))
        await asyncio.sleep(0.2)
        task.cancel()
    asyncio.run(main())
print("done")
"""

    def judge(_: int) -> None:
        done = run(program, redis.url, how, timeout=60)
        assert (done.code, done.stdout, done.stderr) == (0, "done\n", ""), str(done)
        assert done.seconds < 10
        assert redis.command("ZCARD", "{ferrogate:limit:left}:members") == b":0"

    in_time(judge)


def test_what_it_keeps_in_redis_is_bounded_and_goes_by_itself(redis: Server) -> None:
    limiter = shared(redis, "1000/0.2s")

    async def main() -> None:
        for _ in range(200):
            await asyncio.gather(*(limiter.acquire() for _ in range(10)))
            await limiter.acquire(key="k")

    asyncio.run(main())
    keys = redis.command("EVAL", "return table.concat(redis.call('KEYS', '*'), '|')", 0)
    fields = []
    for key in keys.split(b"|"):
        # -2: the line of those who wait has gone since, with the last of them.
        left = int(redis.command("PTTL", key)[1:])
        assert left > 0 or (left == -2 and key.endswith(b":line")), (key, left)
        if redis.command("TYPE", key) == b"+hash":
            fields.append(int(redis.command("HLEN", key)[1:]))
    # Buckets of a millisecond at least, for one window.
    assert max(fields) < 300, fields


def test_a_reset_between_tests_leaves_what_is_shared(redis: Server) -> None:
    limiter = shared(redis, "1/hour")
    limiter.acquire_sync(timeout=20)
    reset_all()
    with pytest.raises(RateLimitExceeded):
        limiter.acquire_sync(timeout=0.2)
