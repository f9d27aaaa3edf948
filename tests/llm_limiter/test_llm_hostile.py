"""HOSTILE 11, 14-18 for `LLMLimiter`: whatever its callers do, everything comes back."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from child import FORKS, SEED, patience, run_well, times

from ferrogate import LLMLimiter
from ferrogate.testing import ManualClock

TURNS = times(3_000, 100_000)


def at_rest(limiter: LLMLimiter) -> None:
    gc.collect()
    stats = limiter.get_stats()
    assert (stats["open"], stats["waiting"], stats["concurrent_requests"]) == (0, 0, 0)
    assert stats["granted"] == stats["settled"] + stats["released"]


async def holding(limiter: LLMLimiter, turns: int) -> None:
    """Takes what it waited for into a block that takes some turns."""
    async with await limiter.reserve(input_tokens=10, output_tokens=10):
        for _ in range(turns):
            await asyncio.sleep(0)


def test_cancelled_at_every_await(run: Any) -> None:
    """14: while waiting, when granted, in the block: after any number of turns."""
    limiter = LLMLimiter(concurrency=1, tokens_per_minute=10**9)

    async def main() -> None:
        for turns in range(12):
            first = await limiter.reserve(input_tokens=1, output_tokens=1)
            task = asyncio.create_task(holding(limiter, 3))
            for turn in range(turns):
                if turn == 4:
                    first.settle()
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            first.release()
            del task, first
            assert limiter.get_stats()["open"] == 0
            (await asyncio.wait_for(limiter.reserve(), 5)).settle()

    run(main())
    at_rest(limiter)


@pytest.mark.soak
@pytest.mark.timeout(patience(0.002, TURNS))
def test_granted_and_cancelled_in_the_same_tick(run: Any) -> None:
    """15: nothing is lost, nothing is logged."""
    limiter = LLMLimiter(concurrency=1)
    draw = random.Random(SEED)
    problems: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: problems.append(what))
        for _ in range(TURNS):
            first = await limiter.reserve()
            waiting = asyncio.create_task(holding(limiter, 0))
            await asyncio.sleep(0)
            if draw.random() < 0.5:
                first.settle()
                waiting.cancel()
            else:
                waiting.cancel()
                first.release()
            await asyncio.wait([waiting])
            del first

    run(main())
    at_rest(limiter)
    assert not problems


def test_a_task_cancelled_before_its_first_step(run: Any) -> None:
    limiter = LLMLimiter(requests_per_minute=1)

    async def main() -> None:
        task = asyncio.create_task(limiter.reserve())
        task.cancel()
        await asyncio.wait([task])
        del task
        assert limiter.get_stats()["open"] == 0
        kept = await limiter.reserve()
        task = asyncio.create_task(limiter.reserve())
        task.cancel()
        await asyncio.wait([task])
        del task
        assert kept.settle()

    run(main())
    at_rest(limiter)


def test_wait_for_and_timeouts_of_asyncio(run: Any) -> None:
    limiter = LLMLimiter(concurrency=1)

    async def main() -> None:
        first = await limiter.reserve()
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(limiter.reserve(), 0.001)
        gathered = asyncio.gather(*(holding(limiter, 1) for _ in range(20)))
        await asyncio.sleep(0)
        first.settle()
        await gathered

    run(main())
    at_rest(limiter)


@contextmanager
def dead_loop(waiters: int, enter: Any) -> Iterator[None]:
    """A closed loop whose tasks wait and are still referenced."""
    loop = asyncio.new_event_loop()
    # asyncio itself reports pending tasks that go.
    loop.set_exception_handler(lambda *_: None)
    tasks = [loop.create_task(enter()) for _ in range(waiters)]
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    yield
    assert len(tasks) == waiters


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_closed_loops_keep_nothing() -> None:
    """16: their places go to the next."""
    limiter = LLMLimiter(concurrency=1)
    first = limiter.reserve_sync()
    with dead_loop(600, lambda: holding(limiter, 0)):
        assert limiter.get_stats()["waiting"] == 600
        assert first.settle()
        assert limiter.get_stats()["waiting"] == 0
        with limiter.reserve_sync(timeout=5):
            pass
    at_rest(limiter)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_while_it_holds_gives_back() -> None:
    limiter = LLMLimiter(concurrency=1)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    task = loop.create_task(holding(limiter, 10**9))
    loop.run_until_complete(asyncio.sleep(0))
    assert limiter.get_stats()["open"] == 1
    loop.close()
    del task, loop
    at_rest(limiter)


@pytest.mark.timeout(patience(30))
def test_threads_and_loops_together() -> None:
    """11, 17: one limiter for all of them; everybody gets in, nobody too many at once."""
    limiter = LLMLimiter("shared", concurrency=4, tokens_per_minute=10**12, fairness="weighted")
    inside = peak = served = 0
    lock = threading.Lock()
    rounds = times(50, 500)

    def enter() -> None:
        nonlocal inside, peak, served
        with lock:
            inside += 1
            served += 1
            peak = max(peak, inside)

    def leave() -> None:
        nonlocal inside
        with lock:
            inside -= 1

    def blocking(number: int) -> None:
        for n in range(rounds):
            reserved = limiter.reserve_sync(input_tokens=n, tenant=number)
            enter()
            leave()
            assert reserved.settle(input_tokens=0)

    async def looping(number: int) -> None:
        async def one(n: int) -> None:
            async with await limiter.reserve(input_tokens=n, tenant=number) as reserved:
                enter()
                await asyncio.sleep(0)
                leave()
                if n % 3 == 0:
                    reserved.settle(input_tokens=2 * n)

        await asyncio.gather(*(one(n) for n in range(rounds)))

    threads = [threading.Thread(target=blocking, args=(n,)) for n in range(4)]
    threads += [threading.Thread(target=lambda n=n: asyncio.run(looping(n))) for n in range(4, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert served == 8 * rounds
    assert peak <= 4
    at_rest(limiter)


def test_settled_by_many_threads_it_is_settled_once() -> None:
    limiter = LLMLimiter(concurrency=1)
    for _ in range(100):
        reserved = limiter.reserve_sync()
        answers: list[bool] = []
        gate = threading.Barrier(4)

        def end(end: Any, answers: list[bool] = answers, gate: Any = gate) -> None:
            gate.wait()
            answers.append(end())

        ends = [reserved.settle, reserved.release] * 2
        threads = [threading.Thread(target=end, args=(one,)) for one in ends]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [False, False, False, True]
    at_rest(limiter)


def test_cycles_of_reservations_are_collected() -> None:
    class Own(LLMLimiter):
        held: Any

    limiter: Any = Own(requests_per_minute=5, clock=ManualClock())
    limiter.held = [limiter.reserve_sync(), limiter.reserve(), limiter]
    watched = weakref.ref(limiter)
    del limiter
    gc.collect()
    assert watched() is None


def test_a_reservation_keeps_its_limiter() -> None:
    reserved = LLMLimiter(requests_per_minute=5).reserve_sync()
    gc.collect()
    assert reserved.settle()


@pytest.mark.hostile
@pytest.mark.skipif(not hasattr(os, "fork"), reason="not on Windows")
def test_a_fork_takes_neither_slots_nor_waiters_along() -> None:
    code = (
        FORKS
        + """
