"""``@cached`` on async generators: its options, and what a decorated one is to others."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from streams import Upstream, collect

from ferrogate import Cache, cached
from ferrogate.testing import ManualClock, VirtualTimeLoop


def test_replay_with_the_recorded_pauses() -> None:
    clock = ManualClock()

    @cached(stream_replay="recorded")
    async def stream() -> AsyncGenerator[int, None]:
        for number in range(3):
            await asyncio.sleep(10)
            yield number

    @cached
    async def at_once() -> AsyncGenerator[int, None]:
        async for number in stream.__wrapped__():
            yield number

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for function, times in ((stream, [10, 20, 30]), (at_once, [0, 0, 0])):
            for expected in ([10, 20, 30], times):
                begun = loop.time()
                came = [round(loop.time() - begun) async for _ in function()]
                assert came == expected

    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        runner.run(main())


def test_a_stream_expires_and_is_skipped_and_bypassed(run: Any) -> None:
    clock = ManualClock()
    upstream = Upstream(chunks=2)
    seen: list[Any] = []

    def skip(chunks: tuple[str, ...]) -> bool:
        seen.append(chunks)
        return chunks[0].startswith("skip")

    stream = cached(ttl=10, clock=clock, skip_if=skip, bypass_if=lambda prompt: prompt == "hot")(
        upstream.stream
    )

    async def main() -> None:
        for prompt, calls in (("q", 1), ("skip", 2), ("hot", 2)):
            upstream.calls = 0
            for _ in range(2):
                assert await collect(stream(prompt)) == [f"{prompt}1", f"{prompt}2"]
            assert upstream.calls == calls
        assert seen == [("q1", "q2"), ("skip1", "skip2"), ("skip1", "skip2")]
        clock.advance(10)
        upstream.calls = 0
        await collect(stream("q"))
        assert upstream.calls == 1
        await collect(stream.cache_refresh("q"))
        assert upstream.calls == 2

    run(main())


def test_methods_and_what_tools_see() -> None:
    class Agent:
        def __init__(self, name: str) -> None:
            self.name = name

        @cached
        async def speak(self, to: str) -> AsyncGenerator[str, None]:
            """Speaks."""
            yield f"{self.name} to {to}"

    one, other = Agent("a"), Agent("b")

    async def main() -> None:
        assert await collect(one.speak("x")) == ["a to x"]
        assert await collect(other.speak("x")) == ["b to x"]
        assert await collect(one.speak(to="x")) == ["a to x"]
        assert Agent.speak.cache_info()[:2] == (1, 2)

    asyncio.run(main())
    assert inspect.isasyncgenfunction(Agent.speak)
    assert not inspect.iscoroutinefunction(Agent.speak)
    assert Agent.speak.__doc__ == "Speaks."
    assert str(inspect.signature(one.speak)) == "(to: 'str') -> 'AsyncGenerator[str, None]'"


@cached
async def at_module_level(x: int) -> AsyncGenerator[int, None]:
    yield x


def test_it_is_pickled_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(at_module_level)) is at_module_level


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"stream_replay": "slowly"}, ValueError, "stream_replay"),
        ({"stream_chunks": 0}, ValueError, "stream_chunks"),
        ({"stream_chunks": "many"}, TypeError, "stream_chunks"),
        ({"stale_while_revalidate": 5, "ttl": 5}, ValueError, "stale_while_revalidate"),
        ({"stale_if_error": 5, "ttl": 5}, ValueError, "stale_if_error"),
        ({"negative_ttl": {OSError: 5}}, ValueError, "negative_ttl"),
        ({"single_flight": False}, ValueError, "single_flight"),
        ({"skip_if": 5}, TypeError, "skip_if"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        cached(**options)(Upstream().stream)


def test_a_shared_cache_weighs_streams() -> None:
    shared: Cache[Any, Any] = Cache(10, max_bytes=100_000)

    @cached(cache=shared)
    async def stream(size: int) -> AsyncGenerator[bytes, None]:
        yield b"x" * size

    async def main() -> None:
        await collect(stream(10_000))
        assert 10_000 < shared.get_stats()["bytes"] < 20_000
        await collect(stream(1_000_000))
        assert shared.get_stats()["size"] == 1

    asyncio.run(main())
