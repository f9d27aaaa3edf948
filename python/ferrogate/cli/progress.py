"""Progress on stderr: a bar in a terminal, a plain line now and then elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from ferrogate.cli.agent import Run
from ferrogate.cli.output import complain

__all__ = ["Progress"]

_LINE_EVERY = 5.0
# Redrawing costs about a millisecond; ten times a second is smooth enough.
_REFRESH = 0.1


class Progress:
    """``with Progress(quiet=...) as progress: tick = progress.start("with ferrogate", 100)``."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                auto_refresh=False,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, label: str, total: int) -> Callable[[Run], None]:
        """Begins a run of ``total`` rows; call the result with the run after each of them."""
        if self._quiet:
            return lambda _run: None
        return self._bar_ticks(label, total) if self._bar is not None else self._lines(label, total)

    def _bar_ticks(self, label: str, total: int) -> Callable[[Run], None]:
        task = self._bar.add_task(label, total=total, note="")

        def draw(done: int, run: Run) -> None:
            self._bar.update(task, completed=done, note=_note(run), refresh=True)

        return _now_and_then(_REFRESH, total, draw)

    def _lines(self, label: str, total: int) -> Callable[[Run], None]:
        def write(done: int, run: Run) -> None:
            complain(f"{label}: {done:,} of {total:,} done, {_note(run)}")

        return _now_and_then(_LINE_EVERY, total, write)


def _now_and_then(
    pause: float, total: int, show: Callable[[int, Run], None]
) -> Callable[[Run], None]:
    """Shows a run at most every ``pause`` seconds, and at its end."""
    shown = time.monotonic()

    def tick(run: Run) -> None:
        nonlocal shown
        now = time.monotonic()
        done = _done(run)
        if now - shown >= pause or done == total:
            shown = now
            show(done, run)

    return tick


def _done(run: Run) -> int:
    return run.answered + run.failed + run.rejected + len(run.never_granted)


def _note(run: Run) -> str:
    return f"{run.hits + run.joins:,} reused, {run.failed:,} failed"
