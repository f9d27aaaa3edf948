"""The rows of the stores: what several processes do with one file, all at once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from measure import Contender, Namespace, Row, Target

PROCESSES = 4
WORKER = Path(__file__).with_name("store_worker.py")


def processes(kind: str, what: str, count: int) -> Namespace:
    """Four processes on one store; `work()` has each do `count`, and waits for all."""
    folder = tempfile.TemporaryDirectory(prefix="ferrogate-bench-")
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), kind, folder.name, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for number in range(PROCESSES)
    ]

    def wait() -> None:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "done\n", "a process of the bench has failed"

    def work() -> None:
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{what} {count}\n")
            worker.stdin.flush()
        wait()

    def close() -> None:
        for worker in workers:
            worker.communicate()
        folder.cleanup()

    wait()
    return {"work": work, "close": close}


def row(what: str, count: int, says: str, ours: list[tuple[str, str, str]]) -> Row:
    """One kind of work, by `count` in each process."""
    rivals = [("diskcache.Cache", "diskcache"), ("diskcache.FanoutCache (8 files)", "fanout")]
    return Row(
        f"SQLite: {PROCESSES} processes on one file, {count} {says} each",
        Target(at_most=1 / 3, says="≥ 3 x faster"),
        [
            *(
                Contender(name, "work()", partial(processes, kind, what, count), "diskcache")
                for name, kind in rivals
            ),
            *(
                Contender(name, "work()", partial(processes, kind, what, count), "ferrogate", note)
                for name, kind, note in ours
            ),
        ],
        (0,),
        rounds=1,
    )


PLAIN, BARE = "ferrogate.CacheService", "ferrogate.CacheService, near cache off"
# So many that telling four processes to begin, half a millisecond, does not count.
ROWS = [
    row(
        "get",
        5000,
        "gets",
        [
            (PLAIN, "near", "memory in front of the file, watched for what the others change"),
            (BARE, "ferrogate", "every get reads the file"),
        ],
    ),
    row(
        "set",
        500,
        "sets, one after the other",
        [(BARE, "ferrogate", "every set waits for its commit")],
    ),
    row(
        "gather",
        500,
        "sets",
        [(BARE, "ferrogate", "50 awaited at a time; diskcache has no asyncio, its sets block")],
    ),
]
