"""What asyncio does with the result of a call, hit or miss (HOSTILE 19)."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import sys
import warnings
from typing import Any

import pytest

from ferrogate import _loads, cached

# What asyncio does with the result of a call, hit or miss.


def test_asyncio_takes_a_hit_as_it_takes_a_miss(run: Any) -> None:
    @cached
    async def load(x: int) -> int:
        await asyncio.sleep(0)
        return x

    async def ways(x: int) -> None:
        assert await load(x) == x
        assert await asyncio.create_task(load(x), name="t") == x
        assert await asyncio.ensure_future(load(x)) == x
        assert await asyncio.gather(load(x), load(x)) == [x, x]
        assert await asyncio.wait_for(load(x), 1) == x
        assert await asyncio.wait_for(load(x), None) == x
        assert await asyncio.shield(load(x)) == x
        async with asyncio.timeout(1):
            assert await load(x) == x
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(load(x)) for _ in range(3)]
        assert [task.result() for task in tasks] == [x] * 3
        done, _ = await asyncio.wait([asyncio.ensure_future(load(x))])
        assert done.pop().result() == x
        for future in asyncio.as_completed([load(x), load(x)]):
            assert await future == x
        loop = asyncio.get_running_loop()
        other = asyncio.run_coroutine_threadsafe
        assert await asyncio.to_thread(lambda: other(load(x), loop).result(5)) == x
        task = asyncio.create_task(load(x))
        assert repr(task)
        task.print_stack(file=io.StringIO())
        assert await task == x

    async def main() -> None:
        for x in range(3):
            await ways(x)
            await ways(x)

    for debug in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            run(main(), debug=debug)
        load.cache_clear()
    with asyncio.Runner() as runner:
        assert runner.run(load(1)) == 1
        assert runner.run(load(1)) == 1


def test_awaited_never_or_twice(run: Any) -> None:
    @cached
    async def load(x: int) -> int:
        return x

    async def main() -> None:
        await load(1)
        load(1)  # a hit that nobody awaits is nothing to warn of
        gc.collect()
        hit = load(1)
        assert await hit == 1
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await hit
        miss = load(2)
        assert await miss == 2
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await miss
        with pytest.warns(RuntimeWarning, match="never awaited"):
            load(3)

    run(main())


def test_an_eager_task_factory() -> None:
    if sys.version_info < (3, 12):
        pytest.skip("needs CPython 3.12")
    calls: list[int] = []

    @cached
    async def at_once(x: int) -> int:
        calls.append(x)
        return x

    @cached
    async def later(x: int) -> int:
        calls.append(x)
        await asyncio.sleep(0)
        return x

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        for function in (at_once, later):
            tasks = [asyncio.create_task(function(1)) for _ in range(5)]
            assert await asyncio.gather(*tasks) == [1] * 5
            assert asyncio.create_task(function(1)).done()
        assert calls == [1, 1]

    asyncio.run(main())  # uvloop and this factory do not get on with each other on 3.13


def test_a_task_factory_from_before_contexts() -> None:
    made: list[Any] = []

    def factory(loop: Any, coroutine: Any) -> asyncio.Task[Any]:
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop)

    @cached
    async def load(x: int) -> int:
        await asyncio.sleep(0)
        return x

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        assert await load(1) == 1

    with asyncio.Runner() as runner:  # uvloop itself insists on the newer signature
        runner.run(main())
        runner.get_loop().set_task_factory(None)
    assert len(made) == 1


def test_context_variables_are_visible_and_not_leaked(run: Any) -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    seen: list[str] = []

    @cached
    async def load(x: int) -> int:
        seen.append(user.get())
        user.set("the loader's")
        await asyncio.sleep(0)
        seen.append(user.get())
        return x

    @cached
    def sync(x: int) -> int:
        seen.append(user.get())
        return x

    async def main() -> None:
        user.set("leader")
        leader = asyncio.create_task(load(1))
        await asyncio.sleep(0)
        user.set("follower")
        assert await load(1) == await leader == 1
        assert user.get() == "follower"
        sync(1)
        assert user.get() == "follower"
        assert _loads.leading.get() == frozenset()

    run(main())
    assert seen == ["leader", "the loader's", "follower"]
