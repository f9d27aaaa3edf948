"""Batches: a function over many items, behind a guard, with progress and a file to resume from."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sized,
)
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from ferrogate._arguments import whole
from ferrogate._core import cache_key

if TYPE_CHECKING:
    from ferrogate.guard import Guard

__all__ = ["Batch", "BatchError", "BatchProgress", "Done"]

_Item = TypeVar("_Item")
_Value = TypeVar("_Value")

#: A screen is not written to more often, in seconds; what is no screen much less.
_SCREEN, _LOG = 0.1, 10.0


@dataclass(frozen=True, slots=True)
class Done(Generic[_Item, _Value]):
    """What became of one item."""

    index: int
    """Its place among the items, from 0 on."""
    item: _Item
    value: _Value | None
    """The result; ``None`` if there is an ``error``."""
    error: Exception | None
    resumed: bool = False
    """It was not called now: the value is from the file."""


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is."""

    done: int
    """Items that have a value or an error."""
    failed: int
    resumed: int
    """Of ``done``: those whose value is from the file."""
    total: int | None
    """``None`` where the items do not say how many there are."""
    seconds: float
    """Since the batch began."""

    def __str__(self) -> str:
        of = (
            "" if self.total is None else f" of {self.total} ({self.done / max(self.total, 1):.0%})"
        )
        parts = [f"{self.done}{of}"]
        if self.resumed:
            parts.append(f"{self.resumed} from the file")
        if self.failed:
            parts.append(f"{self.failed} failed")
        called = self.done - self.resumed
        if called and self.seconds > 0:
            rate = called / self.seconds
            parts.append(f"{rate:.3g}/s")
            if self.total is not None and self.total > self.done:
                parts.append(f"{(self.total - self.done) / rate:.0f} s left")
        return ", ".join(parts)


class BatchError(ExceptionGroup[Exception]):
    """Some items of a batch failed; all others were done.

    Attributes:
        done: what became of each item, in the order of the items.
    """

    done: list[Done[Any, Any]]

    def derive(self, errors: Any) -> Any:
        """As ``ExceptionGroup`` wants it, for ``except*``."""
        group = BatchError(self.message, errors)
        group.done = self.done
        return group


class Batch(Generic[_Item, _Value]):
    """What :meth:`Guard.map` returns: awaited it is all values, iterated over each as it comes."""

    def __init__(
        self,
        guard: Guard,
        function: Callable[[_Item], Awaitable[_Value]],
        items: Iterable[_Item] | AsyncIterable[_Item],
        *,
        concurrency: int,
        progress: bool | Callable[[BatchProgress], object],
        resume: str | os.PathLike[str] | None,
    ) -> None:
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {type(function).__name__}")
        if not isinstance(items, Iterable | AsyncIterable):
            raise TypeError(f"items: expected an iterable, got {type(items).__name__}")
        if not isinstance(progress, bool) and not callable(progress):
            got = type(progress).__name__
            raise TypeError(f"progress: expected True, False or a callable, got {got}")
        self._guard = guard
        self._function = function
        self._items = items
        self._concurrency = whole("concurrency", concurrency, least=1, most=1_000_000)
        self._told = _on_screen() if progress is True else progress or None
        self._path = None if resume is None else Path(resume)
        self._begun = False

    def __await__(self) -> Generator[Any, Any, list[_Value]]:
        return self._all().__await__()

    async def _all(self) -> list[_Value]:
        done = sorted([one async for one in self], key=lambda one: one.index)
        errors = [one.error for one in done if one.error is not None]
        if errors:
            failed = BatchError(f"{len(errors)} of {len(done)} items failed", errors)
            failed.done = list(done)
            raise failed
        return [one.value for one in done]  # type: ignore[misc]  # without an error it is there

    async def __aiter__(self) -> AsyncGenerator[Done[_Item, _Value], None]:
        if self._begun:
            raise RuntimeError("this batch has begun before: call map() again")
        self._begun = True
        file = None if self._path is None else _Results(self._path)
        try:
            async with contextlib.aclosing(self._run(file)) as running:
                async for one in running:
                    yield one
        finally:
            if file is not None:
                file.close()

    async def _run(self, file: _Results | None) -> AsyncGenerator[Done[_Item, _Value], None]:
        begun = time.monotonic()
        total = len(self._items) if isinstance(self._items, Sized) else None
        done = failed = resumed = 0
        numbered = _numbered(self._items)
        ready: asyncio.Queue[Done[_Item, _Value] | Exception | None]
        # A reader who is slow holds the callers up: nothing piles up.
        ready = asyncio.Queue(self._concurrency)

        async def work() -> None:
            try:
                async for index, item in numbered:
                    await ready.put(await self._one(index, item, file))
            except Exception as error:
                # Of the items or of the file: the batch ends with it.
                await ready.put(error)
            else:
                await ready.put(None)

        workers = [asyncio.ensure_future(work()) for _ in range(self._concurrency)]
        working = len(workers)
        try:
            while working:
                one = await ready.get()
                if one is None:
                    working -= 1
                    continue
                if isinstance(one, Exception):
                    raise one
                done += 1
                failed += one.error is not None
                resumed += one.resumed
                if self._told is not None:
                    seconds = time.monotonic() - begun
                    self._told(BatchProgress(done, failed, resumed, total, seconds))
                yield one
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _one(self, index: int, item: _Item, file: _Results | None) -> Done[_Item, _Value]:
        key = None
        if file is not None:
            key = cache_key(item)
            if key in file.known:
                return Done(index, item, file.known[key], None, resumed=True)
        try:
            value = await self._guard.call(self._function, item)
        except Exception as error:
            return Done(index, item, None, error)
        if file is not None and key is not None:
            file.add(key, value)
        return Done(index, item, value, None)


