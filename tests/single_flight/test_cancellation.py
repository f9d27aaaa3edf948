"""Whoever is cancelled, nobody else is (HOSTILE 14, 15, 17)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from child import SEED, patience, times
from loaders import Loader
from turns import turns

from ferrogate import Cache, cached

# Cancellation.


def test_the_leader_is_cancelled_and_the_others_get_the_one_result(run: Any) -> None:
    async def main() -> None:
        loader = Loader()
        leader, *followers = await loader.tasks(5)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        loader.gate.set()
        assert await asyncio.gather(*followers) == ["value"] * 4
        assert (loader.calls, loader.cancelled) == (1, 0)
        assert await loader.load(0) == "value"

    run(main())


def test_followers_are_cancelled_and_nobody_notices(run: Any) -> None:
    async def main() -> None:
        loader = Loader()
        leader, *followers = await loader.tasks(5)
        for follower in followers[1:]:
            follower.cancel()
        loader.gate.set()
        results = await asyncio.gather(leader, *followers, return_exceptions=True)
        assert results[:2] == ["value", "value"]
        assert all(isinstance(r, asyncio.CancelledError) for r in results[2:])
        assert (loader.calls, loader.cancelled) == (1, 0)

    run(main())


def test_all_are_cancelled_so_the_loader_is_and_its_cleanup_is_awaited(run: Any) -> None:
    async def main() -> None:
        loader = Loader()
        tasks = await loader.tasks(3)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        # Whoever waits for the last caller knows that the loader has cleaned up.
        assert (loader.calls, loader.cancelled, loader.cleaned) == (1, 1, 1)
        assert loader.load.cache.get_stats()["loading"] == 0
        loader.gate.set()
        assert await loader.load(0) == "value"
        assert loader.calls == 2

    run(main())


def test_a_timeout_around_the_only_caller_ends_the_loader(run: Any) -> None:
    async def main() -> None:
        loader = Loader()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await loader.load(0)
        assert loader.cleaned == 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loader.load(0), 0.01)
        assert loader.cleaned == 2
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(main())


def test_a_shield_keeps_the_load_going(run: Any) -> None:
    async def main() -> None:
        loader = Loader()
        inner = asyncio.ensure_future(loader.load(0))
        outer = asyncio.create_task(asyncio.wait_for(asyncio.shield(inner), 0.01))
        with pytest.raises(TimeoutError):
            await outer
        loader.gate.set()
        assert await inner == "value"
        assert loader.cancelled == 0

    run(main())


def test_whoever_comes_during_the_cleanup_loads_anew(run: Any) -> None:
    async def main() -> None:
        loader = Loader()
        (only,) = await loader.tasks(1)
        only.cancel()
        await asyncio.sleep(0)
        late = asyncio.create_task(loader.load(0))
        loader.gate.set()
        assert await late == "value"
        assert only.cancelled() or await asyncio.wait([only])
        assert loader.calls == 2

    run(main())


def test_a_loader_that_ends_cancelled_by_itself(run: Any) -> None:
    calls: list[int] = []

    @cached
    async def load() -> str:
        calls.append(1)
        await asyncio.sleep(0)
        if len(calls) == 1:
            raise asyncio.CancelledError
        return "value"

    async def main() -> None:
        leader, follower = asyncio.create_task(load()), asyncio.create_task(load())
        results = await asyncio.gather(leader, follower, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1] == "value"

    run(main())
    assert len(calls) == 2


def test_a_loader_that_turns_its_cancellation_into_something_else(run: Any) -> None:
    async def main() -> None:
        for outcome in (KeyError("instead"), "a value"):
            cache: Cache[str, str] = Cache(10)

            async def stubborn(outcome: Any = outcome) -> str:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if isinstance(outcome, Exception):
                        raise outcome from None
                return str(outcome)

            task = asyncio.create_task(cache.get_or_set("k", stubborn))
            await turns()
            task.cancel()
            if isinstance(outcome, Exception):
                with pytest.raises(KeyError):
                    await task
            else:
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert cache["k"] == "a value"

    run(main())


def test_cancelled_at_every_await_point(run: Any) -> None:
    """After n steps of the loop one caller is cancelled; the others are well, always."""

    async def once(steps: int, callers: int, victim: int) -> bool:
        cache: Cache[str, int] = Cache(10)
        running = 0

        async def load() -> int:
            nonlocal running
            running += 1
            try:
                for _ in range(4):
                    await asyncio.sleep(0)
                return 7
            finally:
                try:
                    await asyncio.sleep(0)
                finally:
                    running -= 1

        tasks = [asyncio.create_task(cache.get_or_set("k", load)) for _ in range(callers)]
        for _ in range(steps):
            await asyncio.sleep(0)
        hit = tasks[victim].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for index, result in enumerate(results):
            if index == victim and hit:
                assert isinstance(result, asyncio.CancelledError) or result == 7
            else:
                assert result == 7
        assert running == 0
        assert cache.get_stats()["loading"] == 0
        return hit

    async def main() -> None:
        for callers in (1, 2, 3):
            for victim in range(callers):
                hits = [await once(steps, callers, victim) for steps in range(14)]
                assert hits[0]
                assert not hits[-1]

    run(main())


@pytest.mark.memcheck
@pytest.mark.soak
@pytest.mark.timeout(patience(0.01, times(1_000, 100_000)))
def test_completion_and_cancel_in_the_same_tick(run: Any) -> None:
    rng = random.Random(SEED)
    noise: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: noise.append(context))
        cache: Cache[int, int] = Cache(10_000)
        for number in range(times(1_000, 100_000)):
            event = asyncio.Event()

            async def load(event: asyncio.Event = event, number: int = number) -> int:
                await event.wait()
                return number

            tasks = [
                asyncio.create_task(cache.get_or_set(number, load))
                for _ in range(rng.randint(1, 4))
            ]
            for _ in range(rng.randint(1, 3)):
                await asyncio.sleep(0)
            victims = [task for task in tasks if rng.random() < 0.6]
            actions: list[Callable[[], Any]] = [event.set, *(task.cancel for task in victims)]
            rng.shuffle(actions)
            for action in actions:
                loop.call_soon(action)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for task, result in zip(tasks, results, strict=True):
                assert result == number or (
                    task in victims and isinstance(result, asyncio.CancelledError)
                ), results
        assert cache.get_stats()["loading"] == 0

    run(main())
    assert noise == []
