"""The SQLite file: its bounds, and what can go wrong with it."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from child import run_well, times
from services import HASTY, Open, locked
from waiting import eventually

from ferrogate import CacheService, CacheUnavailable
from ferrogate.testing import ManualClock


def test_values_survive(sqlite: Open) -> None:
    sqlite().set_sync("ns", "k", {"a": 1}, tags=["t"])
    again = sqlite()
    assert again.get_sync("ns", "k") == {"a": 1}
    assert again.get_stats()["tier_hits"] == 1
    assert again.get_sync("ns", "k") == {"a": 1}
    assert again.get_stats()["near_hits"] == 1
    assert again.invalidate_tag_sync("t")
    assert sqlite().get_sync("ns", "k") is None


def test_entries_are_bounded(sqlite: Open) -> None:
    cache = sqlite(max_entries=100)
    for number in range(1000):
        assert cache.set_sync("ns", str(number), number)
    stats = cache.get_stats()
    assert stats["size"] == 100
    assert stats["evictions"] == 900
    # Approximately the least recently used ones went.
    reader = sqlite(max_entries=100)
    young = sum(reader.get_sync("ns", str(number)) is not None for number in range(900, 1000))
    assert young >= 40, young


def test_bytes_are_bounded(sqlite: Open, tmp_path: Path) -> None:
    cache = sqlite(max_bytes=1 << 20, compress_over=None)
    asyncio.run(cache.warm((("ns", n, "x" * 10_000) for n in range(2000)), concurrency=200))
    stats = cache.get_stats()
    assert stats["store_bytes"] <= 1 << 20
    assert stats["size"] > 80
    # A value that alone exceeds it is not stored.
    assert cache.set_sync("ns", "large", "x" * (2 << 20)) is False
    eventually(lambda: (tmp_path / "cache.db").stat().st_size <= 4 << 20)


def test_expired_values_go_by_themselves(sqlite: Open) -> None:
    clock = ManualClock(1_000.0)
    cache = sqlite(clock=clock)
    for number in range(500):
        cache.set_sync("ns", str(number), number, ttl=10)
    clock.advance(11)
    eventually(lambda: cache.health_check_sync() and not cache.get_stats()["size"])
    stats = cache.get_stats()
    assert (stats["size"], stats["store_bytes"], stats["expirations"]) == (0, 0, 500)


def test_invalidated_values_are_swept_out(sqlite: Open) -> None:
    cache = sqlite()
    asyncio.run(cache.warm((("ns", n, n) for n in range(1000)), tags=["t"]))
    cache.set_sync("other", "k", 1)
    cache.invalidate_tag_sync("t")
    cache.invalidate_namespace_sync("ns")
    eventually(lambda: cache.get_stats()["size"] == 1)
    eventually(lambda: query(cache, "SELECT count(*) FROM cuts") == [[0]])


def query(cache: CacheService, statement: str) -> list[list[object]]:
    """Asks the file from another process, as it must be."""
    code = (
        "import json, sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "print(json.dumps(c.execute(sys.argv[2]).fetchall())); c.commit()"
    )
    import json

    command = [sys.executable, "-c", code, cache.url.removeprefix("sqlite://"), statement]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows: list[list[object]] = json.loads(done.stdout)
    return rows


def test_two_keys_of_one_row_are_not_mixed_up(sqlite: Open) -> None:
    cache = sqlite()
    cache.set_sync("ns", "k", 1)
    cache.close_sync()
    query(cache, "UPDATE entries SET key = 'other'")
    again = sqlite()
    assert again.get_sync("ns", "k") is None
    assert again.delete_sync("ns", "k") is False
    assert query(again, "SELECT count(*) FROM entries") == [[1]]
    assert again.set_sync("ns", "k", 2)
    assert sqlite().get_sync("ns", "k") == 2


@pytest.mark.parametrize("garbage", [b"", b"garbage!" * 1024, 1, 2, 3, 5, 20])
def test_a_broken_file_is_moved_aside(
    sqlite: Open, tmp_path: Path, garbage: bytes | int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache.db"
    cache = sqlite()
    asyncio.run(cache.warm(("ns", n, "x" * 1000) for n in range(1000)))
    cache.close_sync()
    if isinstance(garbage, int):
        # From that page on. The first one is fine, so SQLite opens it.
        with path.open("r+b") as file:
            file.seek(garbage * 4096)
            file.write(b"\xff" * 200 * 4096)
    else:
        path.write_bytes(garbage)
    again = sqlite()
    with caplog.at_level(logging.WARNING, "ferrogate"):
        for number in range(1000):
            again.get_sync("ns", number)
        assert again.set_sync("ns", "new", 1)
        assert sqlite().get_sync("ns", "new") == 1
        again.get_stats()
    if garbage == b"":
        # An empty file is a new one.
        assert not list(tmp_path.glob("*.corrupt-*"))
        return
    assert len(list(tmp_path.glob("cache.db.corrupt-*"))) == 1
    assert "is broken" in caplog.text
    assert "beginning a fresh one" in caplog.text


def test_a_file_that_breaks_while_others_use_it(sqlite: Open, tmp_path: Path) -> None:
    one, other = sqlite(), sqlite()
    asyncio.run(one.warm(("ns", n, "x" * 1000) for n in range(500)))
    assert other.get_sync("ns", 1) == "x" * 1000
    os.rename(tmp_path / "cache.db", tmp_path / "gone.db")
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"cache.db{suffix}").unlink(missing_ok=True)

    def moved_on() -> bool:
        one.set_sync("ns", "after", 1)
        # What was only in the old file is not served any more, also not from memory.
        return other.get_sync("ns", 1) is None and other.get_sync("ns", "after") == 1

    eventually(moved_on)
    assert (tmp_path / "cache.db").exists()


@pytest.mark.parametrize("text", [b"root\n", b"notes " * 1000, b"\0" * 100])
def test_a_file_that_never_was_one_is_refused_and_not_touched(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"^url: .*notes\.txt is no file of ours .* left alone"):
        CacheService(f"sqlite://{path}")
    assert path.read_bytes() == text
    assert [one.name for one in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unknown_version_is_refused_and_not_touched(sqlite: Open, tmp_path: Path) -> None:
    cache = sqlite()
    cache.set_sync("ns", "k", 1)
    cache.close_sync()
    query(cache, "PRAGMA user_version = 99")
    with pytest.raises(ValueError, match=r"written by another ferrogate: its version is 99"):
        CacheService(cache.url)
    query(cache, "PRAGMA user_version = 2")
    assert sqlite().get_sync("ns", "k") == 1


def test_somebody_else_s_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as theirs:
        theirs.execute("CREATE TABLE users(name)")
    theirs.close()
    with pytest.raises(ValueError, match="database of somebody else"):
        CacheService(f"sqlite://{path}")


def test_locked_by_another_process(sqlite: Open, tmp_path: Path) -> None:
    cache = sqlite(busy_seconds=HASTY)
    eventually(lambda: cache.set_sync("ns", "k", 1))
    strict = sqlite(strict=True, busy_seconds=HASTY)
    with locked(tmp_path / "cache.db") as (lock, unlock):
        lock()
        # It is locked until it is unlocked below: whoever comes back has not waited for it.
        assert cache.set_sync("ns", "k", 2) is False
        with pytest.raises(CacheUnavailable, match="locked"):
            strict.set_sync("ns", "k", 3)
        for _ in range(5):
            cache.set_sync("ns", "other", 2)
        assert not cache.get_stats()["available"]
        # Left alone, it costs nothing: 200 that waited would take 10 s, and of these only one each
        # 100 ms or more does.
        skipped = cache.get_stats()["skipped"]
        for _ in range(200):
            assert cache.set_sync("ns", "other", 2) is False
        assert cache.get_stats()["skipped"] - skipped > 150
        # The near cache goes on; and where it is not trusted, nothing older is read instead.
        eventually(lambda: cache.get_sync("ns", "k") == 2)
        unlock()
    eventually(lambda: cache.set_sync("ns", "k", 4))
    assert cache.get_stats()["available"]
    assert sqlite().get_sync("ns", "k") == 4


def test_what_was_invalidated_during_an_outage_does_not_come_back(
    sqlite: Open, tmp_path: Path
) -> None:
    def write(cache: CacheService) -> None:
        for key in ("set", "deleted", "tagged", "kept"):
            store(cache, "ns", key, ["t"] if key == "tagged" else None)
        store(cache, "other", "k", None)

    def store(cache: CacheService, ns: str, key: str, tags: list[str] | None) -> None:
        eventually(lambda: cache.set_sync(ns, key, "old", tags=tags))

    cache = sqlite(near_bytes=1, busy_seconds=HASTY)
    write(cache)
    eventually(lambda: not cache.get_stats()["owed"])
    with locked(tmp_path / "cache.db") as (lock, unlock):
        lock()
        assert cache.set_sync("ns", "set", "new") is False
        assert cache.delete_sync("ns", "deleted") is False
        assert cache.invalidate_tag_sync("t") is False
        assert cache.invalidate_namespace_sync("other") is False
        assert cache.get_stats()["owed"] == 4
        # Reading works all the while.
        gone = [("ns", "set"), ("ns", "deleted"), ("ns", "tagged"), ("other", "k")]
        eventually(lambda: cache.get_sync("ns", "kept") == "old")
        assert [cache.get_sync(*one) for one in gone] == [None] * 4
        assert not cache.exists_sync("ns", "deleted")
        unlock()
    # Told as soon as it can be, also to the others.
    eventually(lambda: cache.health_check_sync() and not cache.get_stats()["owed"])
    later = sqlite()
    assert [later.get_sync(*one) for one in gone] == [None] * 4
    assert later.get_sync("ns", "kept") == "old"
    write(cache)
    assert [cache.get_sync(*one) for one in gone] == ["old"] * 4


def test_a_full_disk_degrades(tmp_path: Path) -> None:
    code = """
        import logging, resource, sys
        from ferrogate import CacheService
        logging.disable(logging.CRITICAL)
        cache = CacheService(sys.argv[1], compress_over=None)
        assert cache.set_sync("ns", "early", 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        stored = [cache.set_sync("ns", str(n), "x" * 10_000) for n in range(300)]
        assert stored[0] and not stored[-1], stored
        stats = cache.get_stats()
        assert stats["errors"] > 0 and not stats["available"], stats
        assert cache.get_sync("ns", "299") == "x" * 10_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        import time
        end = time.monotonic() + 20
        while not cache.set_sync("ns", "late", 1):
            assert time.monotonic() < end
            time.sleep(0.05)
        again = CacheService(sys.argv[1])
        assert again.get_sync("ns", "early") == again.get_sync("ns", "late") == 1
        assert again.get_stats()["recoveries"] == 0
    """
    run_well(code, f"sqlite://{tmp_path}/cache.db", timeout=100)


@pytest.mark.usefixtures("no_leaked_threads")
def test_nothing_is_left_behind(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def native_threads() -> int:
        return len(os.listdir("/proc/self/task"))

    async def use(cache: CacheService) -> None:
        await cache.set("ns", "k", 1)
        assert await cache.get("ns", "other") is None

    before = descriptors(), native_threads()
    for turn in range(20):
        cache = CacheService(f"sqlite://{tmp_path}/cache.db")
        for _ in range(3):
            asyncio.run(use(cache))
        if turn % 2:
            cache.close_sync()
        del cache
    eventually(lambda: descriptors() <= before[0] and native_threads() <= before[1])


def test_many_completions_and_cancellations(sqlite: Open) -> None:
    cache = sqlite(near_bytes=1)

    async def main() -> None:
        for turn in range(100):
            tasks = [asyncio.create_task(cache.get("ns", f"{turn}:{n}")) for n in range(50)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(one is None for one in done[1::2])
        assert await cache.set("ns", "k", 1)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["set", "delete", "namespace", "tag"])
def test_a_read_while_a_change_is_on_its_way_leaves_nothing_old(sqlite: Open, how: str) -> None:
    """It may bring home what the store had before; nobody else will say that it has changed."""
    # So small that a value which is set does not stay in it until it is stored.
    cache, other = sqlite(near_bytes=400 if how == "set" else 1 << 20), sqlite()

    def change(key: str) -> Awaitable[Any]:
        match how:
            case "set":
                return cache.set("ns", key, "new" + "x" * 200)
            case "delete":
                return cache.delete("ns", key)
            case "namespace":
                return cache.invalidate_namespace("ns")
            case _:
                return cache.invalidate_tag("t")

    async def main() -> None:
        for turn in range(times(50, 2000)):
            key = str(turn)
            assert await other.set("ns", key, "old", tags=["t"])
            await asyncio.gather(change(key), *(cache.get("ns", key) for _ in range(3)))
            got = await cache.get("ns", key)
            assert got is None or got.startswith("new"), (turn, got)

    asyncio.run(main())


def test_writers_of_one_key_agree_with_the_store(sqlite: Open) -> None:
    cache = sqlite()

    def write(number: int, start: threading.Barrier) -> None:
        start.wait()
        assert cache.set_sync("ns", "k", number)

    for _ in range(times(30, 1000)):
        start = threading.Barrier(4)
        threads = [threading.Thread(target=write, args=(n, start)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert cache.get_sync("ns", "k") == sqlite().get_sync("ns", "k")


def test_a_loop_that_is_closed_over_requests(sqlite: Open) -> None:
    cache = sqlite(near_bytes=1)
    for _ in range(20):
        loop = asyncio.new_event_loop()

        async def main() -> None:
            for number in range(20):
                asyncio.ensure_future(cache.get("ns", str(number)))  # noqa: RUF006
            await asyncio.sleep(0)

        asyncio.set_event_loop(loop)
        loop.run_until_complete(main())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
    asyncio.set_event_loop(None)
    assert asyncio.run(cache.set("ns", "k", 1))


def test_blocking_and_awaiting_at_once(sqlite: Open) -> None:
    cache = sqlite()
    stop = threading.Event()

    def blocks() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            assert cache.set_sync("ns", f"t{number % 50}", number)
            cache.get_sync("ns", f"t{(number + 25) % 50}")

    threads = [threading.Thread(target=blocks) for _ in range(4)]
    for one in threads:
        one.start()

    async def main() -> None:
        for turn in range(50):
            assert all(await asyncio.gather(*(cache.set("ns", str(n), turn) for n in range(20))))
            got = await asyncio.gather(*(cache.get("ns", str(n)) for n in range(20)))
            assert got == [turn] * 20

    asyncio.run(main())
    stop.set()
    for one in threads:
        one.join()
    assert cache.get_stats()["errors"] == 0