class _numbered(Generic[_Item]):
    """The items with their places; many may ask for the next one at a time."""

    def __init__(self, items: Iterable[_Item] | AsyncIterable[_Item]) -> None:
        self._next = 0
        self._turn = asyncio.Lock()
        self._plain: Iterator[_Item] | None = None
        self._async: AsyncIterator[_Item] | None = None
        if isinstance(items, AsyncIterable):
            self._async = aiter(items)
        else:
            self._plain = iter(items)

    def __aiter__(self) -> _numbered[_Item]:
        return self

    async def __anext__(self) -> tuple[int, _Item]:
        async with self._turn:
            if self._plain is not None:
                try:
                    item = next(self._plain)
                except StopIteration:
                    raise StopAsyncIteration from None
            else:
                assert self._async is not None
                item = await anext(self._async)
            self._next += 1
            return self._next - 1, item


class _Results:
    """Values by the keys of their items, in a file of JSON lines that is only appended to."""

    def __init__(self, path: Path) -> None:
        self.known: dict[str, Any] = {}
        self._path = path
        whole_bytes = 0
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
        for number, line in enumerate(data.splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break  # A process died while it wrote: its item is called again.
            try:
                row = json.loads(line)
                self.known[row["key"]] = row["value"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"resume: line {number} of {path} is not of a batch ({error}); "
                    "name a file of its own, or move this one away"
                ) from None
            whole_bytes += len(line)
        self._file: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(whole_bytes)
        self._file.seek(whole_bytes)

    def add(self, key: str, value: Any) -> None:
        try:
            line = json.dumps({"key": key, "value": value}, ensure_ascii=False)
            same = json.loads(line)["value"] == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise TypeError(
                f"resume: expected results that JSON gives back equal, got {type(value).__name__}; "
                "have the function return text, numbers, lists and dicts"
            )
        self._file.write(line.encode() + b"\n")
        # To the system: it survives the process, not the machine.
        self._file.flush()
        self.known[key] = value

    def close(self) -> None:
        self._file.close()


def _on_screen() -> Callable[[BatchProgress], object]:
    """Writes to standard error: one line that is written over on a screen, else some lines."""
    stream, is_screen = sys.stderr, sys.stderr.isatty()
    last = -float("inf")

    def tell(progress: BatchProgress) -> None:
        nonlocal last
        ends = progress.done == progress.total
        if progress.seconds - last < (_SCREEN if is_screen else _LOG) and not ends:
            return
        last = progress.seconds
        if is_screen:
            stream.write(f"\r\x1b[K{progress}" + ("\n" if ends else ""))
        else:
            stream.write(f"{progress}\n")
        stream.flush()

    return tell