import asyncio, os, sys, threading
from ferrogate import LLMLimiter

limiter = LLMLimiter(concurrency=1, requests_per_minute=100)
held = limiter.reserve_sync()
waiting = threading.Thread(target=lambda: limiter.reserve_sync().settle())
waiting.start()
while not limiter.get_stats()["waiting"]:
    pass
pid = os.fork()
if pid == 0:
    stats = limiter.get_stats()
    assert (stats["waiting"], stats["open"], stats["concurrent_requests"]) == (0, 0, 0), stats
    # What was reserved stays spent; the slot is free.
    assert stats["dimensions"]["requests"]["used"] == 1
    mine = limiter.reserve_sync(timeout=5)
    # The end of the parent's reservation is no end of this one.
    held.release()
    assert not limiter.try_reserve()
    assert limiter.get_stats()["open"] == 1
    async def main():
        task = asyncio.create_task(limiter.reserve())
        await asyncio.sleep(0)
        mine.settle()
        (await task).settle()
    asyncio.run(main())
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0, status
assert limiter.get_stats()["waiting"] == 1
held.settle()
waiting.join(10)
assert limiter.get_stats()["open"] == 0
print("well")
"""
    )
    assert run_well(code, timeout=30) == "well\n"


@pytest.mark.hostile
def test_an_exit_with_everything_open_is_silent() -> None:
    code = """
import asyncio
from ferrogate import LLMLimiter

limiter = LLMLimiter(concurrency=1)
unawaited = LLMLimiter(concurrency=1).reserve()
held = limiter.reserve_sync()

async def main():
    global task
    task = asyncio.create_task(limiter.reserve())
    await asyncio.sleep(0)

asyncio.run(main())
print("well")
"""
    assert run_well(code, timeout=30) == "well\n"
