"""``@cached`` on async generators: one upstream, many readers, stored only whole."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from child import is_collected
from streams import Upstream, collect, everything
from turns import turns

from ferrogate import StreamLagError, _loads, _streams, cached


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Any:
    yield
    assert _streams._lives == {}
    assert _loads.loaders == {}
    assert _loads.waits == {}


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
            await turns()
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
        await turns()
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
        await turns()
        second = asyncio.ensure_future(collect(stream()))
        await turns()
        assert upstream.calls == 2
        upstream.gates[20].set()
        assert await first == await second == everything(30)

    run(main())


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
