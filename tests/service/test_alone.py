"""Loads beside a store that is away, or that has what this service cannot read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from services import HASTY, Open, locked
from waiting import eventually

from ferrogate import CacheService

KEY = b"sixteen bytes are the least"


@pytest.mark.parametrize("how", ["delete", "namespace", "tag", "set"])
@pytest.mark.parametrize("awaited", [False, True])
def test_what_changes_during_the_load_outdates_it(
    sqlite: Open, tmp_path: Path, how: str, awaited: bool
) -> None:
    change: dict[str, Callable[[CacheService], object]] = {
        "delete": lambda cache: cache.delete_sync("ns", "k"),
        "namespace": lambda cache: cache.invalidate_namespace_sync("ns"),
        "tag": lambda cache: cache.invalidate_tag_sync("t"),
        "set": lambda cache: cache.set_sync("ns", "k", "newer"),
    }
    cache = sqlite(busy_seconds=HASTY)
    eventually(cache.health_check_sync)
    with locked(tmp_path / "cache.db") as (lock, unlock):
        lock()

        def load() -> str:
            change[how](cache)
            return "old"

        async def load_async() -> str:
            return load()

        if awaited:
            got = asyncio.run(cache.get_or_set("ns", "k", load_async, tags=["t"]))
        else:
            got = cache.get_or_set_sync("ns", "k", load, tags=["t"])
        assert got == "old"
        kept = "newer" if how == "set" else None
        # The near cache waits for its watcher's next look, which a busy machine may put off.
        eventually(lambda: cache.get_sync("ns", "k") == kept)
        assert cache.get_stats()["outdated"] == 1
        # What nothing has changed is kept, as far as it can be.
        assert cache.get_or_set_sync("ns", "other", lambda: 1) == 1
        eventually(lambda: cache.get_sync("ns", "other") == 1)
        unlock()
    eventually(lambda: cache.health_check_sync() and not cache.get_stats()["owed"])
    eventually(lambda: cache.get_sync("ns", "k") == kept)
    assert sqlite().get_sync("ns", "k") is None


def foreign(sqlite: Open) -> list[CacheService]:
    """Of another codec than what the store has."""
    sqlite(codec="msgpack").set_sync("ns", "k", "foreign")
    return [sqlite(), sqlite()]


def unsigned(sqlite: Open) -> list[CacheService]:
    """The frame is good, and the signature is another key's."""
    sqlite(codec="pickle", hmac_key=b"x" * 16).set_sync("ns", "k", "foreign")
    return [sqlite(codec="pickle", hmac_key=KEY) for _ in range(2)]


@pytest.mark.parametrize("kind", [foreign, unsigned])
def test_a_value_that_cannot_be_read_is_loaded_once_for_all(
    sqlite: Open, kind: Callable[[Open], list[CacheService]]
) -> None:
    services = kind(sqlite)
    loads: list[int] = []
    everybody = threading.Barrier(len(services))

    def load() -> str:
        loads.append(1)
        return "new"

    def ask(service: CacheService) -> None:
        everybody.wait()
        got.append(service.get_or_set_sync("ns", "k", load))

    got: list[Any] = []
    threads = [threading.Thread(target=ask, args=(one,)) for one in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == ["new", "new"]
    # Each saw the other's value, or replaced what neither can read; a race may cost one load.
    assert len(loads) in (1, 2)
    assert [one.get_sync("ns", "k") for one in services] == ["new", "new"]
    assert services[0].get_or_set_sync("ns", "k", lambda: "never") == "new"


def test_whoever_loads_anew_makes_the_others_wait(sqlite: Open) -> None:
    one, other = foreign(sqlite)
    assert one._lease(True, "ns", "k", None) == ("unreadable",)
    what, lease = one._lease(True, "ns", "k", None, True)
    assert what == "lease"
    assert other._lease(True, "ns", "k", None, True)[0] == "busy"
    assert one._set_loaded(True, "ns", "k", "new", None, None, lease)
    assert other._lease(True, "ns", "k", None) == ("value", "new")


def test_a_store_that_is_busy_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    """Longer than one request waits; still one load over all processes."""
    url = f"sqlite://{tmp_path}/cache.db"
    answers: list[str] = []

    class Unlocks(CacheService):
        def _lease(self, *args: Any) -> Any:
            answer = super()._lease(*args)
            answers.append(answer[0])
            if len(answers) == 1:
                unlock()
            return answer

    with Unlocks(url, busy_seconds=0.05) as one, CacheService(url) as other:
        assert one.health_check_sync()
        with locked(tmp_path / "cache.db") as (lock, unlock):
            lock()
            assert one.get_or_set_sync("ns", "k", lambda: 1) == 1
        assert answers == ["alone", "lease"]
        assert not one.get_stats()["owed"]
        assert other.get_or_set_sync("ns", "k", lambda: 2) == 1


def test_a_call_made_before_its_loop_runs_is_counted_once(sqlite: Open) -> None:
    cache = sqlite()
    cache.set_sync("ns", "k", 1)

    async def gather(*calls: Any) -> list[Any]:
        return [await one for one in calls]

    calls = cache.delete("ns", "k"), cache.invalidate_tag("t"), cache.invalidate_namespace("ns")
    assert cache.get_stats()["deletes"] == cache.get_stats()["invalidations"] == 0
    assert cache.get_sync("ns", "k") == 1
    assert asyncio.run(gather(*calls)) == [True, True, True]
    stats = cache.get_stats()
    assert (stats["deletes"], stats["invalidations"]) == (1, 2)
