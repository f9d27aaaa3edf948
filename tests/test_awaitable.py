"""`Ready`, what awaiting a hit gives: a coroutine in all but its body."""

from __future__ import annotations

import asyncio
import collections.abc
import gc
import inspect
import sys
import threading
import tracemalloc
import types
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast

import pytest
from child import is_collected, patience, run_well, times

from ferrogate import Cache
from ferrogate._core import Ready

cache: Cache[str, Any] = Cache(10)


def ready(value: Any) -> Ready[Any]:
    cache["k"] = value
    hit = cache.get_or_set("k", asyncio.Event().wait)
    cache.clear()
    assert isinstance(hit, Ready)
    return hit


def drive(coroutine: Any) -> Any:
    """What `await` gives, without a loop."""

    async def outer() -> Any:
        return await coroutine

    try:
        outer().send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it is not ready")


class Thing:
    pass


class Yielding:
    """Awaits by way of a generator, as code from before `await` does."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __await__(self) -> Iterator[Any]:
        return (yield from self.inner.__await__())


VALUES = [
    None,
    0,
    "",
    (),
    (1, 2),
    (Thing(), None),
    [1],
    {"a": 1},
    Thing(),
    Thing,
    ValueError("no error, a value"),
    StopIteration(5),
    StopIteration((1, 2)),
    StopAsyncIteration(),
    GeneratorExit(),
    KeyboardInterrupt("held, not raised"),
    asyncio.CancelledError(),
    StopIteration,
    ValueError,
    NotImplemented,
    ...,
    len,
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_every_value_comes_out_as_it_went_in(value: Any) -> None:
    assert drive(ready(value)) is value
    assert drive(Yielding(ready(value))) is value
    assert drive(ready(ready(value))) is not value  # one await, one layer
    with pytest.raises(StopIteration) as stop:
        ready(value).send(None)
    assert stop.value.value is value
    with pytest.raises(StopIteration) as stop:
        next(iter(ready(value)))
    assert stop.value.value is value
    assert asyncio.run(ready(value)) is value  # type: ignore[arg-type]
    assert list(ready(value)) == []

    async def many() -> list[Any]:
        return [await ready(value) for _ in range(3)]

    assert all(got is value for got in asyncio.run(many()))


def test_it_is_a_coroutine_to_all_who_ask() -> None:
    hit = ready(1)
    assert isinstance(hit, collections.abc.Coroutine)
    assert isinstance(hit, collections.abc.Awaitable)
    assert asyncio.iscoroutine(hit)
    assert inspect.isawaitable(hit)
    assert not asyncio.isfuture(hit)
    assert not isinstance(hit, types.CoroutineType)
    assert hit.cr_await is None
    assert hit.cr_frame is None
    assert hit.cr_running is False
    assert hit.__await__() is hit
    assert iter(hit) is hit
    assert "Ready" in repr(hit)
    with pytest.raises(TypeError):
        Ready()  # type: ignore[abstract]
    with pytest.raises(TypeError):
        type("Sub", (Ready,), {})
    with pytest.raises(TypeError):
        Ready.send = None  # type: ignore[method-assign, assignment]


def test_awaited_twice() -> None:
    for use in (drive, lambda hit: hit.send(None), next):
        for value in (5, None):
            hit = ready(value)
            assert drive(hit) is value
            with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                use(hit)


def test_throw_raises_what_is_thrown() -> None:
    for error in (ValueError("x"), asyncio.CancelledError(), GeneratorExit(), StopIteration(1)):
        hit = ready(Thing())
        # CPython 3.11 turns a StopIteration thrown into a coroutine into a RuntimeError.
        real = cast("Coroutine[Any, Any, None]", asyncio.sleep(0))
        with pytest.raises(BaseException) as expected:  # noqa: PT011
            real.throw(error)
        with pytest.raises(type(expected.value)):
            hit.throw(error)
        with pytest.raises(RuntimeError, match="already awaited"):
            hit.send(None)
    with pytest.raises(KeyError):
        ready(1).throw(KeyError)
    with pytest.raises(TypeError):
        ready(1).throw()
    with pytest.raises(TypeError):
        ready(1).throw(5)


def test_close_drops_the_value() -> None:
    thing = Thing()
    gone = weakref.ref(thing)
    hit = ready(thing)
    del thing
    assert gone() is not None
    assert hit.close() is None  # type: ignore[func-returns-value]
    assert gone() is None
    hit.close()
    with pytest.raises(RuntimeError, match="already awaited"):
        hit.send(None)


def test_nothing_holds_the_value_after_the_await() -> None:
    async def body(await_it: Callable[[Any], Any]) -> list[bool]:
        states = []
        for _ in range(5):
            thing = Thing()
            gone = weakref.ref(thing)
            hit = ready(thing)
            del thing
            got = await await_it(hit)
            assert got is gone()
            del got, hit
            states.append(gone() is None)
        return states

    async def wrapped(hit: Any) -> Any:
        return await hit

    ways: list[Callable[[Any], Any]] = [lambda hit: hit, Yielding, wrapped, asyncio.create_task]
    for way in ways[:3]:
        assert asyncio.run(body(way)) == [True] * 5
    thing = Thing()
    gone = weakref.ref(thing)
    hit = ready(thing)
    del thing
    asyncio.run(hit)  # type: ignore[arg-type]
    del hit
    assert is_collected(gone)


def test_an_abandoned_hit_lets_go_of_its_value() -> None:
    thing = Thing()
    before = sys.getrefcount(thing)
    for _ in range(100):
        ready(thing)
        drive(ready(thing))
        ready(thing).close()
    assert sys.getrefcount(thing) == before


def test_a_cycle_through_it_is_collected() -> None:
    class Node:
        pass

    node: Any = Node()
    gone = weakref.ref(node)
    node.hit = ready(node)
    del node
    assert is_collected(gone)
    # With a finaliser on the way that brings another hit to life.
    revived: list[Any] = []

    class Reviving:
        hit: Any

        def __del__(self) -> None:
            revived.append(drive(ready("in a finaliser")))

    thing: Any = Reviving()
    thing.hit = ready(thing)
    del thing
    gc.collect()
    assert revived == ["in a finaliser"]


def test_awaits_inside_the_finaliser_of_a_value() -> None:
    seen: list[Any] = []

    class Chatty:
        def __init__(self, left: int) -> None:
            self.left = left

        def __del__(self) -> None:
            seen.append(drive(ready(self.left)))
            if self.left:
                drive(ready(Chatty(self.left - 1)))
            ready(object())

    async def main() -> None:
        for _ in range(3):
            got = await ready(Chatty(4))
            assert got.left == 4
            del got

    asyncio.run(main())
    assert seen == [4, 3, 2, 1, 0] * 3


def test_a_kept_stop_iteration_keeps_its_value() -> None:
    """The shared exception is not taken away from somebody who caught and kept it."""
    kept: list[StopIteration] = []
    for n in range(50):
        hit = ready([n])
        try:
            next(hit)
        except StopIteration as stop:
            kept.append(stop)
        del hit
        assert drive(ready(n)) == n
    assert [stop.value for stop in kept] == [[n] for n in range(50)]
    assert len({id(stop) for stop in kept}) == 50
    kept.clear()
    assert drive(ready("after")) == "after"


def test_while_traced() -> None:
    events: list[Any] = []

    def tracer(frame: Any, event: str, arg: Any) -> Any:
        if event == "exception":
            events.append(arg[1])
        return tracer

    async def main() -> list[Any]:
        return [await ready([n]) for n in range(20)]

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        assert asyncio.run(main()) == [[n] for n in range(20)]
    finally:
        sys.settrace(before)
    sys.setprofile(lambda *_: None)
    try:
        assert asyncio.run(main()) == [[n] for n in range(20)]
    finally:
        sys.setprofile(None)
    values = [error.value for error in events if isinstance(error, StopIteration) and error.value]
    assert all(isinstance(value, list) for value in values)
    assert asyncio.run(main()) == [[n] for n in range(20)]


def test_while_monitored() -> None:
    if sys.version_info < (3, 12):
        pytest.skip("needs CPython 3.12")
    seen: list[BaseException] = []
    monitoring = sys.monitoring
    tool = monitoring.DEBUGGER_ID
    monitoring.use_tool_id(tool, "test")
    every = [monitoring.events.RAISE, monitoring.events.STOP_ITERATION, monitoring.events.C_RETURN]
    try:
        for event in every[:2]:
            monitoring.register_callback(tool, event, lambda code, at, error: seen.append(error))
        monitoring.set_events(tool, every[0] | every[1] | monitoring.events.CALL)

        async def main() -> list[Any]:
            return [await ready([n]) for n in range(20)]

        assert asyncio.run(main()) == [[n] for n in range(20)]
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    assert drive(ready("after")) == "after"


def test_while_memory_is_traced() -> None:
    async def main() -> None:
        for n in range(2_000):
            assert await ready(n) == n

    asyncio.run(main())
    tracemalloc.start()
    try:
        asyncio.run(main())
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(3):
            asyncio.run(main())
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        tracemalloc.stop()


def test_more_at_once_than_the_pool_holds() -> None:
    for count in (1, 63, 64, 65, 300):
        hits = [ready(n) for n in range(count)]
        assert [drive(hit) for hit in hits] == list(range(count))
        hits = [ready(Thing()) for n in range(count)]
        del hits[::2]
        hits += [ready(Thing()) for n in range(count)]
        gc.collect()
        assert all(isinstance(drive(hit), Thing) for hit in hits)


def test_a_long_chain_of_hits_is_dropped_without_a_deep_stack() -> None:
    code = """
    import asyncio, threading
    from ferrogate import Cache
    def chain():
        cache = Cache(1)
        hit = None
        for _ in range(300_000):
            cache["k"] = hit
            hit = cache.get_or_set("k", asyncio.Event().wait)
        cache.clear()
        del hit
        mixed = None
        for n in range(100_000):
            cache["k"] = [mixed] if n % 2 else (mixed,)
            mixed = cache.get_or_set("k", asyncio.Event().wait)
        cache.clear()
        del mixed
    threading.stack_size(512 * 1024)
    thread = threading.Thread(target=chain)
    thread.start()
    thread.join()
    print("fine")
    """
    assert run_well(code) == "fine\n"


@pytest.mark.soak
@pytest.mark.timeout(patience(0.002, times(4_000, 1_000_000)))
def test_in_many_threads_at_once() -> None:
    own: Cache[int, Any] = Cache(100)
    wrong: list[Any] = []

    def work(me: int) -> None:
        async def main() -> None:
            for n in range(times(500, 125_000)):
                own[me] = value = (me, n)
                got = await own.get_or_set(me, asyncio.Event().wait)
                if got is not value:
                    wrong.append((got, value))
                if n % 50 == 0:
                    await asyncio.sleep(0)

        asyncio.run(main())

    threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_with_the_debug_allocator() -> None:
    """Recycled objects keep the allocator's books: it aborts at a wrong one."""
    code = """
    import asyncio, gc
    from ferrogate import Cache
    cache = Cache(10)
    async def main():
        for n in range(3000):
            cache[1] = [n]
            hits = [cache.get_or_set(1, None) for _ in range(n % 90)]
            assert [await hit for hit in hits] == [[n]] * (n % 90)
            if n % 500 == 0:
                gc.collect()
    asyncio.run(main(), debug=False)
    print("fine")
    """
    assert run_well(code, env={"PYTHONMALLOC": "debug"}, timeout=60) == "fine\n"
