"""`stale_if_error` and `negative_ttl`: what a load that fails leaves for others."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from sources import Source, settled, stats

from ferrogate import Cache, cached
from ferrogate.testing import ManualClock

Run = Callable[..., Any]


class Upstream(Exception):
    pass


class TooMany(Upstream):
    pass


def both(source: Source, run: Run, **options: Any) -> list[tuple[Any, Callable[[], Any]]]:
    """The cached function of either kind, and what calls it."""
    sync, coroutine = source.cached(**options), source.acached(**options)
    return [(sync, sync), (coroutine, lambda: run(coroutine()))]


@pytest.mark.parametrize("single_flight", [True, False])
def test_the_stale_value_is_better_than_an_error(
    run: Run, source: Source, single_flight: bool
) -> None:
    for f, call in both(source, run, stale_if_error=60, single_flight=single_flight):
        source.calls, source.error = 0, None
        assert call() == 1
        source.clock.advance(10)
        source.error = Upstream("down")
        assert [call() for _ in range(3)] == [1, 1, 1]
        assert source.calls == 4, "it is tried each time"
        assert stats(f) == {"stale_on_error": 3}
        assert f.cache_info()[:2] == (0, 4)
        source.clock.advance(59.9)
        assert call() == 1
        source.clock.advance(0.1)
        with pytest.raises(Upstream, match="down"):
            call()
        source.error = None
        assert call() == 7


def test_what_ends_a_task_or_the_program_is_no_error_in_this_sense(source: Source) -> None:
    f = source.cached(stale_if_error=60, negative_ttl={Exception: 60})
    f()
    source.clock.advance(10)
    for end in (KeyboardInterrupt(), SystemExit(), GeneratorExit(), asyncio.CancelledError()):
        source.error = end
        with pytest.raises(type(end)):
            f()
    assert stats(f) == {}

    async def main() -> None:
        @cached(ttl=10, clock=source.clock, stale_if_error=60)
        async def g() -> int:
            if source.calls > 100:
                await asyncio.Event().wait()
            return source.read()

        source.error, source.calls = None, 100
        assert await g() == 101
        source.clock.advance(10)
        task = asyncio.create_task(g())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(g(), 0.01)
        assert stats(g) == {}

    asyncio.run(main())


def test_everybody_who_waits_gets_the_stale_value(run: Run, source: Source) -> None:
    gate: asyncio.Event

    @cached(ttl=10, clock=source.clock, stale_if_error=60)
    async def f() -> int:
        if source.error:
            await gate.wait()
        return source.read()

    async def main() -> None:
        nonlocal gate
        gate = asyncio.Event()
        assert await f() == 1
        source.clock.advance(10)
        source.error = Upstream("down")
        waiting = [asyncio.create_task(f()) for _ in range(7)]
        await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*waiting) == [1] * 7
        assert source.calls == 2
        assert stats(f) == {"stale_on_error": 7}
        # What was invalidated meanwhile is not served.
        gate.clear()
        waiting = [asyncio.create_task(f()) for _ in range(3)]
        await asyncio.sleep(0)
        f.cache_invalidate()
        gate.set()
        assert [type(one) for one in await asyncio.gather(*waiting, return_exceptions=True)] == [
            Upstream
        ] * 3

    run(main())


def test_threads_that_wait_get_the_stale_value_too(source: Source) -> None:
    gate = threading.Event()
    gate.set()

    @cached(ttl=10, clock=source.clock, stale_if_error=60)
    def f() -> int:
        assert gate.wait(10)
        return source.read()

    assert f() == 1
    gate.clear()
    source.clock.advance(10)
    source.error = Upstream("down")
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(f) for _ in range(6)]
        while f.cache.get_stats()["misses"] < 7:
            pass
        gate.set()
        assert [one.result(10) for one in futures] == [1] * 6


def test_while_revalidating_comes_first(run: Run, source: Source) -> None:
    for f, call in both(source, run, stale_while_revalidate=5, stale_if_error=60):
        source.calls, source.error = 0, None
        call()
        source.error = Upstream("down")
        source.clock.advance(12)
        assert call() == 1
        settled()
        source.clock.advance(4)
        assert call() == 1
        assert stats(f)["stale_on_error"] == 1


@pytest.mark.parametrize("single_flight", [True, False])
def test_a_failure_is_kept(run: Run, source: Source, single_flight: bool) -> None:
    options = {"negative_ttl": {Upstream: 5}, "single_flight": single_flight}
    for f, call in both(source, run, **options):
        source.calls, source.error = 0, Upstream("down")
        for _ in range(4):
            with pytest.raises(Upstream) as caught:
                call()
            assert caught.value is source.error
        assert source.calls == 1
        assert stats(f) == {"negative_hits": 3}
        assert f.cache_info() == (3, 1, 1000, 1)
        source.clock.advance(5)
        source.error = None
        assert call() == 2
        assert call() == 2


def test_the_class_nearest_in_the_mro_counts(source: Source) -> None:
    cache: Cache[str, int] = Cache(10, clock=source.clock)
    terms: Any = {"negative_ttl": {Exception: 1, Upstream: 10, LookupError: 100}}

    class Odd(TooMany, KeyError):
        pass

    for error, seconds in ((TooMany(), 10), (ValueError(), 1), (KeyError(), 100), (Odd(), 10)):
        source.error = error
        with pytest.raises(type(error)):
            cache.get_or_set_sync("k", source.read, **terms)
        assert cache.explain("k")["expires_in_seconds"] == seconds
        assert cache.explain("k")["state"] == "negative"
        cache.clear()
    source.error = TooMany()
    with pytest.raises(TooMany):
        cache.get_or_set_sync("k", source.read, negative_ttl={LookupError: 5})
    assert cache.explain("k") == {"present": False}


def test_a_kept_failure_is_no_value() -> None:
    told: list[Any] = []
    clock = ManualClock()
    cache: Cache[str, Any] = Cache(
        1,
        max_bytes=10_000,
        weigher=lambda key, value: len(value),
        on_evict=lambda key, value, cause: told.append((value, cause)),
        clock=clock,
    )
    error = Upstream("x" * 100)

    def fails() -> str:
        raise error

    with pytest.raises(Upstream):
        cache.get_or_set_sync("k", fails, negative_ttl={Upstream: 5}, tags=["t"])
    assert (cache.get("k"), "k" in cache, list(cache), len(cache)) == (None, False, [], 0)
    stats = cache.get_stats()
    assert (stats["size"], stats["bytes"] > 100) == (1, True)
    # Any load of that key sees it; whoever writes the key replaces it.
    with pytest.raises(Upstream):
        cache.get_or_set_sync("k", lambda: "value")
    assert cache.pop("k", None) is None
    assert told == [(error, "deleted")]
    for end in (lambda: cache.set("k", "v"), lambda: cache.invalidate_tag("t"), cache.clear):
        cache.delete("k")
        with pytest.raises(Upstream):
            cache.get_or_set_sync("k", fails, negative_ttl={Upstream: 5}, tags=["t"])
        end()
    assert [cause for _, cause in told if cause != "deleted"] == [
        "replaced",
        "invalidated",
        "cleared",
    ]
    # An error that alone exceeds the bound is not kept.
    error = Upstream("x" * 20_000)
    with pytest.raises(Upstream):
        cache.get_or_set_sync("k", fails, negative_ttl={Upstream: 5})
    assert cache.get_stats()["rejections"] == 1


def test_nothing_of_one_caller_is_shown_to_the_next(run: Run, source: Source) -> None:
    f = source.cached(negative_ttl={Upstream: 5})
    g = source.acached(negative_ttl={Upstream: 5})
    source.error = Upstream("down")
    lengths = set()

    async def main(caller: int) -> None:
        async def call_sync() -> None:
            f()

        for call in (call_sync, g):
            try:
                {}["of another caller"]
            except KeyError:
                with pytest.raises(Upstream) as caught:
                    await call()
            if caller > 0:
                assert caught.value.__context__ is None
                lengths.add((call is g, len(traceback.extract_tb(caught.value.__traceback__))))

    for caller in range(4):
        run(main(caller))
    assert len(lengths) == 2, "the traceback grows"


def test_a_stale_value_is_worth_more_than_a_failure(run: Run, source: Source) -> None:
    options = {"stale_if_error": 60, "negative_ttl": {Upstream: 1000}}
    for f, call in both(source, run, **options):
        source.calls, source.error = 0, None
        call()
        source.clock.advance(10)
        source.error = Upstream("down")
        assert [call(), call()] == [1, 1]
        assert (source.calls, stats(f)) == (3, {"stale_on_error": 2})
        source.clock.advance(60)
        for _ in range(3):
            with pytest.raises(Upstream):
                call()
        assert source.calls == 4
        f.cache_invalidate()
        source.error = None
        assert call() == 5


def test_a_failure_that_is_outdated_is_not_kept(source: Source) -> None:
    cache: Cache[str, int] = Cache(10, clock=source.clock)

    def fails() -> int:
        cache.delete("k")
        raise Upstream("down")

    with pytest.raises(Upstream):
        cache.get_or_set_sync("k", fails, negative_ttl={Upstream: 5})
    assert cache.get_stats()["size"] == 0


def test_a_coroutine_that_fails_fails_when_it_is_awaited(run: Run, source: Source) -> None:
    f = source.acached(negative_ttl={Upstream: 5})

    async def main() -> None:
        source.error = Upstream("down")
        with pytest.raises(Upstream):
            await f()
        call = f()
        assert asyncio.iscoroutine(call)
        with pytest.raises(Upstream):
            await call
        results = await asyncio.gather(f(), asyncio.create_task(f()), return_exceptions=True)
        assert results == [source.error] * 2

    run(main())
