"""A function over many items."""

from __future__ import annotations

import asyncio
import json
import pathlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from child import run_well
from guarding import on_virtual_time

from ferrogate import BatchError, BatchProgress, Guard, RetryPolicy
from ferrogate.testing import ManualClock


class Work:
    """Doubles numbers in a second each; remembers how many ran at a time."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.called: list[int] = []

    async def __call__(self, item: int) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        self.called.append(item)
        try:
            await asyncio.sleep(1)
        finally:
            self.running -= 1
        if item % 10 == 7:
            raise LookupError(item)
        return 2 * item


def test_values_in_order_and_so_many_at_a_time() -> None:
    async def main(clock: ManualClock) -> None:
        work = Work()
        items = [n for n in range(60) if n % 10 != 7]
        assert await Guard("batch").map(work, items, concurrency=6) == [2 * n for n in items]
        assert work.most == 6
        assert clock.now() == pytest.approx(9, abs=0.01)

    on_virtual_time(main)


def test_failures_come_at_the_end() -> None:
    async def main(_: ManualClock) -> None:
        work = Work()
        with pytest.raises(BatchError, match="3 of 30 items failed") as failed:
            await Guard("batch").map(work, range(30))
        assert [one.index for one in failed.value.done] == list(range(30))
        assert [one.item for one in failed.value.done if one.error] == [7, 17, 27]
        assert [one.value for one in failed.value.done][:3] == [0, 2, 4]
        assert sorted(work.called) == list(range(30))
        lookups = failed.value.subgroup(LookupError)
        assert isinstance(lookups, BatchError)
        assert len(lookups.done) == 30

    on_virtual_time(main)


def test_each_item_goes_through_the_guard() -> None:
    async def main(clock: ManualClock) -> None:
        guard = Guard("batch", retry=RetryPolicy(attempts=2, base=0, clock=clock), clock=clock)
        work = Work()
        done = [one async for one in guard.map(work, [7, 8])]
        assert work.called.count(7) == 2
        assert {one.item: one.value for one in done} == {7: None, 8: 16}
        assert guard.get_stats()["calls"] == 2

    on_virtual_time(main)


def test_whoever_leaves_takes_the_calls_along() -> None:
    async def main(_: ManualClock) -> None:
        work = Work()
        batch = aiter(Guard("batch").map(work, range(100), concurrency=4))
        assert (await anext(batch)).error is None
        await batch.aclose()
        assert work.running == 0
        assert len(asyncio.all_tasks()) == 1

        async def reads() -> None:
            await Guard("batch").map(work, range(100), concurrency=4)

        task = asyncio.ensure_future(reads())
        await asyncio.sleep(0.5)
        assert work.running == 4
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.running == 0
        assert len(asyncio.all_tasks()) == 1

    on_virtual_time(main)


def test_items_may_come_slowly_and_fail() -> None:
    async def slowly() -> AsyncIterator[int]:
        for number in range(5):
            await asyncio.sleep(1)
            yield number

    def fails() -> Iterator[int]:
        yield 1
        raise OSError("no more items")

    async def main(_: ManualClock) -> None:
        guard = Guard("batch")
        assert await guard.map(Work(), slowly()) == [0, 2, 4, 6, 8]
        with pytest.raises(OSError, match="no more items"):
            await guard.map(Work(), fails())
        assert len(asyncio.all_tasks()) == 1

    on_virtual_time(main)


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[BatchProgress] = []

    async def main(_: ManualClock) -> None:
        guard = Guard("batch")
        with pytest.raises(BatchError):
            await guard.map(Work(), range(8), progress=seen.append)
        await guard.map(Work(), range(3), progress=True)

    on_virtual_time(main)
    assert [progress.done for progress in seen] == list(range(1, 9))
    assert (seen[-1].failed, seen[-1].total) == (1, 8)
    assert str(seen[-1]).startswith("8 of 8 (100%), 1 failed")
    assert capsys.readouterr().err.splitlines()[-1].startswith("3 of 3 (100%)")


def test_it_resumes_where_it_was(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.jsonl"

    async def main(_: ManualClock) -> None:
        guard, work = Guard("batch"), Work()
        batch = aiter(guard.map(work, range(20), concurrency=1, resume=path))
        for _ in range(5):
            await anext(batch)
        await batch.aclose()
        # As if the process had died in the middle of a line.
        with path.open("ab") as file:
            file.write(b'{"key": "ab')
        again = Work()
        done = [one async for one in guard.map(again, range(20), resume=path)]
        assert sum(one.resumed for one in done) == 5
        assert sorted(again.called) == list(range(5, 20))
        assert {one.item: one.value for one in done if not one.error} == {
            n: 2 * n for n in range(20) if n % 10 != 7
        }
        third = Work()
        with pytest.raises(BatchError):
            await guard.map(third, range(20), resume=path)
        # What failed is tried again.
        assert sorted(third.called) == [7, 17]

    on_virtual_time(main)
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 18


def test_what_was_done_survives_the_process(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.jsonl"
    code = f"""
import asyncio, os
from ferrogate import Guard

async def work(item):
    if item == 50:
        os._exit(0)
    return item

async def main():
    await Guard("batch").map(work, range(100), concurrency=1, resume={str(path)!r})

asyncio.run(main())
"""
    run_well(code)
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == list(range(50))


def test_what_cannot_be_resumed(tmp_path: pathlib.Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("not a batch\n")

    async def gives_a_set(_: int) -> set[int]:
        return {1}

    async def main() -> None:
        guard = Guard("batch")
        with pytest.raises(ValueError, match=r"line 1 of .*notes\.txt is not of a batch"):
            await guard.map(Work(), [1], resume=other)
        with pytest.raises(TypeError, match="results that JSON gives back equal, got set"):
            await guard.map(gives_a_set, [1], resume=tmp_path / "a.jsonl")
        with pytest.raises(TypeError, match="object"):
            await guard.map(gives_a_set, [object()], resume=tmp_path / "b.jsonl")  # type: ignore[list-item]
        batch = guard.map(gives_a_set, [1])
        await batch
        with pytest.raises(RuntimeError, match="begun before"):
            await batch

    asyncio.run(main())
    assert other.read_text() == "not a batch\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"function": 5}, "function: expected a callable, got int"),
        ({"items": 5}, "items: expected an iterable, got int"),
        ({"concurrency": 0}, "concurrency: expected"),
        ({"progress": "yes"}, "progress: expected True, False or a callable, got str"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"function": Work(), "items": [], **arguments}
    with pytest.raises((TypeError, ValueError), match=message):
        Guard("wrong").map(**given)
