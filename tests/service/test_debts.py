"""What a store could not be told while it was away: it is told, in time and in order."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis_servers import Server
from services import HASTY, Open, locked
from waiting import eventually, in_time

from ferrogate import CacheService


@pytest.fixture
def cache(sqlite: Open) -> CacheService:
    """With what is to be outdated, and nothing of it in the near cache."""
    cache = sqlite(busy_seconds=HASTY, near_bytes=1)
    for ns, key, tags in ("ns", "k", None), ("gone", "k", None), ("other", "k", ["t"]):
        eventually(lambda: cache.set_sync(ns, key, "old", tags=tags))  # noqa: B023
    return cache


@pytest.fixture
def lock(cache: CacheService, tmp_path: Path) -> Iterator[Any]:
    eventually(lambda: cache.health_check_sync() and not cache.get_stats()["owed"])
    with locked(tmp_path / "cache.db") as both:
        yield both


def outdate(cache: CacheService) -> None:
    assert cache.delete_sync("ns", "k") is False
    assert cache.invalidate_namespace_sync("gone") is False
    assert cache.invalidate_tag_sync("t") is False
    assert cache.get_stats()["owed"] == 3


def served(cache: CacheService) -> list[Any]:
    return [cache.get_sync(ns, "k") for ns in ("ns", "gone", "other")]


def test_the_store_is_told_though_nobody_asks_for_anything(
    cache: CacheService, sqlite: Open, lock: Any
) -> None:
    other = sqlite(near_bytes=1)
    lock[0]()
    outdate(cache)
    assert served(other) == ["old"] * 3
    lock[1]()
    eventually(lambda: served(other) == [None] * 3)
    eventually(lambda: cache.get_stats()["owed"] == 0)


def test_the_store_is_told_at_the_end(cache: CacheService, sqlite: Open, lock: Any) -> None:
    lock[0]()
    outdate(cache)
    lock[1]()
    cache.close_sync()
    assert served(sqlite()) == [None] * 3


def test_what_it_was_not_told_at_the_end_is_logged(
    cache: CacheService, lock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lock[0]()
    outdate(cache)
    with caplog.at_level(logging.WARNING, "ferrogate"):
        cache.close_sync()
    assert "3 changes could not be told to the store any more" in caplog.text


def test_what_is_written_afterwards_stays(cache: CacheService, sqlite: Open, lock: Any) -> None:
    lock[0]()
    outdate(cache)
    lock[1]()
    keys = [("ns", None), ("gone", None), ("other", ["t"])]
    for ns, tags in keys:
        eventually(lambda ns=ns, tags=tags: cache.set_sync(ns, "k", "new", tags=tags))
    assert cache.get_stats()["owed"] == 0
    assert served(sqlite()) == served(cache) == ["new"] * 3


def test_what_others_have_written_since_stays(cache: CacheService, sqlite: Open, lock: Any) -> None:
    other = sqlite()
    lock[0]()
    assert cache.set_sync("ns", "k", "failed") is False
    lock[1]()
    # Times are told apart by milliseconds.
    noted = time.time()
    while time.time() < noted + 0.002:
        pass
    assert other.set_sync("ns", "k", "newer")
    eventually(lambda: cache.get_stats()["owed"] == 0)
    assert sqlite().get_sync("ns", "k") == "newer"
    eventually(lambda: cache.get_sync("ns", "k") == "newer")


def test_a_store_that_only_takes_no_writes_is_read_and_told_of_once(
    cache: CacheService, lock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "ferrogate")
    lock[0]()
    for _ in range(12):
        assert cache.set_sync("ns", "new", 1) is False
        assert cache.get_sync("ns", "k") == "old"
    stats = cache.get_stats()
    assert not stats["available"]
    assert stats["skipped"] > 0
    assert stats["errors"] >= 3
    said = [one.getMessage() for one in caplog.records]
    assert len(said) == 1
    assert "the store cannot be written to: database is locked" in said[0]
    lock[1]()
    eventually(lambda: cache.set_sync("ns", "new", 2))
    assert cache.get_stats()["available"]
    said = [one.getMessage() for one in caplog.records]
    assert len(said) == 2
    assert "the store can be written to again" in said[1]


def test_very_many_invalidations_concern_nothing_else() -> None:
    cache = CacheService()
    cache.set_sync("ns", "kept", 1, tags=["mine"])
    cache.set_sync("ns", "outdated", 1, tags=["5"])
    for number in range(20_001):
        cache.invalidate_tag_sync(str(number))
    assert cache.get_sync("ns", "kept") == 1
    assert cache.get_sync("ns", "outdated") is None


def test_redis_is_told_though_nobody_asks_for_anything(redis: Server) -> None:
    with CacheService(redis.url) as cache, CacheService(redis.url, near_bytes=1) as other:
        for ns in ("ns", "gone"):
            assert cache.set_sync(ns, "k", "old")
        takes_writes(redis, False)
        assert cache.delete_sync("ns", "k") is False
        assert cache.invalidate_namespace_sync("gone") is False
        assert cache.get_stats()["owed"] == 2
        assert [other.get_sync(ns, "k") for ns in ("ns", "gone")] == ["old"] * 2
        takes_writes(redis, True)
        eventually(lambda: [other.get_sync(ns, "k") for ns in ("ns", "gone")] == [None] * 2)
        eventually(lambda: cache.get_stats()["owed"] == 0)


def test_redis_is_told_at_the_end(redis: Server, caplog: pytest.LogCaptureFixture) -> None:
    with CacheService(redis.url) as other:
        for key in ("told", "untold"):
            cache = CacheService(redis.url)
            assert cache.set_sync("ns", key, "old")
            takes_writes(redis, False)
            assert cache.delete_sync("ns", key) is False
            takes_writes(redis, key == "told")
            cache.close_sync()
            takes_writes(redis, True)
        assert other.get_sync("ns", "told") is None
        assert other.get_sync("ns", "untold") == "old"
    assert caplog.text.count("1 changes could not be told to the store any more") == 1


def test_redis_is_told_when_a_service_is_dropped(
    redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    def dropped(attempt: int) -> None:
        caplog.clear()
        cache = CacheService(redis.url, name="one")
        eventually(cache.health_check_sync)
        # More than go at a time.
        keys = [f"{attempt} {number}" for number in range(1200)]
        for key in keys:
            assert other.set_sync("ns", key, "old")
        takes_writes(redis, False)
        for key in keys:
            assert cache.delete_sync("ns", key) is False
        takes_writes(redis, True)
        # All of it is owed, unless it has taken a second to get here.
        del cache
        gc.collect()
        for key in keys:
            eventually(lambda: other.get_sync("ns", key) is None)  # noqa: B023
        assert caplog.text.count("one: dropped, not closed; if its store answers, it is told") == 1

    with CacheService(redis.url, timeout_seconds=5, near_bytes=1) as other:
        in_time(dropped)


def takes_writes(redis: Server, whether: bool) -> None:
    """Without a replica it refuses them, if one is asked for."""
    replicas = "0" if whether else "1"
    assert redis.command("CONFIG", "SET", "min-replicas-to-write", replicas) == b"+OK"
