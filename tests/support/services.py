"""Services that a test opens, and that are closed after it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from ferrogate import CacheService

#: Seconds that a commit waits for those of other processes and services, where nothing else is
#: said: a thread that is committing may lose its processor for longer than the usual 0.25.
PATIENT = 2.0
#: What tests take that lock the file themselves, and wait for each of these. Where it is not
#: locked they ask again: a service's own thread that commits may keep it for longer.
HASTY = 0.05


class Open(Protocol):
    """Opens a service on the test's store, as often as called."""

    def __call__(self, **arguments: Any) -> CacheService: ...


def opener(url: str) -> Iterator[Open]:
    opened: list[CacheService] = []

    def open_service(**arguments: Any) -> CacheService:
        if url.startswith("sqlite:"):
            arguments.setdefault("busy_seconds", PATIENT)
        elif url.startswith("redis:"):
            arguments.setdefault("timeout_seconds", 5)
        opened.append(CacheService(url, **arguments))
        return opened[-1]

    yield open_service
    for one in opened:
        one.close_sync()


_LOCKS = """
import sqlite3, sys
file = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.stdin:
    file.execute("BEGIN EXCLUSIVE" if line == "lock\\n" else "ROLLBACK")
    print("done", flush=True)
"""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Another process that can ``lock()`` a SQLite file against writers, and ``unlock()`` it."""
    command = [sys.executable, "-c", _LOCKS, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as locker:

        def tell(what: str) -> None:
            assert locker.stdin is not None
            assert locker.stdout is not None
            locker.stdin.write(what + "\n")
            assert locker.stdout.readline() == "done\n"

        try:
            yield (lambda: tell("lock")), (lambda: tell("unlock"))
        finally:
            locker.kill()
