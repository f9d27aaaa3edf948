"""``@cached`` on async generators: one upstream, many readers, stored only whole."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import pickle
import threading
import weakref
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from child import is_collected

from ferrogate import Cache, StreamLagError, _loads, _streams, cached
from ferrogate.testing import ManualClock, VirtualTimeLoop


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Any:
    yield
    assert _streams._lives == {}
    assert _loads.loaders == {}
    assert _loads.waits == {}


class Upstream:
    """Counts what it is asked; ``fail_at`` and ``gates`` say what becomes of it."""

    def __init__(self, chunks: int = 10, fail_at: int | None = None) -> None:
        self.chunks, self.fail_at = chunks, fail_at
        self.calls = self.closed = 0
        self.gates: dict[int, asyncio.Event] = {}

    async def stream(self, prompt: str = "q") -> AsyncGenerator[str, None]:
        self.calls += 1
        try:
            for number in range(1, self.chunks + 1):
                if number in self.gates:
                    await self.gates[number].wait()
                if number == self.fail_at:
                    raise ConnectionError(f"at chunk {number}")
                await asyncio.sleep(0)
                yield f"{prompt}{number}"
        finally:
            self.closed += 1


async def collect(stream: AsyncGenerator[Any, None]) -> list[Any]:
    return [chunk async for chunk in stream]


def everything(count: int = 10) -> list[str]:
    return [f"q{number}" for number in range(1, count + 1)]


def test_a_hundred_readers_have_one_upstream(run: Any) -> None:
    upstream = Upstream()
    stream = cached(ttl=60)(upstream.stream)

    async def main() -> None:
        assert (
            await asyncio.gather(*(collect(stream("q")) for _ in range(100)))
            == [everything()] * 100
        )
        assert (upstream.calls, upstream.closed) == (1, 1)
        # Replayed from now on.
        assert await collect(stream("q")) == everything()
        assert upstream.calls == 1
        assert stream.cache_info()[:2] == (1, 100)
        assert stream.cache_invalidate("q")
        assert await collect(stream("q")) == everything()
        assert upstream.calls == 2

    run(main())


def test_an_upstream_that_fails_at_chunk_seven(run: Any) -> None:
    upstream = Upstream(fail_at=7)
    stream = cached(upstream.stream)

    async def read() -> tuple[list[str], str]:
        chunks: list[str] = []
        try:
            async for chunk in stream():
                chunks.append(chunk)  # noqa: PERF401
        except ConnectionError as error:
            return chunks, str(error)
        raise AssertionError("it did not fail")

    async def main() -> None:
        answers = await asyncio.gather(*(read() for _ in range(100)))
        assert answers == [(everything(6), "at chunk 7")] * 100
        assert upstream.calls == 1
        assert stream.cache_info().currsize == 0
        upstream.fail_at = None
        assert await collect(stream()) == everything()
        assert upstream.calls == 2

    run(main())


def test_who_comes_late_reads_from_the_first_chunk(run: Any) -> None:
    upstream = Upstream()
    stream = cached(upstream.stream)

    async def main() -> None:
        upstream.gates[5] = asyncio.Event()
        early = asyncio.ensure_future(collect(stream()))
        while not _streams._lives or next(iter(_streams._lives.values())).count < 4:  # noqa: ASYNC110
            await asyncio.sleep(0)
        late = stream()
        assert [await anext(late) for _ in range(4)] == everything(4)
        upstream.gates[5].set()
        assert await collect(late) == everything()[4:]
        assert await early == everything()
        assert upstream.calls == 1

    run(main())


@pytest.mark.parametrize("how", ["break", "cancel", "aclose"])
def test_an_abandoned_reader_does_not_kill_the_others(run: Any, how: str) -> None:
    upstream = Upstream()
    stream = cached(upstream.stream)

    async def goes() -> None:
        reader = stream()
        if how == "cancel":
            task = asyncio.ensure_future(collect(reader))
            await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return
        async for chunk in reader:
            if chunk == "q2":
                break
        await reader.aclose()

    async def main() -> None:
        upstream.gates[5] = asyncio.Event()
        # The first one leads, the third one reads along.
        first = asyncio.ensure_future(goes())
        second = asyncio.ensure_future(collect(stream()))
        third = asyncio.ensure_future(goes())
        await asyncio.gather(first, third)
        assert upstream.closed == 0
        upstream.gates[5].set()
        assert await second == everything()
        assert upstream.calls == 1
        assert stream.cache_info().currsize == 1

    run(main())


def test_the_last_reader_to_go_ends_the_upstream(run: Any) -> None:
    upstream = Upstream()
    stream = cached(upstream.stream)

    async def main() -> None:
        upstream.gates[5] = asyncio.Event()
        readers = [stream(), stream()]
        assert [await anext(reader) for reader in readers] == ["q1", "q1"]
        await readers[0].aclose()
        assert upstream.closed == 0
        await readers[1].aclose()
        assert upstream.closed == 1
        assert stream.cache_info().currsize == 0
        upstream.gates.clear()
        assert await collect(stream()) == everything()
        assert upstream.calls == 2
        # Never begun, it asks for nothing.
        del stream.__wrapped__.__self__.gates  # type: ignore[attr-defined]
        await stream("other").aclose()
        assert upstream.calls == 2

    run(main())


def test_who_comes_while_it_cleans_up_has_an_upstream_of_their_own(run: Any) -> None:
    calls: list[int] = []
    cleaned = asyncio.Event()

    @cached
    async def stream() -> AsyncGenerator[int, None]:
        calls.append(1)
        try:
            yield 1
            if len(calls) == 1:
                await asyncio.Event().wait()
            yield 2
        finally:
            if len(calls) == 1:
                await cleaned.wait()

    async def main() -> None:
        first = stream()
        assert await anext(first) == 1
        going = asyncio.ensure_future(first.aclose())
        await asyncio.sleep(0.001)
        assert await collect(stream()) == [1, 2]
        cleaned.set()
        await going
        assert len(calls) == 2
        assert stream.cache_info().currsize == 1

    run(main())


def test_a_slow_reader_is_bounded_and_stops_nobody(run: Any) -> None:
    upstream = Upstream(chunks=50)
    stream = cached(stream_chunks=10)(upstream.stream)

    async def main() -> None:
        slow = stream()
        assert await anext(slow) == "q1"
        fast = asyncio.ensure_future(collect(stream()))
        while not upstream.closed:
            for live in _streams._lives.values():
                assert len(live.chunks) <= 10
            await asyncio.sleep(0)
        assert await fast == everything(50)
        with pytest.raises(
            StreamLagError, match=r"49 chunks behind .* of which 10 are kept"
        ) as lag:
            await anext(slow)
        assert (lag.value.behind, lag.value.kept) == (49, 10)
        # Too long to be kept, so not stored.
        assert stream.cache_info().currsize == 0
        assert upstream.calls == 1

    run(main())


def test_who_comes_after_the_first_chunks_have_gone_has_an_upstream_of_their_own(run: Any) -> None:
    upstream = Upstream(chunks=30)
    stream = cached(stream_chunks=10)(upstream.stream)

    async def main() -> None:
        upstream.gates[20] = asyncio.Event()
        first = asyncio.ensure_future(collect(stream()))
        await asyncio.sleep(0.01)
        second = asyncio.ensure_future(collect(stream()))
        await asyncio.sleep(0.01)
        assert upstream.calls == 2
        upstream.gates[20].set()
        assert await first == await second == everything(30)

    run(main())


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


def test_two_loops_read_one_upstream() -> None:
    started, release = threading.Event(), threading.Event()
    calls: list[int] = []

    @cached
    async def stream() -> AsyncGenerator[int, None]:
        calls.append(1)
        yield 1
        started.set()
        while not release.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        yield 2

    got: list[list[int]] = []

    def work() -> None:
        got.append(asyncio.run(collect(stream())))

    first = threading.Thread(target=work)
    first.start()
    assert started.wait(10)
    others = [threading.Thread(target=work) for _ in range(3)]
    for other in others:
        other.start()
    for live in list(_streams._lives.values()):
        while live.readers < 4:
            pass
    release.set()
    for thread in (first, *others):
        thread.join(10)
    assert got == [[1, 2]] * 4
    assert calls == [1]


def test_the_loop_that_reads_is_closed_under_a_foreign_reader(monkeypatch: Any) -> None:
    monkeypatch.setattr(_streams, "_LOOK", 0.02)
    began = threading.Event()

    @cached
    async def stream() -> AsyncGenerator[int, None]:
        yield 1
        began.set()
        await asyncio.Event().wait()

    foreign = asyncio.new_event_loop()
    reader = foreign.create_task(collect(stream()))
    while not began.is_set():
        foreign.call_soon(foreign.stop)
        foreign.run_forever()

    async def main() -> None:
        reading = stream()
        assert await anext(reading) == 1
        foreign.close()
        with pytest.raises(RuntimeError, match="loop that read the stream was closed"):
            await anext(reading)

    asyncio.run(main())
    reader._log_destroy_pending = False  # type: ignore[attr-defined]
    del reader
    gc.collect()


def test_cancelled_at_every_point(run: Any) -> None:
    """HOSTILE 14: whenever a reader is cancelled, the other one gets everything."""

    async def main() -> None:
        for steps in range(40):
            upstream = Upstream(chunks=4)
            stream = cached(upstream.stream)
            leader = asyncio.ensure_future(collect(stream()))
            follower = asyncio.ensure_future(collect(stream()))
            for _ in range(steps):
                await asyncio.sleep(0)
            leader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leader
            assert await follower == everything(4)
            assert upstream.calls in {1, 2}
            alone = cached(Upstream(chunks=4).stream)
            task = asyncio.ensure_future(collect(alone()))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert _streams._lives == {}

    run(main())


def test_a_stream_that_asks_for_itself(run: Any) -> None:
    @cached
    async def stream() -> AsyncGenerator[int, None]:
        async for one in stream():
            yield one

    async def main() -> None:
        with pytest.raises(RuntimeError, match="recursive load"):
            await collect(stream())

    run(main())


def test_a_failure_shows_nobody_else_s_context_and_no_growing_traceback(run: Any) -> None:
    upstream = Upstream(fail_at=3)
    stream = cached(upstream.stream)
    seen: list[BaseException | None] = []

    async def ask(secret: str) -> None:
        try:
            {}[secret]
        except KeyError:
            try:
                await collect(stream())
            except ConnectionError as error:
                seen.append(error.__context__)

    async def main() -> None:
        await asyncio.gather(ask("a"), ask("b"))

    run(main())
    assert all(context is None or "b" not in str(context) for context in seen[:1])
    assert not any("'a'" in str(context) for context in seen[1:])


def test_nothing_is_kept_alive(run: Any) -> None:
    class Chunk:
        pass

    references: list[weakref.ref[Any]] = []

    @cached
    async def stream(fails: bool) -> AsyncGenerator[Chunk, None]:
        chunk = Chunk()
        references.append(weakref.ref(chunk))
        yield chunk
        if fails:
            raise ConnectionError

    async def main() -> None:
        with pytest.raises(ConnectionError):
            await collect(stream(True))
        await collect(stream(False))
        stream.cache_clear()

    run(main())
    assert is_collected(*references)


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
